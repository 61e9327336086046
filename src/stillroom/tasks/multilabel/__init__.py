"""Multi-label classification of images: data in the usual formats, networks with label-wise embeddings, metrics, and the experiment."""

from stillroom.losses.labels import summed_bce
from stillroom.modules.ml_decoder import EMBEDDINGS, HeadOptions, MLDecoder, MultiLabelNetwork
from stillroom.tasks.images.batches import Batch
from stillroom.tasks.multilabel.data import MultiLabelData
from stillroom.tasks.multilabel.loaded import LoadedMultiLabel, load
from stillroom.tasks.multilabel.models import build_multilabel
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
    "build_multilabel",
    "load",
    "summed_bce",
]
