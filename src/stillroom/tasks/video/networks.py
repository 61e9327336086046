"""Small networks over clips [B, F, 3, S, S], and libraries' networks with a linear head for each kind of label."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class MultiHead(nn.Module):
    """A backbone and a linear layer for each head.

    Args:
        backbone: clips [B, F, 3, S, S] to features [B, D].
        width: D.
        heads: classes by head.
    """

    def __init__(self, backbone: nn.Module, width: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifiers = nn.ModuleDict({head: nn.Linear(width, classes) for head, classes in heads.items()})

    def forward(self, clips_BF3SS: Tensor) -> dict[str, Tensor]:
        """Logits [B, C_a] by head."""
        features_BD = self.backbone(clips_BF3SS)
        return {head: classifier(features_BD) for head, classifier in self.classifiers.items()}


class _Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int, int]) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        )


class Convolutions3d(nn.Module):
    """Three stages of two 3x3x3 convolutions, of widths W, 2 W, 4 W; each halves the picture, the second and third the frames too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        strides = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
        widths = (3, width, 2 * width, 4 * width)
        self.stages = nn.Sequential(*(_Block(a, b, stride) for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)))

    def forward(self, clips_BF3SS: Tensor) -> Tensor:
        """[B, 4 W]: the mean over time and place."""
        features: Tensor = self.stages(clips_BF3SS.transpose(1, 2)).mean((2, 3, 4))
        return features


class Spectrum(nn.Module):
    """Convolutions over log-mel pictures [B, A, 3, S, S], whose features [B, 4 W] are averaged over the A pictures of a clip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures_BA3SS: Tensor) -> Tensor:
        """[B, 4 W]."""
        batch, pictures = pictures_BA3SS.shape[:2]
        features: Tensor = self.layers(pictures_BA3SS[:, :, :1].flatten(0, 1)).mean((2, 3))
        return features.unflatten(0, (batch, pictures)).mean(1)


class FramesSecond(nn.Module):
    """A library's network, which reads clips [B, 3, F, S, S]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips_BF3SS: Tensor) -> Tensor:
        """What it answers."""
        answer: Tensor = self.model(clips_BF3SS.transpose(1, 2))
        return answer


def of_torchvision(name: str, heads: Mapping[str, int]) -> MultiHead:
    """A video classifier of torchvision with a linear head of ours for each kind of label.

    Swin transformers drop paths with a probability of up to 0.2, as the paper's do, where torchvision has 0.1.
    """
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    for layer in model.modules():
        if isinstance(layer, torchvision.ops.StochasticDepth) and name.startswith("swin3d"):
            layer.p *= 2
    path, layer = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv3d)][-1]
    if isinstance(layer, nn.Conv3d):  # s3d classifies at every place and averages
        model.classifier = nn.Identity()
        return MultiHead(FramesSecond(model), layer.in_channels, heads)
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    return MultiHead(FramesSecond(model), layer.in_features, heads)


class FirstOf(nn.Module):
    """A network that answers with one tensor, as the only head's."""

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Logits by head."""
        return {self.head: self.model(inputs)}
