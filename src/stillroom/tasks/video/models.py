"""Video networks by name: `stillroom/cnn3d16`, `stillroom/stlt64_2_2`, `torchvision/swin3d_t@weights.pth`, `nets.py:build`.

A spec is `SOURCE[@WEIGHTS]`, or the folder of a run:

- ``stillroom/cnn3dWIDTH``: six 3D convolutions, over frames, flow or depth;
- ``stillroom/stltWIDTH_SPATIAL_TEMPORAL``: a transformer over object boxes, of so many spatial and temporal layers;
- ``stillroom/spectrumWIDTH``: three 2D convolutions over log-mel pictures of sound;
- ``torchvision/NAME``: a video classifier of torchvision (r3d_18, swin3d_t, ...) with a linear layer for each head; weights whose head
  answers for other classes (Kinetics') are a start, without it;
- ``package.module:function`` or ``file.py:function``, called with the number of classes by head, which makes a network from
  [B, F, 3, S, S] to logits by head, or to logits, where there is one head;
- WEIGHTS is a file or folder of weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stillroom.engine.card import read_specification
from stillroom.engine.specification import made_by
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights, read_weights
from stillroom.errors import InputError, near
from stillroom.modules.projectors import probing
from stillroom.tasks.video.layout import STLT
from stillroom.tasks.video.networks import Convolutions3d, FirstOf, MultiHead, Spectrum, of_torchvision

if TYPE_CHECKING:
    from stillroom.tasks.video.data import VideoData

TASK = "video"  # what `student.json` calls it
GRAMMAR = "stillroom/cnn3dWIDTH, stltWIDTH_SPATIAL_TEMPORAL or spectrumWIDTH, torchvision/NAME, file.py:function, or the folder of a run"
_OURS = re.compile(r"stillroom/(?:cnn3d(?P<cnn>\d+)|spectrum(?P<spectrum>\d+)|stlt(?P<stlt>\d+)_(?P<spatial>\d+)_(?P<temporal>\d+))")
_HEAD_WIDTH = 16  # of an attention head


def build_video_network(
    spec: str,
    heads: Mapping[str, int],
    example: Tensor,
    *,
    frames: int,
    trust_pickle: bool = False,
    argument: str = "model",
    whole: bool = False,
) -> Built:
    """Build the network that a spec names, and load its weights if the spec gives some.

    Args:
        spec: see the module's docstring.
        heads: classes by head.
        example: inputs of one clip, which it is tried on.
        frames: F, of a clip.
        trust_pickle: read weights that can run code as they are read.
        argument: what the user calls this argument; named in errors.
        whole: it must answer for every head; else for one at least.

    Raises:
        InputError: the spec is none of these, weights are missing or do not fit, a run is of another task, or a network answers with
            something else than logits of these heads.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument, task=TASK)
    network = _untrained(named.source, heads, frames, argument)
    start: tuple[str, tuple[str, ...]] = "", ()
    answers = _answers(network, heads, example, spec, argument)
    if isinstance(answers, Tensor) and len(heads) == 1:
        network = FirstOf(network, next(iter(heads)))
        answers = {network.head: answers}
    _check(answers, heads, len(example), spec, argument, whole=whole)
    if named.weights:
        start = _load(network, named.source, named.weights, trust_pickle, argument)
    return Built(network, named.spec, named.weights or None, named.classes, *start)


def _untrained(source: str, heads: Mapping[str, int], frames: int, argument: str) -> nn.Module:
    if (ours := _OURS.fullmatch(source)) is not None:
        if ours["cnn"]:
            return MultiHead(Convolutions3d(int(ours["cnn"])), 4 * int(ours["cnn"]), heads)
        if ours["spectrum"]:
            return MultiHead(Spectrum(int(ours["spectrum"])), 4 * int(ours["spectrum"]), heads)
        width = int(ours["stlt"])
        if width % _HEAD_WIDTH:
            raise InputError(argument, source, f"a width that is a multiple of {_HEAD_WIDTH}")
        attention_heads = 8 if width == 768 else width // _HEAD_WIDTH  # the paper's
        return STLT(heads, width, attention_heads, (int(ours["spatial"]), int(ours["temporal"])), frames)
    library, _, name = source.partition("/")
    if library == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models.video)
        if name not in known:
            raise InputError(argument, source, f"a video classifier of torchvision: {near(name, known)}")
        return of_torchvision(name, heads)
    return made_by(source, argument, GRAMMAR, dict(heads), kind=nn.Module, called="a network")


def _answers(network: nn.Module, heads: Mapping[str, int], example: Tensor, spec: str, argument: str) -> Any:
    """What a network says of an example; InputError where it cannot read one."""
    try:
        with probing(network, example):
            return network(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        got = f"{spec}, which cannot read {list(example.shape)} ({str(error).splitlines()[0]})"
        raise InputError(argument, got, _expected(heads)) from None


def _check(answers: Any, heads: Mapping[str, int], count: int, spec: str, argument: str, *, whole: bool) -> None:
    """Raises InputError when answers are not logits of the heads."""
    if not isinstance(answers, Mapping):
        raise InputError(argument, f"{spec}, which answers with a {type(answers).__name__}", _expected(heads))
    wrong = [head for head, logits in answers.items() if list(logits.shape) != [count, heads.get(head, -1)]]
    if wrong or not answers or (whole and set(answers) != set(heads)):
        got = ", ".join(f"{head} {list(logits.shape)}" for head, logits in answers.items()) or "nothing"
        raise InputError(argument, f"{spec}, which answers with {got}", _expected(heads))


def _expected(heads: Mapping[str, int]) -> str:
    return f"a network from clips to logits {', '.join(f'{head} [B, {count}]' for head, count in heads.items())}"


def _load(network: nn.Module, source: str, weights: str, trust_pickle: bool, argument: str) -> tuple[str, tuple[str, ...]]:
    """Loads weights; of a library's network without our heads those of its trunk."""
    trunk = getattr(getattr(network, "backbone", None), "model", None)
    if source.startswith("torchvision/") and isinstance(trunk, nn.Module):
        there = read_weights(weights, trust_pickle=trust_pickle, argument=argument)
        inner = set(trunk.state_dict())
        if inner <= set(there):
            trunk.load_state_dict({name: value for name, value in there.items() if name in inner})
            new = tuple(f"classifiers.{name}" for name, _ in network.classifiers.named_parameters())  # type: ignore[union-attr]
            return "their head answers for other classes", new
    load_weights(network, weights, trust_pickle=trust_pickle, argument=argument)
    return "", ()


def build_for(data: VideoData, spec: str, *, trust_pickle: bool, argument: str) -> Built:
    """The network of a specification for what data read; see `build_video_network`."""
    heads = {head: len(names) for head, names in data.heads.items()}
    example = data.example_inputs()
    options = {"frames": data.frames, "trust_pickle": trust_pickle, "argument": argument, "whole": argument == "student"}
    built = build_video_network(spec, heads, example if isinstance(example, Tensor) else example[data.reads[0]], **options)  # type: ignore[arg-type]
    return built.of_classes(data.classes, spec, argument)
