"""FerKD's training step (section 8): stored labels made dense, SelfMix, one soft cross-entropy. There is no teacher in memory."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stillroom.engine import Distiller, Losses
from stillroom.errors import InputError, one_of, positive
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.loss import soft_cross_entropy
from stillroom.methods.ferkd.mixing import draw_mix, draw_partners, mixed
from stillroom.methods.ferkd.replay import BankData, CropBatch, CropEpochs

Mixing = Literal["selfmix", "cross", "none"]
Partner = Literal["shift", "similar"]


class FerKD(Distiller):
    """Student trained on several stored crops of each image at once, and on the soft labels that a teacher once gave them.

    What the labels are makes the method: a teacher's own are FKD's (Shen and Xing 2022); adapted ones
    (:func:`~stillroom.methods.ferkd.calibration.adapted_bank`) FerKD's.

    Args:
        student: network from images [R, 3, H, W] to logits [R, C].
        bank: the stored crops and labels; without them nothing can be trained, but the other arguments are looked at.
        num_crops: K, crops of an image in a step; the passes of the training are counted by it.
        single_first: epochs at the start that show one crop of each image, as the paper's warm-up does.
        mix: ``selfmix`` mixes crops of one image (section 6), ``cross`` any two rows (section 7, the usual MixUp and CutMix).
        mix_probability: how often a batch is mixed.
        mixup_alpha: a > 0 of MixUp's lambda ~ Beta(a, a) [inferred for SelfMix].
        cutmix_alpha: of CutMix's.
        partner: of a crop in SelfMix: by a random cyclic ``shift``, or the one with the most ``similar`` label [both inferred].
        temperature: temperature of softened class probabilities, tau_s > 0; the student's. The loss has no factor tau_s^2.
        missing: training images that the bank does not have are an ``error``, or ``skip``.

    Raises:
        InputError: an unknown word, or a number outside its range.
    """

    def __init__(
        self,
        student: nn.Module,
        bank: LabelBank | None,
        *,
        num_crops: int = 4,
        single_first: int = 0,
        mix: Mixing = "selfmix",
        mix_probability: float = 1.0,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        partner: Partner = "shift",
        temperature: float = 1.0,
        missing: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__(student)
        CropEpochs(1, num_crops, single_first)  # refuses what cannot be
        for name, word, known in (("mix", mix, get_args(Mixing)), ("partner", partner, get_args(Partner))):
            one_of(name, word, known)
        if not 0 <= mix_probability <= 1:
            raise InputError("mix_probability", mix_probability, "a number from 0 to 1")
        if mix == "selfmix" and num_crops == 1:
            warnings.warn("SelfMix has nothing to mix with one crop of each image (num_crops = 1)", stacklevel=2)
        self.bank, self.missing = bank, missing
        self.num_crops, self.single_first = num_crops, single_first
        self.mix, self.mix_probability, self.partner = mix, mix_probability, partner
        self.mixup_alpha, self.cutmix_alpha = positive("mixup_alpha", mixup_alpha), positive("cutmix_alpha", cutmix_alpha)
        self.temperature = positive("temperature", temperature)

    def training_data(self, data: Any) -> BankData:
        """The stored crops, passed over as the plan's number of epochs asks for."""
        assert self.bank is not None
        return BankData(data, self.bank, CropEpochs(self.plan.epochs, self.num_crops, self.single_first), missing=self.missing)

    def losses(self, batch: CropBatch) -> Losses:
        """The soft cross-entropy, averaged over the rows."""
        assert self.bank is not None
        labels_RC = self.bank.format.dense(batch.soft)
        images_R3HW, labels_RC = self.mixed(batch.images, labels_RC, batch.num_crops)
        loss = soft_cross_entropy(self.student(images_R3HW), labels_RC, self.temperature)
        return Losses(task={}, distill={"soft_ce": loss})

    def mixed(self, images_R3HW: Tensor, labels_RC: Tensor, num_crops: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a step, mixed as chance has it; the rows are crop-major."""
        rows = len(images_R3HW)
        if self.mix == "none" or (self.mix == "selfmix" and num_crops == 1) or torch.rand(()).item() >= self.mix_probability:
            return images_R3HW, labels_RC
        height, width = images_R3HW.shape[2:]
        mix = draw_mix(height, width, mixup_alpha=self.mixup_alpha, cutmix_alpha=self.cutmix_alpha)
        if self.mix == "cross":
            partners_R = torch.randperm(rows)
        else:
            partners_R = draw_partners(num_crops, rows // num_crops, labels_RC if self.partner == "similar" else None)
        return mixed(images_R3HW, labels_RC, partners_R.to(images_R3HW.device, non_blocking=True), mix)

    def rate(self, base_lr: float) -> float:
        """The plan's learning rate where a pass over the images begins: the released code asks for it at the epochs 0, K, 2K, ... only."""
        place = self.progress
        first = CropEpochs(place.epochs, self.num_crops, self.single_first).at(place.epoch - 1).epoch
        return self.plan.rate(base_lr, replace(place, epoch=first + 1, step=first * place.steps_per_epoch))
