"""The methods: the 28 papers of ICCV 2023 and the classic baselines. Names only; a method is imported when it is asked for.

`stillroom list` prints this table; `load` imports a method's room. README's table, CITATION.cff and the site's menu are written of it, too:
`python docs/catalogue.py --write`.
"""

from __future__ import annotations

import gc
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.errors import InputError, near

if TYPE_CHECKING:
    from stillroom.engine.room import Room


@dataclass(frozen=True)
class Method:
    """One row of the catalog.

    Args:
        name: what the command line calls it.
        paper: title, authors' short form where the title alone would not do, and year.
        task: what it works on: the name of a task, or "any".
        room: the module that tells it; empty while it is not built.
        verified: what its numbers were checked against.
        menu: what the site's menu and plots call it, where that is not its name in capitals.
        listed: what the README's table says, where that is not the title with venue and year.
        cited: the title as it is cited, where that is not `paper`.
        authors: "Family, Given; Family, Given"; empty where there is no paper.
        venue: where it appeared: conference and year, or the year alone.
        arxiv: its number there, where it appeared nowhere else.
    """

    name: str
    paper: str
    task: str
    room: str = ""
    verified: str = ""
    menu: str = ""
    listed: str = ""
    cited: str = ""
    authors: str = ""
    venue: str = "ICCV 2023"
    arxiv: str = ""


_PAPER = "reference vectors of the official code"
_TESTS = "equations by tests"
_SPECIFICATION = "reference vectors of the specification"

# fmt: off
METHODS: tuple[Method, ...] = (
    Method(
        "supervised", "Plain training on labels", "classification", "stillroom.methods.supervised", _TESTS,
        listed="plain training on labels, the yardstick (`--task detection`: on boxes)",
    ),
    Method(
        "kd", "Distilling the Knowledge in a Neural Network (Hinton 2015)", "classification", "stillroom.methods.kd", _PAPER,
        cited="Distilling the Knowledge in a Neural Network", venue="2015", arxiv="1503.02531",
        authors="Hinton, Geoffrey; Vinyals, Oriol; Dean, Jeff",
    ),
    Method(
        "dkd", "Decoupled Knowledge Distillation (Zhao 2022)", "classification", "stillroom.methods.dkd", _PAPER,
        cited="Decoupled Knowledge Distillation", venue="CVPR 2022",
        authors="Zhao, Borui; Cui, Quan; Song, Renjie; Qiu, Yiyu; Liang, Jiajun",
    ),
    Method(
        "fitnets", "FitNets: Hints for Thin Deep Nets (Romero 2015)", "classification", "stillroom.methods.fitnets", _TESTS,
        menu="FitNets", cited="FitNets: Hints for Thin Deep Nets", venue="ICLR 2015",
        authors="Romero, Adriana; Ballas, Nicolas; Ebrahimi Kahou, Samira; Chassang, Antoine; Gatta, Carlo; Bengio, Yoshua",
    ),
    Method(
        "crd", "Contrastive Representation Distillation (Tian 2020)", "classification", "stillroom.methods.crd", _TESTS,
        cited="Contrastive Representation Distillation", venue="ICLR 2020",
        authors="Tian, Yonglong; Krishnan, Dilip; Isola, Phillip",
    ),
    Method(
        "dino", "DINO: Self-distillation with no labels (Caron 2021)", "representation", "stillroom.methods.dino", _PAPER,
        cited="Emerging Properties in Self-Supervised Vision Transformers", venue="ICCV 2021",
        authors="Caron, Mathilde; Touvron, Hugo; Misra, Ishan; Jégou, Hervé; Mairal, Julien; Bojanowski, Piotr; Joulin, Armand",
    ),
    Method(
        "searched", "Any composed distiller, by its string", "any", "stillroom.methods.auto_kd.searched", _TESTS,
        menu="A composed distiller",
        listed='a distance between features composed of words, by its string: `--distiller "satt>local4>channel>kl4*10"`',
    ),
    Method(
        "features", "Any foundation model into any backbone, without labels", "representation", "stillroom.methods.features", _TESTS,
        menu="Features", listed="any foundation model into any backbone, from images without labels",
    ),
    Method(
        "dot", "DOT: A Distillation-Oriented Trainer", "any", "stillroom.methods.dot", _PAPER,
        authors="Zhao, Borui; Cui, Quan; Song, Renjie; Liang, Jiajun",
    ),
    Method(
        "ssd-det", "Spatial Self-Distillation for Object Detection with Inaccurate Bounding Boxes", "detection",
        "stillroom.methods.ssd_det", _PAPER, menu="SSD-Det",
        authors="Wu, Di; Chen, Pengfei; Yu, Xuehui; Li, Guorong; Han, Zhenjun; Jiao, Jianbin",
    ),
    Method(
        "iod", "Incremental object detection via within-class and between-class distillation", "detection", "stillroom.methods.iod",
        _SPECIFICATION,
        cited="Alleviating Catastrophic Forgetting of Incremental Object Detection via Within-Class and Between-Class "
        "Knowledge Distillation",
        listed="Incremental Object Detection via Within-class and Between-class Distillation (ICCV 2023)",
        authors="Kang, Mengxue; Zhang, Jinpeng; Zhang, Jinming; Wang, Xiashuang; Chen, Yang; Ma, Zhe; Huang, Xuhui",
    ),
    Method(
        "auto-kd", "Auto-KD: Automated Knowledge Distillation via Monte Carlo Tree Search", "classification",
        "stillroom.methods.auto_kd", _SPECIFICATION,
        menu="Auto-KD", cited="Automated Knowledge Distillation via Monte Carlo Tree Search",
        authors="Li, Lujun; Dong, Peijie; Wei, Zimian; Yang, Ya",
    ),
    Method(
        "zeroseg", "Exploring Open-Vocabulary Semantic Segmentation from CLIP Vision Encoder Distillation Only", "segmentation",
        "stillroom.methods.zeroseg", "reference vectors of GroupViT's code", menu="ZeroSeg",
        authors="Chen, Jun; Zhu, Deyao; Qian, Guocheng; Ghanem, Bernard; Yan, Zhicheng; Zhu, Chenchen; Xiao, Fanyi; "
        "Culatana, Sean Chang; Elhoseiny, Mohamed",
    ),
    Method(
        "otd", "Taxonomy Adaptive Cross-Domain Adaptation in Medical Imaging via Optimization Trajectory Distillation", "nuclei",
        "stillroom.methods.otd", _PAPER,
        authors="Fan, Jianan; Liu, Dongnan; Chang, Hang; Huang, Heng; Chen, Mei; Cai, Weidong",
    ),
    Method(
        "tinyclip", "TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight Inheritance", "imagetext",
        "stillroom.methods.tinyclip", _PAPER, menu="TinyCLIP",
        authors="Wu, Kan; Peng, Houwen; Zhou, Zhenghong; Xiao, Bin; Liu, Mengchen; Yuan, Lu; Xuan, Hong; Valenzuela, Michael; "
        "Chen, Xi; Wang, Xinggang; Chao, Hongyang; Hu, Han",
    ),
    Method(
        "rdd", "Representation Disparity-aware Distillation for 3D Object Detection", "detection3d", "stillroom.methods.rdd",
        _SPECIFICATION,
        authors="Li, Yanjing; Xu, Sheng; Lin, Mingbao; Yin, Jihao; Zhang, Baochang; Cao, Xianbin",
    ),
    Method(
        "sdd", "Not All Steps are Created Equal: Selective Diffusion Distillation for Image Manipulation", "editing",
        "stillroom.methods.sdd", _PAPER,
        authors="Wang, Luozhou; Yang, Shuai; Liu, Shu; Chen, Ying-Cong",
    ),
    Method(
        "daps-sam", "Dense 2D-3D Indoor Prediction with Sound via Aligned Cross-Modal Distillation", "sound",
        "stillroom.methods.daps_sam", _SPECIFICATION,
        authors="Yun, Heeseung; Na, Joonil; Kim, Gunhee",
    ),
    Method(
        "crkd", "Class-relation Knowledge Distillation for Novel Class Discovery", "classification", "stillroom.methods.crkd", _PAPER,
        menu="CrKD",
        authors="Gu, Peiyan; Zhang, Chuyu; Xu, Ruijie; He, Xuming",
    ),
    Method(
        "upvl", "Unsupervised 3D Perception with 2D Vision-Language Distillation for Autonomous Driving", "detection3d",
        "stillroom.methods.upvl", _SPECIFICATION, menu="UP-VL",
        authors="Najibi, Mahyar; Ji, Jingwei; Zhou, Yin; Qi, Charles R.; Yan, Xinchen; Ettinger, Scott; Anguelov, Dragomir",
    ),
    Method(
        "kd3", "Distribution Shift Matters for Knowledge Distillation with Webly Collected Images", "classification",
        "stillroom.methods.kd3", _PAPER, menu="KD³",
        authors="Tang, Jialiang; Chen, Shuo; Niu, Gang; Sugiyama, Masashi; Gong, Chen",
    ),
    Method(
        "mtl-cs", "Multi-Task Learning with Knowledge Distillation for Dense Prediction", "multitask", "stillroom.methods.mtl_cs",
        _SPECIFICATION,
        authors="Xu, Yangyang; Yang, Yibo; Zhang, Lefei",
    ),
    Method(
        "adasim", "Adaptive Similarity Bootstrapping for Self-Distillation Based Representation Learning", "representation",
        "stillroom.methods.adasim", _PAPER, menu="AdaSim",
        authors="Lebailly, Tim; Stegmüller, Thomas; Bozorgtabar, Behzad; Thiran, Jean-Philippe; Tuytelaars, Tinne",
    ),
    Method(
        "ferkd", "FerKD: Surgical Label Adaptation for Efficient Distillation", "classification", "stillroom.methods.ferkd", _PAPER,
        menu="FerKD",
        authors="Shen, Zhiqiang",
    ),
    Method(
        "mdcs", "MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition", "classification",
        "stillroom.methods.mdcs", _PAPER,
        authors="Zhao, Qihao; Jiang, Chen; Hu, Wei; Zhang, Fan; Liu, Jun",
    ),
    Method(
        "giftnet", "Deep Image Harmonization with Globally Guided Feature Transformation and Relation Distillation",
        "harmonization", "stillroom.methods.giftnet", _PAPER, menu="GiftNet",
        authors="Niu, Li; Tan, Linfeng; Tao, Xinhao; Cao, Junyan; Guo, Fengjun; Long, Teng; Zhang, Liqing",
    ),
    Method(
        "memkd", "Remembering Normality: Memory-guided Knowledge Distillation for Unsupervised Anomaly Detection", "anomaly",
        "stillroom.methods.memkd", "reference vectors of a reproduction", menu="MemKD",
        authors="Gu, Zhihao; Liu, Liang; Chen, Xu; Yi, Ran; Zhang, Jiangning; Wang, Yabiao; Wang, Chengjie; Shu, Annan; "
        "Jiang, Guannan; Ma, Lizhuang",
    ),
    Method(
        "bckd", "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection", "detection",
        "stillroom.methods.bckd", _PAPER,
        authors="Yang, Longrong; Zhou, Xianpan; Li, Xuewei; Qiao, Liang; Li, Zheyang; Yang, Ziwei; Wang, Gaoang; Li, Xi",
    ),
    Method(
        "mm-ego", "Multimodal Distillation for Egocentric Action Recognition", "video", "stillroom.methods.mm_ego", _PAPER,
        menu="Multimodal distillation",
        authors="Radevski, Gorjan; Grujicic, Dusan; Blaschko, Matthew; Moens, Marie-Francine; Tuytelaars, Tinne",
    ),
    Method(
        "wad", "Semi-Supervised Learning via Weight-Aware Distillation under Class Distribution Mismatch", "classification",
        "stillroom.methods.wad", _PAPER,
        authors="Du, Pan; Zhao, Suyun; Sheng, Zisen; Li, Cuiping; Chen, Hong",
    ),
    Method(
        "boss", "Bayesian Optimization Meets Self-Distillation", "classification", "stillroom.methods.boss", _PAPER,
        authors="Lee, HyunJae; Song, Heon; Lee, Hyeonsoo; Lee, Gi-hyeon; Park, Suyeong; Yoo, Donggeun",
    ),
    Method(
        "unikd", "UniKD: Universal Knowledge Distillation for Mimicking Homogeneous or Heterogeneous Object Detectors", "detection",
        "stillroom.methods.unikd", _SPECIFICATION, menu="UniKD",
        authors="Lao, Shanshan; Song, Guanglu; Liu, Boxiao; Liu, Yu; Yang, Yujiu",
    ),
    Method(
        "l2d", "Multi-Label Knowledge Distillation", "multilabel", "stillroom.methods.l2d", _PAPER,
        authors="Yang, Penghui; Xie, Ming-Kun; Zong, Chen-Chen; Feng, Lei; Niu, Gang; Sugiyama, Masashi; Huang, Sheng-Jun",
    ),
    Method(
        "distillbev", "DistillBEV: Boosting Multi-Camera 3D Object Detection with Cross-Modal Knowledge Distillation",
        "detection3d", "stillroom.methods.distillbev", "reference vectors of released code", menu="DistillBEV",
        authors="Wang, Zeyu; Li, Dingwen; Luo, Chenxu; Xie, Cihang; Yang, Xiaodong",
    ),
    Method(
        "orc", "ORC: Network Group-based Knowledge Distillation using Online Role Change", "classification",
        "stillroom.methods.orc", _SPECIFICATION,
        listed="Network Group-based Knowledge Distillation using Online Role Change (ICCV 2023)",
        authors="Choi, Junyong; Cho, Hyeon; Cheung, Seokhwa; Hwang, Wonjun",
    ),
    Method(
        "pointdc", "PointDC: Unsupervised Semantic Segmentation of 3D Point Clouds via Cross-Modal Distillation", "segmentation3d",
        "stillroom.methods.pointdc", _PAPER, menu="PointDC",
        cited="PointDC: Unsupervised Semantic Segmentation of 3D Point Clouds via Cross-Modal Distillation and Super-Voxel Clustering",
        authors="Chen, Zisheng; Xu, Hongbin; Chen, Weitao; Zhou, Zhipeng; Xiao, Haihong; Sun, Baigui; Xie, Xuansong; Kang, Wenxiong",
    ),
)
# fmt: on


# Networks that are composed of others, most of them a method's: the word that their specifications begin with, and the module that reads
# and builds them (`engine.specification.Composed`).
BUILDERS = {
    "first": "stillroom.tasks.images.first_layers",
    "novel": "stillroom.methods.crkd.novel",
    "shared": "stillroom.methods.kd3.shared_classifier",
    "gift": "stillroom.methods.giftnet.network",
    "zeroseg": "stillroom.methods.zeroseg.network",
    "aligned": "stillroom.methods.daps_sam.network",
    "upvl": "stillroom.methods.upvl.detector",
}

# What builds students that are no network of a task's; a card names it, and any other must be trusted.
STUDENTS = ("stillroom.methods.memkd.networks:build",)


def find(name: str, argument: str = "method") -> Method:
    """The built method of that name.

    Raises:
        InputError: no such method, or one that is not built yet.
    """
    built = {method.name: method for method in METHODS if method.room}
    if name in built:
        return built[name]
    if any(method.name == name for method in METHODS):
        raise InputError(argument, name, f"a method that is built; this one is planned ({', '.join(built)} are there)")
    raise InputError(argument, name, f"one of the methods that `stillroom list` shows, such as {near(name, built)}")


def load(name: str, argument: str = "method") -> Room:
    """What the method gives to others, `ROOM` in its module, which is imported."""
    place, collecting = find(name, argument).room, gc.isenabled()
    gc.disable()  # imports make hundreds of thousands of objects that stay: looking through them for garbage took a tenth of the time
    try:
        room: Room = importlib.import_module(place).ROOM
    finally:
        if collecting:
            gc.enable()
    return room
