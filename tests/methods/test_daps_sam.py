"""DAPS-SAM: what a block chooses by what was heard, what draws features together, and the experiment as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import stillroom
from stillroom import catalog
from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Training
from stillroom.engine.training import Progress
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.daps_sam import DAPS, Aligned, SpatialAlignment
from stillroom.methods.daps_sam import matching as matching_module
from stillroom.methods.daps_sam.loss import adjacent, attention_kl, feature_triplet, ranking, resized
from stillroom.methods.daps_sam.network import WAYS, AlignedSpec
from stillroom.methods.daps_sam.recipe import PRESETS
from stillroom.tasks.sound import DenseNetwork, SoundData, build_sound, load
from stillroom.tasks.sound.waves import write_wave
from stillroom.tasks.students import export_student
from tests.methods.daps_sam_job import train
from tests.methods.kills import killed_at
from tests.processes import Processes
from tests.tasks.sound.recorded import echoes, sound

TINY = "rooms:train=16,val=4"
SPEC = AlignedSpec("", "sam", (1, 2), 4, 2, 2)


@pytest.fixture(scope="module")
def data() -> SoundData:
    return SoundData(TINY, image_size=8, batch_size=8)


def student_of(data: SoundData, spec: AlignedSpec = SPEC) -> Aligned:
    return Aligned(build_sound("stillroom/echo4_2", data.shape()).network, spec)


def teacher_of(data: SoundData, spec: str = "stillroom/panorama4_2") -> nn.Module:
    return build_sound(spec, data.shape()).network.eval()


# The block ------------------------------------------------------------------------------------------------------------------------------


def test_a_block_answers_sounds_of_any_length_and_whatever_their_order() -> None:
    block = SpatialAlignment(8, (3, 4), embeddings=5, heads=2).eval()
    nn.init.normal_(block.embeddings)
    audio = torch.randn(2, 7, 8)
    assert block(audio).shape == block(torch.randn(2, 1, 8)).shape == (2, 12, 8)
    torch.testing.assert_close(block(audio[:, torch.randperm(7)]), block(audio), rtol=1e-4, atol=1e-5)


def test_each_position_chooses_for_itself_and_the_best_match_decides() -> None:
    block = SpatialAlignment(4, (2,), embeddings=2, heads=1, refine=False)
    with torch.no_grad():
        block.projection.copy_(50 * torch.eye(4))
        block.embeddings.zero_()
        block.embeddings[0, 0, 0] = block.embeddings[1, 0, 1] = 1  # at position 0: map 0 likes channel 0, map 1 channel 1
        block.embeddings[0, 1, 1] = block.embeddings[1, 1, 0] = 1  # at position 1 the other way round
    audio = torch.tensor([[[1.0, 0, 0, 0], [-3, 0, 0, 0]]])
    chosen = block(audio)[0]
    assert torch.allclose(chosen, torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0]]), atol=1e-4)


def test_memory_is_bounded_by_chunks_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    block, audio = SpatialAlignment(8, (5,), embeddings=7, heads=2), torch.randn(3, 9, 8)
    whole = block(audio)
    monkeypatch.setattr(matching_module, "_SCORES", 2 * 3 * 9 * 5)
    torch.testing.assert_close(block(audio), whole)


def test_scores_are_made_in_float32_under_autocast() -> None:
    block, audio = SpatialAlignment(8, (5,), embeddings=3, heads=2), torch.randn(2, 6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block.similarity(audio.bfloat16()).dtype == torch.float32
        half = block(audio)
    torch.testing.assert_close(half.float(), block(audio), rtol=0.1, atol=0.05)


def test_options_that_mean_nothing(data: SoundData) -> None:
    for options, said in (({"heads": 3}, "heads"), ({"embeddings": 0}, "embeddings"), ({"select": False, "embeddings": 2}, "select")):
        with pytest.raises(InputError, match=f"^{said}"):
            SpatialAlignment(8, (4,), **options)  # type: ignore[arg-type]
    for spec, said in (
        (AlignedSpec(levels=(3,), heads=2), "levels"),
        (AlignedSpec(levels=(1,), heads=2), "the last"),
        (AlignedSpec(levels=(1, 2), heads=3), "heads"),
    ):
        with pytest.raises(InputError, match=said):
            student_of(data, spec)
    with pytest.raises(InputError, match="a network that hears"):
        Aligned(teacher_of(data), SPEC)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_answers_and_is_written_as_it_is_read(way: str, data: SoundData) -> None:
    spec = AlignedSpec("stillroom/echo4_2", way, (1, 2), 4, 2, 2)
    assert AlignedSpec.parse(str(spec), "model") == spec
    network = student_of(data, spec)
    assert network(data.val_batch([0, 1]).inputs).shape == (2, 1, 8, 16)
    if way == "pooled":
        counts = [sum(p.numel() for p in one.base.alignment.parameters()) for one in (network, student_of(data))]  # type: ignore[union-attr]
        assert abs(counts[0] - counts[1]) < 0.1 * counts[1]


@pytest.mark.parametrize("tokens", ["time", "frequency", "picture"])
def test_a_spectrogram_is_read_by_times_by_frequencies_or_as_a_picture(tokens: str, data: SoundData) -> None:
    network = Aligned(build_sound(f"stillroom/echo4_2_{tokens}", data.shape()).network, SPEC)
    assert network(data.val_batch([0, 1]).inputs).shape == (2, 1, 8, 16)
    if tokens != "frequency":  # whose channels are the times
        longer = torch.randn(2, 2, 1500)
        assert network(longer).shape == (2, 1, 8, 16)
    with pytest.raises(InputError, match="one channel, expected 2"):
        network(torch.randn(2, 1, 960))


# The losses -----------------------------------------------------------------------------------------------------------------------------


def test_one_audio_position_has_no_negative() -> None:
    teacher, audio = torch.randn(2, 5, 4), torch.randn(2, 1, 4, requires_grad=True)
    assert feature_triplet(teacher, audio).item() == 0
    assert adjacent(torch.zeros(2, 5, dtype=torch.long), (1,)).max() == -1
    none = feature_triplet(teacher, audio, negative_index_BV=torch.full((2, 5), -1))
    none.backward()
    assert none.item() == 0


def test_the_triplet_is_blind_to_scale_and_reaches_no_teacher() -> None:
    teacher, audio = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 6, 4, requires_grad=True)
    loss = feature_triplet(teacher, audio)
    torch.testing.assert_close(feature_triplet(3 * teacher, 7 * audio), loss)
    loss.backward()
    assert teacher.grad is None
    zero = torch.zeros(2, 6, 4, requires_grad=True)
    feature_triplet(teacher, zero).backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_neighbours_are_those_that_there_are() -> None:
    line = adjacent(torch.tensor([[0, 2, 4]]).expand(64, -1), (5,))
    assert set(line[:, 0].tolist()) == {1}
    assert set(line[:, 1].tolist()) == {1, 3}
    assert set(line[:, 2].tolist()) == {3}
    grid = adjacent(torch.tensor([[0, 4]]).expand(256, -1), (3, 3))
    assert set(grid[:, 0].tolist()) == {1, 3}
    assert set(grid[:, 1].tolist()) == {1, 3, 5, 7}


def test_what_it_is_compared_with_is_least_where_features_agree() -> None:
    features = torch.randn(3, 8, 4)
    assert attention_kl(features, features).item() == pytest.approx(0, abs=1e-6)
    assert ranking(features, features) <= ranking(features, features.roll(1, 0))
    assert ranking(features[:1], features[:1]).item() == 0
    line = torch.randn(2, 6, 4)
    spread = resized(line, (6,), (3, 6)).view(2, 3, 6, 4)
    assert torch.allclose(spread[:, 0], line, atol=1e-6)
    assert torch.equal(spread[:, 0], spread[:, 2])


# The distiller --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["depth", "segmentation", "occupancy"])
def test_a_step_learns_from_the_teacher_alone(target: str) -> None:
    data = SoundData(TINY, answer=target, image_size=8, batch_size=4, query_points=16)  # type: ignore[arg-type]
    teacher = teacher_of(data)
    distiller = DAPS(student_of(data), teacher).train()
    distiller.at(0, steps_per_epoch=4, epochs=2)
    batch = data.train_loader(seed=0).first(4)
    losses = distiller.losses(batch)
    assert not losses.task
    assert set(losses.distill) == {"pseudo", "feature"}
    other = batch._replace(truth=torch.zeros_like(batch.truth))
    torch.testing.assert_close(DAPS(distiller.student, teacher, alignment_weight=0).losses(other).total, losses.distill["pseudo"])
    losses.total.backward()
    idle = [name for name, parameter in distiller.named_parameters() if parameter.grad is None]
    assert not idle
    assert not any("teacher" in name for name, _ in distiller.named_parameters())


@pytest.mark.parametrize("loss", ["mse", "mta", "rank"])
def test_other_feature_losses_work_without_blocks(loss: str, data: SoundData) -> None:
    student = build_sound("stillroom/echo4_2", data.shape()).network
    distiller = DAPS(student, teacher_of(data), feature_loss=loss, alignment_weight=1.0)  # type: ignore[arg-type]
    distiller.losses(data.train_loader(seed=0).first(4)).distill["feature"].backward()
    assert student.encoder.levels[-1][0].weight.grad is not None  # type: ignore[union-attr, index]


def test_other_channels_are_mapped_and_other_levels_refused(data: SoundData) -> None:
    distiller = DAPS(student_of(data), teacher_of(data, "stillroom/panorama6_2"))
    assert {name for name, _ in distiller.adapters.named_parameters()} == {"1.weight", "1.bias", "2.weight", "2.bias"}
    distiller.losses(data.train_loader(seed=0).first(2)).total.backward()
    with pytest.raises(InputError, match="features of 2 levels"):
        DAPS(student_of(data), teacher_of(data, "stillroom/panorama4_1"))
    with pytest.raises(InputError, match="levels"):
        DAPS(student_of(data), teacher_of(data), levels=(3,))


def test_negatives_change_when_the_loss_stays(data: SoundData) -> None:
    distiller = DAPS(student_of(data), teacher_of(data)).train()
    batch = data.train_loader(seed=0).first(4)
    weights = []
    for epoch in range(1, 6):
        distiller.progress = Progress(epoch, 9, epoch, 1)
        distiller.losses(batch)  # nothing learns: the same loss in every epoch
        weights.append(distiller._adjacent)
    assert weights == [False, False, False, True, True]
    again = DAPS(student_of(data), teacher_of(data))
    again.load_state_dict(distiller.state_dict())
    assert again._adjacent
    assert again._epoch == 5


# Runs -----------------------------------------------------------------------------------------------------------------------------------


def fit(out: Path, data: SoundData) -> dict[str, Tensor]:
    torch.manual_seed(0)
    distiller = DAPS(student_of(data), teacher_of(data))
    plan = Training(epochs=4, optimizer="adam", lr=1e-5, schedule="cosine", warmup_epochs=0)
    return read_weights(Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1)).fit(distiller, data, plan, name="distilled").folder)


def test_killed_and_continued_ends_with_the_same_numbers(data: SoundData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 1, 4, 7  # in an epoch, between two, and after other negatives were taken
    killed_at(DAPS, steps, lambda out: fit(out, data), tmp_path, monkeypatch)


def test_two_processes_equal_one(tmp_path: Path, processes: Processes) -> None:
    train(tmp_path / "one", 1)
    processes.on_two_ranks(train, tmp_path / "two", 2)
    one, two = (read_weights(tmp_path / name / "seed0/distilled") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=5e-5)


SHORT = ["--image-size", "8", "--epochs", "1", "--batch-size", "8", "--accelerator", "cpu", "--teacher", "stillroom/panorama4_2"]
SHORT += ["--student", "stillroom/echo4_2", "--block-heads", "2", "--spatial-maps", "4", "--warmup-epochs", "0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("daps") / "run"
    assert main(["run", "daps-sam", "--data", TINY, *SHORT, "--out", str(out)]) == 0
    return out


def test_the_command_ends_with_a_report_of_every_arm(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", "alone", "interpolation", "control", "sam"]
    assert (metrics["primary"], metrics["higher_is_better"], metrics["baseline"]) == ("MAE", False, "interpolation")
    page = (run / "report.html").read_text()
    assert "Seen, heard, and known by its sound" in page
    assert page.count("<figcaption>heard</figcaption>") == 4
    assert "procedural data: rooms that are made up" in page
    for arm in ("teacher", "alone", "control", "sam"):
        found = load(run / ("" if arm == "teacher" else "seed0") / arm)
        assert isinstance(found.network, Aligned if arm in ("control", "sam") else DenseNetwork)


def test_predict_is_what_evaluation_measured(run: Path, tmp_path: Path, data: SoundData, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sounds").mkdir()
    for index in range(2):
        write_wave(tmp_path / f"sounds/{index}.wav", data.val_batch([index]).inputs["sound"][0].numpy(), 16_000)
    write_wave(tmp_path / "sounds/mono.wav", sound(np.random.default_rng(0), 1), 16_000)
    (tmp_path / "sounds/notes.txt").write_text("no sound")
    assert main(["predict", str(run), str(tmp_path / "sounds"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "mono.wav: has one channel, where 2 are needed" in said.err
    assert "notes.txt" in said.err
    student = load(run)
    with torch.no_grad():
        evaluated = student.network(data.val_batch([0]).inputs)[0, 0].numpy()
    heard = student.hear(data.val_batch([0]).inputs["sound"][0].numpy(), 16_000)
    assert np.abs(heard - evaluated).max() < 1e-5
    written = np.asarray(Image.open(tmp_path / "out/0_depth.png"))
    assert written.dtype == np.uint16
    assert np.abs(written / 1000 - evaluated).max() < 6e-4
    assert (tmp_path / "out/1_picture.png").is_file()
    with pytest.raises(InputError, match="1 channel, expected 2"):
        student.hear(np.ones(960), 16_000)
    with pytest.raises(InputError, match="silence"):
        student.hear(np.zeros((2, 960)), 16_000)


def test_the_student_is_exported_and_the_teacher_too(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = export_student(run, format="onnx", out=tmp_path / "student.onnx")
    assert done.outputs[0].name == "depth"
    assert done.outputs[0].difference <= 1e-4
    assert export_student(run, arm="teacher", format="torch", out=tmp_path / "teacher.pt2").outputs[0].difference <= 1e-4


def test_a_cached_teacher_teaches_the_same(run: Path, tmp_path: Path) -> None:
    taps = "encoder.levels.1,encoder.levels.2"
    words = ["--data", TINY, "--image-size", "8", "--batch-size", "8", "--accelerator", "cpu"]
    cached = ["cache", *words, "--teacher", str(run / "teacher"), "--taps", taps, "--dtype", "fp32", "--out", str(tmp_path / "cache")]
    assert main(cached) == 0
    short = [f"cache:{tmp_path}/cache" if word == "stillroom/panorama4_2" else word for word in SHORT]
    assert main(["run", "daps-sam", "--data", TINY, *short, "--arms", "sam", "--out", str(tmp_path / "again")]) == 0
    again, first = (json.loads((place / "metrics.json").read_text())["stages"]["sam"][0] for place in (tmp_path / "again", run))
    assert again["metrics"]["MAE"] == pytest.approx(first["metrics"]["MAE"], rel=1e-4)


@pytest.mark.parametrize("target", ["segmentation", "occupancy"])
def test_other_targets_run_and_answer(target: str, tmp_path: Path) -> None:
    words = ["run", "daps-sam", "--data", "rooms:train=8,val=2", "--answer", target, *SHORT, "--query-points", "32", "--arms", "sam"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    write_wave(tmp_path / "a.wav", sound(np.random.default_rng(0)), 16_000)
    (answer,) = stillroom.load(tmp_path / "run").predict([tmp_path / "a.wav"], unreadable=print, out=str(tmp_path / "out"))
    assert answer.written.is_file()  # type: ignore[attr-defined]
    if target == "occupancy":
        assert np.load(answer.written)["probability"].shape == (32, 32, 32)  # type: ignore[attr-defined]
        export_student(tmp_path / "run", format="torch", out=tmp_path / "a.pt2")
    else:
        assert np.asarray(Image.open(answer.written)).min() >= 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "sam+mas"], "--arms: got mas"),
        (["--arms", "sam+sam"], "each arm once"),
        (["--student", "stillroom/panorama4_2"], "a network that hears"),
        (["--levels", "[1]"], "the last of the student's 2 levels"),
        (["--block-heads", "5"], "heads: got 5"),
        (["--margin", "-1"], "--margin: got -1"),
        (["--answer", "smell"], "answer"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_trained(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "daps-sam", "--data", TINY, *SHORT, *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run/teacher").exists()


def test_the_papers_setting_takes_a_step(tmp_path: Path) -> None:
    preset = {**catalog.load("daps-sam").presets["paper"]}
    assert preset == PRESETS["paper"]
    root = echoes(tmp_path / "daps", size=(192, 384))
    data = SoundData(
        f"echoes:{root},unit=daps,categories=matterport",
        **{name: preset[name] for name in ("image_size", "rate", "n_fft", "compression", "standardise")},
    )
    shape = data.shape()
    assert (data.front.bins, data.front.frames, data.size) == (257, 121, (192, 384))
    width = "x8"  # 64 in the paper
    teacher = build_sound(preset["teacher"] + width, shape).network
    assert isinstance(teacher, DenseNetwork)
    assert teacher.taps == tuple(f"encoder.layer{level}" for level in range(1, 5))
    student = build_sound(preset["student"] + width, shape).network
    distiller = catalog.load("daps-sam").build(
        student, teacher, data, levels=tuple(preset["levels"]), alignment_weight=preset["alignment_weight"]
    )  # type: ignore[misc]
    blocks = distiller.student.base.alignment.blocks  # type: ignore[union-attr]
    assert {level: block.embeddings.shape[:2] for level, block in blocks.items()} == {"3": (16, 12 * 24), "4": (64, 6 * 12)}  # type: ignore[union-attr]
    distiller.losses(data.train_loader(seed=0).first(2)).total.backward()
    assert distiller.predict(data.val_batch([0])).shape == (1, 1, 192, 384)


def test_the_papers_decoder_has_its_widths() -> None:
    data = SoundData("rooms:train=2,val=1", image_size=64)
    shape = data.shape()
    with torch.device("meta"):
        network = DenseNetwork(shape, "sight", "resnet50")
    assert [conv.out_channels for conv in network.decoder.before] == [256, 128, 64, 32, 16]
    assert network.decoder.skips == (1024, 512, 256, 64, 0)
