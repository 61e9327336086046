"""OTD: one network, whose gradients for the well-labelled domain and classes teach those for the others.

    L = L_src + w_few L_few + w_mix (mixed terms) + w_dom (L_dom(nuclei) + L_dom(types)) + w_cls L_cls

after a first epoch of L_src + w_few L_few alone; and history between the backward pass and the optimiser's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine import Losses
from stillroom.engine.loading import Together
from stillroom.errors import InputError, at_least, at_least_zero, one_of, share
from stillroom.methods.otd.bank import GradientBank, statistics_sizes
from stillroom.methods.otd.data import FEW, SOURCE, TARGET
from stillroom.methods.otd.history import History
from stillroom.methods.otd.mixing import Mixed, mix, pseudo_labels
from stillroom.methods.otd.taxonomy import Taxonomy
from stillroom.methods.otd.terms import Answers, few_loss, mixed_losses, source_loss
from stillroom.methods.otd.trajectory import CrossClass, CrossDomain
from stillroom.tasks.nuclei import NucleiDistiller, NucleiNetwork
from stillroom.tasks.nuclei.networks import NUCLEI, TYPES

PARTS = ("mixing", "domain", "classes", "history", "projection")


class OTD(NucleiDistiller):
    """A network for the fine classes of the target, and beside its head for types one for the source's coarse classes, dropped in the end.

    Args:
        student: a `NucleiNetwork` of the target's classes.
        taxonomy: of both domains' classes.
        without: of `PARTS`, those that are left out; without mixing there are no streams either.
        few_weight: of the loss on the few labelled target images.
        mix_weight: of the losses on mixed images, and of the few in coarse classes.
        domain_weight: of the stream from source to target, L_dom of both heads.
        class_weight: of the stream from reliable to new classes, L_cls.
        history_weight: w, share of a gradient's part along its past that is added to it.
        nucleus_threshold: probability from which on a pseudo label of a nucleus is more than background.
        type_threshold: the same of a pseudo label of a type.
        statistics_momentum: of the moving averages of moments.
        energy: share of energy that the low-rank subspaces keep.
        refresh_capacities: how many times its capacity a bank of moments takes in between two refreshes of its subspace.
        history_capacity: gradients that are kept of a parameter of 500 entries or more.
        source_epochs: epochs of source and few alone at the start; the optimiser begins anew after them.
        detach_teacher: no gradient through the source's moments.
        match_vectors: compare projected rows of classes entry by entry, not their means alone.

    Raises:
        InputError: a number that cannot be used, or a network of another kind or other classes.
    """

    def __init__(
        self,
        student: nn.Module,
        taxonomy: Taxonomy,
        *,
        without: Sequence[str] = (),
        few_weight: float = 0.1,
        mix_weight: float = 0.1,
        domain_weight: float = 1000.0,
        class_weight: float = 1000.0,
        history_weight: float = 0.1,
        nucleus_threshold: float = 0.7,
        type_threshold: float = 0.4,
        statistics_momentum: float = 0.95,
        energy: float = 0.98,
        refresh_capacities: int = 10,
        history_capacity: int = 300,
        source_epochs: int = 1,
        detach_teacher: bool = False,
        match_vectors: bool = False,
    ) -> None:
        super().__init__(student)
        if not isinstance(student, NucleiNetwork) or student.num_classes != len(taxonomy.fine):
            raise InputError("student", type(student).__name__, f"a network for nuclei of the target's {len(taxonomy.fine)} classes")
        left = {one_of("without", part, PARTS) for part in without}
        self.mixing = "mixing" not in left
        self.few_weight, self.mix_weight = at_least_zero("few_weight", few_weight), at_least_zero("mix_weight", mix_weight)
        self.domain_weight, self.class_weight = at_least_zero("domain_weight", domain_weight), at_least_zero("class_weight", class_weight)
        self.nucleus_threshold, self.type_threshold = share("nucleus_threshold", nucleus_threshold), share("type_threshold", type_threshold)
        self.source_epochs = at_least("source_epochs", source_epochs, 0)
        share("energy", energy)
        at_least("refresh_capacities", refresh_capacities, 1)
        self.taxonomy = taxonomy
        self.register_buffer("coarse_of", torch.tensor(taxonomy.tax), persistent=False)
        self.coarse = nn.Conv2d(student.width, 1 + len(taxonomy.coarse), 1)

        def bank(d: int) -> GradientBank | None:
            capacity, _ = statistics_sizes(d)
            return None if "projection" in left else GradientBank(d, capacity, refresh_capacities * capacity, energy)

        options: dict[str, Any] = {"momentum": share("statistics_momentum", statistics_momentum), "bank": bank}
        self.domain_nuclei: CrossDomain | None = None
        self.domain_types: CrossDomain | None = None
        self.cross_class: CrossClass | None = None
        if self.mixing and domain_weight and "domain" not in left:
            self.domain_nuclei = CrossDomain(2, student.width, detach=detach_teacher, **options)
            self.domain_types = CrossDomain(1 + len(taxonomy.coarse), student.width, detach=detach_teacher, **options)
        if self.mixing and class_weight and "classes" not in left and taxonomy.new and taxonomy.reliable:
            sets = taxonomy.reliable, taxonomy.new
            self.cross_class = CrossClass(len(taxonomy.tax), student.width, *sets, vectors=match_vectors, **options)
        self.history: History | None = None
        if self.mixing and at_least_zero("history_weight", history_weight) and "history" not in left:
            decoder = student.decoders[TYPES]
            options = {"weight": history_weight, "energy": energy, "capacity": at_least("history_capacity", history_capacity, 1)}
            self.history = History(decoder.named_parameters(), **options)

    coarse_of: Tensor

    @property
    def adapting(self) -> bool:
        """Whether the first epochs, of source and few alone, are over."""
        return self.progress.epoch > self.source_epochs

    def losses(self, batch: Together) -> Losses:
        """The labels' terms as task terms; what pseudo labels and trajectories add as distillation.

        Raises:
            InputError: batches of unlike size.
        """
        source, target, few = (batch[name] for name in (SOURCE, TARGET, FEW))
        if not len(source.images) == len(target.images) == len(few.images):
            got = ", ".join(f"{len(one.images)} of {name}" for name, one in batch.items())
            raise InputError("batch", got, "as many images of each")
        if not (self.mixing and self.adapting):
            _, of_source = self._answers(source.images)
            return Losses(task=self._labelled(of_source, source, self._answers(few.images)[1], few))
        mixed = self._mixed(target.images, few)
        features, found = self._answers(torch.cat((source.images, mixed.images)))
        of_source, of_mix = (Answers(*(part.chunk(2)[half] for part in found)) for half in (0, 1))
        distill = self._streams(features, found, source, mixed)
        _, of_few = self._answers(few.images)
        terms = mixed_losses(of_mix, mixed.nuclei, mixed.types, of_few, few.types, self.coarse_of)
        distill |= {name: self.mix_weight * term for name, term in terms.items()}
        return Losses(task=self._labelled(of_source, source, of_few, few), distill=distill)

    def _answers(self, images: Tensor) -> tuple[dict[str, Tensor], Answers]:
        features = self.student.features(images)
        maps = self.student.answers(features)
        return features, Answers(maps.nuclei, maps.distances, self.coarse(features[TYPES]), maps.types)

    def _labelled(self, of_source: Answers, source: Any, of_few: Answers, few: Any) -> dict[str, Tensor]:
        """L_src and L_few, weighted."""
        return {
            "source": source_loss(of_source, source.nuclei, source.types, source.distances),
            "few": self.few_weight * few_loss(of_few, few.nuclei, few.types, few.distances),
        }

    @torch.no_grad()
    def _mixed(self, target_images: Tensor, few: Any) -> Mixed:
        """Target images with their pseudo labels and the few's nuclei. In training mode, as every other forward pass."""
        maps = self.student(target_images)
        nuclei, types = pseudo_labels(maps.nuclei, self.nucleus_threshold), pseudo_labels(maps.types, self.type_threshold)
        return mix(Mixed(target_images, nuclei, types), Mixed(few.images, few.nuclei, few.types))

    def _streams(self, features: dict[str, Tensor], found: Answers, source: Any, mixed: Mixed) -> dict[str, Tensor]:
        """What the trajectories add, weighted; of features and answers of the source's images and the mixed ones."""
        terms: dict[str, Tensor] = {}
        if self.domain_nuclei is not None and self.domain_types is not None:
            nuclei = torch.cat((source.nuclei, mixed.nuclei))
            coarse = torch.cat((source.types, self.coarse_of[mixed.types]))
            terms["domain_nuclei"] = self.domain_weight * self.domain_nuclei(features[NUCLEI], found.nuclei, nuclei)
            terms["domain_types"] = self.domain_weight * self.domain_types(features[TYPES], found.coarse, coarse)
        if self.cross_class is not None:
            of_mix = features[TYPES].chunk(2)[1], found.fine.chunk(2)[1]
            terms["classes"] = self.class_weight * self.cross_class(*of_mix, mixed.types)
        return terms

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """As every distiller's; with the cosines of the source's and the mix's mean gradients for the record, where they are kept."""
        answer = super().training_step(batch, batch_idx)
        streams = {"nuclei": self.domain_nuclei, "types": self.domain_types}
        figures = {f"cosine/{name}": stream.cosine() for name, stream in streams.items() if stream is not None and self.adapting}
        return {**answer, "figures": figures}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the rates; the optimiser forgets what it knows when the source's epochs are over, in every arm."""
        super().on_train_batch_start(batch, batch_idx)
        if self.source_epochs and self.progress.step == self.source_epochs * self.progress.steps_per_epoch:
            optimizer: Any = self.optimizers()
            optimizer.state.clear()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """History: gradients of all processes, unscaled."""
        if self.history is not None and self.adapting:
            self.history.reinforce()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the banks hold goes into the checkpoint."""
        checkpoint["banks"] = {name: bank.held() for name, bank in self._banks()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And is taken up from there."""
        for name, bank in self._banks():
            bank.take_up(checkpoint["banks"][name])

    def _banks(self) -> list[tuple[str, GradientBank]]:
        return [(name, one) for name, one in self.named_modules() if isinstance(one, GradientBank)]

    @property
    def bank_bytes(self) -> int:
        """What all banks take at most, in float32."""
        return sum(bank.most_bytes for _, bank in self._banks())
