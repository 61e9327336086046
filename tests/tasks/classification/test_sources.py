"""Every layout that can be named, and every way in which it can be wrong."""

import io
import logging
import pickle
import random
import zipfile
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.classification.sources import UnreadableImage, Zip, into_memory, open_source, read_image, stratified
from stillroom.tasks.classification.transforms import eval_transform


def picture(path, colour=(200, 100, 50), size=(12, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def classes_of_pictures(root, classes=("cat", "dog"), count=5, size=(12, 12), extension="png"):
    for number, name in enumerate(classes):
        for i in range(count):
            picture(root / name / f"{i}.{extension}", (40 * number, 10 * i, 0), size)
    return root


def zipped(folder, archive, prefix=""):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
        file.writestr("__MACOSX/cat/._0.png", b"not an image")
    return archive


def cifar100(root, train=20, test=10):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))

    for name, count in (("train", train), ("test", test)):
        pixels = numbers.integers(0, 256, (count, 3072), np.uint8)
        write(name, {"data": pixels, "fine_labels": [i % 5 for i in range(count)], "filenames": [f"{name}_{i}.png" for i in range(count)]})
    write("meta", {"fine_label_names": ["apple", "baby", "bear", "beaver", "bed"]})
    return root


def tiny_imagenet(root):
    wnids = ("n01443537", "n01629819")
    for wnid in wnids:
        for i in range(3):
            picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", size=(64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes\n")
    rows = [f"val_{i}.JPEG\t{wnids[1 - i]}\t0\t0\t63\t63\n" for i in range(2)]
    for i in range(2):
        picture(root / "val" / "images" / f"val_{i}.JPEG", size=(64, 64))
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander, Salamandra\n")
    (root / "test" / "images").mkdir(parents=True)
    return root


def imagenet(root):
    for split in ("train", "val"):
        classes_of_pictures(root / split, ("n01440764", "n01443537"), 3, (80, 60), "JPEG")
    return root


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


def test_a_zip_is_read_by_several_processes(tmp_path):
    archive = Zip(zipped(classes_of_pictures(tmp_path / "set", count=20), tmp_path / "set.zip"))
    names = sorted(archive.listing()[0])
    expected = [archive.read(name) for name in names]
    with get_context("fork").Pool(2) as pool:
        assert pool.map(archive.read, names, chunksize=1) == expected
    assert pickle.loads(pickle.dumps(archive)).read(names[0]) == expected[0]  # what a spawned worker is given


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
    with pytest.raises(UnreadableImage, match="mean and std"):
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


def test_unreadable_files_are_left_out_with_their_labels(tmp_path, caplog):
    classes_of_pictures(tmp_path / "train", count=8)
    classes_of_pictures(tmp_path / "val")
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"no image")
    (tmp_path / "train" / "cat" / "4.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        source = open_source(f"imagefolder:{tmp_path}")
        images = into_memory(source.train, 12, eval_transform("cifar", 12, source.mean, source.std).each)
    assert [record.getMessage().count(".png") for record in caplog.records] == [1, 1]
    assert np.bincount(images.labels).tolist() == [6, 8]
    for i in range(len(images)):
        red, green = images.pixels[i, :2, 0, 0].tolist()
        assert (red // 40, f"{green // 10}.png") == (images.labels[i], images.name(i).split("/")[-1])


def test_orientation_and_modes(tmp_path):
    image = Image.new("RGB", (20, 10))
    image.putpixel((0, 0), (255, 255, 255))
    exif = image.getexif()
    exif[274] = 6  # lay on its side: the top left corner belongs to the top right
    image.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.size == (10, 20)
    assert turned.getpixel((9, 0)) == (255, 255, 255)
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").mode == "RGB"
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "real.tiff")
    with pytest.raises(UnreadableImage, match=r"real.tiff.*floating"):
        read_image(tmp_path / "real.tiff")
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "jpeg")
    with pytest.raises(UnreadableImage, match=r"cut\.jpg"):
        read_image(io.BytesIO(whole.getvalue()[:-500]), "cut.jpg")


def test_stratified_draws_keep_the_shares():
    labels = np.repeat([0, 1, 2], [10, 100, 1000])
    random.Random(0).shuffle(labels)
    for count in (3, 111, 555):
        drawn = np.bincount(labels[stratified(labels, count)], minlength=3)
        assert drawn.sum() == count
        assert drawn.min() >= 1
        assert np.abs(drawn - count * np.array([10, 100, 1000]) / 1110).max() <= 3
    assert stratified(labels, 50, seed=1).tolist() != stratified(labels, 50).tolist()


def test_real_images_in_a_zip(shared_data):
    archive = shared_data / "cifar10" / "cifar10.zip"
    if not archive.exists():
        pytest.skip(f"needs {archive}")
    source = open_source(f"imagefolder:{archive}")
    assert (len(source.train), len(source.val), len(source.classes)) == (50_000, 10_000, 10)
    assert (source.image_size, source.augment) == (32, "cifar")
