"""Multimodal distillation, its samplers, measures and layout transformer against the reference vectors of ``20-mm-ego``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.engine.schedule import linear_factor
from stillroom.methods.mm_ego.ensemble import (
    combined,
    equal_weights,
    held_out_weights,
    losses_of_teachers,
    present_weights,
    weights_of_losses,
)
from stillroom.methods.mm_ego.loss import distillation_term
from stillroom.tasks.video import sampling
from stillroom.tasks.video.audio import MelSpectrogram, segments
from stillroom.tasks.video.layout import STLT, Boxes
from stillroom.tasks.video.scores import accuracy, all_right, calibration_error, over_views
from stillroom.tasks.video.supervised import label_term
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def by_head(inputs: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """What is named ``kind_HEAD``, by head."""
    return {name.removeprefix(f"{kind}_"): value for name, value in inputs.items() if name.startswith(f"{kind}_")}


def distillation_loss(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student = {head: logits.requires_grad_() for head, logits in by_head(inputs, "student").items()}
    weights = {head: settings["weight"] for head, settings in params["heads"].items()}
    kl = distillation_term(student, by_head(inputs, "teacher"), weights, params["temperature"])
    labels = label_term(student, by_head(inputs, "labels"), weights)
    total = params["weight_distillation"] * kl + params["weight_ground_truth"] * labels
    answer = with_gradients(total, **{f"student_{head}": logits for head, logits in student.items()})
    return answer | {"kl": kl.detach(), "ground_truth": labels.detach()}


def teacher_ensemble(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    answers: dict[str, Tensor] = {}
    gamma = params["weights_temperature"]
    for head, logits in by_head(inputs, "teachers").items():
        labels = inputs[f"labels_{head}"]
        if params["scheme"] == "uniform":
            weights = equal_weights(logits.shape[1])
        elif params["scheme"] == "per-sample":
            weights = weights_of_losses(losses_of_teachers(logits, labels), gamma)
        else:
            weights = held_out_weights(logits, labels, gamma)
        answers |= {f"weights_{head}": weights, f"ensemble_{head}": combined(logits, weights)}
    return answers


def ensemble_present(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    weights = present_weights(inputs["weights"], inputs["present"])
    return {"weights_used": weights, "ensemble": combined(inputs["teachers"], weights)}


def expected_calibration_error(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return {"ece": torch.tensor(calibration_error(inputs["logits"], inputs["labels"], params["bins"]))}


def multi_view_accuracy(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits = {head: over_views(values) for head, values in by_head(inputs, "logits").items()}
    labels = by_head(inputs, "labels")
    verb, noun = (accuracy(logits[head], labels[head]) for head in ("VERB", "NOUN"))
    action = 100 * all_right(logits, labels).float().mean()
    found = {"verb_top1": verb.top1, "verb_top5": verb.top5, "noun_top1": noun.top1, "action_top1": float(action)}
    return {name: torch.tensor(round(value, 2)) for name, value in found.items()}


def accuracy_report(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    found = accuracy(over_views(inputs["logits"]), inputs["labels"])
    return {name: torch.tensor(value) for name, value in found._asdict().items()}


def test_frame_indices(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    sampler = "uniform" if params["uniform"] else "dense"
    found = sampling.test_frames(params["video_length"], params["num_frames"], params["clips"], sampler, params["stride"])
    return {"indices": torch.from_numpy(found)}


test_frame_indices.__test__ = False  # type: ignore[attr-defined]  # an adapter


def train_bounds(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    low, high = sampling.segment_bounds(params["video_length"], params["num_frames"])
    return {"low": torch.from_numpy(low), "high": torch.from_numpy(high)}


def inference_crops(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return {"crops": torch.stack(sampling.cropped(inputs["image"], params["size"], params["crops"]))}


def audio_segments(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return {"segments": segments(inputs["waveform"][0], params["segment_length"], params["centres"])}


def log_mel(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    size = params.pop("size")
    front = MelSpectrogram(**params)
    return {"mel": front.power(inputs["waveform"]), "image": front.picture(inputs["waveform"], size)}


def lr_factor(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    steps = params["total_steps"]
    return {"factor": torch.tensor([linear_factor(step, params["warmup_steps"], steps) for step in range(steps + 2)])}


def stlt(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    weights = {name.removeprefix("w_"): value for name, value in inputs.items() if name.startswith("w_")}
    head = next(name for name in weights if name.startswith("classifiers_") and name.endswith("_weight"))
    head_name = head.removeprefix("classifiers_").removesuffix("_weight")
    network = STLT(
        {head_name: len(weights[head])},
        params["hidden"],
        params["heads"],
        (params["spatial_layers"], params["temporal_layers"]),
        params["frames"],
        eps=(params["layer_norm_eps_embeddings"], params["layer_norm_eps_transformer"]),
    )
    network.load_state_dict({name: weights[name.replace(".", "_")] for name in network.state_dict()})
    categories = inputs["class_labels"].masked_fill(inputs["padding"].bool(), 0)
    seen = Boxes(categories, inputs["bboxes"], inputs["scores"], inputs["sides"], inputs["states"])
    return {"logits": network.eval()(seen.packed())[head_name].detach()}


ADAPTERS = {
    "distillation_loss": distillation_loss,
    "teacher_ensemble": teacher_ensemble,
    "ensemble_present": ensemble_present,
    "expected_calibration_error": expected_calibration_error,
    "multi_view_accuracy": multi_view_accuracy,
    "accuracy_report": accuracy_report,
    "test_frame_indices": test_frame_indices,
    "train_bounds": train_bounds,
    "inference_crops": inference_crops,
    "audio_segments": audio_segments,
    "log_mel": log_mel,
    "lr_factor": lr_factor,
    "stlt": stlt,
}


@pytest.mark.parametrize("case", load_cases(HERE / "20-mm-ego.npz"), ids=str)
def test_reference_vectors(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
