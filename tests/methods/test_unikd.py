"""UniKD: what its extractors read, the boxes that they are asked about, edge cases, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_convert, box_iou

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Teacher, Training
from stillroom.engine.cache import Storage, Views, build_cache
from stillroom.engine.report.results import StageResult
from stillroom.engine.room import options_of
from stillroom.engine.run.measure import Footprint
from stillroom.engine.weights import read_weights, save_weights
from stillroom.errors import InputError
from stillroom.methods.unikd.attention import Adapter, ExtractorLayer, level_padding
from stillroom.methods.unikd.boxes import sample_boxes, trainable
from stillroom.methods.unikd.distillers import Absorb, UniKD, injected
from stillroom.methods.unikd.extractors import Extractors, Sizes, check_fits, load_extractors
from stillroom.methods.unikd.recipe import PRESETS, build, recipe
from stillroom.methods.unikd.teaching import EXACT, adapter_depth, common_strides, sizes_for, with_extractors
from stillroom.tasks.detection.backbones import SmallBackbone
from stillroom.tasks.detection.data import DetectionBatch, DetectionData
from stillroom.tasks.detection.gfl import GFL
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.scenes import CLASSES
from tests.methods.bckd_job import network
from tests.methods.unikd_job import STRIDES, adapter, answers, extractors, maps, student, train
from tests.processes import Processes

TINY = "scenes:train=16,val=8,teacher=16"
RESULT = StageResult("teacher", 0, {"AP": 20.0, "AP50": 40.0}, {}, [], Footprint(1, 1, 1.0, 1), 0.0, 0, "a detector")


@pytest.fixture(scope="module")
def data() -> DetectionData:
    return DetectionData(TINY, batch_size=8)


def batch_of(data: DetectionData) -> DetectionBatch:
    batch: DetectionBatch = next(iter(data.train_loader(seed=0)))
    return batch


def without_objects(batch: DetectionBatch) -> DetectionBatch:
    count = len(batch.ids)
    nothing = [torch.zeros(0, dtype=torch.long)] * count
    return batch._replace(boxes=[torch.zeros(0, 4)] * count, labels=nothing, crowd=nothing)


# What extractors read -------------------------------------------------------------------------------------------------------------------


def test_the_papers_extractors_have_the_papers_parameters() -> None:
    layers = [ExtractorLayer(256, 8, 5, 4) for _ in range(4)]
    count = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    assert count == pytest.approx(1.55e6, rel=0.005)  # 1.56 M in all, with what is around the layers


def test_equal_maps_cost_nothing_and_the_same_question_is_asked_of_both(data: DetectionData) -> None:
    batch, read = batch_of(data), extractors()
    told = answers(read).fresh(batch, 0)
    found = maps()((batch.images, batch.sizes))
    padding = level_padding(batch.images, batch.sizes, found)
    same = injected(read, told, found, padding, content=10, position=10)
    assert {name: float(term.detach()) for name, term in same.items()} == pytest.approx({"content": 0, "position": 0}, abs=1e-9)
    other = [level.flip(-1) for level in found]
    asked = {shared: injected(read, told, other, padding, content=10, position=10, shared=shared) for shared in (True, False)}
    assert all(float(term.detach()) > 0 for term in asked[True].values())
    assert all(not torch.isclose(asked[True][name], asked[False][name]) for name in same)  # the control asks other questions


def test_gradients_pass_through_the_frozen_extractors_into_student_and_adapter(data: DetectionData) -> None:
    distiller, batch = student(), batch_of(data)
    names = {name for name, _ in distiller.named_parameters()}
    assert {name.split(".")[0] for name in (*names, *distiller.state_dict())} == {"student", "adapter"}
    torch.stack(list(distiller.losses(batch).distill.values())).sum().backward()
    for parameter in (*distiller.adapter.parameters(), *distiller.student.backbone.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in distiller._extractors[0].parameters())


@pytest.mark.parametrize("layers", [0, 1])
def test_an_image_is_answered_in_a_padded_batch_as_it_is_alone(layers: int) -> None:
    """Of maps that tell nothing of the padding themselves, as a backbone of 1 x 1 kernels gives them."""
    torch.manual_seed(0)
    pixels, read, phi = torch.randn(1, 8, 32, 48), extractors(), adapter(layers)
    padded = torch.full((1, 8, 64, 64), 9.0)
    padded[:, :, :32, :48] = pixels
    boxes = torch.tensor([[[0.9, 0.9, 0.2, 0.3], [0.2, 0.4, 0.3, 0.5]]])
    found = []
    for images in (pixels, padded):
        sizes = torch.tensor([[32, 48]])
        levels = [torch.nn.functional.max_pool2d(images, stride) for stride in STRIDES]
        hidden = level_padding(images, sizes, levels)
        levels = phi(levels, hidden)
        for _, extractor in read.both():
            query, reference = extractor.ask(boxes, levels, hidden)
            found.append(extractor.detect(extractor.read(query, reference, levels, hidden), reference))
    for alone, beside in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-5)


def test_boxes_are_relative_to_the_unpadded_image_both_ways() -> None:
    sizes, boxes = torch.tensor([[32, 48], [64, 64]]), [torch.tensor([[12.0, 8, 36, 24]]), torch.tensor([[16.0, 16, 48, 48]])]
    relative, _ = trainable((boxes, [torch.tensor([0])] * 2), sizes)
    assert all(torch.allclose(part, torch.tensor([[0.5, 0.5, 0.5, 0.5]])) for part in relative)
    distiller = Absorb(extractors(), maps())
    distiller.student.answer = lambda batch: (torch.full((2, 1, 6), 3.0), torch.stack(relative))  # type: ignore[method-assign]
    batch = DetectionBatch(torch.zeros(2, 3, 64, 64), sizes, boxes, [torch.tensor([0])] * 2, [torch.tensor([0])] * 2, torch.arange(2))
    for found, true in zip(distiller.predict(batch), boxes, strict=True):
        torch.testing.assert_close(found.boxes[:1], true)


def test_half_precision_around_it_changes_no_offset(data: DetectionData) -> None:
    batch, read = batch_of(data), extractors()
    plain = answers(read).fresh(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = answers(read).fresh(batch, 0)
    assert all(torch.equal(plain[name], under[name]) for name in ("position_query", "position_embedding"))
    torch.manual_seed(0)
    distiller = UniKD(network(8, 3), answers(read), read, adapter(1))
    exact = distiller.losses(batch).distill
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = distiller.losses(batch).distill
    assert {name: float(term.detach()) for name, term in near.items()} == pytest.approx(
        {name: float(term.detach()) for name, term in exact.items()}, rel=0.05
    )


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


def test_nothing_grows_with_boxes_times_positions_times_classes() -> None:
    classes, objects, side = tuple(map(str, range(80))), 40, 128
    read = extractors(sizes=Sizes(STRIDES, 8, classes, queries=16, width=8, heads=2, points=2))
    torch.manual_seed(0)
    corner = torch.rand(objects, 2) * 90
    boxes = [torch.cat((corner, corner + 8 + 20 * torch.rand(objects, 2)), 1)]
    labels = [torch.randint(80, (objects,))]
    batch = DetectionBatch(
        torch.randn(1, 3, side, side), torch.tensor([[side, side]]), boxes, labels, [torch.zeros(objects)], torch.zeros(1, dtype=torch.long)
    )
    distiller = Absorb(read, maps())
    with Largest() as seen:
        distiller.losses(batch).total.backward()
        student(read).taught(batch, network(8, 3).raw(batch.images, batch.sizes), None)
    assert seen.most < objects * (side // 4) ** 2 * len(classes) / 10


# Boxes that are asked about -------------------------------------------------------------------------------------------------------------


def test_half_the_boxes_lie_near_objects_and_half_on_the_background() -> None:
    objects = torch.tensor([[0.3, 0.3, 0.3, 0.2], [0.7, 0.6, 0.2, 0.4], [0.72, 0.6, 0.3, 0.5]])
    boxes, roles = sample_boxes([objects], np.array([5]), 40)
    overlap = box_iou(box_convert(boxes[0], "cxcywh", "xyxy"), box_convert(objects, "cxcywh", "xyxy"))
    near, far = overlap[:20], overlap[20:]
    assert roles[0, :20].bincount().tolist() in ([7, 7, 6], [7, 6, 7], [6, 7, 7])  # in turn
    assert (roles[0, 20:] == -1).all()
    assert torch.equal(near.argmax(1), roles[0, :20])
    assert (near.amax(1) > 0.6).all()
    assert (far.amax(1) < 0.4).all()
    assert len(boxes[0].unique(dim=0)) == 40
    again, other = (sample_boxes([objects], np.array([seed]), 40)[0] for seed in (5, 6))
    assert torch.equal(again, boxes)
    assert not torch.equal(other, boxes)


def test_images_without_objects_and_with_more_than_can_be_asked_about() -> None:
    many = torch.cat((torch.rand(30, 2), torch.full((30, 2), 0.02)), 1)
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    boxes, roles = sample_boxes([torch.zeros(0, 4), many, whole], np.arange(3), 8)
    assert (roles[0] == -1).all()
    assert len(roles[1, :4].unique()) == 4
    assert roles[2].tolist() == [0] * 4 + [-1] * 4
    corners = box_convert(boxes, "cxcywh", "xyxy")
    assert (boxes[..., 2:] > 0).all()
    assert (corners[:, 4:] >= -1e-6).all()
    assert (corners[:, 4:] <= 1 + 1e-6).all()


def test_objects_that_are_lines_are_left_out_with_their_labels() -> None:
    boxes = torch.tensor([[4.0, 4, 4, 9], [2, 2, 12, 12], [9, 9, 5, 12], [1, 1, 1.5, 9]])
    kept, labels = trainable(([boxes], [torch.tensor([0, 1, 2, 3])]), torch.tensor([[20, 20]]))
    assert labels[0].tolist() == [1]
    torch.testing.assert_close(kept[0], torch.tensor([[0.35, 0.35, 0.5, 0.5]]))


def test_a_batch_without_objects_trains_both_stages(data: DetectionData) -> None:
    batch = without_objects(batch_of(data))
    for distiller in (Absorb(extractors(), maps()), student()):
        losses = distiller.losses(batch)
        losses.total.backward()
        assert all(bool(term.isfinite()) for term in losses.terms.values())
    assert float(losses.distill["position"].detach()) > 0  # the background teaches, too
    absorbed = Absorb(extractors(), maps()).losses(batch).task
    assert float(absorbed["content_l1"].detach()) == float(absorbed["position_giou"].detach()) == 0


# Any pair -------------------------------------------------------------------------------------------------------------------------------

SMALL_FCOS = """
from torchvision.models.detection import FCOS
from stillroom.tasks.detection.backbones import PyramidMaps, SmallBackbone
from torchvision.models.detection.anchor_utils import AnchorGenerator


def fcos(num_classes):
    maps = PyramidMaps(SmallBackbone(8, (12, 16)), 32)
    return FCOS(maps, num_classes, anchor_generator=AnchorGenerator(((4,), (8,)), ((1.0,),) * 2))
"""


@pytest.mark.parametrize(
    ("teacher", "learner", "strides", "layers"),
    [
        ("stillroom/faster-rcnn_24", "nets.py:fcos", (4, 8), 1),
        ("stillroom/deformable-detr_64", "stillroom/atss_24", (8,), 2),
        ("stillroom/gfl_24", "stillroom/rt-detr_32", (4, 8), 2),
        ("stillroom/gfl_32", "stillroom/gfl_24", (4, 8), 0),
    ],
)
def test_detectors_of_any_kinds_by_their_specifications_alone(
    teacher: str, learner: str, strides: tuple[int, ...], layers: int, data: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(SMALL_FCOS)
    torch.manual_seed(0)
    frozen, fresh = (build_detector(spec, num_classes=6).network for spec in (teacher, learner))
    told = Teacher(frozen, precision="fp32")
    assert common_strides(fresh, frozen.strides) == strides
    assert adapter_depth(fresh, type(frozen).__name__) == layers
    made = Extractors(sizes_for(told, strides, data, teacher, queries=8, width=16, heads=2, points=2))
    absorb = Absorb(made, with_extractors(told, made).maps)  # type: ignore[arg-type]
    absorb.losses(batch_of(data)).total.backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    made.save(tmp_path)
    distiller = build(fresh.train(), told, data, extractors=str(tmp_path))
    assert len(distiller.adapter.layers) == layers
    losses = distiller.losses(batch_of(data))
    assert all(bool(term.isfinite()) for term in losses.terms.values())
    torch.stack(list(losses.distill.values())).sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in fresh.parameters() if p.grad is not None) > 0


def test_detectors_without_a_common_stride_are_refused_with_both_lists() -> None:
    fine = GFL(SmallBackbone(8, (8,)), 6, width=8, extra=0, reg_max=8, convs=1, groups=8, anchor_scale=4)
    with pytest.raises(InputError, match=r"^student: got a detector with maps of strides \[4\], expected .* which has \[8, 16\]"):
        common_strides(fine, (8, 16))


def test_extractors_are_for_their_teacher_and_classes(data: DetectionData, tmp_path: Path) -> None:
    told = Teacher(network(12, 4))
    made = Extractors(sizes_for(told, STRIDES, data, "mine", queries=4, width=8, heads=2, points=2))
    made.save(tmp_path)
    again = load_extractors(tmp_path)
    assert again.sizes == made.sizes
    assert json.loads((tmp_path / "extractors.json").read_text()).keys() >= {"strides", "width", "queries", "heads", "points", "classes"}
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(made.parameters(), again.parameters(), strict=True))
    assert isinstance(build(network(8, 3), told, data, extractors=str(tmp_path)), UniKD)
    other = Teacher(network(12, 5))
    with pytest.raises(InputError, match=r"^extractors: got extractors that were trained on mine with other weights"):
        build(network(8, 3), other, data, extractors=str(tmp_path))
    assert isinstance(build(network(8, 3), other, data, extractors=str(tmp_path), any_teacher=True), UniKD)
    with pytest.raises(InputError, match=r"^extractors: got extractors for classes"):
        check_fits(made.sizes, Sizes(STRIDES, 8, CLASSES[:3]), any_teacher=True)
    with pytest.raises(InputError, match=r"^extractors: got extractors for maps of strides \[4, 8\], expected the teacher's, \[8, 16\]"):
        build(network(8, 3), Teacher(build_detector("stillroom/deformable-detr_64", num_classes=6).network), data, extractors=str(tmp_path))
    with pytest.raises(InputError, match=r"^student: got a detector with maps of strides \[8, 16\], expected one with .*\[4, 8\]"):
        build(build_detector("stillroom/deformable-detr_64", num_classes=6).network, told, data, extractors=str(tmp_path))
    with pytest.raises(InputError, match=r"^extractors: got nowhere, expected a folder with extractors.json"):
        build(network(8, 3), told, data, extractors="nowhere")
    with pytest.raises(InputError, match=r"^extractors: got None, expected a folder of extractors"):
        build(network(8, 3), told, data)


@pytest.mark.parametrize("change", [{"heads": 3}, {"queries": 0}, {"points": 0}])
def test_numbers_that_cannot_be_used(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        Extractors(Sizes(**{"strides": STRIDES, "channels": 8, "classes": CLASSES, "width": 8, "heads": 2, **change}))
    with pytest.raises(InputError, match="width"):
        Adapter(8, 6, 2, 1, heads=2)
    with pytest.raises(InputError, match="content_weight"):
        student(content_weight=-1)


# Answers on disk ------------------------------------------------------------------------------------------------------------------------


def test_a_step_of_stored_answers_is_a_step_of_the_teacher(data: DetectionData, tmp_path: Path) -> None:
    read = extractors()
    kept = build_cache(tmp_path, answers(read), data, RESULT, views=Views(2), storage=Storage("fp32"), exact=EXACT)
    shown = data.replaying(kept.views)
    batch = next(iter(shown.train_loader(seed=2)))
    assert 0 < int(batch.views.sum()) < len(batch.ids)
    told = answers(read)(batch)
    assert told.keys() == kept(batch).keys()
    for name, value in told.items():
        torch.testing.assert_close(kept(batch)[name], value, rtol=1e-5, atol=1e-5)
    online = answers(read)
    online.fresh = lambda batch, step: online(batch)  # type: ignore[method-assign]
    mine, theirs = (UniKD(network(8, 3), teacher, read, adapter()).losses(batch).terms for teacher in (kept, online))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_boxes_are_drawn_anew_in_every_step_and_stay_the_same_on_disk(data: DetectionData) -> None:
    asked, batch = answers(), batch_of(data)
    assert not torch.equal(asked.fresh(batch, 0)["position_reference"], asked.fresh(batch, 1)["position_reference"])
    assert torch.equal(asked(batch)["position_reference"], asked(batch)["position_reference"])


# Runs -----------------------------------------------------------------------------------------------------------------------------------

SHORT = ["--epochs", "1", "--teacher-epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--accelerator", "cpu"]
QUICK = [*SHORT, "--extractor-epochs", "1", "--queries", "8", "--width", "8", "--heads", "2"]
PAIR = ["--teacher", "stillroom/faster-rcnn_24", "--student", "stillroom/gfl_24"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every arm, and the answers that it kept beside it."""
    out = tmp_path_factory.mktemp("unikd")
    arms = ["--baselines", "[fitnet, content, position, unshared, untrained]", "--keep-answers", str(out / "answers")]
    assert main(["run", "unikd", "--data", TINY, *QUICK, *PAIR, *arms, "--out", str(out / "run")]) == 0
    return out


def test_the_command_ends_with_a_report_and_a_student(finished: Path) -> None:
    metrics = json.loads((finished / "run/metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", "alone", "fitnet", "content", "position", "unshared", "untrained", "unikd"]
    assert any("extractors detect with AP50" in note for note in metrics["notes"])
    assert any("answers take" in note and "maps would take" in note for note in metrics["notes"])
    assert (finished / "run/report.html").exists()
    shipped = read_weights(finished / "run")
    assert shipped.keys() == build_detector("stillroom/gfl_24", num_classes=6).network.state_dict().keys()  # nothing is added
    assert load_extractors(finished / "run/extractors").sizes.teacher == "stillroom/faster-rcnn_24"


def test_stored_answers_teach_without_the_teacher(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "unikd", "--data", TINY, *QUICK, "--teacher", f"cache:{finished / 'answers'}", "--student", "stillroom/atss_24"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert list(json.loads((tmp_path / "run/metrics.json").read_text())["summary"]) == ["teacher", "alone", "unikd"]
    assert main([*words, "--baselines", "[fitnet]", "--out", str(tmp_path / "no")]) == 2
    assert "--baselines: got fitnet, expected a teacher that is a network" in capsys.readouterr().err


def test_extractors_serve_other_students_and_comparisons(finished: Path, tmp_path: Path) -> None:
    teacher = ["--teacher", str(finished / "run/teacher"), "--accept-teacher", "true"]
    options = ["--options.unikd", json.dumps({"extractors": str(finished / "run/extractors")})]
    words = ["compare", "unikd", "--data", TINY, *SHORT, *teacher, "--student", "stillroom/atss_24", *options]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert list(json.loads((tmp_path / "run/metrics.json").read_text())["summary"]) == ["teacher", "alone", "unikd"]


GFL_24 = """
from stillroom.tasks.detection import build_detector


def five(num_classes):
    return build_detector("stillroom/gfl_24", num_classes=num_classes).network
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--baselines", "[fitnet, fitnet]"], "--baselines: got ['fitnet', 'fitnet'], expected some of fitnet, content"),
        (["--extractors", "nowhere"], "--extractors: got nowhere, expected a folder with extractors.json"),
        (["--keep-answers", "kept", "--devices", "2", "--strategy", "ddp"], "--keep-answers: got kept, expected one device"),
        (["--heads", "3"], "--heads: got 3, expected a number that divides the width, 8"),
        (["--teacher", "cache:nowhere"], "--teacher: got nowhere, which is no cache"),
        (["--teacher", "five.py:five@five.safetensors"], "expected"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("five.py").write_text(GFL_24)
    save_weights(build_detector("stillroom/gfl_24", num_classes=5).network, "five.safetensors")
    assert main(["run", "unikd", "--data", TINY, *QUICK, *PAIR, *words, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_users_own_detector_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's, from a checkpoint without any class names."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(SMALL_FCOS)
    torch.save({"model": build_detector("nets.py:fcos", num_classes=6).network.model.state_dict()}, "own.pth")
    words = ["run", "unikd", "--data", TINY, *QUICK, "--teacher", "nets.py:fcos@own.pth", "--accept-teacher", "true"]
    assert main([*words, "--student", "stillroom/gfl_24", "--out", "run"]) == 0
    assert load_extractors("run/extractors").sizes.kind == "FCOSDetector"


class Killed(Exception):
    """Stands for a kill."""


FALL_AT: dict[str, int | None] = {"Absorb": None, "UniKD": None}


class FallingAbsorb(Absorb):
    """Is killed before a step of the test's choosing."""

    def losses(self, batch: DetectionBatch) -> Losses:
        if self.progress.step == FALL_AT["Absorb"]:
            raise Killed
        return super().losses(batch)


class FallingUniKD(UniKD):
    """Is killed before a step of the test's choosing."""

    def losses(self, batch: DetectionBatch) -> Losses:
        if self.progress.step == FALL_AT["UniKD"]:
            raise Killed
        return super().losses(batch)


def fit(out: Path, data: DetectionData) -> dict[str, Tensor]:
    lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1))
    plan = Training(epochs=2, optimizer="adamw", lr=2e-3, schedule="cosine")
    made = FallingAbsorb(extractors(), maps())
    lab.fit(made, data, plan, name="extractors")
    read = made.student.extractors
    trained = lab.fit(FallingUniKD(network(8, 3), answers(read), read, adapter()), data, plan, name="unikd")
    return read_weights(trained.folder)


def test_killed_in_either_stage_and_continued_ends_with_the_same_numbers(
    data: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(tmp_path / "whole", data)
    for stage, step in (("Absorb", 1), ("Absorb", 3), ("UniKD", 2)):
        monkeypatch.setitem(FALL_AT, stage, step)
        with pytest.raises(Killed):
            fit(tmp_path / "killed", data)
        monkeypatch.setitem(FALL_AT, stage, None)
    continued = fit(tmp_path / "killed", data)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_two_processes_equal_one_in_both_stages(tmp_path: Path, processes: Processes) -> None:
    train(tmp_path / "one", 1)
    processes.on_two_ranks(train, tmp_path / "two", 2)
    for stage in ("extractors", "unikd"):
        one, two = (read_weights(tmp_path / name / "seed0" / stage) for name in ("one", "two"))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


# The paper's numbers --------------------------------------------------------------------------------------------------------------------


def test_the_papers_numbers() -> None:
    paper = PRESETS["paper"]
    assert (paper["epochs"], paper["lr"], paper["batch_size"], paper["image_size"], paper["max_size"]) == (12, 0.01, 16, 800, 1333)
    own = {name: options_of(recipe, {"lab", "data", "plan", "networks"})[name] for name in ("queries", "points", "extractor_epochs")}
    assert own == {"queries": 200, "points": 4, "extractor_epochs": 15}
    fcos = build_detector("fcos/resnet18", num_classes=80).network
    assert fcos.strides == (8, 16, 32, 64, 128)


def test_the_papers_setting_takes_steps_on_a_miniature_in_cocos_layout(tmp_path: Path) -> None:
    """As it is but for the size of the images, how many there are, and weights from the net."""
    numbers, images, marks = np.random.default_rng(0), [], []
    for i, (width, height) in enumerate([(48, 32), (32, 40), (44, 32), (32, 32), (32, 36)]):
        Image.fromarray(numbers.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "width": width, "height": height})
        marks.append({"id": i + 1, "image_id": i + 1, "category_id": 3, "bbox": [4, 4, 16, 20], "area": 320, "iscrowd": 0})
    known = [{"id": 3, "name": "car"}, {"id": 7, "name": "train"}]
    (tmp_path / "boxes.json").write_text(json.dumps({"images": images, "annotations": marks, "categories": known}))
    words = ["run", "unikd", "--preset", "paper", "--data", f"coco:{tmp_path},{tmp_path / 'boxes.json'},val=0.25", "--image-size", "32"]
    words += ["--max-size", "64", "--teacher", "gfl/resnet18", "--student", "retinanet/resnet18", "--extractor-epochs", "1", *SHORT]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    sizes = load_extractors(tmp_path / "run/extractors").sizes
    assert (sizes.strides, sizes.queries, sizes.width, sizes.heads) == ((8, 16, 32, 64, 128), 200, 256, 8)
