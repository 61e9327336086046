"""Labels of a sequence (A): boxes, tracks and, with a vision-language model, names of whatever takes part in traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from stillroom.errors import InputError
from stillroom.methods.upvl.amodal import constrained_icp, turn
from stillroom.methods.upvl.flow import FlowSpec, Problem, local_flow, static_points
from stillroom.methods.upvl.proposals import box_along, clusters, fitted_box, ground_height, judged, space_time
from stillroom.methods.upvl.tracking import TrackerSpec, tracked
from stillroom.tasks.points.frames import Frame, cleaned

# A tenth of the time of the library's default, `FlowSpec()`, and nearly as near to the truth.
QUICK = FlowSpec(layers=3, width=32, steps=100, patience=30, most=32)
_FASTEST = 70.0  # metres per second that a vehicle drives
_ON_GROUND = 0.25  # metres above the ground that still are ground
_ABOVE = 6.0  # metres above the ground, above which nothing takes part in traffic
_OWN = 1.5  # metres around the sensor, in which the vehicle itself is seen
_AROUND = 3  # observations on either side that tell where something heads
_TOLD = 2.0  # metres that it must have moved for that
_ODD = 2.0  # standard deviations of the distance to the neighbours that make a point an outlier
_REGISTERED = 300  # points of an observation, or a few more, that are registered: a turn and a shift need no more
_ALONE = 0.9  # share of static points from which a cluster is not asked how it moves


@dataclass(frozen=True)
class LabelSpec:
    """How sequences are labelled.

    Args:
        reach: metres around the sensor that are looked at.
        cell: metres: of the points in such a cube one is clustered, for all.
        eps, eps_far: metres between neighbours in a cluster, at the sensor and at 75 m.
        min_samples: points that make a core.
        frame_offset: metres that a frame is apart in clustering.
        context: frames before and behind that are clustered together.
        moving: metres per second from which something moves.
        contrast: a point is background if a background prompt is nearer to it than "object" and "thing" are; else by a threshold.
        background_ratio: share of background points from which what stands is dropped.
        least_points, flattest, tallest, longest, highest: of a cluster in its frame: at least so many points, at least and at most so many
            metres of height, at most so many of either side, and its bottom at most so high above the ground.
        hits: frames in which an object must be found.
        snap: metres above the ground at which a box's bottom is brought to it.
        flow, tracker: how flow is fitted, and how boxes are followed.
    """

    reach: float = 75.0
    cell: float = 0.2
    eps: float = 0.8
    eps_far: float = 1.4
    min_samples: int = 5
    frame_offset: float = 0.3
    context: int = 1
    moving: float = 1.0
    contrast: bool = False
    background_ratio: float = 0.99
    least_points: int = 10
    flattest: float = 0.25
    tallest: float = 4.5
    longest: float = 20.0
    highest: float = 1.5
    hits: int = 3
    snap: float = 0.3
    flow: FlowSpec = field(default_factory=lambda: QUICK)
    tracker: TrackerSpec = field(default_factory=TrackerSpec)

    def eps_at(self, distance: np.ndarray) -> np.ndarray:
        """Metres between neighbours at so many metres from the sensor."""
        return self.eps + (self.eps_far - self.eps) * np.clip(distance / 75.0, 0, 1)


class Scan(NamedTuple):
    """What of a frame is no ground, N points of which M stand for all.

    Attributes:
        points: [N, 3], in the vehicle's coordinates.
        ground: [N], height of the ground below each.
        chosen: int64 [M], rows of those that are clustered.
        stands_for: int64 [N], which of the M each belongs to.
        weight: [M], how many each stands for.
        pose: [4, 4], to the world.
        features: [M, C], of the vision-language model, zero where no camera sees; None without one.
        seen, background: bool [M]; without a model everything counts as seen, nothing as background.
    """

    points: np.ndarray
    ground: np.ndarray
    chosen: np.ndarray
    stands_for: np.ndarray
    weight: np.ndarray
    pose: np.ndarray
    features: np.ndarray | None
    seen: np.ndarray
    background: np.ndarray


def scan_of(frame: Frame, pose: np.ndarray, spec: LabelSpec, features: Callable[[np.ndarray], np.ndarray] | None = None) -> Scan:
    """A frame without ground, the vehicle itself and what is far or high.

    Args:
        frame: with or without points.
        pose: of the vehicle.
        spec: how far is far.
        features: makes those of points [N, 3]; zero rows where no camera sees.
    """
    points = cleaned(frame).frame.points[:, :3].astype(np.float64)
    distance = np.hypot(points[:, 0], points[:, 1])
    points = points[(distance < spec.reach) & (distance > _OWN)]
    ground = ground_height(points)
    above = points[:, 2] - ground
    kept = (above > _ON_GROUND) & (above < _ABOVE)
    points, ground = points[kept], ground[kept]
    cells = np.floor(points / spec.cell).astype(np.int64)
    _, chosen, stands_for, weight = np.unique(cells, axis=0, return_index=True, return_inverse=True, return_counts=True)
    told = None if features is None else features(points[chosen])
    seen = np.ones(len(chosen), bool) if told is None else np.abs(told).sum(1) > 0
    return Scan(points, ground, chosen, stands_for.reshape(-1), weight, pose, told, seen, np.zeros(len(chosen), bool))


def transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points [N, 3] in other coordinates."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


class Motion(NamedTuple):
    """Of the M points of a scan: metres that each moves until the next frame [M, 3], speed of what it belongs to [M], failed fits."""

    flow: np.ndarray
    speed: np.ndarray
    diverged: int = 0


def scan_motions(pairs: Sequence[tuple[Scan, Scan]], interval: float, spec: LabelSpec) -> list[Motion]:
    """How the M points of scans that stand for all move until the next one, in the coordinates of the first of each pair.

    What is clustered together moves together: a cluster nearly all of whose points are met by the next frame stands still, every other
    one is fitted whole. (A flank that slides along itself is met by the next frame, too; left out point by point, as the static part of a
    moving car, it would be missing in the fit.)
    """
    problems = [_problem(now, then, spec) for now, then in pairs]
    motions = []
    for problem, found in zip(problems, local_flow(problems, interval, spec.flow), strict=True):
        speed = np.zeros(len(problem.points))
        for k in range(int(problem.cluster.max(initial=-1)) + 1):
            own = problem.cluster == k
            speed[own] = np.linalg.norm(found.flow[own].mean(0)) / interval
        motions.append(Motion(found.flow, speed, found.diverged))
    return motions


def _problem(now: Scan, then: Scan, spec: LabelSpec) -> Problem:
    points = now.points[now.chosen]
    following = transformed(then.points, np.linalg.inv(now.pose) @ then.pose)
    if len(points) < 2 or not len(following):
        return Problem(points, np.full(len(points), -1), following)
    spacing = cKDTree(now.points).query(points, 2)[0][:, 1]
    near = np.maximum(0.05, spacing)  # a surface that stands is met no nearer than the scanner samples it
    still = static_points(points, following, near=near, radius=0.5)
    label = clusters(points, spec.eps_at(np.hypot(points[:, 0], points[:, 1])), spec.min_samples, now.weight)
    for k in range(int(label.max(initial=-1)) + 1):
        own = label == k
        if still[own].mean() >= _ALONE or np.ptp(points[own, :2], axis=0).max() >= spec.longest:
            label[own] = -1
    kept = np.unique(label[label >= 0])
    return Problem(points, np.where(label >= 0, np.searchsorted(kept, label), -1), following)


def carried(before: Scan, motion: Motion, now: Scan) -> Motion:
    """The motion of the last scan, which none follows: that of the nearest moved point of the one before."""
    points = now.points[now.chosen]
    if not len(points) or not len(before.chosen):
        return Motion(np.zeros((len(points), 3)), np.zeros(len(points)))
    before2now = np.linalg.inv(now.pose) @ before.pose
    apart, nearest = cKDTree(transformed(before.points[before.chosen] + motion.flow, before2now)).query(points)
    near = apart < 0.5
    flow = (motion.flow @ before2now[:3, :3].T)[nearest] * near[:, None]
    return Motion(flow, motion.speed[nearest] * near)


class Proposal(NamedTuple):
    """An object in one frame.

    Attributes:
        frame: which.
        rows: of the scan's points.
        box: [7], of what is visible, in the vehicle's coordinates.
        velocity: [2], of its flow, in the world.
    """

    frame: int
    rows: np.ndarray
    box: np.ndarray
    velocity: np.ndarray


def proposals(scans: Sequence[Scan], motions: Sequence[Motion], at: int, interval: float, spec: LabelSpec) -> list[Proposal]:
    """The objects of one frame, from the points of its neighbours in time and its own."""
    scan = scans[at]
    world2ego = np.linalg.inv(scan.pose)
    points, offset, speed, flow, seen, background, own = [], [], [], [], [], [], []
    for other in range(max(at - spec.context, 0), min(at + spec.context, len(scans) - 1) + 1):
        there, motion, late = scans[other], motions[other], other - at
        moved = there.points[there.chosen] - late * motion.flow  # to this frame's time
        points.append(transformed(moved, world2ego @ there.pose))
        flow.append(motion.flow)
        speed.append(motion.speed)
        offset.append(np.full(len(moved), late))
        seen.append(there.seen)
        background.append(there.background)
        own.append(np.full(len(moved), late == 0))
    xyz, when, fast = np.concatenate(points), np.concatenate(offset), np.concatenate(speed)
    timed = space_time(xyz, when, spec.frame_offset)
    eps = spec.eps_at(np.hypot(xyz[:, 0], xyz[:, 1]))
    weight = np.concatenate([scans[at + int(part[0])].weight for part in offset if len(part)]) if len(xyz) else np.zeros(0)
    label, count = np.full(len(xyz), -1), 0
    for part in (fast >= spec.moving, fast < spec.moving):
        found = clusters(timed[part], eps[part], spec.min_samples, weight[part])
        label[part] = np.where(found >= 0, found + count, -1)
        count += int(found.max(initial=-1)) + 1
    told = judged(label, fast, np.concatenate(seen), np.concatenate(background), moving=spec.moving, ratio=spec.background_ratio)
    here, flow_here = label[np.concatenate(own)], motions[at].flow
    of_points = here[scan.stands_for] if len(here) else np.zeros(0, np.int64)
    answers = []
    for k in np.flatnonzero(told.keep):
        rows = np.flatnonzero(of_points == k)
        if len(rows) < spec.least_points:
            continue
        mean = flow_here[here == k].mean(0)
        mine = scan.points[rows]
        box = box_along(mine, float(np.arctan2(mean[1], mean[0])), keep_heading=True) if told.moving[k] else fitted_box(mine).box
        bottom = box[2] - box[5] / 2 - np.median(scan.ground[rows])
        if spec.flattest <= box[5] <= spec.tallest and box[3:5].max() <= spec.longest and bottom <= spec.highest:
            answers.append(Proposal(at, rows, box, (scan.pose[:3, :3] @ mean)[:2] / interval))
    return answers


@dataclass(frozen=True)
class Track:
    """An object over time.

    Attributes:
        frames: int64 [n], in which it has a box.
        boxes: [n, 9], in the world, whole, with velocity.
        visible: [n, 3], length, width and height of what each frame shows; NaN where it was not found.
        moving: it does.
        hits: frames in which it was found.
        features: [P, C], of the vision-language model, of its points that cameras see; None without one.
    """

    frames: np.ndarray
    boxes: np.ndarray
    visible: np.ndarray
    moving: bool
    hits: int
    features: np.ndarray | None = None

    @property
    def score(self) -> float:
        """In [0, 1]: how often it was found."""
        return min(1.0, self.hits / 10)


def tracks_of(scans: Sequence[Scan], found: Sequence[Proposal], interval: float, spec: LabelSpec) -> list[Track]:
    """Follows the proposals of all frames and gives what it followed whole boxes."""
    if not found:
        return []
    centres = np.array([transformed(one.box[None, :3], scans[one.frame].pose)[0, :2] for one in found])
    detections = np.column_stack((centres, [one.velocity for one in found]))
    followed = tracked(detections, np.array([one.frame for one in found]), interval, spec.tracker)
    answers = []
    for number in np.flatnonzero(followed.hits >= min(spec.hits, len(scans))):
        rows = np.flatnonzero(followed.track == number).tolist()
        own = [found[row] for row in rows]
        speed = np.median([np.linalg.norm(one.velocity) for one in own])
        far = np.linalg.norm(centres[rows[-1]] - centres[rows[0]])
        # flow between two frames is noisy where points are few: what moves has also gone somewhere
        moving = speed >= spec.moving and far >= spec.moving * interval * (own[-1].frame - own[0].frame)
        answers.append(_moving(scans, own, interval, spec) if moving else _standing(scans, own, spec))
    return answers


def _world(scans: Sequence[Scan], one: Proposal) -> np.ndarray:
    return transformed(scans[one.frame].points[one.rows], scans[one.frame].pose)


def _told(
    scans: Sequence[Scan], own: Sequence[Proposal], frames: np.ndarray, boxes: np.ndarray, velocity: np.ndarray, moving: bool
) -> Track:
    size = {one.frame: one.box[3:6] for one in own}
    visible = np.array([size.get(int(frame), np.full(3, np.nan)) for frame in frames])
    features = None
    if scans[0].features is not None:
        rows = [scans[one.frame].features[np.unique(scans[one.frame].stands_for[one.rows])] for one in own]  # type: ignore[index]
        features = np.concatenate(rows)
        features = features[np.abs(features).sum(1) > 0]
    return Track(frames, np.column_stack((boxes, velocity)), visible, moving, len(own), features)


def _standing(scans: Sequence[Scan], own: Sequence[Proposal], spec: LabelSpec) -> Track:
    """One box around all that was seen of it, in every frame from the first to the last."""
    points = without_outliers(np.concatenate([_world(scans, one) for one in own]))
    box = _on_ground(fitted_box(points, trim=0.025).box, _ground(scans, own), spec)
    frames = np.arange(own[0].frame, own[-1].frame + 1)
    return _told(scans, own, frames, np.tile(box, (len(frames), 1)), np.zeros((len(frames), 2)), False)


def _moving(scans: Sequence[Scan], own: Sequence[Proposal], interval: float, spec: LabelSpec) -> Track:
    """Observations registered outwards from the densest onto what was put together so far; its box travels back with them."""
    points = [_world(scans, one) for one in own]
    centres = [cloud.mean(0) for cloud in points]
    densest = int(np.argmax([len(cloud) for cloud in points]))
    whole, placed = points[densest], {densest: (0.0, centres[densest])}
    for order, before in ((range(densest + 1, len(own)), -1), (range(densest - 1, -1, -1), 1)):
        for i in order:
            yaw, shift = placed[i + before]
            late = (own[i].frame - own[i + before].frame) * interval
            travelled = np.append((own[i].velocity + own[i + before].velocity) / 2, 0) * late
            # where the neighbour was put, and from there as far as this one's centre is from where it then was; or, since flow may be
            # too short and its errors add up, right there
            starts = (shift + turn(yaw) @ (centres[i] - travelled - centres[i + before]), shift)
            source = points[i] - centres[i]
            some = source[:: max(1, len(source) // _REGISTERED)]
            fits = [constrained_icp(some, whole, yaw=yaw, shift=start) for start in starts]
            best = int(fits[1].residual < fits[0].residual)
            kept = (fits[best].yaw, fits[best].shift) if fits[best].residual < 0.2 else (yaw, starts[best])
            placed[i] = kept
            whole = np.concatenate((whole, source @ turn(kept[0]).T + kept[1]))
            whole = whole[:: max(1, len(whole) // 4000)]
    yaw = _heading(np.array(centres)[:, :2], densest, whole)
    box = _on_ground(box_along(without_outliers(whole), yaw, trim=0.025, keep_heading=True), _ground(scans, own), spec)
    boxes = []
    for i in range(len(own)):
        turned, shift = placed[i]
        boxes.append([*(turn(-turned) @ (box[:3] - shift) + centres[i]), *box[3:6], box[6] - turned])
    frames = np.array([one.frame for one in own])
    rows = np.array(boxes)
    velocity = np.gradient(rows[:, :2], frames * interval, axis=0) if len(rows) > 1 else np.array([own[0].velocity])
    return _told(scans, own, frames, rows, velocity, True)


def _heading(centres_n2: np.ndarray, at: int, points: np.ndarray) -> float:
    """Where a track heads at one of its observations: as its centre moves around that time; where this is too little to tell, the axis of
    the points (by closeness) that is nearest to it."""
    moved = centres_n2[min(at + _AROUND, len(centres_n2) - 1)] - centres_n2[max(at - _AROUND, 0)]
    yaw = float(np.arctan2(moved[1], moved[0]))
    if np.linalg.norm(moved) < _TOLD:
        axis = fitted_box(points).box[6]
        yaw = axis + round((yaw - axis) / (np.pi / 2)) * np.pi / 2
    return yaw


def _ground(scans: Sequence[Scan], own: Sequence[Proposal]) -> float:
    """Height of the ground below a track, in the world."""
    below = [np.column_stack((scans[one.frame].points[one.rows, :2], scans[one.frame].ground[one.rows])) for one in own]
    return float(np.median(np.concatenate([transformed(rows, scans[one.frame].pose)[:, 2] for rows, one in zip(below, own, strict=True)])))


def _on_ground(box: np.ndarray, ground: float, spec: LabelSpec) -> np.ndarray:
    """A box that stands on the ground, if it nearly does."""
    bottom, top = box[2] - box[5] / 2, box[2] + box[5] / 2
    if bottom - ground < spec.snap + _ON_GROUND and ground < top:  # what is near the ground was taken away with it
        box = box.copy()
        box[2], box[5] = (ground + top) / 2, top - ground
    return box


def without_outliers(points_N3: np.ndarray, neighbours: int = 8) -> np.ndarray:
    """The points whose mean distance to their nearest neighbours is no outlier among these."""
    if len(points_N3) <= neighbours:
        return points_N3
    mean = cKDTree(points_N3).query(points_N3, neighbours + 1)[0][:, 1:].mean(1)
    return points_N3[mean <= mean.mean() + _ODD * mean.std()]


def checked_poses(frames: Sequence[Frame], argument: str = "SEQUENCES") -> tuple[list[np.ndarray], float]:
    """The poses of a sequence, and the seconds from a frame to the next.

    Args:
        frames: of one sequence; their points are not looked at.
        argument: whose they are.

    Raises:
        InputError: a frame has no pose, poses jump, or time runs back.
    """
    name = frames[0].sequence or "the sequence"
    if len(frames) == 1:
        pose = frames[0].ego2global
        return [np.eye(4) if pose is None else pose], 0.1
    poses: list[np.ndarray] = []
    for frame in frames:
        if frame.ego2global is None:
            raise InputError(argument, f"{frame.name or name}, which has no pose", "a pose (ego2global, poses.txt) for every frame")
        poses.append(frame.ego2global)
    steps = np.diff([frame.time for frame in frames])
    if not (steps > 0).all():
        late = int(np.argmin(steps)) + 1
        raise InputError(argument, f"{frames[late].name or name}, whose time is not after the one before it", "times that rise")
    moved = np.linalg.norm(np.diff([pose[:3, 3] for pose in poses], axis=0), axis=1)
    if (moved / steps > _FASTEST).any():
        at = int((moved / steps).argmax()) + 1
        got = f"{frames[at].name or name}, {moved[at - 1]:.1f} m from the frame before it, {steps[at - 1]:.2g} s earlier"
        raise InputError(argument, got, f"poses that do not jump: at most {_FASTEST:g} m/s")
    return poses, float(np.median(steps))
