"""Architectures of classifiers by name, as timm, torchvision, transformers, Stillroom and a user's own code build them.

From random numbers (`untrained_network`), or with what a library publishes under the name (`published_network`). What else a specification
may hold, weights and the folder of a run, is for `classifiers`.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine.specification import composed, function_of
from stillroom.errors import InputError, near
from stillroom.tasks.images.networks import NETWORKS

GRAMMAR = (
    "timm/NAME, torchvision/NAME, stillroom/NAME, package.module:function or file.py:function, each with @weights if wanted, "
    "transformers/FOLDER, or the folder of a run"
)
Size = int | tuple[int, int]  # of images: their side, or height and width
PRETRAINED = "pretrained"
# these two return three logits in training unless they are told not to
_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_SIDE = 224  # pixels of an image to learn shapes from, where the data's are not known


@dataclass(frozen=True)
class Wanted:
    """What the network is to read and to answer, and the argument that asked for it (for messages)."""

    num_classes: int
    image_size: Size | None
    in_channels: int
    argument: str
    task: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one image."""
        size = _SIDE if self.image_size is None else self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return 1, self.in_channels, height, width


def untrained_network(source: str, wanted: Wanted) -> nn.Module:
    """The network of a source, from random numbers.

    Raises:
        InputError: the source is none, or cannot read or answer what is wanted.
    """
    whole = composed(source, wanted.argument)
    if whole is not None:
        example = torch.zeros(wanted.shape)
        return whole.build(
            lambda part, classes: untrained_network(part, replace(wanted, num_classes=classes)),
            wanted.num_classes,
            example,
            wanted.argument,
        )
    library, _, name = source.partition("/")
    if library == "timm" and name:
        return _timm(name, wanted, pretrained=False)
    if library == "torchvision" and name:
        return _torchvision(name, wanted)
    if library == "stillroom" and name:
        return _stillroom(name, wanted)
    if library == "transformers" and name:
        return _transformers(name, wanted)
    hint = "".join(f"; is stillroom/{name} meant?" for name in difflib.get_close_matches(source, NETWORKS, n=1))
    return _call(function_of(source, wanted.argument, GRAMMAR + hint), source, wanted)


def published_network(source: str, wanted: Wanted) -> nn.Module:
    """The network of a source with the weights that its library publishes, but for a head of other classes.

    Raises:
        InputError: as for `untrained_network`; or nothing is published, or it cannot be downloaded.
    """
    library, _, name = source.partition("/")
    if library == "timm":
        return _timm(name, wanted, pretrained=True)
    if library == "torchvision":
        return _torchvision_pretrained(name, wanted)
    raise InputError(
        wanted.argument, f"{source}@{PRETRAINED}", f"timm/NAME or torchvision/NAME before @{PRETRAINED}, or a file after the @"
    )


def published_classes(source: str) -> int:
    """For how many classes the weights answer that timm or torchvision publish under a name; 0, where they have no head."""
    library, _, name = source.partition("/")
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        return 0 if config is None else int(config.num_classes)
    from torchvision import models

    return len(models.get_model_weights(name).DEFAULT.meta["categories"])


def head_parameters(source: str, network: nn.Module, wanted: Wanted) -> tuple[str, ...]:
    """Names of the parameters whose shape depends on the number of classes."""
    with torch.random.fork_rng(devices=[]):
        larger = untrained_network(source, replace(wanted, num_classes=wanted.num_classes + 1)).state_dict()
    return tuple(name for name, value in network.state_dict().items() if name in larger and larger[name].shape != value.shape)


def resampled(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for another size of images, by the library's own resampling of position embeddings; as they are where it has none."""
    from torchvision.models import vision_transformer

    try:
        if isinstance(network, vision_transformer.VisionTransformer):
            return dict(vision_transformer.interpolate_embeddings(network.image_size, network.patch_size, dict(weights)))
        library = sys.modules[type(network).__module__]
        convert = getattr(library, "checkpoint_filter_fn", None) if library.__name__.startswith("timm.") else None
        return weights if convert is None else dict(convert(dict(weights), network))
    except Exception:  # made for the library's published files, it may raise anything of others; then what does not fit is said
        return weights


def _stillroom(name: str, wanted: Wanted) -> nn.Module:
    if name not in NETWORKS:
        raise InputError(wanted.argument, f"stillroom/{name}", f"a network of Stillroom, such as {near(name, NETWORKS)}")
    return _call(NETWORKS[name], f"stillroom/{name}", wanted)


def _transformers(name: str, wanted: Wanted) -> nn.Module:
    """An image classifier from the `config.json` in a folder, from random numbers."""
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(wanted.argument, f"transformers/{name}", "transformers/FOLDER, a folder that save_pretrained wrote")
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise InputError(wanted.argument, f"transformers/{name}", "transformers to be installed (pip install transformers)") from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, num_labels=wanted.num_classes)
        network: nn.Module = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(wanted.argument, f"transformers/{name} ({reason})", "an image classifier of transformers") from error
    return network.train()


def _timm(name: str, wanted: Wanted, *, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise InputError(wanted.argument, f"timm/{name}", "timm to be installed (pip install timm)") from error
    if not timm.is_model(name):
        raise InputError(wanted.argument, f"timm/{name}", f"a model of timm {timm.__version__}, such as {near(name, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # the part after the dot names published weights
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise InputError(wanted.argument, f"timm/{name}", f"a model of timm, such as {near(name, tags)}") from error
    if pretrained and not timm.is_model_pretrained(name):
        raise InputError(wanted.argument, f"timm/{name}@{PRETRAINED}", "a model whose weights timm publishes")
    options: dict[str, Any] = {"num_classes": wanted.num_classes, "in_chans": wanted.in_channels}

    def create(**more: Any) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=pretrained, **options, **more)
        except OSError as error:
            raise _no_download(f"timm/{name}", error, wanted) from error

    if config is None or not config.fixed_input_size or wanted.image_size is None:
        return create()
    try:
        return create(img_size=wanted.image_size)
    except TypeError as error:  # fixed in its published weights only: a network that has no such argument reads every size
        if "img_size" not in str(error):
            raise
        return create()
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InputError(wanted.argument, f"timm/{name}", f"a network that can read {wanted.image_size}-pixel images ({error})") from error


def _torchvision(name: str, wanted: Wanted, **more: Any) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(wanted.argument, f"torchvision/{name}", f"a classifier of torchvision, such as {near(name, known)}")
    if wanted.in_channels != 3:
        raise InputError(
            wanted.argument,
            f"torchvision/{name}",
            f"a network for images of {wanted.in_channels} channels; torchvision's read 3, timm's any",
        )
    if name in _AUXILIARY_HEADS:
        more |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_") and wanted.image_size is not None:
        if wanted.shape[2] != wanted.shape[3]:
            raise InputError(wanted.argument, f"torchvision/{name}", "a network for images that are no squares; timm's transformers are")
        more["image_size"] = wanted.shape[2]
    return models.get_model(name, weights=None, num_classes=wanted.num_classes, **more)


def _torchvision_pretrained(name: str, wanted: Wanted) -> nn.Module:
    """The published weights, without the entries of a head that has another number of classes and of auxiliary heads."""
    network = _torchvision(name, wanted, **({"transform_input": True} if name in _AUXILIARY_HEADS else {}))
    from torchvision import models

    try:
        state = models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise _no_download(f"torchvision/{name}", error, wanted) from error
    if isinstance(network, models.VisionTransformer):
        state = models.vision_transformer.interpolate_embeddings(network.image_size, network.patch_size, state)
    head = _head(network)
    fits = {
        key: value
        for key, value in state.items()
        if not key.lower().startswith("aux") and not (key.rpartition(".")[0] == head and value.shape != network.state_dict()[key].shape)
    }
    missing, unexpected = network.load_state_dict(fits, strict=False)
    if unexpected or any(key.rpartition(".")[0] != head for key in missing):
        raise InputError(wanted.argument, f"torchvision/{name}@{PRETRAINED}", "published weights that fit torchvision's own network")
    return network


def _head(network: nn.Module) -> str:
    """Path of the layer that gives the logits: the last linear layer or convolution of a torchvision classifier."""
    return [path for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def _no_download(source: str, error: OSError, wanted: Wanted) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        wanted.argument,
        f"{source}@{PRETRAINED}, which could not be downloaded ({reason})",
        f"a network connection on the first use; or download the weights elsewhere and give the file: {source}@FILE",
    )


def _call(function: Callable[..., Any], source: str, wanted: Wanted) -> nn.Module:
    """Call a constructor with those of num_classes, in_channels and image_size that it accepts."""
    signature = inspect.signature(function)
    accepted = signature.parameters
    offered = {"num_classes": wanted.num_classes, "in_channels": wanted.in_channels, "image_size": wanted.image_size}
    arguments = {name: value for name, value in offered.items() if name in accepted and value is not None}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values()):
        arguments["num_classes"] = wanted.num_classes
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(
            wanted.argument, source, f"a function that needs no argument but num_classes, in_channels and image_size ({error})"
        ) from error
    network = function(**arguments)
    if not isinstance(network, nn.Module):
        raise InputError(wanted.argument, source, f"a function that returns a torch.nn.Module, not {type(network).__name__}")
    return network
