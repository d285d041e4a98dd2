"""A commit and the retirement after it, cut or failing at every file-system call: old or new, never half."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import alchemy_agent as agent
from alchemy.checkpoint.retention import retire
from alchemy.checkpoint.selection import choose
from alchemy.checkpoint.store import Checkpoint, State, list_checkpoints, verify, write_checkpoint
from alchemy.checkpoint.writing import Part
from tests.crash.injection import Call, Outcome, Program, calls, inject, require_strace, trace_all

ERRORS = ["ENOSPC", "EDQUOT", "EIO", "ESTALE"]
MEMORY = Path("/dev/shm")
SHIM = Path(__file__).with_name("performed.c")
WORKERS = 2
Point = tuple[Call, str]
STEP, SEQ = 12, 6
PINNED, OLD, NEW = "1-r0/step-00000003", "2-r0/step-00000011", f"2-r0/step-{STEP:08d}"


def save(attempt: agent.AttemptDir, step: int, seq: int) -> None:
    parts = [
        Part("model.pt", lambda sink: sink.write(b"model %d" % step)),
        Part("b", lambda sink: sink.write(b"b")),
    ]
    write_checkpoint(attempt, step, parts, seq=seq, parent=None, kinds={}, applied=())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run before its sixth commit: a pinned checkpoint, two to be deleted, and what two crashes left."""
    run = tmp_path_factory.mktemp("prepared") / "run-1"
    first = agent.claim_attempt(agent.RunDir(run), 1, 0)
    for step in (2, 3, 4):
        save(first, step, step - 1)
    (run / "checkpoints/1-r0/step-00000004/committed.json").unlink()
    agent.make_directory(first.run_dir.pins)
    agent.write_record(Path(first.run_dir.pins) / "eval", {"attempt": "1-r0", "step": 3})
    second = agent.claim_attempt(first.run_dir, 2, 0)
    for step in (9, 10, 11):
        save(second, step, step - 6)
    gone = run / "checkpoints/2-r0/superseded-step-00000009"
    (run / "checkpoints/2-r0/step-00000009").rename(gone)
    (gone / "committed.json").unlink()
    return run


class Bench:
    """Copies of the prepared run, and programs that commit to them, for several threads."""

    def __init__(self, prepared: Path, scratch: Path, environment: dict[str, str] | None = None) -> None:
        self._prepared, self._scratch, self._environment = prepared, scratch, environment
        self._numbers = itertools.count()
        self._local = threading.local()
        self._programs: list[Program] = []

    def commit(self, *strace: str) -> tuple[Path, Outcome]:
        """Commit once to a fresh copy."""
        run = self._scratch / f"copy-{next(self._numbers)}" / "run-1"
        shutil.copytree(self._prepared, run, symlinks=True)
        return run, self._program().commit(run, "2-r0", STEP, SEQ, strace)

    def _program(self) -> Program:
        if not hasattr(self._local, "program"):
            place = self._scratch / f"program-{next(self._numbers)}"
            place.mkdir()
            self._local.program = Program(place, self._environment)
            self._programs.append(self._local.program)
        program: Program = self._local.program
        return program

    def close(self) -> None:
        for program in self._programs:
            program.close()


@pytest.fixture
def bench(prepared: Path, tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Bench]:
    require_strace(pytestconfig)
    # In memory, where it may be: only a power loss could tell the difference, and none happens here.
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path) as scratch:
        bench = Bench(prepared, Path(scratch))
        yield bench
        bench.close()


def whole(run: Path) -> list[str]:
    """Return what a reader finds, after reading all of it; nothing that claims to be committed is not."""
    found = list_checkpoints(agent.RunDir(run))
    assert [one.problem for one in found if one.state is State.BROKEN] == []
    committed = [one for one in found if one.state is State.COMMITTED]
    for checkpoint in committed:
        verify(checkpoint, threads=1)
    return [str(one.ref) for one in committed]


def check(run: Path, outcome: Outcome) -> None:
    """Whatever happened, the run is as it was or has one more checkpoint, and can go on."""
    there = whole(run)
    assert {PINNED, OLD} <= set(there), "a checkpoint that stays is gone"
    if NEW not in there:
        assert there == ["1-r0/step-00000002", PINNED, "2-r0/step-00000010", OLD], "deleted without a commit"
    if outcome.ended != -signal.SIGKILL:
        assert outcome.ended == 0, outcome.said
        assert outcome.committed == (NEW if NEW in there else "")
    third = agent.claim_attempt(agent.RunDir(run), 3, 0)
    newest = choose(third)
    assert newest.rejected == ()
    assert newest.checkpoint is not None
    assert str(newest.checkpoint.ref) == there[-1]
    go_on(third, newest.checkpoint, there)


def go_on(attempt: agent.AttemptDir, resumed: Checkpoint, there: list[str]) -> None:
    """The next attempt commits, and leaves no trace of what was cut."""
    save(attempt, 13, SEQ + 1)
    assert retire(attempt, keep=2, protected=resumed.ref) == []
    found = list_checkpoints(attempt.run_dir)
    assert [str(one.ref) for one in found] == [PINNED, there[-1], "3-r0/step-00000013"]
    assert {one.state for one in found} == {State.COMMITTED}


def traced(bench: Bench) -> list[Call]:
    """Return every call that a commit and a retirement make."""
    run, outcome = bench.commit(*trace_all())
    check(run, outcome)
    assert (outcome.ended, outcome.problems) == (0, [])
    found = calls(outcome)
    assert {"mkdir", "write", "fsync", "rename", "unlink", "rmdir", "close"} <= {call.name for call in found}
    return found


def run_all(bench: Bench, points: list[Point], check: Callable[[Path, Outcome, Call], None]) -> None:
    """Commit once per call and fault; report every one after which something is wrong."""

    def try_one(point: Point) -> str:
        call, fault = point
        run, outcome = bench.commit(*inject(call.name, fault, call.k))
        try:
            assert outcome.injected, "nothing was injected"
            check(run, outcome, call)
        except Exception as error:  # noqa: BLE001 (all points are wanted, not the first)
            return f"{fault} at {call}: {type(error).__name__}: {error}; {outcome.said}"
        shutil.rmtree(run.parent)
        return ""

    with ThreadPoolExecutor(WORKERS) as pool:
        assert [wrong for wrong in pool.map(try_one, points) if wrong] == []


def test_a_kill_at_any_call_leaves_the_old_or_the_new_state(bench: Bench) -> None:
    found = traced(bench)
    assert len(found) > 130
    run_all(bench, [(call, "signal=SIGKILL") for call in found], lambda run, outcome, _: check(run, outcome))


def needed(found: list[Call]) -> set[Call]:
    """Return the calls without which nothing is durable, so that their errors must fail the commit."""
    renamed = [place for place, call in enumerate(found) if call.name == "rename"]
    manifest, marker = renamed[:2]
    return {
        call
        for place, call in enumerate(found[: marker + 1])
        if call.name in {"mkdir", "write", "rename"}
        or (call.name == "openat" and "O_CREAT" in call.text)
        or (call.name in {"fsync", "close"} and any(end in call.text for end in (".pt>", ".json>", ".tmp>")))
        or (call.name == "fsync" and place < manifest)
    }


def test_an_error_of_any_call_is_no_false_commit_and_loses_nothing(
    bench: Bench, pytestconfig: pytest.Config
) -> None:
    """The long version tries every error at every call, the short one the four in turn."""
    found = traced(bench)
    must_fail = needed(found)
    assert len(must_fail) > 20

    def check_error(run: Path, outcome: Outcome, call: Call) -> None:
        check(run, outcome)
        assert outcome.failed or call not in must_fail, "an error was swallowed"
        if outcome.failed:
            assert "[Errno " in outcome.failed
            assert str(run) in outcome.failed, "an error must say where"

    errors = itertools.cycle(ERRORS)
    every = [(call, f"error={error}") for call in found for error in ERRORS]
    in_turn = [(call, f"error={next(errors)}") for call in found]
    run_all(bench, every if pytestconfig.getoption("run_long") else in_turn, check_error)


@pytest.fixture
def shim(tmp_path: Path, pytestconfig: pytest.Config) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        reason = "there is no C compiler; `make test-deps` installs one"
        if pytestconfig.getoption("require_cluster"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    library = tmp_path / "performed.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], check=True)
    return library


@pytest.mark.parametrize(
    "error", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.EEXIST], ids=errno.errorcode.get
)
def test_a_rename_that_happened_but_reported_an_error_counts_as_done(
    prepared: Path, tmp_path: Path, shim: Path, error: int
) -> None:
    for k in itertools.count(1):
        place = tmp_path / str(k)
        place.mkdir()
        lies = {
            "LD_PRELOAD": shim,
            "PERFORMED_K": k,
            "PERFORMED_ERRNO": error,
            "PERFORMED_LOG": place / "log",
        }
        bench = Bench(prepared, place, {name: str(value) for name, value in lies.items()})
        run, outcome = bench.commit()
        bench.close()
        assert (outcome.committed, outcome.problems) == (NEW, [])
        assert whole(run) == [PINNED, OLD, NEW]
        check(run, outcome)
        if not (place / "log").exists():
            break
    assert k == 6, "manifest, marker and three that were put aside"
