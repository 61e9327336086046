"""Batches of clips: frames are chosen, cut, coloured and normalised alike in every modality of a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, resize

from stillroom.engine.loading import Draw, uniforms
from stillroom.engine.teacher import Renormalise
from stillroom.tasks.images.transforms import Parameters
from stillroom.tasks.video.sampling import cropped, test_frames, train_frames
from stillroom.tasks.video.tracks import BOX, FLOW, PICTURES, RGB, Clips, Held, Sound, Track

if TYPE_CHECKING:
    from stillroom.tasks.video.data import VideoData

_SCALE = 1.15, 1.43  # how many times a crop's side the shorter side is
_JITTER, _HUE = (0.75, 1.25), 0.1
_CHANGES: tuple[Callable[[Tensor, float], Tensor], ...] = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


class VideoBatch(NamedTuple):
    """Clips with labels.

    Attributes:
        clips: by modality, for V views of each clip: pictures, normalised, [B, V, F, 3, S, S], boxes [B, V, F, N, 8]. The first is what
            a network reads. Sound has one view and one picture, or as many as there are frames.
        labels: int64 [B] by head.
        present: which of all of the data's modalities each clip has, bool [B, M]; what it lacks is zero in `clips`.
        ids: int64 [B].
        views: int64 [B], which recorded view of its training sample each clip is (see `ImageSetData.replaying`); None for others.
    """

    clips: dict[str, Tensor]
    labels: dict[str, Tensor]
    present: Tensor
    ids: Tensor
    views: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """What a network reads: the views of the first modality, one after the other, [B V, F, 3, S, S]."""
        return next(iter(self.clips.values())).flatten(0, 1)

    def of(self, modality: str) -> VideoBatch:
        """The same clips, of which a network reads this modality."""
        return self._replace(clips={modality: self.clips[modality]})

    def renormalised(self, renormalise: Renormalise) -> VideoBatch:
        """For a network that was trained with other statistics of its modality."""
        first = next(iter(self.clips))
        return self._replace(clips={**self.clips, first: renormalise(self.clips[first])})


class Kept:
    """Frames of tracks that were decoded; all of a track when its first frame is asked for, as long as there is room.

    Args:
        room: bytes; 0 where nothing is to be kept.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._frames: dict[int, tuple[Track, Tensor]] = {}

    def read(self, track: Track, wanted: np.ndarray) -> Tensor:
        """Some frames of a track, [F, 3, H, W]; behind its end the last one."""
        wanted = np.minimum(wanted, len(track) - 1)
        if id(track) not in self._frames:
            if isinstance(track, Held) or not self.room:
                return track.read(wanted.tolist())
            whole = track.read(list(range(len(track))))
            if whole.nbytes > self.room:
                return whole[wanted]
            self.room -= whole.nbytes
            self._frames[id(track)] = track, whole  # who is known by its id must stay alive
        return self._frames[id(track)][1][wanted]


class ClipBatches(Dataset[Any]):
    """Whole batches by their draws.

    Args:
        clips: of the set.
        data: whose options they follow.
        training: one view with random changes, else the views of a test.
        told: answer with what was drawn as well.
    """

    def __init__(self, clips: Clips, data: VideoData, *, training: bool, told: bool = False) -> None:
        self.clips, self.data, self.training, self.told = clips, data, training, told
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        ids, seeds, views = np.array(draws, np.int64).T
        data = self.data
        random = uniforms(seeds, data.frames + _DRAWN)
        found = [self._clip(index, row) for index, row in zip(ids.tolist(), random, strict=True)]
        tensors = {}
        for modality in data.reads:
            parts = [clip[modality] for clip, _ in found]
            known = next((tuple(part.shape) for part in parts if part is not None), None)
            shape = known or data.shape_of(modality, training=self.training)
            tensors[modality] = torch.stack([torch.zeros(shape) if part is None else part for part in parts])
        labels = torch.from_numpy(self.clips.labels[ids])
        present = torch.tensor([[modality in self.clips.clips[index].tracks for modality in data.modalities] for index in ids.tolist()])
        recorded = None if draws[0].view < 0 else torch.from_numpy(views.copy())
        by_head = {head: labels[:, number].contiguous() for number, head in enumerate(self.clips.heads)}
        batch = VideoBatch(tensors, by_head, present, torch.from_numpy(ids.copy()), recorded)
        drawn: Parameters = {name: np.stack([told[name] for _, told in found]) for name in found[0][1]}
        return (batch, drawn) if self.told else batch

    def _clip(self, index: int, random: np.ndarray) -> tuple[dict[str, Tensor | None], Parameters]:
        """The views of one clip by modality, and what was drawn for it."""
        data, tracks = self.data, self.clips.clips[index].tracks
        length = len(tracks[RGB]) if RGB in tracks else max(map(len, tracks.values()))
        if self.training:
            frames_VF = train_frames(length, data.frames, data.sampling, data.frame_stride, random[_DRAWN:].tolist())[None]
        else:
            frames_VF = test_frames(length, data.frames, data.test_clips, data.sampling, data.frame_stride)
        told: Parameters = {"frames": frames_VF.reshape(-1), "random": random[:_DRAWN].astype(np.float32)}
        made: dict[str, Tensor | None] = {}
        for modality in data.reads:
            if modality not in tracks:
                made[modality] = None
            elif modality in PICTURES:
                made[modality] = self._pictures(index, modality, frames_VF, random)
            elif modality == BOX:
                made[modality] = tracks[modality].read(frames_VF.reshape(-1).tolist()).unflatten(0, frames_VF.shape)
            else:
                track = tracks[modality]
                assert isinstance(track, Sound)
                found = track.pictures(frames_VF.reshape(-1).tolist(), data.image_size)
                made[modality] = found[None] if len(found) == 1 else found.unflatten(0, frames_VF.shape)
        return made, told

    def _pictures(self, index: int, modality: str, frames_VF: np.ndarray, random: np.ndarray) -> Tensor:
        """[V, F, 3, S, S], normalised."""
        side, wanted = self.data.image_size, frames_VF.reshape(-1)
        pictures = self.data.kept.read(self.clips.clips[index].tracks[modality], wanted)
        height, width = int(pictures.shape[-2]), int(pictures.shape[-1])
        if self.training and self.data.augment != "none":
            cut = round(min(height, width) / (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * random[0]))
            top, left = int(random[1] * (height - cut + 1)), int(random[2] * (width - cut + 1))
            values = resized(pictures[..., top : top + cut, left : left + cut], (side, side)).float() / 255
            if self.data.augment == "jitter" and modality in (RGB, FLOW):
                values = _jittered(values, random)
            return ((values - self.mean) / self.std)[None]
        scale = side / min(height, width)
        sized = resized(pictures, (max(side, round(height * scale)), max(side, round(width * scale))))
        views = cropped(sized, side, 1 if self.training else self.data.test_crops)
        views_CVF = torch.stack([view.float().div_(255).sub_(self.mean).div_(self.std).unflatten(0, frames_VF.shape) for view in views])
        return views_CVF.transpose(0, 1).flatten(0, 1)


_DRAWN = 11  # numbers of a clip: scale, place, four changes of colour and their order


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [F, 3, H, W] of that height and width."""
    return pictures if tuple(pictures.shape[-2:]) == size else resize(pictures, list(size), antialias=True)


def _jittered(values: Tensor, random: np.ndarray) -> Tensor:
    """Brightness, contrast, saturation and hue changed alike in all frames [F, 3, S, S], in a random order."""
    for place in np.argsort(random[7:11]).tolist():
        low, high = (-_HUE, _HUE) if place == 3 else _JITTER
        values = _CHANGES[place](values, float(low + (high - low) * random[3 + place]))
    return values
