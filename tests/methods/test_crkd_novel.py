"""Networks with known and novel classes: their parts, and that a run's folder builds them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.methods.crkd.novel import NovelClassifier, NovelHead, NovelSpec, Prototypes, headless
from stillroom.tasks.classification import build_classifier

SPEC = NovelSpec("stillroom/resnet8", 4, hidden=8, projection=6, layers=2)


def test_cosines() -> None:
    prototypes = Prototypes(5, 3)
    prototypes.normalise()
    features = torch.randn(4, 5)
    cosines = prototypes(features)
    assert cosines.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(prototypes(10 * features), cosines)
    torch.testing.assert_close(prototypes(prototypes.weight).diagonal(), torch.ones(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prototypes(features), cosines)


def test_normalising_keeps_the_optimisers_parameter() -> None:
    prototypes = Prototypes(5, 3)
    before = prototypes.weight
    prototypes.normalise()
    assert prototypes.weight is before
    assert before.requires_grad
    assert before.grad_fn is None


@pytest.mark.parametrize("layers", [1, 3])
def test_a_projector_has_as_many_hidden_layers(layers: int) -> None:
    head = NovelHead(10, 3, hidden=7, projection=4, layers=layers)
    widths = [(module.in_features, module.out_features) for module in head.projector if isinstance(module, nn.Linear)]
    assert widths == [(10, 7), *[(7, 7)] * (layers - 1), (7, 4)]
    assert sum(isinstance(module, nn.BatchNorm1d) for module in head.projector) == layers
    assert head(torch.randn(5, 10)).shape == (5, 3)


@given(
    st.sampled_from(["stillroom/resnet8", "timm/vit_base_patch16_224.dino", "/some/where,else/nets.py:build", "my.nets:build"]),
    *[st.integers(1, 4096)] * 4,
    st.floats(1e-6, 10),
)
def test_a_specification_is_read_as_it_was_written(
    backbone: str, known: int, hidden: int, projection: int, layers: int, tau: float
) -> None:
    spec = NovelSpec(backbone, known, hidden, projection, layers, tau)
    assert NovelSpec.parse(str(spec), "model") == spec


def test_a_network_by_its_specification() -> None:
    built = build_classifier(str(SPEC), num_classes=7, image_size=16)
    assert built.spec == str(SPEC)
    assert isinstance(built.network, NovelClassifier)
    assert built.network.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 7)


def test_of_a_runs_folder(tmp_path: Path) -> None:
    network = build_classifier(str(SPEC), num_classes=7, image_size=16).network.eval()
    save_weights(network, tmp_path / "student.safetensors")
    (tmp_path / "student.json").write_text(json.dumps({"model": str(SPEC), "num_classes": 7, "image_size": 16}))
    again = build_classifier(str(tmp_path), num_classes=7).network.eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images), again(images))


def test_code_inside_a_runs_folder_is_not_run_unasked(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("raise SystemExit('it ran')")
    spec = NovelSpec(f"{tmp_path / 'nets.py'}:build", 4)
    (tmp_path / "student.json").write_text(json.dumps({"model": str(spec), "num_classes": 7, "image_size": 16}))
    with pytest.raises(InputError, match="trust_code=True"):
        build_classifier(str(tmp_path), num_classes=7)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("novel:stillroom/resnet8", "novel:BACKBONE,known=L"),
        (str(NovelSpec("stillroom/resnet8", 8)), "from 1 to 7"),
        (str(NovelSpec("stillroom/none", 4)), "a network of Stillroom"),
        (str(NovelSpec("stillroom/resnet8", 4, hidden=0)), "hidden: got 0"),
    ],
)
def test_what_it_refuses(spec: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        build_classifier(spec, num_classes=7, image_size=16)


def test_only_a_classifier_has_a_head_to_leave_out() -> None:
    body, features = headless(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4)), 4, "student")
    assert features == 5
    assert body(torch.randn(2, 3, 2, 2)).shape == (2, 5)
    for network in (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 5))):
        with pytest.raises(InputError, match="student: got"):
            headless(network, 4, "student")
