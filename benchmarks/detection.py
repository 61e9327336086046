"""What detection costs: distillation terms beside a training step, adapters beside torchvision's own step, memory over boxes and classes.

    python benchmarks/detection.py [--threads 1] [--rounds 5] [--only terms|adapters|memory|extractors|refining] [--height 800]

*Terms*: the paper's student (GFL with ResNet-50, 80 classes) makes whole training steps on one image; each term is timed forward and
backward from the head's maps on, the decoding of all boxes included, which a plain step has too: an upper bound. *Adapters*: a step of
torchvision's RetinaNet and FCOS through Stillroom against `model(images, targets)`, from the same uint8 images on. *Memory*: the most that
the tensors of assignment and losses hold at once; what grows with boxes times positions times classes would show as an interaction.
*Refining*: SSD-Det's refiner beside a step of torchvision's Faster R-CNN, on a GPU where there is one: in all, and what it does besides
reading regions and the two layers on each (bags, heads, MIL, merging, losses).
*Extractors*: UniKD's work beside a step of its paper's student, RetinaNet with ResNet-18; and reading stored answers beside stored maps.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measuring import Allocated, Turns, keep, setting, show, verdict
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from stillroom.engine import Progress, Teacher
from stillroom.methods.bckd import bckd_terms, ld_terms, softmax_terms
from stillroom.methods.ssd_det import SSDDet
from stillroom.methods.ssd_det import refiner as refiner_module
from stillroom.methods.unikd.attention import Adapter, level_padding
from stillroom.methods.unikd.distillers import Absorb, injected
from stillroom.methods.unikd.extractors import Extractors, Sizes
from stillroom.methods.unikd.teaching import Answers, frozen
from stillroom.tasks.detection.backbones import TimmBackbone, pad_batch
from stillroom.tasks.detection.data import DetectionBatch
from stillroom.tasks.detection.dense import DenseOutputs, dense_targets
from stillroom.tasks.detection.gfl import GFL, assign_atss, gfl_losses, gfl_outputs
from stillroom.tasks.detection.models import build_detector

STRIDES, BINS = (8, 16, 32, 64, 128), 17
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
OBJECTS = 7  # COCO's mean
Step = Callable[[], Any]


def some_boxes(count: int, height: int, width: int) -> Tensor:
    """Boxes [G, 4] of 3 to 60 % of the image's sides."""
    size = torch.rand(count, 2) ** 2 * 0.57 + 0.03
    corner = torch.rand(count, 2) * (1 - size)
    return torch.cat((corner, corner + size), 1) * torch.tensor([width, height, width, height])


def head_maps(height: int, width: int, classes: int) -> tuple[list[Tensor], list[Tensor]]:
    """What a GFL head answers to one image: class and bin logits of each level."""
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return [torch.randn(1, classes, *s) - 3 for s in sizes], [torch.randn(1, 4 * BINS, *s) for s in sizes]


def outputs_of(maps: tuple[list[Tensor], list[Tensor]], height: int, width: int) -> DenseOutputs:
    return gfl_outputs(*maps, STRIDES, torch.tensor([[height, width]]))


def terms(height: int, width: int, rounds: int) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Each term's share of the paper's student's step."""
    padded_height, padded_width = (-(-side // 32) * 32 for side in (height, width))
    backbone = TimmBackbone("resnet50")
    backbone.freeze()
    student = GFL(backbone, 80).train()
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    images, sizes = torch.randn(1, 3, padded_height, padded_width), torch.tensor([[height, width]])
    objects = [some_boxes(OBJECTS, height, width)], [torch.randint(80, (OBJECTS,))]

    def plain() -> None:
        optimizer.zero_grad()
        outputs = student.raw(images, sizes)
        losses = student.task_losses(outputs, student.targets(outputs, *objects))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    leaves = tuple([m.requires_grad_() for m in maps] for maps in head_maps(padded_height, padded_width, 80))
    teacher = outputs_of(head_maps(padded_height, padded_width, 80), height, width)
    targets = dense_targets(teacher, *objects, assign_atss(regions=True), 80)

    def there_and_back(loss: Callable[[DenseOutputs], Mapping[str, list[Tensor]]]) -> Step:
        def step() -> None:
            found = loss(outputs_of(leaves, height, width))
            total = torch.stack([level for levels in found.values() for level in levels]).sum()
            torch.autograd.grad(total, [*leaves[0], *leaves[1]], allow_unused=True)

        return step

    timed = {
        "plain step": plain,
        "BCKD, both terms": there_and_back(lambda outputs: bckd_terms(outputs, teacher, targets)),
        "LD with its region": there_and_back(lambda outputs: ld_terms(outputs, teacher, targets)),
        "softmax": there_and_back(lambda outputs: {"kd": softmax_terms(outputs, teacher, targets)}),
        "GFL's own losses": there_and_back(lambda outputs: gfl_losses(outputs, targets)),
        "ATSS": lambda: dense_targets(teacher, *objects, assign_atss(), 80),
        "ATSS with LD's region": lambda: dense_targets(teacher, *objects, assign_atss(regions=True), 80),
    }
    turns = Turns()
    for step in timed.values():
        step()  # warm-up
    for number in range(rounds):
        turns.round(timed, number)
    lines, rows = [], []
    for name in timed:
        share = turns.ratio(name, "plain step")
        judged = name in ("BCKD, both terms", "LD with its region", "softmax")
        said = verdict(share, 0.1, at_most=True) if judged else ""
        lines.append({"what": name, "image": [height, width], "seconds": turns.median(name), "share": share, "verdict": said})
        rows.append([name, f"{1e3 * turns.median(name):.1f}", f"{100 * share:.2f} %", said])
    return lines, rows


def adapters(side: int, rounds: int) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """A step through the adapter over torchvision's own, with the same weights, images and boxes."""
    lines, rows = [], []
    pixels = [torch.randint(256, (3, side, side), dtype=torch.uint8) for _ in range(2)]
    boxes = [some_boxes(OBJECTS, side, side) for _ in pixels]
    labels = [torch.randint(20, (OBJECTS,)) for _ in pixels]
    for name in ("retinanet", "fcos"):
        adapter: Any = build_detector(f"torchvision/{name}_resnet50_fpn", num_classes=20).network.train()
        theirs = copy.deepcopy(adapter.model).train()
        theirs.transform.min_size, theirs.transform.max_size = (side,), side

        def ours(adapter: Any = adapter) -> dict[str, Tensor]:
            images, sizes = pad_batch([normalize(image.float() / 255, MEAN, STD) for image in pixels])
            outputs = adapter.raw(images, sizes)
            found: dict[str, Tensor] = adapter.task_losses(outputs, adapter.targets(outputs, boxes, labels))
            return found

        def plain(model: Any = theirs) -> dict[str, Tensor]:
            objects = [{"boxes": b, "labels": y} for b, y in zip(boxes, labels, strict=True)]
            found: dict[str, Tensor] = model([image.float() / 255 for image in pixels], objects)
            return found

        timed = {"ours": trained(ours, adapter), "torchvision": trained(plain, theirs)}
        for step in timed.values():
            step()
        turns = Turns()
        for number in range(rounds):
            turns.round(timed, number)
        ratio, (low, high) = turns.ratio("ours", "torchvision"), turns.spread("ours", "torchvision")
        said = verdict(ratio, 1.05, at_most=True)
        seconds = {f"{which} seconds": turns.median(which) for which in timed}
        lines.append({"what": f"adapter, {name}", "side": side, **seconds, "ratio": ratio, "quartiles": [low, high], "verdict": said})
        times = [f"{1e3 * turns.median(which):.0f}" for which in timed]
        rows.append([name, *times, f"{ratio:.3f} [{low:.3f}, {high:.3f}]", said])
    return lines, rows


def trained(losses: Callable[[], Mapping[str, Tensor]], network: nn.Module) -> Step:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(losses().values())).sum().backward()
        optimizer.step()

    return step


def memory() -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Peak bytes on a 256 x 256 image, over boxes and classes: of assignment, GFL's losses and every distillation term together, and of
    UniKD's extractors in both stages."""
    side = 256

    def dense(boxes: int, number: int) -> Step:
        teacher = outputs_of(head_maps(side, side, number), side, side)
        leaves = tuple([m.requires_grad_() for m in maps] for maps in head_maps(side, side, number))
        objects = [some_boxes(boxes, side, side)], [torch.randint(number, (boxes,))]

        def step() -> None:
            outputs = outputs_of(leaves, side, side)
            targets = dense_targets(outputs, *objects, assign_atss(regions=True), number)
            found = {
                **gfl_losses(outputs, targets),
                **bckd_terms(outputs, teacher, targets),
                **ld_terms(outputs, teacher, targets),
                "kd": softmax_terms(outputs, teacher, targets),
            }
            torch.stack([level for levels in found.values() for level in levels]).sum().backward()

        return step

    def reading(boxes: int, number: int) -> Step:
        stages = extractor_steps(side, side, number, boxes)
        return lambda: (stages["absorb"](), stages["answers"](), stages["inject"]())

    lines, rows = [], []
    for what, make in (("dense terms", dense), ("extractors", reading)):
        more_lines, more_rows = interaction(what, make, sum((-(-side // stride)) ** 2 for stride in STRIDES))
        lines += more_lines
        rows += more_rows
    return lines, rows


def interaction(what: str, make: Callable[[int, int], Step], positions: int) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """How the peak of a step, made for so many boxes and classes, grows with both together."""
    counts, classes, peaks = (16, 128), (20, 320), {}
    for boxes in counts:
        for number in classes:
            step = make(boxes, number)
            with Allocated() as counted:
                step()
            peaks[boxes, number] = counted.peak
    few, many = counts
    small, large = classes
    grown = peaks[many, large] - peaks[many, small] - peaks[few, large] + peaks[few, small]
    cube = 4 * positions * (many - few) * (large - small)  # what one float of boxes x positions x classes would add
    # Below zero where the peaks of assignment (boxes) and losses (classes) are not at the same time.
    share = max(grown, 0) / cube
    said = verdict(share, 0.01, at_most=True)
    lines: list[dict[str, Any]] = [{"what": f"memory, {what}", "boxes": b, "classes": c, "bytes": peak} for (b, c), peak in peaks.items()]
    lines.append({"what": f"memory, {what}, interaction", "bytes": grown, "of boxes x positions x classes": share, "verdict": said})
    rows = [[f"{what}, {b} boxes, {c} classes", f"{peak / 2**20:.1f}", "", ""] for (b, c), peak in peaks.items()]
    rows.append([f"{what}, interaction", f"{grown / 2**20:.1f}", f"{100 * share:.2f} % of a cube of {cube / 2**20:.0f}", said])
    return lines, rows


class Maps(nn.Module):
    """Stands for a detector that answers with its maps: what they cost is the teacher's own pass, not the extractors'."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        super().__init__()
        self.maps = list(maps)

    def forward(self, images: Any) -> list[Tensor]:
        return self.maps


def extractor_steps(height: int, width: int, classes: int, boxes: int) -> dict[str, Step]:
    """UniKD's own work beside two detectors' passes, with the paper's extractors on one image: absorb (stage 1, forward and backward),
    answers (a teacher's, stage 2) and inject (the student's, forward, and backward to its maps)."""
    padded = [-(-side // 32) * 32 for side in (height, width)]
    mine, theirs = ([torch.randn(1, 256, *(-(-side // stride) for side in padded)) for stride in STRIDES] for _ in range(2))
    objects = [some_boxes(boxes, height, width)], [torch.randint(classes, (boxes,))], [torch.zeros(boxes)]
    batch = DetectionBatch(torch.zeros(1, 3, *padded), torch.tensor([[height, width]]), *objects, torch.zeros(1, dtype=torch.long))
    extractors, teacher = Extractors(Sizes(STRIDES, 256, tuple(map(str, range(classes))))), Teacher(Maps(theirs), fold=False)
    absorb, answers, phi = Absorb(extractors, teacher), Answers(teacher, extractors), Adapter(256, 256, len(STRIDES), 0)
    told = answers.fresh(batch, 0)
    reader = frozen(extractors)
    leaves = [level.requires_grad_() for level in mine]

    def absorbed() -> None:
        absorb.progress = Progress()
        absorb.losses(batch).total.backward()

    def injecting() -> None:
        padding = level_padding(batch.images, batch.sizes, leaves)
        found = injected(reader, told, phi(leaves, padding), padding, content=10, position=10)
        torch.autograd.grad(torch.stack(list(found.values())).sum(), [*leaves, *phi.parameters()])

    return {"absorb": absorbed, "answers": lambda: answers.fresh(batch, 1), "inject": injecting}


def extractors(height: int, width: int, rounds: int) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """The share of UniKD's extractors in a step of the paper's student; and a stored answer beside stored maps."""
    padded_height, padded_width = (-(-side // 32) * 32 for side in (height, width))
    student: Any = build_detector("retinanet/resnet18", num_classes=80).network.train()
    images, sizes = torch.randn(1, 3, padded_height, padded_width), torch.tensor([[height, width]])
    objects = [some_boxes(OBJECTS, height, width)], [torch.randint(80, (OBJECTS,))]

    def plain() -> dict[str, Tensor]:
        outputs = student.raw(images, sizes)
        found: dict[str, Tensor] = student.task_losses(outputs, student.targets(outputs, *objects))
        return found

    timed = {"plain step": trained(plain, student), **extractor_steps(height, width, 80, OBJECTS)}
    turns = Turns()
    for step in timed.values():
        step()
    for number in range(rounds):
        turns.round(timed, number)
    lines, rows = [], []
    shares = {name: turns.ratio(name, "plain step") for name in timed}
    shares["a training's: answers and inject"] = shares["answers"] + shares["inject"]
    for name, share in shares.items():
        seconds = turns.median(name) if name in timed else turns.median("answers") + turns.median("inject")
        said = verdict(share, 0.35, at_most=True) if name != "plain step" else ""
        lines.append({"what": f"extractors, {name}", "image": [height, width], "seconds": seconds, "share": share, "verdict": said})
        rows.append([name, f"{1e3 * seconds:.1f}", f"{100 * share:.2f} %", said])
    with tempfile.TemporaryDirectory() as folder:
        answers = {name: torch.randn(200, 256).half().numpy() for name in ("qc", "zc", "qp", "zp")}
        maps = {str(stride): torch.randn(256, padded_height // stride, padded_width // stride).half().numpy() for stride in STRIDES}
        for what, arrays in (("answer", answers), ("maps", maps)):
            for name, values in arrays.items():
                np.save(f"{folder}/{what}{name}.npy", values)
            read = [f"{folder}/{what}{name}.npy" for name in arrays]
            begun = time.perf_counter()
            for _ in range(rounds):
                for file in read:
                    torch.from_numpy(np.load(file)).float()
            seconds, size = (time.perf_counter() - begun) / rounds, sum(values.nbytes for values in arrays.values())
            lines.append({"what": f"stored {what}, fp16", "bytes": size, "seconds": seconds})
            rows.append([f"stored {what} of an image, fp16: {size / 1e6:.2f} MB", f"{1e3 * seconds:.1f}", "", ""])
    return lines, rows


def refining(side: int, rounds: int) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """SSD-Det's refiner beside a step of Faster R-CNN: in all, and without the regions' features and the layers on them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, objects, classes = 4, 20, 80
    detector: Any = build_detector("torchvision/fasterrcnn_resnet50_fpn", num_classes=classes).network.train()
    made = SSDDet(detector).to(device).train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-6, momentum=0.9)
    pixels, sizes = torch.randn(images, 3, side, side, device=device), torch.tensor([[side, side]] * images, device=device)
    boxes = [some_boxes(objects, side, side).to(device) for _ in range(images)]
    labels = [torch.randint(classes, (objects,), device=device) for _ in range(images)]
    with torch.no_grad():
        levels = [detector.raw(pixels, sizes).features[level].clone() for level in made.levels]
    leaves, refiner = [level.requires_grad_() for level in levels], made.refiner
    regions = torch.randn(images * objects, len(refiner.ratios) ** 2 * 5, refiner.shared[1].in_features // 49, 7, 7, device=device)
    hidden = torch.randn(*regions.shape[:2], refiner.shared[1].out_features, device=device)

    def plain() -> None:
        optimizer.zero_grad()
        outputs = detector.raw(pixels, sizes)
        torch.stack(list(detector.task_losses(outputs, detector.targets(outputs, boxes, labels)).values())).sum().backward()
        optimizer.step()

    def refined() -> None:
        losses = refiner(leaves, made.student.strides[: len(leaves)], boxes, labels, sizes).losses
        torch.stack(list(losses.values())).sum().backward()

    def read(maps: Any, strides: Any, found: list[Tensor], *_: Any, **__: Any) -> Tensor:
        return regions.flatten(0, 1)[: sum(map(len, found))]

    given = {name: patch.object(refiner, name, _Given(hidden)) for name in ("shared", "identity")}

    def bags_and_scores() -> None:
        with patch.object(refiner_module, "region_features", read), given["shared"], given["identity"]:
            refined()

    def timed(step: Step) -> Step:
        def whole() -> None:
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return whole

    steps = {name: timed(step) for name, step in (("plain step", plain), ("refiner", refined), ("bags, heads and losses", bags_and_scores))}
    turns = Turns()
    for step in steps.values():
        step()  # warm-up
    for number in range(rounds):
        turns.round(steps, number)
    lines, rows = [], []
    for name in steps:
        share = turns.ratio(name, "plain step")
        said = "" if name == "plain step" else verdict(share, 0.3, at_most=True)
        about = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "side": side}
        lines.append({"what": f"SSD-Det, {name}", **about, "seconds": turns.median(name), "share": share, "verdict": said})
        rows.append([name, f"{1e3 * turns.median(name):.1f}", f"{100 * share:.1f} %", said])
    return lines, rows


class _Given(nn.Module):
    """Answers with features that were made before, as many rows as it is asked for."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = nn.Parameter(features)

    def forward(self, regions: Tensor) -> Tensor:
        return self.features if regions.dim() == 5 else self.features.flatten(0, 1)[: len(regions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--side", type=int, default=256, help="of the adapters' images")
    parser.add_argument("--only", choices=("terms", "adapters", "memory", "extractors", "refining"))
    parser.add_argument("--note", default="")
    parser.add_argument("--no-keep", action="store_true", help="append nothing to results/")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    about = setting(given.note)
    parts: dict[str, tuple[str, list[str], Callable[[], tuple[list[dict[str, Any]], list[list[str]]]]]] = {
        "memory": ("Memory of assignment and losses", ["what", "MiB", "", "target"], memory),
        "adapters": (
            f"A training step of two {given.side} x {given.side} images, ResNet-50",
            ["detector", "ours, ms", "torchvision, ms", "ratio", "target"],
            lambda: adapters(given.side, given.rounds),
        ),
        "refining": (
            "Beside a step of Faster R-CNN ResNet-50, four images of 800 x 800 with 20 objects each, bags of 125",
            ["what", "ms", "of a step", "target"],
            lambda: refining(800, given.rounds),
        ),
        "extractors": (
            f"UniKD beside a step of RetinaNet ResNet-18, 80 classes, one image of {given.height} x {given.width}",
            ["what", "ms", "of a step", "target"],
            lambda: extractors(given.height, given.width, given.rounds),
        ),
        "terms": (
            f"Beside a step of GFL ResNet-50, 80 classes, one image of {given.height} x {given.width}",
            ["what", "ms", "of a step", "target"],
            lambda: terms(given.height, given.width, given.rounds),
        ),
    }
    for name, (title, columns, measure) in parts.items():
        if given.only in (None, name):
            lines, rows = measure()
            show(title, columns, rows, about)
            if not given.no_keep:
                keep("detection", lines, about)


if __name__ == "__main__":
    main()
