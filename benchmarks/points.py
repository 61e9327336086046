"""What the layer of point clouds costs: a frame to a map, suppression, sparse convolutions (beside spconv's, where installed), lift-splat.

    python benchmarks/points.py [--threads 2] [--rounds 15]

The frame has 120 000 points, as a lidar of 64 beams gives them: dense near the ego, thin far away. Sparse convolutions are measured from
unknown coordinates, so that finding the pairs of voxels counts on both sides. Prints a table and appends a line to `results/`.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import Turns, keep, setting, show, verdict
from torch import Tensor

from stillroom.tasks.points.boxes import rotated_nms
from stillroom.tasks.points.cameras import Cameras
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.lift_splat import DepthBins, LiftSplat
from stillroom.tasks.points.sparse import SparseConv3d, SparseTensor, SubMConv3d
from stillroom.tasks.points.voxels import MeanVoxelEncoder, VoxelGrid, scatter_to_bev, voxelize

Step = Callable[[], Any]
RANGE = 51.2


def frame(count: int) -> Tensor:
    """Points [count, 4] of a scene: ground, walls and objects at all distances."""
    torch.manual_seed(0)
    angle, distance = torch.rand(count) * 6.283, 2 + 48 * torch.rand(count) ** 1.5
    height = torch.randn(count) * 0.1 - 1.8 + (torch.rand(count) < 0.3) * torch.rand(count) * 3
    return torch.stack((distance * angle.cos(), distance * angle.sin(), height, torch.rand(count)), 1)


def pillar_steps(count: int, cell: float, channels: int = 64) -> dict[str, Step]:
    """Voxelisation and scattering of a frame into pillars."""
    points, sample = frame(count), torch.zeros(count, dtype=torch.int64)
    grid = VoxelGrid.pillars(BevGrid((-RANGE, RANGE), (-RANGE, RANGE), cell), (-5.0, 3.0))
    voxels = voxelize(points, sample, 1, grid)
    features = torch.rand(len(voxels.coords), channels)
    return {
        "voxelise": lambda: voxelize(points, sample, 1, grid),
        "scatter": lambda: scatter_to_bev(features, voxels.coords, 1, *grid.shape[1:]),
    }


def nms_step(count: int) -> Step:
    """Rotated suppression of boxes as a head gives them: several around each of a few dozen objects."""
    torch.manual_seed(0)
    centres = (torch.rand(max(count // 10, 1), 2) - 0.5) * 90
    xy = centres.repeat_interleave(10, 0)[:count] + torch.randn(count, 2) * 0.4
    size, yaw = torch.tensor([4.5, 1.9]) * (0.9 + 0.2 * torch.rand(count, 2)), torch.rand(count, 1) * 6
    boxes, scores = torch.cat((xy, size, yaw), 1), torch.rand(count)
    return lambda: rotated_nms(boxes, scores, 0.2, max_kept=83)


def sparse_steps(count: int, channels: int) -> dict[str, Step]:
    """A submanifold and a strided convolution on the frame's voxels, ours and spconv's."""
    points, sample = frame(count), torch.zeros(count, dtype=torch.int64)
    voxels = voxelize(points, sample, 1, VoxelGrid((-RANGE, -RANGE, -5.0), (RANGE, RANGE, 3.0), (0.1, 0.1, 0.2)))
    features = torch.rand(len(voxels.coords), channels)
    same, down = SubMConv3d(channels, channels, 3), SparseConv3d(channels, channels, 3, stride=2, padding=1)

    def ours() -> SparseTensor:
        return SparseTensor(features, voxels.coords, voxels.shape, 1)

    steps: dict[str, Step] = {"submanifold": lambda: same(ours()), "strided": lambda: down(ours())}
    if importlib.util.find_spec("spconv"):
        import spconv.pytorch as spconv

        theirs = {
            "submanifold": spconv.SubMConv3d(channels, channels, 3, bias=False),
            "strided": spconv.SparseConv3d(channels, channels, 3, stride=2, padding=1, bias=False),
        }
        coords = voxels.coords.int()
        for name, module in theirs.items():
            steps[f"{name}, spconv"] = lambda module=module: module(spconv.SparseConvTensor(features, coords, list(voxels.shape), 1))
    return steps


def splat_step(width: int, channels: int = 64) -> Step:
    """Lift-splat of six pictures 256 x `width` at stride 16, 59 depths, onto 128 x 128 cells: at 704 the size of BEVDepth."""
    cam2ego = torch.eye(4).repeat(1, 6, 1, 1)
    for camera in range(6):
        yaw = torch.tensor(camera * 3.14159 / 3)
        turned = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        about = torch.tensor([[yaw.cos(), -yaw.sin(), 0], [yaw.sin(), yaw.cos(), 0], [0, 0, 1]])
        cam2ego[0, camera, :3, :3] = about @ turned
    intrinsics = torch.tensor([[560.0, 0, width / 2], [0, 560, 128], [0, 0, 1]]).repeat(1, 6, 1, 1)
    cameras = Cameras(intrinsics, cam2ego)
    module = LiftSplat(BevGrid((-RANGE, RANGE), (-RANGE, RANGE), 0.8), DepthBins(1.0, 60.0, 1.0), (256, width), 16)
    cells = module.cells(cameras)
    logits, features = torch.rand(1, 6, 59, 16, width // 16), torch.rand(1, 6, channels, 16, width // 16)
    return lambda: module(logits, features, cameras, cells)


def measured(steps: dict[str, Step], rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of each: the median of what passed, rounds in turns, and the least processor time, which other programs sway less."""
    turns, processor = Turns(), dict.fromkeys(steps, float("inf"))

    def timed(name: str, step: Step) -> None:
        started = time.process_time()
        step()
        processor[name] = min(processor[name], time.process_time() - started)

    with torch.no_grad():
        for number in range(rounds + 1):  # the first warms up
            if number == 1:
                turns = Turns()
            turns.round({name: partial(timed, name, step) for name, step in steps.items()}, number)
    return {name: (round(1000 * turns.median(name), 2), round(1000 * processor[name], 2)) for name in steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    rows: dict[str, tuple[float, float]] = {}
    whole = pillar_steps(120_000, 0.2) | {"suppress": nms_step(500)}
    rows |= {f"{name}, 120 000 points, 0.2 m": value for name, value in measured(whole, options.rounds).items()}
    rows["the three together"] = tuple(round(sum(column), 2) for column in zip(*rows.values(), strict=True))
    growth = {f"voxelise, {count:,} points": pillar_steps(count, 0.2)["voxelise"] for count in (30_000, 60_000, 120_000, 240_000)}
    growth |= {f"suppress, {count} boxes": nms_step(count) for count in (250, 500, 1000)}
    growth |= {f"lift-splat, 256 x {width}": splat_step(width) for width in (352, 704, 1408)}
    rows |= measured(growth, options.rounds)
    for channels in (16, 64):
        rows |= {f"{name}, {channels} channels": value for name, value in measured(sparse_steps(60_000, channels), options.rounds).items()}
    encoder, points, sample = MeanVoxelEncoder(), frame(120_000), torch.zeros(120_000, dtype=torch.int64)
    voxels = voxelize(points, sample, 1, VoxelGrid((-RANGE, -RANGE, -5.0), (RANGE, RANGE, 3.0), (0.1, 0.1, 0.2)))
    rows |= measured({"mean voxel encoder, 120 000 points": lambda: encoder(points, voxels)}, options.rounds)
    about = setting(options.note) | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    show("Point clouds", ["what", "ms", "processor ms"], [[name, f"{wall:.2f}", f"{cpu:.2f}"] for name, (wall, cpu) in rows.items()], about)
    print(f"the three together {verdict(rows['the three together'][0], 60, at_most=True)} ms")
    keep("points", [{"what": name, "ms": wall, "processor_ms": cpu} for name, (wall, cpu) in rows.items()], about)


if __name__ == "__main__":
    main()
