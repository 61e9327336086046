"""A finished run's editor, ready to use: a picture of any size in, the edited picture of that size out, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from stillroom.engine.card import Card, Described, read_card, write_card
from stillroom.engine.export import ExportSpec
from stillroom.errors import InputError, StillroomError
from stillroom.tasks.editing.editor import CELL, Editor
from stillroom.tasks.editing.networks import TASK, build_editing, kind_of
from stillroom.tasks.images.answer_pictures import answer_files, write_picture
from stillroom.tasks.images.beside import mask_files, same_name
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.loaded import Unreadable, accelerated, as_read_by, opened
from stillroom.tasks.images.masks import read_mask
from stillroom.tasks.images.padding import cropped, padded
from stillroom.tasks.images.stores import UnreadableImage, read_image
from stillroom.tasks.images.transforms import transform_from

_FOLDER = "edited"


class NonFiniteEdit(StillroomError):
    """An editor answered with infinities or with what is no number; no picture was written."""


@dataclass(frozen=True)
class Edited:
    """What became of one picture.

    Attributes:
        file: the picture.
        path: of the edited one, a PNG of the same size.
        change: mean absolute change of its values, of 255.
    """

    file: Path
    path: Path
    change: float

    def to_json(self) -> dict[str, Any]:
        """Where it is, and how far it was changed."""
        return {"edited": str(self.path), "change": self.change}

    def rows(self) -> list[list[str]]:
        """The same, for people."""
        return [[str(self.path), f"{self.change:.1f}"]]


@dataclass(frozen=True)
class LoadedEditor:
    """A trained editor.

    Args:
        network: in eval mode, pictures [B, 3, H, W] in [-1, 1] to edited ones.
        image_size: the shorter side of the pictures that it was trained on.
        card: what the run says about it.
    """

    network: nn.Module
    image_size: int
    card: Card

    kind: ClassVar[str] = "an editor of pictures"
    options: ClassVar[dict[str, Any]] = {"masks": None, "out": None}

    @torch.no_grad()
    def edit(self, image: Image.Image | str | Path, mask: str | Path | None = None) -> Image.Image:
        """The picture edited, RGB of its own size, turned upright as its EXIF orientation says.

        The network sees it with its shorter side as in training. What it changes there is brought to the picture's size and added, so
        that nothing else is resampled.

        Args:
            image: of any size and mode; transparency is dropped.
            mask: a file of the same size, see `read_mask`: where it is black, pixels stay the same bit for bit; between black and white the
                change is scaled.

        Raises:
            UnreadableImage: a file that cannot be decoded.
            InputError: a mask of another size.
            NonFiniteEdit: the network's weights are broken.
        """
        picture = pil_to_tensor(read_image(image))[None].float()
        size = picture.shape[-2], picture.shape[-1]
        scale = self.image_size / min(size)
        seen_size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        source = picture / 127.5 - 1
        seen = source if seen_size == size else interpolate(source, seen_size, mode="bilinear", align_corners=False, antialias=True)
        answer = self.network(padded(as_read_by(self.network, seen), CELL))
        change = cropped(answer, seen_size).float().cpu() - seen
        if not bool(change.isfinite().all()):
            raise NonFiniteEdit(f"{self.card.folder}: the editor's answer to {image} is not finite")
        if seen_size != size:
            change = interpolate(change, size, mode="bilinear", align_corners=False)
        if mask is not None:
            change = change * _weights(mask, size)
        return to_pil_image((picture + 127.5 * change).round().clamp(0, 255).to(torch.uint8)[0])

    def columns(self, masks: str | None = None, out: str | None = None) -> list[str]:
        """Of `Edited.rows`."""
        return ["edited", "change of 255"]

    def predict(
        self, files: Sequence[Path], *, unreadable: Unreadable, masks: str | None = None, out: str | None = None
    ) -> Iterator[Edited]:
        """Edits each file and writes a PNG; see `Student`.

        Args:
            files: the pictures.
            unreadable: told of each that cannot be decoded, or whose mask is not there.
            masks: a folder of masks (or a mask) of the same names, photo.png or photo_mask.png for photo.jpg: what may be changed; by
                default all.
            out: the folder of the edited pictures; by default ``edited`` in the run's.
        """
        folder = Path(out) if out is not None else self.card.folder / _FOLDER
        mask_of = None if masks is None else mask_files(masks)
        places = answer_files(files, folder)
        accelerated(self.network)
        for file, picture in opened(files, read_image, unreadable):
            mask = None if mask_of is None else same_name(file.stem, mask_of)
            if mask_of is not None and mask is None:
                unreadable(UnreadableImage(f"{file}: no mask of its name in {masks}"))
                continue
            edited = self.edit(picture, mask_of[mask] if mask_of is not None and mask is not None else None)
            write_picture(edited, places[file])
            difference = np.abs(np.asarray(edited, np.float32) - np.asarray(picture, np.float32))
            yield Edited(file, places[file], float(difference.mean()))

    def export_spec(self) -> ExportSpec:
        """The file reads ``images`` float32 [batch, 3, H, W] in [-1, 1], of even sides, and answers with ``edited``, likewise; of an editor
        of one's own, of the size that it was trained on."""
        transform = self.card.parsed(lambda content: transform_from(content["transform"]), "transform")
        images_BCHW = torch.stack([transform(picture) for picture in made_up_pictures(self.image_size)])
        about = {**description(self.card), "prompt": str(self.card.content.get("prompt", ""))}
        return ExportSpec(self.network, images_BCHW, ("images", "edited"), about, cell=CELL if isinstance(self.network, Editor) else None)


def _weights(mask: str | Path, size: tuple[int, int]) -> Tensor:
    """A mask as weights [1, 1, H, W] in [0, 1]."""
    made = read_mask(mask)[None].float() / 255
    if tuple(made.shape[-2:]) != size:
        raise InputError("mask", f"{made.shape[-1]} × {made.shape[-2]} pixels", f"{size[1]} × {size[0]}, the picture's size")
    return made


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedEditor:
    """The editor that a run shipped.

    Args:
        run: the folder that `stillroom run` wrote, or of one of its stages.
        trust_pickle: also run the code that its `student.json` names, and read weights that are pickles.

    Raises:
        InputError: the folder holds no finished run of editing, a damaged one, one that wants to be trusted, or a denoiser, which edits
            nothing by itself.
    """
    card = read_card(run, trust_pickle=trust_pickle)
    size = card.parsed(lambda content: int(content["image_size"]), "image_size")
    if kind_of(card) == "denoiser":
        raise InputError("run", f"{card.folder}, which holds a denoiser", "an editor: one of the run's other arms")
    built = build_editing(
        card.spec, kind="editor", num_classes=card.num_classes, image_size=size, trust_pickle=trust_pickle, argument="run"
    )
    return LoadedEditor(built.network.eval(), size, card)


def ship(folder: Path, network: nn.Module, model: str, data: Described) -> None:
    """Writes `student.json`: the network, which kind it is, what it was trained to make, and how pictures are prepared."""
    kind = "denoiser" if hasattr(network, "num_classes") else "editor"
    write_card(folder, TASK, model, data, kind=kind)
