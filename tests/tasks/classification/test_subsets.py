"""Long tails, wrong labels, fewer classes and images: what they promise, and that they are the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.engine import Lab, LabOptions, Training
from stillroom.errors import InputError
from stillroom.tasks.classification import ImageData, Supervised, build_classifier
from stillroom.tasks.classification.subsets import Hardship, Shape, long_tail, long_tailed_counts, noisy_labels


def test_counts_of_the_benchmarks() -> None:
    assert long_tailed_counts(5000, 10, 100).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tailed_counts(500, 100, 100)[[0, 99]].tolist() == [500, 5]
    assert long_tailed_counts(1000, 5, 10, "step").tolist() == [1000, 1000, 100, 100, 100]
    assert long_tailed_counts(100, 3, 4, "reverse").tolist() == [25, 50, 100]


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from(["exp", "reverse", "step"]))
def test_a_ratio_that_divides_the_largest_class_leaves_the_smallest_the_quotient(smallest: int, ratio: int, shape: Shape) -> None:
    counts = long_tailed_counts(smallest * ratio, 10, ratio, shape)
    assert (counts.max(), counts.min()) == (smallest * ratio, smallest)


@given(st.lists(st.integers(0, 4), min_size=60, max_size=120), st.integers(0, 5))
def test_a_long_tail_has_the_counts_or_all_there_are(labels: list[int], seed: int) -> None:
    labels_N = np.array([*labels, 0, 1, 2, 3, 4])
    kept = long_tail(labels_N, 5, Hardship(("exp", 8.0), largest=16), seed=seed)
    assert (np.diff(kept) > 0).all()
    wanted = np.minimum(long_tailed_counts(16, 5, 8), np.bincount(labels_N, minlength=5))
    assert np.bincount(labels_N[kept], minlength=5).tolist() == wanted.tolist()
    assert np.array_equal(kept, long_tail(labels_N, 5, Hardship(("exp", 8.0), largest=16), seed=seed))


@given(st.integers(2, 6), st.floats(0, 1), st.integers(0, 5))
def test_exactly_the_share_is_wrong(classes: int, share: float, seed: int) -> None:
    labels = np.arange(200) % classes
    changed = noisy_labels(labels, classes, share, seed=seed)
    assert (changed != labels).sum() == round(share * 200)
    assert ((changed >= 0) & (changed < classes)).all()


def test_a_wrong_label_is_any_other_class() -> None:
    changed = noisy_labels(np.zeros(3000, np.int64), 4, 1.0)
    assert np.bincount(changed, minlength=4)[0] == 0
    assert np.bincount(changed, minlength=4)[1:].min() > 900


def test_data_with_a_long_tail_and_noise() -> None:
    plain, hard = ImageData("digits"), ImageData("digits,imbalance=exp:10,largest=80,noise=0.25")
    assert hard.train_size == int(hard.class_counts.sum()) == len(hard.indices["train"])
    assert len(hard.indices["wrong labels"]) == round(0.25 * hard.train_size)
    truth = plain.train_labels[torch.from_numpy(hard.indices["train"])]
    assert torch.bincount(truth)[[0, 9]].tolist() == [80, 8]
    assert torch.equal((truth != hard.train_labels).nonzero().flatten(), torch.from_numpy(hard.indices["wrong labels"]))
    assert torch.equal(hard.val_labels, plain.val_labels)
    assert len({plain.fingerprint, hard.fingerprint, ImageData("digits,imbalance=exp:10,largest=80").fingerprint}) == 3


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("digits,imbalance=exp", "imbalance"),
        ("digits,imbalance=line:10", "imbalance"),
        ("digits,imbalance=exp:0.5", "imbalance"),
        ("digits,imbalance=exp:1000", "imbalance"),
        ("digits,largest=20", "largest"),
        ("digits,noise=2", "noise"),
        ("digits,noise=many", "noise"),
        ("digits,noise=0.1,noise=0.2", "noise"),
    ],
)
def test_options_that_cannot_be_used(spec: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        ImageData(spec)


def test_restricted_to_classes_and_images() -> None:
    data = ImageData("digits")
    odd = data.restricted(classes=(7, 1, 3), name="known")
    assert odd.classes == ("7", "1", "3")
    assert odd.num_classes == 3
    assert torch.equal(data.train_labels[torch.from_numpy(odd.indices["known"])], torch.tensor([7, 1, 3])[odd.train_labels])
    some = odd.restricted(train=np.array([5, 2, 9]), labels=np.array([0, 2, 1]), name="known")
    assert some.train_labels.tolist() == [0, 2, 1]
    assert some.indices["known"].tolist() == odd.indices["known"][[5, 2, 9]].tolist()
    pictures = {int(i): image for batch in some.train_eval_loader() for i, image in zip(batch.ids, batch.images, strict=True)}
    whole = {int(i): image for batch in data.train_eval_loader() for i, image in zip(batch.ids, batch.images, strict=True)}
    for number, origin in enumerate(some.indices["known"].tolist()):
        assert torch.equal(pictures[number], whole[origin])
    assert len({data.fingerprint, odd.fingerprint, some.fingerprint}) == 3
    assert data.num_classes == 10  # untouched


def test_restrictions_that_there_cannot_be() -> None:
    data = ImageData("digits")
    for arguments, named in (
        ({"classes": (1, 1)}, "classes"),
        ({"classes": (10,)}, "classes"),
        ({"train": np.array([900])}, "train"),
        ({"val": np.array([-1])}, "val"),
        ({"train": np.array([1, 2]), "labels": np.array([1])}, "labels"),
        ({"train": np.array([1]), "labels": np.array([10])}, "labels"),
    ):
        with pytest.raises(InputError, match=named):
            data.restricted(**arguments)


def test_the_indices_lie_in_the_stages_folder(tmp_path: Path) -> None:
    data = ImageData("digits,imbalance=exp:10,largest=40")
    lab = Lab(LabOptions(out=tmp_path, accelerator="cpu"))
    student = build_classifier("stillroom/convnet4", num_classes=10).network
    trained = lab.fit(Supervised(student), data, Training(epochs=1, schedule="constant"), name="alone")
    assert json.loads((trained.folder / "indices.json").read_text()) == {"train": data.indices["train"].tolist()}
