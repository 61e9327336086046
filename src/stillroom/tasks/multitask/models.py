"""Networks of several dense targets by name: `stillroom/pyramid16`, `timm/swin_tiny_patch4_window7_224`, `nets.py:build`.

A spec is `SOURCE[,backbone=WEIGHTS][@WEIGHTS]`, or the folder of a run:

- ``stillroom/pyramidWIDTH``: a small encoder of four stages;
- ``timm/NAME``: any network of timm with maps of the strides 4, 8, 16 and 32; ``backbone=`` a classifier's weights for it, a file or
  ``pretrained``;
- ``package.module:function`` or ``file.py:function``, called with ``{target: channels}``, which makes a network from images [B, 3, H, W] to
  raw answers {target: [B, channels, h, w]};
- WEIGHTS is a file or folder of weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from stillroom.engine.card import Card, read_specification
from stillroom.engine.specification import made_by
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError
from stillroom.modules.projectors import probing
from stillroom.tasks.images.timm_backbone import TimmBackbone, adopt_classifier
from stillroom.tasks.multitask.networks import MultiTaskNetwork, Pyramid
from stillroom.tasks.multitask.targets import Target

TASK = "multitask"  # what `student.json` calls it
GRAMMAR = "stillroom/pyramidWIDTH, timm/NAME, file.py:function, or the folder of a run"
_OURS = re.compile(r"stillroom/pyramid(?P<width>\d+)")
_STRIDES = (4, 8, 16, 32)
_TRIED = 64  # pixels of the picture that a network is tried on


def build_multitask(spec: str, targets: Sequence[Target], *, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Build the network that a spec names, and load its weights if the spec gives some.

    Args:
        spec: see the module's docstring.
        targets: of the data; the network of a run's folder may answer to others besides.
        trust_pickle: read weights that can run code as they are read.
        argument: what the user calls this argument; named in errors.

    Returns:
        The network, whose attribute `targets` are those of the data, with their weights.

    Raises:
        InputError: the spec is none of these, weights are missing or do not fit, a run is of another task or of other targets, or a
            network answers with something else.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument, task=TASK)
    data_targets = tuple(targets)
    if named.card is not None:
        targets = _of_run(named.card, targets, argument)
    source, comma, backbone = named.source.partition(",backbone=")
    network = _untrained(source, targets, argument)
    answer = _tried(network, source, argument)
    check_answers(answer, {target.name: target.channels for target in targets}, f"{spec}, which answers with", argument)
    if comma and named.card is None:
        if not isinstance(encoder := getattr(network, "encoder", None), TimmBackbone):
            raise InputError(argument, spec, "timm/NAME before backbone=")
        adopt_classifier(encoder.network, encoder.name, backbone, trust_pickle=trust_pickle, argument=argument)
    if named.weights:
        load_weights(network, named.weights, trust_pickle=trust_pickle, argument=argument)
    network.targets = data_targets  # type: ignore[assignment]
    return Built(network, source, named.weights or None, tuple(target.name for target in targets))


def targets_of(card: Card) -> tuple[Target, ...]:
    """The targets of a run's student."""
    found: tuple[Target, ...] = card.parsed(lambda content: tuple(map(Target.of, content["targets"])), "targets")
    return found


def _of_run(card: Card, targets: Sequence[Target], argument: str) -> Sequence[Target]:
    """Those of the run's network, if all that the data have are among them."""
    theirs = targets_of(card)
    known = {target.name: (target.kind, target.classes or target.channels) for target in theirs}
    if other := [one for one in targets if known.get(one.name) != (one.kind, one.classes or one.channels)]:
        got = f"{card.folder}, which answers to {_named(theirs)}"
        raise InputError(argument, got, f"a network that answers to {_named(targets)} ({other[0].name} differs)")
    return theirs


def _named(targets: Sequence[Target]) -> str:
    return ", ".join(f"{target.name} ({target.kind}, {target.channels})" for target in targets)


def _untrained(source: str, targets: Sequence[Target], argument: str) -> nn.Module:
    if (ours := _OURS.fullmatch(source)) is not None and int(ours["width"]):
        return MultiTaskNetwork(Pyramid(int(ours["width"])), targets)
    library, _, name = source.partition("/")
    if library == "timm":
        return MultiTaskNetwork(TimmBackbone(name, _STRIDES, argument=argument), targets)
    return made_by(source, argument, GRAMMAR, {target.name: target.channels for target in targets}, kind=nn.Module, called="a network")


def _tried(network: nn.Module, source: str, argument: str) -> object:
    example = torch.zeros(1, 3, _TRIED, _TRIED)
    try:
        with probing(network, example):
            return network(example)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(argument, source, f"a network that reads images of {_TRIED} pixels ({reason})") from error


def check_answers(answer: object, channels: dict[str, int], got: str, argument: str) -> None:
    """Raises InputError, its message beginning with `got`, unless an answer has a map [B, C, h, w] of every target, with its channels."""
    found = {name: list(raw.shape) for name, raw in answer.items()} if isinstance(answer, dict) else type(answer).__name__
    if not isinstance(found, dict) or any(len(found.get(name, ())) != 4 or found[name][1] != count for name, count in channels.items()):
        wanted = ", ".join(f"{name}: [B, {count}, h, w]" for name, count in channels.items())
        raise InputError(argument, f"{got} {found}", f"raw answers {{{wanted}}}")
