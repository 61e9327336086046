"""An ONNX file whose weights and activations are 8-bit integers, by onnxruntime's own quantiser; and a network around an ONNX file.

Static quantisation: the range of each activation is measured on calibration inputs; weights have a scale for each output channel. What is
around the quantised operations stays float32, and so do inputs and answers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stillroom.engine.inference.session import Session
from stillroom.engine.run.console import quiet_loggers
from stillroom.errors import StillroomError

_TALKATIVE = ("onnxruntime", "onnxruntime.quantization", "root")


class QuantizationFailed(StillroomError):
    """The file cannot be quantised."""


class OnnxNetwork(nn.Module):
    """An ONNX file of one input and one answer as a network that cannot be trained; it runs on the CPU.

    Args:
        file: whose input and answer are float32 [B, ...], for any B.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.session = Session(file, "onnxruntime")

    def forward(self, inputs_BX: Tensor) -> Tensor:
        """[B, ...] to the file's first answer [B, ...]."""
        return self.session(inputs_BX.detach().cpu().contiguous())[0]


def quantized(file: Path, out: Path, calibration: Iterable[Tensor], *, exact: Collection[str] = (), narrow: bool = False) -> None:
    """Writes an 8-bit version of an ONNX file; its metadata go with it.

    Args:
        file: float32, of one input.
        out: the file to write.
        calibration: batches of inputs such as it will read; a few hundred samples in all.
        exact: outputs, such as coordinates, for which everything behind the last convolution stays in float32.
        narrow: weights of 7 bits: without VNNI instructions onnxruntime's sums of 8 times 8 bits can overflow.

    Raises:
        QuantizationFailed: the quantiser cannot do it.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(file)
    reads = model.graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.rest, None)
            return None if batch is None else {reads: batch.numpy()}

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder, quiet_loggers(_TALKATIVE, logging.ERROR):
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "made.onnx"
        try:
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(made),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=narrow,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_behind_convolutions(onnx.load(prepared), exact),
            )
        except Exception as error:  # of many types, by the graph
            raise QuantizationFailed(
                f"{file.name} cannot be quantised: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            ) from error
        finished = onnx.load(made)
        onnx.helper.set_model_props(finished, {prop.key: prop.value for prop in model.metadata_props})
        onnx.save(finished, out)


def _behind_convolutions(model: Any, outputs: Collection[str]) -> list[str]:
    """Names of the operations between the last convolutions and these outputs."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found, waiting = {}, [makers[name] for name in outputs if name in makers]
    while waiting:
        node = waiting.pop()
        if node.op_type != "Conv" and node.name not in found:
            found[node.name] = node
            waiting += [makers[name] for name in node.input if name in makers]
    return sorted(found)
