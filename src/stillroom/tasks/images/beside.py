"""Pictures with pictures beside them, masks mostly: which belong together is told by their names, never by their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import find_images, list_files, passed_over, told_apart
from stillroom.tasks.images.listed import by_key

MASKS = ("masks", "mask")  # what folders are called, in small letters
PHOTOS = ("real_images", "reals", "real", "photos", "images", "jpegimages")
_ENDING = "_mask"


def called(folder: str, words: Iterable[str]) -> bool:
    """Whether a folder has one of these names, whatever its capitals."""
    return PurePosixPath(folder).name.lower() in words


def by_stem(names: Iterable[str], root: str, words: Iterable[str]) -> dict[str, str]:
    """Files, by their names without folder and ending, that lie at any depth in a folder of `root` that is called one of `words`.

    Raises:
        InputError: two have one name.
    """
    start = f"{root}/" if root else ""
    inside = [name for name in names if name.startswith(start) and called(name[len(start) :].split("/")[0], words)]
    return by_key(((PurePosixPath(name).stem, name) for name in inside), "data")


def same_name(stem: str, known: Mapping[str, Any]) -> str | None:
    """The name itself, or with ``_mask`` behind it, where that is known; else None."""
    return next((name for name in (stem, f"{stem}{_ENDING}") if name in known), None)


def longest_beginning(stem: str, known: Mapping[str, Any]) -> str | None:
    """The longest beginning of a name that is known, cut at underscores only; a name may end in ``_mask`` besides. None for none."""
    parts = stem.split("_")
    for count in range(len(parts), 0, -1):
        if (found := same_name("_".join(parts[:count]), known)) is not None:
            return found
    return None


def mask_files(masks: str | None) -> dict[str, Path]:
    """Masks by their names without folder and ending; none, where none are named.

    Args:
        masks: a folder of them, or one.
    """
    files = [] if masks is None else find_images([masks]).files
    return {stem: Path(name) for stem, name in by_key(((file.stem, str(file)) for file in files), "masks").items()}


def photos_with_masks(path: str, masks: str | None, argument: str) -> tuple[list[tuple[str, str]], Store, Store, list[str]]:
    """Photos and the masks of something in them, a pair for each mask; the stores of both; what was passed over.

    Args:
        path: of a folder or zip of photos; or of one with folders ``photos`` and ``masks``, where `masks` is None.
        masks: of the masks.
        argument: what error messages call the data.

    Raises:
        InputError: there is no pair.
    """
    store, files, folders = list_files(path, argument)
    images, _ = told_apart(store, files)
    if masks is None:
        roots = sorted({str(PurePosixPath(folder).parent) for folder in folders if called(folder, MASKS)})
        if not roots:
            raise InputError(argument, path, "a folder masks in it, beside a folder photos; or masks=FOLDER")
        root = "" if roots[0] == "." else roots[0]
        photo_of, mask_of, mask_store = by_stem(images, root, PHOTOS), by_stem(images, root, MASKS), store
    else:
        mask_store, mask_listed, _ = list_files(masks, argument)
        photo_of = by_key(((PurePosixPath(name).stem, name) for name in images), argument)
        mask_of = by_key(((PurePosixPath(name).stem, name) for name in told_apart(mask_store, mask_listed)[0]), argument)
    pairs, alone = [], []
    for stem, name in sorted(mask_of.items()):
        photo = longest_beginning(stem, photo_of)
        if photo is None:
            alone.append(name)
        else:
            pairs.append((photo_of[photo], name))
    if not pairs:
        got = f"{path} with {len(photo_of)} photos and {len(mask_of)} masks, of which no two belong together"
        raise InputError(argument, got, "for photo.jpg a mask photo.png, photo_mask.png or photo_1.png")
    used = {photo for photo, _ in pairs}
    said = passed_over(alone, "whose name no photo's begins", "mask")
    said += passed_over([name for name in photo_of.values() if name not in used], "without a mask", "photo")
    return pairs, store, mask_store, said
