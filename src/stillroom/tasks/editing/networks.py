"""Editors and denoisers by name: ``stillroom/editor24``, ``stillroom/denoiser24``, weights behind an @, the folder of a run or a stage."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from stillroom.engine.card import Card, read_specification
from stillroom.engine.specification import function_of
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError
from stillroom.tasks.editing.denoiser import Denoiser
from stillroom.tasks.editing.editor import Editor

TASK = "editing"  # what `student.json` calls it
KINDS = ("editor", "denoiser")


def build_editing(spec: str, *, kind: str, num_classes: int, image_size: int, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Builds the network that a specification names, and loads its weights if it gives some.

    Args:
        spec: ``stillroom/editorN`` or ``stillroom/denoiserN``, N the channels, a multiple of 8; of editors also ``file.py:function`` or
            ``package.module:function``, which is called with the image size and answers with a network from pictures to pictures.
        kind: "editor" or "denoiser", which is wanted.
        num_classes: that a denoiser knows.
        image_size: of the pictures.
        trust_pickle: see `read_specification`.
        argument: what the user calls it.

    Raises:
        InputError: it is none of these, or its weights do not fit.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument)
    if named.card is not None:
        _check(named.card, kind)
    network = _made(named.source, kind, num_classes, image_size, argument)
    if named.weights:
        load_weights(network, named.weights, trust_pickle=trust_pickle, argument=argument)
    return Built(network, named.spec, named.weights or None, named.classes)


def kind_of(card: Card) -> str:
    """Which of `KINDS` the network of a card is."""
    return card.parsed(lambda content: str(content["kind"]), "kind")


def _check(card: Card, kind: str) -> None:
    if card.task != TASK:
        raise InputError(card.argument, f"{card.folder}, a network of {card.task}", f"{kind} of the task {TASK}")
    if (found := kind_of(card)) != kind:
        raise InputError(card.argument, f"{card.folder}, which holds a {found}", f"one that holds a {kind}")


def _made(source: str, kind: str, num_classes: int, image_size: int, argument: str) -> nn.Module:
    known = re.fullmatch(rf"stillroom/{kind}(\d+)", source)
    if known is None:
        expected = f"stillroom/{kind}24" + (", file.py:function or package.module:function" if kind == "editor" else "")
        if kind == "denoiser" or ":" not in source:
            raise InputError(argument, source or "nothing", expected)
        made: Any = function_of(source, argument, expected)(image_size=image_size)
        if not isinstance(made, nn.Module):
            raise InputError(argument, f"{source}, which answers with a {type(made).__name__}", "a network")
        return made
    width = int(known.group(1))
    if not width or width % 8:
        raise InputError(argument, source, "a width that is a multiple of 8")
    return Denoiser(num_classes, image_size, width) if kind == "denoiser" else Editor(width)
