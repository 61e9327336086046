"""Studies on a PostgreSQL server, which the tests start: Debian's package `postgresql`, and a driver, psycopg or psycopg2."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stillroom.engine.study.study import Study
from tests.engine.test_study import forked, parabola, random_kills, states, study


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))  # where Debian keeps them, out of the path
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a new database."""
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    driver = next((name for name in ("psycopg", "psycopg2") if importlib.util.find_spec(name)), None)
    if driver is None:
        pytest.skip("no driver of PostgreSQL here: pip install 'psycopg[binary]'")
    as_user: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}  # it refuses root
    with tempfile.TemporaryDirectory() as made, socket.socket() as free:
        Path(made).chmod(0o777)
        cluster = f"{made}/cluster"
        quiet: dict[str, Any] = {"cwd": made, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **as_user}
        subprocess.run(
            [initdb, "-D", cluster, "-U", "stillroom", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"], check=True, **quiet
        )
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        process = subprocess.Popen([postgres, "-D", cluster, "-p", str(port), "-k", made, *settings], **quiet)
        try:
            _wait_for(importlib.import_module(driver), port, process)
            yield f"postgresql+{driver}://stillroom:secret@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # at once, whoever is still connected
            process.wait(30)


def _wait_for(driver: Any, port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            driver.connect(host="127.0.0.1", port=port, user="stillroom", dbname="postgres").close()
            return
        except driver.OperationalError:
            assert process.poll() is None, "the server has ended"
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def test_two_workers_of_which_one_is_killed_at_random_moments(server: str, tmp_path: Path) -> None:
    one = random_kills(tmp_path, 3, 14, server, "killed")
    done = one.finished()
    assert [trial.state for trial in done] == ["complete"] * 14
    assert not {"RUNNING", "WAITING"} & set(states(one))


def test_workers_that_start_at_once_make_the_tables_once(server: str, tmp_path: Path) -> None:
    import sqlalchemy

    one = study(tmp_path, 8, storage=f"{server.rpartition('/')[0]}/fresh", name="fresh")
    with sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE fresh"))
    workers = [forked(one.run, parabola) for _ in range(4)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(one.finished()) == 8


def test_two_studies_in_one_database_do_not_mix(server: str, tmp_path: Path) -> None:
    first, second = (study(tmp_path, trials, storage=server, name=name) for name, trials in (("one", 3), ("two", 4)))
    assert (len(first.run(parabola)), len(second.run(parabola))) == (3, 4)
    assert len(first.finished()) == 3
    longer: Study = study(tmp_path, 5, storage=server, name="one")
    assert longer.run(parabola)[:3] == first.finished()[:3]


def test_a_trial_that_diverges_is_a_failed_trial(server: str, tmp_path: Path) -> None:
    done = study(tmp_path, 2, storage=server, name="diverging").run(lambda trial: float("nan"))
    assert [trial.state for trial in done] == ["failed", "failed"]
    assert all("nan" in trial.reason for trial in done)
