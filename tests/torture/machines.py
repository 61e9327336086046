"""Two machines that are none: two network namespaces joined by a cable, which the system makes for whoever may (root, on Linux).

    python -m tests.torture.machines [--only NAME]

The same training is started by every way that docs/devices.md tells, and must end with the numbers of `--devices 2` on one machine. Then
machines are killed, the cable is cut, and signals come at various moments: all processes must end within a stated time, with one line and
the exit code that is documented, and the same command must go on to equal numbers. Prints a line for each case; leaves with 1 if something
is wrong, and with 0 and the reason where no namespaces can be made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.torture.kill import comparable

FIRST, SECOND = "10.213.7.1", "10.213.7.2"
JOB = (
    "--data digits --subset 160 --val-subset 40 --batch-size 16 --epochs 30 --teacher-epochs 2 --optimizer sgd --lr 0.01 --accelerator cpu "
)
JOB += "--teacher-precision fp32 --strategy ddp --checkpoint-seconds 1 --lost-seconds 8"
DETECTION = "--data scenes:size=32,train=8,val=4,teacher=8 --batch-size 4 --epochs 2 --teacher-epochs 1 --warmup-epochs 0 --optimizer sgd "
DETECTION += "--lr 0.01 --accelerator cpu --teacher-precision fp32 --strategy ddp --lost-seconds 20"
JOBS = {"kd": JOB, "bckd": DETECTION}
PATIENCE = 120.0  # seconds for a training from its start to its end
ENDS = 45.0  # seconds from a signal or a loss until all processes have ended, on a machine that does other work too


def reason() -> str:
    """Why there can be no namespaces; nothing where there can."""
    if shutil.which("ip") is None:
        return "the command ip is not there"
    made = subprocess.run(["ip", "netns", "add", "stillroom-try"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "stillroom-try"], capture_output=True, check=False)
    return made.stderr.strip()


@dataclass(frozen=True)
class Pair:
    """Two namespaces.

    Args:
        names: of the namespaces, and of the ends of the cable between them.
        root: a folder that both see.
    """

    names: tuple[str, str]
    root: Path

    def start(self, node: int, words: str, out: str, *, method: str = "kd", hidden: bool = False, **environment: str) -> Running:
        """`stillroom run METHOD` on one of the machines.

        Args:
            node: 0 or 1.
            words: of the command line, before `stillroom`: those of torchrun; or nothing.
            out: the run's folder below `root`.
            method: and its usual options.
            hidden: the machine does not see `root`, but a disk of its own in its place.
            environment: besides the usual one.
        """
        own = [sys.executable, "-m", "stillroom.cli"] if not words else [sys.executable, "-m", "torch.distributed.run", *words.split()]
        command = [*own, "run", method, *JOBS[method].split(), "--out", str(self.root / out)]
        if "--num-nodes" not in words and not words:
            command += ["--devices", "1", "--num-nodes", "2"]
        if hidden:
            command = ["sh", "-c", f'mount -t tmpfs none "{self.root}" && exec "$@"', "sh", *command]
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        return Running(["ip", "netns", "exec", self.names[node], *command], {**kept, "OMP_NUM_THREADS": "1", **environment})

    def cable(self, state: str) -> None:
        """Plugs it in, `up`, or out, `down`."""
        subprocess.run(["ip", "-n", self.names[0], "link", "set", self.names[0], state], check=True)


class Running:
    """A process with all that it started, and what they say."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it is closed with the process
        self.process = subprocess.Popen(command, env=environment, stdout=self.said, stderr=self.said, start_new_session=True)

    def python(self) -> int:
        """The process that trains: the last of its line."""
        pid = self.process.pid
        while below := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(below[0])
        return pid

    def signal(self, number: int) -> None:
        """To the process that trains."""
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(self.python(), number)

    def end(self) -> None:
        """Of everything that is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def text(self) -> str:
        """All that was said so far."""
        self.said.seek(0)
        return self.said.read()

    def lines(self) -> list[str]:
        """Stillroom's own on what is wrong."""
        return [line for line in self.text().splitlines() if line.startswith("stillroom:")]


@contextmanager
def pair() -> Iterator[Pair]:
    """Two machines joined by a cable."""
    names = (f"sra{os.getpid()}", f"srb{os.getpid()}")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    with tempfile.TemporaryDirectory() as root:
        try:
            for name in names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", names[0], "link", "add", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
            for name, address in zip(names, (FIRST, SECOND), strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
                ip("-n", name, "link", "set", name, "up")
            yield Pair(names, Path(root))
        finally:
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


# Ways to start --------------------------------------------------------------------------------------------------------------------------

_port = 29500 + os.getpid() % 1000


def port() -> str:
    """One that nothing of ours uses."""
    global _port
    _port += 1
    return str(_port)


def by_hand(two: Pair, out: str, **more: str) -> list[Running]:
    """MASTER_ADDR, MASTER_PORT, NODE_RANK."""
    meeting = {"MASTER_ADDR": FIRST, "MASTER_PORT": port()}
    return [two.start(node, "", out, NODE_RANK=str(node), **meeting, **more) for node in (0, 1)]  # type: ignore[arg-type]


def by_ranks(two: Pair, out: str) -> list[Running]:
    """RANK, LOCAL_RANK, WORLD_SIZE and NODE_RANK, as another launcher sets them."""
    meeting = {"MASTER_ADDR": FIRST, "MASTER_PORT": port(), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    return [two.start(node, "", out, RANK=str(node), NODE_RANK=str(node), **meeting) for node in (0, 1)]


def by_torchrun(two: Pair, out: str, method: str = "kd", more: str = "") -> list[Running]:
    """As docs/devices.md has it."""
    words = f"--nnodes 2 --nproc-per-node 1 --master-addr {FIRST} --master-port {port()} {more}--no-python stillroom"
    return [two.start(node, f"--node-rank {node} {words}", out, method=method) for node in (0, 1)]


def by_slurm(two: Pair, out: str) -> list[Running]:
    """The variables that srun sets."""
    job = {"SLURM_JOB_ID": port(), "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_LOCALID": "0"}
    job |= {"SLURM_JOB_NAME": "kd", "MASTER_ADDR": FIRST, "MASTER_PORT": port()}
    return [two.start(node, "", out, SLURM_PROCID=str(node), SLURM_NODEID=str(node), **job) for node in (0, 1)]


# Cases ----------------------------------------------------------------------------------------------------------------------------------


class Wrong(AssertionError):
    """Something that may not be; the message says what."""


def ended(running: list[Running], seconds: float, codes: set[int] | None = None, lines: tuple[str, ...] = ()) -> float:
    """Waits for the end of all; answers how long that took.

    Args:
        running: processes.
        seconds: that it may take.
        codes: that they may end with.
        lines: what one of Stillroom's lines must hold on each machine; nothing for no line at all.
    """
    begun = time.monotonic()
    try:
        for one in running:
            one.process.wait(max(0.1, begun + seconds - time.monotonic()))
    except subprocess.TimeoutExpired:
        told = "\n".join(one.text()[-600:] for one in running)
        raise Wrong(f"not ended after {seconds:.0f} s: {told}") from None
    finally:
        took = time.monotonic() - begun
        for one in running:
            one.end()
    for one in running:
        text = one.text()
        if "Traceback" in text or "terminate called" in text:
            raise Wrong(f"a traceback: {text[-1500:]}")
        if codes is not None and one.process.returncode not in codes:
            raise Wrong(f"exit code {one.process.returncode}: {text[-600:]}")
        if (
            lines
            and one.process.returncode != -signal.SIGKILL
            and not (len(one.lines()) == 1 and any(line in one.lines()[0] for line in lines))
        ):
            raise Wrong(f"lines {one.lines()}: {text[-600:]}")
    return took


def trained(two: Pair, out: str, running: list[Running], whole: Path) -> None:
    """Waits until it is done, and compares with what one machine made."""
    ended(running, PATIENCE, {0})
    same(two.root / out, whole)


def same(out: Path, whole: Path) -> None:
    """Raises `Wrong` where the numbers of two runs differ."""
    mine, theirs = (without_place(json.loads((folder / "metrics.json").read_text())) for folder in (out, whole))
    if mine != theirs:
        raise Wrong("other numbers than on one machine")


def without_place(metrics: object) -> object:
    """A report without what says how and where it was made."""
    found = comparable(metrics)
    assert isinstance(found, dict)
    found.pop("settings", None)
    return found


def at_work(two: Pair, out: str, running: list[Running], stage: str = "seed0/distilled") -> None:
    """Waits until a stage has its first checkpoint."""
    deadline = time.monotonic() + PATIENCE
    while not (two.root / out / stage / "last.ckpt").exists():
        if time.monotonic() > deadline or any(one.process.poll() is not None for one in running):
            told = "\n".join(one.text()[-600:] for one in running)
            for one in running:
                one.end()
            raise Wrong(f"it never came to where it was to be stopped: {told}")
        time.sleep(0.01)


def disturbed(two: Pair, out: str, whole: Path, disturb: Callable[[list[Running]], None], codes: set[int], *lines: str) -> str:
    """A training in which something happens, and which then goes on."""
    running = by_hand(two, out)
    at_work(two, out, running)
    disturb(running)
    took = ended(running, ENDS, codes, lines)
    two.cable("up")
    trained(two, out, by_hand(two, out), whole)
    return f"ended after {took:.0f} s, went on to equal numbers"


def signalled(number: int, *nodes: int, times: int = 1) -> Callable[[list[Running]], None]:
    """A signal to some of the processes, so often."""

    def send(running: list[Running]) -> None:
        for _ in range(times):
            for node in nodes:
                running[node].signal(number)
            time.sleep(0.3)

    return send


def waiting(two: Pair, number: int, node: int) -> str:
    """A signal to a machine whose other one never comes."""
    running = by_hand(two, "waiting")
    running[1 - node].end()
    time.sleep(15)
    running[node].signal(number)
    took = ended([running[node]], ENDS, {130}, ("stopped",))
    shutil.rmtree(two.root / "waiting", ignore_errors=True)
    return f"ended after {took:.0f} s"


def apart(two: Pair) -> str:
    """A folder that only one machine sees."""
    meeting = {"MASTER_ADDR": FIRST, "MASTER_PORT": port()}
    running = [two.start(node, "", "apart", hidden=bool(node), NODE_RANK=str(node), **meeting) for node in (0, 1)]
    took = ended(running, PATIENCE, {2}, ("does not see", "do not see"))
    return f"one line after {took:.0f} s"


def unsaid(two: Pair) -> str:
    """Several machines, and nothing that says where they meet."""
    ended([two.start(0, "", "unsaid")], PATIENCE, {2}, ("MASTER_ADDR, MASTER_PORT, NODE_RANK",))
    return "one line"


def restarted(two: Pair, whole: Path) -> str:
    """torchrun starts anew what was killed, by itself."""
    running = by_torchrun(two, "restarted", more="--max-restarts 2 ")
    at_work(two, "restarted", running)
    running[1].signal(signal.SIGKILL)
    ended(running, 2 * PATIENCE)
    same(two.root / "restarted", whole)
    return "went on by itself to equal numbers"


def cases(two: Pair, whole: Path, boxes: Path) -> dict[str, tuple[str, Callable[[], str]]]:
    """Group and case by name."""

    def way(out: str, start: Callable[..., list[Running]], of: Path = whole, **options: str) -> Callable[[], str]:
        def run() -> str:
            trained(two, out, start(two, out, **options), of)
            return "equal numbers"

        return run

    def case(out: str, disturb: Callable[[list[Running]], None], codes: set[int], *lines: str) -> Callable[[], str]:
        return lambda: disturbed(two, out, whole, disturb, codes, *lines)

    def cut(running: list[Running]) -> None:
        two.cable("down")

    def kill(node: int) -> Callable[[list[Running]], None]:
        return signalled(signal.SIGKILL, node)

    gone, term, press = "is gone; the same command goes on", signal.SIGTERM, signal.SIGINT
    stop = ("everything is saved", "was asked to stop", "stopped")
    return {
        "by hand": ("started", way("hand", by_hand)),
        "by ranks": ("started", way("ranks", by_ranks)),
        "torchrun": ("started", way("torchrun", by_torchrun)),
        "torchrun, bckd": ("started", way("boxes", by_torchrun, boxes, method="bckd")),
        "SLURM": ("started", way("slurm", by_slurm)),
        "nothing said": ("started", lambda: unsaid(two)),
        "a folder of one machine": ("started", lambda: apart(two)),
        "kill the second": ("lost", case("kill1", kill(1), {1, -9}, gone)),
        "kill the first": ("lost", case("kill0", kill(0), {1, -9}, gone)),
        "cut": ("cut", case("cut", cut, {1}, gone)),
        "torchrun --max-restarts": ("lost", lambda: restarted(two, whole)),
        "TERM to all": ("signals", case("term", signalled(term, 0, 1), {130}, *stop)),
        "TERM to the first": ("signals", case("term0", signalled(term, 0), {130}, *stop)),
        "TERM to the second": ("signals", case("term1", signalled(term, 1), {130}, *stop)),
        "Ctrl-C once": ("signals", case("once", signalled(press, 0, 1), {130}, *stop)),
        "Ctrl-C twice": ("signals", case("twice", signalled(press, 0, 1, times=2), {130, 1}, *stop, gone)),
        "TERM while the first waits": ("signals", lambda: waiting(two, term, 0)),
        "TERM while the second waits": ("signals", lambda: waiting(two, term, 1)),
        "Ctrl-C while the second waits": ("signals", lambda: waiting(two, press, 1)),
    }


def alone(root: Path, method: str) -> Path:
    """The same training on one machine, by `--devices 2`."""
    out = root / f"whole-{method}"
    command = [sys.executable, "-m", "stillroom.cli", "run", method, *JOBS[method].split(), "--devices", "2", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise Wrong(done.stdout[-1000:] + done.stderr[-1000:])
    return out


def torture(said: Callable[[str], None], only: str = "") -> list[tuple[str, str, bool]]:
    """All cases; (group, name, whether it went well) of each."""
    found = []
    with pair() as two:
        whole = alone(two.root, "kd")
        boxes = alone(two.root, "bckd") if re.search(only or ".", "torchrun, bckd") else whole
        for name, (group, run) in cases(two, whole, boxes).items():
            if only and not re.search(only, name):
                continue
            begun = time.monotonic()
            try:
                told, good = run(), True
            except (Wrong, OSError, ValueError) as error:
                told, good = str(error), False
            two.cable("up")
            found.append((group, name, good))
            said(f"{group:<8} {name:<30} {'' if good else 'WRONG: '}{told} ({time.monotonic() - begun:.0f} s)")
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name matches")
    asked = parser.parse_args()
    if why := reason():
        print(f"skipped: no network namespaces can be made here ({why})")
        return 0
    return int(not all(good for _, _, good in torture(lambda line: print(line, flush=True), asked.only)))


if __name__ == "__main__":
    sys.exit(main())
