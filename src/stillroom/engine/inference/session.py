"""A file of ONNX or OpenVINO, opened by the engine that runs it; each process opens its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError

ENGINES = ("onnxruntime", "openvino")
_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_OPENVINO_TYPES = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Port:
    """An input or an output of a file.

    Attributes:
        name: as the file calls it.
        shape: None for a dimension of any size; None in its place where not even their number is known.
        dtype: NumPy's name of the numbers' type, or the engine's own for others.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str


def check_engine(engine: str, argument: str = "teacher_engine") -> None:
    """Raises InputError where an engine is not installed."""
    if find_spec(engine) is None:
        raise InputError(argument, f"{engine}, which is not installed", "it to be: pip install 'stillroom[engines]'")


class Session:
    """An opened file. It never changes, so copies of whoever holds it share it; in another process it is opened anew.

    Args:
        file: of ONNX, or OpenVINO's ``.xml`` with its ``.bin`` beside it.
        engine: one of `ENGINES`.
        dtype: in which OpenVINO computes what is not quantised: torch.float32 or torch.bfloat16.
        argument: what the user calls the file.

    Attributes:
        inputs, outputs: of the file.
        metadata: what it says of itself, words by names.
        parameters: numbers that it holds.

    Raises:
        InputError: the engine is not installed, the file is not there or is no model, or the engine lacks an operator of it.
    """

    def __init__(self, file: Path, engine: str, *, dtype: torch.dtype = torch.float32, argument: str = "teacher") -> None:
        check_engine(engine, argument)
        if not file.is_file():
            raise InputError(argument, str(file), "an existing file")
        self.file, self.engine, self.dtype, self.argument = file, engine, dtype, argument
        try:
            opened: _OnnxRuntime | _OpenVino = (_OnnxRuntime if engine == "onnxruntime" else _OpenVino)(file, dtype)
        except Exception as error:  # of as many types as there are things wrong with files
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            lacking = [line for line in lines if "not implemented" in line.lower() or "not supported" in line.lower()]
            reason = (lacking or lines[-1:])[0][:300]
            raise InputError(argument, f"{file}, which {engine} cannot open", f"a model that it runs ({reason})") from error
        self._run = opened.run
        self.inputs, self.outputs, self.metadata, self.parameters = opened.inputs, opened.outputs, opened.metadata, opened.parameters

    def __call__(self, values: Tensor) -> list[Tensor]:
        """What the file answers to its only input, on the CPU; output by output.

        Args:
            values: contiguous, on the CPU, of the input's type.
        """
        return [torch.from_numpy(output) for output in self._run(values.numpy())]

    def __deepcopy__(self, memo: Any) -> Session:
        return self

    def __reduce__(self) -> Any:
        return _opened, (self.file, self.engine, self.dtype, self.argument)


def _opened(file: Path, engine: str, dtype: torch.dtype, argument: str) -> Session:
    return Session(file, engine, dtype=dtype, argument=argument)


class _OnnxRuntime:
    def __init__(self, file: Path, dtype: torch.dtype) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is raised, and needs not be printed besides
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the student's own threads are to have the cores
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (self._ports(ports) for ports in (session.get_inputs(), session.get_outputs()))
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.parameters = _onnx_parameters(file)
        self.session, self._reads = session, self.inputs[0].name if self.inputs else ""

    @staticmethod
    def _ports(ports: Sequence[Any]) -> tuple[Port, ...]:
        return tuple(
            Port(
                port.name,
                # onnxruntime tells a file that says nothing of a shape as one without dimensions
                tuple(side if isinstance(side, int) and side > 0 else None for side in port.shape) if port.shape else None,
                _ONNX_TYPES.get(port.type, port.type),
            )
            for port in ports
        )

    def run(self, values: np.ndarray) -> list[np.ndarray]:
        found: list[np.ndarray] = self.session.run(None, {self._reads: values})
        return found


class _OpenVino:
    def __init__(self, file: Path, dtype: torch.dtype) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(file)
        self.inputs, self.outputs = (self._ports(ports) for ports in (model.inputs, model.outputs))
        self.metadata: Mapping[str, str] = self._told(model)
        self.parameters = sum(int(np.prod(op.get_output_shape(0))) for op in model.get_ops() if op.get_type_name() == "Constant")
        settings = {
            "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[str(dtype).removeprefix("torch.")],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()

    @staticmethod
    def _ports(ports: Sequence[Any]) -> tuple[Port, ...]:
        found = []
        for number, port in enumerate(ports):
            shape, name = port.get_partial_shape(), port.get_any_name() if port.get_names() else str(number)
            sides = None if shape.rank.is_dynamic else tuple(side.get_length() if side.is_static else None for side in shape)
            kind = port.get_element_type()
            found.append(Port(name, sides, np.dtype(kind.to_dtype()).name if kind.is_static() else kind.get_type_name()))
        return tuple(found)

    @staticmethod
    def _told(model: Any) -> dict[str, str]:
        """What lies under `framework` (metadata of the file that was converted) and `model_info` (OpenVINO's own convention)."""
        found: dict[str, str] = {}
        for group in ("framework", "model_info"):
            if model.has_rt_info([group]):
                values = model.get_rt_info([group]).value
                found |= {name: str(getattr(value, "value", value)) for name, value in values.items()}
        return found

    def run(self, values: np.ndarray) -> list[np.ndarray]:
        answers = self.request.infer({0: values}, share_inputs=True)
        return [answers[number] for number in range(len(self.outputs))]


def _onnx_parameters(file: Path) -> int:
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
