"""Losses, figures and training pictures of several targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stillroom.engine.loading import Draw
from stillroom.errors import InputError
from stillroom.tasks.images.page_parts import change_cell
from stillroom.tasks.images.pixel_classes import confusion, mean_iou, mean_iou_of_all
from stillroom.tasks.multitask import MultiTaskData, MultiTaskEvaluator, Supervised, Target, WholeBatch, build_multitask, relative
from stillroom.tasks.multitask.edges import matched, matched_counts, thinned
from stillroom.tasks.multitask.losses import target_loss
from stillroom.tasks.multitask.measures import edge_counts, ods_f, within
from stillroom.tasks.multitask.metrics import figures_of, metric_formats
from tests.tasks.multitask.miniatures import dense, scene

ALL = (
    Target("parts", "classes", ("a", "b", "c")),
    Target("sal", "saliency"),
    Target("depth", "depth"),
    Target("normals", "normals"),
    Target("edges", "edges"),
)


def answers(seed: int, size: tuple[int, int] = (12, 16)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normals = torch.nn.functional.normalize(torch.randn(3, *size, generator=generator), dim=0)
    return {
        "parts": torch.randint(3, size, generator=generator),
        "sal": torch.rand(1, *size, generator=generator),
        "depth": 1 + torch.rand(1, *size, generator=generator),
        "normals": normals,
        "edges": torch.rand(1, *size, generator=generator),
    }


def truths(seed: int, size: tuple[int, int] = (12, 16)) -> dict[str, Tensor]:
    found = answers(seed, size)
    return {**found, "parts": found["parts"].to(torch.uint8)} | {name: (found[name][0] > 0.5).to(torch.uint8) for name in ("sal", "edges")}


def unknown(size: tuple[int, int] = (12, 16)) -> dict[str, Tensor]:
    labels, nan = torch.full(size, 255, dtype=torch.uint8), torch.full((1, *size), torch.nan)
    return {"parts": labels, "sal": labels, "depth": nan, "normals": nan.expand(3, -1, -1), "edges": labels}


def figures(*pairs: tuple[dict[str, Tensor], dict[str, Tensor]], **options: bool) -> dict[str, float]:
    evaluator = MultiTaskEvaluator(ALL, **options)
    for number, (answer, truth) in enumerate(pairs):
        evaluator.update([answer], WholeBatch([torch.zeros(3, 4, 4)], [truth], torch.tensor([number])))
    return evaluator.compute()


# Figures --------------------------------------------------------------------------------------------------------------------------------


def test_truth_as_answer_is_perfect() -> None:
    truth = truths(0)
    answer: dict[str, Tensor] = {
        **truth,
        "parts": truth["parts"].long(),
        "sal": truth["sal"][None].float(),
        "edges": truth["edges"][None].float(),
    }
    found = figures((answer, truth))
    assert found.pop("depth RMSE") == found.pop("depth abs-rel") == 0
    assert found.pop("normals mean angle") == pytest.approx(0, abs=1e-4)
    assert found.pop("normals median angle") < 0.1
    assert set(found.values()) == {100.0}
    assert set(figures((answer, truth))) <= set(metric_formats(ALL))


def test_pixels_and_pictures_without_truth_change_no_figure() -> None:
    one = answers(1), truths(2)
    half = {name: values.clone() for name, values in truths(3).items()}
    other = answers(4)
    for name, values in unknown().items():
        half[name][..., :8] = values[..., :8]
    changed = {name: values.clone() for name, values in other.items()}
    for name, values in answers(5).items():
        if name != "edges":  # an edge may be predicted beside what is not known
            changed[name][..., :8] = values[..., :8]
    assert figures(one, (other, half)) == figures(one, (changed, half))
    assert figures(one, (answers(6), unknown())) == pytest.approx(figures(one))
    nothing = figures((answers(7), unknown()))
    assert all(np.isnan(value) for value in nothing.values())


def test_errors_are_pooled_over_the_set() -> None:
    truth = unknown()
    several = []
    for metres in (1.0, 3.0):
        known = {**truth, "depth": torch.full((1, 12, 16), 5.0)}
        several.append(({**answers(0), "depth": torch.full((1, 12, 16), 5.0 + metres)}, known))
    assert figures(*several)["depth RMSE"] == pytest.approx(5**0.5)


def test_angles_have_a_median_and_shares() -> None:
    degrees = torch.linspace(0, 60, 192).reshape(12, 16).deg2rad()
    straight = torch.stack((torch.zeros(12, 16), torch.zeros(12, 16), -torch.ones(12, 16)))
    tilted = torch.stack((degrees.sin(), torch.zeros(12, 16), -degrees.cos()))
    found = figures(({**answers(0), "normals": 7 * tilted}, {**unknown(), "normals": straight}))
    assert found["normals mean angle"] == pytest.approx(30, abs=1e-3)
    assert found["normals median angle"] == pytest.approx(30, abs=0.2)
    assert found["normals within 22.5°"] == pytest.approx(100 * 22.5 / 60, abs=0.6)


def test_a_class_that_is_nowhere_counts_0_here_and_is_left_out_there() -> None:
    counts = confusion(torch.tensor([0, 2]), torch.tensor([0, 2]), 3)
    assert (mean_iou(counts), round(mean_iou_of_all(counts), 3)) == (1.0, 0.667)


def test_processes_share_a_set_as_one_would_measure_it() -> None:
    pairs = [(answers(10 + i), truths(20 + i)) for i in range(4)]
    whole = MultiTaskEvaluator(ALL)
    for number in (2, 0, 3, 1):
        whole.update([pairs[number][0]], WholeBatch([], [pairs[number][1]], torch.tensor([number])))
    details = whole.details()
    assert details["ids"].tolist() == [0, 1, 2, 3]
    assert details["shape/parts"].tolist() == [[12, 16]] * 4
    assert len(details["map/normals"]) == 4 * 3 * 12 * 16
    sums = [details[f"sums/{target.name}"].sum(0) for target in ALL]
    assert figures_of(ALL, sums) == whole.compute() == figures(*pairs)


def test_delta_m_counts_what_decides() -> None:
    single = {"parts mIoU": 40.0, "sal maxF": 50.0, "depth RMSE": 1.0, "normals mean angle": 20.0, "edges odsF": 60.0}
    better = {**single, "depth RMSE": 0.9, "parts mIoU": 44.0}
    assert relative(ALL, better, single) == pytest.approx((10 + 10) / 5)
    assert np.isnan(relative(ALL, {**better, "depth RMSE": np.nan}, single))


def test_edges_count_within_their_tolerance() -> None:
    truth = torch.zeros(9, 9, dtype=torch.uint8)
    truth[:, 4] = 1
    beside = torch.zeros(9, 9)
    beside[:, 6] = 1.0
    assert ods_f(edge_counts(beside, truth, 2.0)) == 1
    assert ods_f(edge_counts(beside, truth, 1.9)) == 0
    disc = within(torch.eye(9)[4].outer(torch.eye(9)[4]), 2.5) > 0
    rows, columns = np.mgrid[:9, :9]
    np.testing.assert_array_equal(disc.numpy(), np.hypot(rows - 4, columns - 4) <= 2.5)


def test_matched_edges_are_thin_and_met_once() -> None:
    truth = torch.zeros(20, 20, dtype=torch.uint8)
    truth[:, 10] = 1
    thick = torch.zeros(20, 20)
    thick[:, 9:12] = 1.0
    assert ods_f(matched_counts(thick, truth, 1.5)) > 0.9
    twice = torch.zeros(20, 20)
    twice[:, 8] = twice[:, 12] = 1.0  # both are near enough, and one of them is too much
    assert ods_f(edge_counts(twice, truth, 2.0)) == 1
    assert ods_f(matched_counts(twice, truth, 2.0)) == pytest.approx(2 / 3, abs=0.05)
    assert matched(np.zeros((4, 4), bool), np.ones((4, 4), bool), 2.0) == 0
    ring = thinned(np.pad(np.ones((6, 6), bool), 2) & ~np.pad(np.ones((2, 2), bool), 4))
    assert 0 < ring.sum() < 24
    assert not ring[4:6, 4:6].any()
    found = figures((answers(1), truths(1)), edge_matching=True)
    assert found["edges odsF"] < figures((answers(1), truths(1)))["edges odsF"]


# Losses ---------------------------------------------------------------------------------------------------------------------------------


def test_what_is_not_known_is_in_no_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    for target in ALL:
        raw = torch.randn(2, target.channels, 6, 8, generator=generator, requires_grad=True)
        known, nothing = truths(1)[target.name], unknown()[target.name]
        loss = target_loss(target, raw, torch.stack((known, nothing)))
        torch.testing.assert_close(loss, target_loss(target, raw[:1], known[None]))
        (gradient,) = torch.autograd.grad(loss, raw)
        assert gradient[0].any()
        assert not gradient[1].any()
        empty = target_loss(target, raw, torch.stack((nothing, nothing)))
        assert float(empty.detach()) == 0
        assert torch.autograd.grad(empty, raw)[0].isfinite().all()


# Training pictures ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense(tmp_path_factory.mktemp("dense"))


def test_enlarged_pictures_are_nearer_and_mirrored_ones_turned(root: Path) -> None:
    data = MultiTaskData(f"dense:{root}", augment="scale")
    read: Any = data._samples(data._train, training=True, told=True)
    whole: Any = MultiTaskData(f"dense:{root}", augment="none")._samples(data._train, training=True)
    seen = set()
    for seed in range(24):
        batch, drawn = read.__getitems__([Draw(0, seed)])
        plain = whole.__getitems__([Draw(0, seed)])
        scale, mirrored = float(drawn["crop"][0, 4]), bool(drawn["flip"][0])
        assert 0.5 <= scale <= 2
        known = batch.valid[:, 0].bool()
        depths, metres = batch.truths["depth"][:, 0][known], plain.truths["depth"][plain.truths["depth"].isfinite()]
        assert batch.truths["depth"][:, 0][~known].isnan().all()
        assert (batch.truths["semseg"][~known] == 255).all()
        assert (batch.images.movedim(1, -1)[~known] == 0).all()
        assert bool(known.all()) == (scale >= 0.99)
        near = (depths[:, None] * scale - metres.unique()).abs().amin(1)
        assert float(near.nan_to_num().max()) < 1e-4
        ball = batch.truths["normals"][0, 0][batch.truths["semseg"][0] == 2].nanmean()
        if ball.isfinite():  # which points to the right
            assert float(ball) == pytest.approx(-1 if mirrored else 1, abs=0.01)
        seen.add(mirrored)
        again, _ = read.__getitems__([Draw(0, seed)])
        assert torch.equal(again.images, batch.images)
    assert seen == {True, False}


def test_pictures_of_one_shape_keep_it_others_are_square(root: Path, tmp_path: Path) -> None:
    batch = MultiTaskData(f"dense:{root}", image_size=12, augment="none").train_loader(seed=0).first(2)
    assert batch.images.shape == (2, 3, 12, 16)
    (dense(tmp_path, 4) / "train.txt").unlink()
    for name, values in scene(0, (40, 24)).items():
        Image.fromarray(values).save(tmp_path / name / "p0.png")
    height, width = MultiTaskData(f"dense:{tmp_path}").size
    assert height == width


def test_one_network_is_trained_on_all_targets_or_on_one(root: Path) -> None:
    data = MultiTaskData(f"dense:{root}", batch_size=4, target_weights="depth=3", augment="none")
    batch = data.train_loader(seed=0).first(4)
    network = build_multitask("stillroom/pyramid4", data.targets).network
    losses = Supervised(network).losses(batch)
    assert list(losses.task) == ["semseg", "depth", "normals", "edges"]
    weights = {target.name: target.weight for target in data.targets}
    raw = network.train()(batch.inputs)
    torch.testing.assert_close(losses.task["depth"], weights["depth"] * (raw["depth"].mean() * 0 + losses.task["depth"] / 3))
    alone = build_multitask("stillroom/pyramid4", data.of_targets("depth").targets).network
    assert list(Supervised(alone).losses(data.of_targets("depth").train_loader(seed=0).first(4)).task) == ["depth"]
    losses.total.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("size", [(17, 23), (32, 32), (8, 70)])
def test_networks_read_pictures_of_any_size(size: tuple[int, int]) -> None:
    network = build_multitask("stillroom/pyramid4", ALL).network.eval()
    found = network(torch.zeros(1, 3, *size))
    assert {name: list(raw.shape) for name, raw in found.items()} == {
        target.name: [1, target.channels, -(-size[0] // 2), -(-size[1] // 2)] for target in ALL
    }


def test_a_timm_network_with_a_classifiers_weights(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "c.pth")
    made = build_multitask(f"timm/resnet10t,backbone={tmp_path / 'c.pth'}", ALL)
    assert made.spec == "timm/resnet10t"
    assert made.weights is None
    given = torch.load(tmp_path / "c.pth")
    torch.testing.assert_close(made.network.encoder.network.state_dict()["layer1.0.conv1.weight"], given["layer1.0.conv1.weight"])
    assert made.network.eval()(torch.zeros(1, 3, 64, 48))["depth"].shape == (1, 1, 16, 12)
    for spec, said in (
        ("stillroom/pyramid4,backbone=pretrained", "timm/NAME before backbone="),
        ("timm/resnet9999", "such as"),
        ("stillroom/pyramid", "stillroom/pyramidWIDTH"),
    ):
        with pytest.raises(InputError, match=said):
            build_multitask(spec, ALL)


def test_a_network_of_ones_own_that_lacks_a_target(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "class N(nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.heads = nn.ModuleDict({name: nn.Conv2d(3, count, 1) for name, count in channels.items()})\n"
        "    def forward(self, x):\n"
        "        return {name: head(x) for name, head in self.heads.items()}\n"
        "def build(channels):\n"
        "    return N(channels)\n"
        "def fewer(channels):\n"
        "    return N({'depth': 1})\n"
    )
    network = build_multitask(f"{tmp_path / 'nets.py'}:build", ALL).network
    assert network.targets == ALL
    with pytest.raises(InputError, match=r"which answers with \{'depth': \[1, 1, 64, 64\]\}, expected raw answers \{parts: \[B, 3, h, w\]"):
        build_multitask(f"{tmp_path / 'nets.py'}:fewer", ALL)


def test_normals_that_point_the_wrong_way_are_remarked_on(root: Path) -> None:
    data = MultiTaskData(f"dense:{root}")

    def said(degrees: float) -> list[str]:
        result: Any = SimpleNamespace(metrics={"normals mean angle": degrees})
        report: Any = SimpleNamespace(arms={"alone": [result]})
        return data.task.remarks(report, data)  # type: ignore[attr-defined, no-any-return]

    assert said(40.0) == []
    assert said(150.0) == ["alone: normals are 150 degrees off on average: do all axes point the same way?"]


def test_a_change_of_metres_has_the_digits_that_tell_it() -> None:
    changed = np.array([-0.02, -0.04])
    assert change_cell(-0.03, changed, higher_is_better=False, decimals=3) == '<td class="first up">−0.030 ± 0.014</td>'
    assert change_cell(-0.03, changed) == '<td class="first">0.0 ± 0.0</td>'
