"""EngineTeacher: a frozen teacher whose forward pass an inference engine computes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stillroom._version import __version__
from stillroom.engine.cache.answers import Form, put_together, take_apart
from stillroom.engine.export import ExportFailed, ExportSpec, check_format, export
from stillroom.engine.folding import fold_batchnorm
from stillroom.engine.inference.fidelity import CLASSES, ByEngine
from stillroom.engine.inference.kept import address, alone_with, write_whole
from stillroom.engine.inference.network import FileNetwork
from stillroom.engine.inference.session import ENGINES, check_engine
from stillroom.engine.plain import plain_json
from stillroom.engine.quantize import QuantizationFailed, quantized
from stillroom.engine.run.written import write_atomic
from stillroom.engine.tap import INPUT, tap, unwrap
from stillroom.engine.teacher import Combine, Precision, Renormalise, Teacher
from stillroom.errors import InputError, one_of

TeacherPrecision = Literal["auto", "bf16", "fp16", "fp32", "int8"]
SAMPLES = 256  # training images that ranges are measured on, and as many others that the answers are compared on
_KNOWN = {"onnxruntime": ("auto", "fp32", "int8"), "openvino": ("auto", "bf16", "fp32", "int8")}
_TOLERANCE = 1e-3  # of the largest number of an answer: what an export in float32 may change
_Paths = tuple[str, ...]


def check_engine_precision(engine: str, precision: str) -> None:
    """Raises InputError for an engine that is not installed, or a precision that it does not compute in."""
    one_of("teacher_engine", engine, ENGINES)
    if precision not in _KNOWN[engine]:
        raise InputError("teacher_precision", f"{precision} by {engine}", f"one of {', '.join(_KNOWN[engine])}")
    check_engine(engine)
    check_format("onnx")


@dataclass(frozen=True)
class Shown:
    """Training images as the teacher reads them.

    Attributes:
        key: changes with the images.
        calibration: batches on which int8's ranges are measured.
        others: batches of other images, on which the answers are compared.
    """

    key: str
    calibration: Sequence[Tensor]
    others: Sequence[Tensor]

    @classmethod
    def of(cls, data: Any, read: Callable[[Any], Any]) -> Shown:
        """The first images that a training on these data would show.

        Args:
            data: with a `train_loader`.
            read: a batch's inputs, as the teacher wants them.

        Raises:
            ExportFailed: they are no images in one tensor.
        """
        batches: list[Tensor] = []
        for batch in data.train_loader(seed=0):
            inputs = read(batch)
            if not isinstance(inputs, Tensor) or inputs.ndim != 4:
                raise ExportFailed(
                    f"a teacher that reads a {type(inputs).__name__} cannot be exported: engines are for one tensor of images"
                )
            batches.append(inputs.detach().cpu().float())
            if sum(map(len, batches)) >= 2 * SAMPLES:
                break
        if len(batches) == 1:
            batches = list(batches[0].chunk(2))
        middle = len(batches) // 2
        return cls(data.fingerprint, batches[:middle] or batches, batches[middle:])


class EngineTeacher(Teacher):
    """A teacher that is exported and then asked by onnxruntime or OpenVINO; a distiller cannot tell it from the network.

    The engine runs on the CPU, wherever the student learns. Features that are tapped become further outputs of an exported graph of their
    own. What cannot be exported, and inputs of other sizes, PyTorch computes as ever, and says so in a line. Files are kept for other runs
    (`kept.kept_files`).

    Args:
        network, weights, combine, renormalise: as `Teacher`.
        engine: one of `ENGINES`.
        precision: "auto" is float32 for onnxruntime; for OpenVINO, and for what PyTorch computes, as `Teacher`. "int8": weights and
            activations by onnxruntime's static quantiser, whose ranges are measured on training images.
        data: whose training images.
        by: how fidelity is measured, and what it has to be.
        temperature: the method's, at which answers are compared.
        accept: go on with a teacher beyond `by`'s bounds.
        say: called with a line on what was made.

    Raises:
        InputError: as `Teacher`, or the engine is not installed or does not compute in that precision.
    """

    def __init__(
        self,
        network: nn.Module | Sequence[nn.Module],
        *,
        engine: str,
        precision: TeacherPrecision = "auto",
        data: Any,
        by: ByEngine = CLASSES,
        temperature: float = 4.0,
        accept: bool = False,
        say: Callable[[str], None] = lambda line: None,
        weights: Sequence[float] | None = None,
        combine: Combine = "probabilities",
        renormalise: Renormalise | None = None,
    ) -> None:
        one_of("precision", precision, get_args(TeacherPrecision))
        check_engine_precision(engine, precision)
        by_torch: Precision = "auto" if precision == "int8" else precision
        super().__init__(network, precision=by_torch, weights=weights, combine=combine, renormalise=renormalise)
        self._engine, self._data, self._by, self._temperature, self._accept = engine, data, by, temperature, accept
        self._say, self._int8 = say, precision == "int8"
        self._images: Shown | None = None
        self._opened: dict[tuple[int, _Paths], _Opened | None] = {}  # None: by torch
        self._said: set[str] = set()

    @property
    def computed_in(self) -> str:
        """The precision, in a word."""
        return "int8" if self._int8 else "bf16" if self._dtype == torch.bfloat16 else "fp32"

    def precision_on(self, device: torch.device) -> Any:
        """Engine and precision: what a cache of the answers is known by."""
        return f"{self.computed_in} by {self._engine}"

    def fingerprint(self) -> str:
        """As `Teacher`; the engine counts, and for int8 the images."""
        return address(super().fingerprint(), self._engine, self.computed_in, self._data.fingerprint if self._int8 else None)

    def ready(self) -> list[str]:
        """Makes what answers without features, now; answers with a sentence on each network for the report.

        Raises:
            ExportFailed: a network cannot be exported or quantised.
            InputError: one is too far from what it was made of.
        """
        return [self._make(index, ()).said for index in range(len(self._networks))]

    def around(self, wrap: Callable[[nn.Module], nn.Module]) -> EngineTeacher:
        """As `Teacher`."""
        wrapped = super().around(wrap)
        assert isinstance(wrapped, EngineTeacher)
        wrapped._opened = {}
        return wrapped

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_opened": {}, "_images": None, "_say": _nothing}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.precision_on(torch.device('cpu'))!r})"

    @property
    def _dtype(self) -> torch.dtype:
        reduced = self._engine == "openvino" and not self._int8 and super().precision_on(torch.device("cpu")) == "bf16"
        return torch.bfloat16 if reduced else torch.float32

    def _shown(self) -> Shown:
        if self._images is None:
            self._images = Shown.of(self._data, self._inputs)
        return self._images

    def _prepare(self, inputs: Any) -> Any:
        return _ByEngine(self, lambda: super(EngineTeacher, self)._prepare(inputs))

    def _session(self, index: int, paths: _Paths, inputs: Any) -> _Opened | None:
        """What answers to these inputs; None where that is torch."""
        if (index, paths) not in self._opened:
            try:
                self._opened[index, paths] = self._make(index, paths)
            except (ExportFailed, QuantizationFailed) as error:
                self._opened[index, paths] = None
                self._tell(f"{error}; PyTorch computes it")
        opened = self._opened[index, paths]
        if opened is not None and not (isinstance(inputs, Tensor) and opened.reads(inputs)):
            shape = list(inputs.shape[1:]) if isinstance(inputs, Tensor) else type(inputs).__name__
            self._tell(f"inputs {shape} are none of those that it was exported for; PyTorch computes them")
            return None
        return opened

    def _tell(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _make(self, index: int, paths: _Paths) -> _Opened:
        """A network's graph with the outputs of `paths`, exported and quantised or opened where it lies, and measured."""
        if (found := self._opened.get((index, paths))) is not None:
            return found
        started = time.perf_counter()
        read = _Read(unwrap(self._networks[index]), self._by.ask, paths)
        graph, key, is_new = self._graph(read)
        how = f"made in {time.perf_counter() - started:.1f} s" if is_new else "made before"
        measured = self._figures(address(key, self._engine, self.computed_in, self._temperature, self._shown().key), graph, read)
        told = self._by.said(measured, self._temperature)
        what, images = f" with {', '.join(paths)}" if paths else "", sum(map(len, self._shown().others))
        graph.said = f"The teacher{what} is computed in {self.precision_on(torch.device('cpu'))} ({how}): {told}, beside the network"
        graph.said += f", on {images} training images{' that its ranges were not measured on' if self._int8 else ''}."
        if not self._by.holds(measured):
            if not self._accept:
                got = f"{self.precision_on(torch.device('cpu'))}, which answers otherwise than the network: {told}"
                raise InputError("teacher_precision", got, "another precision or engine, or --accept-teacher to go on with it")
            graph.said += " It was accepted all the same."
        self._tell(graph.said)
        self._opened[index, paths] = graph
        return graph

    def _graph(self, read: _Read) -> tuple[_Opened, str, bool]:
        """The graph, what its file is kept under, and whether it was made now."""
        shown, network = self._shown(), read.network
        example, cell = self._by.example(network, shown.others[0], self._data)
        form, names, answers = read.form(shown.others[0][:2])
        units = [max(1.0, float(part.abs().max())) for part in answers]
        spec = ExportSpec(read.folded(), example, ("images", *names), units=units, ask=read.ask, cell=cell)
        key = address(__version__, torch.__version__, Teacher(network).fingerprint(), read.paths, tuple(example.shape[1:]), cell)
        opened, is_new = self._file(f"{key}.onnx", lambda file: export(spec, file, format="onnx", tolerance=_TOLERANCE))
        if self._int8:
            source, narrow = opened.session.file, not _has_vnni()
            exact = [name for name in names if re.split(r"[.\[]", name)[0] in self._by.exact]
            key = address(key, shown.key, self._renormalise, sum(map(len, shown.calibration)), exact, narrow)
            opened, is_new = self._file(
                f"{key}.int8.onnx", lambda file: quantized(source, file, shown.calibration, exact=exact, narrow=narrow)
            )
        return _Opened(opened, form, names, read.paths, cell, tuple(example.shape[1:])), key, is_new

    def _file(self, name: str, make: Callable[[Path], Any]) -> tuple[FileNetwork, bool]:
        """A file that is kept, opened; and whether it was made now, since it was not there or damaged."""
        with alone_with(name) as file:
            if file.is_file():
                try:
                    return FileNetwork(file, self._engine, layout="nchw", dtype=self._dtype), False
                except InputError:
                    file.unlink()
            write_whole(file, make)
            return FileNetwork(file, self._engine, layout="nchw", dtype=self._dtype), True

    def _figures(self, name: str, graph: _Opened, read: _Read) -> dict[str, float]:
        """How near it is: as it was measured before, or now."""
        with alone_with(f"{name}.json") as file:
            if (known := self._known(file)) is not None:
                return known
            measured = self._measured(graph, read)
            write_atomic(file, json.dumps(measured))
        return measured

    def _known(self, file: Path) -> dict[str, float] | None:
        """Figures that were measured before; None where there are none."""
        try:
            found = plain_json(file.read_bytes())
            return {name: float(found[name]) for name in self._by.bounds}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @torch.no_grad()
    def _measured(self, graph: _Opened, read: _Read) -> dict[str, float]:
        """Its answers beside those of the network in float32: figures, weighted by the images of a batch."""
        total: dict[str, float] = {}
        weight = 0
        for images in self._shown().others:
            wanted, told = read(images)[0], graph.answer(images)[0]
            for name, value in self._by.measure(wanted, told, self._temperature).items():
                total[name] = total.get(name, 0.0) + len(images) * value
            weight += len(images)
        return {name: value / weight for name, value in total.items()}


def _has_vnni() -> bool:
    """Whether this CPU has instructions for sums of 8-bit products. A private name of PyTorch, hence guarded."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def _nothing(line: str) -> None:
    """Says nothing."""


class _Read:
    """A network asked for an answer and features, as a flat tuple of tensors and as what it is."""

    def __init__(self, network: nn.Module, ask: Callable[[nn.Module, Any], Any], paths: _Paths) -> None:
        self.network, self.asked, self.paths = network, ask, paths

    def _run(self, network: nn.Module, inputs: Any) -> tuple[Any, dict[str, Any]]:
        if not self.paths:
            return self.asked(network, inputs), {}
        return tap(network, *self.paths).during(lambda: self.asked(network, inputs))

    def folded(self) -> nn.Module:
        """A copy with batch norms folded, as far as no feature is in the way."""
        return fold_batchnorm(self.network, keep=[path for path in self.paths if not path.endswith(INPUT)])

    def ask(self, network: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
        """What `ExportSpec` asks, of a copy of the network."""
        answer, features = self._run(network, inputs)
        return (*take_apart(answer)[1].values(), *features.values())

    def __call__(self, inputs: Tensor) -> tuple[Any, dict[str, Any]]:
        """The network's own answer and features, in eval mode and float32."""
        modes = [(module, module.training) for module in self.network.modules()]
        try:
            with torch.no_grad():
                device = next((value.device for value in self.network.parameters()), inputs.device)
                return self._run(self.network.eval(), inputs.to(device))
        finally:
            for module, training in modes:
                module.training = training

    def form(self, inputs: Tensor) -> tuple[Form, list[str], list[Tensor]]:
        """The answer's form; the names of its parts, then of the features; and they themselves.

        Raises:
            ExportFailed: some are no tensors of numbers [B, ...].
        """
        answer, features = self(inputs)
        form, parts = take_apart(answer)
        tensors = {**parts, **{f"features.{number}": features[path] for number, path in enumerate(self.paths)}}
        for name, part in tensors.items():
            if not isinstance(part, Tensor) or not part.is_floating_point() or not part.ndim or len(part) != len(inputs):
                raise ExportFailed(
                    f"{type(self.network).__name__}, whose {name} is no tensor of numbers for each image, cannot be exported"
                )
        return form, list(tensors), list(tensors.values())


@dataclass
class _Opened:
    """A graph that is ready to answer.

    Attributes:
        network: around its file.
        form, names: of the answer; of its parts and the features.
        paths: of the features.
        cell, shape: which images it reads: [3, H, W], or sides that are multiples of the cell.
        said: on how it was made and how near it is.
    """

    network: FileNetwork
    form: Form
    names: list[str]
    paths: _Paths
    cell: int | None
    shape: tuple[int, ...]
    said: str = ""

    def reads(self, images: Tensor) -> bool:
        """Whether it reads such images."""
        if self.cell is None:
            return tuple(images.shape[1:]) == self.shape
        return images.ndim == 4 and images.shape[1] == self.shape[0] and not any(side % self.cell for side in images.shape[2:])

    def answer(self, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """The answer and the features, float32 on the images' device."""
        told = self.network(images)
        parts: Mapping[str, Tensor] = dict(zip(self.names, (told,) if isinstance(told, Tensor) else told, strict=True))
        features = list(parts.values())[len(parts) - len(self.paths) :]
        return put_together(self.form, parts), dict(zip(self.paths, features, strict=True))


class _ByEngine:
    """What `Teacher` asks in the place of its prepared copies."""

    def __init__(self, teacher: EngineTeacher, torch_copies: Callable[[], Any]) -> None:
        self.teacher, self.torch_copies = teacher, torch_copies

    def run(self, index: int, inputs: Any, paths: _Paths | None = None) -> tuple[Any, dict[str, Any]]:
        """Network `index`'s answer and its features at `paths`."""
        opened = self.teacher._session(index, paths or (), inputs)
        if opened is None:
            found: tuple[Any, dict[str, Any]] = self.torch_copies().run(index, inputs, paths)
            return found
        return opened.answer(inputs)
