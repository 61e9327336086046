"""A student that ends in the teacher's classifier: made from any two networks, built again from its specification, exported."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stillroom
from stillroom.engine.export import ExportSpec, export
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.methods.kd3.shared_classifier import Connector, Shared, SharedClassifier, share_classifier, shrunk
from stillroom.tasks.classification import build_classifier
from stillroom.tasks.images.layers import last_map
from stillroom.tasks.images.transforms import describe_transform

SIZE = 32


def network(spec: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_classifier(spec, num_classes=5, image_size=SIZE).network.eval()


def shared(
    student: str = "stillroom/resnet8", teacher: str = "stillroom/wrn_16_2", **options: Any
) -> tuple[SharedClassifier, nn.Module, Tensor]:
    one, other, example = network(student), network(teacher, 1), torch.randn(2, 3, SIZE, SIZE)
    layers = {
        "student_layer": options.pop("student_layer", None) or last_map(one, example, "student_layer"),
        "teacher_layer": options.pop("teacher_layer", None) or last_map(other, example, "teacher_layer"),
    }
    return share_classifier(one, other, example, **layers, **options).eval(), other, example


@pytest.mark.parametrize(
    ("spec", "layer"),
    [
        ("stillroom/resnet8", "layer3"),
        ("stillroom/vgg8", None),
        ("stillroom/mobilenetv1", None),
        ("stillroom/shufflenetv2", None),
        ("timm/test_resnet", "layer4"),
        ("timm/mobilenetv2_050", "bn2"),
        ("torchvision/resnet18", "layer4"),
        ("torchvision/mobilenet_v2", "features"),
        ("torchvision/efficientnet_b0", "features"),
        ("torchvision/regnet_x_400mf", "trunk_output"),
    ],
)
def test_the_last_map_is_what_the_classifier_reads_pooled(spec: str, layer: str | None) -> None:
    """Where it was found, the network's own classifier makes its logits of the map's average; else `share_classifier` would refuse."""
    made, teacher, example = shared(
        "stillroom/resnet8", spec, **({} if "mobilenet_v2" not in spec else {"teacher_classifier": "classifier"})
    )
    assert layer is None or last_map(teacher, example, "teacher_layer") == layer
    torch.testing.assert_close(made.classifier(last_pooled(teacher, example)), teacher(example), rtol=1e-3, atol=1e-4)


def last_pooled(network: nn.Module, example: Tensor) -> Tensor:
    path = last_map(network, example, "layer")
    caught: list[Tensor] = []
    handle = network.get_submodule(path).register_forward_hook(lambda module, inputs, output: caught.append(output.clone()))
    network(example)
    handle.remove()
    return caught[0].mean((2, 3))


@pytest.mark.parametrize(
    "spec", ["stillroom/resnet8", "timm/test_resnet", "timm/test_convnext", "torchvision/mobilenet_v2", "stillroom/vgg8"]
)
def test_nothing_learns_that_has_no_say(spec: str) -> None:
    """Every parameter that asks for a gradient gets one (DDP would complain of others), and the classifier asks for none."""
    made, _, example = shared(spec)
    made.train()
    made(torch.cat([example, -example])).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("classifier.")), name


def test_the_map_stays_when_the_end_is_taken_off() -> None:
    student = network("timm/test_resnet")
    made, _, example = shared("timm/test_resnet")
    torch.testing.assert_close(made.map(example).mean((2, 3)), last_pooled(student, example))
    assert sum(p.numel() for p in made.backbone.parameters()) == sum(p.numel() for n, p in student.named_parameters() if n[:2] != "fc")


def test_the_classifier_is_the_teachers_and_stays_in_eval_mode() -> None:
    made, teacher, _ = shared()
    made.train()
    assert not made.classifier.training
    assert made.connector.training
    assert torch.equal(made.classifier.weight, teacher.fc.weight)
    assert made.classifier.weight is not teacher.fc.weight


def test_a_perfect_connector_gives_the_teachers_logits() -> None:
    made, teacher, example = shared()
    pooled = last_pooled(teacher, example)
    made.connector.forward = lambda features: pooled[:, :, None, None].expand(-1, -1, *features.shape[2:])  # type: ignore[method-assign]
    torch.testing.assert_close(made(example), teacher(example), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("given", "size", "expected"), [((8, 8), (4, 4), (4, 4)), ((4, 4), (8, 8), (4, 4)), ((8, 3), (4, 6), (4, 3))])
def test_maps_only_ever_shrink(given: tuple[int, int], size: tuple[int, int], expected: tuple[int, int]) -> None:
    features = torch.randn(2, 3, *given)
    answer = shrunk(features, size)
    assert answer.shape[2:] == expected
    torch.testing.assert_close(answer.mean((2, 3)), features.mean((2, 3)))
    assert given != expected or answer is features


@pytest.mark.parametrize(
    ("student", "teacher", "options"),
    [
        ("stillroom/resnet8", "stillroom/wrn_16_2", {"factor": 4}),
        ("timm/test_resnet", "stillroom/vgg8", {}),
        ("stillroom/vgg8", "torchvision/mobilenet_v2", {"teacher_classifier": "classifier"}),
    ],
)
def test_it_is_built_again_from_its_specification(student: str, teacher: str, options: dict[str, Any], tmp_path: Path) -> None:
    made, _, example = shared(student, teacher, **options)
    spec = made.specification(student, teacher)
    assert str(Shared.parse(spec, "model")) == spec
    save_weights(made, tmp_path / "weights.safetensors")
    again = build_classifier(f"{spec}@{tmp_path / 'weights.safetensors'}", num_classes=5, image_size=SIZE)
    assert again.spec == spec
    assert torch.equal(again.network.eval()(example), made(example))
    assert repr(again.network) == repr(made)


def test_it_loads_from_a_runs_folder(tmp_path: Path) -> None:
    made, _, _ = shared()
    save_weights(made, tmp_path / "student.safetensors")
    card = {"model": made.specification("stillroom/resnet8", "stillroom/wrn_16_2"), "num_classes": 5, "classes": list("abcde")}
    card |= {"image_size": SIZE, "transform": describe_transform("cifar", SIZE, (0.5,) * 3, (0.2,) * 3)}
    (tmp_path / "student.json").write_text(json.dumps(card))
    images = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(stillroom.load(tmp_path).network(images), made(images))


@pytest.mark.parametrize("inside", ["backbone", "classifier"])
def test_code_that_lies_in_a_runs_folder_is_not_run(inside: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise SystemExit('ran')")
    own, foreign = f"{tmp_path / 'net.py'}:build", "stillroom/resnet8"
    parts = (own, (foreign, "fc")) if inside == "backbone" else (foreign, (own, "fc"))
    spec = str(Shared(parts[0], "layer3", 64, (8, 8), 2, parts[1]))
    (tmp_path / "student.json").write_text(json.dumps({"model": spec, "num_classes": 5, "image_size": SIZE}))
    with pytest.raises(InputError, match=r"trust_code=True\) if you trust whoever wrote it: it runs that code"):
        build_classifier(str(tmp_path), num_classes=5)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_it_is_exported(format: str, tmp_path: Path) -> None:
    made, _, _ = shared("stillroom/convnet4", "stillroom/resnet8")
    exported = export(ExportSpec(made, torch.randn(3, 3, SIZE, SIZE), metadata={"a": "b"}), tmp_path / f"student.{format}", format=format)
    assert exported.outputs[0].difference < 1e-4


def test_a_copy_is_its_own() -> None:
    made, _, example = shared()
    twin, before = copy.deepcopy(made), made(example)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(made(example), before)
    assert not torch.equal(twin(example), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_layer": "fc"}, "student_layer: got fc, with features of shape"),
        ({"teacher_layer": "fc"}, "teacher_layer: got fc, with features of shape"),
        ({"teacher_layer": "layer2"}, "teacher_classifier: got fc, expected what makes the logits of the average over pixels of layer2"),
        ({"teacher_classifier": "clasifier"}, "teacher_classifier: got clasifier, expected a module path"),
        ({"factor": 0}, "factor: got 0"),
        ({"factor": 1000}, "factor: got 1000"),
    ],
)
def test_refuses_what_cannot_be_shared(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shared(**options)


class ChannelsLast(nn.Module):
    """As timm's Swin transformers, whose maps are [B, H, W, C]."""

    output_fmt = "NHWC"

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5)
        self.norm = nn.LayerNorm(6)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(self.stem(images).permute(0, 2, 3, 1)).mean((1, 2)))
        return logits


@pytest.mark.parametrize("make", [lambda: network("timm/test_vit"), ChannelsLast, lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))])
def test_refuses_a_network_without_maps(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(InputError, match=r"student_layer: got nothing, expected the module path of the last feature map.* has none"):
        last_map(make(), torch.zeros(1, 3, SIZE, SIZE), "student_layer")


@pytest.mark.parametrize("spec", ["shared:stillroom/resnet8", "shared:stillroom/resnet8,layer=layer3,channels=x,size=8x8,factor=2"])
def test_refuses_half_a_specification(spec: str) -> None:
    with pytest.raises(InputError, match=r"^model: got shared:"):
        build_classifier(spec, num_classes=5, image_size=SIZE)


def test_the_connector_is_nowhere_negative() -> None:
    torch.manual_seed(0)
    assert Connector(6, 8)(torch.randn(4, 6, 5, 3)).min() >= 0
