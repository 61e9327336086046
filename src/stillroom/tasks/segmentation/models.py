"""Segmentation networks by name: `stillroom/unet16_3`, `torchvision/fcn_resnet50@weights.pth`, `transformers/FOLDER`, `nets.py:build`.

A spec is `SOURCE[@WEIGHTS]`, or the folder of a run:

- ``stillroom/unetWIDTH[_LEVELS]``: a small encoder-decoder, of 3 levels by default;
- ``torchvision/NAME``: any segmentation model of torchvision, without its auxiliary head;
- ``transformers/FOLDER``: a semantic segmentation model that `save_pretrained` wrote, with its weights;
- ``package.module:function`` or ``file.py:function``, called with the number of classes, which makes a network from images [B, 3, H, W] to
  scores [B, C, H, W]; runs of methods that bring a network of their own record others (`engine.specification.composed`);
- WEIGHTS is a file or folder of weights.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.engine.card import read_specification
from stillroom.engine.specification import composed, made_by
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError, near
from stillroom.modules.projectors import probing
from stillroom.tasks.segmentation.unet import UNet
from stillroom.tasks.segmentation.vocabulary import OpenVocabulary, Vocabulary

TASK = "segmentation"  # what `student.json` calls it
GRAMMAR = "stillroom/unetWIDTH_LEVELS, torchvision/NAME, transformers/FOLDER, file.py:function, or the folder of a run"
_OURS = re.compile(r"stillroom/unet(?P<width>\d+)(?:_(?P<levels>\d+))?")
_TRIED = 64  # pixels of the picture that a network is tried on


class Answering(nn.Module):
    """A library's network, asked for scores in its input's size.

    Args:
        model: answers with scores under `key`, of any resolution.
        key: of what it answers with.
    """

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """[B, C, H, W]."""
        found: Tensor = self.model(images_B3HW)[self.key]
        return interpolate(found, images_B3HW.shape[2:], mode="bilinear", align_corners=False)


def build_segmenter(spec: str, *, num_classes: int, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Build the network that a spec names, and load its weights if the spec gives some.

    Args:
        spec: see the module's docstring.
        num_classes: C, the classes of the data.
        trust_pickle: read weights that can run code as they are read.
        argument: what the user calls this argument; named in errors.

    Raises:
        InputError: the spec is none of these, weights are missing or do not fit, a run is of another task, or a network answers with
            something else than scores of so many classes.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument, task=TASK)
    example = torch.zeros(1, 3, _TRIED, _TRIED)
    if (whole := composed(named.source, argument)) is not None:
        network = whole.build(lambda part, count: _untrained(part, count, argument), num_classes, example, argument)
    else:
        network = _untrained(named.source, num_classes, argument)
        with probing(network, example):
            answer = network(example)
        wanted = 1, num_classes, _TRIED, _TRIED
        if getattr(answer, "shape", None) != wanted:
            got = f"{spec}, which answers with {list(getattr(answer, 'shape', ())) or type(answer).__name__}"
            raise InputError(argument, got, f"a network from [1, 3, {_TRIED}, {_TRIED}] to scores {list(wanted)}")
    if named.weights:
        loaded: Any = network.model if named.card is None and isinstance(network, Answering) else network
        load_weights(loaded, named.weights, trust_pickle=trust_pickle, argument=argument)
    if named.card is not None and isinstance(network, OpenVocabulary):
        network.vocabulary = Vocabulary.read(named.card.folder, argument)
    weights = named.weights or (named.source.partition("/")[2] if named.source.startswith("transformers/") else None)
    return Built(network, named.spec, weights or None, named.classes)


def _untrained(source: str, num_classes: int, argument: str) -> nn.Module:
    if (ours := _OURS.fullmatch(source)) is not None:
        return UNet(int(ours["width"]), int(ours["levels"] or 3), num_classes)
    library, _, name = source.partition("/")
    if library == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models.segmentation)
        if name not in known:
            raise InputError(argument, source, f"a segmentation model of torchvision: {near(name, known)}")
        made = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
        return Answering(made, "out")
    if library == "transformers":
        return Answering(_of_transformers(name, num_classes, argument), "logits")
    return made_by(source, argument, GRAMMAR, num_classes, kind=nn.Module, called="a network")


def _of_transformers(folder: str, num_classes: int, argument: str) -> nn.Module:
    try:
        from transformers import AutoModelForSemanticSegmentation

        model: Any = AutoModelForSemanticSegmentation.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError:
        raise InputError(argument, f"transformers/{folder}", "transformers to be installed: pip install transformers") from None
    except (OSError, ValueError) as error:
        raise InputError(argument, f"transformers/{folder} ({error})", "a folder of a semantic segmentation model") from None
    if model.config.num_labels != num_classes:
        raise InputError(argument, f"transformers/{folder} of {model.config.num_labels} classes", f"a model of {num_classes} classes")
    network: nn.Module = model
    return network
