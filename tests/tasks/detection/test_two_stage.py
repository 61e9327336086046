"""Faster R-CNN behind the record: its own losses and detections, targets of its two stages apart, and regions of any boxes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from stillroom.engine import Teacher
from stillroom.engine.run.layout import channels_last
from stillroom.tasks.detection.regions import region_features, region_levels
from stillroom.tasks.detection.small import faster_rcnn
from stillroom.tasks.detection.two_stage import TwoStageDetector

CLASSES = 3
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
SIZES = torch.tensor([[64, 64], [48, 60], [64, 33]])
for image, (height, width) in zip(IMAGES, SIZES.tolist(), strict=True):
    image[:, height:] = 0
    image[:, :, width:] = 0
BOXES = [torch.tensor([[4.0, 6, 22, 30], [3, 3, 60, 50], [30, 30, 42, 41]]), torch.tensor([[10.0, 20, 26, 44]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([0, 2, 1]), torch.tensor([1]), torch.zeros(0, dtype=torch.long)]
NOTHING = [torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.long)] * 3


def detector(seed: int = 0) -> TwoStageDetector:
    torch.manual_seed(seed)
    return faster_rcnn(CLASSES, stem=8, stages=(12, 16), width=16, extra=0, hidden=24)


class AsItIs(nn.Module):
    """In the place of torchvision's transform: the images are prepared already."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> tuple[ImageList, object]:
        return ImageList(torch.stack(images), [(int(h), int(w)) for h, w in SIZES.tolist()]), targets

    def postprocess(self, result: object, *sizes: object) -> object:
        return result


def theirs(made: TwoStageDetector) -> nn.Module:
    model = copy.deepcopy(made.model)
    model.transform = AsItIs()
    return model


@pytest.mark.parametrize(("boxes", "labels"), [(BOXES, LABELS), NOTHING], ids=["boxes", "none"])
def test_the_loss_is_the_models_own(boxes: list[Tensor], labels: list[Tensor]) -> None:
    made = detector().train()
    own = theirs(made)
    torch.manual_seed(7)  # both draw their samples of anchors, then of proposals
    expected = own(list(IMAGES), [{"boxes": box, "labels": label + 1} for box, label in zip(boxes, labels, strict=True)])
    torch.manual_seed(7)
    outputs = made.raw(IMAGES, SIZES)
    losses = made.task_losses(outputs, made.targets(outputs, boxes, labels))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-6)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_detections_are_the_models_own() -> None:
    made = detector().eval()
    nn.init.normal_(made.model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    with torch.no_grad():
        expected = theirs(made)(list(IMAGES))
    found = made.detect(IMAGES, SIZES)
    for own, ours in zip(expected, found, strict=True):
        assert len(ours.scores) == len(own["scores"]) > 10
        torch.testing.assert_close(ours.scores, own["scores"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.boxes, own["boxes"], rtol=1e-6, atol=1e-5)
        assert torch.equal(ours.labels, own["labels"] - 1)
        assert ours.labels.max() < CLASSES


def test_the_record_says_what_each_stage_answers() -> None:
    made = detector().eval()
    outputs = made.raw(IMAGES, SIZES)
    assert outputs.strides == (4, 8) == made.strides
    assert [tuple(level.shape) for level in outputs.features] == [(3, 16, 16, 16), (3, 16, 8, 8)]
    assert [tuple(level.shape) for level in outputs.objectness] == [(3, 16 * 16 * 6), (3, 8 * 8 * 6)]
    for proposals, (height, width) in zip(outputs.proposals, SIZES.tolist(), strict=True):
        assert 0 < len(proposals) <= 50
        assert proposals.min() >= 0
        assert (proposals.amax(0)[2:] <= torch.tensor([width, height])).all()
    asked = [torch.tensor([[2.0, 2, 20, 30]]), torch.zeros(0, 4), torch.tensor([[1.0, 1, 30, 30], [8, 8, 20, 60]])]
    regions = made.regions(outputs, asked)
    assert regions.features.shape == (3, 24)
    assert regions.logits.shape == (3, CLASSES + 1)
    assert regions.boxes.shape == regions.deltas.shape == (3, CLASSES, 4)
    assert [len(part) for part in regions.of_images(regions.logits)] == [1, 0, 2]


def test_the_first_stage_may_learn_other_boxes_than_the_second() -> None:
    made = detector().train()
    outputs = made.raw(IMAGES, SIZES)
    moved = [box + 6 for box in BOXES]

    def losses(rpn_boxes: list[Tensor] | None) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return made.task_losses(outputs, made.targets(outputs, BOXES, LABELS, rpn_boxes=rpn_boxes))

    same, other = losses(None), losses(moved)
    assert same["loss_objectness"] != other["loss_objectness"]
    assert same["loss_rpn_box_reg"] != other["loss_rpn_box_reg"]
    assert made.rpn_losses(outputs, made.targets(outputs, BOXES, LABELS)).keys() == {"loss_objectness", "loss_rpn_box_reg"}
    targets = made.targets(outputs, BOXES, LABELS, rpn_boxes=moved)
    assert targets.labels.max() == CLASSES  # background
    assert set(targets.labels.tolist()) - {CLASSES} == {0, 1, 2}  # the objects' own boxes are among the proposals


def test_it_learns_to_find_the_box_of_one_image() -> None:
    made, (image, box) = detector(1).train(), (torch.zeros(1, 3, 48, 48), torch.tensor([[12.0, 16, 30, 36]]))
    image[:, :, 16:36, 12:30] = 2
    size, label = torch.tensor([[48, 48]]), torch.tensor([1])
    optimizer = torch.optim.AdamW(made.parameters(), lr=4e-3)
    history = []
    for _ in range(40):
        outputs = made.raw(image, size)
        loss = torch.stack(list(made.task_losses(outputs, made.targets(outputs, [box], [label])).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]
    found = made.train().detect(image, size)[0]  # its BatchNorm has seen one image only
    assert found.labels[0] == 1
    torch.testing.assert_close(found.boxes[0], box[0], rtol=0, atol=3)


def test_it_goes_on_from_a_state_dict_as_if_nothing_had_been() -> None:
    def steps(made: TwoStageDetector, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            outputs = made.raw(IMAGES, SIZES)
            loss = torch.stack(list(made.task_losses(outputs, made.targets(outputs, BOXES, LABELS)).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    first = detector().train()
    optimizer = torch.optim.AdamW(first.parameters(), lr=1e-3)
    steps(first, optimizer, 1)
    second = detector(5).train()
    second.load_state_dict(first.state_dict())
    resumed = torch.optim.AdamW(second.parameters(), lr=1e-3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for made, its in ((first, optimizer), (second, resumed)):
        torch.manual_seed(11)
        steps(made, its, 2)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_as_a_teacher_it_answers_in_full_and_in_reduced_precision() -> None:
    made = detector().eval()
    with torch.no_grad():
        expected = made(IMAGES)
    full, reduced = Teacher(made, precision="fp32")(IMAGES), Teacher(made, precision="bf16")(IMAGES)
    for name in ("proposals", "logits", "boxes"):
        for own, told, rough in zip(expected[name], full[name], reduced[name], strict=True):
            torch.testing.assert_close(told, own, rtol=1e-4, atol=1e-3)
            assert rough.dtype == torch.float32
            assert rough.isfinite().all()
            assert rough.shape[1:] == own.shape[1:]
            assert len(rough) > 0
    sized = made((IMAGES, SIZES))
    assert all((part[:, 3] <= height).all() for part, height in zip(sized["proposals"], SIZES[:, 0].tolist(), strict=True))


def test_a_student_of_it_is_trained_in_the_quicker_layout() -> None:
    made = detector().train()
    with channels_last(made, IMAGES[:1]) as changed:
        outputs = made.raw(IMAGES, SIZES)
        torch.stack(list(made.task_losses(outputs, made.targets(outputs, BOXES, LABELS)).values())).sum().backward()
    assert changed
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in made.parameters())


def test_regions_are_read_from_the_level_that_suits_them() -> None:
    generator = torch.Generator().manual_seed(2)
    strides, maps = (4, 8, 16), [torch.rand(2, 5, 96 // s, 96 // s, generator=generator) for s in (4, 8, 16)]
    boxes = [torch.tensor([[3.0, 5, 20, 21], [-6, 10, 60, 70], [0, 0, 96, 96]]), torch.tensor([[40.0, 40, 52.5, 58], [10, 3, 40, 46]])]
    assert region_levels(torch.cat(boxes), 3, 24).tolist() == [0, 1, 2, 0, 0]
    assert region_levels(torch.tensor([[0.0, 0, 0, 9], [0, 0, 55.99, 56], [0, 0, 56, 56], [0, 0, 1e4, 1e4]]), 4).tolist() == [0, 0, 0, 3]
    assert region_levels(torch.tensor([[0.0, 0, 112, 112], [0, 0, 448, 448]]), 4).tolist() == [1, 3]
    found = region_features(maps, strides, boxes, 7, finest_scale=24)
    row = 0
    for image, part in enumerate(boxes):
        for box in part:
            level = int(region_levels(box[None], 3, 24))
            own = roi_align(maps[level][image : image + 1], [box[None]], 7, 1 / strides[level], aligned=True)
            torch.testing.assert_close(found[row : row + 1], own)
            row += 1
    assert region_features(maps, strides, [torch.zeros(0, 4)] * 2).shape == (0, 5, 7, 7)


def test_gradients_of_regions_reach_the_maps_that_were_read() -> None:
    maps = [torch.rand(1, 2, 12, 12, requires_grad=True), torch.rand(1, 2, 6, 6, requires_grad=True)]
    region_features(maps, (4, 8), [torch.tensor([[4.0, 4, 20, 20]])], 3, finest_scale=24).sum().backward()
    assert maps[0].grad is not None
    assert maps[0].grad.abs().sum() > 0
    assert maps[1].grad is None or maps[1].grad.abs().sum() == 0
