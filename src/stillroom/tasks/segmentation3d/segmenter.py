"""The network that is left: a backbone, and the centres of clusters that say what each super-voxel is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.engine import Distiller
from stillroom.tasks.points.frames import FrameInputs
from stillroom.tasks.segmentation3d.clustering import pseudo_labels, unit

if TYPE_CHECKING:
    from stillroom.tasks.segmentation3d.data import SceneBatch


class SceneSegmenter(nn.Module):
    """Features of points, and the centres of clusters among them.

    Args:
        backbone: from inputs to features [M, C], with `out_channels`.
        clusters: K.
        aligned: width that features are brought to by a linear map (of the 2D teacher's); 0 for as they are.

    Attributes:
        centres: [K, C] unit rows, a buffer.
        settled: whether the centres were found; until then features alone are its answer.
    """

    centres: Tensor
    settled: Tensor

    def __init__(self, backbone: Any, clusters: int, aligned: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.align: nn.Module = nn.Linear(backbone.out_channels, aligned, bias=False) if aligned else nn.Identity()
        self.aligned, self.width = bool(aligned), aligned or int(backbone.out_channels)
        self.register_buffer("centres", torch.zeros(clusters, self.width))
        self.register_buffer("settled", torch.zeros((), dtype=torch.uint8))

    def settle(self, centres_KC: Tensor) -> None:
        """Sets the centres of the clusters."""
        self.centres.copy_(unit(centres_KC))
        self.settled.fill_(1)

    def forward(self, inputs: FrameInputs) -> Tensor:
        """Features of the points, [M, C]."""
        found: Tensor = self.align(self.backbone(inputs))
        return found

    def segment(self, inputs: FrameInputs, regions: Tensor) -> list[Tensor]:
        """Of each scan the cluster of every point, int64; without centres its features."""
        features = self(inputs)
        return answered(features, inputs, regions, self.centres if bool(self.settled) else None)


def answered(features_MC: Tensor, inputs: FrameInputs, regions: Tensor, centres_KC: Tensor | None) -> list[Tensor]:
    """Features of a batch as answers of its scans: clusters by the centres, or as they are where there are none."""
    answers = []
    for number in range(inputs.batch_size):
        mine = inputs.batch_index == number
        features = features_MC[mine]
        answers.append(features if centres_KC is None else pseudo_labels(features, regions[mine], centres_KC))
    return answers


class SceneDistiller(Distiller):
    """A distiller whose student answers with clusters, or with features while it has none.

    Args:
        student: the segmenter.
    """

    student: SceneSegmenter

    def predict(self, batch: SceneBatch) -> Any:
        """An answer for each scan, see `SceneEvaluator`."""
        found: Sequence[Tensor] = self.student.segment(batch.inputs, batch.regions)
        return found
