"""The rounds of WAD: what the teacher says is asked, the student trained, the most reliable images promoted, and so on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine import Lab, Trained, Training
from stillroom.engine.run.recorder import evaluating, seed_everything
from stillroom.engine.run.stage import digest
from stillroom.engine.run.written import write_atomic
from stillroom.methods.wad.distiller import WAD
from stillroom.methods.wad.knowledge import knowledge, promoted_share, reliable, unit_rows
from stillroom.methods.wad.networks import Encoder
from stillroom.methods.wad.pool import Pool, RoundData
from stillroom.tasks.classification import ImageData


@dataclass(frozen=True)
class Rounds:
    """How the rounds go.

    Args:
        iterations: steps of an epoch; a round has as many epochs as its plan.
        rounds: R; there are R + 1 rounds, of which the last two promote nothing.
        promote: alpha0, the share of the unlabelled images that promotions start from; 0 for none at all.
        power: of the promoted share's fall.
        views: random views whose projections are averaged for each image; 0 for the image as it is.
        weighted: use the weights; otherwise hard pseudo-labels, w = 1.
    """

    iterations: int = 1500
    rounds: int = 5
    promote: float = 0.1
    power: float = 2.0
    views: int = 1
    weighted: bool = True


@dataclass(frozen=True)
class RoundLog:
    """What a round was told and what it promoted: images by their numbers in the pool, int64, and of the unlabelled ones, in order,

    Attributes:
        unlabelled: which they are.
        labels: pseudo-labels.
        weights: float32, as the teacher gave them.
        promoted: which of them the round promoted, most reliable first.
    """

    unlabelled: Tensor
    labels: Tensor
    weights: Tensor
    promoted: Tensor


def train_in_rounds(
    lab: Lab,
    pool: Pool,
    encoder: Encoder,
    views: nn.Module,
    student: nn.Module,
    plan: Training,
    how: Rounds,
    *,
    name: str = "round",
    model: str = "",
) -> tuple[Trained, list[RoundLog]]:
    """Trains a student in R + 1 rounds; each is a stage of its own, with a fresh optimiser and the last one's student.

    What the teacher said and whom a round promoted are kept in the run's folder: a run that goes on, on another machine even, goes on
    from the very same numbers.

    Args:
        lab: where and how to run.
        pool: the images.
        encoder: the teacher, trained.
        views: random views for its knowledge.
        student: from images to logits.
        plan: of each round.
        how: see `Rounds`.
        name: of the stages, before their number.
        model: the student's specification.

    Returns:
        The last round, with the history and the time of all; and each round's log.
    """
    labelled, unlabelled = torch.from_numpy(pool.labelled), torch.from_numpy(pool.unlabelled)
    labels_N, weights_N = torch.zeros(pool.data.train_size, dtype=torch.int64), torch.ones(pool.data.train_size)
    labels_N[labelled] = pool.data.train_labels[labelled]
    teacher = digest(encoder.state_dict())
    stages: list[Trained] = []
    logs: list[RoundLog] = []
    for number in range(1, how.rounds + 2):
        images = digest({"labels": labels_N, "labelled": labelled, "unlabelled": unlabelled})
        ask = partial(_told, encoder, pool, views, how.views, lab.device, (lab.seed, number), labelled, unlabelled, labels_N)
        told = lab.remember(f"{name}{number}/knowledge", f"{teacher} {images} {pool.data.fingerprint} {views} {how.views}", ask)
        labels_N[unlabelled], weights_N[unlabelled] = told["labels"], told["weights"] if how.weighted else 1.0
        data = RoundData(pool.data, labelled.numpy(), unlabelled.numpy(), how.iterations, number)
        trained = lab.fit(WAD(student, labels_N.clone(), weights_N.clone()), data, plan, name=f"{name}{number}", model=model)
        assert trained.network is not None
        stages.append(trained)
        student = trained.network
        share = promoted_share(number, start=how.promote, rounds=how.rounds, power=how.power)
        choose = partial(_promoted, student, pool, lab.device, unlabelled, told["labels"], share)
        key = f"{digest(student.state_dict())} {images} {digest({'labels': told['labels']})} {share}"
        promoted = lab.remember(f"{name}{number}/promoted", key, choose)
        logs.append(RoundLog(unlabelled, told["labels"], told["weights"], promoted["ids"]))
        labelled = torch.cat((labelled, promoted["ids"]))
        unlabelled = unlabelled[~torch.isin(unlabelled, promoted["ids"])]
    return _joined(stages, pool.data.evaluator().primary), logs


def write_labels(path: Path, data: ImageData, logs: list[RoundLog]) -> None:
    """Writes a table of the unlabelled images: what the teacher said of each when it was last asked, and the round that promoted it."""
    rows: dict[int, list[Any]] = {}
    for number, log in enumerate(logs, 1):
        for image, label, weight in zip(log.unlabelled.tolist(), log.labels.tolist(), log.weights.tolist(), strict=True):
            rows[image] = [data.train_name(image), data.classes[label], f"{weight:.4f}", ""]
        for image in log.promoted.tolist():
            rows[image][-1] = number
    text = io.StringIO()
    csv.writer(text).writerows([["image", "pseudo-label", "weight", "promoted in round"], *(rows[image] for image in sorted(rows))])
    write_atomic(path, text.getvalue())


def _told(
    encoder: Encoder,
    pool: Pool,
    views: nn.Module,
    count: int,
    device: torch.device,
    seeds: tuple[int, ...],
    labelled: Tensor,
    unlabelled: Tensor,
    labels_N: Tensor,
) -> dict[str, Tensor]:
    """The teacher's pseudo-labels and weights (stage 2), for the labelled images as memory."""
    features_ND = projections(encoder, pool.data, views, count, device, seeds)
    said = knowledge(features_ND[unlabelled], features_ND[labelled], labels_N[labelled], pool.data.num_classes)
    return {"labels": said.labels, "weights": said.weights}


def _promoted(
    student: nn.Module, pool: Pool, device: torch.device, unlabelled: Tensor, labels_U: Tensor, share: float
) -> dict[str, Tensor]:
    """Whom a round promotes (stage 4); the student is not asked where that is nobody."""
    if not int(share * len(unlabelled)):
        return {"ids": unlabelled[:0]}
    logits_NC = answers(student, pool.data, device)
    return {"ids": reliable(logits_NC[unlabelled], unlabelled, labels_U, unlabelled, share)[0]}


def projections(encoder: Encoder, data: ImageData, views: nn.Module, count: int, device: torch.device, seeds: tuple[int, ...]) -> Tensor:
    """The teacher's features of all training images, in the order of their numbers, float32 [N, D] on the CPU; no gradient.

    Args:
        encoder: in eval mode here, whatever its mode is.
        data: the images.
        views: random views, drawn anew for each image.
        count: views whose projections, of length 1, are averaged [inferred]; the paper has one. 0: the image as it is.
        device: where to compute.
        seeds: of the views.
    """
    parts = []
    with evaluating(encoder), _placed(encoder, device), torch.random.fork_rng():
        for number, batch in enumerate(data.train_eval_loader()):
            pixels = encoder.pixels(batch.inputs.to(device))
            seed_everything(*seeds, number)
            if count == 1:
                found = encoder.project(views(pixels))
            elif count:
                found = torch.stack([unit_rows(encoder.project(views(pixels))) for _ in range(count)]).mean(0)
            else:
                found = encoder.project(pixels)
            parts.append(found.float().cpu())
    return torch.cat(parts)


def answers(student: nn.Module, data: ImageData, device: torch.device) -> Tensor:
    """The student's logits of all training images, in eval mode, in the order of their numbers, float32 [N, C] on the CPU."""
    with evaluating(student), _placed(student, device):
        return torch.cat([student(batch.inputs.to(device)).float().cpu() for batch in data.train_eval_loader()])


@contextmanager
def _placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    module.to(device)
    try:
        yield
    finally:
        module.cpu()


def _joined(stages: list[Trained], primary: str) -> Trained:
    """The last stage, with the epochs and seconds of all, and the best epoch of all."""
    history: list[dict[str, float]] = []
    best: dict[str, float] = {}
    for result in (stage.result for stage in stages):
        epochs, seconds = (history[-1]["epoch"], history[-1]["seconds"]) if history else (0.0, 0.0)
        history += [{**row, "epoch": epochs + row["epoch"], "seconds": seconds + row["seconds"]} for row in result.history]
        if not best or result.best[primary] > best[primary]:
            best = {**result.best, "epoch": epochs + result.best["epoch"]}
    seconds = sum(stage.result.seconds for stage in stages)
    return replace(stages[-1], result=replace(stages[-1].result, history=history, seconds=seconds, epochs=len(history), best=best))
