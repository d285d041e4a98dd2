"""Commands and processes that die: one effect per id in what was committed, one answer per letter.

An executor takes letters, changes its state, commits it now and then, and dies at some file-system call or
between two of them; the next attempt restores what was committed and goes on. Most of these deaths are
simulated within this process, dozens are real.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from tests.support.agentlab import AGENT, drop, make_attempt, names, record

MEMORY = Path("/dev/shm")


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """Return a directory in memory where there is one: nothing here depends on a real disk."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="alchemy-") as directory:
        yield Path(directory)


def visible(directory: str) -> list[str]:
    """Return what lies there, without what the dead left half written."""
    return [name for name in names(directory) if name[0] != "."]


# --- Letters ---------------------------------------------------------------------------------------


class Letters:
    """Sends letters of all kinds, and knows what must become of each."""

    def __init__(self, run_dir: agent.RunDir, random: random.Random) -> None:
        self.run_dir, self.random = run_dir, random
        self.sent = 0
        self.by_hand = 0
        self.expected: dict[str, set[str]] = {}  # outcomes that are right, by letter
        self.contents: dict[str, bytes] = {}

    def send(self, count: int) -> None:
        """Drop letters, the numbers in disorder, and some earlier ones once more."""
        numbers = list(range(self.sent, self.sent + count))
        self.random.shuffle(numbers)
        self.sent += count
        for number in numbers:
            [kind] = self.random.choices(list(KINDS), list(KINDS.values()))
            kind(self, f"{number:08d}-id{number}.json")
            if self.contents and self.random.random() < 0.1:
                name = self.random.choice(list(self.contents))
                drop(self.run_dir, name, self.contents[name])

    def _drop(self, name: str, content: bytes, *outcomes: str) -> None:
        drop(self.run_dir, name, content)
        self.contents[name] = content
        self.expected[name] = set(outcomes)

    def change(self, name: str) -> None:
        self._drop(name, b'{"op": "change"}', "applied")

    def change_and_commit(self, name: str) -> None:
        self._drop(name, b'{"op": "change_and_commit"}', "applied")

    def change_by_hand(self, name: str) -> None:
        if not (Path(self.run_dir.commands) / "change.json").exists():
            drop(self.run_dir, "change.json", b"{}")
            self.by_hand += 1
        else:
            self.change(name)

    def save(self, name: str) -> None:
        self._drop(name, b'{"op": "save_checkpoint"}', "applied", "void")

    def refused(self, name: str) -> None:
        self._drop(name, b'{"op": "refuse"}', "refused")

    def failing(self, name: str) -> None:
        self._drop(name, b'{"op": "fail"}', "failed")

    def unknown(self, name: str) -> None:
        self._drop(name, b'{"op": "dance"}', "unsupported")

    def stale(self, name: str) -> None:
        self._drop(name, b'{"op": "change", "attempt": "9-r9"}', "refused")

    def malformed(self, name: str) -> None:
        self._drop(name, self.random.choice([b"", b"{", b"[]", b'{"op": 1}', b'{"op": NaN}']), "refused")

    def too_long(self, name: str) -> None:
        self._drop(name, b" " * 70_000, "refused")

    def foreign(self, name: str) -> None:
        if os.geteuid() != 0:  # only root can give files away
            return self.malformed(name)
        self._drop(name, b'{"op": "change"}', "refused")
        os.chown(Path(self.run_dir.commands) / name, 12345, -1)
        del self.contents[name]  # sent again, it would be ours
        return None

    def link(self, name: str) -> None:
        (Path(self.run_dir.commands) / name).symlink_to("/etc/hostname")
        self.expected[name] = {"refused"}

    def pipe(self, name: str) -> None:
        os.mkfifo(Path(self.run_dir.commands) / name)
        self.expected[name] = {"refused"}

    def check(self, effects: list[str]) -> None:
        """Fail unless each letter has one answer, the right one, and each that was applied one effect."""
        answers = {name: record(Path(self.run_dir.ack) / name) for name in visible(self.run_dir.ack)}
        by_hand = {name: answers.pop(name) for name in list(answers) if name.startswith("change")}
        assert len(by_hand) == self.by_hand
        assert set(answers) == set(self.expected)
        wrong = {name for name in answers if answers[name]["outcome"] not in self.expected[name]}
        assert wrong == set()
        everything = [*answers.values(), *by_hand.values()]
        assert len({answer["id"] for answer in everything}) == len(everything)
        changed = [a["id"] for a in everything if a["op"].startswith("change") and a["outcome"] == "applied"]
        assert Counter(effects) == Counter(changed)
        assert set(Counter(effects).values()) <= {1}


COMMON = {Letters.change: 50, Letters.change_and_commit: 10, Letters.change_by_hand: 10}
ODD = (Letters.save, Letters.refused, Letters.failing, Letters.unknown, Letters.stale)
HOSTILE = (Letters.malformed, Letters.too_long, Letters.foreign, Letters.link, Letters.pipe)
KINDS = {**COMMON, **dict.fromkeys(ODD, 3), **dict.fromkeys(HOSTILE, 1)}


# --- Deaths within this process --------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


class MortalOs:
    """The module `os` of a process that is killed before or after some call that meets the disk."""

    CALLS = frozenset(
        {"open", "read", "write", "fsync", "rename", "link", "unlink", "mkdir", "listdir", "stat"}
    )

    def __init__(self) -> None:
        self.life = math.inf  # how many chances to die are left
        self.deaths: Counter[str] = Counter()
        self.path = MortalPath(self)

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CALLS:
            return real

        def call(*args: Any, **options: Any) -> Any:
            self.may_die(f"before {name}")
            answer = real(*args, **options)
            if name == "open" and self._dies(f"after {name}"):
                os.close(answer)  # as the kernel does
                raise Killed
            self.may_die(f"after {name}")
            return answer

        return call

    def _dies(self, where: str) -> bool:
        self.life -= 1
        self.deaths[where] += self.life == 0
        return self.life <= 0  # whatever `finally` tries, the dead do nothing

    def may_die(self, where: str) -> None:
        if self._dies(where):
            raise Killed


class MortalPath:
    """`os.path` of such a process."""

    def __init__(self, mortal: MortalOs) -> None:
        self._mortal = mortal

    def __getattr__(self, name: str) -> Any:
        if name in ("isdir", "lexists"):
            self._mortal.may_die(f"before {name}")
        return getattr(os.path, name)


class Disk:
    """What was committed."""

    effects: tuple[str, ...] = ()


class Executor:
    """One attempt: starts from what was committed, and is gone when it dies."""

    def __init__(self, attempt: agent.AttemptDir, disk: Disk, mortal: MortalOs) -> None:
        self.disk, self.effects = disk, list(disk.effects)
        self.may_die = mortal.may_die
        self.mailbox = agent.Mailbox(attempt, lambda: None, lambda: attempt.k)
        self.supervisor = agent.Mailbox(attempt, lambda: None, lambda: None)
        self.earlier = [
            a for a in map(attempt.run_dir.attempt, attempt.run_dir.attempt_names()) if a.k < attempt.k
        ]
        self.handlers: dict[str, agent.Handler] = {
            "change": self.change,
            "change_and_commit": self.change_and_commit,
            "save_checkpoint": self.commit,
            "refuse": self.refuse,
            "fail": self.fail,
        }

    def change(self, command: agent.Command) -> str:
        self.may_die("before the effect")
        self.effects.append(command.id)
        self.may_die("after the effect")
        return "changed"

    def change_and_commit(self, command: agent.Command) -> None:
        self.change(command)
        self.commit(command)

    def commit(self, _: object = None) -> None:
        self.may_die("before the commit")
        self.disk.effects = tuple(self.effects)
        self.may_die("after the commit")

    def refuse(self, _: agent.Command) -> None:
        raise agent.Refuse("no")

    def fail(self, _: agent.Command) -> None:
        raise KeyError("lr")

    def recover(self) -> None:
        self.mailbox.recover(self.earlier, frozenset(self.effects), self.handlers)

    def step(self) -> None:
        self.supervisor.poll({}, leave=self.handlers)
        self.mailbox.poll(self.handlers)


class Run:
    """Attempts, one after the other, until every letter was taken and all is committed."""

    def __init__(self, root: Path, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch, self.chance = root, patch, random.Random(seed)  # noqa: S311
        self.disk, self.mortal = Disk(), MortalOs()
        self.run_dir = agent.RunDir(root / "jobs" / "run-1")
        self.letters = Letters(self.run_dir, self.chance)
        self.attempts = 0

    def live(self, letters: int, steps: int = 30) -> None:
        """Send so many letters, and die again and again; then look at what is there."""
        while self.letters.sent < letters or names(self.run_dir.commands):
            self.attempts += 1
            executor = Executor(make_attempt(self.root, k=self.attempts), self.disk, self.mortal)
            # Half of them get further than their predecessors' letters.
            self.mortal.life = self.chance.randrange(1, 500 + 40 * self.letters.sent)
            try:
                self.do(executor.recover)
                for _ in range(self.chance.randrange(1, steps)):  # and then it ends without a word
                    self.letters.send(min(self.chance.randrange(4), letters - self.letters.sent))
                    self.do(executor.step)
                    if self.chance.random() < 0.3:
                        self.do(executor.commit)
            except Killed:
                pass
        self.mortal.life = math.inf
        last = Executor(make_attempt(self.root, k=self.attempts + 1), self.disk, self.mortal)
        last.recover()
        last.commit()
        self.letters.check(list(self.disk.effects))

    def do(self, what: Callable[[], None]) -> None:
        with self.patch.context() as patch:
            patch.setattr(agent, "os", self.mortal)
            what()


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_commands_have_one_effect_and_one_answer_each_whoever_dies(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    deaths: Counter[str] = Counter()
    for number in range(10):
        run = Run(fast_path / str(number), 100 * seed + number, monkeypatch)
        run.live(letters=100)
        deaths += run.mortal.deaths
    assert deaths.total() > 100
    assert {where.partition(" ")[0] for where in deaths} == {"before", "after"}


@pytest.mark.long
def test_ten_thousand_commands_of_one_run(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(fast_path, 1, monkeypatch)
    run.live(letters=10_000, steps=1_000)
    assert run.mortal.deaths.total() > 10


# --- Real deaths -----------------------------------------------------------------------------------

EXECUTOR = """
import os, sys, alchemy_agent as agent
run_dir, is_single = agent.RunDir(sys.argv[1]), "once" in sys.argv
attempt = agent.claim_attempt(run_dir, agent.next_claim(run_dir, "me"), 0)
committed = run_dir.path + "/committed.json"
effects = (agent.read_record(committed) or {"effects": []})["effects"]

def change(command):
    effects.append(command.id)

def commit(_=None):
    agent.write_record(committed, {"effects": effects})

def change_and_commit(command):
    change(command)
    commit()

def refuse(command):
    raise agent.Refuse("no")

handlers = {"change": change, "change_and_commit": change_and_commit, "save_checkpoint": commit,
            "refuse": refuse, "fail": lambda _: {}["lr"]}
mailbox = agent.Mailbox(attempt, lambda: None, lambda: None)
os.access("/from-here-on", os.F_OK)
mailbox.recover(map(run_dir.attempt, run_dir.attempt_names()[:-1]), frozenset(effects), handlers)
while True:
    mailbox.poll(handlers)
    commit()
    print(flush=True)
    if is_single:
        break
"""


def start_executor(
    run_dir: agent.RunDir, *arguments: str, under: Sequence[str] = ()
) -> subprocess.Popen[str]:
    command = [*under, sys.executable, "-S", "-c", EXECUTOR, run_dir.path, *arguments]
    environment = {"PYTHONPATH": str(AGENT.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **streams)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def effects_of(run_dir: agent.RunDir) -> list[str]:
    return list(record(Path(run_dir.path) / "committed.json")["effects"])


def test_executors_that_get_a_real_sigkill_leave_one_effect_and_one_answer_each(fast_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311
    run_dir = agent.RunDir(fast_path / "jobs" / "run-1")
    agent.make_directory(run_dir.commands)
    letters = Letters(run_dir, chance)
    for _ in range(40):
        letters.send(12)
        process = start_executor(run_dir)
        assert process.stdout is not None
        for _ in range(chance.randrange(3)):
            process.stdout.readline()
        letters.send(3)
        time.sleep(chance.uniform(0, 0.01))  # no waiting for anything: death comes at any moment
        process.kill()
        assert finish(process) == (-signal.SIGKILL, "")
    while names(run_dir.commands):
        assert finish(start_executor(run_dir, "once")) == (0, "")
    assert finish(start_executor(run_dir, "once")) == (0, "")
    letters.check(effects_of(run_dir))


CALLS = ("openat", "read", "write", "fsync", "rename", "link", "unlink", "mkdir", "newfstatat", "close")
"""What taking, answering and committing ask of the kernel, and what is counted."""


def traced(run_dir: agent.RunDir, log: Path, *options: str) -> str:
    """Run an executor once under strace; return what it did after its marker."""
    trace = "trace=access," + ",".join("?" + call for call in CALLS)  # not every machine has all of them
    command = ["strace", "-qq", "-o", str(log), "-e", trace, *options]
    status, error = finish(start_executor(run_dir, "once", under=command))
    if "ptrace" in error:
        pytest.skip("this machine does not let strace inject faults")
    assert status in (0, -signal.SIGKILL), error
    return log.read_text()


def counts(calls: str) -> Counter[str]:
    return Counter(line.partition("(")[0] for line in calls.splitlines())


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("call", CALLS)
def test_whatever_the_executor_was_about_to_do_when_it_was_killed(fast_path: Path, call: str) -> None:
    def fresh(number: int) -> Letters:
        run_dir = agent.RunDir(fast_path / str(number) / "jobs" / "run-1")
        make_attempt(fast_path / str(number), k=1)
        agent.next_claim(run_dir, "me")
        letters = Letters(run_dir, random.Random(0))  # noqa: S311
        letters.change("1-a.json")
        letters.change_by_hand("2-b.json")
        letters.change_and_commit("3-c.json")
        return letters

    log = fast_path / "strace.log"
    before, _, after = traced(fresh(0).run_dir, log).partition("/from-here-on")
    first, last = counts(before)[call] + 1, counts(before + after)[call]
    if last < first:
        pytest.skip(f"this machine's C library does it without {call}")
    step = 1 if call in ("fsync", "rename", "link", "unlink", "write") else 4
    for number in range(first, last + 1, step):
        letters = fresh(number)
        said = traced(letters.run_dir, log, "-e", f"inject={call}:signal=KILL:when={number}")
        assert "killed by SIGKILL" in said
        traced(letters.run_dir, log)
        letters.check(effects_of(letters.run_dir))
