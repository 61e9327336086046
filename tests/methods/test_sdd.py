"""SDD: what the reference vectors leave open, and the experiment."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine.distiller import Losses
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.sdd import SDD, LatentEditor, LevelsMapper, search
from stillroom.methods.sdd.gradient import largest, score_distillation
from stillroom.methods.sdd.hqs import chosen, hybrid_quality
from stillroom.methods.sdd.search import grid_of
from stillroom.tasks.editing import EditingData, Editor, load
from stillroom.tasks.editing.diffusion import alphas_cumprod
from tests.methods import sdd_job
from tests.processes import Processes

TINY = ("--data", "colours:train=48,val=24", "--batch-size", "8", "--accelerator", "cpu", "--teacher", "stillroom/denoiser8")
SHORT = ("--student", "stillroom/editor8", "--epochs", "1", "--teacher-epochs", "1", "--search-images", "4", "--ddim-steps", "3")


class Toy:
    """A teacher in closed form: its answer is known, and its calls are counted."""

    def __init__(self) -> None:
        self.alphas_cumprod = alphas_cumprod()
        self.null_condition = torch.zeros(1, 1)
        self.calls: list[tuple[int, ...]] = []
        self.factor = torch.nn.Parameter(torch.tensor(0.3))

    def condition(self, prompt: str) -> Tensor:
        return torch.ones(1, 1)

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def predict_noise(self, noisy: Tensor, t: int, condition: Tensor) -> Tensor:
        self.calls.append(tuple(noisy.shape))
        return self.factor * noisy + condition[:, :, None, None]

    def fingerprint(self) -> str:
        return "toy"


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def batch(count: int = 3) -> Any:
    from stillroom.tasks.images.batches import Batch

    return Batch(images(count), torch.zeros(count, dtype=torch.int64), torch.arange(count))


# The gradient ---------------------------------------------------------------------------------------------------------------------------


def test_the_teacher_is_asked_once_a_step_and_keeps_no_gradient() -> None:
    teacher, saved = Toy(), 0
    distiller = SDD(Editor(8), teacher, teacher.condition(""), guidance=2.0)

    def keep(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += 1
        return tensor

    def steps(through: bool) -> int:
        nonlocal saved
        saved = 0
        distiller.through_teacher = through
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            distiller.losses(batch()).total.backward()
        return saved

    without = steps(False)
    assert teacher.calls == [(6, 3, 8, 8)]
    assert teacher.factor.grad is None
    assert steps(True) > without
    assert teacher.factor.grad is not None


def test_the_whole_objective_has_the_network_s_jacobian() -> None:
    """d/dz of w/2 sum (eps_hat - eps)^2 is w (eps_hat - eps) d eps_hat/dz, and eps_hat is factor z_t + s here."""
    teacher, pixels, t = Toy(), images().requires_grad_(), 400
    asked = {"noise": "zeros", "t": t, "condition": teacher.condition(""), "guidance": 2.0}
    short = torch.autograd.grad(score_distillation(teacher, pixels, **asked).loss, pixels)[0]
    whole = torch.autograd.grad(score_distillation(teacher, pixels, through_teacher=True, **asked).loss, pixels)[0]
    torch.testing.assert_close(whole, short * teacher.factor.detach() * teacher.alphas_cumprod[t].sqrt())


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (3, 4), (5, 5), (99, 6)])
def test_the_largest_gradients_are_kept_with_equals(count: int, kept: int) -> None:
    gradient = torch.tensor([[4.0, -3.0, 2.0], [-2.0, 1.0, 0.5]])
    assert int(largest(gradient, count).count_nonzero()) == kept


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 0}, "top_k"),
        ({"timesteps": [1000]}, "timesteps"),
        ({"timesteps": [-1]}, "timesteps"),
        ({"timesteps": []}, "timesteps"),
        ({"guidance": float("nan")}, "guidance"),
        ({"l2_weight": -1.0}, "l2_weight"),
        ({"top_k": 5, "through_teacher": True}, "top_k"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: "):
        SDD(Editor(8), Toy(), torch.ones(1, 1), **options)


def test_a_student_without_gradient_is_refused() -> None:
    class Detached(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.detach()

    with pytest.raises(InputError, match="student: got images without a gradient"):
        SDD(Detached(), Toy(), torch.ones(1, 1)).losses(batch())


def test_random_steps_are_from_2_to_98_percent() -> None:
    distiller = SDD(Editor(8), Toy(), torch.ones(1, 1))
    torch.manual_seed(0)
    drawn = {distiller.draw_step() for _ in range(20_000)}
    assert (min(drawn), max(drawn)) == (20, 980)
    listed = SDD(Editor(8), Toy(), torch.ones(1, 1), timesteps=[3, 5])
    assert {listed.draw_step() for _ in range(50)} == {3, 5}


def test_half_precision_around_the_step_changes_no_gradient_s_type() -> None:
    teacher, pixels = Toy(), images().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = score_distillation(teacher, pixels, "zeros", 500, teacher.condition(""), guidance=2.0).loss
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss, pixels)[0].dtype == torch.float32


# Regularisers and the mapper ------------------------------------------------------------------------------------------------------------


def test_the_identity_loss_compares_the_edited_with_the_unedited() -> None:
    """The released trainer compares the unedited picture with itself, where nothing can be learnt."""
    editor = Editor(8)
    nn.init.normal_(editor.last.weight, std=0.2)
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    distiller = SDD(editor, Toy(), torch.ones(1, 1), embedding=embedding, identity_weight=2.0, l2_weight=0.0)
    term = distiller.losses(batch()).task["identity"]
    assert 0 < term.item() < 4
    gradient = torch.autograd.grad(term, editor.last.weight)[0]
    assert gradient.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in embedding.parameters())
    assert not [name for name in distiller.state_dict() if "embedding" in name]


def test_a_mapper_of_codes_learns_and_its_generator_does_not() -> None:
    torch.manual_seed(0)

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10 * 6, 3 * 8 * 8)

        def forward(self, codes: Tensor) -> Tensor:
            return self.layer(codes.flatten(1)).view(-1, 3, 8, 8).tanh()

    class Codes:
        inputs, ids = torch.randn(2, 10, 6), torch.arange(2)

    student = LatentEditor(LevelsMapper(6), Generator())
    before = {name: value.clone() for name, value in student.generator.state_dict().items()}
    distiller = SDD(student, Toy(), torch.ones(1, 1), guidance=2.0, timesteps=[500])
    assert not student.train().generator.training
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=5e-3, weight_decay=2e-3)
    losses = distiller.losses(Codes())
    assert set(losses.terms) == {"l2", "sds"}
    losses.total.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in student.generator.state_dict().items())
    coarse = student.mapper(Codes.inputs)[:, :4]
    assert not coarse.any()
    assert student.mapper.medium_mapping.mapping[1].weight.grad.abs().sum() > 0
    assert not student.unedited(Codes.inputs).requires_grad


def test_an_editor_begins_as_the_identity_and_its_clamp_lets_gradients_through() -> None:
    editor, pictures = Editor(8), images()
    assert torch.equal(editor(pictures), pictures)
    with torch.no_grad():
        editor.last.bias.fill_(5.0)
    edited = editor(pictures)
    assert edited.max() <= 1
    edited.sum().backward()
    assert editor.last.bias.grad.abs().sum() > 0  # type: ignore[union-attr]


# The search -----------------------------------------------------------------------------------------------------------------------------


def test_the_search_is_of_each_picture_alone_and_repeats_itself() -> None:
    teacher, grid = Toy(), [100, 500, 900]
    found = search(teacher, images(4), teacher.condition(""), grid, guidance=2.0, top_k=10)
    again = search(teacher, images(4), teacher.condition(""), grid, guidance=2.0, top_k=10)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert found["entropy"].shape == (4, 3)
    assert {shape[0] for shape in teacher.calls} == {2}  # one picture at a time where gradients are thinned out
    assert grid_of(1000) == list(range(100, 901, 50))
    with pytest.raises(InputError, match="search_steps"):
        search(teacher, images(1), teacher.condition(""), [1000], guidance=2.0)


def test_no_gradient_at_all_takes_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    nothing, grid = torch.zeros(2, 5), torch.arange(100, 600, 100)
    flat = torch.full((2, 5), 4.0)
    assert hybrid_quality(flat, nothing).tolist() == [0.0] * 5
    with caplog.at_level(logging.WARNING):
        assert chosen(flat, nothing, grid, indicator="hqs", rule="max", threshold=None) == [300]
    assert "zero at every time step" in caplog.text


def test_a_threshold_that_no_step_reaches_takes_the_best(caplog: pytest.LogCaptureFixture) -> None:
    entropy, l1, grid = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([100, 200, 300])
    with caplog.at_level(logging.WARNING):
        assert chosen(entropy, l1, grid, indicator="hqs", rule="above", threshold=2.0) == [200]
    assert "no time step has hqs above 2.0" in caplog.text
    assert chosen(entropy, l1, grid, indicator="hqs", rule="above", threshold=-0.5) == [200, 300]
    with pytest.raises(InputError, match="threshold"):
        chosen(entropy, l1, grid, indicator="hqs", rule="above", threshold=None)


# The experiment -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdd") / "run"
    words = ["--prompt", "[red, blue]", "--strengths", "[0.5]", "--seeds", "2", "--out", str(out)]
    assert main(["run", "sdd", *TINY, *SHORT, *words]) == 0
    return out


def test_several_prompts_are_several_students_of_one_teacher(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    kinds = ("distilled", "random steps", "SDEdit 0.5")
    assert list(metrics["stages"]) == [f"{prompt}: {kind}" for prompt in ("red", "blue") for kind in kinds]
    assert len(list(run.glob("teacher"))) == 1
    assert sorted(path.name for path in run.glob("search/*.npz")) == ["blue.npz", "red.npz"]
    assert {stage["seed"] for stage in metrics["stages"]["red: distilled"]} == {0, 1}
    assert metrics["primary"] == "edited"
    assert load(run).kind == "an editor of pictures"


def test_each_student_is_asked_by_its_arm_and_seed(run: Path, tmp_path: Path) -> None:
    from stillroom.tasks.students import load as load_student

    one, two = (load_student(run, arm="blue: distilled", seed=seed).network.state_dict() for seed in (0, 1))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_the_page_has_the_search_the_pictures_and_the_trade_off(run: Path) -> None:
    page = (run / "report.html").read_text()
    for title in ("Time steps for “red”", "Time steps for “blue”", "Before and after", "Trade-off", "What an edit costs", "The data"):
        assert page.count(f"<h2>{title}</h2>") == 1
    assert "procedural data" in page
    assert "One is worth nothing without the other" in page
    assert "denoising error" in page


class Killed(Exception):
    pass


def test_killed_in_each_stage_it_ends_with_the_same_numbers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillroom.tasks.editing import Denoising

    out, left = tmp_path / "run", {"steps": 0}
    words = ["run", "sdd", *TINY, *SHORT, "--prompt", "[red, blue]", "--strengths", "[0.5]", "--seeds", "2", "--out", str(out)]

    def falling(before: Any) -> Any:
        def step(*given: Any) -> Any:
            left["steps"] -= 1
            if left["steps"] == 0:
                raise Killed
            return before(*given)

        return step

    monkeypatch.setattr(Denoising, "losses", falling(Denoising.losses))
    monkeypatch.setattr(SDD, "training_step", falling(SDD.training_step))
    for steps in (1, 3, 9):
        left["steps"] = steps
        with pytest.raises(Killed):
            main([*words, "--checkpoint-steps", "1"])
    left["steps"] = 0
    assert main([*words, "--checkpoint-steps", "1"]) == 0
    one, two = (json.loads((folder / "metrics.json").read_text())["stages"] for folder in (run, out))
    for arm, stages in one.items():
        for stage, other in zip(stages, two[arm], strict=True):
            assert stage["metrics"] == other["metrics"]
            weights = [read_weights(folder / stage["folder"]) for folder in (run, out)] if "SDEdit" not in arm else [{}, {}]
            assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_search_is_not_made_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module("stillroom.methods.sdd.recipe")
    monkeypatch.setattr(module, "search", lambda *_, **__: pytest.fail("asked again"))
    words = ["--prompt", "[red, blue]", "--strengths", "[0.5]", "--seeds", "2", "--out", str(run)]
    assert main(["run", "sdd", *TINY, *SHORT, *words]) == 0


def test_a_teacher_of_an_earlier_run_teaches_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "sdd", *TINY, *SHORT, "--strengths", "[]", "--timestep", "100", "--from", "blue", "--out", str(tmp_path / "run")]
    words[words.index("stillroom/denoiser8")] = str(run / "teacher")
    assert main(words) == 2
    assert "--accept-teacher to go on with it" in capsys.readouterr().err
    assert main([*words, "--accept-teacher"]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert any("hardly denoises" in note for note in metrics["notes"])
    assert list(metrics["stages"]) == ["distilled", "random steps", "DDIB"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "purple"], "prompt: got purple, expected a class of the data (red, green"),
        (["--prompt", "[red, red]"], "prompt: got"),
        (["--prompt", " "], "prompt: got"),
        (["--from", "red"], "--from: got red, expected another class than the prompt's"),
        (["--timestep", "200"], "--timestep: got 200, expected a time step from 0 to 199"),
        (["--strengths", "[1.5]"], "--strengths: got 1.5"),
        (["--ddim-steps", "300"], "--ddim-steps: got 300"),
        (["--top-k", "0"], "--top-k: got 0"),
        (["--student", "stillroom/editor9"], "--student: got stillroom/editor9, expected a width"),
        (["--student", "stillroom/convnet4"], "--student: got stillroom/convnet4, expected stillroom/editor24"),
        (["--teacher", "stillroom/editor8"], "--teacher: got stillroom/editor8, expected stillroom/denoiser24"),
        (["--pipeline", "nowhere"], "--pipeline: got nowhere"),
        (["--data", "photos:nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_said_before_anything_is_trained(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "sdd", *TINY, *SHORT, *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["run", "supervised", "--task", "editing"], ["cache", "--task", "editing"]])
def test_what_needs_labels_says_that_editing_has_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "editing, expected one of classification" in capsys.readouterr().err


def test_two_processes_equal_one(tmp_path: Path, processes: Processes) -> None:
    """L_sds is a sum over the whole batch and L_2 a mean over it, whoever has the pictures."""
    sdd_job.main(tmp_path / "1", 1)
    processes.on_two_ranks(sdd_job.main, tmp_path / "2", 2)
    one, two = (tmp_path / devices / "seed0/distilled" for devices in ("1", "2"))
    start = read_weights(one)
    for name, value in start.items():
        torch.testing.assert_close(read_weights(two)[name], value, rtol=1e-4, atol=1e-5)
    assert start["last.weight"].abs().sum() > 0


def test_losses_are_named_by_what_they_are() -> None:
    data = EditingData("colours:train=12,val=12", batch_size=4).for_edit("red")
    teacher = sdd_job.teacher()
    found = SDD(Editor(8), teacher, teacher.condition("red")).losses(data.train_loader(seed=0).first(4))
    assert isinstance(found, Losses)
    assert (set(found.task), set(found.distill)) == ({"l2"}, {"sds"})
