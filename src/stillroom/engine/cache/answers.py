"""Answers of several tensors: lists and mappings of them, as a detector gives level by level, by name and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from stillroom.errors import InputError

LOGITS = "logits"  # what the tensor of an answer is called that is nothing else
Form: TypeAlias = "str | list[Form] | dict[str, Form]"  # an answer with names in the places of its tensors; plain data


def take_apart(answer: Any) -> tuple[Form, dict[str, Any]]:
    """An answer's form and what stands at its places, by name: `logits` alone, or `boxes[2]` for the third of the list `boxes`.

    Raises:
        InputError: two places would have one name.
    """
    parts: dict[str, Any] = {}

    def named(part: Any, name: str) -> Form:
        if isinstance(part, Mapping):
            return {str(key): named(value, f"{name}.{key}" if name else str(key)) for key, value in part.items()}
        name = name or LOGITS
        if isinstance(part, (list, tuple)):
            return [named(value, f"{name}[{number}]") for number, value in enumerate(part)]
        if name in parts:
            raise InputError("teacher", f"answers with two parts {name}", "parts of different names")
        parts[name] = part
        return name

    return named(answer, ""), parts


def put_together(form: Form, parts: Mapping[str, Tensor]) -> Any:
    """The inverse of `take_apart`; a tuple comes back as a list."""
    return tree_map(parts.__getitem__, form)


def named_inputs(inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's bare inputs by the names that a cache keeps them under: `inputs`, or `inputs.sound` for one of several."""
    return {f"inputs.{name}": value for name, value in inputs.items()} if isinstance(inputs, Mapping) else {"inputs": inputs}


def names_in(form: Form) -> list[str]:
    """The names of an answer's tensors, in the order of `take_apart`."""
    return tree_leaves(form)


def output_files(form: Form, outputs: Sequence[str]) -> dict[str, str]:
    """How each output's arrays are called.

    Args:
        form: of the answer.
        outputs: the names of its tensors, then the module paths of the stored features.
    """
    parts = ["logits"] if form == LOGITS else [f"answer{number}" for number in range(len(names_in(form)))]
    return dict(zip(outputs, [*parts, *(f"tap{number}" for number in range(len(outputs) - len(parts)))], strict=True))
