"""Networks of sound by name: `stillroom/panorama16_3`, `stillroom/echo16_3_frequency`, `stillroom/echo_resnet50@student.safetensors`.

A spec is `SOURCE[@WEIGHTS]`, or the folder of a run:

- ``stillroom/panoramaWIDTH[_LEVELS]`` sees (of the target occupancy: coarse voxels), ``stillroom/echoWIDTH[_LEVELS][_TOKENS]`` hears, its
  features interpolated to the grids of what is seen; TOKENS are ``frequency`` or ``picture``, by default a column of the spectrogram each;
- ``stillroom/panorama_resnet50`` and ``stillroom/echo_resnet50[_TOKENS]``: the paper's encoders; behind an x the width of the stem;
- ``package.module:function`` or ``file.py:function``, called with the `networks.Shape`, which makes a network from a batch's inputs (a
  dictionary with ``sound`` [B, E, n] and ``sight``) to answers; runs of methods that build around these record others;
- WEIGHTS is a file or folder of weights.
"""

from __future__ import annotations

import re
from typing import cast

from torch import nn

from stillroom.engine.card import read_specification
from stillroom.engine.specification import composed, made_by
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError
from stillroom.tasks.sound.networks import DenseNetwork, Shape
from stillroom.tasks.sound.spectrogram import Tokens

TASK = "sound"  # what `student.json` calls it
GRAMMAR = "stillroom/panoramaWIDTH_LEVELS, stillroom/echoWIDTH_LEVELS, stillroom/echo_resnet50, file.py:function, or the folder of a run"
_OURS = re.compile(
    r"stillroom/(?P<kind>panorama|echo)(?P<size>[1-9]\d*(?:_[1-5])?|_resnet50(?:x\d+)?)(?:_(?P<tokens>time|frequency|picture))?"
)


def build_sound(spec: str, shape: Shape, *, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Build the network that a spec names, and load its weights if the spec gives some.

    Args:
        spec: see the module's docstring.
        shape: what it is to read and to answer.
        trust_pickle: read weights that can run code as they are read.
        argument: what the user calls this argument; named in errors.

    Raises:
        InputError: the spec is none of these, weights are missing or do not fit, or a run is of another task or target.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument, task=TASK)
    if named.card is not None and named.card.content.get("target") != shape.target:
        raise InputError(argument, f"{named.card.folder}, whose target is {named.card.content.get('target')}", shape.target)
    if (whole := composed(named.source, argument)) is not None:
        example = shape.example("sound")["sound"]
        network = whole.build(lambda part, _: untrained(part, shape, argument), max(shape.outputs, 1), example, argument)
    else:
        network = untrained(named.source, shape, argument)
    if named.weights:
        load_weights(network, named.weights, trust_pickle=trust_pickle, argument=argument)
    return Built(network, named.spec, named.weights or None, named.classes if shape.classes else None)


def untrained(source: str, shape: Shape, argument: str) -> nn.Module:
    """The network of a source, from random numbers."""
    if (ours := _OURS.fullmatch(source)) is not None:
        part = "sight" if ours["kind"] == "panorama" else "sound"
        if part == "sight" and ours["tokens"]:
            raise InputError(argument, source, "no tokens: a panorama is read as it is")
        return DenseNetwork(shape, part, ours["size"].lstrip("_"), cast("Tokens", ours["tokens"] or "time"))
    return made_by(source, argument, GRAMMAR, shape, kind=nn.Module, called="a network")
