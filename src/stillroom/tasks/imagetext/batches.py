"""Batches of images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.engine.loading import Draw, uniforms
from stillroom.engine.teacher import Renormalise
from stillroom.tasks.images.batches import Batch as Pictures
from stillroom.tasks.images.batches import Batches
from stillroom.tasks.images.tokens import Tokenizer
from stillroom.tasks.imagetext.sources import Captions


class Batch(NamedTuple):
    """Images and texts.

    Attributes:
        images: float32 [B, 3, H, W], normalised.
        tokens: int64 [M, T]. In training the text of row i belongs to image i; else these are all captions of the images, one after the
            other, and whatever else is to be encoded.
        ids: int64 [B], each image's index in its data set.
        text_ids: int64 [M], which of the data's different texts each is.
    """

    images: Tensor
    tokens: Tensor
    ids: Tensor
    text_ids: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """What a network reads."""
        return self.images, self.tokens

    def renormalised(self, renormalise: Renormalise) -> Batch:
        """The same with images of other statistics."""
        return self._replace(images=renormalise(self.images))


class PairBatches(Dataset[Any]):
    """Whole batches of images and their captions by their draws.

    Args:
        images: whose labels say which group of the captions is theirs.
        captions: of the images.
        tokenizer: of the texts.
        training: one caption for each image, drawn anew each time; else all of them.
    """

    def __init__(self, images: Batches, captions: Captions, tokenizer: Tokenizer, *, training: bool) -> None:
        self.images, self.captions, self.tokenizer, self.training = images, captions, tokenizer, training

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Batch:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        pictures = cast("Pictures", self.images.__getitems__(draws))
        groups = [self.captions.groups[label] for label in pictures.labels.tolist()]
        if self.training:
            drawn_B = uniforms(np.array([draw.seed for draw in draws], np.int64), 1)[:, 0]
            text_ids = np.array([group[int(share * len(group))] for group, share in zip(groups, drawn_B, strict=True)], np.int64)
        else:
            text_ids = np.concatenate([np.empty(0, np.int64), *groups])
        tokens_MT = self.tokenizer([self.captions.texts[index] for index in text_ids.tolist()])
        return Batch(pictures.images, tokens_MT, pictures.ids, torch.from_numpy(text_ids))
