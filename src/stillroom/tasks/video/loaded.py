"""A finished video run's student, ready to use: what is done in videos and folders of frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.engine.card import Card, read_card
from stillroom.engine.export import ExportSpec
from stillroom.errors import InputError
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.files import Folder
from stillroom.tasks.images.loaded import Unreadable, accelerated, as_read_by
from stillroom.tasks.images.stores import UnreadableImage
from stillroom.tasks.video.batches import resized
from stillroom.tasks.video.decoding import VideoFile
from stillroom.tasks.video.finding import Finder, is_frame, is_video
from stillroom.tasks.video.models import build_video_network
from stillroom.tasks.video.sampling import cropped, test_frames
from stillroom.tasks.video.scores import over_views
from stillroom.tasks.video.segments import Row
from stillroom.tasks.video.tracks import RGB, Held, Track

_READ = ("frames", "sampling", "frame_stride", "test_clips", "test_crops", "mean", "std")


@dataclass(frozen=True)
class Seen:
    """What was found in one video.

    Attributes:
        file: the video, or the folder of its frames.
        rankings: by head, classes and their probabilities, the most probable first.
    """

    file: Path
    rankings: Mapping[str, tuple[tuple[str, float], ...]]

    def to_json(self) -> dict[str, Any]:
        """The classes of each head."""
        return {head: [{"class": name, "confidence": share} for name, share in ranking] for head, ranking in self.rankings.items()}

    def rows(self) -> list[list[str]]:
        """One row."""
        return [[", ".join(f"{name} {share:.1%}" for name, share in ranking) for ranking in self.rankings.values()]]


@dataclass(frozen=True)
class LoadedVideo:
    """A trained network: clips [B, F, 3, S, S] to logits by head.

    Args:
        network: in eval mode.
        heads: names of classes, by head.
        transform: of the card: how frames are chosen and prepared.
        image_size: S.
        modality: what the network reads.
        card: what the run says about it.
    """

    network: nn.Module
    heads: Mapping[str, tuple[str, ...]]
    transform: Mapping[str, Any]
    image_size: int
    modality: str
    card: Card

    kind: ClassVar[str] = "a network that says what is done in videos"
    options: ClassVar[dict[str, Any]] = {"top": 2}

    def columns(self, top: int = 2) -> list[str]:
        """Of `Seen.rows`."""
        return list(self.heads)

    def find(self, places: Sequence[str]) -> tuple[list[Path], list[str]]:
        """The videos, and folders with frames in them, that places name; and the places that name none."""
        files: dict[Path, None] = {}
        empty = []
        for place in places:
            path = Path(place).expanduser()
            if not path.is_dir():
                files[path] = None
                continue
            names = sorted(Folder(path).listing()[0])
            found = sorted({path / name if is_video(name) else _clip_of(path / name) for name in names if is_video(name) or is_frame(name)})
            files |= dict.fromkeys(found)
            if not found:
                empty.append(place)
        return list(files), empty

    def clips(self, track: Track) -> Tensor:
        """The views of a video as the network reads them, [V, F, 3, S, S]."""
        told = self.transform
        frames_VF = test_frames(len(track), told["frames"], told["test_clips"], told["sampling"], told["frame_stride"])
        pictures = track.read(frames_VF.reshape(-1).tolist())
        height, width = (int(side) for side in pictures.shape[-2:])
        scale = self.image_size / min(height, width)
        sized = resized(pictures, (max(self.image_size, round(height * scale)), max(self.image_size, round(width * scale))))
        mean, std = (torch.tensor(told[name]).view(3, 1, 1) for name in ("mean", "std"))
        views = [(view.float() / 255 - mean) / std for view in cropped(sized, self.image_size, told["test_crops"])]
        return torch.stack([view.unflatten(0, frames_VF.shape) for view in views], 1).flatten(0, 1)

    @torch.no_grad()
    def probabilities(self, track: Track) -> dict[str, Tensor]:
        """By head [C_a], of a video's frames, from the mean of the logits over its views."""
        answers = self.network(as_read_by(self.network, self.clips(track)))
        return {head: over_views(logits[None]).softmax(1)[0].cpu() for head, logits in answers.items()}

    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, top: int = 2) -> Iterator[Seen]:
        """The most probable classes of each head; see `Student`.

        Args:
            files: videos, and folders with the frames of one.
            unreadable: is called with the error of a file that cannot be read.
            top: how many classes of a head are named.

        Raises:
            InputError: the network reads no frames.
        """
        if self.modality != RGB:
            raise InputError("run", f"{self.card.folder}, whose network reads {self.modality}", "one that reads RGB frames")
        accelerated(self.network)
        for file in files:
            try:
                found = self.probabilities(opened_video(file))
            except InputError as error:
                unreadable(UnreadableImage(f"{file}: {error}"))
                continue
            rankings = {}
            for head, shares in found.items():
                best = shares.topk(min(top, len(shares)))
                names = self.heads[head]
                rankings[head] = tuple((names[i], share) for i, share in zip(best.indices.tolist(), best.values.tolist(), strict=True))
            yield Seen(file, rankings)

    def export_spec(self) -> ExportSpec:
        """The file reads ``clips`` float32 [batch, F, 3, S, S], one view, and answers with the logits [batch, C] of each head by its name.

        Metadata are those of `export_parts.description`, besides ``heads``, a JSON object with the names of the classes.

        Raises:
            InputError: the network reads something else than pictures.
        """
        if self.modality in ("boxes", "audio"):
            raise InputError("run", f"{self.card.folder}, whose network reads {self.modality}", "one that reads pictures")
        import json

        pictures = [np.asarray(picture.resize((2 * self.image_size,) * 2)) for picture in made_up_pictures(2 * self.image_size)]
        length = self.transform["frames"] * self.transform["frame_stride"]
        clips = []
        for picture in pictures:  # a made-up camera moves over a made-up picture
            moves = np.linspace(0, self.image_size - 1, length).astype(int)
            frames = [picture[at : at + self.image_size, at : at + self.image_size] for at in moves]
            clips.append(self.clips(Held(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)))[0])
        told = {**description(self.card), "heads": json.dumps({head: list(names) for head, names in self.heads.items()})}
        names = ("clips", *self.heads)
        note = "one view of a video; `stillroom predict` averages the logits over several"
        return ExportSpec(
            self.network, torch.stack(clips), names, told, ask=lambda network, inputs: tuple(network(inputs).values()), note=note
        )


def opened_video(path: Path) -> Track:
    """The frames of a video, or of a folder of them.

    Raises:
        InputError: there are none, or they cannot be decoded.
    """
    if path.is_dir():
        tracks = Finder(Folder(path)).tracks(Row("", None, None, (), ""))
        if not tracks:
            raise InputError("IMAGE", str(path), "a folder with the frames of a video")
        return tracks[RGB]
    if is_frame(path.name):
        try:
            with Image.open(path) as image:
                return Held(torch.from_numpy(np.asarray(image.convert("RGB"))).permute(2, 0, 1)[None])
        except (OSError, ValueError) as error:
            raise InputError("IMAGE", f"{path} ({error})", "a picture that can be decoded") from None
    video = VideoFile(path)
    video.check()
    return video


def _clip_of(frame: Path) -> Path:
    """The folder that a frame is a clip of: its own, or the one above, where that is called as a modality."""
    return frame.parent.parent if Finder.of_modality(frame.parent.name) else frame.parent


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedVideo:
    """The student that a video run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    heads, transform, size, modality, example = card.parsed(
        lambda content: (
            {str(head): tuple(map(str, names)) for head, names in content["heads"].items()},
            {name: content["transform"][name] for name in _READ},
            int(content["image_size"]),
            str(content["modality"]),
            [1, *map(int, content["example"])],
        ),
        "heads, transform and modality",
    )
    counts = {head: len(names) for head, names in heads.items()}
    options: dict[str, Any] = {"frames": transform["frames"], "trust_pickle": trust_pickle, "argument": "run"}
    built = build_video_network(card.spec, counts, torch.zeros(example), **options)
    return LoadedVideo(built.network.eval(), heads, transform, size, modality, card)
