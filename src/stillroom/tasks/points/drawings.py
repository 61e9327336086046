"""Pictures of frames for people: from above, in the cameras, and clouds seen from several sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from stillroom.tasks.images.page_parts import data_uri
from stillroom.tasks.points.frames import Frame, View
from stillroom.tasks.points.raycast import corners_of

COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#9a6324",
    "#808000",
    "#f032e6",
    "#469990",
    "#800000",
    "#000075",
)
_EDGES = [(0, 1), (0, 2), (0, 4), (3, 1), (3, 2), (3, 7), (5, 1), (5, 4), (5, 7), (6, 2), (6, 4), (6, 7)]  # of the corners of `corners_of`
_FRONT = [4, 5, 7, 6]  # the face at +dx
_NEAR = 0.1  # metres before a camera


def colour_of(label: int) -> str:
    """A colour for a class; gray for none."""
    return "#b0b0b0" if label < 0 else COLOURS[label % len(COLOURS)]


def from_above(
    frame: Frame,
    boxes: np.ndarray,
    labels: np.ndarray,
    reach: Sequence[float],
    *,
    truth: np.ndarray | None = None,
    side: int = 360,
) -> Image.Image:
    """A frame's points seen from above, x upwards, with boxes in the colours of their classes and a stroke where each heads to.

    Args:
        frame: its points are drawn, brighter the higher.
        boxes: [M, 7 or more].
        labels: [M].
        reach: metres, least x, y, z, then most x, y, z.
        truth: boxes that are drawn thin and gray below.
        side: pixels of the longer side.
    """
    (x0, y0, z0), (x1, y1, z1) = reach[:3], reach[3:]
    scale = side / max(x1 - x0, y1 - y0)
    width, height = max(1, round((y1 - y0) * scale)), max(1, round((x1 - x0) * scale))
    canvas = np.full((height, width, 3), 20, np.uint8)
    x, y, z = frame.points[:, :3].T
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    row, column = ((x1 - x[inside]) * scale).astype(int).clip(0, height - 1), ((y1 - y[inside]) * scale).astype(int).clip(0, width - 1)
    bright = (90 + 150 * np.clip((z[inside] - z0) / max(z1 - z0, 1e-6), 0, 1)).astype(np.uint8)
    order = np.argsort(bright)
    canvas[row[order], column[order]] = bright[order, None]
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)

    def outline(box: np.ndarray, colour: str, thick: int) -> None:
        flat = corners_of(box[None, :7])[0][[0, 2, 6, 4], :2]
        pixels = [((y1 - py) * scale, (x1 - px) * scale) for px, py in flat]
        draw.polygon(pixels, outline=colour, width=thick)
        ahead = box[:2] + np.array([np.cos(box[6]), np.sin(box[6])]) * box[3] * 0.8
        draw.line(
            [((y1 - box[1]) * scale, (x1 - box[0]) * scale), ((y1 - ahead[1]) * scale, (x1 - ahead[0]) * scale)], fill=colour, width=1
        )

    for box in truth if truth is not None else []:
        outline(box, "#909090", 1)
    for box, label in zip(boxes, labels, strict=True):
        outline(box, colour_of(int(label)), 2)
    return picture


def in_camera(view: View, boxes: np.ndarray, labels: np.ndarray, *, side: int = 480) -> Image.Image:
    """A picture with the edges of boxes; the front face has a cross. Boxes that reach behind the camera are cut there."""
    picture = Image.fromarray(view.image)
    factor = side / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.BILINEAR if factor < 1 else Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    ego2cam = np.linalg.inv(view.cam2ego)

    def line(a: np.ndarray, b: np.ndarray, colour: str) -> None:
        if max(a[2], b[2]) <= _NEAR:
            return
        if min(a[2], b[2]) < _NEAR:
            cut = a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2])
            a, b = (cut, b) if a[2] < _NEAR else (a, cut)
        ends = []
        for point in (a, b):
            pixel = view.intrinsics @ point
            u, v = view.post[:2, :2] @ (pixel[:2] / pixel[2]) + view.post[:2, 3]
            ends.append((float(np.clip((u + 0.5) * factor, -4e3, 4e3)), float(np.clip((v + 0.5) * factor, -4e3, 4e3))))
        draw.line(ends, fill=colour, width=max(1, round(side / 300)))

    for corners, label in zip(corners_of(boxes[:, :7].astype(np.float64)), labels, strict=True):
        seen = corners @ ego2cam[:3, :3].T + ego2cam[:3, 3]
        edges = [*_EDGES, (_FRONT[0], _FRONT[2]), (_FRONT[1], _FRONT[3])]
        for start, end in edges:
            line(seen[start], seen[end], colour_of(int(label)))
    return picture


def cloud(points: np.ndarray, colours: np.ndarray, *, angles: Sequence[float] = (30.0, 150.0, 270.0), tilt: float = 50.0, side: int = 240,
          cut: float | None = None) -> Image.Image:  # fmt: skip
    """A cloud seen from several sides and from obliquely above, one beside the other.

    Args:
        points: [N, 3].
        colours: uint8 [N, 3].
        angles: degrees from which it is seen.
        tilt: degrees above the horizon.
        side: pixels of each picture.
        cut: leave out what lies higher above the lowest point, metres (a ceiling).
    """
    if cut is not None and len(points):
        low = points[:, 2] < np.quantile(points[:, 2], 0.01) + cut
        points, colours = points[low], colours[low]
    pictures = []
    centre = (points.min(0) + points.max(0)) / 2 if len(points) else np.zeros(3)
    radius = max(float(np.linalg.norm(points - centre, axis=1).max()), 1e-6) if len(points) else 1.0
    for angle in angles:
        around, up = np.deg2rad(angle), np.deg2rad(tilt)
        ahead = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
        right = np.array([-np.sin(around), np.cos(around), 0])
        above = np.cross(ahead, right)
        offset = points - centre
        column = ((offset @ right / radius * 0.95 + 1) * side / 2).astype(int).clip(0, side - 1)
        row = ((1 - offset @ above / radius * 0.95) * side / 2).astype(int).clip(0, side - 1)
        order = np.argsort(offset @ ahead)  # far ones first
        canvas = np.full((side, side, 3), 255, np.uint8)
        for down in (1, 0):  # a point is two by two pixels
            for across in (1, 0):
                canvas[(row[order] + down).clip(0, side - 1), (column[order] + across).clip(0, side - 1)] = colours[order]
        pictures.append(canvas)
    return Image.fromarray(np.concatenate(pictures, 1))


def label_colours(labels: np.ndarray) -> np.ndarray:
    """A colour for each point by its class, uint8 [N, 3]; gray for -1."""
    table = np.array([[int(colour_of(k)[at : at + 2], 16) for at in (1, 3, 5)] for k in range(-1, max(int(labels.max(initial=-1)) + 1, 1))])
    return np.asarray(table[labels + 1], np.uint8)


def figure_of(picture: Image.Image, said: str) -> str:
    """A picture of a page with its caption."""
    caption = escape(said)
    return f'<figure><img src="{data_uri(picture, "JPEG")}" alt="{caption}" loading="lazy" style="aspect-ratio:auto">' \
           f"<figcaption>{caption}</figcaption></figure>"  # fmt: skip


def gallery(figures: Sequence[str], columns: int) -> str:
    """Figures in rows of so many."""
    return f'<div class="gallery" style="grid-template-columns:repeat({columns},minmax(0,1fr))">{"".join(figures)}</div>'


def legend(names: Mapping[int, str]) -> str:
    """Which colour means which class."""
    return " &emsp;".join(f'<span style="color:{colour_of(k)}">■</span>&nbsp;{escape(name)}' for k, name in names.items())
