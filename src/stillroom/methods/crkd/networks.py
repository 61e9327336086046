"""The network that discovery trains: one backbone, the known head, several novel heads and the record of which of them does best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stillroom.errors import InputError, at_least, near
from stillroom.methods.crkd.novel import KnownClassifier, NovelClassifier, NovelHead, Prototypes


class DiscoveryNetwork(nn.Module):
    """A supervised network with H novel heads beside its known head; it starts from that network's weights, and shares its modules.

    Args:
        supervised: backbone f and known head, from the pre-training.
        novel_classes: U.
        novel_heads: H, which differ by their initial weights alone.
        hidden, projection, layers: see `NovelHead`.

    Attributes:
        head_losses: S [H], each head's summed loss over the whole training; kept with the weights.

    Raises:
        InputError: no head, or no novel class.
    """

    head_losses: Tensor

    def __init__(
        self,
        supervised: KnownClassifier,
        novel_classes: int,
        *,
        novel_heads: int = 4,
        hidden: int = 2048,
        projection: int = 256,
        layers: int = 1,
    ) -> None:
        super().__init__()
        at_least("novel_classes", novel_classes, 1)
        at_least("novel_heads", novel_heads, 1)
        self.backbone, self.known, self.temperature = supervised.backbone, supervised.known, supervised.temperature
        features = supervised.known.in_features
        self.novel = nn.ModuleList(
            NovelHead(features, novel_classes, hidden=hidden, projection=projection, layers=layers) for _ in range(novel_heads)
        )
        self.register_buffer("head_losses", torch.zeros(novel_heads))

    def normalise_prototypes(self) -> None:
        """Divides the prototypes of all heads by their lengths, in place: before every forward pass of the training."""
        for module in self.modules():
            if isinstance(module, Prototypes):
                module.normalise()

    def cosines(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One view [B, 3, S, S] -> l [B, L] and u [H, B, U], neither divided by a temperature."""
        features = self.backbone(images)
        return self.known(features), torch.stack([head(features) for head in self.novel])

    def forward(self, images: Tensor) -> Tensor:
        """Each head's logits over known and novel classes, [H, B, L + U]."""
        known_BL, novel_HBU = self.cosines(images)
        return torch.cat([known_BL.expand(len(novel_HBU), -1, -1), novel_HBU], dim=-1) / self.temperature

    def best(self) -> NovelClassifier:
        """The network with its best novel head alone: argmin of S. Its modules are shared, not copied."""
        head = self.novel[int(self.head_losses.argmin())]
        assert isinstance(head, NovelHead)
        return NovelClassifier(self.backbone, self.known, head, temperature=self.temperature)


def train_only(backbone: nn.Module, layers: Sequence[str], argument: str) -> None:
    """Freezes the parameters of all modules but those at these paths. BatchNorm goes on counting its statistics everywhere.

    Args:
        backbone: with these modules.
        layers: module paths; none freezes nothing.
        argument: what the user calls the paths.

    Raises:
        InputError: a path that there is not.
    """
    if not layers:
        return
    modules = dict(backbone.named_modules())
    for path in layers:
        if path not in modules:
            raise InputError(argument, path, f"a module of the backbone, such as {near(path, modules)}")
    backbone.requires_grad_(False)
    for path in layers:
        modules[path].requires_grad_(True)
