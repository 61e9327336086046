"""A step of feature distillation: with the teacher, with its answers from disk, and of lightly-train in an environment of its own.

    python -m venv peer && peer/bin/pip install lightly-train
    python benchmarks/features.py --peer-python peer/bin/python [--threads 1] [--rounds 9] [--batch 16] [--side 112] [--note "..."]

The teacher is torchvision's ViT-B/16, the student its ResNet-18, both with random weights, the same ones in both programs; the batch is the
same images, float32. Contenders take turns, a step each per round, in processor time of their own process. `pooled` has a queue of the
teacher's embeddings as its loss, as lightly-train's `distillationv1` has; `dense` the last maps besides, as its `distillation` has. Its
steps mix the batch's images and clip gradients, Stillroom's do not; Stillroom's student lies channels last, as the Lab trains it. Loaders
take no part in either. Targets: stored answers take at most half of the step with the teacher; that is not slower than the peer's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Turns, keep, setting, show, verdict
from PIL import Image
from torch.testing import assert_close

from stillroom.engine import Teacher
from stillroom.engine.cache import Storage, Views, build_cache
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.measure import Footprint
from stillroom.methods.features import Features
from stillroom.tasks.images.classifiers import build_backbone
from stillroom.tasks.representation import TASK, RepresentationData
from stillroom.tasks.representation.teachers import FeatureNetworks, open_teachers

QUEUE = 4096
PEERS = {"pooled": "distillationv1", "dense": "distillation"}


def images_in(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def stepping(made: Features, batch: Any) -> Callable[[], None]:
    made.student.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW([one for one in made.train().parameters() if one.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        made.losses(batch).total.backward()
        optimizer.step()

    return step


def contenders(folder: Path, batch_size: int, side: int) -> tuple[dict[str, Callable[[], None]], Any, dict[str, Any]]:
    """Stillroom's steps, the batch, and what the teacher answers to it."""
    images_in(folder / "images", 2 * batch_size, side)
    torch.manual_seed(0)
    torch.save(build_backbone("torchvision/vit_b_16", image_size=side).network.state_dict(), folder / "teacher.pt")
    torch.save(build_backbone("torchvision/resnet18", image_size=side).network.state_dict(), folder / "student.pt")
    data = RepresentationData(f"images:{folder / 'images'},val=0.2", image_size=side, augment="none", batch_size=batch_size, workers=0)
    steps, answers, batch = {}, {}, None
    for name, weight in (("pooled", 0.0), ("dense", 1.0)):
        networks = FeatureNetworks(f"torchvision/vit_b_16@{folder / 'teacher.pt'}", dense_weight=weight)
        online = Teacher(open_teachers(data, networks, trust_pickle=False).network, precision="fp32", fold=False)
        result = StageResult("teacher", 0, {}, {}, [], Footprint(0, None, 0.0, 0), 0.0, 0, "")
        stored = build_cache(folder / name, online, data, result, views=Views(1), storage=Storage("fp16"), exact=TASK.exact)
        batch = next(iter(data.replaying(stored.views).train_loader(seed=0))) if batch is None else batch
        answers = online(batch)
        for kind, teacher in (("online", online), ("stored", stored)):
            student = build_backbone(f"torchvision/resnet18@{folder / 'student.pt'}", image_size=side, trust_pickle=False).network
            options: dict[str, Any] = {"loss": "queue", "queue_size": QUEUE, "dense_weight": weight, "example": data.example_inputs()}
            steps[f"{name}, {kind}"] = stepping(Features(student, teacher, **options), batch)
    return steps, batch, answers


class Peer:
    """lightly-train in a process of another Python."""

    def __init__(self, python: str, folder: Path) -> None:
        script = Path(__file__).with_name("lightly_peer.py")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([python, str(script), str(folder)], **pipes)
        self.about = self._line()

    def step(self, method: str) -> float:
        """Seconds of the processor."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{method}\n")
        self.process.stdin.flush()
        seconds: float = self._line()
        return seconds

    def _line(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line[:1] in "{0123456789":
                return json.loads(line)
        raise SystemExit("the peer ended")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="of an environment with lightly-train; by default it is left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=112, help="pixels of the images")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    about, turns = setting(given.note), Turns(time.process_time)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        steps, batch, answers = contenders(folder, given.batch, given.side)
        peer = None
        if given.peer_python is not None:
            torch.save(batch.inputs.contiguous(), folder / "images.pt")
            asked = {"batch": given.batch, "side": given.side, "queue": QUEUE, "threads": given.threads}
            (folder / "setting.json").write_text(json.dumps(asked))
            peer = Peer(given.peer_python, folder)
            about["versions"]["lightly-train"] = peer.about["version"]
            for name, theirs in torch.load(folder / "answers.pt").items():
                assert_close(theirs, answers[name][0], rtol=1e-3, atol=1e-3)
        for number in range(-1, given.rounds):  # the first is not counted
            warm = Turns(time.process_time) if number < 0 else turns
            warm.round(steps, number)
            for name, method in PEERS.items() if peer is not None else ():
                warm.note(f"{name}, lightly-train", peer.step(method))
        if peer is not None:
            peer.end()
    lines, rows = [], []
    for name in turns.seconds:
        online = f"{name.partition(',')[0]}, online"
        ratio, (low, high) = turns.ratio(name, online), turns.spread(name, online)
        lines.append({"contender": name, "batch": given.batch, "side": given.side, "seconds": turns.median(name), "ratio": ratio})
        judged = verdict(ratio, 0.5, at_most=True) if "stored" in name else verdict(ratio, 1, at_most=False) if "lightly" in name else ""
        rows.append([name, f"{turns.median(name):.3f} s", f"{ratio:.2f} [{low:.2f}, {high:.2f}] {judged}"])
    show(f"a step of {given.batch} images of {given.side} pixels", ["contender", "processor time", "of online"], rows, about)
    print(keep("features", lines, about))


if __name__ == "__main__":
    main()
