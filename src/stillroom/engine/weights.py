"""Weights on disk: read from the formats that people have, written as safetensors.

A file may hold several sets of weights that fit a network: raw and averaged ones, a student's and a teacher's, those of the best epoch.
Which is taken, unless ``FILE#NAME`` says otherwise:

1. of a student and its teacher the student, also where only the teacher would fit;
2. what is no network's weights by its name (gradients, states of an optimiser) last;
3. averaged weights (``ema``, ``avg``, ``swa``, ...) before raw ones;
4. those of a ``best`` epoch before others;
5. the first in the file.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillroom.engine.containers import Contents, listed, read_container
from stillroom.engine.run.written import put, refuse_links, usual_mode
from stillroom.engine.tap import unwrap
from stillroom.errors import InputError

SET = "#"  # before the name of one set of weights of a file
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # names that wrappers put between a network's own
_PARALLEL = "module"  # one more, which networks use themselves as well
_NO_WEIGHTS = re.compile(r"grad|optim|momentum|exp_avg|fisher|(?<![a-z])mask|delta|init(?!ial_model)")
_AVERAGED = re.compile(r"(?<![a-z])ema(?![a-z])|average|(?<![a-z])avg|swa(?![a-z])|polyak|shadow")
# Buffers that tools leave in state dicts and that are no weights: batch norms' counters, averaging's, and those of thop.
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
_HEADS = 2  # layers that answer for the classes: one, or one more for a distillation token
_SHOWN = 5  # offending keys of each kind in a message

Adapt = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Loaded:
    """What was taken of a file.

    Attributes:
        name: of the set of weights, as it can be asked for behind ``#``; empty where the file itself is one.
        others: names of the sets that would have fitted as well.
        classes: how many the file's head answers for where those are others than the network's, 0 where it has no head; everything but
            it was loaded then.
        left: names of the network's parameters that were left as they were.
        notes: what a user should know of it, a clause each.
    """

    name: str
    others: tuple[str, ...] = ()
    classes: int | None = None
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_weights(path: str | Path, *, trust_pickle: bool = False, argument: str = "weights") -> dict[str, Tensor]:
    """One state dict of a file or a run's folder, on the CPU, with the keys of the file; for whoever has no network to try it on.

    Args:
        path: as for `load_weights`. Of several state dicts the one that this module's rule prefers.
        trust_pickle, argument: see `containers.read_container`.

    Raises:
        InputError: as `read_container`, or no set of that name.
    """
    place, asked = _place(path)
    contents = read_container(place, trust_pickle=trust_pickle, argument=argument)
    homes: dict[str, dict[str, Tensor]] = {}
    for key, home in contents.homes.items():
        if _is_in(home, asked):
            homes.setdefault(home, {})[key[len(home) + 1 if home else 0 :]] = contents.tensors[key]
    if not homes:
        raise _no_such_set(contents, asked, argument)
    most = max(map(len, homes.values()))
    return homes[min((home for home in homes if 2 * len(homes[home]) >= most), key=_preference)]


def load_weights(
    network: nn.Module,
    path: str | Path,
    *,
    trust_pickle: bool = False,
    argument: str = "weights",
    other_head: Callable[[], Iterable[str]] | None = None,
    adapt: Adapt | None = None,
) -> Loaded:
    """Load a file's weights into a network, all or nothing.

    Every set of tensors in the file is tried, whatever the names around it: those of dictionaries at any depth, and the prefixes that
    wrappers and one's own modules put before all keys of a network. What has not the prefix (a Lightning checkpoint's ``teacher.*``) is
    left out. Counters such as batch norms' ``num_batches_tracked`` may be missing or superfluous, auxiliary heads (``aux*``) superfluous,
    weight normalisation may be fused or in either of torch's forms; every other difference is an error.

    Args:
        network: takes the weights in its own dtype and on its own device; unchanged on error.
        path: a file or folder (see `containers.read_container`), with ``#NAME`` behind it for one set among several; dots go into nested
            ones.
        trust_pickle, argument: see `containers.read_container`.
        other_head: names of the parameters of the network's last layer. Where it is given, and that layer alone differs and in its number
            of rows alone, or it alone is missing, it is left as it is and everything else is loaded.
        adapt: given the network and weights that do not fit it, answers with weights that might: position embeddings resampled, say.

    Raises:
        InputError: as `read_container`, or keys, shapes or types do not fit, or a weight is no number; the message lists the first
            of each kind, and what else is in the file.
    """
    place, asked = _place(path)
    network = unwrap(network)
    own = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    by_plain_key = {_plain(key): key for key in own}
    expected = {plain: own[key] for plain, key in by_plain_key.items()}
    contents = read_container(place, trust_pickle=trust_pickle, argument=argument)
    if not any(_is_in(key, asked) for key in contents.tensors):
        raise _no_such_set(contents, asked, argument)
    sets, teachers = _apart(_sets(contents, expected, asked), len(expected), asked)
    fitting = [one for one in sets if one.fits(other_head is not None)]
    if not fitting and adapt is not None:
        sets = [one.adapted(network, adapt) for one in sets]
        fitting = [one for one in sets if one.fits(other_head is not None)]
    headless = not fitting and other_head is not None
    if headless and other_head is not None:
        last = {_plain(key) for key in other_head()}
        fitting = [one for one in sets if one.lacks(last)]
    if not fitting:
        got = f"'{path}', which does not fit {type(network).__name__}: {_misfit(contents, sets)}"
        raise InputError(argument, got, "the weights of this very network")
    whole = [one for one in fitting if one.head is None]
    best = min(whole or fitting, key=lambda one: _preference(one.prefix))
    # all of them, or all but the head
    alike = {by_plain_key[key]: value for key, value in best.weights.items() if value.shape == expected[key].shape}
    network.load_state_dict(alike, strict=False)
    teachers = [one for one in teachers if one.fits(best.head is not None)]
    others = tuple(dict.fromkeys(one.name for one in [*(whole or fitting), *teachers] if one is not best))
    left = tuple(key for plain, key in by_plain_key.items() if key not in alike and _counts(plain))
    classes = 0 if headless else best.head and best.head[0]
    return Loaded(best.name, others, classes, left, tuple(best.notes()))


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
        tensors[_plain(key)] = value
    refuse_links(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(usual_mode(target.parent))  # safetensors makes it unreadable for everybody else
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


# Names ----------------------------------------------------------------------------------------------------------------------------------


def without_set(path: str | Path) -> Path:
    """The file or folder of ``FILE#NAME``."""
    return Path(_place(path)[0])


def _place(path: str | Path) -> tuple[str, str]:
    """File or folder, and the set that was asked for. A name with a # of its own is a file, if there is one."""
    place, hash_, asked = str(path).rpartition(SET)
    return (place, asked) if hash_ and not Path(path).expanduser().exists() else (str(path), "")


def _is_in(name: str, asked: str) -> bool:
    return not asked or f"{name}.".startswith(f"{asked}.")


def _preference(name: str) -> tuple[bool, bool, bool, bool]:
    """The less, the better; see the module's docstring."""
    words = name.lower()
    return "teacher" in words, bool(_NO_WEIGHTS.search(words)), not _AVERAGED.search(words), "best" not in words


def _plain(key: str) -> str:
    return ".".join(name for name in key.split(".") if name not in _WRAPPERS)


# Sets of weights ------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Set:
    """Tensors of a file with a common prefix.

    Attributes:
        prefix: what stands before their names in the file, with the dictionaries that they lie in.
        expected: what the network wants.
        weights: what of that is there, by the network's names.
        unexpected: names of others beside them.
        changes: what was done to make them fit, for the user.
    """

    prefix: str
    expected: Mapping[str, Tensor]
    weights: dict[str, Tensor]
    unexpected: list[str]
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called: the prefix without what wrappers put there."""
        names = self.prefix.split(".")
        while names and names[-1] in {*_WRAPPERS, _PARALLEL} and len(names) > 1:
            names.pop()
        return ".".join(names)

    @property
    def reshaped(self) -> list[str]:
        """Names of weights of another shape."""
        return [key for key, value in self.weights.items() if value.shape != self.expected[key].shape and _counts(key)]

    @property
    def shaped(self) -> int:
        """How many fit in name and shape."""
        return len(self.weights) - len(self.reshaped)

    @property
    def head(self) -> tuple[int, int] | None:
        """Rows of the file's last layer and of the network's, where that is all they differ in."""
        reshaped = [(self.weights[key].shape, self.expected[key].shape) for key in self.reshaped]
        rows = {(theirs[:1], ours[:1]) for theirs, ours in reshaped}
        layers = {key.rpartition(".")[0] for key in self.reshaped}
        alike = all(theirs and theirs[1:] == ours[1:] for theirs, ours in reshaped)
        if len(rows) != 1 or len(layers) > _HEADS or len(self.problems) > 1 or not alike:
            return None
        ((theirs, ours),) = rows
        return theirs[0], ours[0]

    @cached_property
    def problems(self) -> list[str]:
        """What does not fit, a clause for each kind."""
        weights, expected = self.weights, self.expected
        shapes = [f"{key} {list(weights[key].shape)} instead of {list(expected[key].shape)}" for key in self.reshaped]
        types = [
            f"{key} {_short(value.dtype)} instead of {_short(expected[key].dtype)}"
            for key, value in weights.items()
            if value.is_floating_point() != expected[key].is_floating_point() and _counts(key)
        ]
        bad = [key for key, value in weights.items() if value.is_floating_point() and value.float().isnan().any()]
        return [
            f"{len(entries)} {kind} ({', '.join(entries[:_SHOWN])}{', ...' if len(entries) > _SHOWN else ''})"
            for kind, entries in (
                ("missing", [key for key in expected if key not in weights and _counts(key)]),
                ("unexpected", [key for key in self.unexpected if _counts(key) and not _is_auxiliary(key)]),
                ("of another shape", shapes),
                ("of another type", types),
                ("not a number", bad),
            )
            if entries
        ]

    def fits(self, other_head: bool) -> bool:
        """Whether it can be loaded."""
        return not self.problems or (other_head and self.head is not None)

    def lacks(self, last: Collection[str]) -> bool:
        """Whether those are all that is missing; in their place there may be layers of another head."""
        missing = {key for key in self.expected if key not in self.weights and _counts(key)}
        layers = tuple(f"{key.rpartition('.')[0]}." for key in last)
        others = [key for key in self.unexpected if _counts(key) and not _is_auxiliary(key) and not key.startswith(layers)]
        kinds = len(self.problems) - bool(missing) - any(problem.split()[1] == "unexpected" for problem in self.problems)
        return missing == set(last) != set() and not others and not kinds

    def notes(self) -> list[str]:
        """What a user should know of loading it."""
        heads = sorted({key.partition(".")[0] for key in self.unexpected if _is_auxiliary(key)})
        kinds = {value.dtype for key, value in self.weights.items() if _counts(key) and value.is_floating_point()}
        converted = sorted(_short(kind) for kind in kinds - {value.dtype for value in self.expected.values()})
        return [
            *self.changes,
            *([f"auxiliary heads left out ({', '.join(heads)})"] if heads else []),
            *([f"converted from {', '.join(converted)}"] if converted else []),
        ]

    def adapted(self, network: nn.Module, adapt: Adapt) -> _Set:
        """With what `adapt` makes of its weights."""
        changed = {key: value for key, value in adapt(network, dict(self.weights)).items() if key in self.expected}
        sizes = [
            f"{key} from {list(self.weights[key].shape)} to {list(value.shape)}"
            for key, value in changed.items()
            if key in self.weights and value.shape != self.weights[key].shape
        ]
        notes = (f"resampled for this size of images: {listed(sizes)}",) if sizes else ()
        return _Set(self.prefix, self.expected, changed, self.unexpected, self.changes + notes)


def _sets(contents: Contents, expected: Mapping[str, Tensor], asked: str) -> list[_Set]:
    """Every set in which some tensor has a name of the network's, in the file's order.

    Without any: what lies in each dictionary of the file, so that it can be said what it is.
    """
    fused = {_fused(key) for key in expected}
    ours = {name for key in expected for name in key.split(".")}
    wrappers = _WRAPPERS if _PARALLEL in ours else {*_WRAPPERS, _PARALLEL}
    homes: dict[str, set[str]] = {}  # of each prefix
    for key, home in contents.homes.items():
        names = key.split(".")
        for start in range(len(names)):
            if names[start] not in wrappers and _fused(_without(names[start:], wrappers)) in fused:
                homes.setdefault(".".join(names[:start]), set()).add(home)
    homes = homes or {home: {home} for home in contents.homes.values()}
    return [_set(prefix, places, contents, expected, wrappers) for prefix, places in homes.items() if _is_in(prefix, asked)]


def _apart(sets: list[_Set], count: int, asked: str) -> tuple[list[_Set], list[_Set]]:
    """The sets to choose from, and a teacher's beside its student, unless one was asked for; `count` tensors are a network's."""
    if asked or not any("student" in one.prefix.lower() and 2 * one.shaped > count for one in sets):
        return sets, []
    teachers = [one for one in sets if "teacher" in one.prefix.lower()]
    return [one for one in sets if one not in teachers], teachers


def _set(prefix: str, homes: set[str], contents: Contents, expected: Mapping[str, Tensor], wrappers: set[str]) -> _Set:
    before = f"{prefix}." if prefix else ""
    there: dict[str, Tensor] = {}
    for key, home in contents.homes.items():
        if home in homes and key.startswith(before):
            there.setdefault(_without(key[len(before) :].split("."), wrappers), contents.tensors[key])
    weights = {key: there[key] for key in expected if key in there}
    unexpected, changes = dict.fromkeys(key for key in there if key not in weights), []
    for key in [key for key in expected if key not in weights]:
        if respelled := _respelled(key, there, expected[key]):
            weights[key], used = respelled
            changes.append("weight normalisation in another form")
            for name in used:
                unexpected.pop(name, None)
    return _Set(prefix, expected, weights, list(unexpected), tuple(dict.fromkeys(changes)))


def _without(names: list[str], wrappers: Iterable[str]) -> str:
    return ".".join(name for name in names if name not in wrappers)


def _counts(key: str) -> bool:
    """Whether it is a weight, which must be there and fit."""
    return key.rpartition(".")[2] not in _COUNTERS


def _is_auxiliary(key: str) -> bool:
    """Whether it is of a head that only training needs: GoogLeNet's aux1, Inception's AuxLogits."""
    return "." in key and key.lower().startswith("aux")


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _misfit(contents: Contents, sets: list[_Set]) -> str:
    """Why no set fits: the nearest one's problems, and how much of each dictionary would fit."""
    nearest = max(sets, key=lambda one: (one.shaped, len(one.weights), -len(one.unexpected)))
    said = [f"the set {nearest.name}: " * (len(sets) > 1 and bool(nearest.name)) + "; ".join(nearest.problems)]
    if nearest.head is not None:
        said.append("the file's classifier has {} classes, the network's {}".format(*nearest.head))
    homes = dict.fromkeys(contents.homes.values(), 0)
    if len(homes) > 1:
        for one in sets:
            home = max((home for home in homes if _is_in(one.prefix, home)), key=len, default=None)
            if home is not None:
                homes[home] = max(homes[home], one.shaped)
        counted = [f"{home or 'itself'} ({count} of {len(nearest.expected)} tensors fit)" for home, count in _descending(homes)]
        said.append(f"the file holds {listed(counted)}")
    return "; ".join(said)


def _descending(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: -entry[1])


def _no_such_set(contents: Contents, asked: str, argument: str) -> InputError:
    homes = [home for home in dict.fromkeys(contents.homes.values()) if home]
    there = f"one of the sets in it: {listed(homes)}" if homes else f"nothing behind {SET}: the file itself is a set of weights"
    return InputError(argument, f"'{contents.file}{SET}{asked}'", there)


# Weight normalisation -------------------------------------------------------------------------------------------------------------------


def _fused(key: str) -> str:
    """The weight that a length or a direction of weight normalisation belongs to; any other name as it is."""
    return re.sub(r"(?:parametrizations\.(\w+)\.original[01]|(\w+)_[gv])$", lambda found: found[1] or found[2], key)


def _pairs(weight: str) -> list[tuple[str, str]]:
    """Names of its length and its direction, in both of torch's forms."""
    around, dot, name = weight.rpartition(".")
    parametrised = f"{around}{dot}parametrizations.{name}.original"
    return [(f"{weight}_g", f"{weight}_v"), (f"{parametrised}0", f"{parametrised}1")]


def _respelled(key: str, there: Mapping[str, Tensor], expected: Tensor) -> tuple[Tensor, tuple[str, ...]] | None:
    """A weight made from another form of weight normalisation, w = g v / ||v||, and the names that it was made from.

    The norm is over the dimensions in which g has one entry.
    """
    weight = _fused(key)
    pair = next((pair for pair in _pairs(weight) if pair[0] in there and pair[1] in there), None)
    if pair is not None:
        length, direction = there[pair[0]], there[pair[1]]
        if key == weight:
            norm = _norm(direction, length)
            return None if norm is None else (direction.float() * (length.float() / norm), pair)
        return (length if key in (names[0] for names in _pairs(weight)) else direction), pair
    if key == weight or weight not in there:
        return None
    whole = there[weight]
    if key in (names[1] for names in _pairs(weight)):
        return whole, (weight,)
    norm = _norm(whole, expected)
    return None if norm is None else (norm, (weight,))


def _norm(direction: Tensor, length: Tensor) -> Tensor | None:
    """Of a direction, in the shape of its length; None where they do not belong together."""
    if not direction.is_floating_point() or length.ndim not in (0, direction.ndim):
        return None
    over = [axis for axis in range(direction.ndim) if not length.ndim or length.shape[axis] == 1]
    found = torch.linalg.vector_norm(direction.float(), dim=over, keepdim=bool(length.ndim))
    return found if found.shape == length.shape else None
