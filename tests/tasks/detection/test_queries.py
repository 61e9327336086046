"""The DETR family behind the record: the models' own losses and detections, matches, denoising, and classes that are added."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torchvision.ops import box_convert

from stillroom.engine import Teacher
from stillroom.engine.run.layout import channels_last
from stillroom.errors import InputError
from stillroom.tasks.detection.detr import DeformableDetrDetector, DetrDetector, RTDetrDetector, grow_classes
from stillroom.tasks.detection.detr_models import rt_detr
from stillroom.tasks.detection.queries import QueryDetector
from stillroom.tasks.detection.small import SMALL

CLASSES, QUERIES = 3, 10
FAMILIES = ["detr", "deformable", "two-stage", "rt-detr"]
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
SIZES = torch.tensor([[64, 64], [48, 60], [64, 33]])
for image, (height, width) in zip(IMAGES, SIZES.tolist(), strict=True):
    image[:, height:] = 0
    image[:, :, width:] = 0
BOXES = [torch.tensor([[4.0, 6, 22, 30], [3, 3, 60, 50], [30, 30, 42, 41]]), torch.tensor([[10.0, 20, 26, 44]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([0, 2, 1]), torch.tensor([1]), torch.zeros(0, dtype=torch.long)]
NOTHING = [torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.long)] * 3
_TINY = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
_WIDTHS = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}


def detector(family: str, *, queries: int = QUERIES, auxiliary: bool = True, seed: int = 0) -> QueryDetector:
    torch.manual_seed(seed)
    if family == "rt-detr":
        resnet = transformers.RTDetrResNetConfig(**_TINY, out_features=["stage1", "stage2"])
        made = rt_detr(
            resnet,
            CLASSES,
            **_WIDTHS,
            feat_strides=[4, 8],
            encoder_hidden_dim=32,
            decoder_in_channels=[32] * 2,
            num_feature_levels=2,
            encode_proj_layers=[1],
            decoder_layers=2,
            num_queries=queries,
            num_denoising=8,
            hidden_expansion=0.5,
        )
        made.model.config.auxiliary_loss = auxiliary
        return made
    layers = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": queries, "num_labels": CLASSES, "dropout": 0.0}
    common: dict[str, Any] = {**_WIDTHS, **layers, "auxiliary_loss": auxiliary}
    if family == "detr":
        resnet = transformers.ResNetConfig(**_TINY, out_features=["stage2"])
        return DetrDetector(transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=resnet, **common)))
    resnet = transformers.ResNetConfig(**_TINY, out_features=["stage1", "stage2"])
    refined = {"with_box_refine": family in ("refined", "two-stage")}
    staged = {"two_stage": True, "two_stage_num_proposals": queries} if family == "two-stage" else {}
    config = transformers.DeformableDetrConfig(backbone_config=resnet, num_feature_levels=3, **common, **refined, **staged)
    return DeformableDetrDetector(transformers.DeformableDetrForObjectDetection(config))


def pixel_mask() -> Tensor:
    mask = torch.zeros(3, 64, 64, dtype=torch.long)
    for part, (height, width) in zip(mask, SIZES.tolist(), strict=True):
        part[:height, :width] = 1
    return mask


def their_labels(made: QueryDetector, boxes: list[Tensor], labels: list[Tensor]) -> list[dict[str, Tensor]]:
    """In transformers' form: relative to the image, or for RT-DETR, which sees no padding, to the batch."""
    sizes = [[64, 64]] * 3 if isinstance(made, RTDetrDetector) else SIZES.tolist()
    found = []
    for box, label, (height, width) in zip(boxes, labels, sizes, strict=True):
        scaled = box_convert(box, "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
        found.append({"class_labels": label, "boxes": scaled})
    return found


@pytest.mark.parametrize(("boxes", "labels"), [(BOXES, LABELS), NOTHING], ids=["boxes", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_models_own(family: str, boxes: list[Tensor], labels: list[Tensor]) -> None:
    made = detector(family).train()
    own = copy.deepcopy(made.model)
    torch.manual_seed(7)  # RT-DETR draws noise
    expected = own(IMAGES, pixel_mask=pixel_mask(), labels=their_labels(made, boxes, labels))
    torch.manual_seed(7)
    outputs = made.raw(IMAGES, SIZES, (boxes, labels))
    losses = made.task_losses(outputs, made.targets(outputs, boxes, labels))
    named = {name: value for name, value in expected.loss_dict.items() if "cardinality" not in name}  # which is no loss
    assert losses.keys() == named.keys()
    assert ("loss_vfl_dn_0" in losses) == (family == "rt-detr" and len(boxes[0]) > 0)
    for name, value in named.items():
        weight = 1 if family == "rt-detr" else {"ce": 1, "bbox": 5, "giou": 2}[name.split("_")[1]]
        torch.testing.assert_close(losses[name], weight * value, rtol=2e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    total = torch.stack(list(losses.values())).sum()
    torch.testing.assert_close(total, expected.loss, rtol=2e-6, atol=1e-6)
    total.backward()
    expected.loss.backward()
    wanted = dict(own.named_parameters())
    for name, parameter in made.model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), f"{name}: other processes would wait for it"
        gradient = torch.zeros_like(parameter) if wanted[name].grad is None else wanted[name].grad
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", FAMILIES)
def test_without_auxiliary_losses_the_last_layer_alone_is_trained(family: str) -> None:
    made = detector(family, auxiliary=False).train()
    torch.manual_seed(7)
    expected = made.model(IMAGES, pixel_mask=pixel_mask(), labels=their_labels(made, BOXES, LABELS))
    torch.manual_seed(7)
    outputs = made.raw(IMAGES, SIZES, (BOXES, LABELS))
    losses = made.task_losses(outputs, made.targets(outputs, BOXES, LABELS))
    assert len(losses) == 3
    total = torch.stack(list(losses.values())).sum()
    torch.testing.assert_close(total, expected.loss, rtol=2e-6, atol=1e-6)
    total.backward()
    assert all(parameter.grad is not None for parameter in made.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_detections_are_the_models_own(family: str) -> None:
    made = detector(family).eval()
    for layer in made.class_layers():
        torch.nn.init.normal_(layer.weight, std=0.5)
    with torch.no_grad():
        outputs = made.model(IMAGES, pixel_mask=pixel_mask())
    kind = {"detr": "Detr", "rt-detr": "RTDetr"}.get(family, "DeformableDetr")
    processor = getattr(transformers, f"{kind}ImageProcessor")()
    sizes = torch.full((3, 2), 64) if family == "rt-detr" else SIZES
    expected = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    for own, ours in zip(expected, made.detect(IMAGES, SIZES), strict=True):
        order = own["scores"].argsort(descending=True, stable=True)[: len(ours.scores)]
        assert len(ours.scores) >= QUERIES
        torch.testing.assert_close(ours.scores, own["scores"][order], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.boxes, own["boxes"][order], rtol=1e-5, atol=1e-4)
        assert torch.equal(ours.labels, own["labels"][order])
        assert ours.labels.max() < CLASSES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_record_holds_queries_maps_and_matches(family: str) -> None:
    made = detector(family).train()
    outputs = made.raw(IMAGES, SIZES, (BOXES, LABELS))
    strides = {"detr": (8,), "rt-detr": (4, 8)}.get(family, (4, 8, 16))
    assert made.strides == outputs.strides == strides
    assert [tuple(level.shape) for level in outputs.features] == [(3, 32, 64 // s, 64 // s) for s in strides]
    assert [tuple(layer.shape) for layer in outputs.queries] == [(3, QUERIES, 32)] * 2  # denoising queries are cut off
    assert [tuple(layer.shape) for layer in outputs.logits] == [(3, QUERIES, CLASSES + (family == "detr"))] * 2
    assert [tuple(layer.shape) for layer in outputs.boxes] == [(3, QUERIES, 4)] * 2
    matches = made.targets(outputs, BOXES, LABELS).matches[""]
    assert [sorted(objects.tolist()) for _, objects in matches] == [[0, 1, 2], [0], []]
    answers = made((IMAGES, SIZES))
    assert {name: len(layers) for name, layers in answers.items()} == {"logits": 2, "boxes": 2, "queries": 2}


def test_queries_that_are_perfect_are_matched_and_cost_nothing_in_boxes() -> None:
    made = detector("deformable").eval()
    torch.nn.init.normal_(made.model.model.query_position_embeddings.weight)  # else all look at the same place
    outputs = made.raw(IMAGES, SIZES)
    boxes = [layer.detach()[[4, 1]] for layer in outputs.boxes[-1]]
    labels = [torch.tensor([0, 2])] * 3
    targets = made.targets(outputs, boxes, labels)
    for queries, objects in targets.matches[""]:
        assert dict(zip(objects.tolist(), queries.tolist(), strict=True)) == {0: 4, 1: 1}
    losses = made.task_losses(outputs, targets)
    assert losses["loss_bbox"] < 1e-4
    assert losses["loss_giou"] < 1e-4


@pytest.mark.parametrize("name", ["rt-detr_48", "deformable-detr_64"])
def test_it_learns_to_find_the_box_of_one_image(name: str) -> None:
    torch.manual_seed(1)
    made, image, box = SMALL[name](CLASSES).train(), torch.zeros(2, 3, 48, 48), torch.tensor([[12.0, 16, 30, 36]])
    image[:, :, 16:36, 12:30] = 2
    size, boxes, labels = torch.tensor([[48, 48]] * 2), [box] * 2, [torch.tensor([1])] * 2
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)
    history = []
    for _ in range(40):
        outputs = made.raw(image, size, (boxes, labels))
        loss = torch.stack(list(made.task_losses(outputs, made.targets(outputs, boxes, labels)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.4 * history[0]
    found = made.detect(image, size)[0]  # still in train mode: its BatchNorm has seen one image only
    assert found.labels[0] == 1
    torch.testing.assert_close(found.boxes[0], box[0], rtol=0, atol=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_added_classes_leave_the_old_ones_as_they_are(family: str) -> None:
    made = detector(family).eval()
    before = made.raw(IMAGES, SIZES)
    shared = len({id(layer.weight) for layer in made.class_layers()})
    grow_classes(made, 5)
    after = made.raw(IMAGES, SIZES)
    assert made.num_classes == made.model.config.num_labels == 5
    assert len({id(layer.weight) for layer in made.class_layers()}) == shared
    new, old = after.logits[0], before.logits[0]
    assert new.shape[-1] == 5 + (family == "detr")
    torch.testing.assert_close(new[..., :3], old[..., :3])
    if family == "detr":
        torch.testing.assert_close(new[..., -1], old[..., -1])  # "no object" stays the last
    assert (new[..., 3:5] < -3).all()
    made.train()
    boxes, labels = [BOXES[0]] * 3, [torch.tensor([4, 0, 3])] * 3
    outputs = made.raw(IMAGES, SIZES, (boxes, labels))
    losses = made.task_losses(outputs, made.targets(outputs, boxes, labels))
    torch.stack(list(losses.values())).sum().backward()
    assert all(layer.weight.grad is not None for layer in made.class_layers()[:2])
    own = made.model(IMAGES, pixel_mask=pixel_mask(), labels=their_labels(made, boxes, labels))
    assert own.loss.isfinite()
    with pytest.raises(InputError, match="num_classes: got 5, expected more than the detector's 5"):
        grow_classes(made, 5)


def test_a_grown_embedding_of_noised_classes_keeps_its_padding_row() -> None:
    made = detector("rt-detr")
    embedding = made.class_layers()[-1]
    assert isinstance(embedding, torch.nn.Embedding)
    before = embedding.weight.detach().clone()
    grow_classes(made, 7)
    assert embedding.padding_idx == 7
    assert torch.equal(embedding.weight[:3], before[:3])
    assert torch.equal(embedding.weight[7], before[3])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_goes_on_from_a_state_dict_as_if_nothing_had_been(family: str) -> None:
    def steps(made: QueryDetector, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            outputs = made.raw(IMAGES, SIZES, (BOXES, LABELS))
            loss = torch.stack(list(made.task_losses(outputs, made.targets(outputs, BOXES, LABELS)).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    first = detector(family).train()
    optimizer = torch.optim.AdamW(first.parameters(), lr=1e-3)
    steps(first, optimizer, 1)
    second = detector(family, seed=5).train()
    second.load_state_dict(first.state_dict())
    resumed = torch.optim.AdamW(second.parameters(), lr=1e-3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for made, its in ((first, optimizer), (second, resumed)):
        torch.manual_seed(11)
        steps(made, its, 1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_as_a_teacher_it_answers_in_full_and_in_reduced_precision(family: str) -> None:
    made = detector(family).eval()
    with torch.no_grad():
        expected = made((IMAGES, SIZES))
    full, reduced = Teacher(made, precision="fp32")((IMAGES, SIZES)), Teacher(made, precision="bf16")((IMAGES, SIZES))
    for name, layers in expected.items():
        for own, told, rough in zip(layers, full[name], reduced[name], strict=True):
            torch.testing.assert_close(told, own, rtol=1e-4, atol=1e-3)
            assert rough.dtype == torch.float32
            assert rough.shape == own.shape
            assert rough.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_it_is_trained_in_the_quicker_layout_or_keeps_its_own(family: str) -> None:
    made = detector(family).train()
    with channels_last(made, IMAGES[:1]):
        outputs = made.raw(IMAGES, SIZES, (BOXES, LABELS))
        torch.stack(list(made.task_losses(outputs, made.targets(outputs, BOXES, LABELS)).values())).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters() if parameter.grad is not None)


def test_padding_does_not_change_what_a_masked_detector_says() -> None:
    made = detector("deformable").eval()
    alone = IMAGES[1:2, :, :48, :60]
    wide = torch.zeros(1, 3, 64, 64)
    wide[:, :, :48, :60] = alone
    size = torch.tensor([[48, 60]])
    once, padded = made.raw(alone, size), made.raw(wide, size)
    assert once.frames.tolist() == padded.frames.tolist() == [[48, 60]]
    torch.testing.assert_close(once.boxes[-1], padded.boxes[-1], rtol=0, atol=1.0)


def test_images_too_small_for_the_queries_are_refused_in_one_line() -> None:
    made = detector("rt-detr", queries=50)
    with pytest.raises(InputError, match="16 x 16 pixels, on which this RT-DETR has 20 places"):
        made.raw(torch.zeros(1, 3, 16, 16), torch.tensor([[16, 16]]))


def test_boxes_that_are_not_finite_end_in_a_loss_that_is_not() -> None:
    made = detector("deformable").train()
    with torch.no_grad():
        made.model.bbox_embed[-1].layers[-1].bias[0] = math.nan
    outputs = made.raw(IMAGES, SIZES)
    losses = made.task_losses(outputs, made.targets(outputs, BOXES, LABELS))
    assert losses["loss_bbox"].isnan()
