"""Networks with label-wise embeddings: a backbone's last feature map, read by an ML-Decoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.modules.convolutions import conv_unit, initialise_convolutions
from stillroom.modules.ml_decoder import MLDecoder

EMBEDDINGS = "head.decoder"  # module path of the label-wise embeddings


class MultiLabelNetwork(nn.Module):
    """Images [B, 3, H, W] -> logits [B, K].

    Args:
        backbone: images -> feature maps [B, C, h, w].
        head: the maps -> logits; at `EMBEDDINGS` are its label-wise embeddings.
    """

    def __init__(self, backbone: nn.Module, head: MLDecoder) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, K]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class StridedNet(nn.Module):
    """A backbone for experiments of minutes: three 3x3 convolutions with batch norm and ReLU, strides 1, 2 and 2.

    Args:
        widths: channels of each.
        in_channels: of the images.
    """

    def __init__(self, widths: tuple[int, int, int], *, in_channels: int = 3) -> None:
        super().__init__()
        channels = (in_channels, *widths)
        layers = [(f"layer{i + 1}", conv_unit(channels[i], channels[i + 1], 3, stride)) for i, stride in enumerate((1, 2, 2))]
        self.layers = nn.Sequential(OrderedDict(layers))
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, widths[2], H / 4, W / 4]."""
        maps: Tensor = self.layers(images)
        return maps


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "strided64": partial(StridedNet, (16, 32, 64)),
    "strided24": partial(StridedNet, (8, 16, 24)),
}


def check_embeddings(network: nn.Module, argument: str) -> None:
    """Raises InputError unless the network has one label-wise embedding for each label."""
    head = getattr(network, "head", None)
    if isinstance(head, MLDecoder) and head.options.groups not in (None, head.classifier.num_classes):
        raise InputError(
            argument, f"a head with {head.options.groups} queries", f"one for each of the {head.classifier.num_classes} labels"
        )
