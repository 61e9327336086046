"""Images that nobody labelled, behind a labelled set: what is learnt of them, what is not, and that all arms take as many steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from stillroom.cli import main
from stillroom.engine import Experiment, Lab, LabOptions, Networks, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.errors import InputError
from stillroom.methods.kd import KD, ROOM, build
from stillroom.tasks.classification import Batch, ImageData
from stillroom.tasks.classification.supervised import Supervised
from tests.tasks.classification.miniatures import classes_of_pictures, picture


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """Eight labelled images, two to measure with, and twelve without labels, one of them in a folder of its own."""
    classes_of_pictures(tmp_path / "p" / "train", count=4)
    classes_of_pictures(tmp_path / "p" / "val", count=1)
    for i in range(12):
        picture(tmp_path / "more" / ("deep" if i == 3 else "") / f"{i}.png", (20 * i, 90, 10))
    return f"imagefolder:{tmp_path / 'p'},unlabelled={tmp_path / 'more'}"


def experiment_on(data: ImageData, out: Path) -> Experiment:
    return Experiment(Lab(LabOptions(out=str(out))), data, Training(epochs=1), Networks("stillroom/convnet4", "stillroom/convnet4"))


def data_of(spec: str, **options: object) -> ImageData:
    return ImageData(spec, batch_size=4, workers=0, **options)


def test_they_stand_behind_the_labelled_ones(spec: str) -> None:
    data = data_of(spec)
    assert (data.train_size, data.unlabelled) == (8, 12)
    assert "12 images without labels" in "".join(data.first_lines())
    whole = data.with_unlabelled()
    assert whole.train_labels.tolist() == [0] * 4 + [1] * 4 + [-1] * 12
    assert (whole.unlabelled, whole.train_size) == (0, 20)
    assert len({data.fingerprint, whole.fingerprint, data_of(spec.partition(",")[0]).with_unlabelled().fingerprint}) == 2


def test_without_a_teacher_the_labelled_ones_are_seen_again_for_as_many_steps(spec: str) -> None:
    data = data_of(spec)
    long = data.as_long()
    labels = torch.cat([batch.labels for batch in long.train_loader(seed=0)])
    assert len(labels) == 20
    assert labels.min() == 0
    assert len(list(long.train_loader(seed=0))) == len(list(data.with_unlabelled().train_loader(seed=0))) == 5
    plain = data_of(spec.partition(",")[0])
    assert plain.as_long() is plain
    assert plain.with_unlabelled() is plain


def test_only_the_teacher_speaks_of_them(spec: str) -> None:
    data = data_of(spec)
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 2)) for _ in range(2)]
    made = build(networks[0], networks[1], data, temperature=2.0, task_weight=0.5, kd_weight=1.0)
    images = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    losses = made.losses(Batch(images, torch.tensor([0, 1, -1, -1, 1, -1]), torch.arange(6)))
    logits, target = networks[0](images), networks[1](images)
    known = torch.tensor([0, 1, 4])
    torch.testing.assert_close(
        losses.task["ce"], 0.5 * cross_entropy(logits[known], torch.tensor([0, 1, 1]), reduction="sum") / (6 * 8 / 20)
    )
    divergence = kl_div((logits / 2).log_softmax(1), (target / 2).log_softmax(1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(losses.distill["kd"], 4 * divergence)
    nobody = made.losses(Batch(images, torch.full((6,), -1), torch.arange(6)))  # a batch without any label
    assert nobody.task["ce"] == 0
    nobody.total.backward()
    assert networks[0][1].weight.grad.isfinite().all()


def test_alone_and_teacher_learn_from_labels_and_the_taught_from_all(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}

    def watch(cls: type) -> None:
        plain = cls.losses

        def losses(self: object, batch: Batch) -> object:
            kind = cls.__name__
            seen.setdefault(kind, set()).update(batch.labels.tolist())
            return plain(self, batch)

        monkeypatch.setattr(cls, "losses", losses)

    watch(KD)
    watch(Supervised)
    experiment = experiment_on(data_of(spec), tmp_path / "run")
    experiment.teacher()
    experiment.alone()
    experiment.distilled("distilled", lambda student, teacher: build(student, teacher, experiment.data))
    assert seen == {"KD": {-1, 0, 1}, "Supervised": {0, 1}}


def test_a_cache_holds_answers_to_them_too(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--data", spec, "--batch-size", "4", "--augment", "none"]
    main(["cache", *options, "--teacher", "stillroom/convnet4", "--teacher-epochs", "1", "--out", "cache"])
    assert CachedTeacher(tmp_path / "cache").samples == 20
    taught = ["run", "kd", *options, "--student", "stillroom/convnet4", "--epochs", "1"]
    main([*taught, "--teacher", "cache:cache", "--out", "run"])
    assert (tmp_path / "run" / "metrics.json").exists()
    labelled = ["--data", spec.partition(",")[0], *options[2:]]  # whose answers stand first in it
    assert main(["run", "kd", *labelled, *taught[-4:], "--teacher", "cache:cache", "--out", "labelled"]) == 0
    main(["cache", *labelled, "--teacher", "stillroom/convnet4", "--teacher-epochs", "1", "--out", "small"])
    assert main([*taught, "--teacher", "cache:small", "--out", "refused"]) == 2
    assert "unlabelled was None, now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("unlabelled=nowhere", "data: got unlabelled=nowhere"),
        ("unlabelled=", "data: got unlabelled="),
        ("unlabelled=a,unlabelled=b", "the option unlabelled once"),
    ],
)
def test_piles_that_are_none(spec: str, option: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        data_of(f"{spec.partition(',')[0]},{option}")


def test_methods_that_would_not_learn_from_them_say_so(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ROOM.unlabelled
    assert main(["run", "dkd", "--data", spec, "--out", str(tmp_path / "o")]) == 2
    assert "--data: got 12 images by unlabelled=, expected none for this method: kd" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_rehearsal_goes_through_the_whole_set(spec: str, tmp_path: Path) -> None:
    data = data_of(spec)
    experiment = Experiment(
        Lab(LabOptions(out=str(tmp_path / "r"))), data, Training(epochs=1), Networks("stillroom/convnet4", "stillroom/convnet4")
    )
    (made,) = experiment.rehearse(lambda student, teacher: build(student, teacher, data))
    assert experiment.as_trained(made).train_size == 20
