"""CLIP's ResNet as the image tower: against the description written out, and what its sizes may be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, multi_head_attention_forward, relu

from stillroom.engine.folding import fold_batchnorm
from stillroom.errors import InputError
from stillroom.modules.clip import Clip, ClipShape, ImageTower, TowerShape
from stillroom.modules.clip_resnet import ResNetShape, ResNetTower

SHAPE = ResNetShape(4, (2, 1, 3, 1), 16)


@torch.no_grad()
def stirred(tower: nn.Module) -> nn.Module:
    """With norms, their statistics and biases that are no ones and zeros."""
    for name, value in tower.state_dict().items():
        if value.ndim == 1:
            value.uniform_(0.5, 1.5) if "running_var" in name or "weight" in name else value.normal_(0, 0.3)
    return tower.eval()


@pytest.fixture
def tower() -> ResNetTower:
    torch.manual_seed(0)
    found = stirred(ResNetTower(SHAPE, 6, 64))
    assert isinstance(found, ResNetTower)
    return found


def described(w: dict[str, Tensor], x: Tensor, blocks: tuple[int, ...], heads: int) -> Tensor:
    """The tower from its tensors: every convolution is without bias and has a batch norm behind it."""

    def convolved(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        y = conv2d(x, w[f"{name}.weight"], stride=stride, padding={1: 0, 3: 1}[w[f"{name}.weight"].shape[2]])
        return batch_norm(y, *(w[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = relu(convolved(x, "conv1", "bn1", 2))
    x = relu(convolved(x, "conv2", "bn2"))
    x = avg_pool2d(relu(convolved(x, "conv3", "bn3")), 2)
    for stage in (1, 2, 3, 4):
        for block in range(blocks[stage - 1]):
            at, shrinks = f"layer{stage}.{block}", stage > 1 and block == 0
            y = relu(convolved(x, f"{at}.conv1", f"{at}.bn1"))
            y = relu(convolved(y, f"{at}.conv2", f"{at}.bn2"))
            y = convolved(avg_pool2d(y, 2) if shrinks else y, f"{at}.conv3", f"{at}.bn3")
            if block == 0:
                x = convolved(avg_pool2d(x, 2) if shrinks else x, f"{at}.downsample.0", f"{at}.downsample.1")
            x = relu(x + y)
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat((tokens.mean(0, keepdim=True), tokens)) + w["attnpool.positional_embedding"][:, None]
    of = {part: w[f"attnpool.{part}_proj.weight"] for part in "qkvc"}
    biases = torch.cat([w[f"attnpool.{part}_proj.bias"] for part in "qkv"])
    pooled, _ = multi_head_attention_forward(
        query=tokens[:1], key=tokens, value=tokens, embed_dim_to_check=tokens.shape[2], num_heads=heads,
        q_proj_weight=of["q"], k_proj_weight=of["k"], v_proj_weight=of["v"], use_separate_proj_weight=True, in_proj_weight=None,
        in_proj_bias=biases, bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, training=False, need_weights=False,
        out_proj_weight=of["c"], out_proj_bias=w["attnpool.c_proj.bias"],
    )  # fmt: skip
    return pooled[0]


@torch.no_grad()
def test_it_is_what_is_described(tower: ResNetTower) -> None:
    images, state = torch.randn(3, 3, 64, 64), tower.state_dict()
    expected = described(state, images, SHAPE.blocks, 8)
    torch.testing.assert_close(tower(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fold_batchnorm(tower)(images), expected, rtol=1e-4, atol=1e-5)
    assert not any("bn" in name for name in fold_batchnorm(tower).state_dict())  # every one of them goes into its convolution


def test_clips_rn50_has_its_102_million() -> None:
    with torch.device("meta"):
        clip = Clip(ClipShape(ResNetShape(64, (3, 4, 6, 3)), TowerShape.of(512, 12, 8), 1024, 224, 32, 77, 49408, 49407))
    state = clip.state_dict()
    assert sum(parameter.numel() for parameter in clip.parameters()) == 102_007_137
    assert clip.shape.image.head_width * clip.shape.image.heads == state["visual.attnpool.q_proj.weight"].shape[0] == 2048  # type: ignore[union-attr]
    assert state["visual.attnpool.positional_embedding"].shape == (50, 2048)
    assert state["visual.layer4.0.downsample.0.weight"].shape == (2048, 1024, 1, 1)


def test_a_new_block_is_its_shortcut() -> None:
    block = ResNetTower(SHAPE, 6, 32).layer1[1].eval()
    x = torch.rand(2, 16, 4, 4)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"width": 3}, "width: got 3, expected an even number"),
        ({"width": 2, "head_width": 48}, "a multiple of the heads' 48"),
        ({"blocks": (1, 1, 1)}, "each of 4 stages"),
        ({"blocks": (1, 0, 1, 1)}, "a number from 1"),
    ],
)
def test_sizes_that_it_cannot_have(sizes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ResNetShape(**{"width": 4, "blocks": (1, 1, 1, 1), **sizes})  # type: ignore[arg-type]


def test_sizes_come_back_from_plain_data_and_are_no_transformers() -> None:
    shape = ClipShape(SHAPE, TowerShape.of(16, 1, 2), 6, 64, 32, 8, 20, 19)
    assert ClipShape.from_json({**shape.to_json(), "image": {**shape.to_json()["image"], "blocks": [2, 1, 3, 1]}}) == shape
    with pytest.raises(InputError, match="patch: got 16, expected 32"):
        ClipShape(SHAPE, TowerShape.of(16, 1, 2), 6, 64, 16, 8, 20, 19)
    with pytest.raises(InputError, match="a ResNet as the image tower, expected a transformer"):
        ImageTower(shape)
