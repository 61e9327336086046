"""MemKD: its memory, losses and students against what the specification says of them, and its experiment from the outside."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import stillroom
from stillroom.cli import main
from stillroom.engine import Losses, Teacher, Training, tap
from stillroom.engine.loading import Together
from stillroom.engine.weights import load_weights, read_weights, save_weights
from stillroom.errors import InputError
from stillroom.methods.memkd import MemKD, NRMemory
from stillroom.methods.memkd.arms import ARMS, named_arms
from stillroom.methods.memkd.data import EXEMPLARS, NORMAL
from stillroom.methods.memkd.loss import memorisation_loss, over_memories
from stillroom.methods.memkd.memory import embedding_distances, read
from stillroom.methods.memkd.networks import build
from stillroom.tasks.anomaly import AnomalyData, Extractor, build_teacher
from stillroom.tasks.anomaly.detector import Detectors
from stillroom.tasks.anomaly.maps import MapOptions, blurred
from stillroom.tasks.anomaly.preparation import Preparation
from stillroom.tasks.images.batches import Batch
from stillroom.tasks.images.classifiers import build_classifier
from tests.methods import memkd_job
from tests.methods.memkd_job import LEVELS, Levels
from tests.processes import Processes
from tests.tasks.anomaly.miniatures import picture

TINY = "textures:category=wood+stone,train=10,test=5"
FAST = [
    "--teacher", "stillroom/resnet8_stride8", "--random-teacher", "true", "--epochs", "2", "--iterations", "2", "--batch-size", "4",
    "--exemplars", "4", "--slots", "5", "--accelerator", "cpu",
]  # fmt: skip


# Memory and losses ----------------------------------------------------------------------------------------------------------------------


def test_a_zero_query_reads_the_mean_of_the_values() -> None:
    memory = NRMemory(4, 6)
    read_out = memory(torch.zeros(1, 4, 2, 2))
    torch.testing.assert_close(read_out[0, :, 0, 0], memory.values.mean(0))


def test_one_slot_is_read_everywhere() -> None:
    memory = NRMemory(3, 1)
    assert (memory(torch.randn(2, 3, 2, 5)) - memory.values[0][:, None, None]).abs().max() < 1e-6


def test_a_memory_reads_in_float32_whatever_is_around_it() -> None:
    query, addresses, values = torch.randn(1, 4, 3, 3), torch.randn(5, 4), torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert read(query.bfloat16(), addresses, values).dtype == torch.float32
        torch.testing.assert_close(read(query, addresses, values), read(query.double(), addresses, values).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"temperature": 0.0}])
def test_a_memory_of_wrong_numbers_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        NRMemory(4, **wrong)
    with pytest.raises(InputError, match="channels"):
        NRMemory(4)(torch.zeros(1, 5, 2, 2))


def described(variant: str, between: str, **more: Any) -> dict[str, Any]:
    levels = LEVELS[: 3 if variant == "forward" else 4]
    return {"variant": variant, "levels": levels, "family": "small", "between": between, "slots": 5, "temperature": 1.0, **more}


def batch_of(count: int) -> Batch:
    return Batch(torch.randn(count, 3, 64, 64), torch.zeros(count, dtype=torch.int64), torch.arange(count))


@pytest.mark.parametrize("variant", ["forward", "reverse"])
def test_students_answer_in_their_teacher_s_shapes(variant: str) -> None:
    images = torch.randn(2, 3, 64, 64)
    features = Levels()(images)
    for family in ("small", "resnet18"):
        for between in ("nothing", "copy", "memory"):
            student = build(described(variant, between, family=family))
            assert [one.shape for one in student.levels(images, features)] == [one.shape for one in features[:3]]
            assert [one.shape for one in student(images)] == [one.shape for one in features[:3]]
    copied, recalled = (
        sum(p.numel() for name, p in build(described(variant, between)).named_parameters() if "memory" not in name)
        for between in ("copy", "memory")
    )
    assert copied == recalled  # the control of capacity
    assert [level for _, level in build(described(variant, "memory")).memories()] == ([0, 1] if variant == "forward" else [3, 2, 1])


def test_a_bottleneck_student_is_a_resnet_50() -> None:
    student = build({**described("forward", "nothing"), "levels": [(256, 4), (512, 8), (1024, 16)], "family": "resnet50"})
    from torchvision.models import resnet50

    whole = resnet50(weights=None)
    parts = [whole.conv1, whole.bn1, whole.layer1, whole.layer2, whole.layer3]
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for part in parts for p in part.parameters())


@pytest.mark.parametrize("variant", ["forward", "reverse"])
def test_each_loss_reaches_what_it_should(variant: str) -> None:
    distiller = MemKD(build(described(variant, "memory")), Teacher(Levels()))
    distiller.train()
    losses = distiller.losses(Together({NORMAL: batch_of(3), EXEMPLARS: batch_of(2)}))
    assert list(losses.distill) == ["kd", "nm", "orth"]
    parts = {"keys": "keys", "values": "values", "network": "stages"}
    reached = {}
    for name, term in losses.distill.items():
        gradients = torch.autograd.grad(term, list(distiller.parameters()), allow_unused=True, retain_graph=True)
        names = {n for (n, _), g in zip(distiller.named_parameters(), gradients, strict=True) if g is not None and g.abs().sum() > 0}
        reached[name] = {part for part, word in parts.items() if any(word in n for n in names)}
    assert reached == {"kd": {"keys", "values", "network"}, "nm": {"values"}, "orth": {"keys", "values"}}
    assert not any("teacher" in name for name in distiller.state_dict())
    assert {name.split(".")[-1] for name in distiller.state_dict() if "memory" in name} == {"keys", "values"}


@pytest.mark.parametrize("variant", ["forward", "reverse"])
@pytest.mark.parametrize("family", ["small", "resnet50"])
def test_values_in_a_stage_s_weights_are_what_is_recalled_beside_its_map(variant: str, family: str) -> None:
    levels = [(8 * channels, stride) for channels, stride in LEVELS[: 3 if variant == "forward" else 4]]
    student = build({**described(variant, "memory", family=family), "levels": levels}).eval()
    images = torch.randn(2, 3, 64, 64)
    features = [torch.randn(2, channels, 64 // stride, 64 // stride) for channels, stride in levels]
    places: list[Any] = list(student.recalling)
    assert all(place.folds for place in places)  # five slots, more channels
    answers: list[list[Tensor]] = []
    for folds in (True, False):
        for place in places:
            place.folds = folds
        maps = student.levels(images, features)
        gradients = torch.autograd.grad([one.square().mean() for one in maps], list(student.parameters()))
        answers.append([*maps, *gradients])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.detach().abs().max()))


def test_distances_of_what_the_values_read_are_those_of_the_read_out() -> None:
    features, values = torch.randn(2, 6, 3, 5, dtype=torch.float64).relu(), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    features[0, :, 0, 0] = 0
    both = memorisation_loss([read(features, values, values, 0.5)], [features]), over_memories([embedding_distances(features, values, 0.5)])
    torch.testing.assert_close(*both)
    torch.testing.assert_close(*(torch.autograd.grad(loss, values)[0] for loss in both))


def test_a_student_that_is_its_teacher_has_no_distance() -> None:
    teacher = Teacher(Levels())
    student = build(described("forward", "nothing"))
    student.levels = lambda images, features: tuple(features[:3])  # type: ignore[method-assign]
    for kd in ("positions", "flat", "squared"):
        distiller = MemKD(student, teacher, kd=kd)  # type: ignore[arg-type]
        assert distiller.predict(batch_of(2)).abs().max() < 1e-5


def test_what_only_training_reads_is_not_run_to_score() -> None:
    network = build_classifier("stillroom/resnet8_stride8", num_classes=2, image_size=64).network.eval()
    images = torch.randn(2, 3, 64, 64)
    teacher = Extractor(network, ["stem", "layer1", "layer2", "layer3"], images).eval()
    levels = [[level.channels, level.stride] for level in teacher.levels]
    student = build({**described("forward", "memory"), "levels": levels}).eval()
    detectors = Detectors(teacher, [student], MapOptions(), None, {}).eval()
    asked = len(teacher(images)), len(detectors.features(images))
    assert asked == (4, 3)
    teacher.network.get_submodule("layer3").register_forward_hook(lambda *_: pytest.fail("the last layer was run"))
    assert detectors(images)[1].isfinite().all()


@pytest.mark.parametrize("wrong", [{"nm_weight": -0.1}, {"orth_weight": -1.0}, {"exemplars": 0}])
def test_wrong_weights_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        MemKD(build(described("forward", "memory")), Teacher(Levels()), **wrong)


def test_weights_without_memories_are_no_memkd_student_s(tmp_path: Path) -> None:
    save_weights(build(described("forward", "copy")), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="memory"):
        load_weights(build(described("forward", "memory")), tmp_path / "w.safetensors")


def test_the_reverse_variant_wants_halving_levels() -> None:
    with pytest.raises(InputError, match="twice the stride"):
        build({**described("reverse", "memory"), "levels": [(4, 4), (6, 8), (8, 8), (10, 16)]})


def test_arms_are_named() -> None:
    assert list(named_arms("dup+memkd")) == ["dup", "memkd"]
    for wrong in ("memkd+nothing", "plain+plain"):
        with pytest.raises(InputError, match="arms"):
            named_arms(wrong)
    assert ARMS["rd4ad"].kd == "flat"


# What is shown --------------------------------------------------------------------------------------------------------------------------


def shown(**options: Any) -> Any:
    distiller = MemKD(build(described("forward", "memory")), Teacher(Levels()), **options)
    return distiller.training_data(AnomalyData(TINY, batch_size=4).of_category(0))


def test_exemplars_are_good_pictures_in_an_order_of_their_own() -> None:
    data = shown(exemplars=3)
    assert len(data.train_loader(seed=0)) == 2  # eight pictures
    steps = [batch for _ in range(2) for batch in data.train_loader(seed=0)]
    assert {len(batch[EXEMPLARS].ids) for batch in steps} <= {3, 2}
    first = [torch.cat([batch[name].ids for batch in data.train_loader(seed=0)]).tolist() for name in (NORMAL, EXEMPLARS)]
    assert sorted(first[0]) == list(range(8))
    assert first[0][: len(first[1])] != first[1]


def test_a_fixed_set_is_shown_in_every_step() -> None:
    loader = shown(exemplars=3, fixed=True).train_loader(seed=0)
    sets = {tuple(sorted(batch[EXEMPLARS].ids.tolist())) for _ in range(2) for batch in loader}
    assert len(sets) == 1


def test_fewer_pictures_than_exemplars_are_all_shown_and_said(caplog: pytest.LogCaptureFixture) -> None:
    data = shown(exemplars=16)
    assert "8 normal pictures: all of them are the exemplars" in caplog.text
    assert {len(batch[EXEMPLARS].ids) for batch in data.train_loader(seed=0)} == {8}


def test_an_epoch_is_so_many_steps_at_most() -> None:
    assert [len(shown(iterations=n).train_loader(seed=0)) for n in (1, 2, 9, None)] == [1, 2, 2, 2]


# The teacher ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["timm/resnet18", "torchvision/mobilenet_v3_small", "stillroom/resnet8_stride16", "stillroom/resnet20"])
def test_levels_are_found_in_any_classifier(spec: str) -> None:
    data = AnomalyData(TINY, image_size=64)
    taught = build_teacher(spec, data, None, 3, random=True, trust_pickle=False)
    strides = [level.stride for level in taught.extractor.levels]
    assert strides == ([1, 2, 4] if spec == "stillroom/resnet20" else [4, 8, 16])
    images = data.example_inputs()
    folded: Any = taught.teacher("fp32", compile=False)(images)
    with torch.no_grad():
        for one, other in zip(folded, taught.extractor.eval()(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        (f"{Path(__file__).parents[2] / 'experiments/efficientnet_lite0.py'}:build", ("_blocks.2", "_blocks.4", "_blocks.10")),
        ("timm/resnet18", ("layer1", "layer2", "layer3")),
        ("timm/tf_efficientnet_lite0", ("blocks.1", "blocks.2", "blocks.4")),
    ],
)
def test_levels_are_the_ends_of_stages(spec: str, layers: tuple[str, ...]) -> None:
    taught = build_teacher(spec, AnomalyData(TINY, image_size=64), None, 3, random=True, trust_pickle=False)
    assert taught.extractor.layers == layers


def test_what_is_behind_the_last_layer_is_left_out() -> None:
    network = build_classifier("stillroom/resnet8_stride16", num_classes=2, image_size=64).network
    images = torch.randn(1, 3, 64, 64)
    _, features = tap(network.eval(), "layer1", "layer2")(images)
    extractor = Extractor(network, ["layer1", "layer2"], images).eval()
    assert not [name for name, _ in extractor.named_parameters() if "layer3" in name or "fc" in name]
    for one, name in zip(extractor(images), ("layer1", "layer2"), strict=True):
        torch.testing.assert_close(one, features[name])
    (first,) = extractor(images, 1)
    torch.testing.assert_close(first, features["layer1"])
    traced = extractor.traced(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(traced(torch.cat([images] * 3))[1][:1], features["layer2"], rtol=1e-4, atol=1e-4)


def test_a_teacher_without_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "run",
        "memkd",
        "--data",
        TINY,
        "--teacher",
        "stillroom/resnet8_stride8",
        "--teacher-data",
        "null",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(words) == 2
    assert "--random-teacher" in capsys.readouterr().err
    network = build_classifier("stillroom/resnet8_stride8", num_classes=2).network
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    save_weights(network, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match=r"not a number|not finite"):
        build_teacher(
            f"stillroom/resnet8_stride8@{tmp_path / 'nan.safetensors'}", AnomalyData(TINY), None, 3, random=False, trust_pickle=False
        )


# The experiment -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, two arms."""
    out = tmp_path_factory.mktemp("memkd") / "run"
    assert main(["run", "memkd", "--data", TINY, *FAST, "--quantile", "1", "--out", str(out)]) == 0
    return out


def test_a_report_has_a_row_for_each_category_and_the_mean(run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())
    assert list(found["summary"]) == ["plain", "memkd"]
    assert found["primary"] == "image_auroc"
    page = (run / "report.html").read_text()
    for words in (
        "By category",
        "wood, memkd",
        "mean, plain",
        "The worst mistakes",
        "Scores and ROC",
        "level by level",
        "blur of 2 of 64 pixels",
    ):
        assert words in page
    with np.load(run / "seed0/memkd/details.npz") as details:
        each = [float(details["image_auroc"][details["category"] == k][0]) for k in (0, 1)]
    assert found["summary"]["memkd"]["metrics"]["image_auroc"]["mean"] == pytest.approx(np.mean(each))
    assert [len(stage["history"]) for stage in found["stages"]["memkd"]] == [2]


def test_the_threshold_is_of_held_out_good_pictures_and_of_the_shipped_weights(run: Path) -> None:
    student: Any = stillroom.load(run)
    data = AnomalyData(TINY)
    for k in (0, 1):
        scores = torch.cat([student.network(batch.images, k)[1].detach() for batch in data.of_category(k).eval_loader()])
        assert student.thresholds()[k] == pytest.approx(float(scores.max()), rel=1e-4)


def test_predict_writes_a_table_and_heat_maps(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = AnomalyData(TINY)
    for k, name in enumerate(data.classes):
        (tmp_path / "new" / name).mkdir(parents=True)
        data.val_image(10 * k + 6).resize((100, 60)).save(tmp_path / "new" / name / "x.png")
    shutil.copy(tmp_path / "new" / "wood" / "x.png", tmp_path / "new" / "wood" / "x.bmp")
    assert main(["predict", str(run), str(tmp_path / "new"), "--out", str(tmp_path / "maps")]) == 0
    with (tmp_path / "maps" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["category"] for row in rows) == ["stone", "wood", "wood"]
    assert len({row["map"] for row in rows}) == 3
    for row in rows:
        assert Image.open(row["map"]).size == (100, 60)
        assert int(row["anomalous"]) == (float(row["score"]) > float(row["threshold"]))
    capsys.readouterr()
    picture(0).save(tmp_path / "lone.png")
    assert main(["predict", str(run), str(tmp_path / "lone.png")]) == 2
    assert "--category" in capsys.readouterr().err
    assert main(["predict", str(run), str(tmp_path / "lone.png"), "--category", "wood", "--json", "--out", str(tmp_path / "m")]) == 0
    assert json.loads(capsys.readouterr().out)["category"] == "wood"


@pytest.mark.parametrize("place", [".", "stone"])
def test_the_exported_file_answers_with_raw_scores(run: Path, place: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(run / place), "--out", str(tmp_path / "x.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    student: Any = stillroom.load(run / place)
    assert json.loads(metadata["thresholds"]) == pytest.approx(student.thresholds())
    images = next(iter(AnomalyData(TINY).eval_loader())).images[:3]
    maps, scores = session.run(["map", "score"], {"images": images.numpy()})
    with torch.no_grad():
        wanted_maps, wanted = student.network(images, 0)
    shown = (maps, scores) if place != "." else (maps[:, 0], scores[:, 0])
    np.testing.assert_allclose(shown[0], wanted_maps.numpy(), atol=1e-4)
    np.testing.assert_allclose(shown[1], wanted.numpy(), atol=1e-4)
    assert ("threshold" in metadata) == (place != ".")


class Bright(nn.Module):
    """A detector that takes what is bright for anomalous."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.tensor([2.0]))

    def forward(self, images: Tensor, category: int) -> tuple[Tensor, Tensor]:
        maps_BSS = blurred(images.mean(1) + 3, 2.0)
        return maps_BSS, maps_BSS.amax((1, 2))


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("size", [(100, 60), (60, 100)])
def test_a_defect_peaks_where_it_is(run: Path, tmp_path: Path, fit: str, size: tuple[int, int]) -> None:
    """In the written picture, whatever its shape; what the network was not shown is said."""
    student: Any = stillroom.load(run)
    student = replace(student, network=Bright(), preparation=Preparation(64, fit), categories=("bolt",))
    pixels = np.array(picture(5, size))
    y, x = size[1] // 2 - 6, size[0] // 2 + 9
    pixels[y - 4 : y + 4, x - 4 : x + 4] = 255
    Image.fromarray(pixels).save(tmp_path / "bolt.png")
    (found,) = student.predict([tmp_path / "bolt.png"], unreadable=print, out=tmp_path / "maps")
    heat = np.asarray(Image.open(found.map_file)).astype(int)
    assert heat.shape == pixels.shape
    unseen = (heat == [70, 70, 110]).all(-1)
    assert unseen.mean() == pytest.approx(0.4 if fit == "crop" else 0.0, abs=0.03)
    hottest = np.argwhere(np.where(unseen, -1, heat.sum(-1)) == heat.sum(-1)[~unseen].max()).mean(0)
    assert np.abs(hottest - [y, x]).max() <= 3


def test_good_pictures_alone_make_a_model_a_threshold_and_maps(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    for i in range(8):
        picture(i).save(tmp_path / "good" / f"{i}.png")
    out = tmp_path / "run"
    words = ["run", "memkd", "--data", f"good:{tmp_path / 'good'}", *FAST, "--arms", "memkd", "--image-size", "64"]
    assert main([*words, "--out", str(out)]) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert found["primary"] == "discrepancy"
    assert not {"image_auroc", "aupro", "found"} & set(found["summary"]["memkd"]["metrics"])
    assert "diverged" not in found["headline"]
    assert any("nothing says what this finds" in note for note in found["notes"])
    assert main(["predict", str(out), str(tmp_path / "good"), "--out", str(tmp_path / "maps")]) == 0
    assert len(list((tmp_path / "maps").glob("*_map.png"))) == 8


def test_no_supervised_arm_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "supervised", "--task", "anomaly"]) == 2
    assert main(["cache", "--task", "anomaly", "--data", TINY]) == 2
    assert main(["compare", "memkd"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert "a student for each category" in lines[2]


@pytest.mark.parametrize("arms", ["stfpm+memkd", "rd4ad+dup"])
def test_published_methods_are_arms(arms: str, tmp_path: Path) -> None:
    words = ["run", "memkd", "--data", "textures:category=wood,train=10,test=5", *FAST, "--teacher", "timm/resnet10t", "--epochs", "1"]
    more = ["--variant", "reverse"] if "rd4ad" in arms else []
    assert main([*words, "--arms", arms, *more, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())["summary"]
    assert list(summary) == arms.split("+")


def student_of(out: Path) -> dict[str, Tensor]:
    return read_weights(out / "seed0/memkd/student.safetensors")


def test_two_processes_end_with_the_student_of_one(tmp_path: Path, processes: Processes) -> None:
    memkd_job.main(tmp_path / "1", 1)
    processes.on_two_ranks(memkd_job.main, tmp_path / "2", 2)
    one, two = student_of(tmp_path / "1"), student_of(tmp_path / "2")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_a_killed_training_ends_with_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memkd_job.main(tmp_path / "whole", 1)
    steps, losses = iter(range(100)), MemKD.losses

    def dying(self: MemKD, batch: Any) -> Losses:
        if next(steps) == 6:
            raise MemoryError("killed")
        return losses(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(MemKD, "losses", dying)
        with pytest.raises(MemoryError):
            memkd_job.main(tmp_path / "half", 1)
    assert (tmp_path / "half/seed0/memkd/last.ckpt").exists()
    memkd_job.main(tmp_path / "half", 1)
    whole, half = student_of(tmp_path / "whole"), student_of(tmp_path / "half")
    assert all(torch.equal(half[name], value) for name, value in whole.items())


def test_the_same_seed_gives_the_same_numbers(run: Path, tmp_path: Path) -> None:
    assert main(["run", "memkd", "--data", TINY, *FAST, "--quantile", "1", "--out", str(tmp_path / "again")]) == 0
    one, other = (json.loads((place / "metrics.json").read_text())["summary"] for place in (run, tmp_path / "again"))
    assert one["memkd"]["metrics"] == other["memkd"]["metrics"]


def test_options_of_training_reach_the_students() -> None:
    plan = Training(epochs=2, optimizer="adam", lr=1e-3)
    assert ARMS["stfpm"].training(plan).lr == 0.4
    assert ARMS["memkd"].training(plan) is plan
    assert replace(plan, **(ARMS["rd4ad"].plan or {})).momentum == 0.5
