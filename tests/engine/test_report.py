import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from stillroom.engine.report.figures import figures
from stillroom.engine.report.files import report_json, report_table, write_report
from stillroom.engine.report.gains import Gain, Spread, image_error
from stillroom.engine.report.page import render
from stillroom.engine.report.results import COMMON_METRICS, SCHEMA, Metric, Report, Section, StageResult
from stillroom.engine.report.wording import count, duration, headline, result_cells
from stillroom.engine.run.measure import Footprint
from stillroom.errors import InputError

LARGE = Footprint(parameters=20_000_000, macs=1_000_000_000, latency_ms=10.0, bytes=80_000_000)
SMALL = Footprint(parameters=1_200_000, macs=60_000_000, latency_ms=2.0, bytes=4_800_000)


def stage(
    name: str, seed: int, top1: float, epochs: int = 4, footprint: Footprint = SMALL, model: str = "stillroom/resnet8x4"
) -> StageResult:
    history = [
        {"epoch": float(e), "seconds": 2.0 * e, "lr": 0.1 / e, "train/ce": 2.0 / e, "val/top1": top1 * e / epochs, "val/nll": 1 / e}
        for e in range(1, epochs + 1)
    ]
    best = {"epoch": float(epochs), "top1": top1} if epochs else {}
    details = {"any": np.arange(3)}
    return StageResult(name, seed, {"top1": top1, "nll": 0.25}, best, history, footprint, 2.0 * epochs, epochs, model, details=details)


def report(alone: dict[int, float], distilled: dict[int, float], teacher: float | None = 95.0, **others: object) -> Report:
    arms = {"teacher": [stage("teacher", 0, teacher, footprint=LARGE, model="timm/resnet34")]} if teacher is not None else {}
    arms["alone"] = [stage("alone", seed, value) for seed, value in alone.items()]
    arms["distilled"] = [stage("distilled", seed, value) for seed, value in distilled.items()]
    settings: dict[str, object] = {"method": "kd", "title": "KD", "arms": arms, "baseline": "alone"}
    return Report(**{**settings, **others})  # type: ignore[arg-type]


class TestNumbers:
    def test_spread_is_the_samples(self) -> None:
        assert Spread.of([1, 2, 3]) == Spread(2.0, 1.0, 3)
        assert Spread.of([5]) == Spread(5.0, None, 1)

    def test_a_diverged_seed_does_not_go_missing(self) -> None:
        spread = Spread.of([1.0, math.nan, 3.0])
        assert math.isnan(spread.mean)
        assert spread.n == 3
        assert math.isnan(Spread.of([1.0, math.inf]).mean)

    def test_gain_is_paired_by_seed_not_by_place(self) -> None:
        gain = report({0: 90, 1: 80, 2: 70}, {2: 73, 0: 91, 1: 82}).gain()
        assert gain is not None
        assert gain.per_seed == {2: 3, 0: 1, 1: 2}
        assert gain.spread == Spread(2.0, 1.0, 3)
        assert gain.interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)
        assert gain.clear is False

    def test_gain_counts_shared_seeds_only(self) -> None:
        gain = report({0: 90, 1: 80}, {1: 83, 5: 99}).gain()
        assert gain is not None
        assert gain.per_seed == {1: 3}
        assert gain.interval is None
        assert gain.clear is None
        assert report({0: 90}, {1: 91}).gain() is None
        assert report({0: 90}, {0: 91}, baseline=None).gain() is None

    def test_equal_differences_are_no_certainty(self) -> None:
        gain = report({0: 90, 1: 91}, {0: 92, 1: 93}).gain()
        assert gain is not None
        assert gain.clear is False

    def test_summary(self) -> None:
        summary = report({0: 90, 1: 92}, {0: 91, 1: 95}).summary()
        assert list(summary) == ["teacher", "alone", "distilled"]
        assert summary["alone"].metrics["top1"] == Spread(91.0, math.sqrt(2), 2)
        assert summary["teacher"].metrics["top1"].std is None
        assert summary["distilled"].best_epoch == Spread(4.0, 0.0, 2)
        assert summary["distilled"].seeds == [0, 1]

    def test_leading_follows_the_direction(self) -> None:
        made = report({0: 90}, {0: 91})
        made.arms["other"] = [stage("other", 0, 93)]
        assert made.leading == "other"
        made.higher_is_better = False
        assert made.leading == "distilled"
        made.arms["distilled"][0].metrics["top1"] = math.nan
        assert made.leading == "other"


class TestWords:
    def test_a_clear_gain(self) -> None:
        text = headline(report({0: 91.0, 1: 91.2, 2: 91.4}, {0: 93.0, 1: 93.1, 2: 93.5}))
        assert text.startswith(
            "The student of 1.20 M parameters reaches 93.2 ± 0.3 % top-1, 2.0 points above the same student trained alone, "
            "1.8 below its teacher, at 6 % of the teacher's multiply-adds."
        )
        assert "The gain is clear: over 3 seeds the paired difference is +2.0 ± 0.1 points" in text

    def test_a_clear_loss(self) -> None:
        text = headline(report({0: 93.0, 1: 93.1, 2: 93.5}, {0: 91.0, 1: 91.2, 2: 91.4}))
        assert "2.0 points below the same student trained alone" in text
        assert "Distillation made the student worse, which is clear" in text

    def test_within_noise(self) -> None:
        text = headline(report({0: 91.0, 1: 92.0}, {0: 91.5, 1: 92.1}))
        assert "Cannot tell whether that is more than chance: over 2 seeds" in text
        assert "is clear" not in text

    def test_one_seed(self) -> None:
        text = headline(report({0: 91.0}, {0: 93.0}))
        assert "Cannot tell whether that is more than chance: one seed shows no spread." in text
        assert "±" not in text

    def test_one_seed_and_one_image(self) -> None:
        made = report({0: 0.0}, {0: 100.0})
        for arm, right in (("alone", 0), ("distilled", 1)):
            made.arms[arm][0].details = {"ids": np.array([7]), "labels": np.array([1]), "predicted": np.array([right])}
        assert "Cannot tell whether that is more than chance: one seed shows no spread." in headline(made)

    def test_level_and_above_the_teacher(self) -> None:
        text = headline(report({0: 91.0}, {0: 91.01}, teacher=90.0))
        assert "level with the same student trained alone, 1.0 above its teacher" in text

    def test_being_above_a_broken_teacher_is_no_praise(self) -> None:
        text = headline(report({0: 91.0}, {0: 93.0}, teacher=0.0))
        assert "above its teacher" not in text
        assert "Its teacher, at 0.0 %, is far worse than the student alone." in text

    def test_lower_is_better(self) -> None:
        arms = {"alone": {0: 0.50, 1: 0.52, 2: 0.51}, "distilled": {0: 0.30, 1: 0.33, 2: 0.31}}
        made = report(arms["alone"], arms["distilled"], teacher=None)
        for name, by_seed in arms.items():
            for result in made.arms[name]:
                result.metrics["nll"] = by_seed[result.seed]
        made.primary, made.higher_is_better = "nll", False
        text = headline(made)
        assert "0.313 ± 0.015 nats NLL, 0.197 nats below the same student trained alone (lower NLL is better)" in text
        assert "The gain is clear" in text

    def test_other_students_are_not_called_the_same(self) -> None:
        made = report({0: 91.0}, {0: 93.0})
        made.arms["alone"][0].model = "timm/other"
        assert "same student" not in headline(made)

    def test_several_methods(self) -> None:
        made = report({0: 90.0}, {0: 91.0})
        made.arms["dkd"] = [stage("dkd", 0, 92.0)]
        text = headline(made)
        assert text.startswith("The best of 2 distilled students is dkd")
        assert "flatters" in text

    def test_without_teacher_baseline_or_finite_numbers(self) -> None:
        assert "no baseline was compared" in headline(report({0: 90.0}, {0: 91.0}, teacher=None, baseline=None))
        assert "no seed was shared with alone" in headline(report({1: 90.0}, {0: 91.0}))
        assert "diverged" in headline(report({0: 90.0}, {0: math.nan}))
        assert "a run diverged" in headline(report({0: math.nan}, {0: 90.0}))
        only = Report("x", "X", {"alone": [stage("alone", 0, 90.0)]}, baseline="alone")
        assert headline(only) == "alone, of 1.20 M parameters, reaches 90.0 % top-1."

    @pytest.mark.parametrize(("macs", "text"), [(9_700_000, "0.97 %"), (40_000_000, "4 %"), (123_000, "0.0123 %")])
    def test_shares_are_in_percent_however_small(self, macs: int, text: str) -> None:
        made = report({0: 90.0}, {0: 91.0})
        made.arms["distilled"][0].footprint = Footprint(1_200_000, macs, 1.0, 1)
        made.arms["teacher"][0].footprint = Footprint(1_200_000, 1_000_000_000, 1.0, 1)
        assert f", at {text} of the teacher's multiply-adds." in headline(made)

    def test_a_single_seed_is_named_as_one(self) -> None:
        for made, cells in ((report({0: 90.0}, {0: 91.0}), "seed 0"), (report({0: 90.0, 1: 91.0}, {0: 91.0, 1: 92.0}), "0, 1")):
            assert [row[1] for row in result_cells(made).rows] == ["seed 0", cells, cells]

    def test_a_narrow_terminal_shows_what_decides_and_says_so(self) -> None:
        made = report({0: 90.0}, {0: 91.0})
        for arm in range(9):
            made.arms[f"arm-{arm}"] = [stage("dkd", 0, 92.0)]

        def shown(width: int) -> str:
            console = Console(width=width, file=io.StringIO())
            console.print(report_table(made, width))
            assert isinstance(console.file, io.StringIO)
            return console.file.getvalue()

        assert "NLL" in shown(300)
        assert "too narrow" not in shown(300)
        narrow = shown(70)
        assert "too narrow for all figures: report.html has them" in " ".join(narrow.split())
        assert "NLL" not in narrow
        assert all(f"arm-{arm}" in narrow for arm in range(9))

    def test_curves_of_weighted_terms_say_so(self) -> None:
        made = report({0: 90.0}, {0: 91.0})
        made.arms["distilled"][0].history[0] |= {"train/kd": 1.0, "train/total": 3.0, "train/accuracy/pivot": 80.0}
        titles = {figure.title for _, group in figures(made, dict.fromkeys(made.arms, "arm")) for figure in group}
        assert {"ce, times its weight", "kd, times its weight", "total, the whole loss", "accuracy: pivot", "learning rate"} <= titles

    def test_parameters_where_multiply_adds_are_unknown(self) -> None:
        made = report({0: 90.0}, {0: 91.0})
        made.arms["distilled"][0].footprint = Footprint(1_200_000, None, 1.0, 1)
        assert "at 6 % of the teacher's parameters" in headline(made)

    @pytest.mark.parametrize(
        ("value", "text"), [(None, "–"), (7, "7"), (999, "999"), (999_999, "1.00 M"), (21_800_000, "21.8 M"), (3.67e9, "3.67 G")]
    )
    def test_count(self, value: float | None, text: str) -> None:
        assert count(value) == text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0, "–"), (0.44, "0.4 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
    )
    def test_duration(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text

    def test_metric(self) -> None:
        top1 = COMMON_METRICS["top1"]
        assert (top1.number(-1.23), top1.number(-0.01), top1.number(1, "+"), top1.number(math.nan)) == ("−1.2", "0.0", "+1.0", "n/a")
        assert Metric("x").number(0.000123456) == "0.0001235"


def answers(*wrong: int, images: int = 50) -> dict[str, np.ndarray]:
    """Per-sample results of a classifier that has these images wrong."""
    predicted = np.zeros(images, np.int64)
    predicted[list(wrong)] = 1
    return {"ids": np.arange(images), "labels": np.zeros(images, np.int64), "predicted": predicted}


def of_images(alone: list[dict[str, np.ndarray]], distilled: list[dict[str, np.ndarray]]) -> Report:
    """A report whose top-1 is that of the details, a seed each."""
    arms = {"alone": alone, "distilled": distilled}
    accuracy = {
        arm: {seed: 100 * float((d["labels"] == d["predicted"]).mean()) for seed, d in enumerate(all_)} for arm, all_ in arms.items()
    }
    made = report(accuracy["alone"], accuracy["distilled"])
    for arm, all_ in arms.items():
        for result, details in zip(made.arms[arm], all_, strict=True):
            result.details = details
    return made


class TestCertainty:
    def test_two_images_of_fifty_are_no_certainty_however_equal_the_seeds(self) -> None:
        made = of_images([answers()] * 2, [answers(3, 7)] * 2)
        gain = made.gain()
        assert gain is not None
        assert (gain.spread, gain.images, gain.verdict) == (Spread(-4.0, 0.0, 2), 50, "cannot tell")
        assert gain.interval is not None
        assert gain.interval[0] < -10 < 2 < gain.interval[1]
        text = headline(made)
        assert (
            "Cannot tell whether that is more than chance: over 2 seeds and 50 validation images the paired difference is −4.0 ± 0.0"
            in text
        )
        assert "cannot tell" in render(made)

    def test_more_seeds_do_not_make_the_images_more(self) -> None:
        errors = {n: image_error([(answers(1, 2, 3), answers())] * n, [(94.0, 100.0)] * n, 100.0) for n in (1, 2, 30)}
        assert errors[1] == errors[2] == errors[30]
        assert errors[1][1] == pytest.approx(100 * math.sqrt(3 - 9 / 50 + 1) / 50)

    def test_errors_that_the_students_share_cancel(self) -> None:
        shared = range(10, 30)
        gain = of_images([answers(*shared, 1)], [answers(*shared)]).gain()
        assert gain is not None
        assert gain.image_error == pytest.approx(100 * math.sqrt(1 - 1 / 50 + 1) / 50)

    def test_one_seed_is_told_by_its_images_alone(self) -> None:
        few, many = of_images([answers(1)], [answers()]), of_images([answers(*range(200), images=1000)], [answers(images=1000)])
        assert [gain.verdict for made in (few, many) if (gain := made.gain())] == ["cannot tell", "clear for this seed"]
        assert "Cannot tell whether that is more than chance: the 95 % interval from the 50 validation images alone is" in headline(few)
        assert "The gain is clear for this seed: the 95 % interval from the 1000 validation images alone is +17." in headline(many)
        told = report_json(many)["gains"]["distilled"]
        assert (told["clear"], told["interval"], told["verdict"], told["images"]) == (None, None, "clear for this seed", 1000)
        assert told["images_interval"] == pytest.approx([17.5, 22.5], abs=0.1)

    def test_a_metric_that_is_no_mean_over_images_resolves_one_image_at_best(self) -> None:
        made = report({0: 40.0, 1: 41.0}, {0: 44.0, 1: 45.01})
        for result in (*made.arms["alone"], *made.arms["distilled"]):
            result.details = {"ids": np.repeat(np.arange(50), 3), "labels": np.zeros(150), "predicted": np.zeros(150)}
        gain = made.gain()
        assert gain is not None
        assert (gain.images, gain.image_error, gain.clear) == (50, 2.0, False)
        for result in (*made.arms["alone"], *made.arms["distilled"]):
            result.details = {"ids": np.arange(5000)}
        assert (found := made.gain())
        assert (found.image_error, found.clear) == (0.02, True)

    def test_a_task_s_own_outcomes_are_used_where_their_mean_is_the_metric(self) -> None:
        scores = np.linspace(0, 100, 101)
        details = {"ids": np.arange(101), "outcome": scores}, {"ids": np.arange(101), "outcome": scores[::-1].copy()}
        images, error = image_error([details], [(50.0, 50.0)], 0.0)
        assert (images, error) == (101, pytest.approx(np.std(2 * scores) / math.sqrt(101)))
        assert image_error([details], [(60.0, 50.0)], 0.0) == (None, 0.0)

    @pytest.mark.parametrize("images", [50, 500])
    @pytest.mark.parametrize("seeds", [2, 3, 5])
    @pytest.mark.parametrize(("of_seed", "of_image"), [(0.0, 1.5), (0.4, 0.7)])
    def test_equal_students_are_seldom_called_different(self, seeds: int, images: int, of_seed: float, of_image: float) -> None:
        """Right or wrong by the image's difficulty, what a kind of student makes of it, the seed, and chance: all are drawn anew."""
        draw = np.random.default_rng(seeds * images)
        called, experiments = 0, 300
        for _ in range(experiments):
            ease_SAN = (
                draw.normal(0.8, 1.0, images) + of_image * draw.normal(size=(1, 2, images)) + of_seed * draw.normal(size=(seeds, 2, 1))
            )
            right_SAN = draw.random((seeds, 2, images)) < 1 / (1 + np.exp(-ease_SAN))
            details_SA = [
                [{"ids": np.arange(images), "labels": np.ones(images), "predicted": right_N.astype(float)} for right_N in arms]
                for arms in right_SAN
            ]
            values_SA = (100 * right_SAN.mean(-1)).tolist()
            found = image_error([(b, a) for a, b in details_SA], [(b, a) for a, b in values_SA], 100.0)
            assert found[0] == images
            called += bool(Gain("b", "a", "top1", {s: b - a for s, (a, b) in enumerate(values_SA)}, *found).clear)
        assert called <= 0.06 * experiments


class TestFiles:
    def test_result_round_trip(self) -> None:
        result = stage("alone", 3, 91.0)
        result.history[1]["train/ce"] = math.nan
        data = json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert "details" not in data
        back = StageResult.from_json(data)
        assert math.isnan(back.history[1]["train/ce"])
        assert back.details == {}
        assert back.to_json() == result.to_json()
        assert back.footprint == SMALL

    def test_metrics_json(self, tmp_path: Path) -> None:
        made = report({0: 91.0, 1: 92.0}, {0: 93.0, 1: math.inf}, settings={"out": tmp_path, "lr": np.float32(0.5), "steps": (1, 2)})
        assert write_report(made, tmp_path / "run") == tmp_path / "run" / "report.html"
        data = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert data["schema"] == SCHEMA
        assert set(data) == {
            *("schema", "method", "title", "headline", "primary", "higher_is_better", "teacher", "baseline", "summary", "gains", "stages"),
            *("command", "settings", "versions", "started", "finished", "notes", "reference", "differences", "failed"),
        }
        assert data["settings"] == {"out": str(tmp_path), "lr": 0.5, "steps": [1, 2]}
        assert data["summary"]["alone"]["metrics"]["top1"]["mean"] == 91.5
        assert data["summary"]["distilled"]["metrics"]["top1"] == {"mean": None, "std": None, "n": 2}
        assert data["gains"]["distilled"]["per_seed"] == {"0": 2.0, "1": None}
        assert data["stages"]["alone"][1]["footprint"]["parameters"] == SMALL.parameters
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.json", "report.html"]

    def test_terminal_table(self) -> None:
        made = report({0: 91.0, 1: 92.0}, {0: 93.0, 1: 94.5})
        made.arms["alone"][0].model = "timm/[red]x[/nothing]"
        console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(report_table(made))
        text = console.export_text()
        assert "[red]x[/nothing]" in text
        assert "93.8 ± 1.1" in text

    def test_wrong_reports(self) -> None:
        with pytest.raises(InputError, match="arms"):
            Report("x", "X", {})
        with pytest.raises(InputError, match="arms"):
            Report("x", "X", {"alone": []})
        with pytest.raises(InputError, match="one result per seed"):
            Report("x", "X", {"alone": [stage("alone", 0, 1.0)] * 2})
        with pytest.raises(InputError, match=r"baseline.*alone"):
            Report("x", "X", {"alone": [stage("alone", 0, 1.0)]}, baseline="alonee")
        with pytest.raises(InputError, match="primary"):
            Report("x", "X", {"alone": [stage("alone", 0, 1.0)]}, primary="miou")
        with pytest.raises(InputError, match="arm"):
            report({0: 1.0}, {0: 1.0}).gain("nobody")


class TestMerge:
    def test_seeds_of_one_experiment(self) -> None:
        one = report(
            {1: 91.0},
            {1: 93.0},
            started="2026-01-02T10:00:00",
            finished="2026-01-02T11:00:00",
            settings={"seed": 1, "lr": 0.1},
            notes=["a"],
        )
        two = report(
            {0: 90.0},
            {0: 94.0},
            started="2026-01-02T09:00:00",
            finished="2026-01-02T10:00:00",
            settings={"seed": 0, "lr": 0.1},
            notes=["a", "b"],
        )
        one.sections = [Section("only seed 1", "")]
        merged = Report.merge([one, two])
        assert {arm: [result.seed for result in results] for arm, results in merged.arms.items()} == {
            "teacher": [0],
            "alone": [0, 1],
            "distilled": [0, 1],
        }
        assert (merged.started, merged.finished) == ("2026-01-02T09:00:00", "2026-01-02T11:00:00")
        assert merged.settings == {"seed": [1, 0], "lr": 0.1}
        assert merged.notes == ["a", "b"]
        assert merged.sections == []

    def test_a_section_of_the_method_appears_once_for_all_seeds(self) -> None:
        one, two = report({1: 70.0}, {1: 72.0}), report({2: 71.0}, {2: 72.0})
        one.method_sections, two.method_sections = ([Section("Search", "t = 110")], [Section("Search", "t = 110"), Section("Other", "")])
        assert [section.title for section in Report.merge([one, two]).method_sections] == ["Search", "Other"]

    def test_one_report_stays(self) -> None:
        one = report({1: 91.0}, {1: 93.0})
        assert Report.merge([one]) is one

    def test_contradictions(self) -> None:
        one = report({0: 91.0}, {0: 93.0})
        with pytest.raises(InputError, match="seed 0"):
            Report.merge([one, report({0: 91.5}, {0: 93.0})])
        with pytest.raises(InputError, match="method"):
            Report.merge([one, report({1: 91.5}, {1: 93.0}, method="dkd")])
        with pytest.raises(InputError, match="at least one"):
            Report.merge([])


VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Collects what a page holds, and checks that its tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class TestPage:
    def test_holds_everything_and_fetches_nothing(self) -> None:
        made = report({0: 91.0, 1: 92.0}, {0: 93.0, 1: 94.5}, command="stillroom run kd", notes=["a note"], settings={"lr": 0.1})
        made.sections = [Section("From the task", "<p id='mine'>hello</p>")]
        html = render(made)
        page = Page(html)
        for text in ("KD", "93.8 ± 1.1", "stillroom run kd", "a note", "From the task", "hello", "1.20 M", "1.00 G", "seed 1"):
            assert text in page.text
        assert ("id", "mine") in page.attributes
        assert not {"script", "iframe", "object"} & set(page.tags)
        assert not [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("data:")]
        assert "@import" not in html
        assert "url(http" not in html
        ids = [value for name, value in page.attributes if name == "id"]
        assert len(ids) == len(set(ids))

    def test_escapes_names(self) -> None:
        evil = "<script>alert('x')</script>"
        made = report({0: 91.0}, {0: 93.0}, title=evil, notes=[evil], command=evil, settings={evil: evil}, versions={evil: evil})
        made.method = made.arms["alone"][0].model = evil
        made.arms[evil] = [stage(evil, 0, 92.0)]
        made.arms[evil][0].history[0][f"train/{evil}"] = 1.0
        made.arms[evil][0].metrics[evil] = 1.0
        html = render(made)
        assert "<script" not in html
        assert evil in Page(html).text

    def test_drawings_are_sound_and_told(self) -> None:
        html = render(report({0: 91.0, 1: 92.0}, {0: 93.0, 1: 94.5}))
        drawings = [ElementTree.fromstring("<svg viewBox" + part.split("</svg>")[0] + "</svg>") for part in html.split("<svg viewBox")[1:]]
        told = [drawing for drawing in drawings if drawing.get("role") == "img"]
        assert len(told) == 5  # the seeds' dots, top-1, NLL, cross-entropy, learning rate
        assert all(drawing[0].tag == "title" and drawing[1].tag == "desc" and drawing[1].text for drawing in told)
        assert "NaN" not in html.replace("n/a", "")
        top1 = next(drawing for drawing in told if drawing[0].text == "top-1 (%) by epoch")
        assert "distilled from 23.4 to 93.8 at epoch 4" in (top1[1].text or "")
        assert len([path for path in top1.iter("path") if (path.get("class") or "").startswith("band")]) == 2

    @pytest.mark.parametrize("epochs", [0, 1, 2, 40])
    def test_any_length(self, epochs: int) -> None:
        arms = {"teacher": [stage("teacher", 0, 95.0, epochs=0)], "distilled": [stage("distilled", 0, 91.0, epochs=epochs)]}
        Page(render(Report("x", "X", arms)))

    def test_constant_and_broken_histories(self) -> None:
        made = report({0: 91.0, 1: 92.0}, {0: 93.0, 1: 94.0})
        for result in made.arms["alone"]:
            for row in result.history:
                row |= {"val/top1": math.nan, "train/ce": 0.0, "train/big": 1e9, "train/small": 1e-9}
        Page(render(made))

    def test_early_epochs_do_not_squash_the_rest(self) -> None:
        made = report({0: 91.0}, {0: 93.0})
        for arm in made.arms.values():
            arm[0].history = [{"epoch": float(e), "train/ce": 1000.0 if e == 1 else 2.0 - e / 40} for e in range(1, 41)]
        assert ">1.6</text>" in render(made)
