"""How many rooms a second are made, seen and heard: a sweep in a simple head, measured heads, and voxels.

python benchmarks/rooms.py [--hrir echo_audio.zip/kemar/hrir.npz] [--rooms 256]
"""

from __future__ import annotations

import argparse
import time

from measuring import keep, setting, show, verdict

from stillroom.tasks.sound.sources import open_source
from stillroom.tasks.sound.spectrogram import front_end

TARGET = 30.0  # rooms a second on two cores


def rate(spec: str, count: int, *, voxels: bool = False) -> dict[str, float]:
    """Rooms a second, by the clock and by the processor: picture, depth, classes and echo, or voxels alone."""
    made = open_source(spec).train
    started = time.perf_counter(), time.process_time()
    if voxels:
        for index in range(count):
            made.truth(index, "occupancy", (32, 64))
    else:
        made.look(0, (32, 64))
        made.hear(0, front_end(16_000, small=True))
    clock, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    return {"per_second": count / clock, "per_core_second": count / processor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hrir", help="head-related impulse responses")
    parser.add_argument("--rooms", type=int, default=256)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    plain = f"rooms:train={options.rooms},val=1"
    found = {"a sweep in a simple head": rate(plain, options.rooms), "voxels": rate(plain, options.rooms, voxels=True)}
    if options.hrir:
        found["a sweep in measured heads"] = rate(f"{plain},hrir={options.hrir}", options.rooms)
    lines = [{"benchmark": "rooms", "what": what, "rooms": options.rooms, "target": TARGET, **numbers} for what, numbers in found.items()]
    about = setting(options.note)
    rows = [
        [
            what,
            f"{numbers['per_second']:.0f}",
            f"{numbers['per_core_second']:.0f}",
            verdict(2 * numbers["per_core_second"], TARGET, at_most=False),
        ]
        for what, numbers in found.items()
    ]
    show("Rooms that are made up", ["what", "rooms a second", "a second of one core", "two cores"], rows, about)
    keep("rooms", lines, about)


if __name__ == "__main__":
    main()
