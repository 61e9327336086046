"""Folders and zips as stores of files."""

import pickle
import zipfile
from multiprocessing import get_context

from stillroom.tasks.images.files import Zip
from tests.tasks.classification.miniatures import classes_of_pictures, zipped


def test_a_zip_is_read_by_several_processes(tmp_path):
    archive = Zip(zipped(classes_of_pictures(tmp_path / "set", count=20), tmp_path / "set.zip"))
    names = sorted(archive.listing()[0])
    expected = [archive.read(name) for name in names]
    with get_context("fork").Pool(2) as pool:
        assert pool.map(archive.read, names, chunksize=1) == expected
    assert pickle.loads(pickle.dumps(archive)).read(names[0]) == expected[0]  # what a spawned worker is given


def test_a_zip_with_backslashes_between_folders(tmp_path):
    root = classes_of_pictures(tmp_path / "set", count=4)
    files = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as made:
        for name, content in files.items():
            entry = zipfile.ZipInfo("x")
            entry.filename = name.replace("/", "\\")  # as some programs of Windows write it
            made.writestr(entry, content)
    archive = Zip(tmp_path / "set.zip")
    listed, folders = archive.listing()
    assert listed == {name: len(content) for name, content in files.items()}
    assert folders == {name.partition("/")[0] for name in files}
    assert {name: archive.read(name) for name in listed} == files
    assert {archive.size(name) for name in listed} == {len(content) for content in files.values()}
