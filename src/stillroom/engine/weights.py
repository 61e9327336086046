"""Weights on disk: read from the formats that people have, written as safetensors."""

from __future__ import annotations

import os
import re
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stillroom.engine.run.written import put
from stillroom.engine.tap import unwrap
from stillroom.errors import InputError

# Files that a run's or stage's folder (ours; then timm's and Hugging Face's) keeps its network in.
_IN_FOLDER = ("student.safetensors", "model.safetensors")
# Where checkpoints keep the state dict, in the order of preference.
_NESTED = ("state_dict", "model", "model_state_dict", "net", "network", "student", "module", "weights", "ema", "state_dict_ema")
_PREFIXES = {"module", "model", "student", "network", "net", "backbone"}
_HEADS = 2  # layers that answer for the classes: one, or one more for a distillation token
_SHOWN = 5  # offending keys of each kind in a message


@dataclass(frozen=True)
class OtherHead:
    """A network's head that a file has no weights for, since the file's answers for other classes.

    Args:
        classes: how many the file's head answers for.
        left: names of the network's parameters that were left as they were.
    """

    classes: int
    left: tuple[str, ...]


def read_weights(path: str | Path, *, trust_pickle: bool = False, argument: str = "weights") -> dict[str, Tensor]:
    """The state dict in a file or a run's folder, on the CPU, with the keys of the file.

    Args:
        path: a folder that holds ``student.safetensors``; a safetensors file; or a state dict, a checkpoint around one or a Lightning
            checkpoint as `torch.save` wrote it. What a file is, is told by its content, not by its name.
        trust_pickle: also unpickle arbitrary objects, which can run any code that the file's author put there.
        argument: name in error messages.

    Raises:
        InputError: nothing there, not weights, damaged, or in need of `trust_pickle`.
    """
    file = _file(Path(path).expanduser(), argument)
    with file.open("rb") as stream:
        head = stream.read(9)
    if not head:
        raise InputError(argument, f"'{file}', an empty file", "a file of weights")
    if head[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(argument, file, error) from error
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise InputError(argument, f"'{file}', which is neither safetensors nor written by torch.save", "a file of weights")
    weights = _state_dict(_unpickle(file, trust_pickle, argument))
    if not weights:
        raise InputError(argument, f"'{file}', in which no state dict was found", "a state dict or a checkpoint that holds one")
    return weights


def load_weights(
    network: nn.Module, path: str | Path, *, trust_pickle: bool = False, argument: str = "weights", other_head: bool = False
) -> OtherHead | None:
    """Load a file's weights into a network, all or nothing.

    Prefixes that training code puts before the keys (``module.``, ``model.``, ``student.``, ``backbone.``, ..., also several) are taken
    off where the rest then fits the network best; with a prefix taken off, keys without it (a Lightning checkpoint's ``teacher.*``) are
    left out. Batch norms' ``num_batches_tracked`` may be missing or superfluous; every other difference is an error.

    Args:
        network: takes the weights in its own dtype and on its own device; unchanged on error.
        path, trust_pickle, argument: see `read_weights`.
        other_head: also take a file whose head answers for another number of classes: the head is left as it is.

    Returns:
        What was left out of the file's head; None where everything was loaded.

    Raises:
        InputError: as `read_weights`, or keys, shapes or types do not fit, or a weight is no number; the message lists the first
            of each kind.
    """
    network = unwrap(network)
    own = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    by_plain_key = {_without_compile(key): key for key in own}
    weights = {_without_compile(key): value for key, value in read_weights(path, trust_pickle=trust_pickle, argument=argument).items()}
    expected = {plain: own[key] for plain, key in by_plain_key.items()}
    best = max(_candidates(weights), key=lambda candidate: _score(candidate, expected))
    head = _other_head(best, expected) if other_head else None
    taken = expected if head is None else {key: value for key, value in expected.items() if key not in head.left}
    problems = _differences({key: value for key, value in best.items() if key in taken or key not in expected}, taken)
    if problems:
        got = f"'{path}', which does not fit {type(network).__name__}: {'; '.join(problems)}"
        raise InputError(argument, got, "the weights of this very network")
    fitting = {by_plain_key[key]: value for key, value in best.items() if key in taken}
    network.load_state_dict(fitting, strict=False)
    return head and OtherHead(head.classes, tuple(by_plain_key[key] for key in head.left))


def save_weights(network: nn.Module | Mapping[str, Tensor], path: str | Path) -> None:
    """Write a network's (or its) state dict as safetensors; a file of that name is replaced at once or, on failure, not at all.

    Wrappers (DDP, torch.compile) leave no trace in the keys. Tensors that share memory are written once per key, so that every key of
    the state dict is in the file. Extra state that is no tensor is not written.
    """
    target = Path(path)
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    state = unwrap(network).state_dict() if isinstance(network, nn.Module) else network
    for key, value in state.items():
        if not isinstance(value, Tensor):
            continue
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:  # safetensors refuses shared memory
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        tensors[_without_compile(key)] = value
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes it unreadable for everybody else
        _sync(temporary)
        put(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file(path: Path, argument: str) -> Path:
    if path.is_dir():
        for name in _IN_FOLDER:
            if (path / name).is_file():
                return path / name
        raise InputError(argument, f"the folder '{path}' without {_IN_FOLDER[0]}", "a finished run's folder or a file of weights")
    if not path.is_file():
        raise InputError(argument, f"'{path}', which does not exist", "a file of weights or a run's folder")
    return path


def _damaged(argument: str, file: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(argument, f"'{file}', which cannot be read ({reason[:200]})", "a complete, undamaged file of weights")


def _unpickle(file: Path, trust_pickle: bool, argument: str) -> object:
    try:
        with warnings.catch_warnings(), file.open("rb") as stream:  # no path: torch believes a name that ends in .safetensors
            warnings.simplefilter("ignore")  # about pickle protocols; what is wrong is said below
            return torch.load(stream, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # depending on where a file is damaged, reading it raises nearly anything
        refused = re.search(r"(?:GLOBAL (\S+)|(?:global|class) (\S+?\.\S+?))[\s,]|Unsupported operand", f"{error} ")
        if not trust_pickle and "weights_only" in str(error).lower() and refused:
            raise InputError(
                argument,
                f"'{file}', which needs {refused[1] or refused[2] or 'more than tensors'} to be unpickled",
                "a file of tensors alone, or --trust-pickle (trust_pickle=True) if you trust its author: unpickling can run any code",
            ) from None
        if "TorchScript" in str(error):
            raise InputError(
                argument, f"'{file}', a TorchScript program", "its state dict: torch.save(program.state_dict(), FILE)"
            ) from None
        raise _damaged(argument, file, error) from error


def _state_dict(content: object) -> dict[str, Tensor]:
    """The tensors of a state dict, looked for in the places where checkpoints keep it; empty if there is none."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        return {}
    for name in _NESTED:
        if isinstance(content.get(name), (Mapping, nn.Module)) and (inner := _state_dict(content[name])):
            return inner
    return {key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _without_compile(key: str) -> str:
    return ".".join(name for name in key.split(".") if name != "_orig_mod")


def _candidates(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights as they are, then with each chain of known prefixes taken off (and the keys without it left out)."""
    chains: dict[str, None] = {"": None}
    for key in weights:
        chain = ""
        for name in key.split(".")[:-1]:
            if name not in _PREFIXES:
                break
            chain += f"{name}."
            chains[chain] = None
    return [{key.removeprefix(chain): value for key, value in weights.items() if key.startswith(chain)} for chain in chains]


def _score(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[int, int, int]:
    named = [key for key in weights if key in expected]
    shaped = sum(weights[key].shape == expected[key].shape for key in named)
    return shaped, len(named), -len(weights)


def _differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    def counts(key: str) -> bool:
        return not key.endswith("num_batches_tracked")

    missing = [key for key in expected if key not in weights and counts(key)]
    unexpected = [key for key in weights if key not in expected and counts(key)]
    reshaped = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    shapes = [f"{key} {list(weights[key].shape)} instead of {list(expected[key].shape)}" for key in reshaped]
    kinds = [key for key in expected if key in weights and weights[key].is_floating_point() != expected[key].is_floating_point()]
    types = [f"{key} {weights[key].dtype} instead of {expected[key].dtype}".replace("torch.", "") for key in kinds if counts(key)]
    bad = [key for key in expected if key in weights and weights[key].is_floating_point() and weights[key].float().isnan().any()]
    problems = [
        f"{len(entries)} {kind} ({', '.join(entries[:_SHOWN])}{', ...' if len(entries) > _SHOWN else ''})"
        for kind, entries in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type", types),
            ("not a number", bad),
        )
        if entries
    ]
    if (head := _other_head(weights, expected)) and not missing and not unexpected:
        ours = expected[head.left[0]].shape[0]
        problems.append(f"the file's classifier has {head.classes} classes, the network's {ours}")
    return problems


def _other_head(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> OtherHead | None:
    """The head of a file, where all that does not fit of it is the number of classes that it answers for."""
    reshaped = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    if not reshaped or any(weights[key].shape[1:] != expected[key].shape[1:] or not weights[key].ndim for key in reshaped):
        return None
    counts = {(weights[key].shape[0], expected[key].shape[0]) for key in reshaped}
    layers = {key.rpartition(".")[0] for key in reshaped}
    return OtherHead(counts.pop()[0], tuple(reshaped)) if len(counts) == 1 and len(layers) <= _HEADS else None
