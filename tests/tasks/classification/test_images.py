"""Images as they are read: upright, 8 bits a channel, without the damaged ones."""

import io
import logging
import random

import numpy as np
import pytest
from PIL import Image

from stillroom.tasks.images.classified import open_source
from stillroom.tasks.images.stores import DatasetImages, UnreadableImage, into_memory, read_image, stratified
from stillroom.tasks.images.transforms import eval_transform
from tests.tasks.classification.miniatures import classes_of_pictures


def test_unreadable_files_are_left_out_with_their_labels(tmp_path, caplog):
    classes_of_pictures(tmp_path / "train", count=8)
    classes_of_pictures(tmp_path / "val")
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"no image")
    (tmp_path / "train" / "cat" / "4.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        source = open_source(f"imagefolder:{tmp_path}")
        images = into_memory(source.train, 12, eval_transform("cifar", 12, source.mean, source.std).each)
    assert [record.getMessage().count(".png") for record in caplog.records] == [2]
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


def test_an_image_in_memory_is_treated_as_its_file(tmp_path):
    image = Image.new("RGB", (20, 10))
    image.getexif()[274] = 6
    assert read_image(image).size == (10, 20)
    assert image.size == (20, 10)
    deep = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert read_image(deep).getpixel((0, 0)) == (128, 128, 128)
    images = DatasetImages([(deep, 0)], np.zeros(1, np.int64), "train")
    assert images.image(0).getpixel((0, 0)) == (128, 128, 128)
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-500])
    with pytest.raises(UnreadableImage, match=r"cut\.jpg"):
        read_image(Image.open(tmp_path / "cut.jpg"))
    with pytest.raises(UnreadableImage, match="an image in memory"):
        read_image(Image.new("F", (4, 4)))


def test_stratified_draws_keep_the_shares():
    labels = np.repeat([0, 1, 2], [10, 100, 1000])
    random.Random(0).shuffle(labels)
    for count in (3, 111, 555):
        drawn = np.bincount(labels[stratified(labels, count)], minlength=3)
        assert drawn.sum() == count
        assert drawn.min() >= 1
        assert np.abs(drawn - count * np.array([10, 100, 1000]) / 1110).max() <= 3
    assert stratified(labels, 50, seed=1).tolist() != stratified(labels, 50).tolist()
