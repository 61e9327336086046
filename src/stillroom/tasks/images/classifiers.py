"""Classifiers by name: `timm/resnet18`, `torchvision/resnet18@pretrained`, `stillroom/resnet8x4@teacher.safetensors`, `nets.py:build`.

A spec is `SOURCE[@WEIGHTS]`, or the folder of a run:

- SOURCE is `timm/NAME`, `torchvision/NAME`, `stillroom/NAME` (`networks.NETWORKS`), `transformers/FOLDER` (an image classifier that
  `save_pretrained` wrote, with its weights), `package.module:function` or `file.py:function`;
  runs of methods whose students are composed of several networks record others (`engine.specification.composed`);
- WEIGHTS is a file or a folder of weights, or the word `pretrained`: what timm and torchvision publish under that name;
- a run's folder holds `student.json`, which says what the student is, and `student.safetensors`.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine.answers import AsLogits, described, logits_in
from stillroom.engine.card import Card, Named, read_specification
from stillroom.engine.specification import composed, function_of
from stillroom.engine.task import Built
from stillroom.engine.weights import Loaded, load_weights, without_set
from stillroom.errors import InputError, at_least, near
from stillroom.modules.projectors import probing
from stillroom.tasks.images.configurations import Configuration, beside, of_library, rows_of
from stillroom.tasks.images.networks import NETWORKS

GRAMMAR = (
    "timm/NAME, torchvision/NAME, stillroom/NAME, package.module:function or file.py:function, each with @weights if wanted, "
    "transformers/FOLDER, or the folder of a run"
)
Size = int | tuple[int, int]  # of images: their side, or height and width
PRETRAINED = "pretrained"
# these two return three logits in training unless they are told not to
_AUXILIARY_HEADS = ("googlenet", "inception_v3")
Start = tuple[str, tuple[str, ...]]  # as in `Built`: why weights are a start, and the parameters that they leave as they were
_ANY = 10  # classes of a head that is taken away again
_SIDE = 224  # pixels of an image to learn shapes from, where the data's are not known


@dataclass(frozen=True)
class _Wanted:
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


def build_classifier(
    spec: str,
    *,
    num_classes: int,
    image_size: Size | None = None,
    in_channels: int = 3,
    trust_pickle: bool = False,
    argument: str = "model",
    task: str = "classification",
    classes: Sequence[str] | None = None,
    by_name: bool = False,
    own_classes: Sequence[str] | None = None,
    probabilities: bool = False,
) -> Built:
    """Build the classifier that a spec names, and load its weights if the spec gives some.

    What it answers with is brought to logits [B, C] where it is something else (`engine.answers`).

    Args:
        spec: see the module's docstring. Published weights of another number of classes are loaded without their head, which then starts
            from random numbers.
        num_classes: C, the classes of the data.
        image_size: side of the images in pixels, or height and width. Networks that are made for one size (vision transformers, say) are
            made for this one, and the network is tried on one image of it.
        in_channels: channels of the images.
        trust_pickle: read weights that are pickles, which can run code as they are read; of a run's folder, also run the code that its
            `student.json` names.
        argument: what the user calls this argument; named in errors.
        task: of which a run's student must be: one whose networks are classifiers in form, whatever their answers mean.
        classes: names of the data's classes. Where they are given, weights from a file or a run whose head answers for others (another
            number, or other names) are a start, too: they are loaded without the head.
        by_name: where a network with weights knows all of `classes`, and more of them or in another order, rows of its answers are picked
            by their names instead.
        own_classes: the network's, in the order of its answers; by default what its run or its configuration says.
        probabilities: the network answers with these; their logarithm is taken.

    Raises:
        InputError: when the spec is none of these, a name is unknown, weights are missing or do not fit, published weights cannot be
            downloaded, or the network does not answer with [B, num_classes] logits.
    """
    at_least("num_classes", num_classes, 1)
    for side in (image_size,) if image_size is None or isinstance(image_size, int) else image_size:
        at_least("image_size", 1 if side is None else side, 1)
    at_least("in_channels", in_channels, 1)
    named = _with_own_weights(read_specification(spec, trust_pickle=trust_pickle, argument=argument))
    rows: tuple[int, ...] | None = None
    notes: list[str] = []
    if by_name and classes is not None and named.weights:
        rows, count = _rows(named, classes, own_classes, argument)
        if rows is not None:
            order = "its classes are in another order than the data's and are sorted by their names"
            more = f"of the {count} classes that it answers for the data's {len(rows)} are taken, by their names"
            notes.append(order if count == len(rows) else more)
            named, num_classes = replace(named, classes=tuple(classes)), count
    wanted = _Wanted(num_classes, image_size, in_channels, argument, task)
    if named.card is not None:
        network = _recorded(named.card, wanted, fixed=classes is None)
    else:
        network = _pretrained(named.source, wanted) if named.weights == PRETRAINED else _untrained(named.source, wanted)
    loaded = Loaded("")
    if named.weights == PRETRAINED:
        start, new = _published_head(named.source, network, wanted)
    elif named.weights:
        start, new, loaded = _loaded(network, named, wanted, trust_pickle, None if rows is not None else classes)
    else:
        start, new = "", ()
    notes = [*_told(loaded), *loaded.notes, *notes]
    notes += _brought_to_logits(network, spec, named, wanted, AsLogits(num_classes, rows, probabilities, argument))
    return Built(network, named.spec, named.weights or None, None if start else named.classes, start, new, tuple(notes))


def build_backbone(
    spec: str, *, image_size: Size | None = None, in_channels: int = 3, trust_pickle: bool = False, argument: str = "model"
) -> Built:
    """The network that a spec names without its head, and its weights, whatever their head answers for: images to features [B, D].

    What the network answers without its head is averaged over the positions of a map [B, D, H, W], or over tokens [B, N, D].

    Args:
        spec: see the module's docstring; a run of any task whose networks are classifiers in form, or of backbones. A function that takes
            no ``num_classes`` gives a network that has no head to be taken away.
        image_size, in_channels, trust_pickle, argument: see `build_classifier`.

    Raises:
        InputError: as `build_classifier`, but for what it answers; or there are no such features in the answer.
    """
    named = _with_own_weights(read_specification(spec, trust_pickle=trust_pickle, argument=argument))
    wanted = _Wanted(_ANY, image_size, in_channels, argument, "")
    network = (_pretrained if named.weights == PRETRAINED else _untrained)(named.source, wanted)
    notes: list[str] = []
    if named.weights and named.weights != PRETRAINED:
        _, _, loaded = _loaded(network, named, wanted, trust_pickle, tuple(map(str, range(_ANY))))
        notes = [*_told(loaded), *loaded.notes]
    if named.source.startswith("timm/"):
        network.reset_classifier(0)  # type: ignore[operator]
    else:
        for head in {name.rpartition(".")[0] for name in _head_parameters(named.source, network, wanted)}:
            if not head:
                raise InputError(argument, spec, "a network with something besides its head")
            network.set_submodule(head, nn.Identity())
    answer = _asked(network, spec, wanted)
    if features_in(answer) is None:
        raise InputError(argument, spec, f"a network that answers with features [B, D], not with {described(answer)}")
    if not isinstance(answer, Tensor) or answer.ndim > 2:
        network.register_forward_hook(as_features)
    return Built(network, named.spec, named.weights or None, notes=tuple(notes))


def features_in(answer: Any) -> Tensor | None:
    """The pooled features [B, D] in a network's answer: of maps the mean over positions, of tokens that over tokens; None for none."""
    for name in ("pooler_output", "last_hidden_state", "logits"):
        answer = found if isinstance(found := getattr(answer, name, None), Tensor) else answer
    if not isinstance(answer, Tensor) or not 2 <= answer.ndim <= 4:
        return None
    return answer if answer.ndim == 2 else answer.mean(1) if answer.ndim == 3 else answer.mean((2, 3))


def as_features(module: nn.Module, inputs: Any, answer: Any) -> Any:
    """A forward hook: `features_in`."""
    return features_in(answer)


def configurations(spec: str, *, trust_pickle: bool, argument: str) -> list[Configuration]:
    """What is said of the network of a spec and of the images that it was trained on, the nearest first; of one with weights alone."""
    named = _with_own_weights(read_specification(spec, trust_pickle=trust_pickle, argument=argument))
    return _configurations(named) if named.weights else []


def _configurations(named: Named) -> list[Configuration]:
    pretrained = named.weights == PRETRAINED
    near_by = [] if pretrained else beside(without_set(named.weights))
    if named.card is not None:
        return near_by
    library = of_library(named.source, pretrained=pretrained)
    return near_by if library is None else [*near_by, library]


def _with_own_weights(named: Named) -> Named:
    """A folder of transformers brings its weights."""
    library, _, folder = named.source.partition("/")
    return replace(named, weights=folder) if library == "transformers" and not named.weights else named


def _rows(named: Named, classes: Sequence[str], typed: Sequence[str] | None, argument: str) -> tuple[tuple[int, ...] | None, int]:
    """Which rows of a network's answers are the data's classes, and how many rows there are; None where they are as they should be."""
    known = [one.classes for one in _configurations(named) if one.classes] if typed is None else []
    own = typed or named.classes or next(iter(known), None)
    if own is None or tuple(own) == tuple(classes):
        return None, len(classes)
    rows = rows_of(classes, own)
    if rows is None and typed is not None:
        lost = [name for name in classes if rows_of([name], own) is None]
        raise InputError(f"{argument}_classes", f"{len(own)} names without {', '.join(lost[:5])}", "the names of all the data's classes")
    return (None, len(classes)) if rows is None or rows == tuple(range(len(own))) else (rows, len(own))


def _told(loaded: Loaded) -> list[str]:
    """Which of a file's sets of weights was taken, for people."""
    if not loaded.name:
        return []
    others = ", ".join(one or "the file itself" for one in loaded.others)
    return [f"its weights are '{loaded.name}' of the file{f'; also there, and asked for by #NAME: {others}' if others else ''}"]


def _resampled(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
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


def _loaded(
    network: nn.Module, named: Named, wanted: _Wanted, trust_pickle: bool, classes: Sequence[str] | None
) -> tuple[str, tuple[str, ...], Loaded]:
    """Loads a file's weights; without its head, if it answers for other classes than these."""
    others = named.classes is not None and classes is not None and {*named.classes} != {*classes}
    before = copy.deepcopy(network.state_dict()) if others else {}

    def head() -> tuple[str, ...]:
        return _head_parameters(named.source, network, wanted)

    loaded = load_weights(
        network,
        named.weights,
        trust_pickle=trust_pickle,
        argument=wanted.argument,
        other_head=None if classes is None else head,
        adapt=_resampled,
    )
    if loaded.classes == 0:
        return "they have no head", loaded.left, loaded
    if loaded.classes is not None:
        return f"its head answers for {loaded.classes} classes, not for the {wanted.num_classes} of the data", loaded.left, loaded
    if named.classes is None or not others:
        return "", (), loaded
    new = head()  # of as many classes, but of others
    network.load_state_dict({name: before[name] for name in new}, strict=False)
    return f"its head answers for {', '.join(named.classes[:3])}, ..., not for the data's classes", new, loaded


def _published_head(source: str, network: nn.Module, wanted: _Wanted) -> Start:
    """Of published weights, which are loaded without their head where that does not fit."""
    library, _, name = source.partition("/")
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        published = 0 if config is None else int(config.num_classes)
    else:
        from torchvision import models

        published = len(models.get_model_weights(name).DEFAULT.meta["categories"])
    if published == wanted.num_classes:
        return "", ()
    said = f"they answer for {published} classes, not for the {wanted.num_classes} of the data" if published else "they have no head"
    return said, _head_parameters(source, network, wanted)


def _head_parameters(source: str, network: nn.Module, wanted: _Wanted) -> tuple[str, ...]:
    """Names of the parameters whose shape depends on the number of classes."""
    with torch.random.fork_rng(devices=[]):
        larger = _untrained(source, replace(wanted, num_classes=wanted.num_classes + 1)).state_dict()
    return tuple(name for name, value in network.state_dict().items() if name in larger and larger[name].shape != value.shape)


def _recorded(card: Card, wanted: _Wanted, *, fixed: bool) -> nn.Module:
    """The student of a run, without its weights; `fixed`, one of other classes is refused."""
    if card.task != wanted.task:
        expected = "a student that classifies" if wanted.task == "classification" else f"one of {wanted.task}"
        raise InputError(wanted.argument, f"{card.folder}, a student of the task {card.task}", expected)
    if fixed and card.num_classes != wanted.num_classes:
        raise InputError(
            wanted.argument,
            f"{card.folder}, a student of {card.num_classes} classes",
            f"a network of {wanted.num_classes} classes, as the data has",
        )
    size = card.parsed(lambda content: int(content["image_size"]) if "image_size" in content else wanted.image_size, "image_size")
    return _untrained(card.model, replace(wanted, image_size=size))


def _untrained(source: str, wanted: _Wanted) -> nn.Module:
    whole = composed(source, wanted.argument)
    if whole is not None:
        example = torch.zeros(wanted.shape)
        return whole.build(
            lambda part, classes: _untrained(part, replace(wanted, num_classes=classes)), wanted.num_classes, example, wanted.argument
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


def _pretrained(source: str, wanted: _Wanted) -> nn.Module:
    library, _, name = source.partition("/")
    if library == "timm":
        return _timm(name, wanted, pretrained=True)
    if library == "torchvision":
        return _torchvision_pretrained(name, wanted)
    raise InputError(
        wanted.argument, f"{source}@{PRETRAINED}", f"timm/NAME or torchvision/NAME before @{PRETRAINED}, or a file after the @"
    )


def _stillroom(name: str, wanted: _Wanted) -> nn.Module:
    if name not in NETWORKS:
        raise InputError(wanted.argument, f"stillroom/{name}", f"a network of Stillroom, such as {near(name, NETWORKS)}")
    return _call(NETWORKS[name], f"stillroom/{name}", wanted)


def _transformers(name: str, wanted: _Wanted) -> nn.Module:
    """An image classifier from the `config.json` in a folder, from random numbers."""
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(wanted.argument, f"transformers/{name}", "transformers/FOLDER, a folder that save_pretrained wrote")
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise InputError(wanted.argument, f"transformers/{name}", "transformers to be installed (pip install transformers)") from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, num_labels=wanted.num_classes)
        network: nn.Module = AutoModelForImageClassification.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(wanted.argument, f"transformers/{name} ({reason})", "an image classifier of transformers") from error
    return network.train()


def _timm(name: str, wanted: _Wanted, *, pretrained: bool) -> nn.Module:
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


def _torchvision(name: str, wanted: _Wanted, **more: Any) -> nn.Module:
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


def _torchvision_pretrained(name: str, wanted: _Wanted) -> nn.Module:
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


def _no_download(source: str, error: OSError, wanted: _Wanted) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        wanted.argument,
        f"{source}@{PRETRAINED}, which could not be downloaded ({reason})",
        f"a network connection on the first use; or download the weights elsewhere and give the file: {source}@FILE",
    )


def _call(function: Callable[..., Any], source: str, wanted: _Wanted) -> nn.Module:
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


def _brought_to_logits(network: nn.Module, spec: str, named: Named, wanted: _Wanted, hook: AsLogits) -> list[str]:
    """Has the network answer with logits, and says how, where it would not by itself.

    It is asked about one black image, so that a network that cannot read the data, or has other classes, is found out at once.
    """
    foreign = not named.source.startswith(("timm/", "torchvision/", "stillroom/")) and composed(named.source, wanted.argument) is None
    if foreign or hook.changes:  # a network of somebody's may answer with something else in training than now
        network.register_forward_hook(hook)
    if wanted.image_size is None:
        return []
    answer = _asked(network, spec, wanted)
    found = list(logits_in(answer, 1, wanted.num_classes))
    if not found or not (foreign or isinstance(answer, Tensor)):
        got = f"logits [1, {wanted.num_classes}], not with {described(answer)}"
        raise InputError(wanted.argument, spec, f"a network that answers images {list(wanted.shape)} with {got}{_why(answer, wanted)}")
    if isinstance(answer, Tensor):
        return []
    return [f"it answers with {described(answer)}, of which {found[0][0]} is taken for its logits"]


def _asked(network: nn.Module, spec: str, wanted: _Wanted) -> Any:
    """What it answers to one black image, before any hook of ours.

    Raises:
        InputError: it cannot read such images.
    """
    first = next(network.parameters(), torch.zeros(()))
    image = torch.zeros(wanted.shape, device=first.device, dtype=first.dtype)
    answers: list[Any] = []
    before = network.register_forward_hook(lambda module, inputs, answer: answers.append(answer), prepend=True)
    try:
        with probing(network, image):
            network(image)
    except Exception as error:  # whatever a foreign network raises, it says that it cannot read these images
        if not answers:
            reason = " ".join(str(error).split()) or type(error).__name__
            hint = "; --teacher-image-size gives a teacher images of its own size" if wanted.argument == "teacher" else ""
            raise InputError(
                wanted.argument, spec, f"a network that reads images {list(wanted.shape)}; this one fails ({reason}){hint}"
            ) from error
    finally:
        before.remove()
    return answers[0]


def _why(answer: Any, wanted: _Wanted) -> str:
    """What may be the matter with an answer without logits, for a teacher."""
    if wanted.argument != "teacher" or not isinstance(answer, Tensor) or answer.ndim < 2:
        return ""
    return f" (features want a head of the data's classes; of a teacher of {answer.shape[1]} classes say which: --teacher-classes)"
