import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from stillroom.engine.folding import fold_batchnorm
from stillroom.engine.tap import tap
from stillroom.errors import InputError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def randomised(network, seed=0):
    """Batch norms with statistics and affine parameters far from the identity they start as."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    return network.eval()


def norms(network):
    return sum(isinstance(module, NORMS) for module in network.modules())


def assert_same(network, folded, *inputs):
    with torch.no_grad():
        expected, got = network.eval()(*inputs), folded(*inputs)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


class SharedConv(nn.Module):
    """One convolution between two batch norms, another before a norm and a shortcut, and one that can be folded."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.shared, self.first, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.residual, self.residual_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.one, self.two, self.shared_norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.stem_norm(self.stem(x))
        x = self.first(self.shared(x)) + self.second(self.shared(x).relu())
        y = self.residual(x)
        x = self.residual_norm(y) + y
        return self.shared_norm(self.one(x)) - self.shared_norm(self.two(x))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda: timm.create_model("resnet18"), 0),
        (lambda: timm.create_model("mobilenetv3_small_100"), 0),
        (lambda: timm.create_model("densenet121"), 62),  # norm before convolution: only the second norm of each layer follows one
        (lambda: torchvision.models.shufflenet_v2_x0_5(weights=None), 0),
        (lambda: torchvision.models.densenet121(weights=None), 62),
        (SharedConv, 4),
    ],
    ids=["resnet18", "mobilenetv3", "timm-densenet", "shufflenet", "densenet", "shared"],
)
def test_the_same_function(build, left):
    torch.manual_seed(0)
    network = randomised(build())
    folded = fold_batchnorm(network)
    assert norms(folded) == left
    assert_same(network, folded, torch.randn(2, 3, 64, 64))


def test_the_original_is_untouched():
    network = randomised(timm.create_model("resnet18")).train()
    before = copy.deepcopy(network.state_dict())
    folded = fold_batchnorm(network)
    assert network.training
    assert not folded.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert isinstance(folded.layer1[0].bn1, nn.Identity)
    assert {name for name, _ in network.named_modules()} == {name for name, _ in folded.named_modules()}


def test_timm_norm_with_activation_keeps_its_activation_and_children():
    network = randomised(timm.create_model("mobilenetv3_small_100"))
    folded = fold_batchnorm(network)
    assert {name for name, _ in network.named_modules()} == {name for name, _ in folded.named_modules()}
    assert type(folded.bn1.act) is type(network.bn1.act)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_and_bias(dtype):
    network = randomised(
        nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3, affine=False), nn.Conv1d(3, 2, 1, bias=False), nn.BatchNorm1d(2))
    )
    network = network.to(dtype)
    folded = fold_batchnorm(network)
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    x = torch.randn(2, 2, 8, dtype=dtype)
    assert torch.allclose(
        network(x), folded(x), rtol=1e-1 if dtype == torch.bfloat16 else 1e-12, atol=5e-2 if dtype == torch.bfloat16 else 1e-12
    )


def test_kept_layers_keep_their_outputs():
    network = randomised(timm.create_model("resnet18"))
    paths = ["layer1.0.conv1", "layer2.0.downsample.0", "layer1.0.bn2", "layer3"]
    folded = fold_batchnorm(network, keep=paths)
    assert isinstance(folded.layer1[0].bn1, nn.BatchNorm2d)
    assert isinstance(folded.layer1[0].bn2, nn.Identity)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = tap(network, *paths)(x)[1], tap(folded, *paths)(x)[1]
    for path in paths:
        assert torch.allclose(got[path], expected[path], rtol=1e-4, atol=1e-4 * expected[path].abs().max())


def test_a_kept_container_that_ends_with_the_convolution():
    network = randomised(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)))
    assert norms(fold_batchnorm(network)) == 0
    assert norms(fold_batchnorm(network, keep=["0"])) == 1


def test_linear_layers_and_the_axis_they_could_be_confused_about():
    network = randomised(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    folded = fold_batchnorm(network)
    assert norms(folded) == 0
    assert_same(network, folded, torch.randn(5, 3))
    with pytest.raises(InputError, match="fold"):
        folded(torch.randn(5, 4, 3))


@pytest.mark.parametrize("target", ["0", "1"])
def test_modules_with_hooks_stay(target):
    network = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    network.get_submodule(target).register_forward_hook(lambda module, inputs, output: output * 2)
    folded = fold_batchnorm(network)
    assert norms(folded) == 1
    assert_same(network, folded, torch.randn(2, 3, 4, 4))


def test_batch_statistics_and_computed_weights_stay():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    nn.utils.parametrizations.weight_norm(network[2])
    assert norms(fold_batchnorm(network)) == 2


def test_a_parameter_read_elsewhere_and_a_tied_weight():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.other, self.other_norm, self.tied = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
            self.tied.weight = self.other.weight

        def forward(self, x):
            y = self.other_norm(self.other(x)) + self.tied(x)
            return self.norm(self.conv(x)) * self.conv.weight.sum() + y

    network = randomised(Reads())
    folded = fold_batchnorm(network)
    assert norms(folded) == 1
    assert_same(network, folded, torch.randn(2, 3, 4, 4))


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.alias = self.net[1]

    def forward(self, x):
        return self.net(x)


def test_a_norm_under_two_names_is_replaced_under_both():
    network = randomised(TwoNames())
    folded = fold_batchnorm(network)
    assert isinstance(folded.alias, nn.Identity)
    assert folded.alias is folded.net[1]
    assert_same(network, folded, torch.randn(2, 3, 4, 4))


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_what_cannot_be_traced_stays_and_the_rest_is_folded():
    network = randomised(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Dynamic()))
    assert norms(fold_batchnorm(network)) == 1
    assert norms(fold_batchnorm(network[2])) == 1
    assert_same(network, fold_batchnorm(network), torch.rand(2, 3, 4, 4))


def test_a_convolution_that_an_untraced_part_also_runs_stays():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Dynamic())
    network[2].conv = network[0]
    folded = fold_batchnorm(randomised(network))
    assert norms(folded) == 2
    assert_same(network, folded, torch.rand(2, 3, 4, 4))
