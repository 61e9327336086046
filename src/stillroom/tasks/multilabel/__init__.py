"""Multi-label classification of images: data in the usual formats, networks with label-wise embeddings, metrics, and the experiment."""

from stillroom.modules.ml_decoder import HeadOptions, MLDecoder
from stillroom.tasks.images.batches import Batch
from stillroom.tasks.multilabel.data import MultiLabelData
from stillroom.tasks.multilabel.labels import binary, full, summed_bce
from stillroom.tasks.multilabel.loaded import LoadedMultiLabel, load
from stillroom.tasks.multilabel.models import build_multilabel
from stillroom.tasks.multilabel.networks import EMBEDDINGS, MultiLabelNetwork
from stillroom.tasks.multilabel.supervised import MultiLabelDistiller, Supervised
from stillroom.tasks.multilabel.task import COCO, MOSAICS, TASK, MultiLabelNetworks

__all__ = [
    "COCO",
    "EMBEDDINGS",
    "MOSAICS",
    "TASK",
    "Batch",
    "HeadOptions",
    "LoadedMultiLabel",
    "MLDecoder",
    "MultiLabelData",
    "MultiLabelDistiller",
    "MultiLabelNetwork",
    "MultiLabelNetworks",
    "Supervised",
    "binary",
    "build_multilabel",
    "full",
    "load",
    "summed_bce",
]
