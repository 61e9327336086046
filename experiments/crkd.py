"""CrKD's small-scale experiment: do class relations, and the learnable weight, help to find novel classes?

    python experiments/crkd.py            # some 15 minutes on one core

60 classes of 16x16 pictures, each a shape, a hue and a texture, of which 36 are known: every novel class shares two of the three with
several known ones. One supervised network for each seed; from its weights, with the same heads and the same batches, three arms:
UNO (no relation term), the relation with a constant weight, and CrKD with its learnable one. Two regimes: only the last stage of the
backbone and the heads are trained, on 12 images of each novel class (as the paper trains the last block of a vision transformer on small
sets); and everything is trained, on 50. Measured after the last epoch, mean of the heads: the task-aware accuracy on the novel training
images, the task-agnostic one on the test images; and what the term acts on: the divergence of the student's relations from the teacher's
after each epoch, and how alike the mean relation of each novel class is to the teacher's. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Numbers, paired, write
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Teacher, Trained, Training
from stillroom.methods.crkd import Discovery, NovelClassData
from stillroom.methods.crkd.networks import DiscoveryNetwork
from stillroom.methods.crkd.novel import KnownClassifier
from stillroom.methods.crkd.recipe import pretrained_stage
from stillroom.methods.crkd.views import crops

STUDENT, KNOWN, FEW = "stillroom/resnet8", 36, 12
OF_EPOCHS: dict[str, Any] = {"step_per": "epoch", "lr_floor": 1e-3}
PRETRAINING = Training(epochs=20, lr=0.1, weight_decay=1.5e-4, schedule="cosine", **OF_EPOCHS)
ARMS: Mapping[str, dict[str, Any]] = {
    "UNO": {"relation_weight": 0.0},
    "relation, w = 1": {"weighting": "constant"},
    "CrKD": {},
}
REGIMES: Mapping[str, dict[str, Any]] = {
    "last stage": {"trained_layers": ("layer3",), "epochs": 16},
    "everything": {"trained_layers": (), "epochs": 12},
}
METRICS = {
    "aware": "novel accuracy (task-aware, training images), %",
    "aware_best": "novel accuracy of the best head, %",
    "aware_nmi": "novel NMI, %",
    "v2_all": "test accuracy, all classes (v2), %",
    "v2_known": "test accuracy, known classes (v2), %",
    "v2_novel": "test accuracy, novel classes (v2), %",
    "v3_all": "test accuracy, all classes (v3), %",
}
HEADLINE = METRICS["aware"]
DIVERGENCE = "KL of relations, last epoch"


class Watched(Discovery):
    """CrKD that measures, after each epoch, how far the student's relations are from the teacher's on the novel training images."""

    def __init__(self, student: DiscoveryNetwork, teacher: Teacher, data: NovelClassData, epochs: int, **options: Any) -> None:
        student.register_buffer("divergence", torch.zeros(epochs))  # stays with the weights, whoever reads them again
        super().__init__(student, teacher, **options)
        taught = teacher.networks[0]
        assert isinstance(taught, KnownClassifier)
        self._taught, self._data = taught.eval(), data

    def on_train_epoch_end(self) -> None:
        """Writes the epoch's divergence."""
        was_training = self.student.training
        self.student.eval()
        teacher, student, _ = relations(self._taught, self.student, self._data)
        self.student.train(was_training)
        self.student.divergence[self.current_epoch] = (teacher * (teacher.log() - student.log())).sum(1).mean()


@torch.no_grad()
def relations(taught: KnownClassifier, student: nn.Module, data: NovelClassData) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's and the student's relation of each novel training image, [N, L] each, and its true class [N]."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in data.train_eval_loader():
        novel = batch.labels >= data.known_count
        if novel.any():
            images = batch.images[novel]
            answers = [network.known(network.backbone(images)) for network in (taught, student)]
            found.append((*[(cosines / 0.4).softmax(-1) for cosines in answers], batch.labels[novel]))
    teacher, student_relations, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return teacher, student_relations, labels


def likeness(taught: KnownClassifier, student: nn.Module, data: NovelClassData) -> float:
    """Cosine of the teacher's and the student's mean relation (without what all classes share), averaged over the novel classes."""
    teacher, of_student, labels = relations(taught, student, data)
    means = [torch.stack([part[labels == c].mean(0) for c in labels.unique()]) for part in (teacher, of_student)]
    centred = [mean - mean.mean(0) for mean in means]
    return float(torch.nn.functional.cosine_similarity(*centred).mean())


def few_novel(data: NovelClassData) -> NovelClassData:
    """All known training images and FEW of each novel class."""
    labels = data.train_labels.numpy()
    place = np.arange(len(labels)) - np.searchsorted(labels, labels)  # within its class: the pictures come class by class
    few = data.restricted(train=np.flatnonzero((labels < data.known_count) | (place < FEW)))
    assert isinstance(few, NovelClassData)
    return few


def discovered(lab: Lab, data: NovelClassData, regime: str, arm: str, supervised: Trained) -> tuple[Trained, DiscoveryNetwork]:
    """One arm of one regime."""
    assert isinstance(supervised.network, KnownClassifier)
    options = {**REGIMES[regime], **ARMS[arm]}
    epochs = options["epochs"]
    plan = Training(epochs=epochs, lr=0.1, weight_decay=1.5e-4, schedule="cosine", warmup_epochs=epochs // 4, **OF_EPOCHS)
    student = DiscoveryNetwork(copy.deepcopy(supervised.network), data.clusters, novel_heads=2, hidden=128, projection=32)
    distiller = Watched(student, lab.teach(supervised), data, **options)
    shown = crops("small", data.image_size, data.mean, data.std, large=2, small=0)
    name = f"{regime}-{arm}".replace(" ", "").replace(",", "-").replace("=", "")
    return lab.fit(distiller, data.in_views(*shown, said="small 2"), plan, name=name, model="resnet8 with heads"), student


Found = dict[str, dict[str, dict[int, float]]]
Curves = dict[str, list[Tensor]]


def measured(seeds: Mapping[str, list[int]], out: Path) -> Iterator[tuple[Found, Curves]]:
    """Every arm of every regime with its seeds; after each seed, all that was found so far."""
    data = NovelClassData("shapes", known_classes=KNOWN, batch_size=128)
    sets = {"last stage": few_novel(data), "everything": data}
    options = LabOptions(out=out, seeds=max(map(len, seeds.values())), teacher_precision="fp32", accelerator="cpu")
    shown = crops("small", data.image_size, data.mean, data.std, large=2, small=0)
    found: Found = {}
    curves: Curves = {}

    def note(arm: str, metric: str, seed: int, value: float) -> None:
        found.setdefault(arm, {}).setdefault(metric, {})[seed] = value

    for regime, chosen in seeds.items():
        for seed in chosen:
            lab = Lab(options, seed)
            supervised = pretrained_stage(
                lab, data.supervised(), PRETRAINING, STUDENT, shown, "small 2", cosine_temperature=0.1, trained_layers=()
            )
            assert isinstance(supervised.network, KnownClassifier)
            note("supervised", "test accuracy, known classes, %", seed, supervised.result.metrics["top1"])
            for arm in ARMS:
                trained, student = discovered(lab, sets[regime], regime, arm, supervised)
                whole = f"{regime}: {arm}"
                for metric, words in METRICS.items():
                    note(whole, words, seed, trained.result.metrics[metric])
                note(whole, DIVERGENCE, seed, float(student.divergence[-1]))
                note(whole, "cosine of mean relations", seed, likeness(supervised.network.eval(), student.eval(), sets[regime]))
                note(whole, "seconds", seed, trained.result.seconds)
                curves.setdefault(whole, []).append(student.divergence)
            yield found, curves


def verdict(found: Mapping[str, Numbers]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    said = []
    for regime in [regime for regime in REGIMES if len(found.get(f"{regime}: CrKD", {}).get(HEADLINE, {})) > 1]:
        for arm, over in (("CrKD", "UNO"), ("CrKD", "relation, w = 1"), ("relation, w = 1", "UNO")):
            one, other = found[f"{regime}: {arm}"], found[f"{regime}: {over}"]
            change, spread = paired(one[HEADLINE], other[HEADLINE])
            error = spread / len(one[HEADLINE]) ** 0.5
            word = ("higher" if change > 0 else "lower") if abs(change) > 2 * error else "equal within noise"
            said.append(f"{regime}: novel accuracy of {arm} against {over} {word} ({change:+.2f}, standard error {error:.2f})")
        change, _ = paired(found[f"{regime}: CrKD"][DIVERGENCE], found[f"{regime}: UNO"][DIVERGENCE])
        said.append(f"{regime}: the relations' divergence of CrKD against UNO {change:+.4f}, which the loss minimises and is no evidence")
    return "; ".join(said) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of the regime in which the last stage is trained")
    parser.add_argument("--seeds_of_everything", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/crkd"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/crkd.json"))
    arguments = parser.parse_args()
    seeds = {"last stage": list(range(arguments.seeds)), "everything": list(range(arguments.seeds_of_everything))}
    for found, curves in measured(seeds, arguments.runs):
        setting = {
            "data": f"shapes: {KNOWN} known classes of 50 images, 24 novel of {FEW} (last stage) or 50 (everything); 20 test images",
            "network": f"{STUDENT} (64 features), 2 novel heads of 128 hidden and 32 projected features, 2 views",
            "training": "batch 128, SGD 0.1, pre-training 20 epochs, discovery 16 (last stage) or 12 (everything)",
            "seeds of each regime": {regime: len(found.get(f"{regime}: CrKD", {}).get(HEADLINE, {})) for regime in REGIMES},
            "KL of relations after each epoch, mean of the seeds": {
                arm: [round(value, 4) for value in torch.stack(each).mean(0).tolist()] for arm, each in curves.items()
            },
        }
        done = list(found[f"{next(iter(REGIMES))}: CrKD"][HEADLINE])
        write(arguments.out, "crkd", "python experiments/crkd.py", done, found, verdict(found), setting)  # what a kill leaves is a result
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
