"""Every layout that can be named, and every way in which it can be wrong."""

import pickle

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.tasks.images.classified import open_source
from tests.tasks.classification.miniatures import cifar100, classes_of_pictures, imagenet, picture, tiny_imagenet, zipped


def test_digits():
    source = open_source("digits")
    assert (len(source.train), len(source.val), source.image_size) == (900, 897, 8)
    assert np.bincount(source.train.labels).min() >= 87
    assert source.train.image(0).dtype == torch.uint8
    assert open_source("digits").fingerprint == source.fingerprint
    assert not {source.train.name(i) for i in range(900)} & {source.val.name(i) for i in range(897)}


@pytest.mark.parametrize("wrap", ["", "photos/"])
@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_are_split_evenly_and_always_alike(tmp_path, packed, wrap):
    root = tmp_path / "set"
    classes_of_pictures(root / wrap, count=10)
    path = zipped(root, tmp_path / "set.zip") if packed else root
    source = open_source(f"imagefolder:{path},val=0.3")
    assert source.classes == ("cat", "dog")
    assert np.bincount(source.train.labels).tolist() == [7, 7]
    assert np.bincount(source.val.labels).tolist() == [3, 3]
    assert all(f"{source.classes[source.val.labels[i]]}/" in source.val.name(i) for i in range(6))
    assert open_source(f"imagefolder:{path},val=0.3").val.names == source.val.names
    assert (source.image_size, source.augment) == (12, "cifar")


@pytest.mark.parametrize("val", ["val", "test", "Validation"])
def test_split_folders(tmp_path, val):
    classes_of_pictures(tmp_path / "train", count=3)
    classes_of_pictures(tmp_path / val, count=2)
    source = open_source(f"imagefolder:{tmp_path}")
    assert (len(source.train), len(source.val)) == (6, 4)
    assert source.val.name(0) == f"{val}/cat/0.png"


def test_a_class_may_be_called_train(tmp_path):
    classes_of_pictures(tmp_path, ("bus", "train", "test"))
    assert open_source(f"imagefolder:{tmp_path}").classes == ("bus", "test", "train")


def test_large_or_mixed_sizes_are_treated_as_photographs(tmp_path):
    classes_of_pictures(tmp_path / "large", size=(90, 70))
    classes_of_pictures(tmp_path / "mixed")
    picture(tmp_path / "mixed" / "cat" / "odd.png", size=(20, 30))
    for name in ("large", "mixed"):
        source = open_source(f"imagefolder:{tmp_path / name}")
        assert (source.image_size, source.augment) == (224, "imagenet")


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    first = open_source(f"imagefolder:{classes_of_pictures(tmp_path / 'a')}")
    assert open_source(f"imagefolder:{classes_of_pictures(tmp_path / 'b')}").fingerprint == first.fingerprint
    picture(tmp_path / "b" / "cat" / "new.png")
    assert open_source(f"imagefolder:{tmp_path / 'b'}").fingerprint != first.fingerprint


def test_cifar100(tmp_path):
    cifar100(tmp_path)
    for path in (tmp_path, tmp_path / "cifar-100-python"):
        source = open_source(f"cifar100:{path}")
        assert source.classes[4] == "bed"
        assert (len(source.train), len(source.val), source.augment) == (20, 10, "cifar")
        assert source.train.image(0).shape == (3, 32, 32)
        assert source.mean == (0.5071, 0.4867, 0.4408)
        assert source.val.name(3) == "test_3.png"


def test_cifar_that_is_missing_says_what_to_put_where(tmp_path, monkeypatch):
    def unreachable(root, download):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", unreachable)
    with pytest.raises(InputError, match=r"data_batch_1.*cifar-10-batches-py.*no network"):
        open_source(f"cifar10:{tmp_path}")


def test_cifar_pickles_cannot_run_code(tmp_path):
    cifar100(tmp_path)

    class Attack:
        def __reduce__(self):
            return print, ("attacked",)

    (tmp_path / "cifar-100-python" / "meta").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(InputError, match=r"builtins.print|__builtin__.print"):
        open_source(f"cifar100:{tmp_path}")


@pytest.mark.parametrize("packed", [False, True])
def test_tiny_imagenet(tmp_path, packed):
    path = tiny_imagenet(tmp_path / "tiny")
    if packed:
        path = zipped(path, tmp_path / "tiny.zip", "tiny-imagenet-200/")
    source = open_source(f"tiny-imagenet:{path}")
    assert source.classes == ("goldfish", "European fire salamander")
    assert source.val.labels.tolist() == [1, 0]
    assert (len(source.train), source.image_size, source.mean[0]) == (6, 64, 0.4802)
    assert source.val.image(0).size == (64, 64)


def test_imagenet(tmp_path):
    source = open_source(f"imagenet:{imagenet(tmp_path)}")
    assert source.classes == ("n01440764", "n01443537")
    assert (len(source.train), len(source.val), source.image_size, source.augment) == (6, 6, 224, "imagenet")


FUNCTION = """
import numpy as np, torch
class Set(torch.utils.data.Dataset):
    classes = ["no", "yes"]
    def __init__(self, count, kind): self.count, self.kind = count, kind
    def __len__(self): return self.count
    def __getitem__(self, index):
        image = {"array": np.full((10, 10), index, np.uint8), "float": torch.full((3, 10, 10), 0.5), "bad": torch.full((3, 10, 10), -2.0)}
        return image[self.kind], index % 2
def load(count=6, kind="array"): return Set(count, kind), Set(4, kind)
def single(): return Set(4, "array")
"""


def test_functions(tmp_path, monkeypatch):
    (tmp_path / "own_sets.py").write_text(FUNCTION)
    source = open_source(f"{tmp_path}/own_sets.py:load,count=8")
    assert source.train.labels.tolist() == [0, 1] * 4
    assert source.classes == ("no", "yes")
    assert source.train.image(3).tolist() == torch.full((3, 10, 10), 3).tolist()
    assert (source.image_size, source.augment) == (10, "cifar")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_source("own_sets:load,kind=float").val.image(0).unique().tolist() == [128]
    with pytest.raises(InputError, match=r"data: got own_sets:load,kind=bad \(train/0: .*mean and std"):
        open_source("own_sets:load,kind=bad")
    for wrong, words in (
        ("own_sets:laod", "load"),
        ("own_sets:load,size=3", "size"),
        ("own_sets:single", "returns"),
        ("absent.py:load", "exists"),
    ):
        with pytest.raises(InputError, match=words):
            open_source(wrong)


def lone(root):
    picture(root / "cat" / "0.png")
    classes_of_pictures(root, ("dog",))


def empty_class(root):
    classes_of_pictures(root)
    (root / "emu").mkdir()


def other_classes(root):
    classes_of_pictures(root / "train", ("cat", "dog"))
    classes_of_pictures(root / "val", ("cat", "cow"))


def own_val(root):
    classes_of_pictures(root / "train")
    classes_of_pictures(root / "val")


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda root: root.rmdir(), "", "exists"),
        (lambda root: None, "", "none"),
        (lambda root: classes_of_pictures(root, ("cat",)), "", "only cat"),
        (empty_class, "", "empty: emu"),
        (other_classes, "", "only in train: dog; only in val: cow"),
        (lone, "", "one image of cat"),
        (own_val, ",val=0.1", "folder val of its own"),
        (classes_of_pictures, ",vla=0.1", "val"),
        (classes_of_pictures, ",val=1.5", "between 0 and 1"),
        (classes_of_pictures, ",val=0.1,val=0.2", "once"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, make, options, words):
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    with pytest.raises(InputError, match=words) as raised:
        open_source(f"imagefolder:{root}{options}", argument="photos")
    assert raised.value.argument == "photos"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("imagefoldr:x", "imagefolder"),
        ("digit", "digits"),
        ("imagefolder", "PATH"),
        ("cifar100:", "PATH"),
        ("digits,size=3", "takes none"),
        ("digits:folder", "no path"),
    ],
)
def test_specifications_that_cannot_be_used(spec, words):
    with pytest.raises(InputError, match=words):
        open_source(spec)


def test_a_bare_path_is_recognised(tmp_path):
    with pytest.raises(InputError, match=f"imagefolder:{tmp_path}"):
        open_source(str(tmp_path))


def test_real_images_in_a_zip(shared_data):
    archive = shared_data / "cifar10" / "cifar10.zip"
    if not archive.exists():
        pytest.skip(f"needs {archive}")
    source = open_source(f"imagefolder:{archive}")
    assert (len(source.train), len(source.val), len(source.classes)) == (50_000, 10_000, 10)
    assert (source.image_size, source.augment) == (32, "cifar")
