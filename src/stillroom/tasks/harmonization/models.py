"""Harmonization networks by name: `stillroom/harmony32`, `stillroom/harmony8_3@student.safetensors`, `nets.py:build`.

A spec is `SOURCE[@WEIGHTS]`, or the folder of a run:

- SOURCE is ``stillroom/harmonyWIDTH[_LEVELS][_paint]``, the baseline network of so many channels and levels (4 by default; with ``paint``
  the picture is not blended into the answer); or ``package.module:function`` or ``file.py:function``, which makes a network from inputs
  [B, 4, H, W] to pictures [B, 3, H, W]; runs of methods that build around these record others (`engine.specification.composed`);
- WEIGHTS is a file or folder of weights.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from stillroom.engine.card import read_specification
from stillroom.engine.specification import composed, made_by
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError
from stillroom.modules.projectors import probing
from stillroom.tasks.harmonization.unet import CHANNELS, HarmonizationUNet

TASK = "harmonization"  # what `student.json` calls it
GRAMMAR = "stillroom/harmonyWIDTH_LEVELS such as stillroom/harmony8_3, package.module:function or file.py:function, or the folder of a run"
_OURS = re.compile(r"stillroom/harmony(?P<width>\d+)(?:_(?P<depth>\d+))?(?P<paint>_paint)?")
_TRIED = 32  # pixels of the picture that a network is tried on


def build_harmonizer(spec: str, *, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Build the network that a spec names, and load its weights if the spec gives some.

    Args:
        spec: see the module's docstring.
        trust_pickle: read weights that can run code as they are read.
        argument: what the user calls this argument; named in errors.

    Raises:
        InputError: the spec is none of these, weights are missing or do not fit, a run is of another task, or a network answers with
            something else than pictures.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument, task=TASK)
    network = _untrained(named.source, argument)
    example = torch.zeros(1, CHANNELS, _TRIED, _TRIED)
    with probing(network, example):
        answer = network(example)
    if getattr(answer, "shape", None) != (1, 3, _TRIED, _TRIED):
        got = f"{spec}, which answers with {list(getattr(answer, 'shape', ())) or type(answer).__name__}"
        raise InputError(argument, got, f"a network from [1, {CHANNELS}, {_TRIED}, {_TRIED}] to pictures [1, 3, {_TRIED}, {_TRIED}]")
    if named.weights:
        load_weights(network, named.weights, trust_pickle=trust_pickle, argument=argument)
    return Built(network, named.spec, named.weights or None)


def _untrained(source: str, argument: str) -> nn.Module:
    if (whole := composed(source, argument)) is not None:
        return whole.build(lambda part, _: _untrained(part, argument), 3, torch.zeros(1, CHANNELS, _TRIED, _TRIED), argument)
    if (ours := _OURS.fullmatch(source)) is not None:
        return HarmonizationUNet(int(ours["width"]), int(ours["depth"] or 4), fusion=ours["paint"] is None)
    return made_by(source, argument, GRAMMAR, kind=nn.Module, called="a network")
