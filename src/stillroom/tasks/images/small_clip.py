"""A CLIP whose layers differ in heads and neurons: this file lies beside ``clip.json`` and ``model.safetensors`` and reads them.

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
from torch.nn.functional import embedding, gelu, layer_norm, linear, scaled_dot_product_attention


class SmallClip:
    """The weights by their names, and what the towers compute with them; answers are not of unit length."""

    def __init__(self, content: dict, weights: dict) -> None:
        self.shape, self.mean, self.std, self.weights = content["shape"], content["mean"], content["std"], weights
        self.logit_scale = weights["logit_scale"]

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, D]."""
        w = self.weights
        patches = torch.conv2d(pixels, w["visual.conv1.weight"], stride=self.shape["patch"]).flatten(2).transpose(1, 2)
        first = w["visual.class_embedding"].expand(len(patches), 1, -1)
        x = self._norm(torch.cat((first, patches), 1) + w["visual.positional_embedding"], "visual.ln_pre")
        return self._norm(self._blocks(x, "visual", "image", causal=False)[:, 0], "visual.ln_post") @ w["visual.proj"]

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
