"""Distances between the features of a student and a teacher, composed of a few transformations, a distance and a weight.

A composition is a short text, read from left to right: ``satt>local4>channel>kl4*10`` weighs both maps by where they look, cuts them into
patches of 4 x 4, compares each channel's positions as probabilities softened by T = 4, and weighs the result by 10. Many published losses
are such compositions (`KNOWN`).

Source: Auto-KD (Li et al. 2023), section 2 of its specification.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize, pad

from stillroom.errors import InputError, positive
from stillroom.losses.precision import in_one_type

NONE = "none"
LOGITS = "logits"  # what is compared where it is no feature map
GLOBAL = (NONE, "satt", "catt", "mask")
INTRA = (NONE, "scale2", "scale4", "local2", "local4")
INTER = ("position", "channel", "sample")
CLASS = "class"  # rows of logits by class
NORMALISE = (NONE, "unit", "standard")
DISTANCE = ("l2", "kl1", "kl4", "kl8", "gl2", "cos", "pear")
L1 = "l1"  # always poor, so that no search tries it
WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)

ATTENTION_TEMPERATURE = 0.5
MASK_RATIO = 0.65
_EPS = 1e-12
_OF_LOGITS = ("l2", "kl1", "kl4", "kl8", "pear")


@dataclass(frozen=True)
class Composition:
    """A loss between two feature maps: what is done to both, how they are compared, and the weight.

    Called with the student's and the teacher's features [N, C, H, W] (or [N, C], maps of one position) of equal shape it answers with a
    scalar, float32 at least. No gradient reaches the teacher.

    Args:
        global_: over the whole map: satt and catt weigh positions and channels by their attention, mask hides most positions.
        intra: within positions: scale2 and scale4 keep the maxima of squares, local2 and local4 make each square a channel of its own.
        inter: which vectors are compared: the channels of a position, the positions of a channel, or everything of a sample; of logits the
            classes of a sample, or with ``class`` the samples of a class.
        distance: l2, kl1, kl4, kl8 (divergence at that temperature), gl2 (of Gram matrices), cos, pear (correlation), l1.
        weight: of the whole, above 0.
        normalise: of the vectors: unit length, or mean 0 and deviation 1.
        logits: whether the networks' answers are compared instead of features.

    Raises:
        InputError: an option that there is not, or options that do not go together.
    """

    global_: str = NONE
    intra: str = NONE
    inter: str = "position"
    distance: str = "l2"
    weight: float = 1.0
    normalise: str = NONE
    logits: bool = False

    def __post_init__(self) -> None:
        inter, distance = ((INTER[2], CLASS), _OF_LOGITS) if self.logits else (INTER, (*DISTANCE, L1))
        known = {"global_": GLOBAL, "intra": INTRA, "inter": inter, "normalise": NORMALISE, "distance": distance}
        if self.logits:
            known |= {"global_": (NONE,), "intra": (NONE,)}
        for name, options in known.items():
            if getattr(self, name) not in options:
                of = " of logits" if self.logits else ""
                raise InputError("distiller", getattr(self, name), f"{name.rstrip('_')}{of} among {', '.join(options)}")
        positive("distiller", self.weight)

    def __str__(self) -> str:
        words = [LOGITS] * self.logits + [self.global_, self.intra, self.inter, self.normalise, self.distance]
        return f"{'>'.join(word for word in words if word != NONE)}*{self.weight:g}"

    @staticmethod
    def read(text: str, argument: str = "distiller") -> Composition:
        """The composition of a text: ``[logits>][GLOBAL>][INTRA>]INTER>[NORMALISE>]DISTANCE[*WEIGHT]``.

        Raises:
            InputError: a word that there is not or that stands at a wrong place, or a weight that is no number above 0.
        """
        body, star, weight = text.replace(" ", "").partition("*")
        words = [word for word in body.split(">") if word not in ("", NONE)]
        logits = words[:1] == [LOGITS]
        levels = {"global_": GLOBAL, "intra": INTRA, "inter": (*INTER, CLASS), "normalise": NORMALISE, "distance": (*DISTANCE, L1)}
        found: dict[str, str] = {}
        for word in words[logits:]:
            level = next((name for name, options in levels.items() if word in options), None)
            if level is None or any(other in found for other in islice(levels, list(levels).index(level), None)):
                why = "which is no such word" if level is None else "which stands too late or twice"
                raise InputError(argument, f"{text!r} with {word!r}, {why}", _grammar())
            found[level] = word
        if missing := [name for name in ("inter", "distance") if name not in found]:
            raise InputError(argument, f"{text!r} without {'what is compared' if missing[0] == 'inter' else 'a distance'}", _grammar())
        try:
            number = float(weight) if star else 1.0
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise InputError(argument, f"{text!r} with the weight {weight!r}", "a number above 0 after *")
        try:
            return Composition(**found, weight=number, logits=logits)
        except InputError as error:
            raise InputError(argument, f"{text!r} with {error.got!r}", error.expected) from None

    def __call__(self, student: Tensor, teacher: Tensor, *, keep_N1HW: Tensor | None = None) -> Tensor:
        """The weighted distance.

        Args:
            student, teacher: features or logits of equal shape.
            keep_N1HW: 1 where the option mask keeps a position of both; drawn anew where it is not given.

        Raises:
            InputError: the shapes differ, or are neither [N, C, H, W] nor [N, C].
        """
        if student.shape != teacher.shape or student.ndim not in (2, 4):
            got = f"features of shapes {tuple(student.shape)} and {tuple(teacher.shape)}"
            raise InputError("student", got, "two equal shapes, [N, C, H, W] or [N, C]")
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = in_one_type(student, teacher.detach())
            if self.global_ == "mask" and keep_N1HW is None:
                places = (len(student), 1, *(student.shape[2:] or (1, 1)))
                keep_N1HW = (torch.rand(places, device=student.device) >= MASK_RATIO).to(student.dtype)
            rows_s, rows_t = (self.rows(features, keep_N1HW) for features in (student, teacher))
            return self.weight * distance(rows_s, rows_t, self.distance)

    def rows(self, features: Tensor, keep_N1HW: Tensor | None = None) -> Tensor:
        """The vectors of one network's features that are compared, [N, R, M]: R rows of length M for each sample."""
        if features.ndim == 2:
            features = features[:, :, None, None]
        if self.inter == CLASS:  # [N, C, 1, 1] -> [1, C, N]
            rows = features.flatten(1).T[None]
        else:
            rows = rows_of(within(over(features, self.global_, keep_N1HW), self.intra), self.inter)
        if self.normalise == "unit":
            return normalize(rows, dim=-1, eps=_EPS)
        if self.normalise == "standard":
            centred = rows - rows.mean(-1, keepdim=True)
            return centred / centred.square().mean(-1, keepdim=True).clamp_min(_EPS).sqrt()
        return rows


KNOWN: Mapping[str, str] = {
    "SP": "sample>gl2",
    "ICKD": "channel>gl2",
    "CWD": "channel>kl4",
    "FitNet": "position>l2",
    "DIST, between classes": "logits>sample>pear",
    "DIST, within a class": "logits>class>pear",
}


def over(features_NCHW: Tensor, option: str, keep_N1HW: Tensor | None = None) -> Tensor:
    """A global transformation, [N, C, H, W]. The attention is the map's own, and has a gradient.

    Source: specification of Auto-KD, level 1.
    """
    if option == "satt":
        energy_NP = features_NCHW.abs().mean(1).flatten(1)
        share_NP = (energy_NP / ATTENTION_TEMPERATURE).softmax(1) * energy_NP.shape[1]
        return features_NCHW * share_NP.clamp_min(_EPS).sqrt().view(len(features_NCHW), 1, *features_NCHW.shape[2:])
    if option == "catt":
        energy_NC = features_NCHW.abs().mean((2, 3))
        share_NC = (energy_NC / ATTENTION_TEMPERATURE).softmax(1) * energy_NC.shape[1]
        return features_NCHW * share_NC.clamp_min(_EPS).sqrt()[:, :, None, None]
    return features_NCHW * keep_N1HW if option == "mask" and keep_N1HW is not None else features_NCHW


def within(features_NCHW: Tensor, option: str) -> Tensor:
    """An intra-spatial transformation: a smaller map, or each square of s x s positions as a channel [N, C * squares, s, s].

    Maps are filled up with zeros at the right and the bottom to a multiple of s.

    Source: specification of Auto-KD, level 2.
    """
    if option == NONE:
        return features_NCHW
    size = int(option[-1])
    height, width = features_NCHW.shape[2:]
    padded = pad(features_NCHW, (0, -width % size, 0, -height % size))
    if option.startswith("scale"):
        return max_pool2d(padded, size, size)
    squares_NCYXss = padded.unflatten(3, (-1, size)).unflatten(2, (-1, size)).transpose(3, 4)
    return squares_NCYXss.flatten(1, 3)


def rows_of(features_NCHW: Tensor, option: str) -> Tensor:
    """The vectors that are compared, [N, R, M]. Source: specification of Auto-KD, level 3."""
    if option == "sample":
        return features_NCHW.flatten(1)[:, None]
    rows_NCP = features_NCHW.flatten(2)
    return rows_NCP if option == "channel" else rows_NCP.transpose(1, 2)


def distance(student_NRM: Tensor, teacher_NRM: Tensor, option: str) -> Tensor:
    """A scalar: the mean over samples and rows, and for l1 and l2 over entries.

    The Gram matrices of gl2 are those of each sample's rows; of samples with a single row that of the batch, N x N, and then in a run of
    several processes of each process's own samples. Their rows are scaled to length 1; what is averaged over them is the sum of squares, of
    the batch's matrix the mean.

    Source: specification of Auto-KD, level 4.
    """
    if option == "l1":
        return (student_NRM - teacher_NRM).abs().mean()
    if option == "l2":
        return (student_NRM - teacher_NRM).square().mean()
    if option == "gl2":
        of_batch = student_NRM.shape[1] == 1
        if of_batch:
            student_NRM, teacher_NRM = student_NRM.transpose(0, 1), teacher_NRM.transpose(0, 1)
        student_NRR, teacher_NRR = (normalize(rows @ rows.transpose(1, 2), dim=-1, eps=_EPS) for rows in (student_NRM, teacher_NRM))
        return (student_NRR - teacher_NRR).square().sum(-1).mean() / (student_NRR.shape[1] if of_batch else 1)
    if option.startswith("kl"):
        temperature = float(option[2:])
        log_s, log_t = ((rows / temperature).log_softmax(-1) for rows in (student_NRM, teacher_NRM))
        return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    if option == "pear":
        student_NRM, teacher_NRM = (rows - rows.mean(-1, keepdim=True) for rows in (student_NRM, teacher_NRM))
    lengths_NR = student_NRM.norm(dim=-1) * teacher_NRM.norm(dim=-1)
    return (1 - (student_NRM * teacher_NRM).sum(-1) / (lengths_NR + 1e-8)).mean()


def _grammar() -> str:
    words = [f"[{'|'.join(options[1:])}>]" for options in (GLOBAL, INTRA)] + [f"{'|'.join(INTER)}>", f"[{'|'.join(NORMALISE[1:])}>]"]
    return f"{''.join(words)}{'|'.join((*DISTANCE, L1))}*WEIGHT in this order"
