"""Small detectors for small images, such as the procedural scenes: 40 000 to 300 000 parameters, trained in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

from stillroom.tasks.detection.backbones import PyramidMaps, SmallBackbone
from stillroom.tasks.detection.detector import Detector
from stillroom.tasks.detection.detr_models import deformable_detr, needed, rt_detr
from stillroom.tasks.detection.gfl import GFL
from stillroom.tasks.detection.two_stage import TwoStageDetector
from stillroom.tasks.detection.wrapped import ATSSDetector, one_square


def gfl(num_classes: int, stem: int, stages: tuple[int, ...], width: int, extra: int) -> GFL:
    """Strides 4 and 8, one convolution in each tower, n = 8, anchors of 4 strides."""
    backbone = SmallBackbone(stem, stages, extra)
    return GFL(backbone, num_classes, width=width, extra=0, reg_max=8, convs=1, groups=8, anchor_scale=4)


def atss(num_classes: int, stem: int, stages: tuple[int, ...], width: int, extra: int) -> ATSSDetector:
    """Strides 4 and 8, anchors of 4 strides, RetinaNet's head."""
    maps = PyramidMaps(SmallBackbone(stem, stages, extra), width)
    anchors = one_square((4, 8), scale=4)
    head = RetinaNetHead(width, 1, num_classes, norm_layer=partial(nn.GroupNorm, 8))
    return ATSSDetector(RetinaNet(maps, num_classes, anchor_generator=anchors, head=head))


def faster_rcnn(num_classes: int, stem: int, stages: tuple[int, ...], width: int, extra: int, hidden: int) -> TwoStageDetector:
    """Strides 4 and 8, anchors of 8 to 24 pixels, regions of 5 x 5 bins, those below 24 pixels from the finer map."""
    maps = PyramidMaps(SmallBackbone(stem, stages, extra), width)
    names = [str(level) for level in range(len(stages))]
    return TwoStageDetector(
        FasterRCNN(
            maps,
            rpn_anchor_generator=AnchorGenerator(((8, 12), (16, 24)), ((0.5, 1.0, 2.0),) * 2),
            rpn_pre_nms_top_n_train=200,
            rpn_pre_nms_top_n_test=200,
            rpn_post_nms_top_n_train=100,
            rpn_post_nms_top_n_test=50,
            rpn_batch_size_per_image=64,
            box_roi_pool=MultiScaleRoIAlign(names, 5, 2, canonical_scale=24, canonical_level=3),
            box_head=TwoMLPHead(width * 25, hidden),
            box_predictor=FastRCNNPredictor(hidden, num_classes + 1),
            box_batch_size_per_image=64,
        )
    )


def small_rt_detr(num_classes: int, stages: Sequence[int], width: int, queries: int = 30) -> Detector[Any, Any]:
    """Strides 4, 8 and 16, one encoder and two decoder layers, heads of 16 channels."""
    library = needed("model", "stillroom/rt-detr")
    backbone = library.RTDetrResNetConfig(
        embedding_size=stages[0],  # transformers' first stage of basic blocks cannot widen
        hidden_sizes=list(stages),
        depths=[1] * len(stages),
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3"],
    )
    return rt_detr(
        backbone,
        num_classes,
        feat_strides=[4, 8, 16],
        encoder_hidden_dim=width,
        decoder_in_channels=[width] * 3,
        d_model=width,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        encoder_attention_heads=width // 16,
        decoder_attention_heads=width // 16,
        decoder_layers=2,
        hidden_expansion=0.5,
        num_queries=queries,
        num_denoising=20,
        initializer_range=width**-0.5,
    )


class _Told(nn.Module):
    """A backbone in transformers' manner: the last maps, each with what of it is image."""

    def __init__(self, backbone: SmallBackbone, levels: int) -> None:
        super().__init__()
        self.backbone, self.levels = backbone, levels

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        maps = self.backbone(images)[-self.levels :]
        inside = [nn.functional.interpolate(mask[None].float(), size=level.shape[-2:])[0].bool() for level in maps]
        return list(zip(maps, inside, strict=True))


def small_deformable_detr(num_classes: int, stem: int, stages: tuple[int, ...], queries: int = 20) -> Detector[Any, Any]:
    """Strides 8 and 16, width 64, one encoder and two decoder layers of 4 heads, boxes refined from layer to layer."""
    library = needed("model", "stillroom/deformable-detr")
    backbone = library.ResNetConfig(
        embedding_size=8, hidden_sizes=list(stages), depths=[1] * len(stages), layer_type="basic", out_features=["stage2", "stage3"]
    )
    made = deformable_detr(
        backbone,
        num_classes,
        d_model=64,
        num_feature_levels=2,
        num_queries=queries,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        dropout=0.0,
        with_box_refine=True,
        class_cost=2,
    )
    # transformers' own backbone freezes its batch norms, which random weights cannot be trained with.
    made.model.model.backbone = _Told(SmallBackbone(stem, stages), 2)
    return made


# By the width of the maps that the heads read.
SMALL: dict[str, Callable[[int], Detector[Any, Any]]] = {
    "gfl_32": partial(gfl, stem=16, stages=(32, 48), width=32, extra=1),
    "gfl_24": partial(gfl, stem=12, stages=(24, 36), width=24, extra=0),
    "atss_32": partial(atss, stem=16, stages=(32, 48), width=32, extra=1),
    "atss_24": partial(atss, stem=12, stages=(24, 36), width=24, extra=0),
    "faster-rcnn_32": partial(faster_rcnn, stem=16, stages=(32, 48), width=32, extra=1, hidden=96),
    "faster-rcnn_24": partial(faster_rcnn, stem=12, stages=(24, 36), width=24, extra=0, hidden=64),
    "rt-detr_48": partial(small_rt_detr, stages=(16, 24, 32), width=48),
    "rt-detr_32": partial(small_rt_detr, stages=(16, 24, 32), width=32),
    "deformable-detr_64": partial(small_deformable_detr, stem=16, stages=(32, 48, 64)),
}
