"""The teacher cache's promises: the network's own answers, whole after a kill, of this teacher and this data and nothing else."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.engine import Distiller, Lab, LabOptions, Teacher, Training
from stillroom.engine.cache import CachedTeacher, CacheFolder, EveryView, ReplayedBatches, Storage, Views, build_cache
from stillroom.engine.cache import store as store_module
from stillroom.engine.cache.answers import names_in, put_together, take_apart
from stillroom.engine.cache.formats import Format
from stillroom.engine.cache.sums import sums_of
from stillroom.engine.loading import SeekableBatches
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.measure import Footprint
from stillroom.errors import InputError, StillroomError
from stillroom.losses.logits import kd_loss
from stillroom.methods.crd import CRD
from stillroom.methods.dkd import DKD
from stillroom.methods.dot import DOT
from stillroom.methods.fitnets import FitNets
from stillroom.methods.kd import KD
from stillroom.tasks.classification import Batch, ImageData
from stillroom.tasks.images.cached import check_views
from tests.processes import Processes

RESULT = StageResult("teacher", 0, {"top1": 50.0}, {}, [], Footprint(1, 1, 1.0, 1), 0.0, 0, "net", details={"ids": np.arange(3)})
EXACT = Storage("fp32")
TAPS = ("0", "3")


def network(seed: int = 0, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def online(seed: int = 0) -> Teacher:
    return Teacher(network(seed), precision="fp32", fold=False)


def digits(**options: Any) -> ImageData:
    return ImageData("digits", **{"batch_size": 32, "subset": 75, "val_subset": 20, **options})


def build(folder: Path, data: ImageData | None = None, teacher: Teacher | None = None, **options: Any) -> CachedTeacher:
    settings = {"views": Views(3), "storage": EXACT, "taps": TAPS, **options}
    return build_cache(folder, teacher or online(), data or digits(), RESULT, **settings)


def rows(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "rows").iterdir())}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three views in full precision; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("cache")
    build(folder)
    return folder


# Formats


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("fp16", 2**-11), ("bf16", 2**-8)])
@pytest.mark.parametrize("shape", [(10,), (4, 3, 3), ()])
def test_dense_answers_come_back_within_their_precision(dtype: Any, tolerance: float, shape: tuple[int, ...]) -> None:
    answers = 30 * torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    layout = Format(shape, dtype)
    read = layout.decode(layout.encode(answers))
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, answers, rtol=tolerance, atol=1e-6 if tolerance else 0.0)


def top(logits_BC: Tensor, k: int, rest: Any = "spread", dtype: Any = "fp32") -> Tensor:
    layout = Format.of_logits(logits_BC.shape[1:], Storage(dtype, k, rest))
    return layout.decode(layout.encode(logits_BC))


@pytest.mark.parametrize("k", [1, 3, 9])
def test_top_k_is_exact_at_temperature_1_with_the_rest_spread(k: int) -> None:
    logits_BC = 4 * torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    p, q = logits_BC.softmax(1), top(logits_BC, k).softmax(1)
    best, classes = p.topk(k)
    torch.testing.assert_close(q.gather(1, classes), best)
    expected = ((1 - best.sum(1, keepdim=True)) / (10 - k)).expand(-1, 10).scatter(1, classes, best)
    torch.testing.assert_close(q, expected, rtol=1e-4, atol=1e-6)


def test_top_k_keeps_the_ratios_of_the_kept_at_every_temperature() -> None:
    logits_BC = 4 * torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    best, classes = logits_BC.topk(4)
    read = top(logits_BC, 4)
    torch.testing.assert_close((read / 5).gather(1, classes), best / 5)


def test_dropped_classes_have_no_probability_and_the_others_are_renormalised() -> None:
    logits_BC = 4 * torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    best, classes = logits_BC.topk(3)
    read = top(logits_BC, 3, "drop")
    for temperature in (1.0, 4.0, 40.0):
        expected = torch.zeros(50, 10).scatter(1, classes, (best / temperature).softmax(1))
        torch.testing.assert_close((read / temperature).softmax(1), expected)
        student = torch.randn(50, 10, requires_grad=True)
        loss = kd_loss(student, read, temperature)
        loss.backward()
        assert loss.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_of_equal_logits_the_lower_class_is_kept() -> None:
    read = top(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), 2, "drop")
    assert read.softmax(1).tolist() == [[0.0, 0.5, 0.5, 0.0, 0.0]]


def test_as_many_as_there_are_classes_is_all_of_them() -> None:
    logits_BC = torch.randn(4, 10)
    assert torch.equal(top(logits_BC, 10), logits_BC)
    assert torch.equal(top(logits_BC, 99), logits_BC)


def test_many_classes_have_wide_numbers() -> None:
    logits_BC = torch.zeros(1, 40_000)
    logits_BC[0, 39_999] = 20.0
    assert top(logits_BC, 1).argmax() == 39_999


def test_top_k_in_half_precision_is_close() -> None:
    logits_BC = 4 * torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(top(logits_BC, 3, dtype="fp16").softmax(1), top(logits_BC, 3).softmax(1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"top": 0}, {"rest": "keep"}])
def test_storage_refuses_what_it_cannot_do(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(options))}: got"):
        Storage(**options)


def test_top_k_is_for_logits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^top: got 2 for answers of shape"):
        build(tmp_path, teacher=Teacher(nn.Conv2d(3, 4, 3), precision="fp32"), storage=Storage(top=2), taps=())


# Views


def test_a_training_with_enough_views_is_the_training_without() -> None:
    data, count = digits(), 3
    plain, replayed = data.train_loader(seed=4), data.replaying(Views(count, seed=4)).train_loader(seed=4)
    for epoch in range(count):
        for expected, batch in zip(plain, replayed, strict=True):
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.ids, expected.ids)
            assert expected.views is None
            assert batch.views is not None
            assert (batch.views == epoch).all()
    again, other = next(iter(replayed)), next(iter(plain))  # the fourth epoch shows the first view again
    assert again.views is not None
    assert (again.views == 0).all()
    assert not torch.equal(again.images, other.images)


def test_every_view_is_every_view() -> None:
    batches = EveryView(5, 4, views=Views(3, seed=1))
    draws = [draw for batch in batches for draw in batch]
    assert [(draw.id, draw.view) for draw in draws] == [(i, v) for i in range(5) for v in range(3)]
    assert len({draw.seed for draw in draws}) == 15


def test_shares_of_processes_are_those_without_views() -> None:
    plain = [batch for rank in (0, 1) for batch in SeekableBatches(20, 8, seed=2, rank=rank, world=2)]
    replayed = [batch for rank in (0, 1) for batch in ReplayedBatches(20, 8, seed=2, rank=rank, world=2, views=Views(2))]
    assert [[draw.id for draw in batch] for batch in plain] == [[draw.id for draw in batch] for batch in replayed]


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 1, "seed": -1}])
def test_views_that_there_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Views(**options)


# Answers


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["digits", "none"])
def test_answers_are_the_network_s_own(tmp_path: Path, augment: str, workers: int) -> None:
    data = digits(augment=augment, workers=workers)
    cached, teacher = build(tmp_path, data), online()
    with_features, live = cached.tap(*TAPS), teacher.tap(*TAPS)
    loader = data.replaying(cached.views).train_loader(seed=7)
    for _ in range(2):
        for batch in loader:
            torch.testing.assert_close(cached(batch), teacher(batch), rtol=1e-5, atol=1e-5)
            logits, features = with_features(batch)
            expected_logits, expected = live(batch)
            torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
            assert features.keys() == expected.keys()
            for path in TAPS:
                torch.testing.assert_close(features[path], expected[path], rtol=1e-5, atol=1e-5)
    loader.end_workers()


def pictures(root: Path, count: int = 6, size: tuple[int, int] = (90, 70)) -> str:
    numbers = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(numbers.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(root / name / f"{i}.png")
    return f"imagefolder:{root},val=0.5"


@pytest.mark.parametrize("augment", ["cifar", "tiny-imagenet", "imagenet", "digits", "none"])
def test_what_was_drawn_is_recorded_and_gives_the_same_pixels(tmp_path: Path, augment: str) -> None:
    data = ImageData(pictures(tmp_path / "images"), augment=augment, image_size=12, batch_size=3)
    head = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(200, 2))
    cached = build(tmp_path / "cache", data, Teacher(head, precision="fp32"), taps=())
    recorded = {name: values.numpy() for name, values in cached.parameters().items()}
    names = {"cifar": {"crop", "flip"}, "imagenet": {"crop", "flip"}, "tiny-imagenet": {"angle", "flip"}, "digits": {"roll", "noise"}}
    assert recorded.keys() == names.get(augment, set())
    check_views(cached, data)
    for epoch, batch in enumerate(list(data.replaying(cached.views).train_loader(seed=1)) * 2):
        for image, index, view in zip(batch.images, batch.ids.tolist(), batch.views.tolist(), strict=True):
            drawn = {name: values[index, view] for name, values in recorded.items()}
            assert torch.equal(data._train_transform.replay(data._train.image(index), drawn), image), epoch


def test_other_views_than_the_recorded_are_refused(tmp_path: Path, finished: Path) -> None:
    cached = CachedTeacher(finished)
    check_views(cached, digits())
    cached._arrays[torch.device("cpu")]["view.roll"][0] += 5
    with pytest.raises(InputError, match="draws otherwise"):
        check_views(cached, digits())


def test_rows_are_found_by_id_and_view(finished: Path) -> None:
    cached = CachedTeacher(finished)
    batches = list(digits().replaying(cached.views).train_loader(seed=0))
    both = Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    assert both.views is not None
    order = torch.randperm(len(both.ids))
    shuffled = Batch(both.images[order], both.labels[order], both.ids[order], both.views[order])
    assert torch.equal(cached(shuffled), cached(both)[order])


def test_the_example_is_answered_and_other_bare_inputs_are_not(finished: Path) -> None:
    cached, example = CachedTeacher(finished), digits().example_inputs()
    torch.testing.assert_close(cached(example), online()(example))
    assert cached.tap("0")(example)[1]["0"].shape == (1, 6, 6, 6)
    for wrong in (example + 0.1, example.repeat(2, 1, 1, 1)):
        with pytest.raises(InputError, match="a batch with ids"):
            cached(wrong)


def test_batches_without_recorded_views_are_refused(finished: Path) -> None:
    cached, data = CachedTeacher(finished), digits()
    for loader in (data.train_loader(seed=0), data.eval_loader(), data.train_eval_loader()):
        with pytest.raises(InputError, match=r"data\.replaying\(teacher\.views\)"):
            cached(next(iter(loader)))


def test_what_is_not_stored_is_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^teacher_layer: got '2', expected one of those that the cache stores: 0, 3"):
        CachedTeacher(finished).tap("2", argument="teacher_layer")
    assert len(CachedTeacher(finished).networks) == 0
    with pytest.raises(InputError, match="one of those stored: 0, 3"):
        _ = CachedTeacher(finished).networks[0]
    bare = build(tmp_path, taps=())
    with pytest.raises(InputError, match="no feature; `stillroom cache --taps` stores more"):
        bare.tap("0")


def test_it_travels_to_other_processes_and_knows_itself(finished: Path, tmp_path: Path) -> None:
    cached = CachedTeacher(finished)
    batch = next(iter(digits().replaying(cached.views).train_loader(seed=0)))
    for twin in (copy.deepcopy(cached), pickle.loads(pickle.dumps(cached))):
        assert torch.equal(twin(batch), cached(batch))
        assert twin.fingerprint() == cached.fingerprint()
    assert len(pickle.dumps(cached)) < 50_000
    assert build(tmp_path, storage=Storage("fp16")).fingerprint() != cached.fingerprint()
    assert cached.result.metrics == {"top1": 50.0}
    assert cached.result.details["ids"].tolist() == [0, 1, 2]


# Answers of several tensors


class Levels(nn.Module):
    """Answers with a mapping of lists."""

    def __init__(self, rows: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 5, 3)
        self.rows = rows

    def forward(self, images: Tensor) -> dict[str, Any]:
        fine = self.first(images)
        levels = [fine.flatten(2), self.second(fine).flatten(1)]
        return {"scores": levels, "places": (100 * levels[0][: self.rows],)}


def test_several_tensors_come_back_in_their_form(tmp_path: Path) -> None:
    data, teacher = digits(), Teacher(Levels(), precision="fp32")
    cached = build(tmp_path, data, teacher, storage=Storage("bf16"), exact=("places",), taps=("second",))
    assert (cached.answer, cached.stored) == (("scores", "places"), ("second",))
    batch = next(iter(data.replaying(cached.views).train_loader(seed=2)))
    told, features = cached.tap("second")(batch)
    expected = teacher(batch)
    assert torch.equal(cached(batch)["scores"][1], told["scores"][1])
    for mine, theirs in zip(told["scores"], expected["scores"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(features["second"].flatten(1), told["scores"][1], rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(told["places"][0], expected["places"][0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(cached(data.example_inputs())["places"][0], teacher(data.example_inputs())["places"][0])


def test_answers_are_taken_apart_and_put_together() -> None:
    answer = {"logits": [torch.zeros(2, 3), torch.ones(2, 1)], "more": {"boxes": torch.ones(2)}, "bins": []}
    form, parts = take_apart(answer)
    assert list(parts) == list(names_in(form)) == ["logits[0]", "logits[1]", "more.boxes"]
    again = put_together(json.loads(json.dumps(form)), parts)
    assert again["bins"] == []
    assert again["logits"][1] is answer["logits"][1]
    assert again["more"]["boxes"] is answer["more"]["boxes"]
    assert take_apart(torch.zeros(2))[0] == "logits"
    with pytest.raises(InputError, match=r"two parts a\.b"):
        take_apart({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}})


def test_answers_need_a_row_for_each_sample(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^teacher: got places\[0\] of shape \[1, 4, 9\], expected \[32, 4, 9\]"):
        build(tmp_path, teacher=Teacher(Levels(rows=1), precision="fp32"), taps=())


# Kills, second builders, and what is refused


def build_and_fall(out: Path, mark_seconds: float, rows_before: int) -> None:
    """Builds a cache up to so many rows, and is killed."""

    def fall(done: int, rows: int) -> None:
        if done >= rows_before:
            os.kill(os.getpid(), signal.SIGKILL)

    build(out, mark_seconds=mark_seconds, progress=fall)


@pytest.mark.parametrize(("mark_seconds", "rows_before"), [(0.0, 96), (1e9, 160)])
def test_killed_build_is_completed_to_the_same_bytes(
    tmp_path: Path, finished: Path, mark_seconds: float, rows_before: int, processes: Processes
) -> None:
    killed = processes.start(build_and_fall, tmp_path, mark_seconds, rows_before)
    said = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, said
    done = json.loads((tmp_path / "cache.json").read_text())["done"]
    assert done == (rows_before if mark_seconds == 0 else 0)
    with pytest.raises(InputError, match=f"of which {done} of 225 rows are done, expected a finished cache"):
        CachedTeacher(tmp_path)
    begun_at: list[int] = []
    build(tmp_path, progress=lambda rows_done, _: begun_at.append(rows_done))
    assert begun_at[0] == done  # nothing that was done is done again: the first batch behind it is still to be written
    assert rows(tmp_path) == rows(finished)
    assert (tmp_path / "cache.json").read_bytes() == (finished / "cache.json").read_bytes()


def test_a_finished_cache_is_read_not_built(finished: Path) -> None:
    asked = 0

    class Counting(Teacher):
        def tap(self, *paths: str, argument: str = "paths") -> Callable[[Any], Any]:
            def answer(batch: Any) -> Any:
                nonlocal asked
                asked += len(batch.ids)
                return told(batch)

            told = super().tap(*paths, argument=argument)
            return answer

    before = rows(finished)
    build(finished, teacher=Counting(network(), precision="fp32", fold=False))
    assert rows(finished) == before
    assert asked == 8  # whether these are its answers: in two places


def test_two_builders_do_not_meet(tmp_path: Path) -> None:
    with CacheFolder(tmp_path).locked(), pytest.raises(InputError, match="which another process is building"):
        build(tmp_path)
    build(tmp_path)


def test_a_builder_that_waits_reads_what_the_other_has_built(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        with CacheFolder(tmp_path).locked():
            waiting = thread.submit(build, tmp_path, wait=True)
            assert not waiting.done()
        assert waiting.result().fingerprint() == build(tmp_path).fingerprint()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": digits(subset=74)}, "subset was 75, now 74"),
        ({"data": digits(augment="none")}, "augment was 'digits', now 'none'"),
        ({"data": digits(mean=(0.1, 0.2, 0.3))}, "mean was"),
        ({"teacher": online(seed=1)}, "teacher was"),
        ({"storage": Storage("fp16")}, "dtype was 'fp32', now 'fp16'"),
        ({"views": Views(4)}, "views was 3, now 4"),
        ({"taps": ("0",)}, "taps was"),
    ],
)
def test_building_on_something_else_is_refused_and_named(finished: Path, change: dict[str, Any], named: str) -> None:
    before = rows(finished)
    with pytest.raises(InputError, match=named) as caught:
        build(finished, **change)
    assert str(caught.value).count("\n") == 0
    assert rows(finished) == before


def test_reading_for_other_data_is_refused_and_named(finished: Path, tmp_path: Path) -> None:
    CachedTeacher(finished, digits().cache_key)
    with pytest.raises(InputError, match=r"^teacher: .*image_size was 8, now 9"):
        CachedTeacher(finished, digits(image_size=9).cache_key)
    build(tmp_path, digits(augment="none"), views=Views(1))
    with pytest.raises(InputError, match="augment was 'none', now 'digits'"):
        CachedTeacher(tmp_path, digits().cache_key)
    with pytest.raises(InputError, match="which is no cache"):
        CachedTeacher(tmp_path / "nowhere")


def test_what_the_teacher_was_given_need_not_be_said_again(tmp_path: Path) -> None:
    theirs = digits(teacher_mean=(0.5,) * 3, teacher_std=(0.25,) * 3)
    build(tmp_path, theirs)
    CachedTeacher(tmp_path, digits().cache_key)
    with pytest.raises(InputError, match="teacher_std was"):
        CachedTeacher(tmp_path, {**theirs.cache_key, "teacher_std": [0.5] * 3})


def copied(finished: Path, to: Path) -> Path:
    for file in [*finished.glob("*.*"), *finished.glob("rows/*")]:
        target = to / file.relative_to(finished)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return to


class Unpickled(NamedTuple):
    """Creates a file when it is unpickled."""

    path: str

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_damage_is_found_when_the_cache_is_opened(finished: Path, tmp_path: Path) -> None:
    short = copied(finished, tmp_path / "short")
    with (short / "rows/logits.npy").open("r+b") as file:
        file.truncate(500)
    other = copied(finished, tmp_path / "other")
    np.save(other / "rows/logits.npy", np.zeros((75, 3, 9), np.float32))
    gone = copied(finished, tmp_path / "gone")
    (gone / "rows/tap0.npy").unlink()
    broken = copied(finished, tmp_path / "broken")
    (broken / "cache.json").write_text("{")
    later = copied(finished, tmp_path / "later")
    (later / "cache.json").write_text('{"schema": "stillroom.cache/9"}')
    for folder in (short, other, gone, broken, later):
        with pytest.raises(InputError, match=r"^teacher: got"):
            CachedTeacher(folder)


def zeroed(array: np.ndarray) -> None:
    array[...] = 0


def shuffled(array: np.ndarray) -> None:
    array[...] = array[::-1].copy()


def one_bit(array: np.ndarray) -> None:
    array.reshape(-1).view(np.uint8)[100] ^= 1


def two_rows(array: np.ndarray) -> None:
    array[[3, 4]] = array[[4, 3]]


def altered(folder: Path, name: str, alter: Callable[[np.ndarray], None]) -> None:
    """Changes an array's numbers and leaves its size and time as they were."""
    file = folder / f"rows/{name}.npy"
    time = file.stat()
    array = np.load(file)
    alter(array)
    np.save(file, array)
    os.utime(file, ns=(time.st_atime_ns, time.st_mtime_ns))


def read_all(cached: CachedTeacher) -> None:
    """As three epochs of a training do."""
    batches = digits(augment="digits", batch_size=25).replaying(cached.views).train_loader(seed=0)
    for epoch in range(3):
        batches.load_state_dict({"epoch": epoch, "batch": 0})
        for batch in batches:
            cached.tap("0")(batch)
    cached.parameters()


@pytest.mark.parametrize("alter", [zeroed, shuffled, one_bit, two_rows])
@pytest.mark.parametrize("name", ["logits", "tap0", "view.roll", "sum.logits"])
def test_altered_answers_teach_nobody(finished: Path, tmp_path: Path, name: str, alter: Callable[[np.ndarray], None]) -> None:
    folder = copied(finished, tmp_path)
    altered(folder, name, alter)
    with pytest.raises(InputError, match=rf"^teacher: got .*rows/{name.removeprefix('sum.')}\.npy, altered since it was written"):
        read_all(CachedTeacher(folder))


def test_a_cache_without_sums_is_read_and_compared_with_its_teacher(finished: Path, tmp_path: Path) -> None:
    """As a version before wrote it."""
    folder = copied(finished, tmp_path)
    record = json.loads((folder / "cache.json").read_text())
    for name in [name for name in record["arrays"] if name.startswith("sum.")]:
        del record["arrays"][name]
        (folder / f"rows/{name}.npy").unlink()
    (folder / "cache.json").write_text(json.dumps(record))
    assert CachedTeacher(folder).fingerprint() == CachedTeacher(finished).fingerprint()
    before = rows(folder)
    build(folder)
    assert rows(folder) == before
    altered(folder, "logits", shuffled)
    with pytest.raises(InputError, match=r"^out: got .* whose logits of the samples \[.*\] is not what the teacher answers"):
        build(folder)


@pytest.mark.parametrize("shape", [(3,), (8,), (5, 7), ()])
def test_sums_tell_rows_and_places(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal((50, *shape)).astype(np.float16)
    numbers = np.arange(50)
    kept = sums_of(array, numbers)
    assert len(set(kept.tolist())) == 50
    assert (sums_of(array[:1].repeat(50, 0), numbers) != kept)[1:].all()  # the same row in other places
    assert (sums_of(array[20:30], numbers[20:30]) == kept[20:30]).all()
    bits = array.reshape(50, -1).view(np.uint8)
    for bit in range(8 * bits.shape[1]):
        bits[:, bit // 8] ^= 1 << bit % 8
        assert (sums_of(array, numbers) != kept).all()
        bits[:, bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("file", ["rows/logits.npy", "example.npz"])
def test_nothing_is_ever_unpickled(finished: Path, tmp_path: Path, file: str) -> None:
    folder, trap = copied(finished, tmp_path / "cache"), tmp_path / "ran_foreign_code"
    content = np.array([Unpickled(str(trap))] * 1 + [None], dtype=object)
    if file.endswith(".npz"):
        np.savez(folder / file, inputs=content, allow_pickle=True)
    else:
        np.save(folder / file, content, allow_pickle=True)
    with pytest.raises(InputError):
        CachedTeacher(folder)
    assert not trap.exists()


def test_answers_that_do_not_fit_their_type_are_refused(tmp_path: Path) -> None:
    large = network()
    with torch.no_grad():
        large[4].bias.fill_(1e6)
    teacher = Teacher(large, precision="fp32", fold=False)
    with pytest.raises(
        InputError, match=r"^dtype: got fp16, in which the teacher's answers to the samples \[0, 1, 2, 3, 4\] are not finite"
    ):
        build(tmp_path / "half", teacher=teacher, storage=Storage("fp16"))
    build(tmp_path / "brain", teacher=teacher, storage=Storage("bf16"))


def test_a_disk_that_is_too_small_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: Usage(1000))
    with pytest.raises(InputError, match=r"^out: .* with 0\.00 GB free, expected room for"):
        build(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_disk_that_fills_up_is_one_line(tmp_path: Path, finished: Path) -> None:
    folder = copied(finished, tmp_path)
    record = json.loads((folder / "cache.json").read_text()) | {"done": 96}
    (folder / "cache.json").write_text(json.dumps(record))
    with Path("/dev/full").open("wb", buffering=0) as full:
        writer = store_module.Writer(CacheFolder(folder), {**record, "done": 0}, dict.fromkeys(record["arrays"], (full, 0, 1)))
        with pytest.raises(StillroomError, match=r"cannot be written \(No space left on device\)"):
            writer.write({name: np.zeros((2, 3), np.float32) for name in record["arrays"]})
    build(folder)
    assert rows(folder) == rows(finished)


def test_a_cache_of_a_cache_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in a cache already"):
        build(tmp_path, teacher=CachedTeacher(finished))


# Training


def distiller(method: str, teacher: Teacher, data: ImageData) -> Distiller:
    torch.manual_seed(9)
    student, example = network(5, 4), data.example_inputs()
    if method == "fitnets":
        return FitNets(student, teacher, student_layer="0", teacher_layer="0", example=example)
    if method == "crd":
        labels = data.train_labels
        return CRD(student, teacher, student_layer="3", teacher_layer="3", example=example, train_labels=labels, negatives=16)
    return {"kd": KD, "dkd": DKD, "dot": lambda *both: DOT(KD(*both), delta=0.05)}[method](student, teacher)


@pytest.mark.parametrize(
    ("method", "augment"),
    [("kd", "digits"), ("kd", "none"), ("dkd", "digits"), ("fitnets", "digits"), ("crd", "digits"), ("dot", "digits")],
)
def test_a_student_of_the_cache_is_a_student_of_the_network(tmp_path: Path, method: str, augment: str) -> None:
    data = digits(augment=augment)
    cached = build(tmp_path / "cache", data, views=Views(2 if augment == "digits" else 1))
    seen, weights = data.replaying(cached.views), []
    for name, teacher in (("cache", cached), ("network", online())):
        lab = Lab(LabOptions(out=tmp_path / name, accelerator="cpu"))
        trained = lab.fit(distiller(method, teacher, data), seen, Training(epochs=2), name="distilled")
        assert trained.network is not None
        weights.append(trained.network.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
