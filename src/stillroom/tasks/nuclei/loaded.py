"""A finished nuclei run's student, ready to use: pictures become instance maps, tables of cells and overlays."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from stillroom.engine.card import Card, read_card
from stillroom.engine.export import ExportSpec
from stillroom.engine.run.written import write_atomic
from stillroom.tasks.images.answer_pictures import answer_files, write_picture
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.label_maps import voc_colours
from stillroom.tasks.images.loaded import Unreadable, accelerated, as_read_by, opened
from stillroom.tasks.images.stores import read_image
from stillroom.tasks.nuclei.data import prepared
from stillroom.tasks.nuclei.instances import Outlining
from stillroom.tasks.nuclei.maps import NucleiMap
from stillroom.tasks.nuclei.measures import nuclei_of
from stillroom.tasks.nuclei.models import build_nuclei_network
from stillroom.tasks.nuclei.networks import NucleiNetwork
from stillroom.tasks.nuclei.supervised import found_nuclei

_COLOURS = np.array([(0, 0, 0), (255, 60, 60), (60, 220, 60), (70, 120, 255), (255, 220, 0), (255, 0, 255), (0, 230, 230)], np.uint8)
_MOST = 65535  # nuclei that 16 bits can number
_HEADS = ("id", "class", "area", "x", "y")


@dataclass(frozen=True)
class Found:
    """What was found in one picture.

    Attributes:
        file: the picture.
        instances: a 16-bit PNG of its size: 0 for background, else the nucleus's number in the table.
        cells: a CSV with a row for each nucleus: id, class, area in pixels, x and y of its centroid in pixels from the upper left.
        overlay: the picture with the nuclei's outlines, a colour for each class.
        counts: nuclei of each class, by its name.
    """

    file: Path
    instances: Path
    cells: Path
    overlay: Path
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Where the files are, and how many nuclei of each class there are."""
        return {"instances": str(self.instances), "cells": str(self.cells), "overlay": str(self.overlay), "counts": self.counts}

    def rows(self) -> list[list[str]]:
        """One row."""
        told = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count) or "none"
        return [[told, str(self.instances), str(self.cells), str(self.overlay)]]


@dataclass(frozen=True)
class LoadedNuclei:
    """A trained network: pictures [B, 3, H, W] to `networks.Maps`.

    Args:
        network: in eval mode.
        classes: their names; type k is `classes[k - 1]`.
        transform: of the card: ``window``, ``stride``, ``edge_kernel``, ``least`` in pixels; ``mean`` and ``std``.
        card: what the run says about it.
    """

    network: NucleiNetwork
    classes: tuple[str, ...]
    transform: dict[str, Any]
    card: Card

    kind: ClassVar[str] = "a network that finds and classifies nuclei"
    options: ClassVar[dict[str, Any]] = {"out": None}

    def columns(self, out: str | None = None) -> list[str]:
        """Of `Found.rows`."""
        return ["nuclei", "instances", "cells", "overlay"]

    @torch.no_grad()
    def outline(self, image: Image.Image) -> NucleiMap:
        """The nuclei of a picture (RGB), as evaluation finds them."""
        pixels = as_read_by(self.network, prepared(pil_to_tensor(image), self.transform["mean"], self.transform["std"]))
        outlining = Outlining(self.transform["edge_kernel"], self.transform["least"])
        return found_nuclei(self.network, [pixels], self.transform["window"], self.transform["stride"], outlining)[0]

    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, out: str | None = None) -> Iterator[Found]:
        """Finds the nuclei of each file; see `Student`.

        Args:
            files: pictures, of the magnification that the student was trained on.
            unreadable: is called with the error of a file that cannot be read.
            out: the folder that files are written to; by default ``nuclei`` in the run's.
        """
        folder = Path(out) if out is not None else self.card.folder / "nuclei"
        accelerated(self.network)
        places = [answer_files(files, folder, ending=ending) for ending in ("_instances", "_overlay", "_cells")]
        for file, image in opened(files, read_image, unreadable):
            found = self.outline(image)
            instances, overlay, cells = (of[file] for of in places)
            write_picture(Image.fromarray(found.instances.clip(0, _MOST).astype(np.uint16)), instances)
            write_picture(outlined(image, found), overlay)
            cells = cells.with_suffix(".csv")
            write_atomic(cells, self._table(found))
            counts = np.bincount(found.types[1:], minlength=len(self.classes) + 1)[1:]
            yield Found(file, instances, cells, overlay, dict(zip(self.classes, counts.tolist(), strict=True)))

    def _table(self, found: NucleiMap) -> str:
        nuclei = nuclei_of(found.instances, found.type_map)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADS)
        for number, kind, area, (x, y) in zip(nuclei.ids, nuclei.types, nuclei.areas, nuclei.centroids, strict=True):
            writer.writerow([int(number), self.classes[kind - 1], int(area), f"{x:.2f}", f"{y:.2f}"])
        return text.getvalue()

    def export_spec(self) -> ExportSpec:
        """The file reads ``images`` float32 [batch, 3, S, S] and answers with ``nuclei`` [batch, 2, S, S], scores of background and
        nucleus, ``distances`` [batch, 2, S, S], and ``types`` [batch, 1 + C, S, S], scores of background and classes.

        S is a window's side. Metadata are those of `export_parts.description`; pixels in [0, 1] are normalised by `mean` and `std`.
        """
        side = int(self.transform["window"])
        pictures = [pil_to_tensor(picture.resize((side, side))) for picture in made_up_pictures(side)]
        images = torch.stack([prepared(pixels, self.transform["mean"], self.transform["std"]) for pixels in pictures])
        note = "one window, maps only; `stillroom predict` slides it over a picture and makes nuclei of the maps"
        return ExportSpec(self.network, images, ("images", "nuclei", "distances", "types"), description(self.card), ask=_asked, note=note)


def _asked(network: nn.Module, images_B3HW: Tensor) -> tuple[Tensor, ...]:
    return tuple(network(images_B3HW))


def outlined(image: Image.Image, nuclei: NucleiMap) -> Image.Image:
    """A picture with a line of a pixel inside each nucleus's edge, in the colour of its type."""
    inside = nuclei.instances
    edges = np.zeros(inside.shape, bool)
    for axis in (0, 1):
        differs = np.diff(inside, axis=axis) != 0
        edges |= np.pad(differs, [(0, 1) if a == axis else (0, 0) for a in (0, 1)])
        edges |= np.pad(differs, [(1, 0) if a == axis else (0, 0) for a in (0, 1)])
    shown = np.array(image)
    types = nuclei.type_map
    line = edges & (inside > 0)
    shown[line] = class_colours(int(types.max(initial=0)))[types[line]]
    return Image.fromarray(shown)


def class_colours(count: int) -> np.ndarray:
    """Colours of the background and so many classes, uint8 [at least 1 + C, 3]; the first are the same for every count."""
    more = np.array(voc_colours(count + 1), np.uint8)[len(_COLOURS) :]
    return np.concatenate((_COLOURS, more))[: count + 1]


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedNuclei:
    """The student that a nuclei run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    classes, transform = card.parsed(
        lambda content: (
            tuple(map(str, content["classes"])),
            {name: content["transform"][name] for name in ("window", "stride", "edge_kernel", "least", "mean", "std")},
        ),
        "classes and transform",
    )
    built = build_nuclei_network(card.spec, num_classes=len(classes), trust_pickle=trust_pickle, argument="run")
    return LoadedNuclei(built.network.eval(), classes, transform, card)
