"""OTD: its banks, its streams, two domains, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import conv2d, cross_entropy

from stillroom.cli import main
from stillroom.engine.training import Progress
from stillroom.errors import InputError
from stillroom.methods.otd import OTD, Taxonomy
from stillroom.methods.otd.bank import GradientBank
from stillroom.methods.otd.data import DomainData
from stillroom.methods.otd.gradients import head_gradients, moments
from stillroom.methods.otd.history import History
from stillroom.methods.otd.mixing import Mixed, mix
from stillroom.methods.otd.recipe import PRESETS
from stillroom.methods.otd.taxonomy import read_taxonomy
from stillroom.methods.otd.trajectory import CrossClass, CrossDomain
from stillroom.tasks.nuclei import build_nuclei_network
from stillroom.tasks.nuclei.networks import small_network
from tests.tasks.nuclei.miniatures import folder, lizard, pannuke

SMALL = (
    *("--target", "drawn:domain=target,train=16,val=3", "--source", "drawn:domain=source,train=8,val=1", "--few", "3"),
    *("--batch-size", "4", "--student", "stillroom/nuclei4_2", "--accelerator", "cpu"),
    *("--refresh-capacities", "1", "--history-capacity", "2", "--domain-weight", "1e5", "--class-weight", "1e5"),
)
TAX = Taxonomy(("a", "b", "c"), ("x", "y"), (0, 1, 1, 2), (3,), (1, 2))


def drawn(**options: Any) -> DomainData:
    return DomainData("drawn:train=16,val=3", source="drawn:domain=source,train=8,val=1", batch_size=4, **{"few": "3", **options})


# Mathematics ----------------------------------------------------------------------------------------------------------------------------


def test_gradients_of_each_image_equal_autograd_s() -> None:
    torch.manual_seed(0)
    head, features, labels = nn.Conv2d(5, 3, 1).double(), torch.randn(4, 5, 6, 7, dtype=torch.float64), torch.randint(3, (4, 6, 7))
    weight_NCD, bias_NC = head_gradients(features, head(features), labels)
    for number in range(4):
        loss = cross_entropy(head(features[number, None]), labels[number, None]) / 4
        weight, bias = torch.autograd.grad(loss, list(head.parameters()))
        torch.testing.assert_close(weight_NCD[number], weight[:, :, 0, 0])
        torch.testing.assert_close(bias_NC[number], bias)


def test_one_image_has_no_variance() -> None:
    mean, variance = moments(torch.randn(1, 4))
    assert mean.any()
    assert not variance.any()


def test_a_bank_s_subspace_by_a_singular_value_decomposition_whichever_side_is_longer() -> None:
    torch.manual_seed(1)
    for d, capacity in ((6, 4), (300, 9), (5, 12)):
        bank = GradientBank(d, capacity, capacity, energy=0.9)
        vectors = torch.randn(capacity + 1, 3) @ torch.randn(3, d) + 0.01 * torch.randn(capacity + 1, d)
        for number, vector in enumerate(vectors):
            bank.update(vector)
            assert (bank.basis is None) == (number < capacity)
        ring = torch.cat((vectors[capacity:], vectors[1:capacity])).T
        u, s, _ = torch.linalg.svd(ring, full_matrices=False)
        r = 1 + int(((s**2).cumsum(0) / (s**2).sum() < 0.9).sum())
        assert bank.rank == r
        x = torch.randn(d)
        torch.testing.assert_close(bank(x), u[:, :r] @ (u[:, :r].T @ x), rtol=1e-3, atol=1e-4)


def test_a_bank_of_zeros_stays_without_subspace_and_one_goes_on_from_what_it_held() -> None:
    bank, other = GradientBank(3, 2, 2, 0.98), GradientBank(3, 2, 2, 0.98)
    for _ in range(5):
        bank.update(torch.zeros(3))
    assert bank.basis is None
    other.take_up(bank.held())
    for one in (bank, other):
        one.update(torch.arange(3.0))
        one.update(torch.ones(3))
        assert one.rank
    torch.testing.assert_close(bank(torch.eye(3)), other(torch.eye(3)))


def test_history_leaves_norms_alone_and_says_what_is_too_large() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 30, 3))
    with pytest.warns(UserWarning, match=r"no history is kept of 2.weight: more than 100 entries"):
        history = History(network.named_parameters(), weight=0.5, energy=0.98, largest=100, capacity=4)
    assert list(history.banks) == ["0/weight"]
    bank = history.banks["0/weight"]
    assert isinstance(bank, GradientBank)
    assert bank.most_bytes == 8 * 54 * 43
    for _ in range(44):  # one direction over and over
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        history.reinforce()
    torch.testing.assert_close(network[0].weight.grad, torch.full((3, 2, 3, 3), 1.5))
    assert all((network[number].weight.grad == 1).all() for number in (1, 2))


def test_every_nucleus_of_the_few_covers_the_target() -> None:
    few = Mixed(torch.full((1, 3, 2, 2), 9.0), torch.tensor([[[1, 0], [0, 1]]]), torch.tensor([[[2, 0], [0, 1]]]))
    target = Mixed(torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 1], [0, 0]]]), torch.tensor([[[0, 3], [0, 0]]]))
    mixed = mix(target, few)
    assert mixed.types.tolist() == [[[2, 3], [0, 1]]]
    assert mixed.nuclei.tolist() == [[[1, 1], [0, 1]]]
    assert mixed.images[0, 0].tolist() == [[9, 0], [0, 9]]
    nothing = mix(target, Mixed(few.images, torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long()))
    assert (nothing.types == target.types).all()


def test_equal_domains_have_no_distance_and_a_detached_teacher_gets_no_gradient() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    half, labels = torch.randn(2, 4, 3, 3), torch.randint(3, (2, 3, 3))
    for detach in (False, True):
        stream = CrossDomain(3, 4, momentum=0.5, bank=lambda d: None, detach=detach)
        features = torch.cat((half, half)).requires_grad_()
        assert stream(features, conv2d(features, weight[:, :, None, None]), torch.cat((labels, labels))).item() == 0
        features = torch.cat((half, half + 1)).requires_grad_()
        loss = stream(features, conv2d(features, weight[:, :, None, None]), torch.cat((labels, labels)))
        (gradient,) = torch.autograd.grad(loss, features)
        assert loss > 0
        assert gradient[:2].any() != detach
        assert gradient[2:].any()


def test_vectors_of_classes_can_be_matched_entry_by_entry() -> None:
    torch.manual_seed(0)
    features, logits, labels = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    means, entries = (
        CrossClass(4, 4, (3,), (1, 2), momentum=0.0, bank=lambda d: None, vectors=vectors)(features, logits, labels)
        for vectors in (False, True)
    )
    assert 0 < means < entries  # a mean of squares is at least the square of the mean


# Taxonomies and data --------------------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_taxonomy_is_named(tmp_path: Path) -> None:
    fine, coarse = ("a", "b", "c"), ("x", "y")
    good = {"a": "x", "b": "x", "c": "y"}
    assert Taxonomy.of(fine, coarse, good) == TAX
    assert Taxonomy.of(fine, coarse, good, ["b"]).reliable == (1, 3)
    for mapped, new, said in (
        ({"a": "x", "b": "x"}, None, "no coarse class for c"),
        ({**good, "d": "x"}, None, "taxonomy: got d"),
        ({**good, "c": "z"}, None, "taxonomy: got z"),
        (good, ["e"], "new_classes: got e"),
    ):
        with pytest.raises(InputError, match=said):
            Taxonomy.of(fine, coarse, mapped, new)
    with pytest.raises(InputError, match="new_classes: got a, expected classes that are not reliable"):
        Taxonomy(fine, coarse, (0, 1, 1, 2), (1, 3), (1,))
    with pytest.raises(InputError, match="taxonomy"):
        Taxonomy(fine, coarse, (0, 1, 1, 3), (), ())
    file = tmp_path / "t.yaml"
    file.write_text("a: x\nb: x\nc: y\n")
    assert read_taxonomy(file) == good
    file.write_text("- a\n- b\n")
    with pytest.raises(InputError, match="lines of the form"):
        read_taxonomy(file)


def test_the_few_are_named_or_chosen_and_are_not_among_the_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("3\n7\n")
    data = drawn(few=str(tmp_path / "few.txt"))
    assert data.few_names == ["3", "7"]
    loader = data.train_loader(seed=0)
    assert len(loader) == 2  # of the source, the shorter one
    batch = next(iter(loader))
    assert [len(one.images) for one in batch.values()] == [4, 4, 4]
    few = {tuple(image.flatten()[:50].tolist()) for image in batch["few"].images}
    assert len(few) == 2  # each twice
    assert data.fingerprint != drawn().fingerprint
    chosen = drawn(few="3")
    counts = [np.bincount(chosen.training_images.nuclei(int(name)).types, minlength=7)[[1, 4, 5]].sum() for name in chosen.few_names]
    assert min(counts) >= 1
    few = drawn(few="6").few_names  # every class of the target is among six
    assert (sum(np.bincount(chosen.training_images.nuclei(int(name)).types, minlength=7) for name in few)[1:] > 0).all()
    for few_option, said in (
        ("16", "a number from 1 to 15"),
        ("0", "a number from 1"),
        (str(tmp_path / "none.txt"), "a number, or a text"),
    ):
        with pytest.raises(InputError, match=said):
            drawn(few=few_option)
    (tmp_path / "few.txt").write_text("3\nother\n")
    with pytest.raises(InputError, match="which names other"):
        drawn(few=str(tmp_path / "few.txt"))


def test_a_target_without_labels_but_for_the_few_and_other_classes_than_the_source(tmp_path: Path) -> None:
    folder(tmp_path / "target/train", 6, 3, labelled=2)
    folder(tmp_path / "target/test", 2, 3)
    folder(tmp_path / "source", 6, 2)
    (tmp_path / "t.yaml").write_text("a: x\nb: x\nc: y\n")
    (tmp_path / "few.txt").write_text("p1.png\n")
    options: dict[str, Any] = {"source": f"nuclei:{tmp_path / 'source'},classes=x+y", "batch_size": 4, "image_size": 16}
    place = f"nuclei:{tmp_path / 'target'},classes=a+b+c"
    data = DomainData(place, taxonomy=tmp_path / "t.yaml", few=str(tmp_path / "few.txt"), **options)
    assert data.taxonomy.new == (1, 2)
    assert data.apart == ("a", "b")
    assert data.train_loader(seed=0).first(2).keys() == {"source", "target", "few"}
    (tmp_path / "few.txt").write_text("p5\n")
    with pytest.raises(InputError, match=r"p5\.png, without labels"):
        DomainData(place, taxonomy=tmp_path / "t.yaml", few=str(tmp_path / "few.txt"), **options)
    with pytest.raises(InputError, match="taxonomy: got None, expected a file"):
        DomainData(place, few="1", **options)
    with pytest.raises(InputError, match="target: got 4 training images, expected at least a batch of 5"):
        DomainData(place, taxonomy=tmp_path / "t.yaml", few="2", **{**options, "batch_size": 5})


def test_batches_of_unlike_size_are_refused_and_terms_come_after_the_first_epoch() -> None:
    data = drawn()
    distiller = OTD(small_network(4, 2, 6), data.taxonomy)
    batch = data.train_loader(seed=0).first(4)
    distiller.progress = Progress(1, 3, 0, 2)
    assert distiller.losses(batch).terms.keys() == {"source", "few"}
    assert not any(bank.count for _, bank in distiller._banks())
    distiller.progress = Progress(2, 3, 2, 2)
    terms = distiller.losses(batch).terms
    assert terms.keys() == {
        *("source", "few", "mix_nuclei", "mix_coarse", "mix_types"),
        *("domain_nuclei", "domain_types", "classes"),
    }
    assert {bank.count for name, bank in distiller._banks() if "history" not in name} == {1}
    batch["few"] = data.train_loader(seed=0).first(3)["few"]
    with pytest.raises(InputError, match="4 of source, 4 of target, 3 of few"):
        distiller.losses(batch)


# Runs -----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("otd") / "run"
    assert main(["run", "otd", *SMALL, "--epochs", "4", "--arms", "alone+otd", "--out", str(out)]) == 0
    return out


def test_the_report_has_arms_new_classes_and_both_domains(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["alone", "otd"]
    assert "mDice apart" in metrics["summary"]["otd"]["metrics"]
    history = metrics["stages"]["otd"][0]["history"]
    assert "train/classes" not in history[0]
    assert {"train/classes", "train/domain_types", "train/cosine/types"} <= history[1].keys()
    page = (run / "report.html").read_text()
    assert "source: procedural data" in page
    assert "taxonomy: neutrophil -&gt; inflammatory" in page
    student = load_file(run / "student.safetensors")
    assert not any("coarse" in name for name in student)  # dropped


def test_a_run_that_was_killed_goes_on_with_the_same_banks(run: Path, tmp_path: Path) -> None:
    words = ["run", "otd", *SMALL, "--epochs", "4", "--arms", "alone+otd", "--out", str(tmp_path / "run")]
    saved = OTD.on_train_batch_start

    def killed(self: OTD, batch: Any, batch_idx: int) -> None:
        saved(self, batch, batch_idx)
        if self.mixing and self.progress.step == 5:  # the second step of the third epoch
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OTD, "on_train_batch_start", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(words)
    assert main(words) == 0
    one, two = (load_file(folder / "student.safetensors") for folder in (run, tmp_path / "run"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arms", "alone+all"), "--arms: got alone+all"),
        (("--energy", "2"), "--energy: got 2"),
        (("--few", "40"), "--few: got 40"),
        (("--new-classes", "lymph"), "--new-classes: got lymph"),
        (("--batch-size", "9"), "--source: got 8 training images, expected at least a batch of 9"),
        (("--source", "drawn:domain=else"), "domain: got else"),
    ],
)
def test_what_is_wrong_is_said_at_once(words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "otd", *SMALL, *words, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_the_paper_s_networks_take_a_step_on_its_data_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "otd", "--preset", "paper", "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    paper = {"domain_weight": 1000.0, "refresh_capacities": 10, "history_capacity": 300, "lr": 1e-4, "batch_size": 4, "epochs": 15}
    assert {name: values[name] for name in paper} == paper
    preset = PRESETS["paper"]
    pannuke(tmp_path / "pannuke", 2)
    lizard(tmp_path / "lizard", 9)
    names = {"neutrophil": "inflammatory", "epithelial": "epithelial", "lymphocyte": "inflammatory"}
    names |= {"plasma": "inflammatory", "eosinophil": "inflammatory", "connective": "connective"}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(names))
    data = DomainData(
        f"lizard:{tmp_path / 'lizard'}",
        source=f"pannuke:{tmp_path / 'pannuke'}",
        taxonomy=tmp_path / "t.yaml",
        few="2",
        new_classes=preset["new_classes"],
        image_size=16,
        batch_size=2,
        augment=preset["augment"],
    )
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="no history is kept of u3"):
        distiller = OTD(build_nuclei_network(preset["student"], num_classes=6).network, data.taxonomy)
    distiller.progress = Progress(2, 15, 1, 1)
    loss = distiller.losses(next(iter(data.train_loader(seed=0)))).total
    loss.backward()
    distiller.on_before_optimizer_step(None)
    assert torch.isfinite(loss)
