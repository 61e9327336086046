"""Plain training on nuclei, and how every network for them answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.engine import Distiller, Losses
from stillroom.errors import InputError
from stillroom.tasks.images.sliding import over_windows
from stillroom.tasks.nuclei.instances import Outlining, instances_of, painted
from stillroom.tasks.nuclei.losses import class_loss, distance_loss
from stillroom.tasks.nuclei.maps import NucleiBatch, NucleiMap, WholeBatch
from stillroom.tasks.nuclei.networks import NucleiNetwork


def found_nuclei(network: NucleiNetwork, images: Sequence[Tensor], window: int, stride: int, outlining: Outlining) -> list[NucleiMap]:
    """The nuclei of each picture, by sliding windows whose probabilities and distances are averaged.

    Args:
        network: in eval mode.
        images: [3, H, W] each, normalised, of any sizes.
        window, stride: see `over_windows`.
        outlining: how nuclei are made of the maps.

    Raises:
        InputError: answers that are no numbers.
    """

    def answers(batch_B3hw: Tensor) -> Tensor:
        maps = network(batch_B3hw)
        return torch.cat((maps.nuclei.float().softmax(1)[:, 1:], maps.distances.float(), maps.types.float().softmax(1)), 1)

    found = []
    for maps_KHW in over_windows(answers, images, window, stride):
        if not bool(maps_KHW.isfinite().all()):
            raise InputError("student", "a network whose answers are no numbers", "finite weights")
        outlined_3HW = maps_KHW[:3].double().cpu().numpy()
        instances_HW = instances_of(outlined_3HW[0], outlined_3HW[1:], outlining)
        found.append(NucleiMap(instances_HW, painted(instances_HW, maps_KHW[3:].argmax(0).cpu().numpy())))
    return found


class NucleiDistiller(Distiller):
    """A distiller whose student is measured on whole pictures.

    Args:
        student: a `NucleiNetwork`.
    """

    student: NucleiNetwork

    def predict(self, batch: WholeBatch) -> list[NucleiMap]:
        """The nuclei of each picture."""
        return found_nuclei(self.student, batch.images, batch.window, batch.stride, batch.outlining)


class Supervised(NucleiDistiller):
    """A network trained on labelled nuclei: (CE + Dice) of nuclei and of types, MSE and MSGE of distances."""

    def training_data(self, data: Any) -> Any:
        """As they are.

        Raises:
            InputError: pictures whose nuclei are not known.
        """
        if unknown := int((~data.training_images.labelled).sum()):
            raise InputError("data", f"{unknown} training pictures without labels", "labels of all of them, to train on")
        return data

    def losses(self, batch: NucleiBatch) -> Losses:
        """A task term for each branch."""
        maps = self.student(batch.images)
        return Losses(
            task={
                "nuclei": class_loss(maps.nuclei, batch.nuclei),
                "distances": distance_loss(maps.distances, batch.distances, batch.nuclei),
                "types": class_loss(maps.types, batch.types),
            }
        )
