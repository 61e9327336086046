"""A trained network as a file that other programs run: written, run, compared with the network, and only then put in place."""

from __future__ import annotations

import copy
import io
import logging
import math
import mmap
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stillroom.engine.run.console import quiet_loggers
from stillroom.engine.run.measure import unfused_attention
from stillroom.engine.run.written import put, refuse_links, usual_mode
from stillroom.engine.tap import unwrap
from stillroom.engine.weights import load_weights, save_weights
from stillroom.errors import InputError, StillroomError, at_least_zero, one_of

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_BYTES = 2**31 - 2**24  # what protobuf allows in one file, less room for the graph
_TALKATIVE = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "onnxruntime")

Outputs = tuple[Tensor, ...]
Answer = Callable[[Tensor], Outputs]
Ask = Callable[[nn.Module, Tensor], Outputs]
Align = Callable[[Outputs, Outputs], Outputs]


class ExportFailed(StillroomError):
    """The network cannot be written in the format, or the file answers differently; no file is left."""


@dataclass(frozen=True)
class Compared:
    """An output of the file beside the network's.

    Attributes:
        name: of the output.
        difference: the largest absolute difference.
        largest: the largest absolute value of the network's, which the difference is to be seen against.
        unit: what the tolerance of this output counts in.
    """

    name: str
    difference: float
    largest: float
    unit: float = 1.0


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: the file.
        format: one of `SUFFIXES`.
        bytes: its size.
        batches: the shapes of the batches that it was checked on.
        outputs: how far its answers are from the network's.
        note: a line for whoever uses the file, if there is something to say.
    """

    path: Path
    format: str
    bytes: int
    batches: tuple[tuple[int, ...], ...]
    outputs: tuple[Compared, ...]
    note: str = ""


def check_format(format: str) -> None:
    """Raises InputError when there is no such format, or when packages that it needs are not installed."""
    one_of("format", format, SUFFIXES)
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise InputError("format", f"onnx, without {' and '.join(missing)}", "them to be installed: pip install 'stillroom[export]'")


@dataclass(frozen=True)
class ExportSpec:
    """What an export writes and checks.

    Args:
        network: from one tensor [B, ...] to one tensor [B, ...], or several.
        inputs_BX: a few samples [B, ...] such as the network is made for, at least two.
        names: of the input and the outputs.
        metadata: goes into the file: ONNX's metadata_props, the program's extra files, the header of safetensors.
        units: what a tolerance counts in, for each output; 1 by default.
        ask: how the network is asked for its outputs, where it is not by calling it.
        cell: for inputs [B, 3, H, W] of any height and width that are multiples of it; else theirs are those of `inputs_BX`.
        align: brings the file's answers into the order of the network's, given second, where their order means nothing.
        note: see `Exported`.
    """

    network: nn.Module
    inputs_BX: Tensor
    names: Sequence[str] = ("inputs", "outputs")
    metadata: Mapping[str, str] = field(default_factory=dict)
    units: Sequence[float] | None = None
    ask: Ask | None = None
    cell: int | None = None
    align: Align | None = None
    note: str = ""


def place_of(run: Path, out: str | Path | None, format: str, *, part: str = "") -> Path:
    """The file to write: `out`, or the usual name in the folder `out` or in the run's.

    A run's own student.safetensors is what `load` and a continued run read; it is left alone.

    Args:
        run: its folder.
        out: what the user named.
        format: one of `SUFFIXES`.
        part: of a student that is several files, the word for this one.

    Raises:
        InputError: there is a file that is no export.
    """
    path = run if out is None else Path(out)
    path = path / f"student{'_described' if format == 'safetensors' else ''}{SUFFIXES[format]}" if path.is_dir() else path
    path = path.with_stem(f"{path.stem}_{part}") if part else path
    if os.path.lexists(path) and not _exported(path):
        raise InputError("out", f"{path}, which `stillroom export` did not write", "another name, or that file moved away")
    return path


def _exported(path: Path) -> bool:
    """Whether a file says of itself that Stillroom exported it (see `ExportSpec.metadata`), whatever its format."""
    if path.is_symlink() or not path.is_file():
        return False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("extra/stillroom") for name in archive.namelist())
    with path.open("rb") as file, suppress(ValueError):
        if file.read(9)[8:] == b"{":
            with safe_open(path, "pt") as opened:
                return "stillroom" in (opened.metadata() or {})
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"\n\tstillroom\x12") >= 0  # a key of ONNX's metadata_props, as protobuf writes it
    return False


def export(spec: ExportSpec, path: Path, *, format: str, tolerance: float = 1e-4) -> Exported:
    """Write a network in eval mode to one file, for batches of any size, and check what the file answers.

    The file is written under a temporary name beside `path`, read again, and run on the first sample alone and on all samples; a file of
    weights is loaded into a copy of the network for that. Only then does it get its name; on any failure nothing is left, and what was
    there before stays.

    Args:
        spec: the network, which stays as it is, and all that is to be known of it.
        path: the file; its folder is made when missing.
        format: ``onnx``; ``torch``: a program of `torch.export`; ``safetensors``: weights alone.
        tolerance: the largest absolute difference that is allowed, in units of the answers.

    Raises:
        InputError: unknown format, a missing package, a negative tolerance, or a place that cannot be written.
        ExportFailed: the network cannot be written in this format, or the file answers differently.
    """
    check_format(format)
    at_least_zero("tolerance", tolerance)
    if len(spec.inputs_BX) < 2:  # torch.export takes a batch of one for a constant
        raise InputError("inputs_BX", f"shape {list(spec.inputs_BX.shape)}", "at least two samples")
    network = copy.deepcopy(unwrap(spec.network)).eval().cpu().requires_grad_(False)
    asked = network if spec.ask is None else _Asked(network, spec.ask)
    write, read = _FORMATS[format]
    batches = [spec.inputs_BX[:1].cpu(), spec.inputs_BX.cpu()]
    if spec.cell is not None:
        batches.append(batches[-1][:2, :, : -spec.cell].contiguous())
    with _temporary(path) as file, torch.no_grad(), _quiet():
        write(asked, batches[1][:2], file, spec)
        answer, found = read(file, asked, spec)
        if found != dict(spec.metadata):
            raise ExportFailed(f"{path}: the description read back from the file is not the one that was written; nothing was kept")
        pairs = [(_several(answer(inputs)), _several(asked(inputs))) for inputs in batches]
        if spec.align is not None:
            pairs = [(spec.align(got, wanted), wanted) for got, wanted in pairs]
        compared = tuple(
            Compared(
                name,
                float(torch.tensor([_difference(got[i], wanted[i]) for got, wanted in pairs]).max()),  # keeps what is not a number
                max(float(wanted[i].abs().max()) for _, wanted in pairs),
                1.0 if spec.units is None else spec.units[i],
            )
            for i, name in enumerate(spec.names[1:])
        )
        for output in compared:
            if not output.difference <= tolerance * output.unit:  # not a number is no agreement either
                raise ExportFailed(
                    f"{path}: its {'answers' if len(compared) == 1 else output.name} differ from the network's by up to "
                    f"{output.difference:.2g} (these reach {output.largest:.3g}), more than the tolerance of "
                    f"{tolerance * output.unit:.2g}; nothing was written"
                )
        size = file.stat().st_size
    return Exported(path, format, size, tuple(tuple(inputs.shape) for inputs in batches), compared, spec.note)


class _Asked(nn.Module):
    """A network that is called by a function; its weights are the network's own."""

    def __init__(self, network: nn.Module, ask: Ask) -> None:
        super().__init__()
        self.network, self.ask = network, ask

    def forward(self, inputs: Tensor) -> Outputs:
        return self.ask(self.network, inputs)


def _several(outputs: Tensor | Sequence[Tensor]) -> Outputs:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _difference(answer: Tensor, wanted: Tensor) -> float:
    return float((answer - wanted).abs().max()) if answer.shape == wanted.shape else math.inf


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file in a temporary folder beside `path`, which becomes `path` if nothing goes wrong."""
    refuse_links(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True) as folder:
            file = Path(folder) / f"file{path.suffix}"
            yield file
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.chmod(usual_mode(path.parent))  # safetensors writes files for their owner alone
            put(file, path)
    except (OSError, SafetensorError) as error:
        raise InputError("out", str(path), f"a file that can be written ({getattr(error, 'strerror', None) or error})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' progress and advice, which is for their developers, stays off the terminal."""
    with (
        quiet_loggers(_TALKATIVE, logging.CRITICAL),
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _program(network: nn.Module, inputs_BX: Tensor, cell: int | None) -> tuple[torch.export.ExportedProgram, tuple[dict[int, Any]]]:
    """The network as a graph in which the batch (and height and width, given a `cell`) has any size, and these dimensions' description."""
    sizes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if cell is not None:
        sizes |= {2: cell * torch.export.Dim("rows"), 3: cell * torch.export.Dim("columns")}
    shapes = (sizes,)
    try:
        with unfused_attention():
            program = torch.export.export(network, (inputs_BX,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever the network does that cannot be traced
        named = network.network if isinstance(network, _Asked) else network
        raise ExportFailed(f"{type(named).__name__} cannot be exported for batches of any size: {_first_line(error)}") from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
    return program, shapes


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _write_onnx(network: nn.Module, inputs_BX: Tensor, file: Path, spec: ExportSpec) -> None:
    stored = sum(value.nbytes for value in network.state_dict().values() if isinstance(value, Tensor))
    if stored > _ONNX_BYTES:
        raise ExportFailed(
            f"{stored / 1e9:.1f} GB of weights do not fit into one ONNX file, which holds 2 GB; the format torch has no limit"
        )
    program, shapes = _program(network, inputs_BX, spec.cell)
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            dynamic_shapes=shapes,
            input_names=list(spec.names[:1]),
            output_names=list(spec.names[1:]),
            external_data=False,
        )
    except Exception as error:  # an operation that ONNX does not have, mostly
        raise ExportFailed(f"{type(network).__name__} cannot be written as ONNX: {_first_line(error)}") from error
    assert converted is not None, "without a file to write, the program is returned"
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source each operation came from: larger than a small network's weights
    converted.model.metadata_props.update(spec.metadata)
    converted.save(file, external_data=False)


def _read_onnx(file: Path, network: nn.Module, spec: ExportSpec) -> tuple[Answer, dict[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answer(inputs: Tensor) -> Outputs:
        return tuple(torch.from_numpy(output) for output in session.run(None, {name: inputs.numpy()}))

    return answer, session.get_modelmeta().custom_metadata_map


def _write_torch(network: nn.Module, inputs_BX: Tensor, file: Path, spec: ExportSpec) -> None:
    program, _ = _program(network, inputs_BX, spec.cell)
    content = io.BytesIO()  # written by us: of a full disk torch's own writer says nothing that could be recognised
    torch.export.save(program, content, extra_files=dict(spec.metadata))
    file.write_bytes(content.getbuffer())


def _read_torch(file: Path, network: nn.Module, spec: ExportSpec) -> tuple[Answer, dict[str, str]]:
    found = dict.fromkeys(spec.metadata, "")
    return torch.export.load(file, extra_files=found).module(), found


def _write_safetensors(network: nn.Module, inputs_BX: Tensor, file: Path, spec: ExportSpec) -> None:
    weights = file.with_name(f"weights{file.suffix}")
    save_weights(network.network if isinstance(network, _Asked) else network, weights)
    save_file(load_file(weights), file, metadata={"format": "pt", **spec.metadata})


def _read_safetensors(file: Path, network: nn.Module, spec: ExportSpec) -> tuple[Answer, dict[str, str]]:
    """The file in a copy of the network whose own weights are gone, so that one that the file lacks shows."""
    emptied = copy.deepcopy(network)
    for value in emptied.state_dict().values():
        if isinstance(value, Tensor) and value.is_floating_point():
            value.fill_(math.nan)
    load_weights(emptied.network if isinstance(emptied, _Asked) else emptied, file)
    with safe_open(file, "pt") as opened:
        found = opened.metadata()
    return emptied, {name: value for name, value in found.items() if name != "format"}


_FORMATS = {
    "onnx": (_write_onnx, _read_onnx),
    "torch": (_write_torch, _read_torch),
    "safetensors": (_write_safetensors, _read_safetensors),
}
