"""Networks for nuclei by name: `stillroom/hovernet`, `stillroom/nuclei16_3@weights.pth`, `nets.py:build`.

A spec is `SOURCE[@WEIGHTS]`, or the folder of a run:

- ``stillroom/hovernet``: HoVer-Net on a ResNet-50;
- ``stillroom/nucleiWIDTH[_LEVELS]``: the same three branches in small, of 3 levels by default;
- ``package.module:function`` or ``file.py:function``, called with the number of classes, which makes a `NucleiNetwork`;
- WEIGHTS is a file or folder of weights.
"""

from __future__ import annotations

import re

from stillroom.engine.card import read_specification
from stillroom.engine.specification import made_by
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.tasks.nuclei.networks import NucleiNetwork, hovernet, small_network

TASK = "nuclei"  # what `student.json` calls it
GRAMMAR = "stillroom/hovernet, stillroom/nucleiWIDTH_LEVELS, file.py:function, or the folder of a run"
_SMALL = re.compile(r"stillroom/nuclei(?P<width>[1-9]\d*)(?:_(?P<levels>[2-9]))?")


def build_nuclei_network(spec: str, *, num_classes: int, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Build the network that a spec names, and load its weights if the spec gives some.

    Args:
        spec: see the module's docstring.
        num_classes: C, the classes of the data, without background.
        trust_pickle: read weights that can run code as they are read.
        argument: what the user calls this argument; named in errors.

    Raises:
        InputError: the spec is none of these, weights are missing or do not fit, or a run is of another task.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument, task=TASK)
    network = _untrained(named.source, num_classes, argument)
    if named.weights:
        load_weights(network, named.weights, trust_pickle=trust_pickle, argument=argument)
    return Built(network, named.spec, named.weights or None, named.classes)


def _untrained(source: str, num_classes: int, argument: str) -> NucleiNetwork:
    if source == "stillroom/hovernet":
        return hovernet(num_classes)
    if (small := _SMALL.fullmatch(source)) is not None:
        return small_network(int(small["width"]), int(small["levels"] or 3), num_classes)
    called = "a stillroom.tasks.nuclei.NucleiNetwork, of an encoder and a decoder of your own"
    return made_by(source, argument, GRAMMAR, num_classes, kind=NucleiNetwork, called=called)
