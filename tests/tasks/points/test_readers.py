"""Readers give what the files hold, in the conventions of this library, and say in one line what is wrong with them."""

import json
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.points.folder import open_folder, open_points
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.kitti import KittiDrives, open_kitti
from stillroom.tasks.points.nuscenes import open_nuscenes
from stillroom.tasks.points.pcd import read_pcd, unpack_lzf
from stillroom.tasks.points.place import open_place
from stillroom.tasks.points.ply import read_ply
from stillroom.tasks.points.rgbd import open_rgbd
from stillroom.tasks.points.s3dis import open_s3dis
from stillroom.tasks.points.scannet import open_scannet
from stillroom.tasks.points.semantic_kitti import CLASSES, KittiSequences, classes_of, instances_of, open_semantic_kitti
from stillroom.tasks.points.sources import INDEX
from stillroom.tasks.points.worlds import DrivingWorld, WorldSpec
from tests.tasks.points import made_up


def refuse(what):
    return InputError("data", what, "something else")


def read_all(parts):
    for part in parts():
        for index in range(len(part)):
            part.frame(index)


@pytest.fixture(scope="module")
def nuscenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("nuscenes")
    return root, made_up.nuscenes(root)


def opened(root, options=None):
    source = open_nuscenes(str(root), options or {"sweeps": "1"}, "data")
    frames = {}
    for part in (source.train, source.val):
        frames |= {(part.sequence(index), part.name(index)): part.frame(index) for index in range(len(part))}
    return source, [frames[key] for key in sorted(frames)]


def test_nuscenes_is_what_the_world_was(nuscenes):
    root, worlds = nuscenes
    _, frames = opened(root)
    assert len(frames) == 8
    for at, frame in enumerate(frames):
        world, index = worlds[at // 4], at % 4
        truth = world.frame(index)
        assert np.abs(frame.points[:, :3] - truth.points[:, :3]).max() < 1e-3  # x ahead, the own roof gone
        assert np.abs(frame.points[:, 3] - truth.points[:, 3]).max() < 1e-3
        annotated = np.flatnonzero([kind in ("car", "pedestrian", "cyclist") for kind in world.kinds])
        annotated = [thing for thing in annotated if (truth.instances == thing).any()]
        boxes = world.boxes(index)[annotated]
        assert np.abs(frame.boxes[:, :6] - boxes[:, :6]).max() < 1e-3
        assert np.abs(np.exp(1j * frame.boxes[:, 6]) - np.exp(1j * boxes[:, 6])).max() < 1e-3
        assert np.abs(frame.boxes[:, 7:] - boxes[:, 7:]).max() < 0.6  # by differences of half a second
        view, wanted = frame.views[0], truth.views[0]
        assert np.abs(view.cam2ego - wanted.cam2ego).max() < 1e-6
        assert (view.image == wanted.image).all()


def test_nuscenes_sweeps_are_moved_cleaned_and_dated(nuscenes):
    root, worlds = nuscenes
    _, frames = opened(root, {"sweeps": "3", "cameras": "0"})
    frame, world = frames[3], worlds[0]
    lag = frame.column("lag")
    assert sorted(set(np.round(lag, 3).tolist())) == [0, 0.5, 1.0]
    static = np.flatnonzero([kind in ("wall", "pole", "low wall") for kind in world.kinds])
    sizes = world.boxes(3)[static, :7].copy()
    sizes[:, 3:6] += 0.3

    old = frame.points[lag > 0.9]
    on = np.zeros(len(old), bool)
    for box in sizes:
        x, y = old[:, 0] - box[0], old[:, 1] - box[1]
        cos, sin = np.cos(box[6]), np.sin(box[6])
        on |= (np.abs(cos * x + sin * y) < box[3] / 2) & (np.abs(cos * y - sin * x) < box[4] / 2)
    first = world.frame(1)
    wanted = np.isin(first.instances, static).sum()
    assert wanted > 0
    assert on.sum() >= wanted  # the map stays sharp: what was on a wall a second ago lies on it still
    roofs = frame.points[np.abs(frame.points[:, 2] - 1.94) < 0.02, :2] - [0.94, 0]
    assert not (np.linalg.norm(roofs + np.outer(lag[np.abs(frame.points[:, 2] - 1.94) < 0.02], [5, 0]), axis=1) < 1.0).any()
    assert len(frames[0].points) < len(frame.points)  # the first frame has the sweeps that there are


def test_nuscenes_keeps_an_index_and_notices_changes(nuscenes):
    root, _ = nuscenes
    first, _ = opened(root)
    lines = (root / INDEX).read_text().splitlines()
    assert len(lines) == 9
    second, _ = opened(root)
    assert second.fingerprint == first.fingerprint
    table = root / "v1.0-mini/sample_annotation.json"
    rows = json.loads(table.read_text())
    table.write_text(json.dumps(rows[1:]))
    try:
        _, changed = opened(root)
        assert sum(len(frame.boxes) for frame in changed) < sum(len(frame.boxes) for frame in opened(root, {"sweeps": "1"})[1]) + 1
        assert len((root / INDEX).read_text()) < len("\n".join(lines)) + 1
    finally:
        table.write_text(json.dumps(rows))


def test_nuscenes_of_a_single_annotation_has_no_velocity_but_a_box(tmp_path):
    made_up.nuscenes(tmp_path)
    table = tmp_path / "v1.0-mini/sample_annotation.json"
    rows = json.loads(table.read_text())
    for row in rows:
        row |= {"prev": "", "next": ""}
    table.write_text(json.dumps(rows))
    (tmp_path / "samples/0-1.pcd.bin").unlink()
    source, frames = opened(tmp_path, {"sweeps": "2", "cameras": "0"})
    assert all(np.isnan(frame.boxes[:, 7:]).all() and np.isfinite(frame.boxes[:, :7]).all() for frame in frames)
    assert "1 sweeps that the tables name are not there" in source.said[0]
    assert len(frames) == 7


def test_kitti_boxes_are_centred_and_in_the_lidars_frame(tmp_path):
    frames = made_up.kitti(tmp_path)
    source = open_kitti(str(tmp_path), {}, "data")
    found = {part.name(k): part.frame(k) for part in (source.train, source.val) for k in range(len(part))}
    assert len(found) == 4
    for number, truth in enumerate(frames):
        frame = found[f"{number:06d}"]
        assert np.abs(frame.boxes[:, :6] - truth.boxes[:, :6]).max() < 1e-4
        assert np.abs(np.exp(1j * frame.boxes[:, 6]) - np.exp(1j * truth.boxes[:, 6])).max() < 1e-4
        assert np.isnan(frame.boxes[:, 7:]).all()
        assert (frame.labels == truth.labels).all()
        assert frame.ignored_labels.tolist() == [0]  # a van is neither a car nor none
        assert len(frame.meta["dont_care"]) == 1
        view = frame.views[0]
        point = np.array([12.0, 1.0, -0.5])
        q = made_up.PROJECTION @ (made_up.VELO2CAM @ [*point, 1])
        ego2cam = np.linalg.inv(view.cam2ego)
        mine = view.intrinsics @ (ego2cam[:3, :3] @ point + ego2cam[:3, 3])
        assert mine[:2] / mine[2] == pytest.approx(q[:2] / q[2])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("velodyne/000001.bin", b"12345", "multiple of 16"),
        ("label_2/000001.txt", b"Car 0 0 1 2\n", "14 numbers"),
        ("calib/000001.txt", b"P2: 1 2 3\n", "calibration"),
        ("image_2/000001.png", b"no picture", "cannot be decoded"),
    ],
)
def test_kitti_says_which_file_is_wrong(tmp_path, file, content, said):
    made_up.kitti(tmp_path)
    (tmp_path / "training" / file).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_all(lambda: (lambda source: (source.train, source.val))(open_kitti(str(tmp_path), {}, "data")))
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_kitti_drives_have_poses_from_their_positions(tmp_path):
    drive = tmp_path / "2011_09_26/2011_09_26_drive_0001_sync"
    for folder in ("velodyne_points/data", "oxts/data", "image_02/data"):
        (drive / folder).mkdir(parents=True)
    turn = "R: 1 0 0 0 1 0 0 0 1\nT: 0 0 0\n"
    (tmp_path / "2011_09_26/calib_imu_to_velo.txt").write_text("calib_time: 25-May-2012\n" + turn)
    (tmp_path / "2011_09_26/calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n")
    (tmp_path / "2011_09_26/calib_cam_to_cam.txt").write_text("R_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_02: 50 0 10 0 0 50 8 0 0 0 1 0\n")
    for number in range(2):
        np.zeros((3, 4), "<f4").tofile(drive / f"velodyne_points/data/{number:010d}.bin")
        east = 8.4 + 1e-5 * number  # about 0.73 m at this latitude
        (drive / f"oxts/data/{number:010d}.txt").write_text(f"49.0 {east} 100 0 0 0 " + "0 " * 24)
        Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(drive / f"image_02/data/{number:010d}.png")
    frames = KittiDrives(open_place(str(tmp_path), "data")).listed()
    first, second = frames.frame(0), frames.frame(1)
    assert np.allclose(first.ego2global, np.eye(4))
    assert second.ego2global[:3, 3] == pytest.approx([0.731, 0, 0], abs=0.01)
    assert second.views[0].cam2ego[:3, 2] == pytest.approx([1, 0, 0])


def test_semantic_kitti_labels_are_low_and_high_halves(tmp_path):
    raw = np.array([10, 65546, 252, 0, 1, 40, (7 << 16) + 30], "<u4")
    assert [CLASSES[k] if k >= 0 else None for k in classes_of(raw)] == ["car", "car", "car", None, None, "road", "person"]
    assert instances_of(raw).tolist() == [-1, 1, -1, -1, -1, -1, 7]
    for sequence in ("00", "08"):
        folder = tmp_path / f"sequences/{sequence}"
        for inner in ("velodyne", "labels"):
            (folder / inner).mkdir(parents=True)
        for number in range(2):
            np.arange(28, dtype="<f4").tofile(folder / f"velodyne/{number:06d}.bin")
            raw.tofile(folder / f"labels/{number:06d}.label")
        (folder / "calib.txt").write_text("P2: 1 0 0 0 0 1 0 0 0 0 1 0\nTr: 0 -1 0 0 0 0 -1 0 1 0 0 0\n")
        (folder / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0 0 1 0 0 0 0 1 2\n")
    source = open_semantic_kitti(str(tmp_path), {}, "data")
    assert [len(source.train), len(source.val)] == [2, 2]
    frame = source.val.frame(1)
    assert frame.ego2global[:3, 3] == pytest.approx([2, 0, 0])  # the camera's z is the lidar's x
    assert len(frame.point_labels) == len(frame.points) == 7
    raw[:3].tofile(tmp_path / "sequences/08/labels/000001.label")
    with pytest.raises(InputError, match="3 labels of 7 points"):
        source.val.frame(1)
    (tmp_path / "sequences/00/poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n")
    with pytest.raises(InputError, match="frame 1 of 1 poses"):
        KittiSequences(open_place(str(tmp_path), "data")).listed().frame(1)


# Plain folders --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    spec = WorldSpec(objects=(5, 5), azimuths=90)
    return made_up.plain(tmp_path / "set", [DrivingWorld((2, number), spec).frame() for number in range(6)])


def test_a_plain_folder_and_the_same_as_a_zip(folder, tmp_path):
    source = open_points(str(folder), {}, "data")
    assert source.classes.names == ("car", "cyclist", "pedestrian")
    assert {source.train.sequence(k) for k in range(len(source.train))}.isdisjoint({source.val.sequence(k) for k in range(len(source.val))})
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, f"deeper/{file.relative_to(folder)}")
    zipped = open_points(str(tmp_path / "set.zip"), {}, "data")
    assert zipped.fingerprint == source.fingerprint
    assert (zipped.train.frame(0).points == source.train.frame(0).points).all()


def rewrite(folder, change):
    told = json.loads((folder / "frames.json").read_text())
    change(told)
    (folder / "frames.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told["frames"][1].update(time_s=-1.0), "after 0 s"),
        (lambda told: told["frames"][2].update(lidar="lidar/none.bin"), "is not there"),
        (lambda told: told.update(columns=["x", "y", "z", "intensity"]), "no multiple of 16"),
        (lambda told: told["frames"][0]["boxes"][0].update(box=[1, 2]), "7 or 9 numbers"),
        (lambda told: told["frames"][0].update(images={"front": "front.png"}), "no calibration"),
        (lambda told: told["frames"][0].update(ego2global=[[1, 0], [0, 1]]), "pose of 4 numbers"),
        (lambda told: told["frames"][4].update(sequence="drive 0"), "behind each other"),
        (lambda told: told.update(frames=[]), "list of frames"),
    ],
)
def test_a_plain_folder_says_what_is_wrong(folder, change, said):
    # a number of points whose bytes are a multiple of neither 16 nor 20 by chance would hide nothing: make it 5 columns of 3 points
    np.zeros((3, 5), "<f4").tofile(folder / "lidar/1.bin")
    rewrite(folder, change)
    with pytest.raises(InputError, match=said) as caught:
        read_all(lambda: [open_folder(str(folder), "data").listed()])
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_lidars_frame_is_turned(folder):
    before = open_folder(str(folder), "data").listed().frame(0)
    rewrite(folder, lambda told: told.update(lidar2ego=made_up.LIDAR2EGO.tolist()))
    after = open_folder(str(folder), "data").listed().frame(0)
    assert after.points[0, :3] == pytest.approx(made_up.LIDAR2EGO[:3] @ [*before.points[0, :3], 1], abs=1e-4)
    assert after.boxes[0, 6] == pytest.approx(before.boxes[0, 6] - np.pi / 2, abs=1e-4) or after.boxes[0, 6] == pytest.approx(
        before.boxes[0, 6] + 3 * np.pi / 2, abs=1e-4
    )


# Point files ----------------------------------------------------------------------------------------------------------------------------

HEAD = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z _ intensity _ rgb\nSIZE 4 4 4 1 4 1 4\nTYPE F F F U F U F\nCOUNT 1 1 1 4 1 12 1\n"
ROWS = [(1.0, 2.0, 3.0, 0.5, (255, 128, 0)), (float("nan"), 0.0, 0.0, 0.1, (0, 0, 0)), (4.0, 5.0, 6.0, 0.25, (0, 51, 255))]


def packed(colour):
    return struct.unpack("<f", struct.pack("<I", colour[0] << 16 | colour[1] << 8 | colour[2]))[0]


def pcd(form):
    head = f"{HEAD}WIDTH 3\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 3\nDATA {form}\n".encode()
    if form == "ascii":
        lines = [f"{x} {y} {z} 0 0 0 0 {i} {'0 ' * 12}{packed(c)!r}" for x, y, z, i, c in ROWS]
        return head + "\n".join(lines).encode() + b"\n"
    parts = [[struct.pack("<f", row[k]) for row in ROWS] for k in range(3)]
    parts += [[b"\1" * 4] * 3, [struct.pack("<f", row[3]) for row in ROWS], [b"\2" * 12] * 3]
    parts += [[struct.pack("<I", c[0] << 16 | c[1] << 8 | c[2]) for *_, c in ROWS]]
    if form == "binary":
        return head + b"".join(b"".join(part[k] for part in parts) for k in range(3))
    raw = b"".join(b"".join(part) for part in parts)
    literal = b"".join(bytes([len(raw[at : at + 32]) - 1]) + raw[at : at + 32] for at in range(0, len(raw), 32))
    return head + struct.pack("<II", len(literal), len(raw)) + literal


@pytest.mark.parametrize("form", ["ascii", "binary", "binary_compressed"])
def test_pcd_fields_are_found_by_name_whatever_the_form(form):
    points, columns = read_pcd(pcd(form), refuse)
    assert columns == ("x", "y", "z", "intensity", "red", "green", "blue")
    assert points.shape == (2, 7)  # the row without a place is left out
    assert points[:, :4].tolist() == [[1, 2, 3, 0.5], [4, 5, 6, 0.25]]
    assert (points[:, 4:] * 255).round().tolist() == [[255, 128, 0], [0, 51, 255]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pcd("binary")[:-3], "fewer than its 3 points"),
        (pcd("ascii")[:-30], "fewer than its 3 points"),
        (pcd("binary_compressed")[:-5], "cut off"),
        (pcd("ascii").replace(b"FIELDS x y", b"FIELDS a y"), "without the field x"),
        (b"# nothing\n", "without a line DATA"),
        (pcd("ascii").replace(b"DATA ascii", b"DATA big"), "of DATA big"),
    ],
)
def test_a_damaged_pcd_is_one_clear_line(content, said):
    with pytest.raises(InputError, match=said):
        read_pcd(content, refuse)


def test_lzf_repeats_what_it_wrote():
    assert unpack_lzf(bytes([1, 7, 8, (3 << 5), 1]), 7) == bytes([7, 8, 7, 8, 7, 8, 7])


def ply(form, order="<"):
    head = (
        f"ply\nformat {form} 1.0\ncomment made up\nelement vertex 2\nproperty float x\nproperty double y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nelement face 1\nproperty list uchar int i\nend_header\n"
    ).encode()
    rows = [(1.5, 2.5, 3.5, 255, 0, 51), (-1.0, 0.0, 2.0, 1, 2, 3)]
    if form == "ascii":
        return head + b"\n".join(" ".join(map(str, row)).encode() for row in rows) + b"\n3 0 1 1\n"
    return head + b"".join(struct.pack(f"{order}fdfBBB", *row) for row in rows) + b"\3" + bytes(12)


@pytest.mark.parametrize(("form", "order"), [("ascii", "<"), ("binary_little_endian", "<"), ("binary_big_endian", ">")])
def test_ply_of_every_form(form, order):
    found = read_ply(ply(form, order), refuse)
    assert found["y"].tolist() == [2.5, 0.0]
    assert found["blue"].tolist() == [51, 3]
    with pytest.raises(InputError, match="fewer than its 2"):
        read_ply(ply(form, order)[: -30 if form == "ascii" else -20], refuse)
    with pytest.raises(InputError, match="does not begin"):
        read_ply(b"PCD", refuse)


# Rooms ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scannet(tmp_path):
    random = np.random.default_rng(0)
    for number in range(3):
        scene = f"scene{number:04d}_00"
        folder = tmp_path / f"scans/{scene}"
        for inner in ("color", "depth", "pose", "intrinsic"):
            (folder / inner).mkdir(parents=True)
        places = {name: random.random(8).astype("<f4") for name in "xyz"}
        colours = {name: random.integers(0, 255, 8).astype("u1") for name in ("red", "green", "blue")}
        made_up.write_ply(folder / f"{scene}_vh_clean_2.ply", places | colours)
        made_up.write_ply(folder / f"{scene}_vh_clean_2.labels.ply", places | {"label": np.array([1, 2, 0, 13, 39, 40, 3, 5], "<i4")})
        segments = [7, 7, 3, 3, 9, 9, 9, 3]
        (folder / f"{scene}_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": segments}))
        (folder / "intrinsic/intrinsic_color.txt").write_text("10 0 4 0\n0 10 3 0\n0 0 1 0\n0 0 0 1\n")
        for view in (0, 20, 100):
            Image.fromarray(np.full((6, 8, 3), view, np.uint8)).save(folder / f"color/{view}.jpg")
            Image.fromarray(np.full((3, 4), 1500, np.uint16)).save(folder / f"depth/{view}.png")
            pose = np.eye(4) if view < 100 else np.full((4, 4), -np.inf)
            np.savetxt(folder / f"pose/{view}.txt", pose)
    (tmp_path / "scannetv2_val.txt").write_text("scene0002_00\n")
    return tmp_path


def test_scannet(scannet):
    source = open_scannet(str(scannet), {"every": "1"}, "data")
    assert [source.val.name(0), len(source.train), len(source.val)] == ["scene0002_00", 2, 1]
    frame = source.train.frame(0)
    assert frame.point_labels.tolist() == [0, 1, -1, -1, 19, -1, 2, 4]
    assert frame.meta["segments"].tolist() == [1, 1, 0, 0, 2, 2, 2, 0]
    assert [view.name for view in frame.views] == ["0", "20"]  # where tracking was lost is left out
    assert frame.views[0].depth.shape == (6, 8)
    assert frame.views[0].depth[0, 0] == 1.5
    assert frame.points[:, 3:].max() <= 1
    (scannet / "scans/scene0000_00/scene0000_00_vh_clean_2.0.010000.segs.json").write_text('{"segIndices": [1, 2]}')
    with pytest.raises(InputError, match="scene0000_00 with 8 points, 8 labels, 2 segments"):
        source.train.frame(0)


def test_s3dis_with_its_broken_byte(tmp_path):
    for area in ("Area_1", "Area_5"):
        folder = tmp_path / f"{area}/hallway_6/Annotations"
        folder.mkdir(parents=True)
        (folder / "ceiling_1.txt").write_bytes(b"22.0 4.0 1.0 185 187 174\n22.1 4.0 1.0 185\x10187 174\n23.0 4.0 1.0 1 2 3\n")
        (folder / "stairs_1.txt").write_text("1 2 3 10 20 30\n")
    source = open_s3dis(str(tmp_path), {}, "data")
    frame = source.val.frame(0)
    assert source.val.name(0) == "Area_5/hallway_6"
    assert sorted(frame.point_labels.tolist()) == [0, 0, 0, 12]
    (tmp_path / "Area_5/hallway_6/Annotations/stairs_1.txt").write_text("1 2 3\n4 5 6\n7 8 9\n")
    with pytest.raises(InputError, match="six numbers"):
        source.val.frame(0)


def test_scans_of_a_depth_camera(tmp_path):
    for inner in ("color", "depth", "pose"):
        (tmp_path / inner).mkdir()
    Image.fromarray(np.full((6, 8, 3), 100, np.uint8)).save(tmp_path / "color/000000.jpg")
    Image.fromarray(np.full((6, 8), 2000, np.uint16)).save(tmp_path / "depth/000000.png")
    np.savetxt(tmp_path / "pose/000000.txt", np.eye(4))
    with pytest.raises(InputError, match="without calibration"):
        open_rgbd(str(tmp_path), {}, "data").train.frame(0)
    (tmp_path / "meta.json").write_text(json.dumps({"intrinsics_8x6": [[10, 0, 4], [0, 10, 3], [0, 0, 1]]}))
    source = open_rgbd(str(tmp_path), {}, "data")
    frame = source.train.frame(0)
    assert len(source.said) == 1
    assert frame.points[:, 2] == pytest.approx(2.0)  # the camera's z
    assert isinstance(frame, Frame)
    assert frame.point_labels is None
