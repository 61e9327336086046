"""Nuclei: found, outlined one by one and classified in pictures of tissue and of blood."""

from stillroom.tasks.nuclei.data import NucleiData
from stillroom.tasks.nuclei.loaded import LoadedNuclei, load
from stillroom.tasks.nuclei.maps import NucleiBatch, NucleiMap, WholeBatch
from stillroom.tasks.nuclei.models import build_nuclei_network
from stillroom.tasks.nuclei.networks import Maps, NucleiNetwork
from stillroom.tasks.nuclei.supervised import NucleiDistiller, Supervised, found_nuclei
from stillroom.tasks.nuclei.task import SMALL, TASK

__all__ = [
    "SMALL",
    "TASK",
    "LoadedNuclei",
    "Maps",
    "NucleiBatch",
    "NucleiData",
    "NucleiDistiller",
    "NucleiMap",
    "NucleiNetwork",
    "Supervised",
    "WholeBatch",
    "build_nuclei_network",
    "found_nuclei",
    "load",
]
