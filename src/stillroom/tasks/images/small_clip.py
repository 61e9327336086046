"""A CLIP with a ResNet, or whose layers differ in heads and neurons: this file reads ``clip.json`` and ``model.safetensors`` beside it.

It needs torch and safetensors, and nothing of Stillroom:

    from small_clip import load
    clip = load("folder")
    image = clip.encode_image(pixels)  # float32 [B, 3, S, S], normalised with clip.mean and clip.std -> [B, D]
    text = clip.encode_text(tokens)  # int64 [B, T], as tokenizer.json makes them -> [B, D]
    similarity = clip.logit_scale.exp() * normalize(image) @ normalize(text).T
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import avg_pool2d, batch_norm, embedding, gelu, layer_norm, linear, relu, scaled_dot_product_attention


class SmallClip:
    """The weights by their names, and what the towers compute with them; answers are not of unit length."""

    def __init__(self, content: dict, weights: dict) -> None:
        self.shape, self.mean, self.std, self.weights = content["shape"], content["mean"], content["std"], weights
        self.logit_scale = weights["logit_scale"]

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, D]."""
        return self._by_resnet(pixels) if "blocks" in self.shape["image"] else self._by_transformer(pixels)

    def _by_transformer(self, pixels: torch.Tensor) -> torch.Tensor:
        w = self.weights
        patches = torch.conv2d(pixels, w["visual.conv1.weight"], stride=self.shape["patch"]).flatten(2).transpose(1, 2)
        first = w["visual.class_embedding"].expand(len(patches), 1, -1)
        x = self._norm(torch.cat((first, patches), 1) + w["visual.positional_embedding"], "visual.ln_pre")
        return self._norm(self._blocks(x, "visual", "image", causal=False)[:, 0], "visual.ln_post") @ w["visual.proj"]

    def _by_resnet(self, x: torch.Tensor) -> torch.Tensor:
        for number in (1, 2, 3):
            x = relu(self._convolved(x, f"visual.conv{number}", f"visual.bn{number}", stride=2 if number == 1 else 1))
        x = avg_pool2d(x, 2)
        for stage, blocks in enumerate(self.shape["image"]["blocks"]):
            for block in range(blocks):
                name, stride = f"visual.layer{stage + 1}.{block}.", 2 if stage and not block else 1
                y = relu(self._convolved(x, f"{name}conv1", f"{name}bn1"))
                y = relu(self._convolved(y, f"{name}conv2", f"{name}bn2"))
                y = self._convolved(avg_pool2d(y, stride), f"{name}conv3", f"{name}bn3")
                if f"{name}downsample.0.weight" in self.weights:
                    x = self._convolved(avg_pool2d(x, stride), f"{name}downsample.0", f"{name}downsample.1")
                x = relu(x + y)
        places = x.flatten(2).transpose(1, 2)
        x = torch.cat((places.mean(1, keepdim=True), places), 1) + self.weights["visual.attnpool.positional_embedding"]
        each = (linear(x[:, :1] if one == "q" else x, *self._layer(f"visual.attnpool.{one}_proj")) for one in "qkv")
        q, k, v = (one.unflatten(2, (-1, self.shape["image"]["head_width"])).transpose(1, 2) for one in each)
        return linear(scaled_dot_product_attention(q, k, v).flatten(1), *self._layer("visual.attnpool.c_proj"))

    def _convolved(self, x: torch.Tensor, convolution: str, norm: str, stride: int = 1) -> torch.Tensor:
        weight = self.weights[f"{convolution}.weight"]
        x = torch.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return batch_norm(x, self.weights[f"{norm}.running_mean"], self.weights[f"{norm}.running_var"], *self._layer(norm))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, D]."""
        w = self.weights
        x = embedding(tokens, w["text.token_embedding.weight"]) + w["text.positional_embedding"][: tokens.shape[1]]
        x = self._blocks(x, "text", "text", causal=True)
        ends = (tokens == self.shape["end"]).int().argmax(1)
        return self._norm(x[torch.arange(len(x)), ends], "text.ln_final") @ w["text.text_projection"]

    def _blocks(self, x: torch.Tensor, tower: str, side: str, *, causal: bool) -> torch.Tensor:
        shape = self.shape[side]
        for layer, heads in enumerate(shape["heads"]):
            name = f"{tower}.transformer.resblocks.{layer}."
            mixed = x.new_zeros(*x.shape[:2], 0)
            if heads:
                projected = linear(self._norm(x, f"{name}ln_1"), *self._layer(f"{name}attn.in_proj", "_"))
                q, k, v = projected.unflatten(2, (3, heads, shape["head_width"])).permute(2, 0, 3, 1, 4)
                mixed = scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
            x = x + linear(mixed, *self._layer(f"{name}attn.out_proj"))
            hidden = linear(self._norm(x, f"{name}ln_2"), *self._layer(f"{name}mlp.c_fc"))
            hidden = gelu(hidden) if self.shape["activation"] == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
            x = x + linear(hidden, *self._layer(f"{name}mlp.c_proj"))
        return x

    def _layer(self, name: str, dot: str = ".") -> tuple[torch.Tensor, torch.Tensor]:
        return self.weights[f"{name}{dot}weight"], self.weights[f"{name}{dot}bias"]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._layer(name)
        return layer_norm(x, weight.shape, weight, bias, self.shape["norm_eps"])


def load(folder: str) -> SmallClip:
    """The CLIP in a folder, on the CPU."""
    content = json.loads((Path(folder) / "clip.json").read_text(encoding="utf-8"))
    return SmallClip(content, load_file(Path(folder) / "model.safetensors"))
