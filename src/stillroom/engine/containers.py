"""What lies in a file or folder of weights: its tensors by dotted names, read without running anything.

Safetensors, whole or in shards; what `torch.save` wrote, in any nesting; arrays of NumPy (``.npz``); folders that Stillroom, timm or
transformers wrote. A pickle is
read by torch's own unpickler for weights, which makes tensors and plain values and refuses every class it is not told of. It is told of
those in `_INERT`: things that training code keeps beside weights (arguments, paths, numbers of NumPy, configurations). None of them is
imported: each becomes an object of this module that takes what it is made from, and does nothing. What torch's unpickler cannot read, newer
pickle protocols and pickles that torch did not write, is read by one of ours, which knows those same classes and no others.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.errors import InputError

# What a folder keeps its network in: a run's or stage's, timm's, transformers' (whole or in shards).
_IN_FOLDER = (
    "student.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SHOWN = 8  # names in a message
_BROKEN_ARCHIVE = (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error, struct.error)
_OF_TORCH = 2  # the newest pickle protocol that torch's unpickler for weights reads
_PLACES = 4  # in which one and the same object of a file is looked into


@dataclass(frozen=True)
class Contents:
    """The tensors of a file.

    Attributes:
        file: that was read; of several shards, their index.
        tensors: by the names on the way to them, joined by dots: ``state_dict.module.conv1.weight``.
        homes: for each tensor the name of the dictionary that holds it (``state_dict``); empty for the file itself.
        names: of everything at the top of the file.
    """

    file: Path
    tensors: dict[str, Tensor]
    homes: dict[str, str]
    names: tuple[str, ...]


def read_container(path: str | Path, *, trust_pickle: bool = False, argument: str = "weights") -> Contents:
    """All tensors in a file or in a folder's file, on the CPU. What a file is, is told by its content, not by its name.

    Args:
        path: a file; an index of shards (JSON); or a folder with one of these under a name that is usual.
        trust_pickle: also unpickle arbitrary objects, which can run any code that the file's author put there.
        argument: name in error messages.

    Raises:
        InputError: nothing there, no weights, damaged, or in need of `trust_pickle`.
    """
    file = _file(Path(path).expanduser(), argument)
    content: object = _sharded(file, trust_pickle, argument) if _is_index(file) else _whole(file, trust_pickle, argument)
    tensors: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    for home, name, value in _walk(content):
        key = f"{home}.{name}" if home else name
        if key not in tensors:
            tensors[key], homes[key] = value.detach(), home
    names = tuple(map(str, content)) if isinstance(content, Mapping) else ()
    if not tensors:
        there = f"; it holds {listed(names)}" if names else ""
        raise InputError(argument, f"'{file}', in which no state dict was found{there}", "a state dict or a checkpoint that holds one")
    return Contents(file, tensors, homes, names)


def listed(names: tuple[str, ...] | list[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


# Files ----------------------------------------------------------------------------------------------------------------------------------


def _file(path: Path, argument: str) -> Path:
    if path.is_dir():
        for name in _IN_FOLDER:
            if (path / name).is_file():
                return path / name
        alike = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS and file.is_file())
        if len(alike) == 1:
            return alike[0]
        if (path / ".metadata").is_file():
            expected = "one file: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE makes it"
            raise InputError(argument, f"'{path}', a checkpoint in the shards of several processes", expected)
        there = f", but with {listed([file.name for file in alike])}" if alike else ""
        got = f"the folder '{path}' without {_IN_FOLDER[0]}{there}"
        raise InputError(argument, got, "a finished run's folder or a file of weights")
    if not path.is_file():
        raise InputError(argument, f"'{path}', which does not exist", "a file of weights or a run's folder")
    return path


def _is_index(file: Path) -> bool:
    """Whether it is JSON. Safetensors may begin with any byte, but its first eight are a length, and end with zeros."""
    with file.open("rb") as stream:
        head = stream.read(64)
    return head.lstrip()[:1] == b"{" and b"\0" not in head[:8]


def _sharded(file: Path, trust_pickle: bool, argument: str) -> dict[str, Tensor]:
    """The tensors that an index of shards lists: ``{"weight_map": {name: file beside the index}}``."""
    try:
        places = {str(key): str(name) for key, name in json.loads(file.read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(argument, f"'{file}', which is JSON and no index of weights", "a file of weights") from error
    names = sorted(set(places.values()))
    if odd := [name for name in names if Path(name).name != name]:
        raise InputError(argument, f"'{file}', whose shards lie elsewhere ({odd[0]})", "shards beside their index")
    if missing := [name for name in names if not (file.parent / name).is_file()]:
        raise InputError(argument, f"'{file}' without {listed(missing)}", f"all {len(names)} shards that it lists, beside it")
    found: dict[str, Tensor] = {}
    for name in names:
        shard = _whole(file.parent / name, trust_pickle, argument)
        wanted = [key for key, place in places.items() if place == name]
        lost = [key for key in wanted if not isinstance(shard, Mapping) or key not in shard]
        if lost:
            raise InputError(argument, f"'{file.parent / name}' without {listed(lost)}", f"what {file.name} says is in it")
        assert isinstance(shard, Mapping)
        found |= {key: shard[key] for key in wanted}
    return found


def _whole(file: Path, trust_pickle: bool, argument: str) -> object:
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise InputError(argument, f"'{file}', an empty file", "a file of weights")
    if head[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError, AttributeError, KeyError) as error:
            raise _damaged(argument, file, error) from error
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        what = "which is neither safetensors nor written by torch.save"
        if head.startswith(b"version https://git-lfs"):
            what = "a pointer of Git LFS to weights that were not fetched (git lfs pull)"
        elif head.lstrip()[:1] == b"<":
            what = "a web page, so that a download must have gone wrong"
        raise InputError(argument, f"'{file}', {what}", "a file of weights")
    if _holds(file, ".npy", all):
        return _arrays(file, argument)
    if _holds(file, "/constants.pkl", any):  # reading what torch.jit wrote would run it
        raise InputError(argument, f"'{file}', a TorchScript program", "its state dict: torch.save(program.state_dict(), FILE)")
    return _unpickle(file, trust_pickle, argument)


def _holds(file: Path, ending: str, quantity: Callable[[Iterable[bool]], bool]) -> bool:
    """Whether any, or all, files of a zip have names of this ending; not of what is no zip, or an empty one."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            return bool(names) and quantity(name.endswith(ending) for name in names)
    except _BROKEN_ARCHIVE:
        return False


def _arrays(file: Path, argument: str) -> dict[str, Tensor]:
    """The arrays of a `.npz` that torch has a type for."""
    found = {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                with suppress(TypeError):  # words, and other types that torch lacks
                    found[name] = torch.from_numpy(np.ascontiguousarray(arrays[name]))
    except _BROKEN_ARCHIVE as error:  # Python objects among them, which nobody wants to run, too
        raise _damaged(argument, file, error) from error
    return found


def _damaged(argument: str, file: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(argument, f"'{file}', which cannot be read ({reason[:200]})", "a complete, undamaged file of weights")


def _unpickle(file: Path, trust_pickle: bool, argument: str) -> object:
    if not trust_pickle and _protocol(file) > _OF_TORCH:
        try:
            return _Unpickler.read(file)
        except Exception as error:  # as below
            if refused := re.search(r"class (\S+)$", str(error)):
                raise _untrusted(argument, file, refused[1]) from None
            raise _damaged(argument, file, error) from error
    known = [] if trust_pickle else [(made, name) for name, made in _INERT.items()]
    try:
        with warnings.catch_warnings(), file.open("rb") as stream, torch.serialization.safe_globals(known):  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # about pickle protocols; what is wrong is said below
            # a stream, no path: torch believes a name that ends in .safetensors
            return torch.load(stream, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # depending on where a file is damaged, reading it raises nearly anything
        refused = re.search(r"(?:GLOBAL (\S+)|(?:global|class) (\S+?\.\S+?))[\s,]|Unsupported operand", f"{error} ")
        if not trust_pickle and "weights_only" in str(error).lower() and refused:
            raise _untrusted(argument, file, refused[1] or refused[2] or "more than tensors") from None
        raise _damaged(argument, file, error) from error


def _untrusted(argument: str, file: Path, name: str) -> InputError:
    expected = "a file of tensors alone, or --trust-code (trust_pickle=True) if you trust its author: unpickling can run any code"
    return InputError(argument, f"'{file}', which needs {name} to be unpickled", expected)


def _protocol(file: Path) -> int:
    """Of the pickle that a file is, or that an archive of torch's holds; 0 where there is none to be found."""
    try:
        if not zipfile.is_zipfile(file):
            with file.open("rb") as stream:
                return stream.read(2)[1]
        with zipfile.ZipFile(file) as archive, archive.open(_pickle_in(archive)) as stream:
            return stream.read(2)[1]
    except (*_BROKEN_ARCHIVE, IndexError, KeyError):
        return 0


def _pickle_in(archive: zipfile.ZipFile) -> str:
    return next((name for name in archive.namelist() if name.endswith("/data.pkl")), "data.pkl")


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of any protocol into tensors, plain values and inert objects. It finds no class but those of this module.

    Args:
        stream: the pickle.
        archive: of torch's, that holds the numbers of its tensors; None for a pickle alone.
    """

    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile | None = None) -> None:
        super().__init__(stream)
        self.archive = archive

    @classmethod
    def read(cls, file: Path) -> object:
        """What a file holds."""
        if not zipfile.is_zipfile(file):
            with file.open("rb") as stream:
                return cls(stream).load()
        with zipfile.ZipFile(file) as archive, archive.open(_pickle_in(archive)) as stream:
            return cls(stream, archive).load()

    def find_class(self, module: str, name: str) -> Any:
        """Something inert under that name.

        Raises:
            UnpicklingError: there is nothing.
        """
        if module in ("torch", "torch.storage") and name.removesuffix("Storage") in _STORED:
            return _Inert(name.removesuffix("Storage"))
        found = _INERT.get(f"{module}.{name}", _OWN.get(f"{module}.{name}"))
        if found is None:
            raise pickle.UnpicklingError(f"class {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """The numbers of a storage: ``("storage", kind, name in the archive, device, length)``."""
        _, kind, name, *_ = pid
        assert self.archive is not None
        content = self.archive.read(f"{_pickle_in(self.archive).removesuffix('data.pkl')}data/{name}")
        return _Inert(torch.frombuffer(bytearray(content), dtype=_STORED[kind.arguments[0]]) if content else torch.empty(0))


# What lies in it ------------------------------------------------------------------------------------------------------------------------


def _walk(content: object) -> Iterator[tuple[str, str, Tensor]]:
    """(home, name, tensor) of every ordinary tensor, in the order of the file; of an object that lies in many places, in a few of them.

    Arrays of NumPy are weights where no tensors lie beside them.
    """
    entered: dict[int, int] = {}
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        home, node = waiting.pop()
        entered[id(node)] = entered.get(id(node), 0) + 1
        if entered[id(node)] > _PLACES:  # or, if it lies in itself, in no end of them
            continue
        inner: list[tuple[str, object]] = []
        entries = _entries(node)
        arrays = not any(isinstance(value, Tensor) for _, value in entries)
        for name, value in entries:
            tensor = value.tensor() if arrays and isinstance(value, _Array) else value
            if isinstance(tensor, Tensor):
                if tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu":
                    yield home, name, tensor
            elif value is not None and not isinstance(value, str | bytes | int | float):
                inner.append((f"{home}.{name}" if home else name, value))
        waiting += reversed(inner)


def _entries(node: object) -> list[tuple[str, Any]]:
    if isinstance(node, nn.Module):  # of a pickle that was trusted
        node = node.state_dict()
    if isinstance(node, _Inert):
        node = node.state
    if isinstance(node, Mapping):
        return [(str(key), value) for key, value in node.items()]
    return [(str(number), value) for number, value in enumerate(node)] if isinstance(node, list | tuple) else []


# What becomes of things beside the weights ----------------------------------------------------------------------------------------------


class _Inert:
    """Takes whatever it is made from; keeps the attributes, for weights may lie among them."""

    state: Any
    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: object) -> Any:
        """Not `__init__`, which an unpickler does not call."""
        made = super().__new__(cls)
        made.state, made.arguments = None, arguments
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Array(_Inert):
    """An array of NumPy, as far as it holds plain numbers."""

    def tensor(self) -> Tensor | None:
        """Its numbers; None where it holds something else, or is damaged."""
        try:
            if self.state is None:  # protocol 5
                content, kind, shape, order = self.arguments
                by_columns = order == "F"
            else:
                _, shape, kind, by_columns, content = self.state
            letter, big = kind.arguments[0], kind.state[1] == ">"
            if not re.fullmatch(r"[fiu][1248]|b1", letter):
                return None
            flat = np.frombuffer(content, np.dtype("<>"[big] + letter)).astype(letter)  # a copy, in this machine's order
            return torch.from_numpy(flat.reshape(shape, order="F" if by_columns else "C"))
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
            return None


class _Rebuilt(_Inert):
    """A tensor as torch pickles it: ``(storage, offset, shape, strides, ...)``."""

    def __new__(cls, *arguments: Any) -> Any:
        storage, offset, shape, strides, *_ = arguments
        return torch.as_strided(storage.arguments[0], shape, strides, offset)  # which looks that all lies inside


class _Parameter(_Inert):
    """A parameter as torch pickles it: ``(tensor, ...)``."""

    def __new__(cls, *arguments: Any) -> Any:
        return arguments[0]


class _Words(_Inert):
    """A dictionary of some other kind: its items come later, one by one, so that it has to be one."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict(arguments[0]) if arguments and isinstance(arguments[0], dict) else OrderedDict()


class _Row(_Inert):
    """A list of some other kind, likewise."""

    def __new__(cls, *arguments: Any) -> Any:
        return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else []


def _named(made: type[_Inert], places: str, names: str) -> dict[str, type[_Inert]]:
    return {f"{place}.{name}": made for place in places.split() for name in names.split()}


_NUMPY = "numpy.core.multiarray numpy._core.multiarray"
_INERT: dict[str, type[_Inert]] = {
    **_named(_Inert, "argparse", "Namespace"),
    **_named(_Inert, "types", "SimpleNamespace MappingProxyType"),
    **_named(_Inert, "pathlib pathlib._local", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"),
    **_named(_Inert, "datetime", "datetime date time timedelta timezone"),
    **_named(_Inert, "zoneinfo", "ZoneInfo ZoneInfo._unpickle"),
    **_named(_Inert, "decimal fractions uuid", "Decimal Fraction UUID SafeUUID"),
    **_named(_Inert, "builtins", "dict list tuple str int float bool bytes frozenset range slice object NoneType"),
    **_named(_Inert, "typing", "Any Union Optional Dict List Tuple"),
    **_named(_Inert, "copyreg _operator", "_reconstructor getitem"),
    **_named(_Inert, _NUMPY, "scalar"),
    **_named(_Array, _NUMPY, "_reconstruct"),
    **_named(_Array, "numpy.core.numeric numpy._core.numeric", "_frombuffer"),
    **_named(_Inert, "numpy", "dtype ndarray float16 float32 float64 int8 int16 int32 int64 uint8 bool_ bool"),
    **_named(_Inert, "numpy.dtypes", "Float16DType Float32DType Float64DType Int8DType Int16DType Int32DType Int64DType"),
    **_named(_Inert, "numpy.dtypes", "UInt8DType BoolDType StrDType ObjectDType"),
    **_named(_Inert, "torch.torch_version", "TorchVersion"),
    **_named(_Inert, "omegaconf.dictconfig omegaconf.listconfig", "DictConfig ListConfig"),
    **_named(_Inert, "omegaconf.base", "Metadata ContainerMetadata UnionNode"),
    **_named(
        _Inert,
        "omegaconf.nodes",
        "AnyNode StringNode IntegerNode FloatNode BooleanNode BytesNode PathNode EnumNode InterpolationResultNode",
    ),
    **_named(_Words, "collections", "defaultdict"),
    **_named(_Row, "collections", "deque"),
    **_named(_Words, "easydict addict addict.addict", "EasyDict Dict"),
    **_named(_Words, "yacs.config fvcore.common.config detectron2.config.config", "CfgNode"),
    **_named(_Words, "mmengine.config mmengine.config.config mmcv.utils.config", "ConfigDict Config"),
    **_named(_Words, "lightning.fabric.utilities.data lightning_fabric.utilities.data", "AttributeDict"),
    **_named(_Words, "pytorch_lightning.utilities.parsing lightning.pytorch.utilities.parsing", "AttributeDict"),
}
# What torch's own unpickler knows besides, for ours.
_OWN: dict[str, type[_Inert]] = {
    **_named(_Words, "collections", "OrderedDict Counter"),
    **_named(_Inert, "torch", "Size device dtype layout float16 bfloat16 float32 float64 int64 int32 int16 int8 uint8 bool"),
    **_named(_Inert, "builtins", "set bytearray complex"),
    **_named(_Inert, "_codecs", "encode"),
    **_named(_Rebuilt, "torch._utils", "_rebuild_tensor_v2 _rebuild_tensor"),
    **_named(_Parameter, "torch._utils", "_rebuild_parameter _rebuild_parameter_with_state"),
    **_named(_Inert, "torch.serialization", "_get_layout"),
}
_STORED = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
