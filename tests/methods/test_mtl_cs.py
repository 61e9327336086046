"""MTL-CS: the divergence, what rows and columns see, teachers that do not fit, whole runs, kills and two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Teacher
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError, NonFiniteLoss
from stillroom.methods.mtl_cs import MTLCS, Match, collected, cs_divergence, inter_match, intra_match, probability_maps
from stillroom.methods.mtl_cs.recipe import PRESETS
from stillroom.tasks.multitask import DenseBatch, MultiTaskData, MultiTaskNetwork, build_multitask
from tests.methods.kills import killed_at
from tests.methods.mtl_cs_job import PLAN, data, network, train
from tests.processes import Processes
from tests.tasks.multitask.miniatures import nyud_papers, pascal

SOLIDS = ("--data", "solids:train=16,val=6,teacher=16,size=16", "--batch-size", "8", "--epochs", "1", "--teacher-epochs", "1")
SMALL = (*SOLIDS, "--warmup-epochs", "0", "--teacher", "stillroom/pyramid6", "--student", "stillroom/pyramid4", "--accelerator", "cpu")


def distributions(seed: int, count: int = 7, temperature: float = 1.0) -> Tensor:
    return (torch.randn(5, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / temperature).softmax(-1)


# The divergence -------------------------------------------------------------------------------------------------------------------------


def test_the_divergence_is_symmetric_and_blind_to_scale() -> None:
    p, q = distributions(0), distributions(1)
    torch.testing.assert_close(cs_divergence(p, q), cs_divergence(q, p))
    torch.testing.assert_close(cs_divergence(3 * p, 7 * q), cs_divergence(p, q))
    torch.testing.assert_close(cs_divergence(p, q), -2 * torch.nn.functional.cosine_similarity(p, q).log())
    torch.testing.assert_close(cs_divergence(p, q, square=False), cs_divergence(p, q) / 2)
    assert float(cs_divergence(p, 5 * p).abs().max()) < 1e-12


def test_nearly_flat_distributions_keep_their_digits_in_single_precision() -> None:
    p, q = distributions(0, 40, 80.0), distributions(1, 40, 80.0)
    exact = cs_divergence(p, q)
    assert float(exact.max()) < 1e-3
    plain = -(((p * q).sum(-1) ** 2).float() / ((p * p).sum(-1) * (q * q).sum(-1)).float()).log()
    ours = cs_divergence(p.float(), q.float())
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-10)
    assert float((plain.double() - exact).abs().max()) > 10 * float((ours.double() - exact).abs().max())


def test_the_gradient_is_that_of_the_formula() -> None:
    p, q = (torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    p.requires_grad_()
    for dim in (1, (0, 2), -1):
        assert torch.autograd.gradcheck(lambda x, dim=dim: cs_divergence(x, q, dim), (p,))
        assert cs_divergence(p, q, dim).shape == (p * q).sum(dim).shape


def test_rows_of_zeros_and_orthogonal_ones_are_finite() -> None:
    p = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1e-20, 0, 0]], requires_grad=True)
    found = cs_divergence(p, torch.tensor([[0, 1.0, 0], [1, 0, 0], [1, 0, 0]]))
    assert found[0].item() == pytest.approx(-math.log(1e-12), rel=1e-4)
    assert found[1].item() == 0
    assert torch.autograd.grad(found.sum(), p)[0].isfinite().all()


# Maps, rows, columns --------------------------------------------------------------------------------------------------------------------


def maps(flip: bool = False) -> tuple[Tensor, Tensor]:
    """Directions that hardly change over the picture, the student's turned round or not."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.tensor([0.1, 0.2, -1.0]).view(1, 3, 1, 1) + 0.01 * torch.randn(2, 3, 4, 4, generator=generator)
    return probability_maps(-teacher if flip else teacher, teacher, "direction", temperature=8.0)


def test_columns_do_not_see_that_directions_are_turned_round_and_rows_do() -> None:
    same, turned = collected([maps()]), collected([maps(flip=True)])
    assert float(intra_match(turned)) < 1e-3
    assert float(inter_match(turned)) > 1e3 * max(float(inter_match(same)), 1e-9)


def test_a_match_of_equals_is_zero_and_what_is_invalid_does_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    z, other = (torch.randn(2, 5, 4, 6, generator=generator) for _ in range(2))
    depth = torch.randn(2, 1, 4, 6, generator=generator)
    equal = [probability_maps(z, z, "classes", temperature=2.0), probability_maps(depth, depth, "scalar", temperature=2.0)]
    for match in (Match(), Match(inter="per_task"), Match(divergence="kl")):
        assert all(abs(float(term)) < 1e-4 for term in match.terms(equal).values())
    valid = torch.ones(2, 1, 4, 6)
    valid[:, :, 2:] = 0
    apart = [probability_maps(z, other, "classes", temperature=2.0)]
    top = [(apart[0][0][:, :, :2], apart[0][1][:, :, :2])]
    for match in (Match(), Match(inter="per_task"), Match(divergence="kl")):
        torch.testing.assert_close(match.terms(apart, valid), match.terms(top))
        assert all(float(term) == 0 for term in match.terms(apart, torch.zeros_like(valid)).values())


def test_depth_is_compared_on_the_teachers_scale_and_bounded() -> None:
    teacher = torch.full((1, 1, 3, 3), 4.0)
    student = torch.tensor(9.0).expand(1, 1, 3, 3)
    ours, theirs = probability_maps(student, teacher, "scalar", temperature=1.0)
    torch.testing.assert_close(theirs, torch.full((1, 2, 3, 3), 0.5))
    torch.testing.assert_close(ours[:, 1], torch.full((1, 3, 3), 20.0).sigmoid())
    half, _ = probability_maps(torch.randn(1, 4, 3, 3).bfloat16(), torch.randn(1, 4, 3, 3).bfloat16(), "classes", temperature=8.0)
    assert half.dtype == torch.float32


def test_the_teacher_has_no_gradient() -> None:
    z, t = (torch.randn(1, 3, 2, 2, requires_grad=True) for _ in range(2))
    for kind in ("classes", "direction"):
        terms = Match().terms([probability_maps(z, t, kind, temperature=8.0)])
        gradients = torch.autograd.grad(sum(terms.values()), (z, t), allow_unused=True)  # type: ignore[arg-type]
        assert gradients[0] is not None
        assert gradients[1] is None


def test_numbers_and_words_without_meaning_are_refused() -> None:
    for options, said in (
        ({"temperature": 0}, "temperature"), ({"kappa": -1}, "kappa"), ({"beta": -1}, "beta"), ({"divergence": "js"}, "divergence"),
        ({"inter": "none", "intra": False}, "something to match"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            Match(**options)


# The distiller --------------------------------------------------------------------------------------------------------------------------


class Answering(nn.Module):
    """A teacher that answers with these maps."""

    def __init__(self, **answers: Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: raw[: len(images)] for name, raw in self.answers.items()}


def test_answers_meet_at_the_teachers_resolution_and_targets_without_truth_are_matched_all_the_same() -> None:
    shown = data()
    batch: DenseBatch = shown.train_loader(seed=0).first(4)
    sizes = {target.name: torch.randn(4, target.channels, 4, 4) for target in shown.targets}
    distiller = MTLCS(network(4, shown), Teacher(Answering(**sizes, more=torch.randn(4, 9, 4, 4)), precision="fp32"), Match())
    losses = distiller.losses(batch)
    assert set(losses.task) == {target.name for target in shown.targets}
    assert set(losses.distill) == {"inter", "intra"}
    assert set(MTLCS(distiller.student, distiller.teacher, Match(divergence="kl")).losses(batch).distill) == {"kl"}
    blind = batch._replace(truths={**batch.truths, "depth": torch.full_like(batch.truths["depth"], torch.nan)})
    found = distiller.losses(blind)
    assert float(found.task["depth"].detach()) == 0
    torch.testing.assert_close(found.distill["inter"], losses.distill["inter"])


def test_padding_is_not_matched() -> None:
    shown = data()
    batch: DenseBatch = shown.train_loader(seed=0).first(4)
    assert batch.valid is not None
    half = batch.valid.clone()
    half[..., 8:] = 0
    distiller = MTLCS(network(4, shown), Teacher(network(6, shown, 1), precision="fp32"), Match())
    losses = [distiller.losses(batch._replace(valid=valid)).distill["inter"] for valid in (batch.valid, half, None)]
    torch.testing.assert_close(losses[0], losses[2])
    assert not torch.isclose(losses[0], losses[1])


def test_a_teacher_that_does_not_fit_is_refused_with_both_lists() -> None:
    shown = data()
    batch = shown.train_loader(seed=0).first(2)
    fewer = build_multitask("stillroom/pyramid4", shown.targets[:2]).network
    with pytest.raises(InputError, match=r"answers to \{'semseg': 7, 'depth': 1\} .*expected the student's \{'semseg': 7, .*'edges': 1\}"):
        MTLCS(network(4, shown), fewer, Match()).losses(batch)


def test_answers_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    shown = data()
    broken = network(4, shown)
    nn.init.constant_(broken.heads["depth"][1].bias, torch.nan)
    distiller = MTLCS(network(4, shown), broken, Match())
    with pytest.raises(InputError, match="teacher: got answers to depth that are no numbers"):
        distiller.rehearse(shown.train_loader(seed=0).first(2))
    with pytest.raises(NonFiniteLoss, match="inter = nan"):
        Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(distiller, shown, PLAN, name="kdam")


def test_flipped_signs_are_drawn_anew_in_every_step_and_the_same_again() -> None:
    shown = data()
    batch = shown.train_loader(seed=0).first(4)
    distiller = MTLCS(network(4, shown), Teacher(network(6, shown, 1), precision="fp32"), Match(), flipped=0.2)
    clean = distiller.teacher(batch)
    seen = []
    for step in (0, 0, 1):
        distiller.at(step, steps_per_epoch=2, epochs=2)
        seen.append(distiller._taught(batch)["semseg"])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    changed = seen[0] != clean["semseg"]
    assert 0.15 < float(changed.float().mean()) < 0.25
    assert torch.equal(seen[0][changed], -clean["semseg"][changed])


# Runs -----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All arms in small."""
    out = tmp_path_factory.mktemp("mtl") / "run"
    assert main(["run", "mtl-cs", *SMALL, "--arms", "kl+intra+each+kdam", "--seeds", "2", "--out", str(out)]) == 0
    return out


def test_a_run_has_every_arm_and_counts_from_students_of_one_target(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["summary"]) == {"teacher", "teachers", "single", "alone", "kl", "intra", "each", "kdam"}
    assert metrics["primary"] == "delta_m"
    assert metrics["stages"]["single"][0]["metrics"]["delta_m"] == 0
    assert {arm: len(results) for arm, results in metrics["stages"].items()}["kdam"] == 2
    assert len(metrics["stages"]["single"]) == 1
    assert set(metrics["gains"]) >= {"kdam", "kl", "intra", "each"}
    warned = [one for one in metrics["notes"] if "columns alone fix patterns and no levels: depth, normals, edges" in one]
    assert len(warned) == 1
    page = (run / "report.html").read_text()
    assert "Every target" in page
    assert "Delta_m" in page


def test_one_teacher_for_each_target_by_its_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL[:-4], "--student", "stillroom/pyramid4", "--accelerator", "cpu", "--single-students", "false"]
    words[words.index("--teacher") + 1] = f"{run}/teacher-{{target}}"
    assert main(["run", "mtl-cs", *words, "--arms", "each", "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["summary"]) == {"teacher", "alone", "each"}
    assert metrics["primary"] == "score"
    assert main(["run", "mtl-cs", *words, "--arms", "kdam", "--out", str(tmp_path / "other")]) == 2
    assert "--arms: got kdam, expected each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arms", "kdam+all"), "--arms: got all"),
        (("--temperature", "0"), "temperature: got 0"),
        (("--gain", "0"), "got 0"),
        (("--inter", "none", "--intra", "false"), "something to match"),
        (("--flipped", "2"), "--flipped: got 2"),
        (("--only-targets", "semseg+sound"), "--only-targets: got semseg+sound"),
        (("--teacher", "stillroom/unet4"), "--teacher: got stillroom/unet4"),
        (("--image-size", "0"), "--image-size: got 0"),
    ],
)
def test_what_is_wrong_is_said_at_once(words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "mtl-cs", *SMALL, *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", ["paper", "paper:pascal-context"])
def test_the_papers_setting_takes_a_step_on_its_data_in_small(preset: str, tmp_path: Path) -> None:
    chosen = dict(PRESETS[preset])
    assert (chosen["temperature"], chosen["kdam_weight"], chosen["batch_size"]) == (8.0, 0.5, 8)
    assert (chosen["optimizer"], chosen["lr"], chosen["weight_decay"], chosen["schedule"]) == ("sgd", 1e-3, 5e-4, "poly")
    make = nyud_papers if preset == "paper" else pascal
    kind = chosen["data"].partition(":")[0]
    shown = MultiTaskData(f"{kind}:{make(tmp_path, size=(48, 64))}", batch_size=2, image_size=32, augment=chosen["augment"])
    # the student's network; Swin-L, the teacher's, has 240 million parameters with its heads
    spec = chosen["student"].partition(",")[0]
    student = build_multitask(spec, shown.targets).network
    assert isinstance(student, MultiTaskNetwork)
    assert sum(getattr(student.encoder, "channels", ())) == 1440
    assert chosen["teacher"].startswith("timm/swin_large_patch4_window12_384")
    distiller = MTLCS(
        student, build_multitask("timm/resnet10t", shown.targets).network, Match(chosen["temperature"], chosen["kdam_weight"])
    )
    optimizer = torch.optim.SGD(distiller.parameters(), chosen["lr"], chosen["momentum"], weight_decay=chosen["weight_decay"])
    losses: Losses = distiller.losses(next(iter(shown.train_loader(seed=0))))
    losses.total.backward()
    optimizer.step()
    assert all(term.isfinite() for term in losses.terms.values())
    assert set(losses.terms) == {*(target.name for target in shown.targets), "inter", "intra"}


# Kills and processes --------------------------------------------------------------------------------------------------------------------


def fit(out: Path) -> dict[str, Tensor]:
    shown: Any = data()
    made = MTLCS(network(4, shown), Teacher(network(6, shown, 1), precision="fp32"), Match(), flipped=0.1)
    return read_weights(Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1)).fit(made, shown, PLAN, name="kdam").folder)


def test_killed_and_continued_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(MTLCS, (1, 3), fit, tmp_path, monkeypatch)


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, processes: Processes) -> None:
    processes.on_two_ranks(train, tmp_path / "two", 2)
    train(tmp_path / "one", 1)
    alone, shared = (read_weights(tmp_path / name / "seed0/kdam") for name in ("one", "two"))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5, msg=name)
