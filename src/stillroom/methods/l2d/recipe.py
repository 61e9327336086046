"""L2D's experiment: a teacher, the student alone, and the student distilled."""

from __future__ import annotations

from typing import Any

from torch import nn

from stillroom.engine import Lab, Report, Teacher, Training
from stillroom.methods.l2d.distiller import L2D
from stillroom.tasks.multilabel import COCO, MOSAICS, Bench, HeadOptions, MultiLabelData


def build(
    student: nn.Module,
    teacher: Teacher,
    data: MultiLabelData,
    *,
    class_aware_weight: float = 10.0,
    instance_aware_weight: float = 20.0,
    **options: Any,
) -> L2D:
    """The distiller for `data`.

    Args:
        student, teacher, data: what learns, what teaches, on what.
        class_aware_weight: lambda_CD, weight of the structure of the images that share a label (the paper: 100).
        instance_aware_weight: lambda_ID, weight of the structure of the labels that share an image (the paper: 1000).
        options: those of `L2D`.
    """
    return L2D(student, teacher, class_aware_weight=class_aware_weight, instance_aware_weight=instance_aware_weight, **options)


def recipe(
    lab: Lab,
    data: MultiLabelData,
    plan: Training = MOSAICS,
    teacher: str = "stillroom/strided64",
    student: str = "stillroom/strided24",
    teacher_epochs: int | None = None,
    teacher_stop: int | None = None,
    embed_dim: int = 64,
    heads: int = 4,
    feedforward: int = 128,
    dropout: float = 0.1,
    **options: Any,
) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with L2D; compare them.

    Args:
        lab: where and how to run.
        data: the images and their labels.
        plan: how the networks are trained.
        teacher: backbone, optionally with weights of the whole network after ``@``; without them it is trained first (``@pretrained`` are
            published weights of the backbone alone). Or an earlier run's folder.
        student: likewise.
        teacher_epochs: length of the schedule of a teacher that has to be trained; by default as the student's.
        teacher_stop: the epoch after which its training is stopped, whatever is left of the schedule (the paper: 30 of 80).
        embed_dim: length of a label's embedding, in heads that are built here.
        heads: of their cross-attention.
        feedforward: width of the layer behind it.
        dropout: in training, from 0 and below 1.
        options: those of `build`.
    """
    bench = Bench(lab, data, plan, teacher, student, HeadOptions(embed_dim, heads, feedforward, dropout), teacher_epochs, teacher_stop)

    def distiller(network: nn.Module, taught: Teacher) -> L2D:
        return build(network, taught, data, **options)

    return bench.three_arms("l2d", distiller)


PUBLISHED = {"logits_weight": 10.0, "embedding_weight": 1.0, "class_aware_weight": 100.0, "instance_aware_weight": 1000.0}
_VOC = "voc:data/VOCdevkit/VOC2007,train=trainval,val=test"
_NUS = "csv:data/nus-wide/train.csv,val=data/nus-wide/test.csv"

# Only the configuration of MS-COCO is released; that the other two sets start from it is inferred.
PRESETS = {
    "paper": {**COCO, **PUBLISHED},
    "paper:voc2007": {**COCO, **PUBLISHED, "data": _VOC},
    "paper:nus-wide": {**COCO, **PUBLISHED, "data": _NUS},
}
