import base64
import json
import math
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.cli import main
from stillroom.engine.report.results import Report, StageResult
from stillroom.engine.run.measure import Footprint
from stillroom.errors import InputError
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.classification.pages import classification_sections, confusion_sections, one_answer
from stillroom.tasks.images.page_parts import data_section
from tests.tasks.classification.miniatures import classes_of_pictures

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


def test_the_matrix_counts_what_is_taken_for_what() -> None:
    (section,) = confusion_sections(report(alone=[stage("alone", ALONE)], distilled=[stage("distilled", DISTILLED)]), CLASSES)
    assert rows(section.html) == [
        ["cat", "2", "0", "0"],
        ["dog", "1", "1", "0"],
        ["&lt;script&gt;alert(1)&lt;/script&gt;", "1", "0", "1"],
    ]
    broken = stage("distilled", [0, 0, 1, -1, 2, 2], seed=1)
    (section,) = confusion_sections(report(alone=[stage("alone", ALONE)], distilled=[stage("distilled", DISTILLED), broken]), CLASSES)
    assert rows(section.html)[1] == ["dog", "0.5", "1", "0", "0.5"]
    assert '<th scope="col">no answer</th>' in section.html
    assert "means over seeds" in section.html


def test_of_many_classes_the_worst_pairs_are_listed() -> None:
    labels = [label for label in range(20) for _ in range(4)]
    predicted, before = np.array(labels), np.array(labels)
    predicted[4 * 7 : 4 * 7 + 3], predicted[4 * 3] = 9, 5
    before[4 * 7 : 4 * 7 + 2] = 9
    arms = {"alone": [stage("alone", before.tolist(), labels=labels)], "distilled": [stage("distilled", predicted.tolist(), labels=labels)]}
    (section,) = confusion_sections(report(**arms), [f"c{i}" for i in range(20)])
    assert rows(section.html) == [["c7 as c9", "3 (75%)", "2 (50%)"], ["c3 as c5", "1 (25%)", "0 (0%)"]]
    assert confusion_sections(report(alone=[stage("alone", labels, labels=labels)]), [f"c{i}" for i in range(20)]) == []


def test_one_answer_to_everything_is_said() -> None:
    same = report(alone=[stage("alone", [1] * 6)], distilled=[stage("distilled", DISTILLED), stage("distilled", [-1] * 6, seed=1)])
    assert one_answer(same, CLASSES) == [
        "alone, seed 0, answers dog to 6 of 6 validation images: it tells no classes apart.",
        "distilled, seed 1, answers nothing that is a number to 6 of 6 validation images: it tells no classes apart.",
    ]
    mostly = report(alone=[stage("alone", [0] * 20, labels=[0] * 19 + [1])])  # right, as it happens
    assert one_answer(mostly, CLASSES) == []


def test_the_data_are_counted_by_class_and_split(tmp_path: Path) -> None:
    classes_of_pictures(tmp_path / "train", ("cat", "<b>dog"), count=4)
    classes_of_pictures(tmp_path / "val", ("cat", "<b>dog"), count=2)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("text")
    section = data_section(ImageData(f"imagefolder:{tmp_path}"))
    assert section.title == "The data"
    assert rows(section.html) == [["&lt;b&gt;dog", "4", "2"], ["cat", "3", "2"]]
    assert "passed over 1 file other than images, the first notes.txt" in section.html
    assert "left out 1 image file that cannot be decoded: train/cat/0.png" in section.html
    assert "<b>" not in section.html
    many = data_section(ImageData(f"imagefolder:{classes_of_pictures(tmp_path / 'many', [f'{i:02}' for i in range(50)], count=2)}"))
    assert len(rows(many.html)) == 40
    assert "The first 40 of 50 classes" in many.html


def test_a_run_says_all_that_in_the_terminal_and_in_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes_of_pictures(tmp_path / "photos", count=10)
    (tmp_path / "photos" / "notes.txt").write_text("text")
    command = (
        f"run supervised --data imagefolder:{tmp_path / 'photos'} --student stillroom/convnet4 --epochs 1 --lr 0 --out {tmp_path / 'run'}"
    )
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert out.startswith("data: 16 training + 4 validation images of 2 classes: cat, dog (8 + 2 of each)\n")
    for said in ("passed over 1 file other than images, the first notes.txt", "validation images: it tells no classes apart."):
        assert said in out
        assert said in page
    assert "The data" in page
    assert "What is taken for what" in page
    notes = json.loads((tmp_path / "run" / "metrics.json").read_text())["notes"]
    assert any("tells no classes apart" in note for note in notes)
