import time

import pytest
import torch
from torch import nn

from stillroom.engine.run.measure import Footprint, measure
from stillroom.errors import InputError


@pytest.fixture(autouse=True, scope="module")
def hasty() -> None:
    """Takes the place of the suite's: here latency is what is tested."""


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 10)
    )


def test_counts_by_hand() -> None:
    footprint = measure(small_net(), torch.randn(1, 3, 4, 4))
    assert isinstance(footprint, Footprint)
    assert footprint.parameters == 3 * 8 * 9 + 2 * 8 + 128 * 10 + 10
    assert footprint.macs == 16 * 3 * 8 * 9 + 128 * 10
    assert footprint.bytes == 4 * (footprint.parameters + 2 * 8) + 8  # running mean and variance; the int64 batch counter
    assert footprint.latency_ms > 0


def test_tied_weights_count_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    footprint = measure(net, torch.randn(1, 4))
    assert (footprint.parameters, footprint.bytes, footprint.macs) == (16, 64, 32)


def test_bytes_follow_precision_and_skip_what_is_not_saved() -> None:
    net = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    net.register_buffer("cache", torch.zeros(1000), persistent=False)
    assert measure(net, torch.randn(1, 4, dtype=torch.bfloat16)).bytes == 32


def test_attention_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    tokens, width, hidden = 5, 8, 16
    macs = measure(layer, torch.randn(1, tokens, width)).macs
    assert macs == tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width


def test_leaves_no_trace() -> None:
    net = small_net().train()
    net[1].eval()
    net[5].weight.grad = torch.ones_like(net[5].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measure(net, torch.ones(1, 3, 4, 4))
    assert torch.equal(torch.rand(2), expected)
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert net.training
    assert torch.equal(net[5].weight.grad, torch.ones(10, 128))
    assert net[0].weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.is_grad_enabled()


def test_restores_the_mode_when_the_network_fails() -> None:
    net = nn.Linear(4, 4).train()
    with pytest.raises(RuntimeError):
        measure(net, torch.randn(1, 5))
    assert net.training


class Uncountable(nn.Module):
    """Fails only under the counter's dispatch mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise NotImplementedError
        return x


def test_macs_are_none_where_they_cannot_be_counted() -> None:
    assert measure(Uncountable(), torch.randn(1, 4)).macs is None
    assert measure(nn.ReLU(), torch.randn(1, 4)).macs is None


def test_stays_short_on_a_slow_network() -> None:
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return x

    start = time.perf_counter()
    latency = measure(Slow(), torch.randn(1, 4)).latency_ms
    assert 45 < latency < 500
    assert time.perf_counter() - start < 3


def test_wants_one_sample() -> None:
    with pytest.raises(InputError, match="example_inputs"):
        measure(nn.Linear(4, 4), torch.randn(2, 4))
