"""Networks that are worth a look as students: small ones of each family, from a few thousand parameters up.

Chosen by hand from timm's own tables of what each family reaches on ImageNet for its cost, with torchvision's families that timm lacks;
which of them suit is for the data to say.
"""

from __future__ import annotations

from typing import Any

SMALL = 64  # pixels, up to which the networks of CIFAR's benchmarks are candidates: they keep the resolution, which larger images pay for

_TIMM = tuple(
    f"timm/{name}"
    for name in (
        "lcnet_035",
        "lcnet_050",
        "lcnet_075",
        "lcnet_100",
        "tinynet_e",
        "tinynet_c",
        "tinynet_a",
        "mobilenetv3_small_050",
        "mobilenetv3_small_075",
        "mobilenetv3_small_100",
        "mobilenetv3_large_075",
        "mobilenetv3_large_100",
        "mobilenetv4_conv_small_035",
        "mobilenetv4_conv_small_050",
        "mobilenetv4_conv_small",
        "mobilenetv2_050",
        "mobilenetv2_100",
        "mnasnet_small",
        "ghostnet_050",
        "ghostnet_100",
        "efficientnet_lite0",
        "efficientnet_b0",
        "regnetx_002",
        "regnety_002",
        "regnety_004",
        "resnet10t",
        "resnet14t",
        "resnet18",
        "resnet26",
        "resnet50",
        "repvgg_a0",
        "mobileone_s0",
        "mobilevit_xxs",
        "mobilevit_xs",
        "edgenext_xx_small",
        "convnextv2_atto",
        "convnextv2_femto",
        "xcit_nano_12_p16_224",
        "vit_tiny_patch16_224",
        "deit_small_patch16_224",
    )
)
CLASSIFIERS = (*_TIMM, *(f"torchvision/{name}" for name in ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet0_5")))
_OF_SMALL_IMAGES = tuple(
    f"stillroom/{name}"
    for name in (
        "convnet6",
        "convnet12",
        "convnet24",
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet8x4",
        "wrn_16_1",
        "wrn_16_2",
        "wrn_40_1",
        "mobilenetv2_tiny",
        "mobilenetv1",
        "shufflenetv2",
        "vgg8",
    )
)


def students_of(data: Any) -> tuple[str, ...]:
    """Candidates that suit these images and not others: Stillroom's own, for small ones.

    Args:
        data: with `example_inputs`, [1, 3, H, W].
    """
    return _OF_SMALL_IMAGES if max(data.example_inputs().shape[-2:]) <= SMALL else ()
