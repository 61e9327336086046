"""The three trainings: imitation of 2D features, the warm-up on pseudo-labels, and clustering and training in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.engine import Losses
from stillroom.engine.distributed import gathered, rank, world_size
from stillroom.engine.run.stage import digest
from stillroom.errors import at_least
from stillroom.methods.pointdc.loss import cmd_loss, cosine_logits, fixed_logits, pseudo_label_loss
from stillroom.tasks.segmentation3d.clustering import kmeans, pseudo_labels, region_features, without_small
from stillroom.tasks.segmentation3d.segmenter import SceneDistiller, SceneSegmenter, answered

if TYPE_CHECKING:
    from stillroom.tasks.segmentation3d.data import SceneBatch, Segmentation3dData

_DAMPENING = 0.1  # of SGD's momentum, as the released code has it
_DECAY, _DECAY_EPOCHS = 0.8, 5  # of the learning rate in stage C


class CMD(SceneDistiller):
    """Stage A: the aligned features of a super-voxel's points are to point where its 2D feature does.

    Args:
        student: a segmenter that aligns its features with the teacher's.
        targets: of every training scan, by its id, the 2D feature of each super-voxel, [R, C]; zero rows were seen by no view.
    """

    def __init__(self, student: SceneSegmenter, targets: Mapping[int, Tensor]) -> None:
        super().__init__(student)
        self.targets = dict(targets)
        self.taught = digest({str(index): table for index, table in targets.items()})  # for the stage's fingerprint

    def losses(self, batch: SceneBatch) -> Losses:
        """The imitation as the only term; points of no super-voxel, or of one that no view sees, count for nothing."""
        parts = []
        for number, index in enumerate(batch.ids.tolist()):
            regions = batch.regions[batch.scene(number)]
            table = self.targets[index].to(regions.device)
            parts.append(table[regions.clamp_min(0)] * (regions >= 0)[:, None])
        return Losses(task={}, distill={"cmd": cmd_loss(self.student(batch.inputs), torch.cat(parts))})


class Clusters:
    """Clusters the training scans by a network's features, in every process the same.

    Args:
        data: whose training scans.
        seed: of k-means.
        least: voxels of a super-voxel that is clustered; points of smaller ones are labelled by their own features.
        pieces: cluster super-voxels; without it single points.
    """

    def __init__(self, data: Segmentation3dData, seed: int, *, least: int = 1, pieces: bool = True) -> None:
        self.data, self.seed, self.least, self.pieces = data, seed, at_least("min_points", least, 1), pieces

    @torch.no_grad()
    def __call__(self, network: SceneSegmenter) -> tuple[Tensor, dict[int, Tensor]]:
        """Unit centroids [K, C], and by the id of each training scan the cluster of each of its voxels.

        Each process asks the network about its own share of the scans; centroids are found from all super-voxels.

        Raises:
            InputError: there are fewer super-voxels than clusters.
        """
        device = network.centres.device
        mine: dict[int, tuple[Tensor, ...]] = {}
        for batch in self.data.train_eval_loader(rank=rank(), world=world_size()):
            inputs = batch.inputs._replace(points=batch.inputs.points.to(device), batch_index=batch.inputs.batch_index.to(device))
            features = network(inputs).float().cpu()
            for number, index in enumerate(batch.ids.tolist()):
                own = features[batch.scene(number)]
                regions = self.regions(batch.regions[batch.scene(number)])
                means, there = region_features(own, regions)
                mine[index] = means, there, regions, own[regions < 0]
        scenes = {index: told for part in gathered(mine) for index, told in part.items()}
        vectors = torch.cat([means[there] for _, (means, there, _, _) in sorted(scenes.items())])
        centroids = kmeans(vectors, len(network.centres), seed=self.seed)
        labels = {}
        for index, (means, _, regions, alone) in scenes.items():
            # the super-voxels' means stand for their points; points of none come with their own features
            features = means[regions.clamp_min(0)] if len(means) else torch.zeros(len(regions), centroids.shape[1])
            features = features.clone()
            features[regions < 0] = alone
            labels[index] = pseudo_labels(features, torch.full_like(regions, -1), centroids)
        return centroids, labels

    def regions(self, regions: Tensor) -> Tensor:
        """The super-voxels of a scan as they are clustered."""
        return without_small(regions, self.least) if self.pieces else torch.arange(len(regions))


class Supervoxels(SceneDistiller):
    """What the two trainings on pseudo-labels have in common: SGD with dampening, and a label for every voxel of every training scan.

    The labels are part of the checkpoint: an epoch that was killed half way goes on with those that it began with.

    Args:
        student: a segmenter of its backbone's own features.
        sizes: voxels of each training scan, by its id from 0.
        pieces: its answers are given per super-voxel.
    """

    pseudo: Tensor

    def __init__(self, student: SceneSegmenter, sizes: Mapping[int, int], *, pieces: bool = True) -> None:
        super().__init__(student)
        self.pieces = pieces
        counts = torch.tensor([sizes[index] for index in range(len(sizes))])
        self._starts = counts.cumsum(0) - counts
        self.register_buffer("pseudo", torch.full((int(counts.sum()),), -1, dtype=torch.int32))

    def label(self, labels: Mapping[int, Tensor]) -> None:
        """Sets the labels of the scans."""
        for index, found in labels.items():
            start = int(self._starts[index])
            self.pseudo[start : start + len(found)] = found.to(self.pseudo)

    def labels_of(self, batch: SceneBatch) -> Tensor:
        """The labels of a batch's voxels, int64 [M]."""
        starts = self._starts.to(batch.rows.device)[batch.ids][batch.inputs.batch_index]
        return self.pseudo[starts + batch.rows].long()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with a dampened momentum."""
        plan = self.plan
        return torch.optim.SGD(
            self.parameter_groups(), lr=plan.lr, momentum=plan.momentum, dampening=_DAMPENING, weight_decay=plan.weight_decay
        )

    def answers(self, batch: SceneBatch, centres: Tensor) -> Any:
        """The cluster of every voxel of each scan by some centres."""
        regions = batch.regions if self.pieces else torch.full_like(batch.regions, -1)
        return answered(self.student(batch.inputs), batch.inputs, regions, torch.nn.functional.normalize(centres, dim=1))


class WarmUp(Supervoxels):
    """Stage B: a cosine classifier with learnable centres on the pseudo-labels that stage A's features gave.

    Args:
        student, sizes, pieces: see `Supervoxels`.
        labels: by the id of each scan.
    """

    def __init__(self, student: SceneSegmenter, sizes: Mapping[int, int], labels: Mapping[int, Tensor], *, pieces: bool = True) -> None:
        super().__init__(student, sizes, pieces=pieces)
        self.classifier = nn.Parameter(torch.randn(student.centres.shape))
        self.label(labels)

    def losses(self, batch: SceneBatch) -> Losses:
        """Cross-entropy of the cosines."""
        logits = cosine_logits(self.student(batch.inputs), self.classifier)
        return Losses(task={}, distill={"warm-up": pseudo_label_loss(logits, self.labels_of(batch))})

    def predict(self, batch: SceneBatch) -> Any:
        """By the classifier's centres."""
        return self.answers(batch, self.classifier)


class IterativeClustering(Supervoxels):
    """Stage C: the frozen classifier is made of the centroids; every few epochs clusters, labels and classifier are made anew.

    Args:
        student, sizes: see `Supervoxels`.
        clusters: makes them.
        every: epochs between two clusterings.
    """

    made_for: Tensor  # the epoch before which the present labels were made

    def __init__(self, student: SceneSegmenter, sizes: Mapping[int, int], clusters: Clusters, every: int = 5) -> None:
        super().__init__(student, sizes, pieces=clusters.pieces)
        self.clusters, self.every = clusters, at_least("recluster_every", every, 1)
        self.least, self.clusters_seed = clusters.least, clusters.seed  # for the stage's fingerprint
        self.register_buffer("made_for", torch.zeros((), dtype=torch.int64))

    def select(self) -> Tensor | None:
        """All scans; before every `every`-th epoch, after new labels were found."""
        epoch = self.progress.epoch
        # a run that was killed behind an epoch's last step asks for that epoch once more: its labels are made
        if (epoch - 1) % self.every == 0 and int(self.made_for) != epoch:
            self.cluster()
            self.made_for.fill_(epoch)
        return None

    def cluster(self) -> None:
        """New centroids, labels and classifier, by the features as they are now."""
        centroids, labels = self.clusters(self.student)
        self.student.settle(centroids)
        self.label(labels)

    def rehearse(self, batch: SceneBatch) -> None:
        """With made-up labels: clustering all scans takes its time."""
        self.pseudo.zero_()
        super().rehearse(batch)

    def rate(self, base_lr: float) -> float:
        """0.8 times as much after every five epochs."""
        return base_lr * _DECAY ** ((self.progress.epoch - 1) // _DECAY_EPOCHS)

    def losses(self, batch: SceneBatch) -> Losses:
        """Cross-entropy of the inner products with the frozen centroids."""
        logits = fixed_logits(self.student(batch.inputs), self.student.centres)
        return Losses(task={}, distill={"clusters": pseudo_label_loss(logits, self.labels_of(batch))})

    def predict(self, batch: SceneBatch) -> Any:
        """By the centroids."""
        return self.answers(batch, self.student.centres)
