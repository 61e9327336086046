"""Any network of timm as a backbone: the maps that a head reads, and a classifier's weights for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine.weights import read_weights
from stillroom.errors import InputError, near


class TimmBackbone(nn.Module):
    """Any timm network as a backbone: its maps at the given strides, for images of any size.

    Args:
        name: timm's, e.g. ``resnet18``.
        strides: of the maps that are read.
        argument: what the user calls the name; named in errors.

    Attributes:
        network: timm's, without a head.
        first: module path of its first stage, which ends at stride 4.
        frozen: whether the statistics of BatchNorm stay as they are, in all stages.

    Raises:
        InputError: timm has no such network, or it has no such maps, or reads images of one size only.
    """

    def __init__(self, name: str, strides: Sequence[int] = (8, 16, 32), *, argument: str = "backbone") -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise InputError(argument, name, f"a backbone of timm, such as {near(name, timm.list_models())}")
        self.name, self.strides, self.frozen = name, tuple(strides), False
        config = timm.get_pretrained_cfg(name)
        options: dict[str, Any] = {"strict_img_size": False} if config is not None and config.fixed_input_size else {}

        def create(**more: Any) -> Any:
            try:
                return timm.create_model(name, features_only=True, pretrained=False, **options, **more)
            except (TypeError, RuntimeError, AssertionError) as error:
                raise InputError(argument, name, "a network of timm that answers with maps, to images of any size") from error

        with torch.device("meta"):  # nothing of it is computed
            listed = create().feature_info
        found = list(listed.reduction())
        if not set(strides) <= set(found):
            raise InputError(argument, f"{name}, whose maps have the strides {found}", f"a backbone with {list(strides)}")
        self.network: nn.Module = create(out_indices=tuple(found.index(stride) for stride in strides))
        chosen: Any = self.network.feature_info
        self.channels = tuple(chosen.channels())
        self.channels_last = getattr(self.network, "output_fmt", None) == "NHWC"
        path = listed.module_name()[max((i for i, stride in enumerate(found) if stride <= 4), default=0)]
        self.first = path if path in dict(self.network.named_modules()) else path.replace(".", "_")

    def freeze(self) -> None:
        """Stem and first stage are not trained from now on, and no statistics of BatchNorm are updated."""
        self.frozen = True
        freeze_up_to(self.network, self.first)
        self.train(self.training)

    def train(self, mode: bool = True) -> TimmBackbone:
        """A frozen backbone's running statistics stay as they are."""
        super().train(mode)
        if self.frozen:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images -> one map for each stride."""
        maps: list[Tensor] = self.network(images)
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if self.channels_last else maps


def freeze_up_to(network: nn.Module, path: str) -> None:
    """No gradients for the module at `path` and for all that the network lists before it."""
    reached = False
    for name, module in network.named_modules():
        inside = name == path or name.startswith(f"{path}.")
        if reached and not inside:
            return
        reached = reached or inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def adopt_classifier(
    network: nn.Module, name: str, weights: str, *, of_timm: bool = True, trust_pickle: bool = False, argument: str = "backbone"
) -> int:
    """Gives a backbone the weights of a classifier, whose head is left out, or those of a backbone; how many tensors that were, all of it.

    Args:
        network: the backbone.
        name: its library's.
        weights: a file of that library: a state dict of the classifier. Or a run's folder, or ``pretrained``: what the library publishes.
        of_timm: the library is timm; else torchvision.
        trust_pickle: read weights that are pickles, which can run code as they are read.
        argument: what the user calls the specification; named in errors.

    Raises:
        InputError: weights that are missing, cannot be downloaded or do not fit.
    """
    if weights == "pretrained":
        given = _published(name, of_timm, argument)
    else:
        given = read_weights(weights, trust_pickle=trust_pickle, argument=argument)
    # timm calls a classifier's stages.0 stages_0 where it is a backbone
    theirs = {key.replace("_", "."): value for key, value in given.items()}
    own = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    fitting = {key: theirs[plain] for key in own if (plain := key.replace("_", ".")) in theirs}
    if missing := [key for key in own if key not in fitting]:
        raise InputError(
            argument, f"{weights}, which lacks {len(missing)} entries ({', '.join(missing[:3])})", "a classifier of this backbone"
        )
    if other := [key for key, value in fitting.items() if value.shape != own[key].shape]:
        got = f"{weights} with {other[0]} {list(fitting[other[0]].shape)} instead of {list(own[other[0]].shape)}"
        raise InputError(argument, got, "a classifier of this backbone")
    network.load_state_dict(fitting, strict=False)
    return len(fitting)


def _published(name: str, of_timm: bool, argument: str) -> Mapping[str, Tensor]:
    try:
        if of_timm:
            import timm

            found: Mapping[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
            return found
        import torchvision

        return torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
    except (OSError, RuntimeError) as error:
        got = f"{name}, whose published weights could not be had ({' '.join(str(error).split())[:200]})"
        raise InputError(argument, got, "a network connection on the first use; or a file of weights: backbone=FILE") from error
