"""`stillroom cache-labels`: a teacher's soft labels of many crops of each image; `stillroom run ferkd --labels FOLDER` trains from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.commands.options import read_options
from stillroom.commands.parser import named_as_typed, size_text
from stillroom.engine import Experiment, Lab, Networks, Training
from stillroom.engine.room import Setting
from stillroom.engine.run.console import StageDisplay, console
from stillroom.engine.task import first_lines
from stillroom.errors import InputError
from stillroom.methods.ferkd.bank.folder import BankFolder
from stillroom.methods.ferkd.bank.labels import DEFAULT_TYPE, LabelDtype, LabelFormat
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.bank.released import ReleasedImages, export_released, import_released
from stillroom.methods.ferkd.crops import Interpolation
from stillroom.methods.ferkd.labelling import Labelling, crop_rule, image_names, label_images, original_images
from stillroom.tasks.classification import CONVNETS, DIGITS, ImageData

PROG = "stillroom cache-labels"
# FKD's best labeller of those that timm has; crops as it was trained with them (FerKD specification, "Hyper-parameters").
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "data": "imagenet:data/imagenet",
        "teacher": "timm/tf_efficientnet_l2.ns_jft_in1k_475@pretrained",
        "image_size": 475,
        "batch_size": 50,
        "crops": 500,
        "crop_area": [0.08, 0.936],
        "crop_flip": 0.5,
        "label_type": DEFAULT_TYPE,
        "temperature": 1.0,
    }
}
SETTING = Setting(ImageData, DIGITS, CONVNETS, PRESETS, without=frozenset({"student"}))


def run(arguments: list[str], command: str) -> None:
    """Writes a bank, goes on with one that was begun, or helps the processes that write it; prints where it is and how to use it.

    Args:
        arguments: what follows `stillroom cache-labels`.
        command: the whole line that was typed.
    """
    given = read_options(PROG, cache_labels, arguments, setting=SETTING, out="runs/labels")
    with named_as_typed(*given.settings):
        options = given.made_lab(alone="start the command several times, and the processes share the images")
        data = given.made_data()
        lab = Lab(options, settings=given.settings, opening=first_lines(data))
        bank = cache_labels(lab, data, **given.trained_by(), **given.own)
    _tell(bank)


def cache_labels(
    lab: Lab,
    data: ImageData,
    plan: Training = DIGITS,
    networks: Networks = CONVNETS,
    crops: int = 500,
    label_type: str = DEFAULT_TYPE,
    dtype: LabelDtype = "fp16",
    temperature: float = 1.0,
    crop_area: tuple[float, float] | None = None,
    crop_flip: float | None = None,
    interpolation: Interpolation = "bicubic",
    reference: str | None = None,
    records: str | None = None,
    export: str | None = None,
) -> LabelBank:
    """Label many random crops of each training image once, and store crops and labels; any number of processes may do it together.

    Args:
        lab: where and how to run.
        data: the images, in the size and with the statistics that the teacher expects.
        plan: how the teacher is trained, if it has to be.
        networks: the teacher that labels.
        crops: stored crops of each image; of imported records the most that one has.
        label_type: how labels are stored: ``ori`` everything, ``hard`` the class, ``smoothing`` the class and its probability,
            ``marginal_smoothing_k5`` or ``marginal_renorm_k5`` the five largest probabilities (or another number).
        dtype: of the stored numbers: fp16 or fp32; probabilities.
        temperature: temperature of softened class probabilities, tau_t > 0; the teacher's.
        crop_area: smallest and largest area of a crop, as fractions of the image's; by default 0.08 and 1, for digits 0.5 and 1.
        crop_flip: probability of a mirrored crop; by default 0.5, for digits 0.
        interpolation: in resizing crops for the teacher: bilinear or bicubic.
        reference: folder of a bank whose crops are labelled again, instead of new ones.
        records: folder of released records (``train/CLASS/IMAGE.tar``) to import, instead of asking a teacher.
        export: folder that the finished bank is also written to, as such records.
    """
    experiment = Experiment(lab, data, plan, networks)
    labelling = Labelling(crops, label_type, dtype, temperature, crop_rule(data, crop_area, crop_flip), interpolation, lab.options.seed)
    LabelFormat.of(label_type, data.num_classes, dtype)
    again = None if reference is None else LabelBank(reference, argument="reference")
    if records is None:
        with lab.shared():
            experiment.network(networks.teacher, "teacher")
    elif not (Path(records) / "train").is_dir():
        raise InputError("records", records, "a folder that holds a folder train of .tar files")
    folder = BankFolder(lab.folder)
    with folder.locked(wait=True):  # one process trains the teacher, the others find it trained
        if lab.options.overwrite:
            _clear(folder)
        lab.begin()
        taught = experiment.teacher() if records is None else None
    with StageDisplay("labels").counting(data.train_size) as progress:
        if taught is None:
            images = original_images(data)
            listed = ReleasedImages(image_names(images), images.labels, data.classes)
            bank = import_released(
                Path(str(records)), lab.folder, listed, label_type=label_type, crops=crops, dtype=dtype, progress=progress
            )
        else:
            bank = label_images(
                lab.folder,
                lab.teach(taught),
                data,
                labelling,
                result=taught.result,
                reference=again,
                device=lab.device,
                progress=progress,
            )
        if export is not None:
            export_released(bank, Path(export))
    return bank


def _clear(folder: BankFolder) -> None:
    """Removes the bank, unless somebody is writing it."""
    record = folder.read()
    for lane in folder.lanes(record) if record else []:
        with lane.taken() as mine:
            if not mine:
                raise InputError("overwrite", f"{folder}, which another process is writing", "another folder, or a little patience")
    folder.clear()


def _tell(bank: LabelBank) -> None:
    size = size_text(sum(file.stat().st_size for file in bank.path.glob("rows/*.npy")))
    console.print(f"labels: {len(bank)} images, {bank.crops} crops each, {bank.format.label_type}, {size}", markup=False)
    console.print(f"use it: stillroom run ferkd --labels {bank.path} with the same data", markup=False)
