"""One arm of an experiment: for each category a student, trained on its good pictures; the thresholds; all of them scored together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from stillroom.engine import Distiller, Lab, Teacher, Trained, Training
from stillroom.engine.run.recorder import evaluating
from stillroom.engine.run.stage import digest
from stillroom.engine.weights import load_weights
from stillroom.tasks.anomaly.data import AnomalyData
from stillroom.tasks.anomaly.detector import Detectors, Scored
from stillroom.tasks.anomaly.maps import MapOptions
from stillroom.tasks.anomaly.scores import normal_threshold
from stillroom.tasks.anomaly.teachers import TaughtBy


def train_detectors(
    lab: Lab,
    data: AnomalyData,
    plan: Training,
    taught: TaughtBy,
    make: Callable[[Teacher], Distiller],
    *,
    name: str,
    maps: MapOptions,
    quantile: float,
    description: Mapping[str, Any],
    label: str,
) -> Trained:
    """Trains a student for each category, keeps each one's epoch of the least distance on held-out pictures, makes the thresholds with
    these very weights, and scores all on the test pictures.

    Args:
        lab: where and how to run.
        data: of all categories.
        plan: how each student is trained.
        taught: the teacher.
        make: a distiller around a fresh student and the frozen teacher.
        name: the arm's.
        maps: how anomaly maps are made.
        quantile: of the scores of held-out good pictures, the threshold.
        description: see `Detectors`.
        label: what the student is, for the report.

    Returns:
        A stage whose network is a `Detectors`; its curves are the means over the categories.
    """
    teacher = taught.teacher(lab.options.torch_precision, compile=lab.options.teacher_compile)
    fits, students = [], []
    for category, called in enumerate(data.classes):
        normal = data.of_category(category)
        distiller = make(teacher)
        distiller.plan = plan
        fit = lab.fit(distiller, distiller.training_data(normal), plan, name=f"{name}-{_plain(called)}", model=f"{label} ({called})")
        assert fit.network is not None
        load_weights(fit.network, fit.folder / "best.safetensors")
        fits.append(fit)
        students.append(fit.network)
    detectors = Detectors(taught.extractor, students, maps, taught.renormalise, {**description, "quantile": quantile}).eval()
    key = f"{digest(detectors.state_dict())} {data.fingerprint} {asdict(maps)} {quantile}"
    made = lab.remember(f"{name}-thresholds", key, lambda: {"thresholds": thresholds(detectors, data, quantile, lab.device)})
    detectors.thresholds.copy_(made["thresholds"])
    scored = lab.evaluate(detectors, data, name=name, model=label, around=Scored)
    results = [fit.result for fit in fits]
    history = [_mean(rows) for rows in zip(*(result.history for result in results), strict=True)]
    result = replace(
        scored.result,
        history=history,
        seconds=sum(result.seconds for result in results),
        epochs=plan.epochs,
        resumed=sum(result.resumed for result in results),
    )
    note = f"{name}: taught by {taught.said}. Maps: {maps.said(data.image_size)}."
    return replace(scored, result=result, notes=(note,))


def thresholds(detectors: Detectors, data: AnomalyData, quantile: float, device: torch.device) -> Tensor:
    """For each category the quantile of the scores of its held-out good pictures, float32 [categories]; nothing else is looked at."""
    found = []
    detectors.to(device)
    with evaluating(detectors):
        for category in range(len(data.classes)):
            loader = data.of_category(category).eval_loader()
            scores = torch.cat([detectors(batch.images.to(device), category)[1].cpu() for batch in loader])
            found.append(normal_threshold(scores.numpy(), quantile))
    detectors.cpu()
    return torch.tensor(found)


def _mean(rows: tuple[dict[str, float], ...]) -> dict[str, float]:
    """Of the categories' records of an epoch."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def _plain(name: str) -> str:
    """A category's name as part of a folder's."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
