"""Video: which frames are seen, that modalities agree, the layouts that people have, and the student as a user meets it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stillroom.cli import main
from stillroom.engine.loading import Draw
from stillroom.engine.schedule import Schedule
from stillroom.errors import InputError
from stillroom.tasks.video import VideoData, averaged_logits, load
from stillroom.tasks.video.batches import ClipBatches
from stillroom.tasks.video.loaded import opened_video
from stillroom.tasks.video.metrics import SCALED, VideoEvaluator
from stillroom.tasks.video.models import build_video_network
from stillroom.tasks.video.sampling import test_frames as frames_of_test
from stillroom.tasks.video.sampling import train_frames
from stillroom.tasks.video.scores import calibration_error
from stillroom.tasks.video.segments import read_segments
from stillroom.tasks.video.sources import open_source
from stillroom.tasks.video.tracks import boxes_of
from tests.tasks.video.miniatures import class_folders, epic, frames, something

TINY = ("--data", "actions:train=24,val=12", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--accelerator", "cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("folders"))


# Frames ---------------------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.sampled_from(["uniform", "dense"]), st.integers(1, 4))
def test_every_frame_that_is_asked_for_is_there_and_none_lies_before_another(
    length: int, count: int, clips: int, sampler: str, stride: int
) -> None:
    found = frames_of_test(length, count, clips, sampler, stride)
    drawn = train_frames(length, count, sampler, stride, [0.999] * count)
    assert found.shape == (clips, count)
    assert 0 <= found.min() <= found.max() < length
    assert 0 <= drawn.min() <= drawn.max() < length
    assert (np.diff(found, axis=1) >= 0).all()


def test_a_dense_clip_that_reaches_behind_the_end_repeats_its_last_frame() -> None:
    assert frames_of_test(10, 5, 1, "dense", 4).tolist() == [[0, 4, 8, 8, 8]]


def test_a_linear_schedule_rises_from_nothing_and_falls_to_nothing() -> None:
    schedule = Schedule("linear", warmup_epochs=1)
    rates = [schedule.rate(2.0, step=step, steps_per_epoch=4, epochs=3) for step in range(13)]
    assert rates[:5] == [0, 0.5, 1.0, 1.5, 2.0]
    assert rates[-1] == 0
    assert rates[8] == pytest.approx(1.0)


def test_modalities_show_the_same_frames_places_and_colours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for verb in ("a", "b"):
            for modality in ("rgb", "flow"):
                (tmp_path / split / verb / "0" / modality).mkdir(parents=True)
            for number in range(9):
                picture = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
                for modality in ("rgb", "flow"):
                    picture.save(tmp_path / split / verb / "0" / modality / f"{number}.png")
    options: dict[str, Any] = {"frames": 4, "image_size": 12, "augment": "jitter", "workers": 0, "batch_size": 2}
    data = VideoData(f"clips:{tmp_path}", **options).of("rgb", "flow")
    batch = next(iter(data.train_loader(seed=1)))
    assert batch.clips["rgb"].shape == (2, 1, 4, 3, 12, 12)
    torch.testing.assert_close(batch.clips["rgb"], batch.clips["flow"])
    again = next(iter(data.train_loader(seed=2)))
    assert not torch.equal(batch.clips["rgb"], again.clips["rgb"])
    still = next(iter(VideoData(f"clips:{tmp_path}", **{**options, "augment": "none", "sampling": "dense"}).train_loader(seed=1)))
    assert still.clips["rgb"].shape == (2, 1, 4, 3, 12, 12)


def test_a_test_has_clips_times_crops_in_that_order(folders: Path) -> None:
    data = VideoData(f"clips:{folders}", frames=2, image_size=24, test_clips=3, test_crops=3, workers=0, batch_size=2)
    seen = ClipBatches(data._val, data, training=False).__getitems__([Draw(0, 0)]).clips["rgb"]
    assert seen.shape == (1, 9, 2, 3, 24, 24)
    levels = seen[0, :, 0, 0, -1, -1]  # below and to the right nothing is darker
    assert (levels.view(3, 3) == levels.view(3, 3)[:, :1]).all()
    assert (levels.view(3, 3)[1:, 0] > levels.view(3, 3)[:-1, 0]).all()


# Layouts --------------------------------------------------------------------------------------------------------------------------------


def test_class_folders_of_frames_have_their_classes_splits_and_modalities(folders: Path) -> None:
    data = VideoData(f"clips:{folders}", frames=4, image_size=16, workers=0, batch_size=4)
    assert data.heads == {"action": ("lift", "push")}
    assert (data.train_size, len(data._val)) == (6, 4)
    assert data.modalities == ("rgb", "flow")
    assert "flow (50 % of the training clips)" in " ".join(data.first_lines())
    batch = next(iter(data.of("rgb", "flow").train_loader(seed=0)))
    pushed = batch.labels["action"] == 1
    assert torch.equal(batch.present, torch.stack([torch.ones_like(pushed), pushed], 1))
    assert not batch.clips["flow"][~pushed].any()
    assert data.of("flow").having("flow").train_size == 3


def test_a_zip_of_frames_is_read_as_its_folder(folders: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for file in sorted(folders.rglob("*.jpg")):
            archive.write(file, file.relative_to(folders))
    options: dict[str, Any] = {"frames": 4, "image_size": 16, "workers": 0}
    a, b = (next(iter(VideoData(f"clips:{path}", **options).eval_loader())) for path in (folders, tmp_path / "clips.zip"))
    assert torch.equal(a.clips["rgb"], b.clips["rgb"])


def test_epic_kitchens_counts_frames_from_one_and_says_what_is_not_there(tmp_path: Path) -> None:
    data = VideoData(f"epic:{epic(tmp_path)}", frames=4, frame_stride=1, image_size=16, workers=0)
    assert data.heads == {"verb": ("take", "put", "wash", "open"), "noun": ("door", "cup")}
    assert data._listed[0].labels.tolist() == [[0, 1], [1, 0], [3, 1]]
    said = "\n".join(data.first_lines())
    assert "left out 1 clip without frames or a video: P09_09 1-5" in said
    assert "left out 1 clip beginning behind the end of the video: P01_01 30-40" in said
    assert "cut short 1 clip ending behind the end of the video: P01_01 15-25" in said
    first = data._listed[0].clips[1].tracks
    assert len(first["rgb"]) == 8
    assert int(first["rgb"].read([0])[0, 0, -1, -1]) == pytest.approx(45, abs=3)  # the frame no. 5 is the fifth
    flow = first["flow"].read([7])[0, :, -1, -1].tolist()
    assert flow == [pytest.approx(115, abs=3), pytest.approx(115, abs=3), 0]


def test_something_something_joins_templates_and_numbers(tmp_path: Path) -> None:
    data = VideoData(f"something:{something(tmp_path)}", frames=4, image_size=16, workers=0)
    assert data.heads == {"action": ("Holding something", "Lifting something up", "Pushing something")}
    assert data._listed[0].labels[:, 0].tolist() == [0, 2, 0, 2]
    assert data.shape_of("rgb", training=True) == (1, 4, 3, 16, 16)


def test_segments_of_frames_are_held_out_without_a_frame_in_both_splits(tmp_path: Path) -> None:
    frames(tmp_path / "rgb", 120, pattern="{:06d}.jpg", size=(8, 8))
    frames(tmp_path / "depth", 120, pattern="{:06d}.png", size=(8, 8), grey=True)
    rows = [f"{start:06d},12,{('pan', 'roll')[start // 6 % 2]},{('up', 'down')[start % 4 // 2]},0.5" for start in range(0, 108, 6)]
    (tmp_path / "clips.csv").write_text("start,length,rotation,translation,degrees\n" + "\n".join(rows))
    data = VideoData(f"clips:{tmp_path}", frames=4, image_size=8, workers=0)
    assert tuple(data.heads) == ("rotation", "translation")
    assert data.modalities == ("rgb", "depth")

    def numbers(split: int) -> set[int]:
        tracks: list[Any] = [clip.tracks["rgb"] for clip in data._listed[split].clips]
        return {number for track in tracks for number in range(track.start, track.stop + 1)}

    assert numbers(0)
    assert numbers(1)
    assert not numbers(0) & numbers(1)
    assert "share frames with them train nobody" in " ".join(data.first_lines())


def test_class_numbers_order_the_classes_of_a_table() -> None:
    table = b"video,start_frame,end_frame,verb,verb_class\na,1,4,wash,2\nb,2,5,take,0\nb,0:01.5,0:02,taking,0\n"
    with pytest.raises(InputError, match="numbers of frames, or times"):
        read_segments("t.csv", table.replace(b"2,5", b"x,5"), None, "data")
    found = read_segments("t.csv", table, ["verb"], "data")
    assert found.heads == {"verb": ("take", "wash")}
    assert [row.labels for row in found.rows] == [(1,), (0,), (0,)]
    assert found.rows[2].seconds == (1.5, 2.0)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("video,start\nclip,3\n", "column of labels"),
        ("video,start,verb\nclip,3,take\n", "column of the last frame"),
        ("video,start,stop,verb\nclip,9,3,take\n", "a last frame that is not before the first"),
        ("video,start,stop,verb,split\nclip,1,3,take,nowhere\n", "train or val"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(table: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read_segments("t.csv", table.encode(), None, "data")


def test_boxes_outside_the_picture_or_of_other_categories_are_refused() -> None:
    found = boxes_of([{"box": [0, 0, 0.5, 1], "category": "hand", "score": 0.3, "side": "right", "state": 3}], "here")
    assert found[0].tolist() == pytest.approx([2, 0, 0, 0.5, 1, 0.3, 2, 3])
    assert not found[1:, [0, 5, 6, 7]].any()
    for wrong in ({"box": [0, 0, 30, 40], "category": "hand"}, {"box": [0, 0, 1, 1], "category": "cup"}):
        with pytest.raises(InputError, match="shares of the picture"):
            boxes_of([wrong], "here")


def test_what_cannot_be_used_is_named(folders: Path) -> None:
    for options, argument in (
        ({"modality": "depth"}, "modality"),
        ({"sampling": "random"}, "sampling"),
        ({"test_crops": 2}, "test_crops"),
        ({"frames": 0}, "frames"),
        ({"augment": "mirror"}, "augment"),
    ):
        with pytest.raises(InputError, match=argument):
            VideoData(f"clips:{folders}", **options)


def test_flow_is_estimated_where_none_is_stored_and_weights_are_at_hand(folders: Path, tmp_path: Path) -> None:
    from torchvision.models.optical_flow import raft_small

    torch.save(raft_small(weights=None).state_dict(), tmp_path / "raft.pth")
    given: dict[str, Any] = {"frames": 2, "image_size": 16, "workers": 0, "batch_size": 2, "modality": "flow"}
    data = VideoData(f"clips:{folders}", flow_weights=str(tmp_path / "raft.pth"), **given)
    assert "flow (100 % of the training clips)" in " ".join(data.first_lines())
    without = VideoData(f"clips:{folders}", **given)
    assert without.fingerprint != data.fingerprint
    lifted = next(clip for clip in data._listed[0].clips if clip.labels == (0,))
    levels = lifted.tracks["flow"].read([0, 5, 4])
    assert (levels.dtype, levels.shape) == (torch.uint8, (3, 3, 24, 32))
    assert not levels[:, 2].any()
    assert torch.equal(levels[1], levels[2])  # the last frame has the flow of the one before
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="flow_weights"):
        VideoData(f"clips:{folders}", flow_weights=str(tmp_path / "other.pth"), **given)


# Measures -------------------------------------------------------------------------------------------------------------------------------


def test_an_action_is_right_where_every_head_is() -> None:
    evaluator = VideoEvaluator({"verb": 3, "noun": 2})
    data = VideoData("actions:train=8,val=4", workers=0)
    batch = next(iter(data.eval_loader()))._replace(labels={"verb": torch.tensor([0, 1, 2, 0]), "noun": torch.tensor([0, 1, 0, 1])})
    verb, noun = torch.eye(3)[[0, 1, 1, 0]], torch.eye(2)[[0, 0, 0, 1]]
    evaluator.update({"verb": verb, "noun": noun}, batch)
    figures = evaluator.compute()
    assert (figures["top1"], figures["verb top1"], figures["noun top1"], figures["verb top5"]) == (50, 75, 75, 100)
    assert 0 <= figures[SCALED] <= 100
    assert evaluator.details()["outcome"].tolist() == [100, 0, 0, 100]
    evaluator.reset()
    evaluator.update({"verb": verb}, batch)  # a teacher of verbs alone never knows the action
    assert evaluator.compute()["top1"] == 0
    assert evaluator.compute()["verb top1"] == 75


def test_the_right_end_of_a_bin_belongs_to_it() -> None:
    logits = torch.zeros(4, 5)  # a confidence of 0.2 = 3/15 exactly
    assert calibration_error(logits, torch.tensor([0, 1, 2, 3])) == pytest.approx(0.05, abs=1e-6)


# The student ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["stillroom/cnn3d2", "torchvision/r3d_18", "torchvision/swin3d_t"])
def test_networks_answer_with_logits_of_every_head(spec: str) -> None:
    built = build_video_network(spec, {"verb": 4, "noun": 3}, torch.zeros(1, 4, 3, 32, 32), frames=4, whole=True)
    found = built.network.eval()(torch.zeros(2, 4, 3, 32, 32))
    assert {head: list(logits.shape) for head, logits in found.items()} == {"verb": [2, 4], "noun": [2, 3]}


def test_weights_of_a_library_with_another_head_are_a_start(tmp_path: Path) -> None:
    import torchvision

    published = torchvision.models.video.mc3_18(num_classes=7)
    torch.save(published.state_dict(), tmp_path / "kinetics.pth")
    example = torch.zeros(1, 4, 3, 16, 16)
    built = build_video_network(f"torchvision/mc3_18@{tmp_path / 'kinetics.pth'}", {"verb": 4}, example, frames=4)
    assert built.start
    assert built.new == ("classifiers.verb.weight", "classifiers.verb.bias")
    assert torch.equal(built.network.backbone.model.stem[0].weight, published.stem[0].weight)


def test_a_network_of_ones_own_may_answer_with_a_tensor_or_must_name_its_heads(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef build(heads):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(sum(heads.values())))\n"
    )
    example = torch.zeros(1, 2, 3, 4, 4)
    built = build_video_network(f"{tmp_path}/nets.py:build", {"verb": 4}, example, frames=2)
    assert built.network(example)["verb"].shape == (1, 4)
    with pytest.raises(InputError, match="answers with a Tensor"):
        build_video_network(f"{tmp_path}/nets.py:build", {"verb": 4, "noun": 3}, example, frames=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folders: Path) -> Path:
    """A run on frames in folders, of videos longer than a clip."""
    out = tmp_path_factory.mktemp("run") / "run"
    words = ["--data", f"clips:{folders}", "--image-size", "16", "--frames", "3", "--test-clips", "2", "--test-crops", "3", *TINY[2:]]
    assert main(["run", "supervised", "--task", "video", *words, "--student", "stillroom/cnn3d2", "--workers", "0", "--out", str(out)]) == 0
    return out


def test_predict_says_what_evaluation_measured(run: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = load(run)
    data = VideoData(f"clips:{folders}", image_size=16, frames=3, test_clips=2, test_crops=3, workers=0)
    batch = next(iter(data.eval_loader()))
    with torch.no_grad():
        measured = averaged_logits(student.network, batch)["action"].softmax(1)
    places = [folders / data.val_name(index) for index in batch.ids.tolist()]
    told = torch.stack([student.probabilities(opened_video(place))["action"] for place in places])
    torch.testing.assert_close(told, measured)
    (folders / "val/broken.mp4").write_bytes(b"no video")
    try:
        assert main(["predict", str(run), str(folders / "val"), "--json", "--top", "1"]) == 1
    finally:
        (folders / "val/broken.mp4").unlink()
    caught = capsys.readouterr()
    lines = [json.loads(line) for line in caught.out.splitlines()]
    assert [line["file"] for line in lines] == sorted(map(str, places))
    assert {tuple(line["action"][0]) for line in lines} == {("class", "confidence")}
    assert "broken.mp4" in caught.err


def test_export_writes_a_file_that_answers_as_the_student(run: Path, tmp_path: Path) -> None:
    import onnxruntime

    assert main(["export", str(run), "--out", str(tmp_path)]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"))
    clips = torch.randn(3, 3, 3, 16, 16)
    (found,) = session.run(["action"], {"clips": clips.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), load(run).network(clips)["action"], atol=1e-4, rtol=1e-4)


def test_the_report_shows_clips_and_costs(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "What a video costs" in page
    assert page.count('<img src="data:image/jpeg') >= 4


def table(root: Path, head: str, rows: list[str]) -> str:
    """Clips v0, v1, ... of six frames, and a table of them."""
    for number in range(len(rows)):
        frames(root / f"v{number}", 6)
    (root / "clips.csv").write_text("\n".join([head, *rows]))
    return f"clips:{root}"


def test_clips_of_test_are_not_trained_on(tmp_path: Path) -> None:
    words = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    spec = table(tmp_path, "video,label,split", [f"v{i},{'ab'[i % 2]},{word}" for i, word in enumerate(words)])
    found = open_source(spec)
    assert ([clip.name for clip in found.train.clips], [clip.name for clip in found.val.clips]) == (["v0", "v1", "v2", "v3"], ["v4", "v5"])
    assert "passed over 2 of the folder test: val is what is measured on" in found.said
    spec = table(tmp_path, "video,label,split", [f"v{i},{'ab'[i % 2]},{word.replace('val', 'test')}" for i, word in enumerate(words)])
    assert len(open_source(spec).val) == 4


@pytest.mark.parametrize(
    ("head", "row", "said"),
    [
        ("video,label", "{v},{e}", "with 1 rows without a label, the first row 1"),
        ("video,label,split", "v0,{c},{s}", "v0 in train and in val, expected splits that share no clip"),
        ("video,start,end,label", "{v},0:00.1,0:00.2,{c}", "of which there are frames in files, expected numbers of frames"),
        ("video,start,end,label", "{v},0:00.3,0:00.2,{c}", "expected an end that is later than the beginning"),
        ("video,start_s,stop_s,label", "{v},nan,inf,{c}", "expected an end that is later than the beginning"),
    ],
)
def test_rows_that_cannot_be_meant(head: str, row: str, said: str, tmp_path: Path) -> None:
    rows = [row.format(v=f"v{i}", c="ab"[i % 2], e="b" if i else "", s="train" if i < 2 else "val") for i in range(4)]
    with pytest.raises(InputError, match=said):
        open_source(table(tmp_path, head, rows))


def test_numbers_of_frames_that_a_program_wrote_with_a_point(tmp_path: Path) -> None:
    spec = table(tmp_path, "video,start_frame,stop_frame,label", [f"v{i},1.0,3.0,{'ab'[i % 2]}" for i in range(6)])
    (tmp_path / "v0/._frame_0000000001.jpg").write_bytes(b"left by macOS")
    found = open_source(spec)
    assert {len(clip.tracks["rgb"]) for part in (found.train, found.val) for clip in part.clips} == {3}


def test_annotations_of_published_sets_that_are_not_theirs(tmp_path: Path) -> None:
    root = something(tmp_path / "something")
    (root / "labels/something-something-v2-labels.json").write_text('{"Holding something": "x"}')
    with pytest.raises(InputError, match="expected a JSON object with the number of each template"):
        open_source(f"something:{root}")
    root = epic(tmp_path / "epic")
    text = (root / "EPIC_100_train.csv").read_text()
    (root / "EPIC_100_train.csv").write_text(text.replace(",1,8,", ",8,1,"))
    with pytest.raises(InputError, match="frames 8 to 1, expected a last frame"):
        open_source(f"epic:{root}")


def test_frames_of_sixteen_bits_and_lying_ones_are_read_and_several_sizes_refused(tmp_path: Path) -> None:
    spec = table(tmp_path, "video,label", [f"v{i},{'ab'[i % 2]}" for i in range(6)])
    grey = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    for file in sorted((tmp_path / "v0").iterdir()):
        file.unlink()
        Image.fromarray(grey).save(file.with_suffix(".png"))
    turned = Image.Exif()
    turned[0x112] = 6
    for file in sorted((tmp_path / "v1").iterdir()):
        Image.open(file).save(file, exif=turned)
    found = {clip.name: clip for part in (open_source(spec).train, open_source(spec).val) for clip in part.clips}
    assert (found["v0"].tracks["rgb"].read([0])[0, 0].numpy() == grey >> 8).all()
    assert found["v1"].tracks["rgb"].read([0]).shape == (1, 3, 32, 24)
    Image.new("RGB", (10, 10)).save(sorted((tmp_path / "v2").iterdir())[3])
    with pytest.raises(InputError, match=r"frames of one clip in several sizes: .* of 10 x 10"):
        found["v2"].tracks["rgb"].read(range(6))
