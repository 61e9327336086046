"""A network that is only a file: it answers like any other, and cannot be trained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.engine.inference.session import Session
from stillroom.errors import InputError

Layout = Literal["auto", "nchw", "nhwc"]


class FileNetwork(nn.Module):
    """A file that reads one batch of images, as a network that runs on the CPU wherever its inputs are.

    Inputs come as float [B, 3, H, W]; they are laid out, converted, cut and padded as the file wants them. One output is answered as it is,
    several as a tuple. Each output is a module too, an `nn.Identity` under its name (with ``_`` for dots), so that a tap can read it.

    Args:
        file: see `Session`.
        engine: one of `ENGINES`.
        layout: of the file's input; by default where its three channels are.
        dtype: see `Session`.
        argument: what the user calls it.

    Attributes:
        session: the opened file.
        size: height and width, where the file reads one size only.

    Raises:
        InputError: as `Session`, or the file does not read one batch of images.
    """

    def __init__(
        self, file: Path, engine: str, *, layout: Layout = "auto", dtype: torch.dtype = torch.float32, argument: str = "teacher"
    ) -> None:
        super().__init__()
        self.session = session = Session(file, engine, dtype=dtype, argument=argument)
        if len(session.inputs) != 1:
            names = ", ".join(port.name for port in session.inputs) or "none"
            raise InputError(argument, f"{file} with {len(session.inputs)} inputs ({names})", "a model that reads images alone")
        reads = session.inputs[0]
        if reads.shape is None or len(reads.shape) != 4:
            rank = "of which it does not say how many dimensions it has" if reads.shape is None else f"of shape {_text(reads.shape)}"
            raise InputError(argument, f"{file}, whose input {reads.name} is one {rank}", "an input [B, 3, H, W] or [B, H, W, 3]")
        if reads.dtype not in ("float32", "float16", "uint8"):
            raise InputError(argument, f"{file}, whose input {reads.name} is {reads.dtype}", "float32, float16, or uint8 from 0 to 255")
        self.layout = _layout(reads.shape, layout, f"{file}, whose input {reads.name} is {_text(reads.shape)}", argument)
        batch, *sides = reads.shape if self.layout == "nchw" else (reads.shape[0], reads.shape[3], *reads.shape[1:3])
        self.batch, self.dtype = batch, getattr(torch, reads.dtype)
        self.size = (sides[1], sides[2]) if sides[1] and sides[2] else None
        self.content = hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
        self.places = [port.name.replace(".", "_") for port in session.outputs]
        for place in self.places:
            if not hasattr(self, place):  # a name of PyTorch's own, such as "forward", stays that
                self.add_module(place, nn.Identity())

    @property
    def stored(self) -> tuple[int, int]:
        """Numbers that the file holds, and its bytes; OpenVINO's weights lie beside it."""
        files = [self.session.file, *([self.session.file.with_suffix(".bin")] if self.session.file.suffix == ".xml" else [])]
        return self.session.parameters, sum(file.stat().st_size for file in files if file.is_file())

    def forward(self, images_BCHW: Tensor) -> Any:
        """Images to what the file's outputs say."""
        if not isinstance(images_BCHW, Tensor):  # what torch.fx traces with; an engine would crash on it
            raise InputError(self.session.argument, type(images_BCHW).__name__, "images [B, 3, H, W], one tensor")
        values = images_BCHW.detach().cpu()
        if self.dtype == torch.uint8:
            values = values.round().clamp(0, 255)
        values = (values.permute(0, 2, 3, 1) if self.layout == "nhwc" else values).to(self.dtype).contiguous()
        parts = [values] if self.batch is None else [self._filled(part) for part in values.split(self.batch)]
        try:
            answers = [self.session(part) for part in parts]
        except Exception as error:  # what an engine raises of inputs that do not fit
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                self.session.argument, f"{self.session.file}, which fails on images {list(images_BCHW.shape)}", f"others ({reason})"
            ) from error
        joined = [outputs[0] if len(parts) == 1 else torch.cat(outputs) for outputs in zip(*answers, strict=True)]
        told = []
        for place, output in zip(self.places, joined, strict=True):
            output = output[: len(values)] if output.ndim else output
            output = (output.float() if output.is_floating_point() else output).to(images_BCHW.device)
            told.append(self._modules[place](output) if place in self._modules else output)  # type: ignore[misc]
        return told[0] if len(told) == 1 else tuple(told)

    def _filled(self, part: Tensor) -> Tensor:
        """A batch of the file's own size: the last sample again where there are too few."""
        missing = (self.batch or 0) - len(part)
        return torch.cat((part, part[-1:].expand(missing, *part.shape[1:]))) if missing else part

    def extra_repr(self) -> str:
        """What tells it from other files: its content."""
        told = "" if self.session.dtype == torch.float32 else f", {self.session.dtype}"
        return f"{self.session.engine}, {self.content}, {self.layout}{told}"


def _layout(shape: tuple[int | None, ...], asked: Layout, what: str, argument: str) -> str:
    possible = [name for name, place in (("nchw", 1), ("nhwc", 3)) if shape[place] == 3]
    if asked == "auto" and len(possible) == 1:
        return possible[0]
    if asked == "auto":
        got = f"{what}, which leaves open where its three channels are" if possible else f"{what}, without three channels"
        unclear = possible or None in (shape[1], shape[3])
        raise InputError(argument, got, "--teacher-layout nchw or nhwc" if unclear else "a model of images of three channels")
    if shape[1 if asked == "nchw" else 3] not in (3, None):
        raise InputError(f"{argument}_layout", f"{asked} for {what}", "the layout in which three channels are three")
    return asked


def _text(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if side is None else str(side) for side in shape)}]"
