import copy
import math
import pickle
from typing import NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from stillroom.engine import teacher as teacher_module
from stillroom.engine.teacher import Renormalise, Teacher
from stillroom.errors import InputError


class Batch(NamedTuple):
    images: Tensor
    ids: Tensor

    @property
    def inputs(self) -> Tensor:
        return self.images


class Net(nn.Module):
    def __init__(self, classes=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, classes)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.fc(self.drop(self.act(self.norm(self.conv(x))).mean((2, 3))))


@pytest.fixture
def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def answer(network, images):
    with torch.no_grad():
        return copy.deepcopy(network).eval()(images)


def test_the_same_teacher_around_the_features_of_its_network(images):
    teacher = Teacher(Net(), precision="fp32", renormalise=Renormalise((0.5,) * 3, (0.5,) * 3, (0.1,) * 3, (1.0,) * 3))
    features = teacher.around(lambda network: nn.Sequential(network.conv, network.norm))
    told, (_, expected) = features(images), teacher.tap("norm")(images)
    torch.testing.assert_close(told, expected["norm"], rtol=1e-4, atol=1e-5)
    assert teacher(images).shape == (6, 4)  # and is itself what it was


@pytest.mark.parametrize("options", [{}, {"fold": False}, {"channels_last": False}, {"precision": "bf16"}, {"precision": "fp32"}])
def test_answers_in_eval_mode_and_leaves_the_network_as_it_was(images, options):
    network = Net()  # in training mode, with dropout
    before = copy.deepcopy(network.state_dict())
    logits = Teacher(network, **options)(Batch(images, torch.arange(6)))
    assert torch.allclose(logits, answer(network, images), atol=1e-5 if options.get("precision") == "fp32" else 3e-2)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert network.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.conv.weight.is_contiguous()


def test_is_no_part_of_the_module_that_holds_it(images):
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    keys, parameters = set(student.state_dict()), len(list(student.parameters()))
    student.teacher = Teacher(Net(), precision="fp32")
    expected = student.teacher(images)
    assert set(student.state_dict()) == keys
    assert len(list(student.parameters())) == parameters
    student.train()
    assert torch.equal(student.teacher(images), expected)
    student.double()
    assert torch.equal(student.teacher(images), expected)


def test_never_in_a_gradient_but_usable_in_the_students_loss(images):
    class Stubborn(Net):
        def forward(self, x):
            with torch.enable_grad():
                return super().forward(x)

    network = Stubborn()
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    output, features = Teacher(network).tap("fc")(images.requires_grad_())
    assert not output.requires_grad
    assert not features["fc"].requires_grad
    (student(images) * Teacher(network)(images)).sum().backward()  # multiplication saves the teacher's answer
    assert student[1].weight.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: timm.create_model("resnet18", num_classes=10), 64),
        (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32), 32),
        (lambda: torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=10), 64),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 16, 8, 8), nn.Flatten(2), nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
            ),
            32,
        ),
    ],
    ids=["resnet18", "vit", "shufflenet", "transformer"],
)
def test_reduced_precision_agrees_with_full(build, size, precision):
    torch.manual_seed(0)
    network, images = build(), torch.randn(2, 3, size, size)
    full, reduced = Teacher(network, precision="fp32")(images), Teacher(network, precision=precision)(images)
    assert reduced.dtype == torch.float32
    assert torch.allclose(full, answer(network, images), atol=1e-4, rtol=1e-4)
    assert (full - reduced).abs().max() <= 0.05 * full.abs().max()
    assert not torch.equal(full, reduced)


def test_reduced_precision_casts_layers_once_and_nothing_else(images):
    teacher = Teacher(Net(), precision="bf16", fold=False)
    teacher(images)
    ready = teacher._prepared.networks[0]
    assert ready.conv.weight.dtype == ready.fc.bias.dtype == torch.bfloat16
    assert ready.norm.weight.dtype == ready.norm.running_mean.dtype == torch.float32
    assert ready.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_tied_embedding_stays_in_full_precision():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens).mean(1))

    teacher = Teacher(Tied(), precision="bf16")
    assert teacher(torch.tensor([[1, 2], [3, 4]])).shape == (2, 7)
    assert teacher._prepared.networks[0].embed.weight.dtype == torch.float32


def test_full_precision_within_an_autocast_region_and_half_inputs(images):
    network = Net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = Teacher(network, precision="fp32")(images)
    assert torch.allclose(logits, answer(network, images), atol=1e-5)
    assert Teacher(network, precision="fp32")(images.bfloat16()).dtype == torch.float32
    assert Teacher(copy.deepcopy(network).half(), precision="fp32")(images).dtype == torch.float32


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"), [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, None)]
)
def test_auto_precision_follows_the_machine(images, monkeypatch, amx, avx512, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    teacher = Teacher(Net())
    teacher(images)
    assert teacher._prepared.dtype == expected


def test_auto_precision_without_pytorchs_private_names(images, monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert teacher_module._resolved("auto", torch.device("cpu")) == "fp32"


def test_a_network_that_needs_the_ordinary_layout(images):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 4)

        def forward(self, x):
            x = self.conv(x)
            return self.fc(x.view(x.size(0), -1))

    network = Views()
    teacher = Teacher(network, precision="fp32")
    for _ in range(2):
        assert torch.allclose(teacher(images), answer(network, images), atol=1e-5)
    assert torch.allclose(teacher.tap("conv")(images)[0], answer(network, images), atol=1e-5)


def test_an_error_of_the_network_itself_comes_through():
    with pytest.raises(RuntimeError, match="channels"):
        Teacher(Net(), precision="fp32")(torch.ones(1, 5, 8, 8))


def test_ensemble_mathematics(images):
    members = [Net(seed=seed) for seed in range(3)]
    answers = [answer(member, images) for member in members]
    weights = [1.0, 0.0, 3.0]

    mean = Teacher(members, precision="fp32", weights=weights, combine="logits")(images)
    assert torch.allclose(mean, answers[0] / 4 + answers[2] * 3 / 4, atol=1e-5)

    logits = Teacher(members, precision="fp32", weights=weights)(images)
    assert torch.allclose(logits.exp(), answers[0].softmax(1) / 4 + answers[2].softmax(1) * 3 / 4, atol=1e-5)
    assert torch.allclose(logits.exp().sum(1), torch.ones(6), atol=1e-5)

    assert torch.allclose(Teacher(members, precision="fp32")(images).exp(), sum(a.softmax(1) for a in answers) / 3, atol=1e-5)
    assert torch.allclose(Teacher(members[:1], precision="fp32")(images), answers[0], atol=1e-5)


def test_ensemble_survives_extreme_logits():
    class Constant(nn.Module):
        def __init__(self, *logits):
            super().__init__()
            self.register_buffer("logits", torch.tensor([logits]))

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    logits = Teacher([Constant(1e4, -1e4), Constant(-1e4, 1e4)], precision="fp32")(torch.ones(2, 1))
    assert torch.allclose(logits, torch.full((2, 2), math.log(0.5)))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_ensemble_weights_are_checked(weights):
    with pytest.raises(InputError, match="weights: got"):
        Teacher([Net(), Net()], weights=weights)


def test_other_arguments_are_checked(images):
    for network in ([], None, [Net(), "net"]):
        with pytest.raises(InputError, match="network: got"):
            Teacher(network)
    with pytest.raises(InputError, match="precision: got int8"):
        Teacher(Net(), precision="int8")
    with pytest.raises(InputError, match="combine: got votes"):
        Teacher(Net(), combine="votes")
    with pytest.raises(InputError, match=r"\(6, 4\)"):
        Teacher([Net(), Net(classes=5)])(images)
    with pytest.raises(InputError, match="at least one tensor"):
        Teacher(Net())("images")


def test_renormalise_is_exact(images):
    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    from_mean, from_std, to_mean, to_std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)) / torch.tensor(std, dtype=torch.float64).view(3, 1, 1)

    renormalise = Renormalise(from_mean, from_std, to_mean, to_std)
    expected = normalised(to_mean, to_std)
    assert torch.allclose(renormalise(normalised(from_mean, from_std)), expected, rtol=0, atol=1e-14)
    single = renormalise(normalised(from_mean, from_std).float())
    assert single.dtype == torch.float32
    assert torch.allclose(single, expected.float(), atol=1e-6)
    same = Renormalise(from_mean, from_std, from_mean, from_std)
    assert torch.equal(same(images), images)

    network = Net()
    teacher = Teacher(network, precision="fp32", renormalise=renormalise)
    assert torch.allclose(teacher(normalised(from_mean, from_std).float()), answer(network, expected.float()), atol=1e-5)
    with pytest.raises(InputError, match="images: got"):
        renormalise(torch.ones(1, 4, 2, 2))
    with pytest.raises(InputError, match="renormalise: got"):
        teacher([images])


@pytest.mark.parametrize(
    "statistics",
    [((0.0,), (1.0, 1.0), (0.0,), (1.0,)), ((0.0,), (0.0,), (0.0,), (1.0,)), ((0.0,), (1.0,), (0.0,), (-1.0,)), ((), (), (), ())],
)
def test_renormalise_checks_its_statistics(statistics):
    with pytest.raises(InputError):
        Renormalise(*statistics)


def test_tap_reads_features_in_full_precision_around_folding(images):
    network = Net()
    reference = copy.deepcopy(network).eval()
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 5e-2)):
        teacher = Teacher(network, precision=precision)
        teacher(images)
        output, features = teacher.tap("conv", "norm")(Batch(images, torch.arange(6)))
        with torch.no_grad():
            conv = reference.conv(images)
            assert torch.allclose(features["conv"], conv, atol=tolerance)
            assert torch.allclose(features["norm"], reference.norm(conv), atol=tolerance * 2)
        assert features["norm"].dtype == torch.float32
        assert torch.allclose(output, teacher(images))


def test_a_tap_survives_another_one_and_the_teachers_own_call(images):
    teacher = Teacher(Net(), precision="fp32")
    one = teacher.tap("norm")
    first = one(images)[1]["norm"]
    prepared = teacher._prepared
    two = teacher.tap("norm", "conv")
    assert teacher._prepared is None  # "conv" must not be folded any more
    two(images)
    assert torch.allclose(one(images)[1]["norm"], first, atol=1e-5)
    assert teacher._prepared is not prepared
    teacher.tap("conv")
    assert teacher._prepared is not None


def test_tap_is_checked_at_once():
    with pytest.raises(InputError, match="norm"):
        Teacher(Net()).tap("nrm")
    with pytest.raises(InputError, match="ensemble of 2"):
        Teacher([Net(), Net()]).tap("norm")


def test_structured_answers():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, images):
            return [{"maps": self.conv(image[None]), "count": torch.tensor(1)} for image in images]

    answers = Teacher(Detector(), precision="bf16")([torch.ones(3, 4, 4), torch.ones(3, 5, 5)])
    assert answers[1]["maps"].dtype == torch.float32
    assert answers[1]["count"].dtype == torch.int64


def test_compiled(images):
    network = Net()
    reference = Teacher(network, precision="fp32")
    teacher = Teacher(network, precision="fp32", compile=True)
    original, torch_compile = teacher_module.torch.compile, torch.compile
    try:
        teacher_module.torch.compile = lambda module: torch_compile(module, backend="aot_eager")
        assert torch.allclose(teacher(images), reference(images), atol=1e-5)
        assert torch.allclose(teacher.tap("norm")(images)[1]["norm"], reference.tap("norm")(images)[1]["norm"], atol=1e-5)
    finally:
        teacher_module.torch.compile = original


def test_of_a_wrapped_network(images):
    network = Net()
    wrapped = nn.DataParallel(torch.compile(network, backend="eager"))
    assert torch.allclose(Teacher(wrapped, precision="fp32")(images), answer(network, images), atol=1e-5)
    assert list(Teacher(wrapped).tap("module.norm")(images)[1]) == ["module.norm"]
    assert Teacher(wrapped).fingerprint() == Teacher(network).fingerprint()
    assert Teacher(wrapped).networks == (wrapped,)


def test_fingerprint_knows_weights_architecture_and_options():
    base = Teacher(Net()).fingerprint()
    assert base == Teacher(Net()).fingerprint() == Teacher(pickle.loads(pickle.dumps(Net()))).fingerprint()
    changed = Net()
    changed.conv.stride = (2, 2)
    tweaked = Net()
    tweaked.norm.running_mean[0] += 1e-3
    others = [
        Teacher(changed),
        Teacher(tweaked),
        Teacher(Net(seed=1)),
        Teacher(Net().bfloat16()),
        Teacher(Net(), precision="fp32"),
        Teacher(Net(), fold=False),
        Teacher([Net(), Net()]),
        Teacher([Net(), Net()], weights=[1, 2]),
        Teacher([Net(), Net()], combine="logits"),
        Teacher(Net(), renormalise=Renormalise((0.0,) * 3, (1.0,) * 3, (0.5,) * 3, (1.0,) * 3)),
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == len(others) + 1


def test_fingerprint_is_the_same_after_use(images):
    teacher = Teacher(Net())
    before = teacher.fingerprint()
    teacher.tap("conv")(images)
    assert teacher.fingerprint() == before


def test_copies_and_pickles(images):
    teacher = Teacher(Net(), precision="fp32")
    tapped, expected = teacher.tap("norm"), teacher(images)
    for twin in (copy.deepcopy(teacher), copy.copy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert twin._prepared is None
        assert torch.equal(twin(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(tapped))(images)[0], tapped(images)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_follows_its_inputs_to_another_device(images):
    network = Net()
    teacher = Teacher(network, precision="fp32")
    on_cpu, on_gpu = teacher(images), teacher(images.cuda())
    assert on_gpu.is_cuda
    assert not network.conv.weight.is_cuda
    assert torch.allclose(on_cpu, on_gpu.cpu(), atol=1e-3)
    assert Teacher(network)(images.cuda()).dtype == torch.float32
