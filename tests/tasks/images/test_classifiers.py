"""Classifiers by name: every source, every way to give weights, and a clear line for every mistake. Nothing here reads the network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from stillroom.errors import InputError
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.networks import VGG, ResNet

NETS_PY = """
from torch import nn

def build(num_classes, in_channels=3):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def fixed():
    return build(5)

def forwarded(**kwargs):
    return build(**kwargs)

def not_a_network(num_classes):
    return num_classes

def broken(num_classes):
    import stillroom_misses_this_module
"""


@pytest.fixture
def nets_py(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "nets.py"
    path.write_text(NETS_PY)
    yield path
    sys.modules.pop("stillroom_file_nets", None)


def saved(network: nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path)
    return path


def run_folder(folder: Path, network: nn.Module, **card: Any) -> Path:
    saved(network, folder / "student.safetensors")
    (folder / "student.json").write_text(json.dumps(card))
    return folder


def same_parameters(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("spec", ["stillroom/resnet8", "timm/test_resnet", "torchvision/squeezenet1_1"])
def test_a_library_network_starts_from_random_numbers(spec: str) -> None:
    built = build_classifier(spec, num_classes=5, image_size=32)
    assert (built.spec, built.weights, built.classes) == (spec, None, None)
    assert built.network.training
    assert built.network(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("spec", ["stillroom/convnet4", "timm/test_resnet"])
def test_other_channels(spec: str) -> None:
    built = build_classifier(spec, num_classes=5, image_size=32, in_channels=1)
    assert built.network(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_the_image_size_reaches_networks_that_ask_for_it() -> None:
    vgg = build_classifier("stillroom/vgg8", num_classes=5, image_size=64).network
    assert isinstance(vgg, VGG)
    assert isinstance(vgg.pool3, nn.MaxPool2d)
    assert isinstance(build_classifier("stillroom/vgg8", num_classes=5).network.pool3, nn.Identity)


def small_transformer(name: str, weights: None, *, image_size: int = 224, num_classes: int = 1000) -> nn.Module:
    return torchvision.models.VisionTransformer(image_size, 16, 1, 2, 8, 8, num_classes=num_classes)


@pytest.mark.parametrize("spec", ["timm/test_vit", "torchvision/vit_b_16"])
def test_vision_transformers_are_made_for_the_image_size(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models.get_model", small_transformer)
    built = build_classifier(spec, num_classes=5, image_size=64)
    assert built.network(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_a_size_a_transformer_cannot_have_is_an_error() -> None:
    with pytest.raises(InputError, match="model: got timm/test_vit"):
        build_classifier("timm/test_vit", num_classes=5, image_size=8)


@pytest.mark.parametrize("function", ["build", "forwarded"])
def test_a_function_of_a_file(nets_py: Path, function: str) -> None:
    built = build_classifier(f"{nets_py}:{function}", num_classes=6, image_size=16)
    assert built.network(torch.randn(2, 3, 16, 16)).shape == (2, 6)


def test_a_function_of_a_module(nets_py: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(nets_py.parent))
    built = build_classifier("nets:build", num_classes=6, in_channels=1, image_size=16)
    assert built.network(torch.randn(2, 1, 16, 16)).shape == (2, 6)
    monkeypatch.delitem(sys.modules, "nets")


def test_a_class_of_an_installed_module() -> None:
    built = build_classifier("torchvision.models:resnet18", num_classes=6, image_size=32)
    assert isinstance(built.network, torchvision.models.ResNet)


def test_a_function_with_classes_of_its_own_must_have_the_datas(nets_py: Path) -> None:
    assert build_classifier(f"{nets_py}:fixed", num_classes=5, image_size=16).weights is None
    with pytest.raises(InputError, match=r"\[1, 6\], not with \[1, 5\]"):
        build_classifier(f"{nets_py}:fixed", num_classes=6, image_size=16)


def test_weights_from_a_file(tmp_path: Path) -> None:
    source = ResNet(8, num_classes=5)
    path = saved(source, tmp_path / "teacher.safetensors")
    built = build_classifier(f"stillroom/resnet8@{path}", num_classes=5, image_size=32)
    assert (built.spec, built.weights) == ("stillroom/resnet8", str(path))
    assert same_parameters(built.network, source)


@pytest.mark.parametrize("name", ["teacher.safetensors", "teacher.pt"])
def test_weights_of_other_classes_name_both_counts(tmp_path: Path, name: str) -> None:
    source, path = ResNet(8, num_classes=5), tmp_path / name
    if path.suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        saved(source, path)
    with pytest.raises(InputError, match=r"teacher: .*5 classes.*7"):
        build_classifier(f"stillroom/resnet8@{path}", num_classes=7, argument="teacher")


def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    path = saved(ResNet(14, num_classes=5), tmp_path / "teacher.safetensors")
    with pytest.raises(InputError, match="teacher: got"):
        build_classifier(f"stillroom/resnet8@{path}", num_classes=5, argument="teacher")


def test_weights_that_are_missing_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model: got .*nowhere"):
        build_classifier(f"stillroom/resnet8@{tmp_path / 'nowhere.safetensors'}", num_classes=5)


def test_a_runs_folder(tmp_path: Path) -> None:
    source = ResNet(8, num_classes=5)
    folder = run_folder(
        tmp_path / "run", source, model="stillroom/resnet8@elsewhere.pt", num_classes=5, classes=list("abcde"), image_size=32
    )
    built = build_classifier(str(folder), num_classes=5, image_size=32)
    assert (built.spec, built.weights) == ("stillroom/resnet8", str(folder / "student.safetensors"))
    assert built.classes == ("a", "b", "c", "d", "e")
    assert same_parameters(built.network, source)


def test_a_runs_folder_is_built_for_the_size_it_was_trained_at(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", VGG(8, num_classes=5), model="stillroom/vgg8", num_classes=5, image_size=64)
    network = build_classifier(str(folder), num_classes=5, image_size=32).network
    assert isinstance(network.pool3, nn.MaxPool2d)


def test_a_runs_folder_of_other_classes_names_both_counts(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", ResNet(8, num_classes=5), model="stillroom/resnet8", num_classes=5)
    with pytest.raises(InputError, match="student of 5 classes, expected a network of 7 classes"):
        build_classifier(str(folder), num_classes=7)


def test_a_folder_that_no_run_wrote(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"student\.json"):
        build_classifier(str(tmp_path), num_classes=5)


@pytest.mark.parametrize("card", ["{", "[]", '{"model": "stillroom/resnet8"}', '{"model": "stillroom/resnet8", "num_classes": "many"}'])
def test_a_damaged_student_card(tmp_path: Path, card: str) -> None:
    (tmp_path / "student.json").write_text(card)
    with pytest.raises(InputError, match="JSON with the student's model and num_classes"):
        build_classifier(str(tmp_path), num_classes=5)


def test_code_that_lies_in_a_runs_folder_is_run_only_when_trusted(nets_py: Path) -> None:
    folder = nets_py.parent
    build = build_classifier(f"{nets_py}:build", num_classes=5).network
    run_folder(folder, build, model=f"{nets_py}:build", num_classes=5)
    with pytest.raises(InputError, match=r"trust_code=True\) if you trust whoever wrote it: it runs that code"):
        build_classifier(str(folder), num_classes=5)
    assert same_parameters(build_classifier(str(folder), num_classes=5, trust_pickle=True).network, build)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "timm/NAME, torchvision/NAME"),
        ("resnet8x4", "is stillroom/resnet8x4 meant"),
        ("", "timm/NAME, torchvision/NAME"),
        ("timm/", "timm/NAME, torchvision/NAME"),
        ("stillroom/resnet8x5", "resnet8x4"),
        ("timm/resnet51", "resnet50"),
        ("timm/resnet18.nobodys", "resnet18.a1_in1k"),
        ("torchvision/resnet19", "resnet18"),
        ("torchvision/fasterrcnn_resnet50_fpn", "a classifier of torchvision"),
        ("stillroom/resnet8@", "after @"),
        ("stillroom/resnet8@pretrained", "before @pretrained"),
        ("timm/resnet51@pretrained", "resnet50"),
        ("torchvision.models:resnet19", "resnet18"),
        ("torchvision.modles:resnet18", "torchvision.modles is not found"),
        ("no_such_package.nets:build", "a file works as well"),
        ("no/such/file.py:build", "an existing Python file"),
        ("torch.nn:Linear", "missing a required argument"),
        ("C:", "timm/NAME, torchvision/NAME"),
        (":build", "timm/NAME, torchvision/NAME"),
        ("..nets:build", "timm/NAME, torchvision/NAME"),
    ],
)
def test_wrong_specs(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^student: got ") as caught:
        build_classifier(spec, num_classes=5, argument="student")
    assert message in str(caught.value)


def test_wrong_functions(nets_py: Path) -> None:
    with pytest.raises(InputError, match=r"a function of .*nets.py, such as build"):
        build_classifier(f"{nets_py}:bulid", num_classes=5)
    with pytest.raises(InputError, match=r"torch.nn.Module, not int"):
        build_classifier(f"{nets_py}:not_a_network", num_classes=5)
    with pytest.raises(ModuleNotFoundError, match="stillroom_misses_this_module"):  # the user's own bug keeps its own traceback
        build_classifier(f"{nets_py}:broken", num_classes=5)


@pytest.mark.parametrize(("name", "value"), [("num_classes", 0), ("image_size", 0), ("in_channels", -1)])
def test_numbers_below_one(name: str, value: int) -> None:
    arguments: dict[str, Any] = {"num_classes": 5, name: value}
    with pytest.raises(InputError, match=f"^{name}: got {value}"):
        build_classifier("stillroom/resnet8", **arguments)


def test_images_that_the_network_cannot_read() -> None:
    with pytest.raises(InputError, match=r"reads images \[1, 3, 8, 8\]; this one fails"):
        build_classifier("torchvision/alexnet", num_classes=5, image_size=8)
    with pytest.raises(InputError, match="torchvision's read 3"):
        build_classifier("torchvision/squeezenet1_1", num_classes=5, in_channels=1)


def test_trying_the_network_changes_nothing(nets_py: Path) -> None:
    nets_py.write_text(NETS_PY.replace("nn.AdaptiveAvgPool2d(1)", "nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)"))
    network = build_classifier(f"{nets_py}:build", num_classes=5, image_size=16).network
    assert all(module.training for module in network.modules())
    assert int(network.state_dict()["1.num_batches_tracked"]) == 0


@pytest.mark.parametrize("spec", ["torchvision/inception_v3", "torchvision/googlenet"])
def test_networks_with_auxiliary_heads_have_one_output(spec: str) -> None:
    with torch.device("meta"):
        network = build_classifier(spec, num_classes=5).network
    assert network.aux_logits is False


def offline(*args: Any, **kwargs: Any) -> None:
    raise OSError("[Errno -2] Name or service not known")


@pytest.mark.parametrize(
    ("spec", "where"),
    [("timm/resnet18", "timm.create_model"), ("torchvision/resnet18", "torchvision.models.ResNet18_Weights.get_state_dict")],
)
def test_pretrained_without_a_network_says_what_to_do(spec: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, offline)
    with pytest.raises(InputError, match=r"could not be downloaded .*Name or service not known.* give the file: .*@FILE"):
        build_classifier(f"{spec}@pretrained", num_classes=5)


def test_a_timm_model_without_published_weights() -> None:
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(InputError, match="whose weights timm publishes"):
        build_classifier(f"timm/{name}@pretrained", num_classes=5)


def test_timm_replaces_the_head_of_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def create_model(name: str, **kwargs: Any) -> nn.Module:
        if kwargs["pretrained"]:
            seen.update(kwargs, name=name)
        return ResNet(8, num_classes=kwargs["num_classes"])

    monkeypatch.setattr(timm, "create_model", create_model)
    built = build_classifier("timm/resnet18@pretrained", num_classes=5)
    assert (built.spec, built.weights, built.new) == ("timm/resnet18", "pretrained", ("fc.weight", "fc.bias"))
    assert seen == {"name": "resnet18", "pretrained": True, "num_classes": 5, "in_chans": 3}


@pytest.mark.parametrize(("name", "head"), [("squeezenet1_1", "classifier.1"), ("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")])
@pytest.mark.parametrize("num_classes", [5, 1000])
def test_torchvisions_published_weights_keep_all_but_a_head_of_other_classes(
    name: str, head: str, num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = torchvision.models.get_model(name).state_dict()
    monkeypatch.setattr(torchvision.models.get_model_weights(name), "get_state_dict", lambda *args, **kwargs: dict(published))
    state = build_classifier(f"torchvision/{name}@pretrained", num_classes=num_classes).network.state_dict()
    assert state[f"{head}.weight"].shape[0] == num_classes
    kept = {key for key in published if num_classes == 1000 or not key.startswith(f"{head}.")}
    assert all(torch.equal(state[key], published[key]) for key in kept)


def test_torchvisions_published_position_embeddings_are_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models.get_model", small_transformer)
    published = small_transformer("vit_b_16", None).state_dict()
    monkeypatch.setattr("torchvision.models.ViT_B_16_Weights.get_state_dict", lambda *args, **kwargs: dict(published))
    network = build_classifier("torchvision/vit_b_16@pretrained", num_classes=5, image_size=64).network
    state = network.state_dict()
    assert state["encoder.pos_embedding"].shape == (1, 1 + 4 * 4, 8)
    assert torch.equal(state["conv_proj.weight"], published["conv_proj.weight"])
