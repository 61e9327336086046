"""The vision-language model of labelling: what CLIP says of each patch of a picture, and of words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear

from stillroom.errors import InputError
from stillroom.methods.upvl.lifting import lift
from stillroom.modules.clip import ImageTower
from stillroom.tasks.images.clips import ImageText, class_embeddings
from stillroom.tasks.points.frames import Frame, View

# What takes no part in traffic; the paper's list.
BACKGROUND = (
    "vegetation", "road", "street", "sky", "tree", "building", "house", "skyscraper", "wall", "fence", "sidewalk",
)  # fmt: skip
THINGS = ("object", "thing")  # what is none of these, whatever it is


class Language(Protocol):
    """What labels ask of a vision-language model; `VisionLanguage` says what each is."""

    words: tuple[str, ...]
    texts: Tensor
    background: tuple[int, ...]
    things: Tensor

    @property
    def source(self) -> str:
        """What it is, for people."""

    def of_points(self, frame: Frame) -> Callable[[np.ndarray], np.ndarray]:
        """What gives points of a frame their features."""


class VisionLanguage:
    """A CLIP that is asked for every patch of pictures, through the values of its last attention (as MaskCLIP reads it).

    Args:
        clip: whose image tower is a transformer.
        words: that objects may be called.
        argument: how the CLIP was given.

    Attributes:
        words: the vocabulary.
        texts: [Q, C], unit: the vocabulary's, then the background's.
        background: columns of the latter.
        things: [2, C], of `THINGS`.

    Raises:
        InputError: its image tower is another network.
    """

    def __init__(self, clip: ImageText, words: Sequence[str], argument: str = "clip") -> None:
        if not isinstance(clip.image, ImageTower) or clip.image.transformer.blocks[-1].attn is None:
            raise InputError(argument, clip.source, "a CLIP whose image tower is a transformer")
        self.clip, self.tower, self.words = clip, clip.image.eval(), tuple(words)
        self.texts = class_embeddings(clip, [*words, *BACKGROUND]).float()
        self.things = class_embeddings(clip, THINGS).float()
        self.background = tuple(range(len(words), len(words) + len(BACKGROUND)))

    @property
    def source(self) -> str:
        """Where the CLIP was found."""
        return self.clip.source

    @torch.no_grad()
    def dense(self, images_B3HW: Tensor) -> Tensor:
        """Features of the patches of normalised pictures of the CLIP's size, [B, C, h, w]."""
        tower = self.tower
        patches_BND = tower.conv1(images_B3HW).flatten(2).transpose(1, 2)
        first_B1D = tower.class_embedding.expand(len(images_B3HW), 1, -1)
        x_BTD = tower.ln_pre(torch.cat((first_B1D, patches_BND), 1) + tower.positional_embedding)
        *before, last = tower.transformer.blocks
        for block in before:
            x_BTD = block(x_BTD)
        attention = last.attn
        assert attention is not None
        weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        values_BTD = attention.out_proj(linear(last.ln_1(x_BTD), weight, bias))
        features_BNC = tower.ln_post(values_BTD[:, 1:]) @ tower.proj
        side = round(features_BNC.shape[1] ** 0.5)
        return features_BNC.transpose(1, 2).unflatten(2, (side, side))

    def of_points(self, frame: Frame) -> Callable[[np.ndarray], np.ndarray]:
        """What gives points [N, 3] of a frame their features, float32 [N, C]; zero rows where no camera sees.

        A picture is cut into squares of its height, which overlap, each of them a camera of its own.
        """
        size, mean, std = self.clip.image_size, *(torch.tensor(s).view(1, 3, 1, 1) for s in (self.clip.mean, self.clip.std))
        maps, lidar2cam, intrinsics = [], [], []
        for view in frame.views:
            for pixels, matrix in squares(view, size):
                shown = (pixels[None] / 255 - mean) / std
                maps.append(self.dense(shown)[0])
                lidar2cam.append(torch.from_numpy(np.linalg.inv(view.cam2ego)).float())
                intrinsics.append(torch.from_numpy(matrix @ view.intrinsics).float())
        channels = self.texts.shape[1]

        def features(points: np.ndarray) -> np.ndarray:
            if not maps:
                return np.zeros((len(points), channels), np.float32)
            places = torch.from_numpy(points).float()
            stride = size // maps[0].shape[-1]
            found, _ = lift(places, torch.stack(lidar2cam), torch.stack(intrinsics), torch.stack(maps), (size, size), stride)
            return found.numpy()

        return features


def squares(view: View, size: int) -> list[tuple[Tensor, np.ndarray]]:
    """Squares of a picture's shorter side that cover it, brought to `size`: float32 [3, size, size] in 0 to 255, and what that does to
    homogeneous pixels [3, 3]; pixel centres are whole numbers."""
    picture = torch.from_numpy(np.ascontiguousarray(view.image)).permute(2, 0, 1).float()
    height, width = picture.shape[1:]
    side = min(height, width)
    count = max(1, int(np.ceil(1.5 * max(height, width) / side - 0.5)))
    starts = np.linspace(0, max(height, width) - side, count).round().astype(int)
    scale, answers = size / side, []
    for start in starts:
        top, left = (0, start) if width >= height else (start, 0)
        cut = picture[None, :, top : top + side, left : left + side]
        resized = interpolate(cut, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
        shift = (scale - 1) / 2
        matrix = np.array([[scale, 0, shift - scale * left], [0, scale, shift - scale * top], [0, 0, 1.0]])
        answers.append((resized, matrix @ np.block([[view.post[:2, :2], view.post[:2, 3:]], [np.zeros((1, 2)), np.ones((1, 1))]])))
    return answers
