"""AdaSim's window at the size of ImageNet: made-up neighbours of 1.28 million images, pushed epoch by epoch into mapped files, then read
batch by batch in random order, as training asks for them. Nothing is trained.

    python benchmarks/window.py [--images 1281167] [--window 50] [--folder /tmp]     # 8 N k V bytes on the disk of the folder: 5.1 GB

Prints what a push takes (once an epoch), what the choice of a batch's second images takes, while the files are still in the system's cache
and after they were put out of it, and what the process holds at the end besides the mapped files. A window in memory would take all of
`bytes` in every process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import keep, setting

from stillroom.methods.adasim import AdaSim
from stillroom.methods.adasim.arms import RULES


def forget(folder: Path) -> None:
    """Has the system drop the folder's files from its cache."""
    for path in folder.glob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def own_bytes() -> int:
    """What this process holds besides mapped files, which the system takes back when it needs the room."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--topk", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--folder", default=None, help="on whose disk the files are made, and removed at the end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rule, numbers = RULES["adasim"], np.random.default_rng(0)
    assert rule is not None
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        # one feature number: the memory of features is on the accelerator, and not what is measured
        block = AdaSim(arguments.images, 1, rule=rule, window=arguments.window, topk=arguments.topk, window_memory=0.0)
        block.keep_in(Path(place))
        own = torch.arange(arguments.images, dtype=torch.int32)
        pushes = []
        for epoch in range(arguments.window):
            block.memory.ids.random_(0, arguments.images)
            block.memory.ids[:, 0] = own
            block.memory.similarities.uniform_(0.8, 0.9)
            start = time.perf_counter()
            block.window.push(epoch, block.memory.ids, block.memory.similarities)
            pushes.append(time.perf_counter() - start)
        choices: dict[str, list[float]] = {"cached": [], "cold": []}
        order = numbers.permutation(arguments.images)[: 2 * arguments.batches * arguments.batch_size]
        for number, ids in enumerate(order.reshape(-1, arguments.batch_size)):
            if number == arguments.batches:
                state = block.checkpoint()
                block.window.slots = []
                forget(Path(place))
                block.restore(state)
            start = time.perf_counter()
            block.others(arguments.window, ids, ids)
            choices["cached" if number < arguments.batches else "cold"].append(1000 * (time.perf_counter() - start))
        row = {
            "benchmark": "window",
            "images": arguments.images,
            "window": arguments.window,
            "topk": arguments.topk,
            "batch_size": arguments.batch_size,
            "bytes": block.window.bytes,
            "push_seconds": median(pushes),
            **{f"choice_ms_{name}": median(values) for name, values in choices.items()},
            "own_bytes": own_bytes(),
        }
    for name, value in row.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    keep("window", [row], setting(arguments.note))


if __name__ == "__main__":
    main()
