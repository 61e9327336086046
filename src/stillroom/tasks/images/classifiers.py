"""Classifiers by name: `timm/resnet18`, `torchvision/resnet18@pretrained`, `stillroom/resnet8x4@teacher.safetensors`, `nets.py:build`.

A spec is `SOURCE[@WEIGHTS]`, or the folder of a run:

- SOURCE is what `architectures` knows: `timm/NAME`, `torchvision/NAME`, `stillroom/NAME` (`networks.NETWORKS`), `transformers/FOLDER` (an
  image classifier that `save_pretrained` wrote, with its weights), `package.module:function` or `file.py:function`;
  ``first:SOURCE``, its first layers (`first_layers`); runs of methods whose students are composed of several networks record others
  (`engine.specification.composed`);
- WEIGHTS is a file or a folder of weights, or the word `pretrained`: what timm and torchvision publish under that name;
- a run's folder holds `student.json`, which says what the student is, and `student.safetensors`;
- `onnx:FILE` and `openvino:FILE.xml` are whole networks that can only be asked: teachers (`file_networks`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine.answers import AsLogits, described, logits_in
from stillroom.engine.card import Card, Named, read_specification
from stillroom.engine.inference.network import Layout
from stillroom.engine.specification import composed
from stillroom.engine.task import Built
from stillroom.engine.weights import Loaded, load_weights, without_set
from stillroom.errors import InputError, at_least
from stillroom.modules.projectors import probing
from stillroom.tasks.images.architectures import (
    PRETRAINED,
    Size,
    Wanted,
    head_parameters,
    published_classes,
    published_network,
    resampled,
    untrained_network,
)
from stillroom.tasks.images.configurations import Configuration, beside, of_library, rows_of
from stillroom.tasks.images.file_networks import file_of, of_file, open_file
from stillroom.tasks.images.first_layers import PREFIX, FirstSpec

Start = tuple[str, tuple[str, ...]]  # as in `Built`: why weights are a start, and the parameters that they leave as they were
_ANY = 10  # classes of a head that is taken away again


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
    layout: Layout = "auto",
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
        layout: of the images that a file reads.

    Raises:
        InputError: when the spec is none of these, a name is unknown, weights are missing or do not fit, published weights cannot be
            downloaded, or the network does not answer with [B, num_classes] logits.
    """
    at_least("num_classes", num_classes, 1)
    for side in (image_size,) if image_size is None or isinstance(image_size, int) else image_size:
        at_least("image_size", 1 if side is None else side, 1)
    at_least("in_channels", in_channels, 1)
    if (file := file_of(spec)) is not None:
        if not by_name or classes is None:
            raise InputError(argument, spec, "a network that PyTorch builds: one that is only a file can teach classification, and no more")
        wanted = Wanted(num_classes, image_size, in_channels, argument, task)
        return _of_file(spec, str(file), wanted, classes, own_classes, probabilities=probabilities, layout=layout)
    if spec.startswith(PREFIX):
        whole, at, weights = spec.partition("@")
        cut = FirstSpec.parse(whole, argument)
        built = build_classifier(
            f"{cut.source}{at}{weights}",
            num_classes=num_classes,
            image_size=image_size,
            in_channels=in_channels,
            trust_pickle=trust_pickle,
            argument=argument,
            task=task,
            classes=classes,
        )
        return _cut(cut, built, Wanted(num_classes, image_size, in_channels, argument, task))
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
    wanted = Wanted(num_classes, image_size, in_channels, argument, task)
    if named.card is not None:
        network = _recorded(named.card, wanted, fixed=classes is None)
    else:
        network = published_network(named.source, wanted) if named.weights == PRETRAINED else untrained_network(named.source, wanted)
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


def _cut(cut: FirstSpec, whole: Built, wanted: Wanted) -> Built:
    """The first layers of a network, with their weights."""
    cut, network = replace(cut, source=whole.spec).cut(whole.network, wanted.num_classes, torch.zeros(wanted.shape), wanted.argument)
    if whole.weights is None:
        return Built(network, str(cut), None, notes=whole.notes)
    new = tuple(f"head.{name}" for name, _ in network.head.named_parameters())
    return Built(network, str(cut), whole.weights, None, f"it is the network up to {cut.until}", new, whole.notes)


def _of_file(
    spec: str,
    file: str,
    wanted: Wanted,
    classes: Sequence[str],
    own_classes: Sequence[str] | None,
    *,
    probabilities: bool,
    layout: Layout,
) -> Built:
    """A network that is only a file, whose answers are for the data's classes."""
    network = open_file(spec, wanted.argument, layout)
    found = of_file(network)
    if network.size is not None:
        wanted = replace(wanted, image_size=network.size)
    rows, count = _rows(Named(spec, file, found.classes, None), classes, own_classes, wanted.argument)
    hook = AsLogits(len(classes) if rows is None else count, rows, probabilities, wanted.argument)
    notes = [f"{count} classes, of which the data's {len(classes)} are taken by their names"] if rows is not None else []
    named = Named(spec, file, None, None)
    notes += _brought_to_logits(network, spec, named, replace(wanted, num_classes=hook.classes), hook)
    if found.statistics is None:
        notes.append("its file says nothing of mean and std: it reads the student's images (or what --teacher-mean, --teacher-std say)")
    # A remark in brackets: no specification that a card could name.
    known = tuple(classes) if rows is not None else found.classes if own_classes is None else None
    return Built(network, f"{spec} (only a file)", file, known, notes=tuple(notes))


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
    if spec.startswith(PREFIX):
        built = build_classifier(
            spec,
            num_classes=_ANY,
            image_size=image_size,
            in_channels=in_channels,
            trust_pickle=trust_pickle,
            argument=argument,
            classes=tuple(map(str, range(_ANY))),
        )
        built.network.set_submodule("head", nn.Identity())
        return Built(built.network, built.spec, built.weights, notes=built.notes)
    named = _with_own_weights(read_specification(spec, trust_pickle=trust_pickle, argument=argument))
    wanted = Wanted(_ANY, image_size, in_channels, argument, "")
    network = (published_network if named.weights == PRETRAINED else untrained_network)(named.source, wanted)
    notes: list[str] = []
    if named.weights and named.weights != PRETRAINED:
        _, _, loaded = _loaded(network, named, wanted, trust_pickle, tuple(map(str, range(_ANY))))
        notes = [*_told(loaded), *loaded.notes]
    if named.source.startswith("timm/"):
        network.reset_classifier(0)  # type: ignore[operator]
    else:
        for head in {name.rpartition(".")[0] for name in head_parameters(named.source, network, wanted)}:
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


def _loaded(
    network: nn.Module, named: Named, wanted: Wanted, trust_pickle: bool, classes: Sequence[str] | None
) -> tuple[str, tuple[str, ...], Loaded]:
    """Loads a file's weights; without its head, if it answers for other classes than these."""
    others = named.classes is not None and classes is not None and {*named.classes} != {*classes}
    before = copy.deepcopy(network.state_dict()) if others else {}

    def head() -> tuple[str, ...]:
        return head_parameters(named.source, network, wanted)

    loaded = load_weights(
        network,
        named.weights,
        trust_pickle=trust_pickle,
        argument=wanted.argument,
        other_head=None if classes is None else head,
        adapt=resampled,
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


def _published_head(source: str, network: nn.Module, wanted: Wanted) -> Start:
    """Of published weights, which are loaded without their head where that does not fit."""
    published = published_classes(source)
    if published == wanted.num_classes:
        return "", ()
    said = f"they answer for {published} classes, not for the {wanted.num_classes} of the data" if published else "they have no head"
    return said, head_parameters(source, network, wanted)


def _recorded(card: Card, wanted: Wanted, *, fixed: bool) -> nn.Module:
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
    return untrained_network(card.model, replace(wanted, image_size=size))


def _brought_to_logits(network: nn.Module, spec: str, named: Named, wanted: Wanted, hook: AsLogits) -> list[str]:
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


def _asked(network: nn.Module, spec: str, wanted: Wanted) -> Any:
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


def _why(answer: Any, wanted: Wanted) -> str:
    """What may be the matter with an answer without logits, for a teacher."""
    if wanted.argument != "teacher" or not isinstance(answer, Tensor) or answer.ndim < 2:
        return ""
    return f" (features want a head of the data's classes; of a teacher of {answer.shape[1]} classes say which: --teacher-classes)"
