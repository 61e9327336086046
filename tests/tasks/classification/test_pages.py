import base64
import math
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from stillroom.engine.report.results import Report, StageResult
from stillroom.engine.run.measure import Footprint
from stillroom.errors import InputError
from stillroom.tasks.classification.pages import classification_sections

CLASSES = ["cat", "dog", "<script>alert(1)</script>"]
LABELS = [0, 0, 1, 1, 2, 2]


def stage(name: str, predicted: list[int], seed: int = 0, ids: list[int] | None = None, labels: list[int] = LABELS) -> StageResult:
    details = {
        "ids": np.array(ids if ids is not None else range(len(labels))),
        "labels": np.array(labels),
        "predicted": np.array(predicted),
        "confidence": np.linspace(0.5, 0.9, len(labels), dtype=np.float32),
    }
    right = float(100 * np.mean(details["labels"] == details["predicted"])) if labels else 0.0
    return StageResult(name, seed, {"top1": right}, {}, [], Footprint(1, 1, 1.0, 1), 1.0, 1, "m", details=details)


def report(**arms: list[StageResult]) -> Report:
    return Report("kd", "KD", arms, baseline="alone" if "alone" in arms else None)


def image_of(sample: int) -> Image.Image:
    return Image.new("L", (8, 8), sample)


def rows(html: str) -> list[list[str]]:
    """The text of each body row of the class table."""
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    return [
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in re.findall("<tr>(.*?)</tr>", body)
    ]


def gallery(html: str, heading: str) -> list[int]:
    """The ids of the images under a heading."""
    return [int(found) for found in re.findall(r"no\. (\d+)", html.split(f"<h3>{heading}")[1].split("<h3>")[0])]


ALONE, DISTILLED, TEACHER = [0, 1, 1, 1, 2, 0], [0, 0, 1, 0, 2, 0], [0, 0, 1, 1, 2, 1]


def test_per_class_accuracy_and_change() -> None:
    section, _ = classification_sections(
        report(teacher=[stage("teacher", TEACHER)], alone=[stage("alone", ALONE)], distilled=[stage("distilled", DISTILLED)]),
        CLASSES,
        image_of,
    )
    assert rows(section.html) == [
        ["cat", "2", "", "50.0", "100.0", "100.0", "+50.0"],
        ["dog", "2", "", "100.0", "50.0", "100.0", "−50.0"],
        ["&lt;script&gt;alert(1)&lt;/script&gt;", "2", "", "50.0", "50.0", "50.0", "0.0"],
    ]
    assert "one image is 50.0 points" in section.html
    assert "<script" not in section.html


def test_change_is_the_mean_of_pairs() -> None:
    alone = [stage("alone", [0, 1, 1, 1, 2, 2], seed=0), stage("alone", [0, 0, 1, 1, 2, 2], seed=1)]
    distilled = [stage("distilled", [0, 0, 1, 1, 2, 2], seed=1), stage("distilled", [0, 0, 1, 1, 2, 2], seed=0)]
    section, _ = classification_sections(report(alone=alone, distilled=distilled), CLASSES, image_of)
    assert rows(section.html)[0][-1] == "+25.0 ± 35.4"


def test_largest_changes_first_and_at_most_thirty() -> None:
    labels = [label for label in range(40) for _ in range(4)]
    wrong = np.array(labels)
    wrong[4 * 35 : 4 * 35 + 3] = 0
    wrong[4 * 36] = 0
    section, _ = classification_sections(
        report(alone=[stage("alone", wrong.tolist(), labels=labels)], distilled=[stage("distilled", labels, labels=labels)]),
        [f"c{i}" for i in range(41)],
        image_of,
    )
    table = rows(section.html)
    assert [(row[0], row[-1]) for row in table[:3]] == [("c35", "+75.0"), ("c36", "+25.0"), ("c0", "0.0")]
    assert len(table) == 30
    assert "10 further classes changed by at most 0.0 points" in section.html


def test_examples_are_those_fixed_broken_and_never_right() -> None:
    _, section = classification_sections(
        report(teacher=[stage("teacher", TEACHER)], alone=[stage("alone", ALONE)], distilled=[stage("distilled", DISTILLED)]),
        CLASSES,
        image_of,
    )
    assert gallery(section.html, "Set right by distillation: 1 image") == [1]
    assert gallery(section.html, "Set wrong by distillation: 1 image") == [3]
    assert gallery(section.html, "Wrong with every model: 1 image") == [5]
    assert "✗&nbsp;dog</span>, 58&nbsp;%" in section.html
    assert "<script" not in section.html


def test_answers_are_joined_by_id() -> None:
    order = [5, 3, 1, 0, 2, 4]
    shuffled = stage("distilled", [DISTILLED[i] for i in order], ids=order, labels=[LABELS[i] for i in order])
    straight = stage("distilled", DISTILLED)
    for made in (shuffled, straight):
        _, section = classification_sections(report(alone=[stage("alone", ALONE)], distilled=[made]), CLASSES, image_of)
        assert gallery(section.html, "Set right") == [1]
        assert gallery(section.html, "Set wrong") == [3]


def test_examples_need_more_than_half_of_the_seeds() -> None:
    alone = [stage("alone", [answer, 0, 1, 1, 2, 2], seed=seed) for seed, answer in enumerate([0, 1, 2])]
    distilled = [stage("distilled", [answer, 0, 1, 1, 2, 2], seed=seed) for seed, answer in enumerate([0, 0, 2])]
    _, section = classification_sections(report(alone=alone, distilled=distilled), CLASSES, image_of)
    assert gallery(section.html, "Set right") == [0]
    assert "<dt>alone</dt><dd>seeds disagree</dd>" in section.html
    assert "✓&nbsp;cat</span>, 50&nbsp;% (2 of 3 seeds)" in section.html


def test_other_validation_sets_share_no_example() -> None:
    one, other = stage("alone", ALONE), stage("distilled", DISTILLED, ids=[10, 11, 12, 13, 14, 15])
    assert [section.title for section in classification_sections(report(alone=[one], distilled=[other]), CLASSES, image_of)] == [
        "Class by class"
    ]


def test_missing_arms_and_details() -> None:
    bare = stage("alone", ALONE)
    bare.details = {}
    assert classification_sections(report(alone=[bare]), CLASSES, image_of) == []
    only = classification_sections(report(alone=[bare], distilled=[stage("distilled", DISTILLED)]), CLASSES, image_of)
    assert [section.title for section in only] == ["Class by class", "What the models say"]
    assert "Set right" not in only[1].html
    assert [row[0] for row in rows(only[0].html)][:2] == ["dog", "&lt;script&gt;alert(1)&lt;/script&gt;"]  # the hardest first
    alone = classification_sections(report(teacher=[stage("teacher", TEACHER)], alone=[stage("alone", ALONE)]), CLASSES, image_of)
    assert "change" not in alone[0].html


def test_a_network_without_an_answer() -> None:
    broken = stage("distilled", [-1] * 6)
    broken.details["confidence"][:] = math.nan
    _, section = classification_sections(report(alone=[stage("alone", ALONE)], distilled=[broken]), CLASSES, image_of)
    assert "✗&nbsp;no answer</span></dd>" in section.html
    assert "nan" not in section.html


def test_images_are_embedded_small() -> None:
    def pixels(shown: Image.Image) -> tuple[Image.Image, str]:
        _, section = classification_sections(
            report(alone=[stage("alone", ALONE)], distilled=[stage("distilled", DISTILLED)]), CLASSES, lambda sample: shown
        )
        tag = re.findall("<img.*?>", section.html)[0]
        return Image.open(BytesIO(base64.b64decode(re.findall('base64,([^"]*)', tag)[0]))), tag

    tiny, tag = pixels(Image.new("RGB", (8, 8), (1, 2, 3)))
    assert tiny.getpixel((0, 0)) == (1, 2, 3)
    assert 'class="tiny"' in tag
    large, tag = pixels(Image.new("RGBA", (1000, 500)))
    assert large.size == (320, 160)
    assert 'class="tiny"' not in tag


def test_contradictions() -> None:
    with pytest.raises(InputError, match="details"):
        classification_sections(
            report(alone=[stage("alone", ALONE)], distilled=[stage("distilled", DISTILLED, labels=[0, 0, 1, 1, 2, 1])]), CLASSES, image_of
        )
    with pytest.raises(InputError, match="classes"):
        classification_sections(report(alone=[stage("alone", ALONE)]), CLASSES[:2], image_of)
