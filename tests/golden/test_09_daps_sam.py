"""DAPS-SAM, the sound task's front end, losses and figures against the reference vectors of ``09-daps-sam``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.methods.daps_sam.loss import cosines, feature_triplet, positives
from stillroom.methods.daps_sam.matching import SpatialAlignment
from stillroom.tasks.sound import losses, scores
from stillroom.tasks.sound.spectrogram import band_tokens, binaural_spectrogram
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def sam_block(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    count, positions, channels = inputs["embeddings"].shape
    block = SpatialAlignment(channels, (positions,), embeddings=count, heads=params["heads"], scale=params.get("scale", 1.0))
    attention = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    weights = {f"attention.{name}": inputs[name.replace(".", "_")] for name in attention}
    block.load_state_dict({"embeddings": inputs["embeddings"], "projection": inputs["projection"], **weights})
    audio = inputs["audio"].requires_grad_()
    found = block.match(audio)
    wanted = (audio, block.embeddings, block.projection)
    gradients = torch.autograd.grad((found.output_BVC * inputs["cotangent"]).sum(), wanted)
    names = ("grad_audio", "grad_embeddings", "grad_projection")
    answer = {"similarity": found.similarity_BKV, "pooled": found.pooled_BVC, "out": found.output_BVC}
    return {**answer, **dict(zip(names, gradients, strict=True))}


def triplet(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    teacher, audio = inputs["teacher"], inputs["audio"].requires_grad_()
    negatives = inputs.get("negative_index") if params["negatives"] == "adjacent" else None
    loss = feature_triplet(teacher, audio, margin=params["margin"], negative_index_BV=negatives)
    return {"positive_index": positives(cosines(teacher, audio)), **with_gradients(loss, audio=audio)}


def berhu(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    pred = inputs["pred"].requires_grad_()
    loss = losses.inverse_huber(pred, inputs["target"], inputs["valid"], threshold_ratio=params["threshold_ratio"])
    return with_gradients(loss, pred=pred)


def depth(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return scores.depth_metrics(inputs["pred"], inputs["target"], inputs["valid"])._asdict()


def depth_table(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    found, images = scores.depth_metrics_table(inputs["pred"], inputs["target"], inputs["valid"], tuple(params["clamp"]))
    return {**found._asdict(), "images": torch.tensor(images)}


def segmentation(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    counts = scores.confusion_counts(inputs["pred"], inputs["target"], params["classes"])
    return scores.segmentation_metrics(counts, params["layout_classes"])._asdict()


def reconstruction(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    surfaces = [scores.Surface(*(inputs[f"{who}_{what}"].numpy() for what in ("points", "normals"))) for who in ("pred", "true")]
    found = {name: torch.tensor(value) for name, value in scores.surface_metrics(*surfaces, params["f_threshold"])._asdict().items()}
    iou = scores.occupancy_iou(inputs["pred_occupancy"], inputs["true_occupancy"], params["occupancy_threshold"])
    return {"iou": iou, **found}


def spectrogram(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    sizes = {name: params[name] for name in ("n_fft", "win_length", "hop_length")}
    return {"magnitude": binaural_spectrogram(inputs["waveform"], **sizes)}


def tokens(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    patch = "time" if params["patch"].startswith("time") else "frequency"
    return {"tokens": band_tokens(inputs["magnitude"], patch)}  # type: ignore[arg-type]


def decode(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits = inputs["logits"].requires_grad_()
    found = losses.depth_decode(logits, params["max_depth"])
    return {"depth": found, "grad_logits": torch.autograd.grad(found, logits, inputs["cotangent"])[0]}


def occupancy(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits = inputs["logits"].requires_grad_()
    return with_gradients(losses.occupancy_loss(logits, inputs["teacher_probability"]), logits=logits)


def nine(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return {"label": scores.nine_classes(inputs["category"], params["min_share"])}


ADAPTERS = {
    "sam_block": sam_block,
    "feature_triplet": triplet,
    "inverse_huber": berhu,
    "depth_metrics": depth,
    "depth_metrics_table": depth_table,
    "segmentation_metrics": segmentation,
    "reconstruction_metrics": reconstruction,
    "binaural_spectrogram": spectrogram,
    "band_tokens": tokens,
    "depth_decode": decode,
    "occupancy_loss": occupancy,
    "nine_classes": nine,
}


@pytest.mark.parametrize("case", load_cases(HERE / "09-daps-sam.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
