"""A study: exactly so many trials, whoever runs them, is killed, is slow, or starts at the same moment."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from stillroom.engine.run.console import EscapingConsole
from stillroom.engine.study.page import importances, search_section, trials_section
from stillroom.engine.study.samplers import make_pruner, make_sampler
from stillroom.engine.study.space import Choice, Float, Int, read_space, write_space
from stillroom.engine.study.storage import open_storage, put_aside
from stillroom.engine.study.study import Study
from stillroom.engine.study.trial import Finished, Trial
from stillroom.errors import InputError, Interrupted, StillroomError

SPACE = {"x": Float(0.0, 1.0), "k": Choice((1, 2))}


def parabola(trial: Trial) -> float:
    x: float = trial.params["x"]
    return 1 - (x - 0.3) ** 2


def tpe(seed: int) -> Any:
    return make_sampler("tpe", seed, startup=3)


def study(folder: Path, trials: int | None = 6, **options: Any) -> Study:
    return Study(folder, options.pop("name", "s"), options.pop("space", SPACE), options.pop("sampler", tpe), trials=trials, **options)


def storages(folder: Path) -> list[str | None]:
    return [None, f"journal:{folder}/journal.log"]


def states(one: Study) -> list[str]:
    return [trial.state.name for trial in one.of_optuna().get_trials(deepcopy=False)]


def forked(work: Callable[..., Any], *arguments: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


# How many trials --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1], ids=["sqlite", "journal"])
def test_four_workers_finish_exactly_the_planned_number_and_once_more_none(tmp_path: Path, kind: int) -> None:
    one = study(tmp_path, 9, storage=storages(tmp_path)[kind])
    workers = [forked(one.run, parabola) for _ in range(4)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert states(one) == ["COMPLETE"] * 9
    assert len(one.run(parabola)) == 9
    assert len(states(one)) == 9


def test_pruned_trials_count_and_all_pruned_ends(tmp_path: Path) -> None:
    def pruned_but_the_first(trial: Trial) -> float:
        for epoch in (1, 2, 3):
            trial.report(-float(trial.number), epoch)
        return -float(trial.number)

    one = study(tmp_path, 8, pruner=partial(median_at_once))
    done = one.run(pruned_but_the_first)
    assert len(done) == 8
    assert {trial.state for trial in done} == {"complete", "pruned"}
    assert one.best.number == 0
    with pytest.raises(StillroomError, match="no trial has a score"):
        _ = study(tmp_path / "other", 1).best


def median_at_once() -> Any:
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=1)


def test_a_time_is_a_budget_over_all_sessions(tmp_path: Path) -> None:
    def slow(trial: Trial) -> float:
        time.sleep(0.1)
        return 0.0

    one = study(tmp_path, None, seconds=0.5)
    count = len(one.run(slow))
    assert 1 <= count <= 6
    assert len(one.run(slow)) == count
    assert study(tmp_path, None, seconds=60).run_one(slow) is not None


# Going on ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_a_study_that_goes_on_proposes_what_it_would_have_proposed(tmp_path: Path, sampler: str) -> None:
    make = partial(make_sampler, sampler, startup=3)
    whole = study(tmp_path / "whole", 8, sampler=make).run(parabola)
    study(tmp_path / "parts", 4, sampler=make).run(parabola)
    parts = study(tmp_path / "parts", 8, sampler=make).run(parabola)
    assert [trial.params for trial in parts] == [trial.params for trial in whole]
    assert len({trial.params["x"] for trial in parts}) == 8


def test_a_changed_space_or_description_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    study(tmp_path, 2, described={"data": "a"}).run(parabola)
    changed = {"x": Float(0.0, 1.0), "k": Choice((1, 2, 3))}
    with pytest.raises(InputError, match=r"k was \[1, 2\], now \[1, 2, 3\].*another study"):
        study(tmp_path, 4, described={"data": "a"}, space=changed).run(parabola)
    with pytest.raises(InputError, match="data was a, now b"):
        study(tmp_path, 4, described={"data": "b"}).run(parabola)
    assert len(study(tmp_path, 4, described={"data": "a"}).run(parabola)) == 4


def test_two_studies_in_one_storage_do_not_mix(tmp_path: Path) -> None:
    first, second = (study(tmp_path, 3, name=name, seed=seed) for seed, name in enumerate("ab"))
    first.run(parabola)
    second.run(parabola)
    assert [trial.number for trial in second.finished()] == [0, 1, 2]
    assert first.best.params != second.best.params


def test_a_trial_is_written_whole_and_in_few_statements(tmp_path: Path) -> None:
    from sqlalchemy import event

    one = study(tmp_path, 3, pruner=partial(make_pruner, "hyperband"))
    one.run_one(parabola)
    said: list[str] = []
    event.listen(one._opened.storage._backend.engine, "before_cursor_execute", lambda *given: said.append(given[2]))  # type: ignore[attr-defined]
    one.run_one(parabola)
    assert len(said) <= 30  # one that sets value after value needs 70
    assert sum(line.startswith("INSERT INTO trial_params") for line in said) == 1


def test_what_is_written_is_what_optuna_writes(tmp_path: Path) -> None:
    import optuna

    noted = {"x": [1, 2], "y": "ä"}

    def told(trial: Trial) -> float:
        trial.note(**noted)
        trial.report(0.25, 1)
        return parabola(trial)

    for kind, name in enumerate(("database", "journal")):
        one = study(
            tmp_path / name, 4, sampler=partial(make_sampler, "tpe", startup=2, parallel=True), storage=storages(tmp_path / name)[kind]
        )
        one.run(told)
        plain = optuna.create_study(storage=optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/{name}/plain.db"), direction="maximize")
        for number in range(4):
            plain.sampler = one.sampler(one.seed_of(number))
            asked = plain.ask({key: range_.distribution() for key, range_ in one.space.items()})
            asked.report(0.25, 1)
            plain.tell(asked, 1 - (asked.params["x"] - 0.3) ** 2)
        if name == "database":  # as Optuna reads it
            assert optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/{name}/study.db").get_all_trials(1) == one.of_optuna().trials
        for ours, theirs in zip(one.of_optuna().trials, plain.trials, strict=True):
            assert ours.params == theirs.params
            assert (ours.number, ours.state, ours.values, ours.distributions) == (
                theirs.number,
                theirs.state,
                theirs.values,
                theirs.distributions,
            )
            assert (ours.system_attrs, ours.intermediate_values) == (theirs.system_attrs, theirs.intermediate_values)
            assert ours.user_attrs["told"] == noted
            assert ours.datetime_start is not None
            assert ours.datetime_complete is not None
            assert ours.datetime_start <= ours.datetime_complete


def test_a_worker_that_is_killed_while_it_proposes_leaves_no_trial(tmp_path: Path) -> None:
    def deadly(seed: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    study(tmp_path, 2).run_one(parabola)
    worker = forked(study(tmp_path, 2, sampler=deadly).run, parabola)
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    one = study(tmp_path, 2)
    one.run(parabola)
    assert states(one) == ["COMPLETE"] * 2


# What is no number ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1], ids=["sqlite", "journal"])
def test_what_is_not_finite_is_a_failed_trial_with_its_reason(tmp_path: Path, kind: int) -> None:
    def diverges(trial: Trial) -> float:
        if trial.number == 0:
            return math.nan
        if trial.number == 1:
            trial.report(math.inf, 2)
        if trial.number == 2:
            raise ZeroDivisionError("by nothing")
        trial.report(0.5, 1)
        return -math.inf if trial.number == 3 else float(trial.number)

    one = study(tmp_path, 6, storage=storages(tmp_path)[kind])
    done = one.run(diverges)
    assert [trial.state for trial in done] == ["failed"] * 4 + ["complete"] * 2
    reasons = ["the score is nan", "the score is inf after epoch 2", "ZeroDivisionError: by nothing", "the score is -inf"]
    assert [trial.reason for trial in done[:4]] == reasons
    assert one.best.number == 5
    assert all(trial.score is None for trial in done[:4])


# Workers that are killed, or slow ---------------------------------------------------------------------------------------------------------


def killed_at_two(trial: Trial) -> float:
    if trial.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return parabola(trial)


@pytest.mark.parametrize("kind", [0, 1], ids=["sqlite", "journal"])
def test_a_killed_workers_trial_is_failed_and_run_again(tmp_path: Path, kind: int) -> None:
    one = study(tmp_path, 5, storage=storages(tmp_path)[kind])
    worker = forked(one.run, killed_at_two)
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    done = one.run(parabola)
    assert len(done) == 5
    assert states(one) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    lost, again = (one.of_optuna().trials[number] for number in (2, 3))
    assert again.params == lost.params
    assert "killed" in lost.user_attrs["reason"]


def test_a_trial_that_takes_every_worker_with_it_is_given_up(tmp_path: Path) -> None:
    def deadly(trial: Trial) -> float:
        if trial.params["x"] == poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return parabola(trial)

    poison = study(tmp_path / "dry", 2).run(parabola)[1].params["x"]
    one = study(tmp_path / "run", 4)
    for _ in range(3):
        forked(one.run, deadly).join(60)
    done = one.run(deadly)
    assert [trial.state for trial in done].count("failed") == 1
    assert len(done) == 4
    assert "3 times" in next(trial.reason for trial in done if trial.state == "failed")


def random_kills(folder: Path, kills: int, trials: int, storage: str | None = None, name: str = "s") -> Study:
    """Two workers, of which one after the other is killed at random moments and replaced, until the study is finished."""
    generator = random.Random(kills)
    one = study(folder, trials, storage=storage, name=name)
    workers = [forked(one.run, short) for _ in range(2)]
    while any(worker.is_alive() for worker in workers):
        time.sleep(generator.uniform(0.1, 0.5))
        if kills:
            victim = generator.randrange(2)
            workers[victim].kill()
            workers[victim].join()
            workers[victim] = forked(one.run, short)
            kills -= 1
    assert not any(worker.exitcode for worker in workers)
    return one


def short(trial: Trial) -> float:
    time.sleep(0.05)
    return parabola(trial)


@pytest.mark.parametrize("kind", [0, 1], ids=["sqlite", "journal"])
def test_kills_at_random_moments_change_no_count(tmp_path: Path, kind: int) -> None:
    one = random_kills(tmp_path, 3, 14, storages(tmp_path)[kind])
    done = one.finished()
    assert len(done) == 14
    assert [trial.state for trial in done] == ["complete"] * 14
    assert "RUNNING" not in states(one)
    assert "WAITING" not in states(one)


def test_a_worker_that_was_given_up_drops_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = study(tmp_path, 3)
    other = study(tmp_path, 3, grace=0.1)

    def stalls(trial: Trial) -> float:
        if trial.number == 0:  # as if it came from a machine that has shown no sign of life for too long
            storage = one._opened.storage
            storage.set_trial_user_attr(trial._trial._trial_id, "worker", {"host": "elsewhere", "pid": 1, "started": "1"})
            with other.locked():
                other._seen[trial._trial._trial_id] = 0, time.monotonic() - 1
                other._give_up_dead()
            trial.report(0.5, 1)
        return parabola(trial)

    done = one.run(stalls)
    assert len(done) == 3
    assert 0 not in {trial.number for trial in done}
    assert "trial 0 was given to another worker meanwhile; its result is dropped" in capsys.readouterr().out
    assert states(one) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_a_trial_of_another_machine_lives_as_long_as_it_shows_signs(tmp_path: Path) -> None:
    one = study(tmp_path, 2, grace=0.2)
    running = one.claim()
    assert running is not None
    number, storage = running._trial._trial_id, one._opened.storage
    storage.set_trial_user_attr(number, "worker", {"host": "elsewhere", "pid": 1, "started": "1"})
    for beat in range(3):
        storage.set_trial_user_attr(number, "beat", beat)
        one._give_up_dead()
        time.sleep(0.15)
    assert states(one) == ["RUNNING"]
    time.sleep(0.1)
    one._give_up_dead()
    assert states(one) == ["FAIL", "WAITING"]


def test_a_worker_that_is_asked_to_end_leaves_its_trial_to_others(tmp_path: Path) -> None:
    def stopped(trial: Trial) -> float:
        if trial.number == 1:
            raise Interrupted("stopped")
        return parabola(trial)

    one = study(tmp_path, 3)
    with pytest.raises(Interrupted):
        one.run(stopped)
    assert states(one) == ["COMPLETE", "FAIL", "WAITING"]
    assert len(one.run(parabola)) == 3


@dataclass
class KilledOnce:
    """Ends its process at the first trial, once."""

    mark: Path

    def __call__(self, trial: Trial) -> float:
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return parabola(trial)


def test_a_worker_of_the_pool_that_is_killed_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = study(tmp_path, 4)
    done = one.run(KilledOnce(tmp_path / "mark"), jobs=2, metric="height")
    assert [trial.state for trial in done] == ["complete"] * 4
    told = capsys.readouterr().out
    assert "a worker is replaced: its process was ended by SIGKILL" in told
    assert "4 of 4: height" in told


# What is said -----------------------------------------------------------------------------------------------------------------------------


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    """Has searches believe in a terminal; answers with what it is sent."""
    sent = io.StringIO()
    terminal = EscapingConsole(file=sent, force_terminal=True, width=width, soft_wrap=True, _environ={"TERM": "xterm"})
    monkeypatch.setattr("stillroom.engine.study.progress.console", terminal)
    return sent


def screen(sent: str) -> list[str]:
    """What a terminal shows after all that: of its codes those that rich sends."""
    lines, row = [""], 0
    for code, text in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", sent):
        if code == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif code == "\x1b[1A":
            row -= 1
        elif code in ("\r", "\x1b[2K"):
            lines[row] = ""
        lines[row] += text
    return lines


def test_a_terminal_has_a_table_of_the_best_in_place_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(trial: Trial) -> float:
        if trial.number == 2:
            raise StillroomError("no [red] paint")
        return (0.25, 0.75, 0.0, 0.5)[trial.number]

    sent = on_a_terminal(monkeypatch, 80)
    space = {"x": Float(0.0, 1.0), "kind": Choice(("[b]\x1b[2J",))}
    study(tmp_path, 4, space=space, sampler=partial(make_sampler, "random")).run(score, metric="height")
    assert "\x1b[2J" not in sent.getvalue()
    shown = screen(sent.getvalue())
    assert sum("of 4" in line for line in shown) == 2  # the line of the one that failed, above the table
    assert "3 of 4: failed: no [red] paint; best 0.75 (trial 1)" in shown[0]
    assert shown[1] == "s: 4 of 4, 1 failed"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown if line.startswith("│")]
    assert [row[:2] for row in rows] == [["1", "0.75"], ["3", "0.5"], ["0", "0.25"]]
    assert rows[0][3] == "[b]\\x1b[2J"
    assert "trial 3: height 0.50" in "".join(shown)


def test_a_narrow_terminal_has_the_options_in_one_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = on_a_terminal(monkeypatch, 50)
    study(tmp_path, 1, space={f"option_{i}": Float(0.5, 0.5) for i in range(5)}).run(lambda trial: 1.0)
    shown = screen(sent.getvalue())
    assert max(map(len, shown)) <= 50
    assert shown[2].replace("┃", " ").split() == ["trial", "score", "options", "seconds"]
    assert all(f"option_{i} 0.5" in "".join(shown) for i in range(5))


# Starting at once, and storages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1], ids=["sqlite", "journal"])
def test_many_processes_that_start_at_once_make_one_study(tmp_path: Path, kind: int) -> None:
    one = study(tmp_path, 10, storage=storages(tmp_path)[kind])
    workers = [forked(one.run_one, parabola) for _ in range(10)]
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 10
    import optuna

    assert len(optuna.get_all_study_summaries(one._opened.storage)) == 1
    assert states(one) == ["COMPLETE"] * 10


@pytest.mark.parametrize(
    "broken", ['{"op_code": 5, "wor', '{"op_code": 5, "wor{"op_code": 6}\n', "\x00\x00\x00\n"], ids=["half", "glued", "zeros"]
)
def test_a_journal_that_a_kill_broke_keeps_its_whole_records(tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str) -> None:
    journal = tmp_path / "journal.log"
    study(tmp_path, 3, storage=f"journal:{journal}").run(parabola)
    whole = journal.read_bytes()
    journal.write_bytes(whole + broken.encode())
    again = study(tmp_path, 5, storage=f"journal:{journal}")
    assert len(again.run(parabola)) == 5
    assert journal.read_bytes().startswith(whole)
    assert (tmp_path / "journal.log.damaged-1").read_bytes() == broken.encode()
    assert f"{journal}, line {whole.count(10) + 1}" in capsys.readouterr().out.replace("\n", "")
    assert put_aside(journal) is None


def test_half_a_record_left_while_a_worker_lives_is_put_aside_before_the_next(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    one = study(tmp_path, 4, storage=f"journal:{journal}")
    one.run_one(parabola)
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "stu')
    assert len(one.run(parabola)) == 4
    assert all(isinstance(json.loads(line), dict) for line in journal.read_text().splitlines())


def test_storages_that_cannot_be_used_are_named_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and long enough to be seen as none" * 40)
    (tmp_path / "folder").mkdir()
    wrong = {
        f"sqlite:///{tmp_path}/text.db": "file is not a database",
        f"sqlite:///{tmp_path}/folder": "is a folder",
        f"{tmp_path}/study.db": "sqlite:///FILE",
        "nosuch://host/name": "nosuch",
        "postgresql+pg8000://user:secret@localhost/none": "pip install pg8000",
    }
    for url, said in wrong.items():
        with pytest.raises(InputError, match="storage") as caught:
            open_storage(url, "s")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["study.db", "journal.log"])
def test_a_read_only_file_is_named(name: str) -> None:
    with tempfile.TemporaryDirectory() as made:  # where every user may look
        folder, storage = Path(made), None if name == "study.db" else f"journal:{made}/{name}"
        study(folder, 1, storage=storage).run(parabola)
        folder.chmod(0o777)
        (folder / name).chmod(0o444)
        user = os.geteuid()
        try:
            if user == 0:  # who may write everywhere: be nobody for a moment
                os.seteuid(65534)
            with pytest.raises(InputError, match="read-only"):
                study(folder, 2, storage=storage).run(parabola)
        finally:
            os.seteuid(user)


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillroom.engine.study.storage.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"stillroom\[search\]"):
        study(tmp_path, 1).run(parabola)


# Spaces and pages -------------------------------------------------------------------------------------------------------------------------


def test_a_space_is_read_as_it_is_written(tmp_path: Path) -> None:
    space = {"lr": Float(1e-3, 1, log=True), "batch_size": Int(16, 64), "kind": Choice(("a", None, True, 2)), "w": Float(0.0, 1.0)}
    (tmp_path / "space.yaml").write_text(json.dumps(write_space(space)))
    assert read_space(tmp_path / "space.yaml") == space
    assert read_space({"lr": {"low": "1e-3", "high": 1, "log": True}, "x": None}) == {"lr": Float(1e-3, 1, log=True)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": {"low": 0, "high": 1, "log": True}}, "space.lr.*above 0"),
        ({"lr": {"low": 2, "high": 1}}, "space.lr.*in order"),
        ({"lr": 0.1}, "space.lr.*list of choices"),
        ({"k": [1, 1]}, "space.k.*different"),
        ({"k": []}, "space.k"),
        ({"n": {"low": 0.5, "high": 3, "int": True}}, "space.n.*whole"),
        ({"n": {"low": 1, "high": 3, "step": 1}}, "space.n"),
        ("nowhere.yaml", "nowhere.yaml.*YAML"),
    ],
)
def test_a_range_that_cannot_be_used_is_named(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_space(given)


def test_a_trial_keeps_to_its_range_and_type(tmp_path: Path) -> None:
    space = {"lr": Float(1e-3, 1, log=True), "n": Int(2, 4), "k": Choice(("a", "b")), "fixed": Float(0.5, 0.5)}
    for trial in study(tmp_path, 6, space=space).run(lambda trial: float(trial.params["n"])):
        assert all(one.holds(trial.params[name]) for name, one in space.items())
        assert trial.params["fixed"] == 0.5


def test_the_page_shows_trials_and_importances(tmp_path: Path) -> None:
    from stillroom.engine.report.results import COMMON_METRICS

    one = study(tmp_path, 12, sampler=partial(make_sampler, "random"))
    done = one.run(parabola)
    odd = [*done, Finished(12, "failed", {"x": 0.1, "k": 1}, None, "the <score> is nan", 1.0, {}, 0.0)]
    page = search_section({"<b>": odd}, COMMON_METRICS["top1"]).html + trials_section("t", odd, COMMON_METRICS["top1"]).html
    assert page.count("<circle") == 10  # without the worst fifth
    assert "&lt;score&gt; is nan" in page
    assert "<b>" not in page
    found = importances(one)
    assert set(found) == {"x", "k"}
    assert found["x"] > found["k"]


def test_unknown_samplers_and_pruners_are_refused() -> None:
    with pytest.raises(InputError, match="sampler"):
        make_sampler("nosuch", 0)
    with pytest.raises(InputError, match="pruner"):
        make_pruner("nosuch")


def test_a_worker_is_the_same_study_elsewhere(tmp_path: Path) -> None:
    import pickle

    one = study(tmp_path, 2)
    one.run_one(parabola)
    other = pickle.loads(pickle.dumps(one))
    assert len(other.run(parabola)) == 2
    assert replace(one, trials=3).trials == 3
