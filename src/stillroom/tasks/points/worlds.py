"""Streets made up from a seed: boxes on a plane, a lidar that turns, cameras all around, things that drive and walk.

Everything is exact, so that what a reader, a projection, a flow or a label says can be compared with the truth: which object each point and
each pixel shows, how every point moves, where every box is at every time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from stillroom.errors import InputError, at_least
from stillroom.tasks.points.frames import Frame, View, boxes_of
from stillroom.tasks.points.raycast import GROUND, NOTHING, Hits, cast, overlapping, pinhole_window, pixel_rays, spinning_window

COLUMNS = ("x", "y", "z", "intensity", "ring")
SENSOR = np.array([0.0, 0.0, 1.8])  # the lidar, and the cameras beside it
_TRIES = 40  # places that are tried for an object before it is given up
_FREE = 2.5  # metres around the vehicle
_LEAST_POINTS = 3  # of an object that is annotated


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Args:
        size: mean length, width and height in metres.
        spread: of each side, as a share.
        hue: where its colours lie on the wheel, in [0, 1); negative for any.
        speed: metres per second, least and most, of those that move.
        moving: share of them that move.
        paint: which darker bands it has: "car" (windows and wheels), "person" (trousers), "plain".
    """

    size: tuple[float, float, float]
    spread: float = 0.1
    hue: float = -1.0
    speed: tuple[float, float] = (0.0, 0.0)
    moving: float = 0.0
    paint: str = "plain"


CAR = Kind((4.2, 1.9, 1.6), 0.1, 0.6, (4.0, 8.0), 0.5, "car")
VAN = Kind((5.5, 2.2, 2.4), 0.1, 0.1, (4.0, 7.0), 0.4, "car")
PEDESTRIAN = Kind((0.8, 0.8, 1.8), 0.12, 0.9, (1.2, 1.6), 0.6, "person")
CYCLIST = Kind((1.8, 0.7, 1.7), 0.1, 0.35, (3.0, 5.0), 0.8, "person")

# What is not annotated: buildings, poles, crowns of trees, low walls and fences that may be taken for objects.
BACKGROUND: Mapping[str, Kind] = {
    "wall": Kind((14.0, 0.6, 4.5), 0.3),
    "pole": Kind((0.3, 0.3, 4.0), 0.3),
    "crown": Kind((2.4, 2.4, 2.0), 0.3, 0.3),
    "low wall": Kind((3.0, 0.5, 0.9), 0.4),
    "fence": Kind((6.0, 0.15, 1.3), 0.3),
}


@dataclass(frozen=True)
class WorldSpec:
    """What streets are like.

    Args:
        classes: what is annotated, by name.
        objects: how many of them in a scene, least and most.
        background: how many of each kind of `BACKGROUND`, least and most.
        reach: metres ahead, behind and to the sides in which objects are placed.
        beams, azimuths: rays of the lidar, from -25 to 5 degrees and all around.
        cameras: how many, evenly around, the first ahead; 0 for none.
        image_size: height and width of their pictures in pixels.
        field_of_view: degrees across a picture.
        frames: of a sequence.
        step: seconds between them.
        ego_speed: metres per second, least and most.

    Raises:
        InputError: a number that cannot be used.
    """

    classes: Mapping[str, Kind] = field(default_factory=lambda: {"car": CAR, "pedestrian": PEDESTRIAN, "cyclist": CYCLIST})
    objects: tuple[int, int] = (4, 12)
    background: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {"wall": (2, 4), "pole": (2, 6), "crown": (1, 3), "low wall": (1, 4), "fence": (0, 2)}
    )
    reach: float = 24.0
    beams: int = 16
    azimuths: int = 180
    cameras: int = 0
    image_size: tuple[int, int] = (48, 96)
    field_of_view: float = 90.0
    frames: int = 1
    step: float = 0.2
    ego_speed: tuple[float, float] = (0.0, 6.0)

    def __post_init__(self) -> None:
        for name in ("beams", "azimuths", "frames"):
            at_least(name, getattr(self, name), 1)
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise InputError("objects", list(self.objects), "two numbers of at least 0, the smaller first")
        if not 10 < self.field_of_view < 170:
            raise InputError("field_of_view", self.field_of_view, "degrees between 10 and 170")


@dataclass(frozen=True)
class _Things:
    """The objects of a world, M of them."""

    kinds: tuple[str, ...]
    boxes: np.ndarray  # [M, 7], at time 0
    speeds: np.ndarray  # [M]
    turns: np.ndarray  # [M], radians per second
    colours: np.ndarray  # [M, 6, 3], of the faces -x +x -y +y -z +z
    albedo: np.ndarray  # [M], of the lidar's light


class DrivingWorld:
    """A street and what a vehicle sees in it; the same bytes for the same seed.

    Args:
        seed: one number, or several.
        spec: what it is like.

    Attributes:
        kinds: of each object, its name; `Frame.instances` numbers them.
    """

    def __init__(self, seed: int | tuple[int, ...], spec: WorldSpec | None = None) -> None:
        self.seed, self.spec = seed, spec or WorldSpec()
        self._random = np.random.default_rng(seed)
        speed = self._random.uniform(*self.spec.ego_speed)
        self._ego = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]), np.array([speed]), self._random.normal(0, 0.05, 1)
        self._things = self._placed()
        self.kinds = self._things.kinds
        light = self._random.normal(size=3) + np.array([0, 0, 1.5])
        self._light = light / np.linalg.norm(light)
        self._exposure = float(self._random.uniform(0.85, 1.15))

    # What there is ------------------------------------------------------------------------------------------------------------------

    def boxes(self, index: int) -> np.ndarray:
        """All boxes at a frame's time, in the coordinates of the vehicle then, float64 [M, 9]; index may lie beyond the sequence."""
        time = index * self.spec.step
        world = _moved(self._things.boxes, self._things.speeds, self._things.turns, time)
        velocity = self._things.speeds[:, None] * np.stack((np.cos(world[:, 6]), np.sin(world[:, 6])), 1)
        pose = self.ego2global(index)
        turn = pose[:3, :3]
        there = (world[:, :3] - pose[:3, 3]) @ turn
        yaw = _wrapped(world[:, 6] - np.arctan2(turn[1, 0], turn[0, 0]))
        return np.concatenate((there, world[:, 3:6], yaw[:, None], velocity @ turn[:2, :2]), 1)

    def ego2global(self, index: int) -> np.ndarray:
        """The vehicle's pose at a frame's time, [4, 4]."""
        box, speed, turn = self._ego
        x, y, _, _, _, _, yaw = _moved(box, speed, turn, index * self.spec.step)[0]
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        pose[:2, 3] = x, y
        return pose

    def _placed(self) -> _Things:
        random, spec = self._random, self.spec
        names = [name for name in spec.background for _ in range(_between(random, spec.background[name]))]
        classes = list(spec.classes)
        names += [classes[k] for k in random.integers(len(classes), size=_between(random, spec.objects))]
        times = np.arange(spec.frames) * spec.step
        ego = np.concatenate([_moved(*self._ego, time) for time in times])
        kinds, boxes, speeds, turns, taken = [], [], [], [], np.zeros((0, len(times), 7))
        for name in names:
            kind = spec.classes.get(name) or BACKGROUND[name]
            size = np.array(kind.size) * np.exp(random.normal(0, kind.spread, 3).clip(-2 * kind.spread, 2 * kind.spread))
            moves = name in spec.classes and random.random() < kind.moving
            speed = random.uniform(*kind.speed) if moves else 0.0
            turn = random.normal(0, 0.08) if moves else 0.0
            for _ in range(_TRIES):
                x, y = random.uniform(-spec.reach, spec.reach, 2)
                yaw = random.uniform(-np.pi, np.pi) if name in spec.classes else random.integers(2) * np.pi / 2 + random.normal(0, 0.1)
                bottom = random.uniform(2.0, 3.5) if name == "crown" else 0.0
                box = np.array([[x, y, bottom + size[2] / 2, *size, yaw]])
                path = np.concatenate([_moved(box, np.array([speed]), np.array([turn]), time) for time in times])
                if self._free(path, taken, ego):
                    kinds.append(name)
                    boxes.append(box[0])
                    speeds.append(speed)
                    turns.append(turn)
                    taken = np.concatenate((taken, path[None]))
                    break
        hues = [(spec.classes.get(name) or BACKGROUND[name]).hue for name in kinds]
        colours = np.array([_colours(random, hue) for hue in hues]).reshape(-1, 6, 3)
        albedo = random.uniform(0.15, 0.9, len(kinds))
        placed = np.array(boxes).reshape(-1, 7)
        return _Things(tuple(kinds), placed, np.array(speeds), np.array(turns), colours, albedo)

    def _free(self, path: np.ndarray, taken: np.ndarray, ego: np.ndarray) -> bool:
        """Whether nothing is met on the way, [T, 7], neither the other things, [M, T, 7], nor the vehicle, [T, 7]."""
        still = len(path) == 1 or not np.ptp(path[:, :2], axis=0).any()
        for number, (mine, vehicle) in enumerate(zip(path, ego, strict=True)):
            around = np.array([[*vehicle[:2], 2 * _FREE, 2 * _FREE, 0.0]])
            flat = mine[None][:, [0, 1, 3, 4, 6]]
            others = np.concatenate((taken[:, number][:, [0, 1, 3, 4, 6]], around)) if not still or not number else around
            if overlapping(flat, others, 0.5).any():
                return False
            if still and number:  # it stands: what moves was looked at where it goes
                moving = taken[:, number][:, [0, 1, 3, 4, 6]]
                if len(moving) and overlapping(flat, moving, 0.5).any():
                    return False
        return True

    # What is seen -------------------------------------------------------------------------------------------------------------------

    def frames(self) -> list[Frame]:
        """The whole sequence."""
        return [self.frame(index) for index in range(self.spec.frames)]

    def frame(self, index: int = 0) -> Frame:
        """What is seen at one time; every frame has randomness of its own, so that they can be asked for in any order."""
        seed = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        random = np.random.default_rng((*seed, 1, index))
        boxes = self.boxes(index)
        points, instances, true = self._lidar(boxes, random)
        views = tuple(self._view(number, boxes, index, random) for number in range(self.spec.cameras))
        classes = list(self.spec.classes)
        label_M = np.array([classes.index(kind) if kind in classes else -1 for kind in self.kinds], np.int64)
        count_M = np.bincount(instances[instances >= 0], minlength=len(self.kinds))
        shown = np.flatnonzero((label_M >= 0) & (count_M >= _LEAST_POINTS))
        return Frame(
            points=points,
            columns=COLUMNS,
            boxes=boxes_of(boxes[shown]),
            labels=label_M[shown],
            about={"points": count_M[shown], "track": shown, "moving": self._things.speeds[shown] > 0},
            point_labels=np.where(instances >= 0, label_M[instances.clip(0)] if len(label_M) else -1, -1),
            instances=instances,
            flow=self._flow(true, instances, index),
            views=views,
            ego2global=self.ego2global(index),
            time=index * self.spec.step,
            name=f"street {self.seed}, {index}",
            sequence=str(self.seed),
        )

    @cached_property
    def _beams(self) -> np.ndarray:
        """Elevations, radians, rising."""
        return np.deg2rad(np.linspace(-25, 5, self.spec.beams))

    @cached_property
    def _rays(self) -> np.ndarray:
        azimuths = np.arange(self.spec.azimuths) * 2 * np.pi / self.spec.azimuths
        up, around = self._beams[:, None], azimuths[None]
        rays = (np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.broadcast_to(np.sin(up), (len(self._beams), len(azimuths))))
        return np.stack(rays, -1).astype(np.float32)

    def _lidar(self, boxes: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points [N, 5], the object of each, int64 [N], and where they truly are, without the noise of the distance, [N, 3]."""
        hits = cast(SENSOR, self._rays, boxes[:, :7], spinning_window(self._beams, self.spec.azimuths))
        normals = self._normals(hits, boxes)
        cosine = np.abs((normals * self._rays).sum(-1))
        farthest = 2.5 * self.spec.reach
        share = np.clip(np.where(np.isfinite(hits.distance), hits.distance, farthest) / farthest, 0, 1)
        lost = 0.02 + 0.28 * np.maximum(share, (1 - cosine) ** 4)
        kept = (hits.box != NOTHING) & (hits.distance < farthest) & (random.random(hits.box.shape) > lost)
        noise = random.normal(0, 0.02, hits.box.shape)
        albedo = np.where(hits.box >= 0, self._things.albedo[hits.box.clip(0)] if len(boxes) else 0.3, 0.3)
        rings = np.broadcast_to(np.arange(len(self._beams))[:, None], kept.shape)
        true = SENSOR + self._rays[kept] * hits.distance[kept][:, None]
        there = SENSOR + self._rays[kept] * (hits.distance + noise)[kept][:, None]
        points = np.concatenate((there, (albedo * cosine)[kept][:, None], rings[kept][:, None]), 1).astype(np.float32)
        return points, np.where(hits.box[kept] >= 0, hits.box[kept], -1), true

    def _flow(self, true: np.ndarray, instances: np.ndarray, index: int) -> np.ndarray:
        """How each point moves until the next frame, in the coordinates of this one, [N, 3]."""
        now, then = self.boxes(index)[:, :7], self.boxes(index + 1)[:, :7]
        next2now = np.linalg.inv(self.ego2global(index)) @ self.ego2global(index + 1)
        there = then[:, :3] @ next2now[:3, :3].T + next2now[:3, 3]
        turned = then[:, 6] + np.arctan2(next2now[1, 0], next2now[0, 0]) - now[:, 6]
        flow = np.zeros((len(true), 3), np.float32)
        on = np.flatnonzero((instances >= 0) & (self._things.speeds[instances.clip(0)] > 0)) if len(now) else np.zeros(0, np.int64)
        mine = instances[on]
        offset = true[on] - now[mine, :3]
        cos, sin = np.cos(turned[mine]), np.sin(turned[mine])
        moved = np.stack((cos * offset[:, 0] - sin * offset[:, 1], sin * offset[:, 0] + cos * offset[:, 1], offset[:, 2]), 1)
        flow[on] = there[mine] + moved - true[on]
        return flow

    def _normals(self, hits: Hits, boxes: np.ndarray) -> np.ndarray:
        """Of the surface that each ray hit, [rows, columns, 3]; up where it hit no box."""
        normals = np.zeros((*hits.box.shape, 3), np.float32)
        normals[..., 2] = 1
        on = hits.box >= 0
        side = np.sign(np.take_along_axis(hits.local[on], hits.axis[on][:, None], 1))[:, 0]
        yaw = boxes[hits.box[on], 6]
        x = np.where(hits.axis[on] == 0, side, 0)
        y = np.where(hits.axis[on] == 1, side, 0)
        z = np.where(hits.axis[on] == 2, side, 0)
        normals[on] = np.stack((np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y, z), -1)
        return normals

    # Pictures -----------------------------------------------------------------------------------------------------------------------

    def camera(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Intrinsics [3, 3] and cam2ego [4, 4] of a camera."""
        height, width = self.spec.image_size
        focal = width / 2 / np.tan(np.deg2rad(self.spec.field_of_view) / 2)
        intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
        yaw = 2 * np.pi * number / self.spec.cameras
        cam2ego = np.eye(4)
        cam2ego[:3, :3] = [[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1.0, 0]]
        cam2ego[:3, 3] = SENSOR - [0, 0, 0.2]
        return intrinsics, cam2ego

    def _view(self, number: int, boxes: np.ndarray, index: int, random: np.random.Generator) -> View:
        intrinsics, cam2ego = self.camera(number)
        height, width = self.spec.image_size
        rays = pixel_rays(intrinsics, cam2ego, height, width)
        window = pinhole_window(intrinsics, np.linalg.inv(cam2ego), height, width)
        hits = cast(cam2ego[:3, 3], rays, boxes[:, :7], window)
        colour = self._coloured(hits, rays, cam2ego[:3, 3], boxes, index)
        noisy = colour * self._exposure * random.uniform(0.95, 1.05) + random.normal(0, 0.02, colour.shape)
        pixels = (noisy.clip(0, 1) * 255).round().astype(np.uint8)
        depth = np.where(np.isfinite(hits.distance), hits.distance, 0).astype(np.float32)  # rays are of length 1 along the camera's z
        return View(f"camera {number}", pixels, intrinsics, cam2ego, depth=depth, ids=np.where(hits.box >= 0, hits.box, -1))

    def _coloured(self, hits: Hits, rays: np.ndarray, origin: np.ndarray, boxes: np.ndarray, index: int) -> np.ndarray:
        """What the rays show, in [0, 1], [H, W, 3]."""
        up = rays[..., 2] / np.linalg.norm(rays, axis=-1)
        colour = np.array([0.55, 0.7, 0.9]) + 0.25 * (1 - up.clip(0, 1))[..., None] * np.array([0.9, 0.6, 0.2])
        ground = hits.box == GROUND
        pose = self.ego2global(index)
        where = (origin + rays[ground] * hits.distance[ground][:, None]) @ pose[:3, :3].T + pose[:3, 3]
        checker = (np.floor(where[:, 0] / 2) + np.floor(where[:, 1] / 2)) % 2
        colour[ground] = (0.36 + 0.07 * checker)[:, None] * np.array([1.0, 1.0, 1.02])
        on = hits.box >= 0
        if on.any():
            mine, local, axis = hits.box[on], hits.local[on], hits.axis[on]
            positive = np.take_along_axis(local, axis[:, None], 1)[:, 0] > 0
            painted = self._things.colours[mine, 2 * axis + positive] * self._bands(mine, local, axis)[:, None]
            light = (self._normals(hits, boxes)[on] @ self._light_in_vehicle(index)).clip(0)
            colour[on] = painted * (0.4 + 0.6 * light)[:, None]
        return colour

    def _light_in_vehicle(self, index: int) -> np.ndarray:
        return np.asarray(self.ego2global(index)[:3, :3].T @ self._light)

    def _bands(self, boxes: np.ndarray, local: np.ndarray, axis: np.ndarray) -> np.ndarray:
        """How bright each hit is by where it lies on its object [P]: windows, wheels and lamps tell where its front is."""
        x, z = local[:, 0], local[:, 2]
        kind = np.array([(self.spec.classes.get(name) or BACKGROUND[name]).paint for name in self.kinds])[boxes]
        car, person = kind == "car", kind == "person"
        windows = car & (axis != 2) & (z > 0.15) & (z < 0.8) & ((axis == 1) & (np.abs(x) < 0.7) | (axis == 0) & (x > 0))
        wheels = car & (axis == 1) & (z < -0.45) & (np.abs(np.abs(x) - 0.6) < 0.17)
        lamps = car & (axis == 0) & (x < 0) & (np.abs(z) < 0.25) & (np.abs(local[:, 1]) > 0.6)
        trousers = person & (z < -0.1)
        return np.where(windows | wheels, 0.3, np.where(lamps, 1.6, np.where(trousers, 0.5, 1.0)))


def points_only(spec: WorldSpec) -> WorldSpec:
    """The same streets without cameras."""
    return replace(spec, cameras=0)


def _moved(boxes: np.ndarray, speeds: np.ndarray, turns: np.ndarray, time: float) -> np.ndarray:
    """Boxes [M, 7] after `time` seconds of constant speed and turning rate."""
    later = boxes.copy()
    yaw, turned = boxes[:, 6], turns * time
    half = turned / 2
    length = speeds * time * np.sinc(half / np.pi)  # of the chord of the arc
    later[:, 0] += length * np.cos(yaw + half)
    later[:, 1] += length * np.sin(yaw + half)
    later[:, 6] = _wrapped(yaw + turned)
    return later


def _wrapped(yaw: np.ndarray) -> np.ndarray:
    """In [-pi, pi)."""
    return (yaw + np.pi) % (2 * np.pi) - np.pi


def _between(random: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(random.integers(bounds[0], bounds[1] + 1))


def _colours(random: np.random.Generator, hue: float) -> np.ndarray:
    """Of the six faces of an object, [6, 3]: one colour near a hue (or gray and brown, of none), each face a little brighter or darker."""
    if hue < 0:
        base = random.uniform(0.25, 0.75) * np.array([1.0, random.uniform(0.85, 1.0), random.uniform(0.7, 1.0)])
    else:
        turned = (hue + random.normal(0, 0.07)) % 1
        wheel = np.abs((turned * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
        base = random.uniform(0.45, 1.0) * (1 - random.uniform(0.4, 0.9) * (1 - wheel.clip(0, 1)))
    return np.asarray((base * random.uniform(0.85, 1.1, (6, 1))).clip(0, 1))
