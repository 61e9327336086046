"""Optical flow that is estimated from frames by torchvision's RAFT, where none is stored and weights are at hand."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.engine.weights import load_weights
from stillroom.errors import InputError
from stillroom.tasks.video.tracks import FLOW, RGB, Clips, Track

_BOUND = 20.0  # pixels of displacement that 8 bits reach, as in EPIC-KITCHENS
_CELL, _LEAST = 8, 128  # pixels: RAFT reads multiples of the one from the other on
_TOGETHER = 8  # pairs of frames at a time


@functools.lru_cache(1)
def raft(weights: Path) -> nn.Module:
    """RAFT, large or small, with these weights, in eval mode.

    Raises:
        InputError: they fit neither.
    """
    from torchvision.models.optical_flow import raft_large, raft_small

    for make in (raft_large, raft_small):
        network: nn.Module = make(weights=None)
        try:
            load_weights(network, weights, argument="flow_weights")
        except InputError:
            if make is raft_small:
                raise
            continue
        return network.eval().requires_grad_(False)
    raise AssertionError


@dataclass(frozen=True)
class EstimatedFlow:
    """From each frame to the next (of the last one: from the one before), estimated when it is read.

    Args:
        frames: the RGB track.
        weights: of RAFT.
    """

    frames: Track
    weights: Path

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: Sequence[int]) -> Tensor:
        """uint8 [F, 3, H, W]: displacements of -20 to 20 pixels to the right and downwards as 0 to 255, and zeros."""
        last = max(len(self) - 2, 0)
        starts = np.minimum(np.asarray(indices), last)
        places, back = np.unique(starts, return_inverse=True)
        wanted = np.unique([places, np.minimum(places + 1, len(self) - 1)])
        known = dict(zip(wanted.tolist(), self.frames.read(wanted.tolist()).float() / 127.5 - 1, strict=True))
        pairs = [(known[place], known[min(place + 1, len(self) - 1)]) for place in places.tolist()]
        found = [self._estimated(pairs[at : at + _TOGETHER]) for at in range(0, len(pairs), _TOGETHER)]
        return torch.cat(found)[torch.from_numpy(back)]

    @torch.no_grad()
    def _estimated(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        first, second = (torch.stack(frames) for frames in zip(*pairs, strict=True))
        height, width = first.shape[2:]
        scale = max(1.0, _LEAST / min(height, width))
        size = [round(side * scale / _CELL) * _CELL for side in (height, width)]
        sized = [interpolate(frames, size, mode="bilinear", align_corners=False) for frames in (first, second)]
        flow = interpolate(raft(self.weights)(*sized)[-1], (height, width), mode="bilinear", align_corners=False)
        flow = flow * torch.tensor([width / size[1], height / size[0]]).view(2, 1, 1)
        levels = ((flow.clamp(-_BOUND, _BOUND) / _BOUND + 1) * 127.5).round()
        return torch.cat([levels, torch.zeros_like(levels[:, :1])], 1).to(torch.uint8)


def with_flow(clips: Clips, weights: Path) -> Clips:
    """The clips with estimated flow, where none is stored."""
    having = [
        replace(clip, tracks={**clip.tracks, FLOW: EstimatedFlow(clip.tracks[RGB], weights)})
        if RGB in clip.tracks and FLOW not in clip.tracks
        else clip
        for clip in clips.clips
    ]
    return Clips(having, clips.heads)
