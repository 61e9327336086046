"""Which image the second view comes from: the vote of a window of epochs, the gate, and the draw."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillroom.errors import positive


class Vote(NamedTuple):
    """What a window says of some images; R images, k candidates.

    Attributes:
        candidates: int64 [R, k], ids by decreasing sum; -1 where there are fewer.
        sums: w, float64 [R, k]: the candidate's similarity summed over the window; -inf where there is none.
        gate: bool [R], whether the image itself comes first: the latent space recognises it.
        seen: bool [R], whether any similarity is there at all.
    """

    candidates: Tensor
    sums: Tensor
    gate: Tensor
    seen: Tensor

    def probabilities(self, window: int, temperature: float) -> Tensor:
        """P(j_l) = softmax_l( w_l / (V T_p) ), float64 [R, k]."""
        return (self.sums / (window * positive("sampling_temperature", temperature))).softmax(-1)


def vote(ids: Tensor, similarities: Tensor, images: Tensor) -> Vote:
    """Sums each candidate's similarity over the slots of a window, and asks whether the image itself wins.

    Equal sums go to the smaller id, but the image itself wins a tie for the first place. An image that was never seen (all similarities
    are 0) has its gate shut.

    Args:
        ids: W_A of the images, integers [R, V, k].
        similarities: W_S, [R, V, k].
        images: their own ids [R].

    Source: specification, "Choice of the second image", steps 1 to 3, and "Paper versus released code", 5.
    """
    slots, neighbours = ids.shape[1:]
    ordered, order = ids.long().flatten(1).sort(dim=1, stable=True)
    values = similarities.double().flatten(1).gather(1, order)
    starts = torch.cat((torch.zeros_like(ordered[:, :1], dtype=torch.bool), ordered[:, 1:] != ordered[:, :-1]), 1)
    place = starts.long().cumsum(1)  # of each entry's id among the row's distinct ids
    missing = torch.arange(slots * neighbours, device=ids.device) > place[:, -1:]
    sums = torch.zeros_like(values).scatter_add_(1, place, values).masked_fill_(missing, -torch.inf)
    candidates = torch.full_like(ordered, -1).scatter_(1, place, ordered)
    # the image itself, where nothing is above it, goes before all that have as much
    winner = (candidates == images[:, None]) & (sums == sums.amax(1, keepdim=True))
    order = sums.masked_fill(winner, torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :neighbours]
    candidates, sums = candidates.gather(1, order), sums.gather(1, order)
    seen = (similarities != 0).flatten(1).any(1)
    return Vote(candidates, sums, (candidates[:, 0] == images) & seen, seen)


def drawn(candidates: Tensor, probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One candidate of each row [R], by its probabilities [R, k], which fall along the row, and a number in [0, 1) for each row."""
    chosen = (probabilities.cumsum(1) <= uniforms[:, None]).sum(1)
    last = (probabilities > 0).sum(1) - 1  # where the sum of all is rounded to less than the number
    return candidates.gather(1, torch.minimum(chosen, last)[:, None])[:, 0]


def nearest_other(neighbours: Tensor, images: Tensor) -> Tensor:
    """The first of each image's neighbours [R, k] that is not the image itself [R]; the image itself where there is none."""
    place = (neighbours != images[:, None]).to(torch.uint8).argmax(1, keepdim=True)
    return neighbours.gather(1, place)[:, 0].long()
