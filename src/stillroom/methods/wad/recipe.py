"""WAD's experiment: a teacher without labels, a student on the labelled images alone, and the same student in WAD's rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Trained, Training
from stillroom.engine.task import Built
from stillroom.errors import InputError, at_least, positive, share
from stillroom.methods.wad.contrast import Contrast
from stillroom.methods.wad.distiller import WAD
from stillroom.methods.wad.networks import Encoder
from stillroom.methods.wad.pool import Pool, RoundData, benchmark, own_images
from stillroom.methods.wad.rounds import Rounds, train_in_rounds, write_labels
from stillroom.methods.wad.views import PhotoViews, ScanViews
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.subsets import ChosenClasses
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.networks import ResNetSmallStem, Whitened

ROUND = Training(epochs=1, optimizer="adam", lr=2e-3, weight_decay=0.0, schedule="constant")  # the paper's rate is 5e-4
PAPERS_TEACHER = "resnet18"


def make_encoder(lab: Lab, spec: str, data: ImageData, hidden: int, dim: int) -> Encoder:
    """The teacher's network: ``resnet18``, the paper's for small images, or any classifier under a projection head."""
    if spec == PAPERS_TEACHER:
        trunk: nn.Module = ResNetSmallStem((2, 2, 2, 2), num_classes=hidden, initialise=False)  # PyTorch's initialisation is inferred
    else:
        size, trust = data.image_size, lab.options.trust_pickle
        trunk = build_classifier(spec, num_classes=hidden, image_size=size, trust_pickle=trust, argument="teacher").network
    return Encoder(trunk, data.mean, data.std, hidden=hidden, dim=dim)


def teacher_stage(
    lab: Lab,
    pool: Pool,
    encoder: Encoder,
    views: nn.Module,
    plan: Training,
    *,
    released: bool,
    contrast_temperature: float = 0.5,
    model: str = "",
) -> Trained:
    """Stage 1: contrastive learning on all images of the pool. Its accuracy is that of the labels that it gives to validation images."""
    labelled = pool.data.restricted(train=pool.labelled)
    made = Contrast(
        encoder,
        views,
        labelled.train_eval_loader,
        pool.data.num_classes,
        contrast_temperature=contrast_temperature,
        released_schedule=released,
    )
    return lab.fit(made, pool.plain, plan, name="teacher", model=model)


def whiten(student: Whitened, data: ImageData, *, each: bool = False) -> None:
    """Gives a student the whitening of the pool's training images, labelled or not; `each`: see `Jitter`."""
    student.jitter.each = each
    student.whitening.fit(lambda: (batch.inputs for batch in data.train_eval_loader()), data.mean, data.std)


def supervised_rounds(lab: Lab, pool: Pool, student: nn.Module, plan: Training, how: Rounds, *, model: str = "") -> Trained:
    """The student on the labelled images alone, for as many steps as all rounds together."""
    data = RoundData(pool.data, pool.labelled, pool.unlabelled[:0], how.iterations, 0)
    labels_N = torch.zeros(pool.data.train_size, dtype=torch.int64)
    labels_N[pool.labelled] = pool.data.train_labels[pool.labelled]
    longer = replace(plan, epochs=plan.epochs * (how.rounds + 1))
    return lab.fit(WAD(student, labels_N, torch.ones(len(labels_N))), data, longer, name="alone", model=model)


def recipe(
    lab: Lab,
    data: ImageData,
    plan: Training = ROUND,
    teacher: str = "stillroom/convnet24",
    student: str = "stillroom/convnet24",
    known_classes: ChosenClasses = None,
    labelled: int = 20,
    even: bool = True,
    mismatch: float = 0.6,
    unlabelled: str | None = None,
    teacher_epochs: int = 40,
    teacher_lr: float = 2e-3,
    teacher_schedule: Literal["paper", "cosine", "constant"] = "constant",
    hidden: int = 64,
    embed_dim: int = 64,
    contrast_temperature: float = 0.5,
    view_style: Literal["photos", "scans"] | None = None,
    iterations: int | None = None,
    rounds: int = 5,
    promote: float = 0.1,
    knowledge_views: int = 1,
    jitter_each: bool = False,
) -> Report:
    """Learn target classes from few labels and many unlabelled images, of which a large part may be of no target class.

    Args:
        lab: where and how to run.
        data: the images. Of fully labelled data a benchmark is made; with `unlabelled` they are the labelled ones.
        plan: how the student is trained in each round, with an optimiser made anew; an epoch is so many `iterations`.
        teacher: network; it learns without labels: ``resnet18`` (the paper's, for small images), or any, optionally with weights.
        student: network, optionally with weights after ``@``. ``stillroom/wrn_28_2_whitened`` is the paper's.
        known_classes: the classes that are known; their names or numbers, or one number: the first so many. They are the targets, to be
            learned. By default the first half.
        labelled: how many images of target classes keep their labels.
        even: draw them evenly from the classes, instead of from all together.
        mismatch: share of images of unknown classes among the unlabelled, from 0 and below 1; as many as there are.
        unlabelled: the unlabelled images: imagefolder:PATH or PATH, a folder or zip of any image files at any depth; or other data such as
            cifar100:PATH, without their labels. Then every image of the data is labelled. By default those of the data that
            keep no label.
        teacher_epochs: epochs of the teacher; of contrastive training.
        teacher_lr: learning rate of the teacher; of adam, or of sgd for the paper's schedule, which starts there and goes up to ten times
            as much.
        teacher_schedule: of the teacher's learning rate.
        hidden: hidden width; of the teacher's projection head.
        embed_dim: length of the embeddings; of the teacher's projections.
        contrast_temperature: temperature of the contrast; above 0.
        view_style: how the views of an image are made: of ``photos``, or of ``scans`` of signs; by default what suits the data.
        iterations: steps of an epoch, of a round; by default a sixth of the images, from 10 to 150.
        rounds: rounds that promote; one more follows them, and the last of these promotes nothing already.
        promote: share of the unlabelled images that promotions start from; 0 for none.
        knowledge_views: random views of each image that the teacher's answer is averaged over; 0 asks about the image as it is.
        jitter_each: for a whitened student: draw mirror and window for each image, instead of once for a batch.
    """
    for name, value in (
        ("iterations", 1 if iterations is None else iterations),
        ("rounds", rounds),
        ("teacher_epochs", teacher_epochs),
        ("hidden", hidden),
        ("embed_dim", embed_dim),
    ):
        at_least(name, value, 1)
    at_least("knowledge_views", knowledge_views, 0)
    share("promote", promote)
    positive("contrast_temperature", contrast_temperature)
    if unlabelled is None:
        pool = benchmark(data, known_classes, labelled, mismatch, even=even, seed=lab.seed)
    else:
        if known_classes is not None:
            raise InputError("known_classes", known_classes, "none beside unlabelled: every class of the data is a target")
        pool = own_images(data, unlabelled)

    def built() -> Built:
        return Experiment(lab, pool.data, plan, Networks(student=student)).network(student, "student")

    steps = min(150, max(10, max(data.train_size, pool.data.train_size) // 6)) if iterations is None else iterations
    how = Rounds(iterations=steps, rounds=rounds, promote=promote, views=knowledge_views)
    made_of = (view_style or ("scans" if data.augment == "digits" else "photos")) == "photos"
    random_views, asked_views = (PhotoViews(), PhotoViews(mirror=0)) if made_of else (ScanViews(), ScanViews())
    rehearsed = built().network  # what is wrong with it is said now
    if jitter_each and not isinstance(rehearsed, Whitened):
        raise InputError("jitter_each", jitter_each, f"a whitened student beside it, which {student} is not")
    encoder = make_encoder(lab, teacher, pool.data, hidden, embed_dim)
    released = teacher_schedule == "paper"
    contrast = Training(
        epochs=teacher_epochs,
        lr=teacher_lr,
        optimizer="sgd" if released else "adam",
        weight_decay=1e-6,
        schedule="cosine" if teacher_schedule == "cosine" else "constant",
    )
    taught = teacher_stage(
        lab,
        pool,
        encoder,
        random_views,
        contrast,
        released=released,
        contrast_temperature=contrast_temperature,
        model=f"{teacher} (contrastive)",
    )

    first = built()
    if isinstance(first.network, Whitened):
        whiten(first.network, pool.data, each=jitter_each)
    prepared = {name: value.clone() for name, value in first.network.state_dict().items()}
    alone = supervised_rounds(lab, pool, first.network, plan, how, model=first.spec)
    second = built().network
    second.load_state_dict(prepared)
    assert isinstance(taught.network, Encoder)
    distilled, logs = train_in_rounds(lab, pool, taught.network, asked_views, second, plan, how, model=first.spec)
    if lab.is_main:
        write_labels(distilled.folder / "pseudo-labels.csv", pool.data, logs)
    return lab.report("wad", pool.data, {"teacher": taught, "alone": alone, "distilled": distilled})


_PAPER = {
    "student": "stillroom/wrn_28_2_whitened",
    "teacher": PAPERS_TEACHER,
    "batch_size": 32,
    "augment": "none",
    "lr": 5e-4,
    "labelled": 800,
    "even": False,
    "mismatch": 0.6,
    "teacher_lr": 0.1,
    "teacher_schedule": "paper",
    "hidden": 512,
    "embed_dim": 128,
    "contrast_temperature": 0.5,
    "view_style": "photos",
    "rounds": 5,
    "promote": 0.1,
    "knowledge_views": 1,
}
PRESETS = {
    "paper": {
        **_PAPER,
        "data": "cifar10:data/cifar10",
        "known_classes": ["airplane", "automobile"],
        "teacher_epochs": 700,
        "iterations": 1500,
    },
    "paper:cifar100": {
        **_PAPER,
        "data": "cifar100:data/cifar100",
        "known_classes": [str(n) for n in (3, 42, 43, 88, 97, 15, 19, 21, 32, 39, 35, 63, 64, 66, 75, 37, 50, 65, 74, 80)],
        "teacher_epochs": 2000,
        "iterations": 2000,
    },
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    expect="WAD gave +2.7 +- 1.2 points over the labels alone from 20 labels (5 seeds), +16.4 +- 7.1 from 5 (10 seeds): its "
    "pseudo-labels do that, its weights are level with none, where the paper sees them help.",
    reason="learns in rounds from images without labels, with a teacher that has seen none: its stages are an experiment of their own",
)
