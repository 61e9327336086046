"""The methods: the 28 papers of ICCV 2023 and the classic baselines. Names only; a method is imported when it is asked for.

`stillroom list` prints this table; `load` imports a method's room.
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
    """

    name: str
    paper: str
    task: str
    room: str = ""
    verified: str = ""


_PAPER = "reference vectors of the official code"
_TESTS = "equations by tests"

METHODS: tuple[Method, ...] = (
    Method("supervised", "Plain training on labels", "classification", "stillroom.methods.supervised", _TESTS),
    Method("kd", "Distilling the Knowledge in a Neural Network (Hinton 2015)", "classification", "stillroom.methods.kd", _PAPER),
    Method("dkd", "Decoupled Knowledge Distillation (Zhao 2022)", "classification", "stillroom.methods.dkd", _PAPER),
    Method("fitnets", "FitNets: Hints for Thin Deep Nets (Romero 2015)", "classification", "stillroom.methods.fitnets", _TESTS),
    Method("crd", "Contrastive Representation Distillation (Tian 2020)", "classification", "stillroom.methods.crd", _TESTS),
    Method("dino", "DINO: Self-distillation with no labels (Caron 2021)", "representation", "stillroom.methods.dino", _PAPER),
    Method("searched", "Any composed distiller, by its string", "any", "stillroom.methods.auto_kd.searched", _TESTS),
    Method("features", "Any foundation model into any backbone, without labels", "representation", "stillroom.methods.features", _TESTS),
    Method("dot", "DOT: A Distillation-Oriented Trainer", "any", "stillroom.methods.dot", _PAPER),
    Method(
        "ssd-det",
        "Spatial Self-Distillation for Object Detection with Inaccurate Bounding Boxes",
        "detection",
        "stillroom.methods.ssd_det",
        _PAPER,
    ),
    Method(
        "iod",
        "Incremental object detection via within-class and between-class distillation",
        "detection",
        "stillroom.methods.iod",
        "reference vectors of the specification",
    ),
    Method(
        "auto-kd",
        "Auto-KD: Automated Knowledge Distillation via Monte Carlo Tree Search",
        "classification",
        "stillroom.methods.auto_kd",
        "reference vectors of the specification",
    ),
    Method(
        "zeroseg",
        "Exploring Open-Vocabulary Semantic Segmentation from CLIP Vision Encoder Distillation Only",
        "segmentation",
        "stillroom.methods.zeroseg",
        "reference vectors of GroupViT's code",
    ),
    Method(
        "otd",
        "Taxonomy Adaptive Cross-Domain Adaptation in Medical Imaging via Optimization Trajectory Distillation",
        "nuclei",
        "stillroom.methods.otd",
        _PAPER,
    ),
    Method(
        "tinyclip",
        "TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight Inheritance",
        "imagetext",
        "stillroom.methods.tinyclip",
        _PAPER,
    ),
    Method(
        "rdd",
        "Representation Disparity-aware Distillation for 3D Object Detection",
        "detection3d",
        "stillroom.methods.rdd",
        "reference vectors of the specification",
    ),
    Method(
        "sdd",
        "Not All Steps are Created Equal: Selective Diffusion Distillation for Image Manipulation",
        "editing",
        "stillroom.methods.sdd",
        _PAPER,
    ),
    Method(
        "daps-sam",
        "Dense 2D-3D Indoor Prediction with Sound via Aligned Cross-Modal Distillation",
        "sound",
        "stillroom.methods.daps_sam",
        "reference vectors of the specification",
    ),
    Method("crkd", "Class-relation Knowledge Distillation for Novel Class Discovery", "classification", "stillroom.methods.crkd", _PAPER),
    Method(
        "upvl",
        "Unsupervised 3D Perception with 2D Vision-Language Distillation for Autonomous Driving",
        "detection3d",
        "stillroom.methods.upvl",
        "reference vectors of the specification",
    ),
    Method(
        "kd3",
        "Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
        "classification",
        "stillroom.methods.kd3",
        _PAPER,
    ),
    Method(
        "mtl-cs",
        "Multi-Task Learning with Knowledge Distillation for Dense Prediction",
        "multitask",
        "stillroom.methods.mtl_cs",
        "reference vectors of the specification",
    ),
    Method(
        "adasim",
        "Adaptive Similarity Bootstrapping for Self-Distillation Based Representation Learning",
        "representation",
        "stillroom.methods.adasim",
        _PAPER,
    ),
    Method("ferkd", "FerKD: Surgical Label Adaptation for Efficient Distillation", "classification", "stillroom.methods.ferkd", _PAPER),
    Method(
        "mdcs",
        "MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition",
        "classification",
        "stillroom.methods.mdcs",
        _PAPER,
    ),
    Method(
        "giftnet",
        "Deep Image Harmonization with Globally Guided Feature Transformation and Relation Distillation",
        "harmonization",
        "stillroom.methods.giftnet",
        _PAPER,
    ),
    Method(
        "memkd",
        "Remembering Normality: Memory-guided Knowledge Distillation for Unsupervised Anomaly Detection",
        "anomaly",
        "stillroom.methods.memkd",
        "reference vectors of a reproduction",
    ),
    Method(
        "bckd",
        "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection",
        "detection",
        "stillroom.methods.bckd",
        _PAPER,
    ),
    Method("mm-ego", "Multimodal Distillation for Egocentric Action Recognition", "video", "stillroom.methods.mm_ego", _PAPER),
    Method(
        "wad",
        "Semi-Supervised Learning via Weight-Aware Distillation under Class Distribution Mismatch",
        "classification",
        "stillroom.methods.wad",
        _PAPER,
    ),
    Method("boss", "Bayesian Optimization Meets Self-Distillation", "classification", "stillroom.methods.boss", _PAPER),
    Method(
        "unikd",
        "UniKD: Universal Knowledge Distillation for Mimicking Homogeneous or Heterogeneous Object Detectors",
        "detection",
        "stillroom.methods.unikd",
        "reference vectors of the specification",
    ),
    Method("l2d", "Multi-Label Knowledge Distillation", "multilabel", "stillroom.methods.l2d", _PAPER),
    Method(
        "distillbev",
        "DistillBEV: Boosting Multi-Camera 3D Object Detection with Cross-Modal Knowledge Distillation",
        "detection3d",
        "stillroom.methods.distillbev",
        "reference vectors of released code",
    ),
    Method(
        "orc",
        "ORC: Network Group-based Knowledge Distillation using Online Role Change",
        "classification",
        "stillroom.methods.orc",
        "reference vectors of the specification",
    ),
    Method(
        "pointdc",
        "PointDC: Unsupervised Semantic Segmentation of 3D Point Clouds via Cross-Modal Distillation",
        "segmentation3d",
        "stillroom.methods.pointdc",
        _PAPER,
    ),
)


# Methods whose networks are composed of others: the word that their specifications begin with, and the module that reads and builds them
# (`engine.specification.Composed`).
BUILDERS = {
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
