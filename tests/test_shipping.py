"""Every finished stage of a run, of whatever arm and seed, is a network that can be loaded, exported, asked, and used as a teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import stillroom
from stillroom.cli import main
from stillroom.engine.weights import read_weights, save_weights
from stillroom.errors import InputError
from stillroom.tasks.classification import Loaded, build_classifier

SMALL = ["--data", "digits", "--epochs", "2", "--subset", "60", "--val-subset", "40", "--batch-size", "20", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of kd with itself, with two seeds; nothing in it is changed."""
    out = tmp_path_factory.mktemp("shipping") / "cmp"
    options = ["--options.soft", "{temperature: 2}", "--seeds", "2", "--out", str(out)]
    assert main(["compare", "kd", "soft=kd", *SMALL, *options]) == 0
    return out


def loaded(run: Path, **which: object) -> Loaded:
    found = stillroom.load(run, **which)  # type: ignore[arg-type]
    assert isinstance(found, Loaded)
    return found


def same(network: torch.nn.Module, file: Path) -> bool:
    weights, own = read_weights(file), network.state_dict()
    return weights.keys() == own.keys() and all(torch.equal(weights[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("arm", "seed", "stage"),
    [("teacher", None, "teacher"), ("alone", 1, "seed1/alone"), ("kd", 0, "seed0/kd"), ("soft", 1, "seed1/kd,temperature=2")],
)
def test_any_arm_is_loaded_with_its_own_weights(compared: Path, arm: str, seed: int | None, stage: str) -> None:
    for student in (loaded(compared, arm=arm, seed=seed), loaded(compared / stage)):
        assert same(student.network, compared / stage / "student.safetensors")
        assert student.classes == tuple(str(digit) for digit in range(10))
        assert student.card.model == ("stillroom/convnet24" if arm == "teacher" else "stillroom/convnet4")


def test_the_best_epoch_is_loaded_where_it_is_asked_for(compared: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(compared, tmp_path / "run"))
    stage = run / "seed1/kd"
    save_weights({name: value + 1 for name, value in read_weights(stage / "best.safetensors").items()}, stage / "best.safetensors")
    for student in (loaded(run, arm="kd", seed=1, best=True), loaded(stage, best=True), loaded(Path(f"{stage}@best"))):
        assert same(student.network, stage / "best.safetensors")
    assert not same(loaded(stage).network, stage / "best.safetensors")


@pytest.mark.parametrize(
    ("which", "says"),
    [
        (
            {},
            r"run: got .*cmp, expected one of its arms, named by --arm: teacher; alone \(seeds 0, 1\); "
            r"kd \(seeds 0, 1\); soft \(seeds 0, 1\)",
        ),
        ({"arm": "dkd"}, r"arm: got dkd, expected one of teacher; alone"),
        ({"arm": "kd"}, r"seed: got none, expected one of those that kd has: .*kd \(seeds 0, 1\)"),
        ({"arm": "kd", "seed": 7}, "seed: got 7"),
    ],
)
def test_what_could_be_several_says_what_there_is(compared: Path, which: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        loaded(compared, **which)


def test_a_comparison_s_arm_is_exported_and_asked(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    words = [str(compared), "--arm", "soft", "--seed", "1"]
    assert main(["export", *words, "--format", "torch", "--out", str(tmp_path / "soft.pt2")]) == 0
    program = torch.export.load(tmp_path / "soft.pt2").module()
    student = loaded(compared / "seed1/kd,temperature=2")
    image = student.transform(Image.open(tmp_path / "white.png"))[None]
    with torch.no_grad():
        torch.testing.assert_close(program(image), student.network(image), atol=1e-4, rtol=0)
    capsys.readouterr()
    for place in (words, [str(compared / "seed1/kd,temperature=2")]):
        assert main(["predict", place[0], str(tmp_path / "white.png"), "--json", *place[1:]]) == 0
        assert json.loads(capsys.readouterr().out)["class"] == student.classify(tmp_path / "white.png")[0]
    assert main(["export", str(compared), "--arm", "dkd"]) == 2
    assert "--arm: got dkd, expected one of teacher; alone (seeds 0, 1)" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["{}/seed1/kd", "stillroom/convnet4@{}/seed1/kd", "{}/seed1/kd@best"])
def test_a_stage_teaches(compared: Path, tmp_path: Path, spec: str) -> None:
    teacher = ["--teacher", spec.format(compared), "--accept-teacher", "true"]  # of two epochs
    assert main(["run", "kd", *SMALL, *teacher, "--out", str(tmp_path / "run")]) == 0
    score = json.loads((tmp_path / "run/metrics.json").read_text())["stages"]["teacher"][0]["metrics"]["top1"]
    before = json.loads((compared / "metrics.json").read_text())["stages"]["kd"][1]
    assert score == before["best" if "best" in spec else "metrics"]["top1"]
    assert not (tmp_path / "run/teacher/student.safetensors").exists()  # it lies in the other run
    kept = loaded(tmp_path / "run", arm="teacher").network
    assert same(kept, compared / "seed1/kd" / ("best.safetensors" if "best" in spec else "student.safetensors"))


def test_a_folder_without_a_student_names_its_stages(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "kd", *SMALL, "--teacher", str(compared), "--out", str(tmp_path / "run")]) == 2
    assert f"or one of its stages: {compared}/teacher, {compared}/seed0/alone" in capsys.readouterr().err


def test_a_teacher_from_a_file_is_not_copied_and_keeps_its_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(build_classifier("stillroom/convnet24", num_classes=10).network, tmp_path / "teacher.safetensors")
    teacher = ["--teacher", f"stillroom/convnet24@{tmp_path / 'teacher.safetensors'}", "--teacher-mean", "[0.5, 0.5, 0.5]"]
    teacher += ["--accept-teacher", "true"]
    assert main(["run", "kd", *SMALL, *teacher, "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run/teacher/student.safetensors").exists()
    found = loaded(tmp_path / "run", arm="teacher")
    assert same(found.network, tmp_path / "teacher.safetensors")
    assert found.card.content["transform"]["mean"] == [0.5, 0.5, 0.5]
    assert loaded(tmp_path / "run").card.content["transform"]["mean"] != [0.5, 0.5, 0.5]


def test_a_finished_run_keeps_no_checkpoint_and_goes_on(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(compared, tmp_path / "run"))
    assert not list(run.rglob("last.ckpt"))
    shutil.rmtree(run / "seed1/kd")
    (run / "seed0/alone/student.json").unlink()  # as a version that wrote none left it
    capsys.readouterr()
    words = ["compare", "kd", "soft=kd", *SMALL, "--options.soft", "{temperature: 2}", "--seeds", "2", "--out", str(run)]
    assert main(words) == 0
    assert capsys.readouterr().out.count("done before") == 6
    assert (run / "seed0/alone/student.json").read_bytes() == (compared / "seed0/alone/student.json").read_bytes()
    metrics = [json.loads((folder / "metrics.json").read_text())["stages"] for folder in (run, compared)]
    assert metrics[0]["kd"][1]["metrics"] == metrics[1]["kd"][1]["metrics"]


def test_one_architecture_has_one_latency(compared: Path) -> None:
    stages = json.loads((compared / "metrics.json").read_text())["stages"]
    latencies = {arm: {stage["footprint"]["latency_ms"] for stage in found} for arm, found in stages.items()}
    assert latencies["kd"] == latencies["soft"] == latencies["alone"]
    assert len(latencies["kd"]) == 1


_CPU = "--accelerator cpu --epochs 1"
_DIGITS = f"--data digits --subset 64 --val-subset 40 --batch-size 16 {_CPU}"
METHODS = {
    "kd3": f"{_DIGITS} --teacher stillroom/convnet4 --student stillroom/convnet3",
    "crkd": f"--data shapes,train=4,val=2 --known-classes 40 --subset 120 --val-subset 60 --batch-size 16 {_CPU} --warmup-epochs 0 "
    "--teacher-epochs 1 --student stillroom/convnet4 --hidden 16 --projection 8",
    "mdcs": f"--data digits,imbalance=exp:10 --subset 200 --val-subset 40 --batch-size 16 {_CPU}",
    "bckd": f"--data scenes:size=32,train=8,val=8,teacher=8 --batch-size 8 {_CPU} --warmup-epochs 0 --student stillroom/gfl_24 "
    "--teacher stillroom/gfl_24 --teacher-epochs 1",
    "ssd-det": f"--data scenes:size=32,train=8,val=8,teacher=8 --batch-size 8 {_CPU} --warmup-epochs 0 --noise 0.3 --ratios [1,0.8]",
    "l2d": f"--data mosaics,grid=2,tile=4,train=64,val=32,teacher=64 --batch-size 16 {_CPU} --student stillroom/strided24 "
    "--teacher stillroom/strided24 --embed-dim 16 --feedforward 32",
    "wad": f"--data digits --subset 200 --val-subset 40 --batch-size 16 {_CPU} --known-classes 5",
    "giftnet": f"--data patches,train=16,val=8 --batch-size 8 {_CPU} --student stillroom/harmony4_3",
    "auto-kd": f"{_DIGITS} --teacher stillroom/convnet4 --student stillroom/convnet3 --accept-teacher true --trials 2 --proxy-share 1 "
    "--held-out 0.3 --proxy-epochs 2 --finalists 1 --searches auto-kd",
    "boss": f"{_DIGITS} --student stillroom/convnet3 --trials 3 --warmup-trials 2 --pool 2 --searches boss",
    "orc": f"{_DIGITS} --teacher stillroom/convnet4 --student stillroom/convnet3 --group stillroom/convnet6",
}


@pytest.mark.parametrize("method", METHODS)
def test_every_stage_of_every_kind_of_method_is_loaded(method: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", method, *METHODS[method].split(), "--out", str(out)]) == 0
    stages = sorted(record.parent for record in out.rglob("stage.json"))
    if method == "wad":  # its teacher answers with embeddings: it is no classifier
        stages = [stage for stage in stages if stage.name != "teacher"]
    stages = [stage for stage in stages if stage.name != "composite"]  # giftnet's floor, the picture as it is: no network
    assert len(stages) >= 2
    for stage in stages:
        network, kept = stillroom.load(stage).network, stage / "shipped.safetensors"
        assert same(network, kept if kept.exists() else stage / "student.safetensors"), stage
    arms = json.loads((out / "metrics.json").read_text())["stages"]
    for arm, found in arms.items():
        if out / found[0]["folder"] not in stages:
            continue
        assert stillroom.load(out, arm=arm, seed=0).classes == stillroom.load(out / found[0]["folder"]).classes
