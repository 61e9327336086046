"""What the losses and selection steps of the methods cost, at their papers' sizes, beside one plain step of that paper's student.

    python benchmarks/losses.py [--threads 1] [--rounds 5] [--note "..."] [--only ferkd]

A plain step is cross-entropy on the student's logits, forward, backward and SGD, on as many rows as the method's step has, for the paper's
student and image size; where such a step would take minutes on a CPU, it is made with fewer images and multiplied (the rows say so). Each
term is timed forward and backward on random logits or embeddings, in turns with the plain step. Targets: a term at most 5 % of the step;
WAD's knowledge and KD^3's selection over 50 000 samples under 2 s; 20 000 crops' labels a second from a FerKD bank.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Turns, keep, setting, show, verdict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.losses.contrast import nt_xent
from stillroom.methods.crkd.loss import discovery_targets, relation_loss, swapped_prediction
from stillroom.methods.ferkd.bank.labels import LabelFormat
from stillroom.methods.ferkd.bank.writer import BankPlan, write_bank
from stillroom.methods.ferkd.loss import soft_cross_entropy
from stillroom.methods.ferkd.mixing import draw_mix, draw_partners, mixed
from stillroom.methods.kd3.loss import disagreement_weight, weighted_feature_loss
from stillroom.methods.kd3.mixdistribution import mix_distribution
from stillroom.methods.kd3.selection import blended_prediction, keep_confident
from stillroom.methods.l2d.loss import led_losses, mld_loss
from stillroom.methods.mdcs.loss import mdcs_terms, prior_shift
from stillroom.methods.orc.loss import intensive_loss, private_loss, student_loss
from stillroom.methods.orc.roles import evaluate_group
from stillroom.methods.wad.distiller import weighted_cross_entropy
from stillroom.methods.wad.knowledge import knowledge, reliable
from stillroom.tasks.classification import build_classifier

Step = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """One method at its paper's size.

    Args:
        student: what a plain step trains.
        image_size, classes: of it.
        rows: images that go through the student in one step.
        tried: images of the step that is timed; its time is multiplied by rows / tried.
        terms: what is timed, by name.
    """

    student: str
    image_size: int
    classes: int
    rows: int
    tried: int
    terms: dict[str, Step] = field(default_factory=dict)


def there_and_back(loss: Callable[..., Tensor], *inputs: Tensor) -> Step:
    """Forward and backward to the given inputs."""
    leaves = [tensor.requires_grad_() for tensor in inputs]

    def step() -> None:
        torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)

    return step


def random(*shape: int) -> Tensor:
    return torch.randn(*shape)


def classes(count: int, *shape: int) -> Tensor:
    return torch.randint(count, shape)


def ferkd() -> Setting:
    """ResNet-50 on ImageNet: 256 images of 4 crops."""
    soft_RC = random(1024, 1000).softmax(-1)
    images = random(64, 3, 224, 224)  # 16 images of 4 crops: a sixteenth of the step
    few_RC = soft_RC[:64]
    terms = {
        "soft cross-entropy": there_and_back(lambda z: soft_cross_entropy(z, soft_RC), random(1024, 1000)),
        "SelfMix, 64 rows x 16": lambda: mixed(images, few_RC, draw_partners(4, 16), draw_mix(224, 224)),
    }
    return Setting("torchvision/resnet50", 224, 1000, 1024, 16, terms)


def orc() -> Setting:
    """ResNet-8 among ResNets on CIFAR-100 with batches of 64."""
    labels, partners = classes(100, 64), classes(100, 64)
    pivot, temporary, group = random(64, 100), random(64, 100), random(3, 64, 100)
    terms = {
        "evaluate_group": lambda: evaluate_group(group, labels),
        "L_I": there_and_back(lambda z: intensive_loss(z, labels, partners, torch.tensor(0.3)), random(64, 100)),
        "L_P": there_and_back(lambda z: private_loss(z, pivot, labels, beta=0.9, temperature=4.0), random(64, 100)),
        "L_G": there_and_back(
            lambda z: student_loss(z, [temporary, pivot], labels, teaching="individual", beta=0.9, temperature=4.0), random(64, 100)
        ),
    }
    return Setting("stillroom/resnet8", 32, 100, 64, 64, terms)


def mdcs() -> Setting:
    """The expert ResNet-32 on CIFAR-100-LT, 64 images in two views."""
    labels = classes(100, 64)
    shift = prior_shift(torch.arange(100) * 5 + 5, (-0.5, 1.0, 2.5))

    def both(z: Tensor) -> Tensor:
        found = mdcs_terms(z, labels, shift)
        return found[0] + found[1]

    return Setting("stillroom/resnet32_experts", 32, 100, 128, 64, {"L_DL + L_CS": there_and_back(both, random(128, 3, 100))})


def l2d() -> Setting:
    """ResNet-50 at 224 pixels on COCO: 64 images, 80 labels, some 3 of them on each, embeddings of 512."""
    labels = (torch.rand(64, 80) < 0.036).long()
    teacher, embeddings = random(64, 80), random(64, 80, 768)
    terms = {
        "MLD": there_and_back(lambda z: mld_loss(z, teacher), random(64, 80)),
        "LED": there_and_back(lambda u: torch.stack(led_losses(u, embeddings, labels)).sum(), random(64, 80, 512)),
    }
    return Setting("torchvision/resnet50", 224, 80, 64, 8, terms)


def wad() -> Setting:
    """WRN-28-2 on CIFAR-10: 32 labelled and 32 unlabelled; the teacher's contrast of 32 images, pools of 46 000."""
    labels, weights = classes(2, 32), torch.rand(32)
    features, memory, memory_labels = random(50_000, 128), random(800, 128), classes(2, 800)
    ids, order = torch.arange(50_000), torch.randperm(50_000)
    logits, pseudo = random(50_000, 2), classes(2, 50_000)
    terms = {
        "NT-Xent": there_and_back(lambda a, b: nt_xent(a, b, 0.5), random(32, 128), random(32, 128)),
        "weighted cross-entropy": there_and_back(lambda z: weighted_cross_entropy(z, labels, weights), random(32, 2)),
        "knowledge, 50 000 x 800": lambda: knowledge(features, memory, memory_labels, 2),
        "promotion, 50 000": lambda: reliable(logits, order, pseudo, ids, 0.064),
    }
    return Setting("stillroom/wrn_28_2_leaky", 32, 2, 64, 32, terms)


def crkd() -> Setting:
    """ResNet-18 on CIFAR-100 (50 known, 50 novel): 512 images, 2 large and 2 small crops, 4 heads."""
    labelled, labels = torch.rand(512) < 0.5, classes(50, 512)
    novel = random(2, 4, 512, 50) * 0.1
    targets = discovery_targets(novel, labels, labelled, 50)
    teacher = random(2, 1, 512, 50) * 0.1
    terms = {
        "targets with Sinkhorn": lambda: discovery_targets(novel, labels, labelled, 50),
        "L_cl (UNO's)": there_and_back(lambda y: swapped_prediction(y, targets, 0.1).mean(), random(4, 4, 512, 100) * 0.1),
        "L_rel": there_and_back(lambda y: relation_loss(y, teacher, labelled).mean(), random(2, 4, 512, 100) * 0.1),
    }
    return Setting("stillroom/resnet18", 32, 100, 2048, 32, terms)


def kd3() -> Setting:
    """ResNet-18 on CIFAR-100 with 1024 web images in two views; selection over 50 000."""
    images, share, partners = random(1024, 3, 32, 32), torch.rand(1024), torch.randperm(1024)
    teacher_map, teacher = random(1024, 512, 4, 4), random(1024, 100)
    all_teacher, all_student = random(50_000, 100), random(50_000, 100)

    def aligned(m: Tensor, z: Tensor) -> Tensor:
        return weighted_feature_loss(m, teacher_map, disagreement_weight(z, teacher)[1])

    def selection() -> None:
        keep_confident(*blended_prediction(all_teacher, all_student, 0.6), 100)

    terms = {
        "L_feat": there_and_back(aligned, random(1024, 512, 4, 4), random(1024, 100)),
        "MixDistribution": lambda: mix_distribution(images, share, partners),
        "L_con, one network": there_and_back(lambda a, b: nt_xent(a, b, 0.3), random(1024, 128), random(1024, 128)),
        "selection, 50 000": selection,
    }
    return Setting("stillroom/resnet18", 32, 100, 2048, 32, terms)


SETTINGS = {"ferkd": ferkd, "orc": orc, "mdcs": mdcs, "l2d": l2d, "wad": wad, "crkd": crkd, "kd3": kd3}
PASSES = {"knowledge, 50 000 x 800", "promotion, 50 000", "selection, 50 000"}  # once a round or an epoch, not in a step


def plain_step(of: Setting) -> Step:
    """One step of plain training of the student, on `of.tried` images."""
    network: nn.Module = build_classifier(of.student, num_classes=of.classes, image_size=of.image_size).network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images, labels = random(of.tried, 3, of.image_size, of.image_size), classes(of.classes, of.tried)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def reading(rows: int = 40_000) -> float:
    """Crops' labels a second from a bank (1000 classes, 100 images of 500 crops): boxes and dense labels, 4 crops of an image."""
    form = LabelFormat.of("marginal_smoothing_k5", 1000)
    random_ = np.random.default_rng(0)

    def images(first: int, last: int) -> Any:
        for _ in range(first, last):
            soft = form.encode(torch.from_numpy(random_.dirichlet(np.full(1000, 0.02), 500).astype(np.float32)))
            arrays = {name: np.asarray(value)[None] for name, value in soft._asdict().items() if value is not None}
            boxes = np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (1, 500, 1))
            more = {"targets": np.zeros(1, np.int32), "sizes": np.full((1, 2), 256, np.int32), "checksums": np.zeros(1, np.uint32)}
            yield {"coords": boxes, "flips": np.zeros((1, 500), bool), **arrays, **more}

    with tempfile.TemporaryDirectory() as folder:
        names = [f"{i}.jpg" for i in range(100)]
        plan = BankPlan(key={}, form=form, crops=500, classes=[str(c) for c in range(1000)], names=names)
        bank = write_bank(Path(folder) / "bank", plan, images)
        start = time.perf_counter()
        for _ in range(rows // 256):
            chosen = random_.integers(0, 100, 64).repeat(4), random_.integers(0, 500, 256)
            bank.boxes(*chosen)
            form.dense(bank.soft(*chosen))
        return rows // 256 * 256 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=SETTINGS)
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    about, rows, lines = setting(given.note), [], []
    for method, make in SETTINGS.items():
        if given.only not in (None, method):
            continue
        of = make()
        plain = plain_step(of)
        contenders = {"plain": plain, **of.terms}
        for step in contenders.values():
            step()  # warm-up
        turns = Turns()
        for number in range(given.rounds):
            turns.round(contenders, number)
        step_seconds = turns.median("plain") * of.rows / of.tried
        lines.append({"method": method, "what": "plain step", "student": of.student, "rows": of.rows, "seconds": step_seconds})
        rows.append([method, f"plain step, {of.student}, {of.rows} images", f"{1e3 * step_seconds:.1f}", "", ""])
        for name in of.terms:
            seconds = turns.median(name) * (16 if name.startswith("SelfMix") else 1)
            share = seconds / step_seconds
            said = verdict(seconds, 2.0, at_most=True) if name in PASSES else verdict(share, 0.05, at_most=True)
            lines.append({"method": method, "what": name, "seconds": seconds, "share": share, "verdict": said})
            rows.append([method, name, f"{1e3 * seconds:.2f}", "" if name in PASSES else f"{100 * share:.2f} %", said])
    if given.only in (None, "ferkd"):
        rate = reading()
        said = verdict(rate, 20_000, at_most=False)
        lines.append({"method": "ferkd", "what": "reading the bank", "crops_per_second": rate, "verdict": said})
        rows.append(["ferkd", "reading the bank, crops a second", f"{rate:,.0f}", "", said])
    show("Losses and selection steps at the papers' sizes", ["method", "what", "ms", "of a step", "target"], rows, about)
    keep("losses", lines, about)


if __name__ == "__main__":
    main()
