"""Average precision: COCO's equals pycocotools', VOC's equals hand-made numbers."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.tasks.detection.metrics import DetectionEvaluator, Detections, average_precision, class_precision, voc_average_precision


def image(boxes: Any, scores: Any, labels: Any, true_boxes: Any, true_labels: Any, crowd: Any = None) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "labels": np.array(labels, np.int64),
        "true_boxes": np.array(true_boxes, np.float32).reshape(-1, 4),
        "true_labels": np.array(true_labels, np.int64),
        "crowd": np.zeros(len(true_labels), np.int64) if crowd is None else np.array(crowd, np.int64),
    }


def random_images(count: int) -> list[dict[str, np.ndarray]]:
    random, images = np.random.default_rng(0), []
    for _ in range(count):
        objects, found = random.integers(0, 5), random.integers(0, 8)
        corners = random.uniform(0, 40, (objects, 2))
        true = np.concatenate([corners, corners + random.uniform(5, 20, (objects, 2))], 1)
        labels = random.integers(0, 3, objects)
        source = random.integers(0, max(objects, 1), found)
        boxes = true[source] + random.normal(0, 1.5, (found, 4)) if objects else np.tile([1.0, 1, 9, 9], (found, 1))
        said = np.where(random.random(found) < 0.8, labels[source] if objects else 0, random.integers(0, 3, found))
        images.append(image(boxes, random.random(found), said, true, labels, random.random(objects) < 0.1))
    return images


def by_pycocotools(images: list[dict[str, np.ndarray]]) -> list[float]:
    pycocotools = pytest.importorskip("pycocotools.coco", reason="pycocotools is the reference here and comes with the dev extra")
    from pycocotools.cocoeval import COCOeval

    def corner_and_size(box: np.ndarray) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    marks, found = [], []
    for number, one in enumerate(images):
        for box, label, crowd in zip(one["true_boxes"], one["true_labels"], one["crowd"], strict=True):
            size = corner_and_size(box)
            mark = {"id": len(marks) + 1, "image_id": number, "category_id": int(label), "bbox": size, "iscrowd": int(crowd)}
            marks.append({**mark, "area": size[2] * size[3]})
        for box, label, score in zip(one["boxes"], one["labels"], one["scores"], strict=True):
            found.append({"image_id": number, "category_id": int(label), "bbox": corner_and_size(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = pycocotools.COCO()
        pictures = [{"id": number, "width": 64, "height": 64} for number in range(len(images))]
        truth.dataset = {"images": pictures, "annotations": marks, "categories": [{"id": k, "name": str(k)} for k in range(3)], "info": {}}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:3]]


def test_coco_is_pycocotools() -> None:
    images = random_images(40)
    assert list(average_precision(images).values()) == pytest.approx(by_pycocotools(images), abs=1e-7)


def test_perfect_detections_have_ap_one_and_none_have_zero() -> None:
    perfect = [image([[1, 1, 9, 9], [20, 20, 40, 44]], [0.9, 0.8], [0, 1], [[1, 1, 9, 9], [20, 20, 40, 44]], [0, 1])]
    assert average_precision(perfect) == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    nothing = [image([], [], [], [[1, 1, 9, 9]], [0])]
    assert average_precision(nothing) == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    with pytest.raises(InputError, match="data"):
        average_precision([image([], [], [], [], [])])


def test_voc_by_hand() -> None:
    # In order of scores: right, wrong, right; two of three objects found. Precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    images = [
        image([[0, 0, 10, 10], [50, 50, 60, 60]], [0.9, 0.8], [0, 0], [[0, 0, 10, 10], [30, 30, 40, 40]], [0, 0]),
        image([[0, 0, 10, 10]], [0.7], [0], [[0, 0, 10, 10]], [0]),
    ]
    assert voc_average_precision(images) == {0: pytest.approx(1 / 3 + 2 / 9)}
    assert voc_average_precision(images, eleven_points=True) == {0: pytest.approx((4 * 1 + 3 * 2 / 3) / 11)}


def test_difficult_objects_count_for_nothing() -> None:
    images = [image([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.8], [0, 0], [[0, 0, 10, 10], [20, 20, 30, 30]], [0, 0], [1, 0])]
    assert voc_average_precision(images) == {0: 1.0}


def test_the_evaluator_joins_batches() -> None:
    evaluator = DetectionEvaluator(2)
    box, label = torch.tensor([[1.0, 1, 9, 9]]), torch.tensor([1])
    found = Detections(box, torch.tensor([0.8]), label)
    for ids in ([0, 1], [2]):
        count = len(ids)
        batch = SimpleNamespace(ids=torch.tensor(ids), boxes=[box] * count, labels=[label] * count, crowd=[torch.zeros(1)] * count)
        evaluator.update([found] * count, batch)
    assert evaluator.compute() == {"AP": pytest.approx(100.0), "AP50": pytest.approx(100.0), "AP75": pytest.approx(100.0)}
    assert evaluator.details()["ids"].tolist() == [0, 1, 2]
    evaluator.reset()
    assert evaluator.details() == {}


def test_one_evaluation_gives_pascal_vocs_figures_too() -> None:
    rows = random_images(30)
    evaluator = DetectionEvaluator(3, voc=True)
    evaluator._rows = dict(enumerate(rows))
    figures = evaluator.compute()
    assert list(figures) == ["AP", "AP50", "AP75", "vocAP50", "vocAP50-11"]
    area, points = (np.mean(list(voc_average_precision(rows, eleven_points=eleven).values())) for eleven in (False, True))
    assert (figures["vocAP50"], figures["vocAP50-11"]) == (pytest.approx(100 * area), pytest.approx(100 * points))
    assert abs(figures["vocAP50"] - figures["AP50"]) < 3


def test_each_class_has_its_share_of_the_mean() -> None:
    rows = random_images(30)
    by_class = class_precision(rows, 4)
    assert by_class[:3].mean() == pytest.approx(average_precision(rows)["AP"])
    assert np.isnan(by_class[3])
    nothing = [{**row, "boxes": row["boxes"][:0], "scores": row["scores"][:0], "labels": row["labels"][:0]} for row in rows]
    assert class_precision(nothing, 4)[:3].tolist() == [0, 0, 0]


def test_the_second_hit_of_an_object_is_wrong() -> None:
    """And so is a hit of an object that is taken, even if a free one lies beside it with a smaller overlap: as Pascal VOC's kit."""
    twice = [image([[0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.8], [0, 0], [[0, 0, 10, 10], [0, 3, 10, 13]], [0, 0])]
    assert voc_average_precision(twice) == {0: pytest.approx(0.5)}
