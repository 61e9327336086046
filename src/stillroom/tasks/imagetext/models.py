"""CLIPs by name: ``stillroom/clip_64x4p4_48x4_d48_h16``, ``clip-folder``, ``open_clip_weights.pt,activation=quick_gelu``, a run's folder.

- ``stillroom/clip_WxLpP_WxL_dD[_hH]``: width, layers and patches of the image tower, width and layers of the text tower, length of the
  embeddings, width of a head (64); from random numbers. Size of images, vocabulary and context are the data's.
- ``stillroom/clip_rnWxB-B-B-B_WxL_dD[_hH]``: the same with CLIP's ResNet as the image tower, by its width and the blocks of its stages.
- ``stillroom/clip_vit_b32`` and others of `NAMED`: the same by a short name.
- a CLIP at hand, see `tasks.images.clips`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stillroom.engine.task import Built
from stillroom.errors import InputError
from stillroom.modules.clip import Clip, ClipShape, TowerShape
from stillroom.modules.clip_resnet import CELL, ResNetShape
from stillroom.tasks.images.clip_formats import HEAD_WIDTH
from stillroom.tasks.images.clips import names_clip, read_clip

if TYPE_CHECKING:
    from stillroom.tasks.imagetext.data import ImageTextData

NAMED = {  # the last three: students of the paper, millions of parameters in both towers
    "clip_vit_b32": "clip_768x12p32_512x12_d512",
    "clip_vit_b16": "clip_768x12p16_512x12_d512",
    "clip_rn50": "clip_rn64x3-4-6-3_512x12_d1024",
    "tinyclip_61m_29m": "clip_640x12p32_512x9_d512",
    "tinyclip_40m_19m": "clip_512x12p32_512x6_d512",
    "tinyclip_8m_3m": "clip_256x10p16_256x3_d512",
}
GRAMMAR = (
    "stillroom/clip_WxLpP_WxL_dD_hH, e.g. stillroom/clip_64x4p4_48x4_d48_h16 (with a ResNet stillroom/clip_rnWxB-B-B-B_WxL_dD_hH), "
    "a CLIP's folder, or a file of open_clip's weights"
)
_IMAGE = r"(?:(?P<width>\d+)x(?P<layers>\d+)p(?P<patch>\d+)|rn(?P<channels>\d+)x(?P<blocks>\d+-\d+-\d+-\d+))"
_OURS = re.compile(rf"clip_{_IMAGE}_(?P<text_width>\d+)x(?P<text_layers>\d+)_d(?P<embedding>\d+)(?:_h(?P<head>\d+))?")


def build_clip(spec: str, data: ImageTextData, *, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Build the CLIP that a spec names, for the data, with its weights if it has some.

    Raises:
        InputError: the spec is none of these; or the CLIP reads other images or another vocabulary than the data give it.
    """
    if not spec.startswith("stillroom/") and names_clip(spec):
        opened = read_clip(spec, trust_pickle=trust_pickle, argument=argument)
        shape = opened.clip.shape
        wanted = data.clip_shape(shape)
        if shape.image_size != wanted.image_size or shape.vocabulary < data.tokenizer.size or shape.end != wanted.end:
            got = f"{spec}, which reads {shape.image_size} pixels and {shape.vocabulary} tokens"
            raise InputError(argument, got, f"a CLIP of {wanted.image_size} pixels and the data's {wanted.vocabulary} tokens")
        return Built(opened.clip, name_of(shape), spec, notes=opened.notes)
    return Built(Clip(shape_named(spec, data, argument)), spec, None)


def shape_named(spec: str, data: ImageTextData, argument: str) -> ClipShape:
    """The sizes that a spec of ours names, with what the data ask for.

    Raises:
        InputError: it is none of ours, or sizes that do not go together.
    """
    plain = spec.removeprefix("stillroom/")
    found = _OURS.fullmatch(NAMED.get(plain, plain)) if spec.startswith("stillroom/") else None
    if found is None:
        raise InputError(argument, spec or "nothing", GRAMMAR)
    head, resnet = int(found["head"] or HEAD_WIDTH), found["blocks"] is not None

    def tower(width: int, depth: int) -> TowerShape:
        if head < 1 or width % head:
            raise InputError(argument, spec, f"widths that are multiples of the heads' {head}")
        return TowerShape(width, head, (width // head,) * depth, (4 * width,) * depth)

    text, patch = tower(int(found["text_width"]), int(found["text_layers"])), CELL if resnet else int(found["patch"])
    image: TowerShape | ResNetShape
    if resnet:
        try:
            image = ResNetShape(int(found["channels"]), tuple(map(int, found["blocks"].split("-"))), head)
        except InputError as error:
            raise InputError(argument, f"{spec}, whose {error.argument} is {error.got}", error.expected) from None
    else:
        image = tower(int(found["width"]), int(found["layers"]))
    if data.image_size % patch:
        fill = f"a multiple of {CELL} pixels for a ResNet (--image-size)" if resnet else "patches that fill the images (--image-size)"
        raise InputError(argument, f"{spec} for images of {data.image_size} pixels", fill)
    return data.clip_shape(ClipShape(image, text, int(found["embedding"]), data.image_size, patch, 2, 1, 0))


def name_of(shape: ClipShape) -> str:
    """What a report calls a CLIP; of an ordinary one whose heads are of one width, what builds it again."""
    image, head = shape.image, shape.image.head_width
    if isinstance(image, ResNetShape):
        first, transformers = f"rn{image.width}x{'-'.join(map(str, image.blocks))}", [shape.text]
    else:
        first, transformers = f"{image.width}x{image.layers}p{shape.patch}", [image, shape.text]
    plain = all(tower.even and tower.neurons[0] == 4 * tower.width and tower.head_width == head for tower in transformers)
    sizes = f"{first}_{shape.text.width}x{shape.text.layers}_d{shape.embedding}"
    return f"stillroom/clip_{sizes}{'' if head == HEAD_WIDTH else f'_h{head}'}{'' if plain else '_cut'}"
