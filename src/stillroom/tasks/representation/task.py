"""Representation learning as a task: what the Lab and the commands ask of it. It has no supervised arm: nothing is learnt from labels."""

from __future__ import annotations

from stillroom.engine import Networks, Training
from stillroom.engine.task import Built, Usual
from stillroom.errors import InputError
from stillroom.tasks.images import delivered
from stillroom.tasks.images.cached import check_views, random_views
from stillroom.tasks.images.classifiers import build_backbone
from stillroom.tasks.representation import loaded, pages
from stillroom.tasks.representation.data import RepresentationData
from stillroom.tasks.representation.metrics import METRICS
from stillroom.tasks.representation.teachers import FeatureNetworks, Teachers, open_teachers

# What methods that learn from two views share: the backbone, a small job on scans of digits, and the papers' setting of transformers.
BACKBONE = Networks("", "stillroom/convnet24")
DIGITS = {
    "data": "digits",
    "primary": "few",
    "student": "stillroom/mlp_256_128",
    "batch_size": 100,
    "epochs": 40,
    "lr": 1e-3,
    "weight_decay": 0.04,
    "lr_floor": 1e-6,
}
IMAGENET = {
    "data": "imagenet:data/imagenet",
    "student": "timm/vit_small_patch16_224",
    "image_size": 224,
    "batch_size": 512,
    "epochs": 100,
    "optimizer": "adamw",
    "lr": 1e-3,
    "warmup_epochs": 10,
    "lr_floor": 1e-6,
    "schedule": "cosine",
    "weight_decay": 0.04,
    "precision": "16-mixed",
}


class Representation(Usual):
    """Images to features that other runs start from; see `engine.task.Task`."""

    name = "representation"
    data = RepresentationData
    plan = sgd = Training(epochs=40, optimizer="adamw", lr=1e-3, weight_decay=0.04, schedule="cosine")
    networks = FeatureNetworks("", BACKBONE.student)
    kinds = ("images",)
    exact = ("pooled",)
    metric_formats = METRICS
    sections = staticmethod(pages.representation_sections)
    remarks = staticmethod(pages.remarks)
    deliver = staticmethod(delivered.deliver)
    views = staticmethod(random_views)
    check_cache = staticmethod(check_views)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: RepresentationData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The backbone of a specification: a network without its head.

        Raises:
            InputError: it cannot be built, or its weights do not fit.
        """
        return build_backbone(spec, image_size=data.image_size, trust_pickle=trust_pickle, argument=argument)

    def teachers(self, data: RepresentationData, networks: FeatureNetworks, *, trust_pickle: bool) -> Teachers:
        """Those of ``A+B``, see `engine.task.Task`.

        Raises:
            InputError: one cannot be opened, or has no weights.
        """
        opened = open_teachers(data, networks, trust_pickle=trust_pickle)
        for one in opened.opened:
            if not one.trained:
                raise InputError("teacher", f"{one.spec}, without weights", "weights behind an @: nothing is learnt from labels here")
        return opened


TASK = Representation()
RepresentationData.task = TASK  # type: ignore[assignment]
