"""A finished sound run's student, ready to use: a recording becomes depth, classes or voxels of all that is around."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.engine.card import Card, read_card
from stillroom.engine.export import ExportSpec
from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError
from stillroom.tasks.images.answer_pictures import answer_files, write_picture
from stillroom.tasks.images.export_parts import description
from stillroom.tasks.images.folders import FoundImages, find_images
from stillroom.tasks.images.loaded import Unreadable, accelerated, as_read_by, opened
from stillroom.tasks.images.stores import UnreadableImage
from stillroom.tasks.sound.models import build_sound
from stillroom.tasks.sound.networks import DenseNetwork, Shape
from stillroom.tasks.sound.pictures import coloured, from_above, shaded
from stillroom.tasks.sound.recordings import FINE
from stillroom.tasks.sound.spectrogram import FrontEnd
from stillroom.tasks.sound.waves import Wave, channels_first, fitted, read_ears, resampled, sounds_among, to_acn_sn3d

_CHECKED = 4  # sounds that an export is checked on


@dataclass(frozen=True)
class Heard:
    """What was made of one recording.

    Attributes:
        file: the recording.
        written: of depth a 16-bit PNG in mm, of classes a PNG of their numbers, of voxels an npz with `probability` [32, 32, 32].
        picture: the same for people to look at.
        said: the nearest and the farthest, the classes, or the share that is solid.
    """

    file: Path
    written: Path
    picture: Path
    said: str

    def to_json(self) -> dict[str, Any]:
        """Where the files are."""
        return {"written": str(self.written), "picture": str(self.picture), "note": self.said}

    def rows(self) -> list[list[str]]:
        """One row."""
        return [[self.said, str(self.written), str(self.picture)]]


@dataclass(frozen=True)
class LoadedListener:
    """A trained network: sounds [B, E, n] to metres [B, 1, H, W], scores [B, C, H, W] or logits of voxels.

    Args:
        network: in eval mode.
        shape: what it reads and answers.
        heard: ``ears``, or the convention that ambisonic files follow.
        card: what the run says about it.
    """

    network: nn.Module
    shape: Shape
    heard: str
    card: Card

    kind: ClassVar[str] = "a network that hears rooms"
    options: ClassVar[dict[str, Any]] = {"out": None}

    @property
    def classes(self) -> tuple[str, ...]:
        """Of its answers, from number 1 on."""
        return self.shape.classes

    @property
    def sees(self) -> bool:
        """Whether it is a teacher, which reads pictures."""
        return isinstance(self.network, DenseNetwork) and self.network.part == "sight"

    def columns(self, out: str | None = None) -> list[str]:
        """Of `Heard.rows`."""
        return ["what was heard", "written", "picture"]

    def find(self, places: Sequence[str]) -> FoundImages:
        """The sound files that places name; see `find_images`."""
        return find_images(places, told_apart=sounds_among)

    @torch.no_grad()
    def hear(self, samples: Any, rate: int) -> np.ndarray:
        """What a sound in memory tells: metres float32 [H, W], classes uint8 [H, W] from 1 on, or probabilities [32, 32, 32].

        Args:
            samples: [channels, n]; integers are divided by half of their range.
            rate: samples per second; another than the network's is resampled.

        Raises:
            InputError: it lies the wrong way round, has other channels than the network hears, or is silent.
        """
        found, front = channels_first(samples), self.shape.front
        if len(found) != self.shape.ears:
            raise InputError("samples", f"{len(found)} channel{'' if len(found) == 1 else 's'}", f"{self.shape.ears}")
        waves = fitted(resampled(Wave(found, rate), front.rate), front.samples)
        if not waves.any():
            raise InputError("samples", "silence", "a sound")
        return self.answer(waves if self.heard == "ears" else to_acn_sn3d(waves, self.heard))  # type: ignore[arg-type]

    @torch.no_grad()
    def answer(self, waves_EN: np.ndarray) -> np.ndarray:
        """As `hear`, of a sound that is as the network wants it."""
        if self.sees:
            raise InputError("run", str(self.card.folder), "a student, which hears: this network sees")
        found = self.network(as_read_by(self.network, torch.from_numpy(waves_EN)[None]))[0].float().cpu()
        if self.shape.target == "depth":
            return found[0].numpy()
        if self.shape.target == "segmentation":
            return (found.argmax(0) + 1).to(torch.uint8).numpy()
        return found.sigmoid().reshape((FINE,) * 3).numpy()

    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, out: str | None = None) -> Iterator[Heard]:
        """What each recording tells; see `Student`.

        Args:
            files: recordings.
            unreadable: is called with the error of a file that cannot be read, is silent, or has other channels.
            out: the folder that files are written to; by default ``heard`` in the run's.
        """
        folder = Path(out) if out is not None else self.card.folder / "heard"
        accelerated(self.network)
        front, target = self.shape.front, self.shape.target
        convention = None if self.heard == "ears" else self.heard
        ending = {"depth": "_depth", "segmentation": "_classes", "occupancy": "_voxels"}[target]
        places, pictures = (answer_files(files, folder, ending=one) for one in (ending, "_picture"))

        def read(file: Path) -> np.ndarray:
            options = {"rate": front.rate, "count": front.samples, "ears": self.shape.ears, "convention": convention}
            try:
                return read_ears(lambda: file.open("rb"), str(file), **options)  # type: ignore[arg-type]
            except OSError as error:
                raise UnreadableImage(f"{file}: {error.strerror}") from None

        for file, waves in opened(files, read, unreadable):
            found, place, picture = self.answer(waves), places[file], pictures[file]
            if target == "depth":
                write_picture(Image.fromarray((1000 * found).round().clip(0, 65535).astype(np.uint16)), place)
                write_picture(shaded(found, float(found.max())), picture)
                said = f"{found.min():.2f} to {found.max():.2f} m"
            elif target == "segmentation":
                write_picture(Image.fromarray(found), place)
                write_picture(coloured(found), picture)
                shares = np.bincount(found.ravel(), minlength=len(self.classes) + 1)[1:] / found.size
                said = ", ".join(f"{self.classes[k]} {shares[k]:.0%}" for k in np.argsort(shares)[::-1][:3] if shares[k])
            else:
                place = place.with_suffix(".npz")
                _write_npz(place, found)
                write_picture(from_above(found).resize((256, 256), Image.Resampling.NEAREST), picture)
                said = f"{(found >= 0.5).mean():.0%} solid"
            yield Heard(file, place, picture, said)

    def export_spec(self) -> ExportSpec:
        """The file reads ``sound`` float32 [batch, E, n], at the rate that its `transform` says, and answers with ``depth`` in metres
        [batch, 1, H, W], ``scores`` [batch, C, H, W] of the classes from 1 on, or ``logits`` [batch, 32768] of the voxels by x, y, z.

        The spectrogram is made inside. A teacher's file reads ``sight`` instead.
        """
        answer = {"depth": "depth", "segmentation": "scores", "occupancy": "logits"}[self.shape.target]
        generator = torch.Generator().manual_seed(0)
        part = "sight" if self.sees else "sound"
        example: Tensor = self.shape.example(part)[part]
        inputs = torch.randn(_CHECKED, *example.shape[1:], generator=generator)
        named = {**description(self.card), "classes": json.dumps(list(self.classes))}
        return ExportSpec(self.network, inputs, (part, answer), named, note="one sound of the run's length; see transform: rate, samples")


def _write_npz(place: Path, probability: np.ndarray) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, probability=probability)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, content.getvalue())


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedListener:
    """The student that a sound run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)

    def shape_of(content: Any) -> tuple[Shape, str]:
        about = content["transform"]
        front = FrontEnd.read({name: about[name] for name in FrontEnd().to_json()})
        height, width = map(int, content["size"])
        classes = tuple(map(str, content["classes"]))
        made = Shape(content["target"], (height, width), int(about["ears"]), front, classes, float(about["max_depth"]))
        return made, str(about["heard"])

    shape, heard = card.parsed(shape_of, "target, size, classes and transform")
    built = build_sound(card.spec, shape, trust_pickle=trust_pickle, argument="run")
    return LoadedListener(built.network.eval(), shape, heard, card)
