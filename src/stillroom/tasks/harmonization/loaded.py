"""A finished harmonization run's student, ready to use: a photo and a mask become a harmonious photo, in its own size."""

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
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image

from stillroom.engine.card import Card, read_card
from stillroom.engine.export import ExportSpec
from stillroom.errors import InputError
from stillroom.tasks.harmonization.batches import joined
from stillroom.tasks.harmonization.metrics import pixels
from stillroom.tasks.harmonization.models import build_harmonizer
from stillroom.tasks.harmonization.recolouring import blobs
from stillroom.tasks.images.answer_pictures import answer_files, write_picture
from stillroom.tasks.images.beside import longest_beginning, mask_files
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.loaded import Unreadable, accelerated, opened
from stillroom.tasks.images.masks import check_opaque, read_mask
from stillroom.tasks.images.stores import UnreadableImage, read_image

_FAINT = 1e-6  # weight under which a place knows nothing of the foreground's change
_MULTIPLE = 16  # what sides of exported pictures are multiples of


@dataclass(frozen=True)
class Harmonised:
    """What became of one photo.

    Attributes:
        file: the composite.
        written: the harmonious photo, a PNG of the same size.
        change: mean absolute change of the foreground, in grey levels.
        said: what else is to be known.
    """

    file: Path
    written: Path
    change: float
    said: str

    def to_json(self) -> dict[str, Any]:
        """Where it is, and how much was changed."""
        return {"written": str(self.written), "change": self.change, **({"note": self.said} if self.said else {})}

    def rows(self) -> list[list[str]]:
        """One row."""
        return [[str(self.written), f"{self.change:.1f}", self.said]]


@dataclass(frozen=True)
class LoadedHarmonizer:
    """A trained network: composite and mask [B, 4, H, W] to pictures [B, 3, H, W], normalised.

    Args:
        network: in eval mode.
        side: pixels of the height and width that it was trained on.
        mean, std: of each channel, for pixels in [0, 1].
        card: what the run says about it.
    """

    network: nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    card: Card

    kind: ClassVar[str] = "a network that harmonises pictures"
    options: ClassVar[dict[str, Any]] = {"masks": None, "out": None}

    @property
    def classes(self) -> tuple[str, ...]:
        """None."""
        return ()

    def columns(self, masks: str | None = None, out: str | None = None) -> list[str]:
        """Of `Harmonised.rows`."""
        return ["written", "change", "note"]

    @torch.no_grad()
    def harmonise(self, composite: Image.Image, mask: Tensor) -> Image.Image:
        """A photo of the same size, whose pixels outside the mask are bit for bit those of the composite.

        A picture of at most the size that the network was trained on is read as it is; a larger one is read in that size, and the change
        of colour that the network makes there is enlarged and applied in full resolution, so that no detail is lost: at each place the
        change c that fits M c best, by least squares, among the network's pixels around it.

        Args:
            composite: RGB.
            mask: of the foreground, uint8 [1, H, W], 255 where it is; soft edges are changed in part.

        Raises:
            InputError: the mask is of another size.
        """
        whole = pil_to_tensor(composite)[None]
        if whole.shape[2:] != mask.shape[1:]:
            size = f"{mask.shape[2]} x {mask.shape[1]} pixels"
            raise InputError("mask", size, f"as many as the picture has, {composite.width} x {composite.height}")
        mask_11HW = mask[None].float() / 255
        if not mask.any():
            return composite
        small = max(composite.size) <= self.side
        read, read_mask_11SS = (part if small else resize(part, [self.side] * 2, antialias=True) for part in (whole, mask_11HW))
        read_mask_11SS = read_mask_11SS.clamp(0, 1)  # resizing rounds
        change = self._answer(read, read_mask_11SS) - read
        if small:
            found = whole + change
        else:
            weighted = (interpolate(part, whole.shape[2:], mode="bilinear") for part in (read_mask_11SS * change, read_mask_11SS**2))
            numerator, denominator = weighted
            found = whole + mask_11HW * torch.where(denominator > _FAINT, numerator / denominator.clamp_min(_FAINT), 0.0)
        kept = torch.where(mask_11HW > 0, found.round().clamp(0, 255), whole.float())
        return to_pil_image(kept[0].to(torch.uint8))

    def _answer(self, images_13HW: Tensor, mask_11HW: Tensor) -> Tensor:
        """The network's picture, 0 to 255, on the CPU."""
        weight = next(self.network.parameters(), images_13HW)
        means, deviations = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        inputs = joined((images_13HW.float() / 255 - means) / deviations, mask_11HW)
        kind = weight.dtype if weight.is_floating_point() else torch.float32
        return pixels(self.network(inputs.to(weight.device, kind)).cpu(), self.mean, self.std)

    def predict(
        self, files: Sequence[Path], *, unreadable: Unreadable, masks: str | None = None, out: str | None = None
    ) -> Iterator[Harmonised]:
        """Harmonises each file; see `Student`.

        Args:
            files: the composites.
            unreadable: is called with the error of a file that cannot be read or has no mask.
            masks: a folder of their masks (or a mask), of the same names: photo.png or photo_mask.png for photo.jpg; as in iHarmony4 one
                with the beginning of the photo's name will do.
            out: the folder that PNG files are written to; by default ``harmonised`` in the run's.

        Raises:
            InputError: no masks are named, or none is there.
        """
        mask_of = mask_files(masks)
        if not mask_of:
            raise InputError("--masks", masks or "nothing", "the folder of the foregrounds' masks: photo.png for photo.jpg")
        folder = Path(out) if out is not None else self.card.folder / "harmonised"
        if folder.resolve() in {file.resolve().parent for file in [*files, *mask_of.values()]}:
            raise InputError("--out", str(folder), "another folder than that of the photos or of the masks")
        accelerated(self.network)
        places = answer_files(files, folder)

        def read(file: Path) -> tuple[Image.Image, Tensor]:
            found = longest_beginning(file.stem, mask_of)
            if found is None:
                raise UnreadableImage(f"{file}: no mask of its name in {masks}")
            image = read_image(file)
            check_opaque(file)
            mask = read_mask(mask_of[found])
            if mask.shape[1:] != (image.height, image.width):
                sizes = f"{mask.shape[2]} x {mask.shape[1]} pixels, its photo {image.width} x {image.height}"
                raise UnreadableImage(f"{file}: its mask {mask_of[found]} has {sizes}")
            return image, mask

        for file, (image, mask) in opened(files, read, unreadable):
            done = self.harmonise(image, mask)
            write_picture(done, places[file])
            before, after = (np.asarray(picture, np.int64) for picture in (image, done))
            weights = mask[0].numpy() / 255
            change = float((weights[..., None] * abs(after - before)).sum() / max(3 * weights.sum(), 1))
            empty = "the mask is empty: nothing was changed" if not mask.any() else ""
            yield Harmonised(file, places[file], change, empty or ("the mask leaves no background" if bool((mask == 255).all()) else ""))

    def export_spec(self) -> ExportSpec:
        """The file reads ``composite_and_mask`` float32 [batch, 4, H, W] and answers with ``picture`` [batch, 3, H, W]; H and W are
        multiples of 16.

        Its metadata are those of `export_parts.description`; the first three channels are normalised by `mean` and `std` of `transform`,
        for pixels in [0, 1], and so is the answer; the fourth is the mask from 0 to 1.
        """
        side = -(-self.side // _MULTIPLE) * _MULTIPLE
        means, deviations = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pictures = torch.stack([pil_to_tensor(picture.resize((side, side))) for picture in made_up_pictures(side)]).float() / 255
        inputs = joined((pictures - means) / deviations, blobs(np.arange(len(pictures)), side))
        note = "the file changes pictures in the size that it is given; `stillroom predict` applies the change in full resolution"
        return ExportSpec(self.network, inputs, ("composite_and_mask", "picture"), description(self.card), cell=_MULTIPLE, note=note)


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedHarmonizer:
    """The student that a harmonization run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    side = card.parsed(lambda content: int(content["image_size"]), "image_size")
    transform = card.parsed(lambda content: {name: tuple(map(float, content["transform"][name])) for name in ("mean", "std")}, "transform")
    built = build_harmonizer(card.spec, trust_pickle=trust_pickle, argument="run")
    return LoadedHarmonizer(built.network.eval(), side, **transform, card=card)
