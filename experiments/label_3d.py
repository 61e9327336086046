"""What label-3d's flow is worth on a pair of frames with known flow, and how many frames a second it labels.

python experiments/label_3d.py flow PAIR          # frames.json and a file of flow, as Argoverse 2's test data
python experiments/label_3d.py speed SEQUENCE     # without a vision-language model
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from stillroom.methods.upvl.flow import FlowSpec
from stillroom.methods.upvl.job import open_sequences
from stillroom.methods.upvl.labelling import LabelSpec, checked_poses, scan_motions, scan_of
from stillroom.methods.upvl.sequence import label_sequence

MOVING = 0.05  # metres between the frames


def flow(place: str) -> None:
    frames = open_sequences(place)
    pair = [frames.frame(index) for index in range(2)]
    if pair[0].flow is None:
        sys.exit("the first frame has no flow")
    poses, interval = checked_poses(pair)
    spec = LabelSpec()
    scans = [scan_of(frame, pose, spec) for frame, pose in zip(pair, poses, strict=True)]
    true = pair[0].flow[cKDTree(pair[0].points[:, :3].astype(np.float64)).query(scans[0].points[scans[0].chosen])[1]]
    moves = np.linalg.norm(true, axis=1) > MOVING
    print(f"{moves.sum()} points move; left where they are they are off by {np.linalg.norm(true[moves], axis=1).mean():.3f} m")
    for name, fitted in (("quick", spec.flow), ("thorough", FlowSpec())):
        began = time.process_time()
        found = scan_motions([(scans[0], scans[1])], interval, replace(spec, flow=fitted))[0].flow
        error = np.linalg.norm(found - true, axis=1)
        close = 100 * (error[moves] < 0.1).mean()
        print(f"{name}: off by {error[moves].mean():.3f} m, {close:.0f} % by less than 0.1 m; what stands by {error[~moves].mean():.3f} m; "
              f"{time.process_time() - began:.1f} s of processor time")  # fmt: skip


def speed(place: str) -> None:
    frames = open_sequences(place)
    first = frames.sequence(0)
    indices = [index for index in range(len(frames)) if frames.sequence(index) == first]
    began, used = time.monotonic(), time.process_time()
    made = label_sequence(frames, indices, None, LabelSpec())
    passed, used = time.monotonic() - began, time.process_time() - used
    print(f"{len(made.tracks)} tracks; {len(indices) / passed:.2f} frames a second, {len(indices) / used:.2f} of processor time")


if __name__ == "__main__":
    {"flow": flow, "speed": speed}[sys.argv[1]](sys.argv[2])
