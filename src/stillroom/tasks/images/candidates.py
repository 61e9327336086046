"""Networks that are worth a look as students: small ones of each family that timm has, from a few hundred thousand parameters up.

Chosen by hand from timm's own tables of what each family reaches on ImageNet for its cost; which of them suit is for the data to say.
"""

from __future__ import annotations

CLASSIFIERS = tuple(
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
