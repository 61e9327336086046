"""What a backbone needs to learn by self-distillation: stochastic depth, and crops of other sizes than its images."""

from __future__ import annotations

from typing import Any

from torch import linspace, nn

from stillroom.errors import share


def with_stochastic_depth(backbone: nn.Module, rate: float) -> nn.Module:
    """The backbone with its residual branches dropped at rates that grow linearly with depth, from 0 to `rate`; in place.

    Of timm's transformers. Others have no such branches and stay as they are, as convolution nets do in the paper.
    """
    share("drop_path", rate)
    blocks = [module for module in backbone.modules() if hasattr(module, "drop_path1") and hasattr(module, "drop_path2")]
    if rate and blocks:
        from timm.layers import DropPath

        for block, one in zip(blocks, linspace(0, rate, len(blocks)).tolist(), strict=True):
            block.drop_path1 = DropPath(one) if one else nn.Identity()
            block.drop_path2 = DropPath(one) if one else nn.Identity()
    return backbone


def for_any_size(backbone: Any) -> Any:
    """The backbone, reading crops of any size: timm's vision transformers resample their position embedding then; in place."""
    if hasattr(backbone, "dynamic_img_size") and not backbone.dynamic_img_size:
        from timm.layers import Format

        backbone.dynamic_img_size = True
        backbone.patch_embed.strict_img_size = backbone.patch_embed.flatten = False
        backbone.patch_embed.output_fmt = Format("NHWC")
    return backbone
