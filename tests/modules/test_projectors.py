from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stillroom.errors import InputError
from stillroom.modules.projectors import ConvRegressor, LinearEmbedding, probing


@pytest.mark.parametrize("shape", [(4, 12), (1, 12), (4, 12, 1, 1), (4, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_have_unit_length(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    embedding = LinearEmbedding(12, 8)(torch.randn(shape).to(dtype))
    assert embedding.shape == (shape[0], 8)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(shape[0]))


def test_embedding_has_128_dimensions_by_default() -> None:
    assert LinearEmbedding(3)(torch.randn(2, 3)).shape == (2, 128)


def test_embedding_refuses_other_widths() -> None:
    with pytest.raises(InputError, match="in_features"):
        LinearEmbedding(0)
    with pytest.raises(InputError, match=r"features: .*\(2, 5\).*\[B, 3\]"):
        LinearEmbedding(3)(torch.randn(2, 5))


side = st.integers(1, 12)


@settings(max_examples=60, deadline=None)
@given(sides=st.tuples(side, side), hint_sides=st.tuples(side, side), grows=st.booleans())
def test_regressor_reaches_the_teachers_shape(sides: tuple[int, int], hint_sides: tuple[int, int], grows: bool) -> None:
    low = tuple(min(pair) for pair in zip(sides, hint_sides, strict=True))
    high = tuple(max(pair) for pair in zip(sides, hint_sides, strict=True))
    ours, hint = (low, high) if grows else (high, low)
    regressor = ConvRegressor((2, *ours), (3, *hint))
    assert regressor(torch.randn(2, 2, *ours)).shape == (2, 3, *hint)


def test_regressor_kernel_is_the_papers_where_no_stride_fits() -> None:
    conv = ConvRegressor((2, 7, 7), (3, 5, 5)).conv
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (0, 0))
    same = ConvRegressor((2, 7, 7), (3, 7, 7)).conv
    assert isinstance(same, nn.Conv2d)
    assert same.kernel_size == (1, 1)


def test_regressor_shares_the_hints_non_linearity() -> None:
    features = torch.randn(4, 2, 6, 6)
    assert ConvRegressor((2, 6, 6), (3, 6, 6), relu=True)(features).min() == 0
    assert ConvRegressor((2, 6, 6), (3, 6, 6), relu=False)(features).min() < 0


def test_regressor_takes_one_sample_and_bf16() -> None:
    regressor = ConvRegressor((2, 4, 4), (3, 2, 2)).bfloat16()
    mapped = regressor(torch.randn(1, 2, 4, 4, dtype=torch.bfloat16))
    assert mapped.shape == (1, 3, 2, 2)
    assert mapped.dtype == torch.bfloat16


@pytest.mark.parametrize(("student", "teacher"), [((2, 4), (3, 2, 2)), ((2, 4, 4), (3, 0, 2)), ((2, 8, 4), (3, 4, 8))])
def test_regressor_refuses_shapes_it_cannot_join(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="_shape"):
        ConvRegressor(student, teacher)


def test_regressor_refuses_other_maps() -> None:
    with pytest.raises(InputError, match=r"features_BCHW: .*\[B, 2, 4, 4\]"):
        ConvRegressor((2, 4, 4), (3, 2, 2))(torch.randn(1, 2, 5, 4))


def test_probing_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    network[1].eval()
    network.append(nn.RReLU())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    before = torch.get_rng_state()
    example = torch.randn(2, 3)
    torch.set_rng_state(before)
    with probing(network, example):
        torch.rand(5)
        assert not network(example).requires_grad
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])


def test_probing_restores_the_modes_after_an_error() -> None:
    network = nn.Linear(3, 3)
    with pytest.raises(RuntimeError), probing(network, torch.zeros(1, 4)):
        network(torch.zeros(1, 4))
    assert network.training
