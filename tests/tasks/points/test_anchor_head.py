"""The head of anchors: who stands for what, codes there and back, and which way a box faces."""

from __future__ import annotations

import math

import torch

from stillroom.tasks.points.anchor_head import AnchorHead, residuals
from stillroom.tasks.points.grid import BevGrid, ClassList

GRID = BevGrid((-8.0, 8.0), (-4.0, 4.0), 0.25)
BOXES = torch.tensor([[1.3, -2.0, 0.2, 4.2, 1.7, 1.5, 2.9], [5.0, 2.0, 0.3, 0.8, 0.6, 1.7, -1.6], [-5.0, 2.0, 0.0, 4.0, 1.6, 1.5, 1.6]])
LABELS = torch.tensor([0, 1, 0])


def head(cell: float = 0.25) -> AnchorHead:
    torch.manual_seed(0)
    return AnchorHead(8, ClassList(("car", "pedestrian")), BevGrid(GRID.x_range, GRID.y_range, cell))


def test_anchors_stand_for_objects_of_their_class_and_their_codes_come_back() -> None:
    made = head()
    assigned = made.assigned(BOXES, LABELS)
    chosen = (assigned >= 0).nonzero().squeeze(1)
    assert assigned[chosen].unique().tolist() == [0, 1, 2]
    kind = chosen % made.kinds
    assert torch.equal(kind // 2, LABELS[assigned[chosen]])
    assert set(kind[assigned[chosen] == 2].tolist()) == {1}  # across
    codes, directions = torch.zeros(len(assigned), 7), torch.zeros(len(assigned), 2)
    codes[chosen] = residuals(BOXES[assigned[chosen]], made.anchors[chosen])
    facing = ((BOXES[assigned[chosen], 6] - math.pi / 4) % (2 * math.pi) / math.pi).long()
    directions[chosen, facing] = 1
    back = made.boxes(codes, directions)[chosen] - BOXES[assigned[chosen]]
    back[:, 6] = torch.atan2(back[:, 6].sin(), back[:, 6].cos())
    assert back.abs().max() < 1e-5
    odd = torch.cat((BOXES, torch.full((1, 7), torch.nan), torch.zeros(1, 7)))
    assert torch.equal(made.assigned(odd, torch.tensor([0, 1, 0, 0, 0])), assigned)


def test_it_learns_a_frame_by_heart() -> None:
    made = head(0.5)
    neck = torch.zeros(2, 8, made.grid.ny, made.grid.nx)
    neck[:, 0] = 1
    neck[0, 1:] = torch.rand(7, made.grid.ny, made.grid.nx)
    wide = torch.nn.Conv2d(8, 8, 3, padding=1)
    optimizer = torch.optim.Adam([*made.parameters(), *wide.parameters()], lr=0.05)
    boxes, labels = [BOXES, torch.zeros(0, 7)], [LABELS, torch.zeros(0, dtype=torch.int64)]
    first = None
    for _ in range(30):
        losses = made.losses(made(wide(neck).relu()), boxes, labels)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        first = first or {name: float(loss.detach()) for name, loss in losses.items()}
    assert all(float(losses[name].detach()) < first[name] for name in ("heatmap", "box"))
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert len(made.detect(made(neck))) == 2


def test_an_anchor_of_another_resolution_is_of_the_same_kind_at_the_same_place() -> None:
    fine, coarse = head(0.25), head(0.5)
    index = torch.arange(0, len(fine.anchors), 37)
    there = fine.counterpart(index, coarse)
    assert torch.equal(there % coarse.kinds, index % fine.kinds)
    assert (fine.anchors[index, :2] - coarse.anchors[there, :2]).abs().max() <= 0.25
