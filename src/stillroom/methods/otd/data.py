"""Two domains: a source whose labels are coarse, and a target without labels but for a few pictures, whose classes are finer."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stillroom.engine.loading import Cycled
from stillroom.errors import InputError
from stillroom.methods.otd.taxonomy import Taxonomy, read_taxonomy
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.nuclei import NucleiData
from stillroom.tasks.nuclei.drawn import COARSE, COARSE_OF, FINE, NEW

SOURCE, TARGET, FEW = "source", "target", "few"
_STREAM = 1_000_003  # between the seeds of the three orders


class DomainData(NucleiData):
    """A target whose validation pictures are measured on, and the source; training shows a batch of source, target and few each.

    Args:
        target: where the images of the target are, in the grammar of the task's `data`; labels of its training pictures are not read, but
            for those of the few.
        source: where the labelled images of the source are, likewise; its training pictures are used.
        taxonomy: YAML file with a line ``fine class: coarse class`` for each class of the target; not needed for drawn nuclei, or where
            both have the same classes.
        few: file with the names of the target's training pictures whose labels are read, one a line; or a number: so many, chosen by their
            labels so that they show many nuclei of the new classes.
        new_classes: classes of the target that the source knows nothing of: ``a+b``; by default those that share their coarse class with
            another. All others are reliable.
        options: those of the task, see `NucleiData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    def __init__(
        self,
        target: str = "drawn:domain=target",
        *,
        source: str = "drawn:domain=source",
        taxonomy: Path | None = None,
        few: str = "6",
        new_classes: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(target, **options)
        shared: dict[str, Any] = {
            "image_size": self.image_size,
            "augment": self.augment,
            "mean": self.mean,
            "std": self.std,
            "strict": self.strict,
        }
        self.labelled_source = NucleiData(source, batch_size=self.batch_size, workers=self._workers, **shared)
        self.taxonomy = self._taxonomy(taxonomy, None if new_classes is None else new_classes.split("+"))
        self.apart = tuple(self.classes[number - 1] for number in self.taxonomy.new)
        images = self.training_images
        chosen = self._numbered(int(few)) if few.isdecimal() else self._listed_few(Path(few).expanduser())
        self.few_names = [images.name(index) for index in chosen.tolist()]
        rest = np.setdiff1d(np.arange(len(images)), chosen)
        for name, count in ((SOURCE, self.labelled_source.train_size), (TARGET, len(rest))):
            if count < self.batch_size:
                raise InputError(name, f"{count} training images", f"at least a batch of {self.batch_size}: the three streams have as many")
        if unknown := int((~self.labelled_source.training_images.labelled).sum()):
            raise InputError(SOURCE, f"{unknown} training pictures without labels", "labels of all of them")
        self._mark(self.labelled_source.fingerprint, self.taxonomy, self.few_names)
        self._unlabelled = self.derive("unlabelled", train=images.take(rest))
        repeated = np.resize(chosen, -(-self.batch_size // len(chosen)) * len(chosen))
        self._few = self.derive("few", train=images.take(repeated))

    def _taxonomy(self, file: Path | None, new: list[str] | None) -> Taxonomy:
        coarse = self.labelled_source.classes
        if file is not None:
            mapped = read_taxonomy(file)
        elif (self.classes, coarse) == (FINE, COARSE):
            mapped, new = COARSE_OF, list(NEW) if new is None else new
        elif set(self.classes) == set(coarse):
            mapped = {name: name for name in self.classes}
        else:
            raise InputError("taxonomy", None, f"a file with the class of the source ({', '.join(coarse)}) of each class of the target")
        return Taxonomy.of(self.classes, coarse, mapped, new)

    def _numbered(self, count: int) -> np.ndarray:
        """So many labelled pictures, one after the other the one that adds most to the new classes (to all, where none is new); the last
        ones show classes that no other does."""
        images = self.training_images
        known = np.flatnonzero(images.labelled)
        most = min(len(known), len(images) - 1)
        if not 1 <= count <= most:
            raise InputError(FEW, count, f"a number from 1 to {most}, of labelled training pictures of the target")
        counts_NC = np.array([np.bincount(images.nuclei(i).types, minlength=self.num_classes + 1)[1:] for i in known.tolist()])
        sought = np.array(self.taxonomy.new or range(1, self.num_classes + 1)) - 1
        shown_C = counts_NC.any(0)
        chosen: list[int] = []
        have_C = np.zeros(self.num_classes)
        for left in range(count, 0, -1):
            gain_N = np.log((1 + have_C + counts_NC) / (1 + have_C))[:, sought].sum(1)
            unseen = shown_C & (have_C == 0)
            if chosen and left <= unseen.sum():
                gain_N += 1e3 * (counts_NC[:, unseen] > 0).sum(1)
            gain_N[chosen] = -1
            chosen.append(int(gain_N.argmax()))
            have_C += counts_NC[chosen[-1]]
        found: np.ndarray = np.sort(known[chosen])
        return found

    def _listed_few(self, file: Path) -> np.ndarray:
        """The pictures that a file names, by their names in the set or by the last part of it without its ending."""
        try:
            wanted = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(FEW, f"{file} ({error})", "a number, or a text file with the name of a picture in each line") from None
        images = self.training_images
        names = [images.name(index) for index in range(len(images))]
        place = {PurePosixPath(name).stem: index for index, name in enumerate(names)}
        place |= {PurePosixPath(name).name: index for index, name in enumerate(names)} | {name: index for index, name in enumerate(names)}
        if missing := [name for name in wanted if name not in place]:
            raise InputError(FEW, f"{file}, which names {missing[0]}", "names of training pictures of the target")
        found = np.unique([place[name] for name in wanted]).astype(np.int64)
        if not len(found) or not images.labelled[found].all():
            got = f"{file}, which names {names[found[~images.labelled[found]][0]]}, without labels" if len(found) else f"{file}, empty"
            raise InputError(FEW, got, "pictures with labels")
        return found

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1, drop_last: bool = True) -> Cycled:  # type: ignore[override]
        """Batches of source, target and few, as many of each; an epoch is a pass over the shorter one of source and target."""
        parts = {SOURCE: self.labelled_source, TARGET: self._unlabelled, FEW: self._few}
        loaders = {
            name: ImageSetData.train_loader(part, seed=seed + number * _STREAM, rank=rank, world=world)
            for number, (name, part) in enumerate(parts.items())
        }
        return Cycled(loaders, min(len(loaders[SOURCE]), len(loaders[TARGET])))

    def first_lines(self) -> list[str]:
        """The target's, the source's, the few and the taxonomy."""
        few = self._few.training_images
        distinct = range(len(self.few_names))
        counts = np.sum([np.bincount(few.nuclei(i).types, minlength=self.num_classes + 1) for i in distinct], 0)[1:]
        told = ", ".join(f"{name} {count}" for name, count in zip(self.classes, counts.tolist(), strict=True))
        of = ", ".join(
            f"{name} -> {self.taxonomy.coarse[number - 1]}" for name, number in zip(self.classes, self.taxonomy.tax[1:], strict=True)
        )
        source = [f"source: {line}" for line in self.labelled_source.first_lines()]
        new = ", ".join(self.apart) or "none"
        few_line = f"few: labels of {len(self.few_names)} training pictures of the target are read: {told}"
        return [*(f"target: {line}" for line in super().first_lines()), *source, few_line, f"taxonomy: {of}; new: {new}"]
