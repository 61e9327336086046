"""The raster seen from above, and the list of classes: two small values that every module takes, so that neither can drift apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.errors import InputError


@dataclass(frozen=True)
class BevGrid:
    """A raster of square cells: cell (row r, column c) covers [x0 + c a, x0 + (c+1) a) x [y0 + r a, y0 + (r+1) a).

    Args:
        x_range, y_range: (least, most), metres; a whole number of cells apart.
        cell: a, the side of a cell in metres.

    Raises:
        InputError: a range is empty, or no whole number of cells.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    cell: float

    def __post_init__(self) -> None:
        if not self.cell > 0:
            raise InputError("cell", self.cell, "a side above 0 metres")
        for name, (low, high) in (("x_range", self.x_range), ("y_range", self.y_range)):
            cells = (high - low) / self.cell
            if not cells > 0.5 or abs(cells - round(cells)) > 1e-3:
                raise InputError(name, (low, high), f"a range of a whole number of cells of {self.cell:g} m, the lower bound first")

    @property
    def nx(self) -> int:
        """Columns."""
        return round((self.x_range[1] - self.x_range[0]) / self.cell)

    @property
    def ny(self) -> int:
        """Rows."""
        return round((self.y_range[1] - self.y_range[0]) / self.cell)

    @property
    def origin(self) -> tuple[float, float]:
        """The lower corner (x0, y0), metres."""
        return self.x_range[0], self.y_range[0]

    def coarser(self, stride: float) -> BevGrid:
        """The grid of a map whose cells are `stride` times as large (or as small, below 1)."""
        return BevGrid(self.x_range, self.y_range, self.cell * stride)

    def to_cells(self, xy: Tensor) -> Tensor:
        """Metres [..., 2] -> continuous (column, row) [..., 2]; the centre of cell (r, c) is (c + 0.5, r + 0.5)."""
        return (xy - xy.new_tensor(self.origin)) / self.cell

    def inside(self, xy: Tensor) -> Tensor:
        """Which of the positions [..., 2] lie in the raster: bool [...]; not those that are no number."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        x, y = xy.unbind(-1)
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)

    def positions(self, sample: str = "center", *, device: torch.device | None = None) -> Tensor:
        """One position per cell, metres: [ny, nx, 2] (x, y).

        Args:
            sample: "center" of the cell, or its lower "corner" (as some released code samples).
            device: where the answer lies.

        Raises:
            InputError: another `sample`.
        """
        if sample not in ("center", "corner"):
            raise InputError("sample", sample, "center or corner")
        shift = 0.5 if sample == "center" else 0.0
        x = self.x_range[0] + (torch.arange(self.nx, device=device) + shift) * self.cell
        y = self.y_range[0] + (torch.arange(self.ny, device=device) + shift) * self.cell
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


@dataclass(frozen=True)
class ClassList:
    """The classes of a detector, in order, and their groups.

    Args:
        names: the classes; a label is a place in this tuple.
        tasks: groups of consecutive classes that share a set of head branches; by default one group.
        radius: per class the distance from the ego, metres, up to which it is scored; by default no limit.

    Raises:
        InputError: a name stands twice, the groups are not the names in their order, or `radius` has another length.
    """

    names: tuple[str, ...]
    tasks: tuple[tuple[str, ...], ...] = ()
    radius: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise InputError("names", self.names, "one or more class names, each once")
        object.__setattr__(self, "tasks", self.tasks or (self.names,))
        object.__setattr__(self, "radius", self.radius or (float("inf"),) * len(self.names))
        if tuple(name for task in self.tasks for name in task) != self.names:
            raise InputError("tasks", self.tasks, f"groups of {self.names} in this order")
        if len(self.radius) != len(self.names):
            raise InputError("radius", self.radius, f"{len(self.names)} distances, one per class")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> list[int]:
        """Classes per group."""
        return [len(task) for task in self.tasks]

    @property
    def first(self) -> list[int]:
        """The label of each group's first class."""
        return [sum(self.sizes[:place]) for place in range(len(self.tasks))]


NUSCENES = ClassList(
    names=(
        "car",
        "truck",
        "construction_vehicle",
        "bus",
        "trailer",
        "barrier",
        "motorcycle",
        "bicycle",
        "pedestrian",
        "traffic_cone",
    ),
    tasks=(
        ("car",),
        ("truck", "construction_vehicle"),
        ("bus", "trailer"),
        ("barrier",),
        ("motorcycle", "bicycle"),
        ("pedestrian", "traffic_cone"),
    ),
    radius=(50.0, 50.0, 50.0, 50.0, 50.0, 30.0, 40.0, 40.0, 40.0, 30.0),
)
KITTI = ClassList(names=("Car", "Pedestrian", "Cyclist"))
