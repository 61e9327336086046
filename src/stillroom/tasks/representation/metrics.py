"""How good features are: weighted k-NN, few-label k-NN and a linear probe where there are labels; whether they collapsed, always.

All of it is measured on features of unchanged images: those of `bank` training images, and of the validation images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from stillroom.engine.distributed import gather_samples, gathered
from stillroom.engine.loading import sample_order
from stillroom.engine.report.results import Metric

METRICS = {
    "knn": Metric("k-NN", "%", 1, True),
    "knn5": Metric("k-NN top-5", "%", 1, True),
    "few": Metric("k-NN, few labels", "%", 1, True),
    "linear": Metric("linear probe", "%", 1, True),
    "spread": Metric("spread of features", "", 3),
    "rank": Metric("effective rank", "", 1),
    "entropy": Metric("entropy of the mean answer", "%", 1),
}
NEIGHBOURS = 5  # that the report shows
_ROWS = 1024  # validation images that are compared with the bank at a time
_SAMPLED = 2048  # images whose features' rank is taken
_PROBE_STEPS = 100
_PROBE_DECAY = 1e-4


@dataclass(frozen=True)
class Protocol:
    """How features are scored.

    Args:
        neighbours: k of the weighted k-NN.
        temperature: T; a neighbour's vote is exp(cosine / T).
        few_labels: labelled images of each class of the few-label k-NN.
        few_neighbours: its k.
        draws: sets of labelled images that it is the mean over.
        primary: which figure decides: knn, few or linear.
    """

    neighbours: int = 20
    temperature: float = 0.07
    few_labels: int = 5
    few_neighbours: int = 5
    draws: int = 40
    primary: str = "knn"

    def said(self) -> str:
        """For people."""
        return (
            f"k-NN: k = {self.neighbours}, T = {self.temperature:g}; few labels: {self.few_labels} of each class, "
            f"k = {self.few_neighbours}, mean over {self.draws} draws; linear probe: "
            f"logistic regression on frozen features of unchanged images"
        )


class Embedded(NamedTuple):
    """What `predict` may answer with instead of features alone.

    Attributes:
        features: [B, D].
        logits: of the answer whose entropy tells of a collapse, [B, K]: over prototypes, say. Nothing but the sum of their softmax over
            images is kept, since K may be large.
    """

    features: Tensor
    logits: Tensor


def votes(similarities_QK: Tensor, labels_QK: Tensor, num_classes: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Each class's score, the sum of exp(cosine / T) over its neighbours, [Q, C] float64, and the classes by score, int64 [Q, C].

    Classes are ranked with the smaller one first where scores are equal. One without a neighbour has no vote: -1 stands in its place.

    Args:
        similarities_QK: cosines of the k neighbours of each query.
        labels_QK: their classes.
    """
    exponents_QK = similarities_QK.double() / temperature
    top_Q1 = exponents_QK.max(1, keepdim=True).values
    zero_QC = exponents_QK.new_zeros(len(labels_QK), num_classes)
    scaled_QC = zero_QC.scatter_add(1, labels_QK, (exponents_QK - top_Q1).exp())  # never overflows, whatever T is
    voted_QC = zero_QC.scatter(1, labels_QK, 1.0) > 0
    order_QC = torch.where(voted_QC, scaled_QC, -1.0).sort(dim=1, descending=True, stable=True).indices
    return scaled_QC * top_Q1.exp(), torch.where(voted_QC.gather(1, order_QC), order_QC, -1)


def weighted_knn(
    bank_MD: Tensor, labels_M: Tensor, queries_QD: Tensor, num_classes: int, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Weighted k-NN: scores [Q, C] and ranked classes [Q, C] of `votes` among the k most similar rows of the bank.

    Args:
        bank_MD, queries_QD: features of any length; their directions count.
        labels_M: classes of the bank's rows.
        k: as many rows as there are, at most.

    Source: Wu et al. 2018, section 3.4, with the temperature of Caron et al. 2021 (DINO).
    """
    similarities_QM = unit(queries_QD) @ unit(bank_MD).T
    best_QK, places_QK = similarities_QM.topk(min(k, len(bank_MD)), dim=1)
    return votes(best_QK, labels_M[places_QK], num_classes, temperature)


def unit(features_BD: Tensor) -> Tensor:
    """Features of length 1, float32; of a zero row a zero row."""
    return normalize(features_BD.float(), dim=1, eps=1e-12)


def few_label_draws(labels_M: np.ndarray, num_classes: int, count: int, draws: int) -> list[np.ndarray]:
    """Sets of `count` images of each class (all of a class that has fewer), indices into the bank; always the same ones."""
    found = []
    for draw in range(draws):
        order = sample_order(draw, 0, len(labels_M))
        chosen = [order[labels_M[order] == label][:count] for label in range(num_classes)]
        found.append(np.sort(np.concatenate(chosen)))
    return found


def linear_probe(bank_MD: Tensor, labels_M: Tensor, queries_QD: Tensor, num_classes: int) -> Tensor:
    """Classes int64 [Q] by a multinomial logistic regression on standardised frozen features; L-BFGS from zero, so that nothing is random.

    The protocol of the literature trains the layer by SGD on augmented crops; this is the same layer at its optimum on unchanged images.
    """
    mean_D, std_D = bank_MD.mean(0), bank_MD.std(0, correction=0).clamp_min(1e-6)
    bank_MD, queries_QD = (bank_MD - mean_D) / std_D, (queries_QD - mean_D) / std_D
    weight_CD = torch.zeros(num_classes, bank_MD.shape[1], device=bank_MD.device, requires_grad=True)
    bias_C = torch.zeros(num_classes, device=bank_MD.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_CD, bias_C], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(bank_MD @ weight_CD.T + bias_C, labels_M) + _PROBE_DECAY * weight_CD.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # which computes gradients also where they are switched off, as in evaluation
    return (queries_QD @ weight_CD.detach().T + bias_C.detach()).argmax(1)


def spread(features_BD: Tensor) -> float:
    """Standard deviation of unit features over images, mean over dimensions, times sqrt(D): 1 for directions that are spread evenly, 0
    where all images have one feature."""
    return float(unit(features_BD).std(0, correction=0).mean() * math.sqrt(features_BD.shape[1]))


def effective_rank(features_BD: Tensor) -> float:
    """exp of the entropy of the centred unit features' variances along their principal axes: dimensions that are in use.

    Source: Roy and Vetterli 2007.
    """
    rows = unit(features_BD)[:_SAMPLED]
    rows = rows - rows.mean(0)
    gram = rows.T @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.T
    variances = torch.linalg.eigvalsh(gram.double()).clamp_min(0)
    if not float(variances.sum()) > 1e-9:
        return 1.0
    shares = variances / variances.sum()
    return float(torch.special.entr(shares).sum().exp())


def relative_entropy(mean_K: Tensor) -> float:
    """Entropy of a mean answer, in % of ln K: 100 where all K are used alike, 0 where all images have one answer."""
    return 100 * float(torch.special.entr(mean_K).sum()) / math.log(len(mean_K))


class RepresentationEvaluator:
    """Collects features over the bank and the validation images, in one process or many, and scores them (see `METRICS`).

    An image with a feature that is no number has a zero feature, and counts as wrong.

    Args:
        bank_labels: classes of the bank's images, int64 [M]; batch ids below M are theirs.
        val_labels: of the validation images, int64 [V], whose batch ids are M .. M + V - 1.
        num_classes: C; below 2 there is nothing to score, and the features' effective rank is the primary figure.
        protocol: how they are scored.
    """

    higher_is_better = True

    def __init__(self, bank_labels: np.ndarray, val_labels: np.ndarray, num_classes: int, protocol: Protocol) -> None:
        self.bank_labels, self.val_labels, self.num_classes, self.protocol = bank_labels, val_labels, num_classes, protocol
        self.scored = num_classes > 1
        self.primary = protocol.primary if self.scored else "rank"
        self.device = torch.device("cpu")
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._answers: Tensor | None = None  # sum over the validation images
        self._found: tuple[dict[str, float], dict[str, np.ndarray]] | None = None

    def to(self, device: torch.device | str) -> RepresentationEvaluator:
        """Where features are compared."""
        self.device = torch.device(device)
        return self

    def update(self, answers: Tensor | Embedded, batch: Any) -> None:
        """Add a batch: features [B, D], or `Embedded`, of the images of its `ids`."""
        features = answers.features if isinstance(answers, Embedded) else answers
        if isinstance(answers, Embedded):
            sums_K = answers.logits[batch.ids >= len(self.bank_labels)].detach().float().softmax(1).sum(0, dtype=torch.float64)
            self._answers = sums_K if self._answers is None else self._answers + sums_K
        self._rows.append((batch.ids.cpu(), features.detach().float().cpu()))
        self._found = None

    def compute(self) -> dict[str, float]:
        """The figures, over all processes; all of them must call it."""
        return self._all()[0]

    def details(self) -> dict[str, np.ndarray]:
        """Of each validation image: `ids` (from 0), `neighbours` int64 and `similarities` float32 [V, 5] in the bank; where there are
        labels, `labels` and the k-NN's `predicted`; where another score decides, what each image contributes to it, `outcome`."""
        return self._all()[1]

    def _all(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        if self._found is None:
            ids, features = gather_samples(self._rows)
            features_ND = torch.from_numpy(features).to(self.device)
            sound_N = features_ND.isfinite().all(1)
            features_ND = torch.where(sound_N[:, None], features_ND, 0.0)
            in_bank = torch.from_numpy(ids < len(self.bank_labels)).to(self.device)
            figures, details = self._measured(features_ND[in_bank], features_ND[~in_bank], ids, sound_N[~in_bank])
            figures |= {"spread": spread(features_ND[~in_bank]), "rank": effective_rank(features_ND[~in_bank])}
            answers = [one for one in gathered(None if self._answers is None else self._answers.cpu()) if one is not None]
            if answers:
                figures["entropy"] = relative_entropy(torch.stack(answers).sum(0) / len(self.val_labels))
            self._found = figures, details
        return self._found

    def _measured(
        self, bank_MD: Tensor, queries_QD: Tensor, ids: np.ndarray, sound_Q: Tensor
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        bank_ids = ids[ids < len(self.bank_labels)]
        val_ids = ids[ids >= len(self.bank_labels)] - len(self.bank_labels)
        labels_M = torch.from_numpy(self.bank_labels[bank_ids]).to(self.device)
        labels_Q = torch.from_numpy(self.val_labels[val_ids]).to(self.device)
        protocol, classes = self.protocol, self.num_classes
        draws = few_label_draws(self.bank_labels[bank_ids], classes, protocol.few_labels, protocol.draws) if self.scored else []
        unit_MD, unit_QD = unit(bank_MD), unit(queries_QD)
        ranked: list[Tensor] = []
        nearest, few = [], []
        for rows_qD, labels_q in zip(unit_QD.split(_ROWS), labels_Q.split(_ROWS), strict=True):
            similarities_qM = rows_qD @ unit_MD.T
            best, places = similarities_qM.topk(min(max(protocol.neighbours, NEIGHBOURS), len(unit_MD)), dim=1)
            nearest.append((places[:, :NEIGHBOURS].cpu(), best[:, :NEIGHBOURS].cpu()))
            if not self.scored:
                continue
            k = protocol.neighbours
            ranked.append(votes(best[:, :k], labels_M[places[:, :k]], classes, protocol.temperature)[1])
            right_q = torch.zeros(len(labels_q), dtype=torch.float64, device=self.device)
            for drawn in draws:
                drawn_L = torch.from_numpy(drawn).to(self.device)
                best, places = similarities_qM[:, drawn_L].topk(min(protocol.few_neighbours, len(drawn_L)), dim=1)
                _, order = votes(best, labels_M[drawn_L][places], classes, protocol.temperature)
                right_q += order[:, 0] == labels_q
            few.append(100 * right_q / len(draws))
        places, similarities = (torch.cat(column).numpy() for column in zip(*nearest, strict=True))
        details: dict[str, np.ndarray] = {"ids": val_ids, "neighbours": bank_ids[places], "similarities": similarities}
        if not self.scored:
            return {}, details
        order_QC = torch.where(sound_Q[:, None], torch.cat(ranked), -1)
        right_Q5 = order_QC[:, :5] == labels_Q[:, None]
        probed_Q = linear_probe(bank_MD, labels_M, queries_QD, classes) == labels_Q
        figures = {"knn": right_Q5[:, 0], "knn5": right_Q5.any(1), "linear": sound_Q & probed_Q}
        if classes <= 5:
            del figures["knn5"]
        found = {name: 100 * float(right_Q.double().mean()) for name, right_Q in figures.items()}
        few_Q = torch.cat(few)
        found["few"] = float(few_Q.mean())
        details |= {"labels": labels_Q.cpu().numpy(), "predicted": order_QC[:, 0].cpu().numpy()}
        contributed = {"few": few_Q, "linear": 100.0 * figures["linear"]}
        if protocol.primary in contributed:
            details["outcome"] = contributed[protocol.primary].double().cpu().numpy()
        return found, details
