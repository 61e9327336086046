"""Folders and zips as stores of files."""

import pickle
from multiprocessing import get_context

from stillroom.tasks.images.folders import Zip
from tests.tasks.classification.miniatures import classes_of_pictures, zipped


def test_a_zip_is_read_by_several_processes(tmp_path):
    archive = Zip(zipped(classes_of_pictures(tmp_path / "set", count=20), tmp_path / "set.zip"))
    names = sorted(archive.listing()[0])
    expected = [archive.read(name) for name in names]
    with get_context("fork").Pool(2) as pool:
        assert pool.map(archive.read, names, chunksize=1) == expected
    assert pickle.loads(pickle.dumps(archive)).read(names[0]) == expected[0]  # what a spawned worker is given
