"""What features must beat: the pixels themselves, and the same network before it has learnt anything."""

from __future__ import annotations

from torch import nn

from stillroom.engine import Experiment, Trained

PIXELS, START = "pixels", "random"
_SIDE = 16  # pixels at most, so that photographs stay comparable


def references(experiment: Experiment) -> dict[str, Trained]:
    """Both, scored: ``pixels`` (averaged to 16 x 16 where they are more), one for all seeds, and ``random``, the student as it begins."""
    lab, data = experiment.lab, experiment.data
    side = min(_SIDE, data.example_inputs().shape[-1])
    lab.begin()
    with lab.shared():
        shrunk = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten())
        pixels = lab.evaluate(shrunk, data, name=PIXELS, model=f"pixels ({side} × {side})")
    built = experiment.network(experiment.networks.student, "student")
    begun = "random numbers" if built.weights is None else f"the weights of {built.weights}"
    return {PIXELS: pixels, START: lab.evaluate(built.network, data, name=START, model=f"{built.spec} ({begun})")}
