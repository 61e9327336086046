"""Files for other programs: they answer as the network does, on batches of any size, or they are not there."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.engine import export as module
from stillroom.engine.export import SUFFIXES, Exported, ExportFailed, ExportSpec, export
from stillroom.errors import InputError

METADATA = {"classes": '["Käse", "[b]rot"]', "model": "a/b"}


class Small(nn.Module):
    """Convolution, batch norm, attention, pooling: [B, 3, 8, 8] -> [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        tokens = self.stem(images_BCHW).flatten(2).transpose(1, 2)
        answer: Tensor = self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))
        return answer


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Small()
    network(torch.randn(16, 3, 8, 8))  # running statistics other than the initial ones
    return network


def batch(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def answers(file: Path, format: str, network: nn.Module, inputs: Tensor) -> Tensor:
    """What a file says, read as another program would."""
    if format == "onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["logits"], {"images": inputs.numpy()})[0])
    if format == "torch":
        return torch.export.load(file).module()(inputs)
    fresh = copy.deepcopy(network)
    fresh.load_state_dict({key: value + 1 for key, value in fresh.state_dict().items()})
    fresh.load_state_dict(load_file(file))
    return fresh.eval()(inputs)


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_file_answers_as_the_network_for_any_batch(
    format: str, network: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    path = tmp_path / "new" / f"net{SUFFIXES[format]}"
    done = export(ExportSpec(network, batch(), ("images", "logits"), METADATA), path, format=format)
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert done.path == path
    assert (done.bytes, done.batches) == (path.stat().st_size, ((1, 3, 8, 8), (5, 3, 8, 8)))
    (output,) = done.outputs
    assert output.name == "logits"
    assert output.difference <= 1e-5 < output.largest
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    for count in (1, 7):
        with torch.no_grad():
            expected = copy.deepcopy(network).eval()(batch(count))
            torch.testing.assert_close(answers(path, format, network, batch(count)), expected, atol=1e-5, rtol=0)
    assert str(Path(__file__).parent).encode() not in path.read_bytes(), "a path of this machine is in the file"


def test_what_is_written_about_the_network(network: nn.Module, tmp_path: Path) -> None:
    files = {format: tmp_path / f"net{suffix}" for format, suffix in SUFFIXES.items()}
    for format, file in files.items():
        export(ExportSpec(network, batch(), ("images", "logits"), METADATA), file, format=format)
    written = onnx.load(files["onnx"])
    onnx.checker.check_model(written, full_check=True)
    assert {entry.key: entry.value for entry in written.metadata_props} == METADATA
    (read,), (answered,) = written.graph.input, written.graph.output
    assert [dimension.dim_param or dimension.dim_value for dimension in read.type.tensor_type.shape.dim] == ["batch", 3, 8, 8]
    assert [dimension.dim_param or dimension.dim_value for dimension in answered.type.tensor_type.shape.dim] == ["batch", 2]
    assert (read.name, answered.name) == ("images", "logits")
    extra = dict.fromkeys(METADATA, "")
    torch.export.load(files["torch"], extra_files=extra)
    assert extra == METADATA
    with safe_open(files["safetensors"], "pt") as opened:
        assert opened.metadata() == {"format": "pt", **METADATA}


class Adds(nn.Module):
    """Answers with its input, plus something while it is exported."""

    def __init__(self, something: float) -> None:
        super().__init__()
        self.something = something
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * (inputs + self.something if torch.compiler.is_compiling() else inputs)


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("something", [1e-3, float("nan"), float("inf")])
def test_a_file_that_answers_differently_is_not_kept(format: str, something: float, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_text("from before")
    with pytest.raises(ExportFailed, match=r"net: its answers differ .* tolerance of 0\.0001; nothing was written") as raised:
        export(ExportSpec(Adds(something), batch()), path, format=format)
    assert raised.value.exit_code == 1
    assert path.read_text() == "from before"
    assert list(tmp_path.iterdir()) == [path]
    if something < 1:
        (output,) = export(ExportSpec(Adds(something), batch()), path, format=format, tolerance=0.01).outputs
        assert output.difference == pytest.approx(1e-3, 0.1)


class Doubles(nn.Module):
    """Answers with its input, and with a hundred times its input, a little more while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale * inputs, 100 * self.scale * (inputs + 1e-5 if torch.compiler.is_compiling() else inputs)


def test_several_outputs_have_tolerances_of_their_own_and_images_any_size(tmp_path: Path) -> None:
    def attempt(units: tuple[float, float], path: Path) -> Exported:
        spec = ExportSpec(Doubles(), batch(), ("images", "small", "large"), units=units, cell=2)
        return export(spec, path, format="torch")

    with pytest.raises(ExportFailed, match=r"its large differ from the network's by up to 0\.001 .* tolerance of 0\.0001"):
        attempt((1.0, 1.0), tmp_path / "net")
    done = attempt((1.0, 100.0), tmp_path / "net")
    assert [(output.name, output.difference > 0) for output in done.outputs] == [("small", False), ("large", True)]
    assert done.batches[-1] == (2, 3, 6, 8)
    answered = torch.export.load(done.path).module()(torch.zeros(4, 3, 2, 10))
    assert [tuple(output.shape) for output in answered] == [(4, 3, 2, 10)] * 2


def test_weights_that_are_not_in_the_file_are_missed(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_weights", lambda *_: None)
    with pytest.raises(ExportFailed, match="differ from the network's by up to nan"):
        export(ExportSpec(network, batch()), tmp_path / "net", format="safetensors")
    assert not list(tmp_path.iterdir())


class Chooses(nn.Module):
    """Looks at its inputs before it answers."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.sum() > 0 else -inputs


class Pairs(nn.Module):
    """Reads batches of two alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(2, -1)


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("kind", [Chooses, Pairs])
def test_networks_that_no_graph_can_hold(kind: type[nn.Module], format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportFailed, match=f"{kind.__name__} cannot be exported for batches of any size") as raised:
        export(ExportSpec(kind(), batch()), tmp_path / "net", format=format)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_arguments_that_cannot_be_used(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(inputs: Tensor, format: str = "safetensors", tolerance: float = 1e-4, path: Path = tmp_path / "net") -> None:
        export(ExportSpec(network, inputs), path, format=format, tolerance=tolerance)

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"format: got coreml, expected one of onnx, torch, safetensors$"):
        attempt(batch(), "coreml")
    with pytest.raises(InputError, match="tolerance: got -1"):
        attempt(batch(), tolerance=-1)
    with pytest.raises(InputError, match="at least two samples"):
        attempt(batch(1))
    with pytest.raises(InputError, match=r"out: got .*a file that can be written"):
        attempt(batch(), path=tmp_path / "file" / "net")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(InputError, match=r"format: got onnx, without onnxruntime, expected .* pip install 'stillroom\[export\]'"):
        attempt(batch(), "onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_weights_too_large_for_one_onnx_file(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ONNX_BYTES", 100)
    with pytest.raises(ExportFailed, match="do not fit into one ONNX file"):
        export(ExportSpec(network, batch()), tmp_path / "net", format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for format, (_, read) in dict(module._FORMATS).items():
        monkeypatch.setitem(module._FORMATS, format, (full, read))
        with pytest.raises(InputError, match="No space left on device"):
            export(ExportSpec(network, batch()), tmp_path / "net", format=format)
    assert not list(tmp_path.iterdir())
