"""A finished run's detectors, ready to use: scores as a table, heat maps as pictures, export."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillroom.engine.card import Card, Described, amend_card, read_card, write_card
from stillroom.engine.export import ExportSpec
from stillroom.engine.folding import fold_batchnorm
from stillroom.engine.run.written import write_atomic
from stillroom.engine.specification import function_of
from stillroom.engine.weights import load_weights, save_weights
from stillroom.errors import InputError, near
from stillroom.tasks.anomaly.detector import Detectors
from stillroom.tasks.anomaly.maps import MapOptions, heat
from stillroom.tasks.anomaly.preparation import Preparation
from stillroom.tasks.anomaly.teachers import Extractor
from stillroom.tasks.images.answer_pictures import answer_files, write_picture
from stillroom.tasks.images.arguments import renormalisation
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.loaded import Unreadable, accelerated, opened
from stillroom.tasks.images.stores import read_image

TASK = "anomaly"
_TOGETHER = 16  # pictures that go through at a time
_NEVER_SEEN = (70, 70, 110)  # colour, which no heat has, of what the network was not shown


@dataclass(frozen=True)
class Inspection:
    """What is said of one picture.

    Attributes:
        file: the picture.
        category: whose detector was asked.
        score: the maximum of its map.
        threshold: the category's.
        map_file: the heat map that was written.
        map: float32 [H, W] in the picture's own pixels; NaN where the network did not see it.
    """

    file: Path
    category: str
    score: float
    threshold: float
    map_file: Path
    map: Tensor

    @property
    def anomalous(self) -> bool:
        """Whether the score is above the threshold."""
        return self.score > self.threshold

    def to_json(self) -> dict[str, Any]:
        """All but the map."""
        found = {"category": self.category, "score": self.score, "threshold": self.threshold, "anomalous": self.anomalous}
        return {**found, "map": str(self.map_file)}

    def rows(self) -> list[list[str]]:
        """One row."""
        said = "anomalous" if self.anomalous else "normal"
        return [[self.category, f"{self.score:.4g}", f"{self.threshold:.4g}", said, str(self.map_file)]]


@dataclass(frozen=True)
class LoadedDetectors:
    """Detectors of one or several categories; see `Detectors` for what the network answers.

    Args:
        network: in eval mode, batch norms folded.
        preparation: of pictures.
        statistics: mean and standard deviation of each channel.
        categories: their names.
        card: what the run says about them.
    """

    network: Detectors
    preparation: Preparation
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    categories: tuple[str, ...]
    card: Card

    kind: ClassVar[str] = "a detector of anomalies"
    options: ClassVar[dict[str, Any]] = {"out": None, "category": None}

    def columns(self, **options: Any) -> list[str]:
        """Of `Inspection.rows`."""
        return ["category", "score", "threshold", "verdict", "heat map"]

    def thresholds(self) -> list[float]:
        """Of each category."""
        found: list[float] = self.network.thresholds.tolist()
        return found

    def prepared(self, image: Image.Image) -> Tensor:
        """A picture as the network reads it, [3, S, S]."""
        return self.preparation.transform(*self.statistics)(read_image(image))

    @torch.no_grad()
    def predict(
        self, files: Sequence[Path], *, unreadable: Unreadable, out: str | Path | None = None, category: str | None = None
    ) -> Iterator[Inspection]:
        """Scores each picture and writes its heat map, and at the end ``scores.csv`` beside the maps; one forward pass for a picture.

        A map is written in its picture's own size, black to white over red and yellow: white at twice the threshold, or at the picture's
        own maximum where that is larger; blue-grey where the network did not see the picture.

        Args:
            files: the pictures.
            unreadable: told of each that cannot be decoded.
            out: the folder to write to; by default ``predicted`` in the run's.
            category: whose detector is asked; of several by default that which is named in the file's path.

        Raises:
            InputError: of several categories it is not clear which is meant; or a score is no number.
        """
        folder = self.card.folder / "predicted" if out is None else Path(out)
        asked = {file: self._category(file, category) for file in files}  # before anything is written
        places = answer_files(files, folder, ending="_map")
        accelerated(self.network)
        device = self.network.thresholds.device
        rows = []
        pictures = opened(files, read_image, unreadable)
        while several := list(islice(pictures, _TOGETHER)):
            for number in sorted({asked[file] for file, _ in several}):
                mine = [(file, image) for file, image in several if asked[file] == number]
                maps_BSS, scores_B = self.network(torch.stack([self.prepared(image) for _, image in mine]).to(device), number)
                for (file, image), map_SS, score in zip(mine, maps_BSS.cpu(), scores_B.tolist(), strict=True):
                    if not math.isfinite(score):
                        raise InputError("run", f"{self.card.folder}, whose score of {file} is not finite", "a run that did not diverge")
                    placed = self.preparation.placed(map_SS, image.height, image.width)
                    threshold = self.thresholds()[number]
                    _write_heat(places[file], placed, max(2 * threshold, score))
                    found = Inspection(file, self.categories[number], score, threshold, places[file], placed)
                    rows.append(found)
                    yield found
        _write_table(folder / "scores.csv", rows)

    def _category(self, file: Path, asked: str | None) -> int:
        if asked is not None:
            if asked not in self.categories:
                raise InputError("--category", asked, f"a category of the run: {near(asked, self.categories, most=20)}")
            return self.categories.index(asked)
        named = [part for part in reversed(file.resolve().parts[:-1]) if part in self.categories]
        if len(self.categories) > 1 and not named:
            raise InputError("--category", f"none for {file}", f"one of {', '.join(self.categories)}, or pictures in folders so named")
        return self.categories.index(named[0]) if named else 0

    def export_spec(self) -> ExportSpec:
        """The file reads ``images`` [batch, 3, S, S] and answers with ``map`` [batch, S, S], larger is less normal, and ``score`` [batch],
        the map's maximum; of several categories [batch, categories, S, S] and [batch, categories]. Its metadata hold besides:
        ``thresholds``, a JSON list in the order of ``classes``, above which a score means an anomaly; ``threshold``, where there is one
        category."""
        side = self.preparation.image_size
        images = torch.stack([self.prepared(picture) for picture in made_up_pictures(side)])
        metadata = {**description(self.card), "thresholds": json.dumps(self.thresholds()), "quantile": str(self.card.content["quantile"])}
        if len(self.categories) == 1:
            metadata["threshold"] = repr(self.thresholds()[0])
        graph = self.network.teacher.traced(images[:2], self.network.compared)

        def ask(network: Any, inputs: Tensor) -> tuple[Tensor, ...]:
            features = network.features(inputs, graph if torch.compiler.is_exporting() else None)
            maps, scores = network.every(inputs, features)
            return maps, scores

        return ExportSpec(self.network, images, ("images", "map", "score"), metadata, ask=ask)


def _write_heat(file: Path, map_HW: Tensor, high: float) -> None:
    pixels = heat(map_HW.nan_to_num(0.0), 0.0, high).permute(1, 2, 0).numpy()
    pixels[map_HW.isnan().numpy()] = np.array(_NEVER_SEEN, np.uint8)
    write_picture(Image.fromarray(pixels), file)


def _write_table(file: Path, rows: Sequence[Inspection]) -> None:
    written = io.StringIO(newline="")
    table = csv.writer(written)
    table.writerow(["file", "category", "score", "threshold", "anomalous", "map"])
    table.writerows([str(row.file), row.category, row.score, row.threshold, int(row.anomalous), str(row.map_file)] for row in rows)
    write_atomic(file, written.getvalue().encode("utf-8", "surrogateescape"))


# On disk --------------------------------------------------------------------------------------------------------------------------------


def ship(folder: Path, detectors: Detectors, data: Described) -> None:
    """Writes `student.json`: the teacher's specification and layers, what builds the students, the maps, the thresholds."""
    described = detectors.described()
    write_card(folder, TASK, described.pop("model"), data, **described)


def deliver(folder: Path, detectors: Detectors, data: Described) -> None:
    """Of several categories each one's detector, as a run's folder of that name within the run's."""
    categories = data.describe()["classes"]
    for number, category in enumerate(categories if len(categories) > 1 else []):
        place = folder / category
        place.mkdir(parents=True, exist_ok=True)
        only = detectors.only(number)
        save_weights(only, place / "student.safetensors")
        ship(place, only, data)
        amend_card(place, classes=[category], num_classes=1)


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedDetectors:
    """The detectors that an anomaly run shipped.

    Args:
        run: the folder that `stillroom run` wrote, or one category's in it.
        trust_pickle: also run the code that its `student.json` names, and read weights that are pickles.

    Raises:
        InputError: the folder holds no finished anomaly run, a damaged one, or one that wants to be trusted.
    """
    card = read_card(run, trust_pickle=trust_pickle)

    def parse(content: Mapping[str, Any]) -> tuple[Any, ...]:
        transform, teacher = content["transform"], content["teacher"]
        statistics = tuple(map(float, transform["mean"])), tuple(map(float, transform["std"]))
        theirs = teacher["statistics"]
        renormalise = None if theirs is None else renormalisation(statistics, theirs["mean"], theirs["std"])
        maps, student, builder = MapOptions(**content["maps"]), dict(content["student"]), str(content["builder"])
        categories = tuple(map(str, content["classes"]))
        float(content["quantile"])
        return Preparation.from_description(transform), statistics, renormalise, list(teacher["layers"]), maps, student, builder, categories

    preparation, statistics, renormalise, layers, maps, student, builder, categories = card.parsed(parse, "detectors")
    size = preparation.image_size
    network = build_classifier(card.model, num_classes=2, image_size=size, trust_pickle=trust_pickle, argument="run").network
    extractor = Extractor(network, layers, torch.zeros(1, 3, size, size))
    build = function_of(builder, "run", "a function that builds a student")
    parts = {"builder": builder, "student": student, "quantile": card.content["quantile"]}
    detectors = Detectors(extractor, [build(student) for _ in categories], maps, renormalise, {**parts, "model": card.model})
    load_weights(detectors, card.weights, trust_pickle=trust_pickle, argument="run")
    detectors.teacher.network = fold_batchnorm(detectors.teacher.network, keep=layers)
    return LoadedDetectors(detectors.eval(), preparation, statistics, categories, card)
