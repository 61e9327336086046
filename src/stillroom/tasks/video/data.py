"""The data of a video run: clips to train on, and in several views to measure with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.engine.loading import Draw
from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.images.arguments import cpus
from stillroom.tasks.images.data import NAMED, ImageSetData, hashed
from stillroom.tasks.images.folders import counted, warn_left_out
from stillroom.tasks.video.batches import ClipBatches, Kept, VideoBatch, resized
from stillroom.tasks.video.decoding import BrokenVideo, VideoFile
from stillroom.tasks.video.flow import raft, with_flow
from stillroom.tasks.video.metrics import VideoEvaluator
from stillroom.tasks.video.sampling import CROPS, SAMPLERS
from stillroom.tasks.video.sources import VideoSource, open_source
from stillroom.tasks.video.tracks import PICTURES, RGB, Clips

AUGMENTATIONS = ("jitter", "crop", "none")
_MEMORY = 1_000_000_000  # bytes of decoded frames that are kept
_CHECKED = 5_000  # videos that are opened before anything is trained


class VideoData(ImageSetData):
    """A training and a validation set of clips: RGB frames, and what else there is of them, with a label for each head.

    Training shows one random clip of a video, evaluation several views, whose logits a network's answers are averaged over. Sets of up to
    1 GB of frames are decoded once and stay in memory; all others are read frame by frame, by the processes that read ahead.

    Args:
        data: where the images are: ``actions`` (procedural), ``clips:FOLDER`` (videos or folders of frames in a folder for each class, or
            frames or videos with a table of segments), ``something:ROOT`` (Something-Something-v2), ``epic:ROOT`` (EPIC-KITCHENS-100);
            options follow after commas: ``table=FILE``, ``heads=verb+noun``, ``val=0.2``.
        batch_size: images in a batch, of all processes together; clips, that is.
        image_size: pixels of the images that the network is given; height and width of frames.
        frames: F, frames of a clip.
        sampling: how frames are chosen: ``uniform``, one from each of F equal parts of the video, or ``dense``, every `frame_stride`-th.
        frame_stride: frames from one of a dense clip's to the next.
        test_clips: clips along a video's time that it is measured on.
        test_crops: places in the frames that it is measured on: 1, the centre, or 3, along the longer side.
        augment: random changes of training images: ``jitter`` (a crop of 1/1.43 to 1/1.15 of the shorter side, and other colours, alike in
            all frames), ``crop``, or ``none`` (the centre); never mirrored: classes may be called left and right.
        modality: what networks read: rgb, flow, depth, boxes or audio; all at the same frames, places and colours.
        flow_weights: weights of torchvision's RAFT, which then estimates the optical flow of clips that have none stored; it is slow, so
            that a teacher's answers are best stored.
        options: those of every task on images, see `ImageSetData`.

    Attributes:
        heads: names of the classes, by head.
        reads: the modalities of a batch, of which a network reads the first.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: VideoSource

    def __init__(
        self,
        data: str = "actions",
        *,
        batch_size: int = 32,
        image_size: int | None = None,
        frames: int | None = None,
        sampling: str | None = None,
        frame_stride: int | None = None,
        test_clips: int = 1,
        test_crops: int = 1,
        augment: str | None = None,
        modality: str = RGB,
        flow_weights: str | None = None,
        **options: Any,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, AUGMENTATIONS)
        source = open_source(data)
        if flow_weights is not None:
            place = Path(flow_weights).expanduser()
            raft(place)  # weights that do not fit are said now
            train, val = (with_flow(clips, place) for clips in (source.train, source.val))
            source = replace(
                source, train=train, val=val, fingerprint=hashed(f"{source.fingerprint} flow {place.name} {place.stat().st_size}")
            )
        self.frames = source.frames if frames is None else at_least("frames", frames, 1)
        super().__init__(data, source, batch_size=batch_size, **options)
        self.heads = dict(source.heads)
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self.sampling = source.sampling if sampling is None else one_of("sampling", sampling, SAMPLERS)
        self.frame_stride = source.frame_stride if frame_stride is None else at_least("frame_stride", frame_stride, 1)
        self.test_clips = at_least("test_clips", test_clips, 1)
        if test_crops not in CROPS:
            raise InputError("test_crops", test_crops, "1 or 3")
        self.test_crops = test_crops
        self.augment = augment or source.augment
        self.reads: tuple[str, ...] = (self._known(modality),)
        self.example_of_all = False
        self.in_memory = self._bytes() <= _MEMORY
        self.kept = Kept(_MEMORY // max(1, self.workers) if self.in_memory else 0)  # one for all data that are derived from these
        shape = {"image_size": self.image_size, "frames": self.frames, "sampling": self.sampling, "frame_stride": self.frame_stride}
        self._known_by({**shape, "augment": self.augment, "modality": modality}, self.test_clips, self.test_crops)

    # What other data are made by ----------------------------------------------------------------------------------------------------

    def of(self, *modalities: str) -> VideoData:
        """The same clips in other modalities: a network reads the first, the others lie beside it in a batch.

        Raises:
            InputError: a modality that no clip has.
        """
        reads = tuple(dict.fromkeys(map(self._known, modalities)))
        if reads == self.reads:
            return self
        derived = self.derive(("modalities", reads), reads=reads)
        derived.cache_key = {**self.cache_key, "modality": reads[0]}  # as of the same data, opened with that modality
        return derived

    def having(self, modality: str) -> VideoData:
        """The same data without the training clips that lack a modality."""
        having = self._shown[0].having(modality)
        if having.all():
            return self
        indices = self.indices.get("train", np.arange(len(having)))
        train = self._shown[0].take(np.flatnonzero(having))
        return self.derive(("having", modality), train=train, indices={**self.indices, "train": indices[having]})

    def presence(self) -> np.ndarray:
        """Which of `modalities` each training clip has, bool [N, M]."""
        return np.stack([self._shown[0].having(name) for name in self.modalities], 1)

    def together(self) -> VideoData:
        """The same data for what reads every modality of a batch: its example is a dictionary of them."""
        return self.derive("together", example_of_all=True)

    def in_test_views(self, clips: int, crops: int) -> VideoData:
        """The same data, measured in other views."""
        return self.derive(("test views", clips, crops), test_clips=clips, test_crops=crops, cache_key=self.cache_key)

    def held_apart(self, share: float, argument: str) -> tuple[VideoData, VideoData]:
        """Two parts of the training clips: the rest, measured as before; and a share of them to measure with, for what is no validation.

        Raises:
            InputError: a share that leaves one of the two without clips; `argument` is what errors call it.
        """
        count = round(share * self.train_size)
        if not 0 < share < 1 or not 0 < count < self.train_size:
            raise InputError(argument, share, "a share of the training clips, above 0 and below 1, that leaves some for both")
        held = self.holding_out(share)
        rest = self.derive(("without held out", share), train=held._shown[0], indices={**self._indices_but_train(), **held.indices})
        return rest, held

    def _known(self, modality: str) -> str:
        return one_of("modality", modality, self.source.modalities)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that some training clip has."""
        return self.source.modalities

    @property
    def fixed(self) -> bool:
        """Whether training shows the same of a clip each time."""
        exact = self.sampling == "dense" and max(len(clip.tracks[RGB]) for clip in self._listed[0].clips) <= self.frames * self.frame_stride
        return self.augment == "none" and exact

    @property
    def test_views(self) -> int:
        """V, clips times crops of a video that is measured."""
        return self.test_clips * self.test_crops

    # Clips ------------------------------------------------------------------------------------------------------------------------

    def first_lines(self) -> list[str]:
        """How many clips there are, of which heads; their modalities and how they are seen; what was met."""
        train, val = map(len, self._listed)
        drawn = "procedural data: " if self.source.drawn else ""
        heads = "; ".join(
            f"{head}, {len(names)} classes: {', '.join(names[:NAMED])}{', ...' * (len(names) > NAMED)}"
            for head, names in self.heads.items()
        )
        seen = f"{self.frames} frames of {self.image_size} × {self.image_size} pixels, {self.sampling} sampling"
        if self.sampling == "dense":
            seen += " of every frame" if self.frame_stride == 1 else f" of every {self.frame_stride}th frame"
        views = f"measured in {self.test_clips} × {self.test_crops} views (clips × crops)"
        there = [f"{name} ({(100 * self._listed[0].having(name).mean()):.0f} % of the training clips)" for name in self.modalities]
        lines = [f"{drawn}{train} training + {val} validation clips; {heads}", f"modalities: {', '.join(there)}"]
        lines.append(f"{seen}, {self.augment}; {views}")
        short = sum(len(clip.tracks[RGB]) < self.frames for clip in self._listed[0].clips[:_CHECKED] if RGB in clip.tracks)
        if short:
            lines.append(f"{short} training clips are shorter than {self.frames} frames: theirs are repeated")
        return [*lines, *self._met()]

    def _opened(self) -> tuple[Clips, Clips]:
        """Those that were asked for and whose videos can be decoded."""
        listed = list(super()._opened())
        broken: list[str] = []
        odd: dict[str, list[str]] = {}
        for number, clips in enumerate(listed):
            with ThreadPoolExecutor(cpus()) as threads:
                good = np.array(list(threads.map(partial(_decodes, clips, broken, odd), range(len(clips)))), bool)
            broken.sort()
            if not good.all():
                listed[number] = clips.take(np.flatnonzero(good))
        if broken and self.strict:
            raise InputError("data", counted(broken, "video{s} that cannot be decoded"), "none such, since strict was asked for")
        if broken:
            warn_left_out(broken, "video{s} that cannot be decoded")
        if not all(map(len, listed)):
            raise InputError("data", counted(broken, "video{s} that cannot be decoded"), "some that can, in both splits")
        self.left_out = broken
        self.odd = [f"{len(names)} video{'s' * (len(names) > 1)} {what}, the first {min(names)}" for what, names in odd.items()]
        return listed[0], listed[1]

    def _met(self) -> list[str]:
        left = [f"left out {counted(self.left_out, 'video{s} that cannot be decoded')}"] if self.left_out else []
        return [*self.source.said, *left, *self.odd]

    def _bytes(self) -> int:
        """About so many bytes all frames have."""
        first = self._listed[0].clips[0].tracks
        track = first.get(RGB) or next(iter(first.values()))
        frame = track.read([0]).nbytes
        lengths = [len(clip.tracks[RGB]) for clips in self._listed for clip in clips.clips[:_CHECKED] if RGB in clip.tracks]
        return int(np.mean(lengths or [1]) * sum(map(len, self._listed)) * frame * (1 + len(self.modalities)))

    def evaluator(self) -> VideoEvaluator:
        """What scores a network's answers."""
        return VideoEvaluator({head: len(names) for head, names in self.heads.items()})

    def shape_of(self, modality: str, *, training: bool) -> tuple[int, ...]:
        """Of a clip's part of a batch, [V, ...], whether or not a clip that is shown has the modality."""
        having = int(np.flatnonzero(self._listed[0].having(modality))[0])
        batch: VideoBatch = ClipBatches(self._listed[0], self.of(modality), training=training).__getitems__([Draw(having, 0)])
        return tuple(batch.clips[modality].shape[1:])

    def example_inputs(self) -> Any:
        """One view of the first validation clip: [1, F, 3, S, S] of what a network reads; by modality for `together`."""
        found = self._example()
        return found if self.example_of_all else found[self.reads[0]]

    def _example(self) -> dict[str, Tensor]:
        batch: VideoBatch = ClipBatches(self._val, self.in_test_views(1, 1), training=False).__getitems__([Draw(0, 0)])
        return {name: batch.of(name).inputs for name in self.reads}

    def val_frames(self, index: int, count: int, side: int, modality: str = RGB) -> list[Image.Image]:
        """Evenly spaced frames of a validation clip for people to look at; none where it lacks the modality."""
        track = self._val.clips[index].tracks.get(modality)
        if track is None or modality not in PICTURES:
            return []
        frames: Tensor = track.read(np.linspace(0, len(track) - 1, count).round().astype(int).tolist())
        height, width = (max(1, round(side * size / max(frames.shape[-2:]))) for size in frames.shape[-2:])
        return [to_pil_image(frame) for frame in resized(frames, (height, width))]

    def val_image(self, index: int) -> Image.Image:
        """The middle frame of a validation clip."""
        return self.val_frames(index, 3, 128)[1]

    def _described(self) -> dict[str, Any]:
        transform = {"frames": self.frames, "sampling": self.sampling, "frame_stride": self.frame_stride, "test_clips": self.test_clips}
        transform |= {"test_crops": self.test_crops, "mean": list(self.mean), "std": list(self.std)}
        heads = {head: list(names) for head, names in self.heads.items()}
        example = list(self._example()[self.reads[0]].shape[1:])
        return {"image_size": self.image_size, "transform": transform, "heads": heads, "modality": self.reads[0], "example": example}

    @property
    def _light(self) -> bool:
        return self.in_memory and self.image_size <= 64

    def _samples(self, images: Any, *, training: bool, told: bool = False) -> Dataset[Any]:
        return ClipBatches(images, self, training=training, told=told)

    def _prepared(self, images: Any) -> Any:
        return images  # kept by those who read them

    def _taken(self, images: Any, indices: np.ndarray) -> Any:
        return images.take(indices)


def _decodes(clips: Clips, broken: list[str], odd: dict[str, list[str]], index: int) -> bool:
    """Whether a clip's video can be decoded, as far as that is looked at."""
    track = clips.clips[index].tracks.get(RGB)
    if not isinstance(track, VideoFile) or index >= _CHECKED:
        return True
    try:
        if said := track.check():
            odd.setdefault(said, []).append(clips.name(index))
    except BrokenVideo:
        broken.append(clips.name(index))
        return False
    return True
