"""Is the processor ever waiting for the loader? The share of a run's time that is spent in `next(loader)`, at the default settings.

The images in memory are prepared in the training process, where no one else can do it: their share is work rather than waiting, and has
to be small. Images in files are read ahead by workers: their share is waiting, unless the workers take the cores from the training.

    python benchmarks/loading.py [--data imagefolder:PATH.zip] [--subset 10000] [--threads N]
    python benchmarks/loading.py --start     # photographs: from opening the data to an epoch's end, beside torchvision
    python benchmarks/loading.py --videos    # clips of 8 frames from videos, beside a plain loop over PyAV; needs PyAV
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from measuring import keep, setting, show, verdict
from PIL import Image
from torch import nn

from stillroom.engine import Distiller, Teacher, Training
from stillroom.methods.kd import KD
from stillroom.tasks.classification import ImageData, Supervised
from stillroom.tasks.images.networks import NETWORKS

LIMIT = 0.05  # of the time
PLAN = Training(epochs=1, lr=0.01, schedule="constant")


def share(distiller: Distiller, data: ImageData, seconds: float, steps: int) -> dict[str, float]:
    """Trains for a while; a pass that ends is followed by the next, as in a run."""
    distiller.train()
    distiller.plan = PLAN
    optimizer = distiller.configure_optimizers()
    loader = data.train_loader(seed=0)

    def batches() -> Iterator[object]:
        while True:
            yield from loader

    stream = batches()
    waited, worked = [], []
    end = time.monotonic() + seconds
    while len(worked) < 3 or (time.monotonic() < end and len(worked) < steps):
        started = time.perf_counter()
        batch = next(stream)
        got = time.perf_counter()
        optimizer.zero_grad()
        distiller.losses(batch).total.backward()
        optimizer.step()
        waited.append(got - started)
        worked.append(time.perf_counter() - got)
    loader.end_workers()
    first, waited, worked = waited[0], waited[2:], worked[2:]  # the workers' start, and the teacher's preparation
    return {
        "first_batch_ms": 1e3 * first,
        "wait_ms": 1e3 * statistics.median(waited),
        "step_ms": 1e3 * statistics.median(worked),
        "longest_wait_ms": 1e3 * max(waited),
        "share": sum(waited) / (sum(waited) + sum(worked)),
        "steps": len(worked),
    }


def photographs(folder: Path, count: int = 256, classes: int = 4) -> ImageData:
    """JPEG files of a usual size, 500 x 375."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(count if split == "train" else classes):
            place = folder / split / f"class{number % classes}"
            place.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(random.integers(0, 255, (47, 63, 3), dtype=np.uint8))  # smooth, so that the files are of usual size too
            small.resize((500, 375), Image.Resampling.BICUBIC).save(place / f"{number:05d}.jpg", quality=90)
    return ImageData(f"imagefolder:{folder}", batch_size=16)


# A script that has only this to do: which loader, workers, folder -> seconds, and the processor seconds of all its processes.
STARTED = """
import json, resource, sys, time
import torch

torch.set_num_threads(1)
who, workers, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if who == "torchvision":
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    chain = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    chain.append(transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
else:
    from stillroom.tasks.classification import ImageData


def used():
    kinds = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(kind.ru_utime + kind.ru_stime for kind in kinds)


moments, processor = [time.perf_counter()], used()
if who == "torchvision":
    data = datasets.ImageFolder(f"{folder}/train", transforms.Compose(chain))
    loader = DataLoader(data, batch_size=16, shuffle=True, drop_last=True, num_workers=workers)
else:
    loader = ImageData(f"imagefolder:{folder}", batch_size=16, workers=workers).train_loader(seed=0)
moments.append(time.perf_counter())
batches = iter(loader)
next(batches)
moments.append(time.perf_counter())
for _ in batches:
    pass
moments.append(time.perf_counter())
if who == "stillroom":
    loader.end_workers()  # else they stay for the next epoch
del batches, loader
print(json.dumps([moment - moments[0] for moment in moments[1:]] + [used() - processor]))
"""


def beginning(rounds: int, note: str) -> None:
    """How soon the first batch of photographs is there, and how long a short epoch takes with all that comes before it."""
    turns: dict[tuple[str, int], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))
        for _ in range(rounds):
            for workers in (0, 2):
                for who in ("torchvision", "stillroom"):
                    command = [sys.executable, "-c", STARTED, who, str(workers), folder]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    turns.setdefault((who, workers), []).append(json.loads(done.stdout))
    names = ("opened", "first_batch", "epoch", "processor")
    lines = [
        {"benchmark": "loading, start", "what": who, "workers": workers, "rounds": rounds,
         **{name: statistics.median(turn[number] for turn in each) for number, name in enumerate(names)}}
        for (who, workers), each in turns.items()
    ]  # fmt: skip
    about = setting(note)
    show(
        "256 photographs in batches of 16, seconds since the data began to be opened",
        ["loader", "workers", "opened", "first batch", "end of the epoch", "processor, all processes"],
        [[line["what"], str(line["workers"]), *(f"{line[name]:.2f}" for name in names)] for line in lines],
        about,
    )
    keep("loading", lines, about)


def films(folder: Path, count: int = 16, frames: int = 120) -> None:
    """Videos of 320 x 240 pixels, H.264 with a key frame in 30: noise that moves over a smooth picture."""
    import av

    random = np.random.default_rng(0)
    for number in range(count + 2):
        place = folder / ("train" if number < count else "val") / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        ground = Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).resize((480, 320), Image.Resampling.BICUBIC)
        with av.open(str(place / f"{number:03d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"g": "30", "crf": "23"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for at in range(frames):
                picture = np.asarray(ground)[at % 80 : at % 80 + 240, at : at + 320].astype(np.int16) + random.integers(
                    -6, 6, (240, 320, 1)
                )
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")))
            container.mux(stream.encode())


def watching(rounds: int, note: str) -> None:
    """Frames of clips in a second: our loader with and without workers, and who decodes each video whole in a loop and resizes 8 frames;
    and how much of the time a small 3D network waits for our loader."""
    import av
    from torchvision.transforms.v2.functional import resize

    from stillroom.tasks.video import Supervised as OnClips
    from stillroom.tasks.video import VideoData
    from stillroom.tasks.video.batches import Kept
    from stillroom.tasks.video.models import build_for

    def plain(files: list[Path]) -> int:
        seen = 0
        for file in files:
            with av.open(str(file)) as container:
                whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            chosen = np.stack([whole[place] for place in np.linspace(0, len(whole) - 1, 8).astype(int)])
            seen += len(resize(torch.from_numpy(chosen).permute(0, 3, 1, 2), [112, 149], antialias=True))
        return seen

    rates: dict[str, list[tuple[float, float]]] = {}  # frames a second, and a second of the processor

    def noted(what: str, passed: Callable[[], int]) -> None:
        started, processor = time.perf_counter(), time.process_time()
        seen = passed()
        rates.setdefault(what, []).append((seen / (time.perf_counter() - started), seen / (time.process_time() - processor)))

    with tempfile.TemporaryDirectory() as place:
        films(Path(place))
        files = sorted(Path(place, "train").rglob("*.mp4"))
        options = {"frames": 8, "image_size": 112, "batch_size": 8, "augment": "crop"}
        for sampling in ("uniform", "dense"):
            for workers in (0, 2):
                data = VideoData(f"clips:{place}", workers=workers, sampling=sampling, **options)
                data.kept = Kept(0)  # as of a set that is too large for memory
                loader = data.train_loader(seed=0)
                for _ in range(rounds + 1):  # the first pass starts the workers
                    what = f"stillroom, {sampling}, {workers} workers"
                    noted(what, lambda loader=loader: sum(len(batch.ids) * 8 for batch in loader))  # type: ignore[misc]
                loader.end_workers()
        for _ in range(rounds + 1):
            noted("PyAV, every frame in a loop", lambda: plain(files))
        data = VideoData(f"clips:{place}", workers=2, sampling="dense", **options)
        data.kept = Kept(0)
        waiting = share(OnClips(build_for(data, "stillroom/cnn3d16", trust_pickle=False, argument="student").network), data, 20.0, 40)  # type: ignore[arg-type]
    lines: list[dict[str, object]] = [
        {"benchmark": "loading, videos", "what": what, "rounds": rounds,
         "frames_per_second": statistics.median(rate for rate, _ in each[1:]),
         "frames_per_processor_second": statistics.median(rate for _, rate in each[1:])}
        for what, each in rates.items()
    ]  # fmt: skip
    about = setting(note)
    rows = [
        [str(line["what"]), f"{line['frames_per_second']:.0f}",
         "–" if "2 workers" in str(line["what"]) else f"{line['frames_per_processor_second']:.0f}"]
        for line in lines
    ]  # fmt: skip
    columns = ["who", "frames a second", "frames a second of this process's processor"]
    show("Clips of 8 frames from videos of 120, 320 x 240 to 112 pixels", columns, rows, about)
    lines.append({"benchmark": "loading, videos", "what": "cnn3d16 at 112 px, batch 8, dense, 2 workers", **waiting})
    told = [str(lines[-1]["what"]), f"{waiting['step_ms']:.0f}", f"{waiting['wait_ms']:.1f}", f"{100 * waiting['share']:.1f} %"]
    show("Share of the time spent in next(loader)", ["step", "step, ms", "next(loader), ms", "share"], [told], about)
    keep("loading", lines, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--subset", type=int, default=10000, help="training images that are decoded")
    parser.add_argument("--threads", type=int, help="by default what PyTorch takes")
    parser.add_argument("--seconds", type=float, default=12.0, help="of measuring, per row")
    parser.add_argument("--steps", type=int, default=150, help="at most, per row")
    parser.add_argument("--start", action="store_true", help="measure what an epoch's beginning costs instead")
    parser.add_argument("--videos", action="store_true", help="measure the loader of videos instead")
    parser.add_argument("--rounds", type=int, default=7, help="of --start and --videos")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    if options.start:
        beginning(options.rounds, options.note)
        return
    if options.videos:
        watching(options.rounds, options.note)
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    small = ImageData(options.data, batch_size=64, subset=options.subset, val_subset=100)
    started = time.perf_counter()
    _ = small.train_labels
    decoding = time.perf_counter() - started

    def resnet(name: str) -> nn.Module:
        torch.manual_seed(0)
        return NETWORKS[name](num_classes=100)

    with tempfile.TemporaryDirectory() as folder:
        large = photographs(Path(folder))
        rows: dict[str, tuple[Callable[[], Distiller], ImageData]] = {
            "KD resnet32x4 -> resnet8x4, 32 px, batch 64": (lambda: KD(resnet("resnet8x4"), Teacher(resnet("resnet32x4"))), small),
            "resnet8x4 alone, 32 px, batch 64": (lambda: Supervised(resnet("resnet8x4")), small),
            "KD resnet50 -> mobilenetv3_small_100, 224 px, batch 16": (
                lambda: KD(timm.create_model("mobilenetv3_small_100"), Teacher(timm.create_model("resnet50"))),
                large,
            ),
        }
        lines = [
            {"benchmark": "loading", "what": what, "workers": data.workers, "in_memory": data.in_memory, "target": LIMIT,
             **share(make(), data, options.seconds, options.steps)}
            for what, (make, data) in rows.items()
        ]  # fmt: skip
    about = setting(f"decoding {options.subset} images once: {decoding:.1f} s. {options.note}")
    show(
        "Share of the time spent in next(loader), default settings",
        ["step", "workers", "steps", "step, ms", "next(loader), ms", "longest, ms", "share"],
        [
            [line["what"], str(line["workers"]), str(line["steps"]), f"{line['step_ms']:.0f}", f"{line['wait_ms']:.2f}",
             f"{line['longest_wait_ms']:.1f}", f"{100 * line['share']:.2f} % ({verdict(100 * line['share'], 100 * LIMIT, at_most=True)})"]
            for line in lines
        ],
        about,
    )  # fmt: skip
    keep("loading", lines, about)


if __name__ == "__main__":
    main()
