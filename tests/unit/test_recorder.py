"""Rows reach the disk within a second whatever happens to the process, and never stop training."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from alchemy.errors import InfrastructureError
from alchemy.fencing import Fenced
from alchemy.loop.position import Position
from alchemy.recording.recorder import FileRecorder
from alchemy.recording.rows import RowFile, encode
from alchemy.result import Evaluation, Result
from tests.support.agentlab import eventually, make_attempt, plain_environment, record
from tests.support.sdklab import make_context, read_rows

ROOT = Path(__file__).parents[2]
RESULT = Result(2, 2, Evaluation(1, {"acc": math.nan}), {"loss": 0.5}, 1.5)


@pytest.fixture
def attempt(tmp_path: Path) -> agent.AttemptDir:
    return make_attempt(tmp_path)


def test_what_was_reported_lies_in_the_files_of_the_attempt(attempt: agent.AttemptDir) -> None:
    recorder = FileRecorder(attempt, "inc")
    ctx = make_context(2, 1, recorder=recorder)
    for step in ctx.steps():
        ctx.log(loss=1 / (step + 1), lr=0.5)
        ctx.log_eval(acc=step)
    assert recorder.last_metrics() == {"loss": 0.5, "lr": 0.5}
    recorder.conclude(RESULT)

    rows = read_rows(attempt.metrics)
    assert [(row["step"], row["m"]) for row in rows] == [
        (0, {"loss": 1.0, "lr": 0.5}),
        (1, {"loss": 0.5, "lr": 0.5}),
    ]
    assert [(row["step"], row["m"]) for row in read_rows(attempt.evals)] == [(0, {"acc": 0}), (1, {"acc": 1})]
    assert abs(rows[1]["t"] - rows[0]["t"]) < 60
    assert Path(attempt.metrics).stat().st_mode & 0o777 == 0o600
    progress = record(attempt.run_dir.progress)
    assert (progress["step"], progress["total"], progress["metrics"]) == (2, 2, {"loss": 0.5, "lr": 0.5})
    assert progress["incarnation"] == "inc"
    result = record(attempt.result)
    assert (result["run"], result["attempt"], result["v"]) == ("run-1", "1-r0", 1)
    assert result["evaluation"] == {"step": 1, "metrics": {"acc": "NaN"}}
    again = Result.from_record(result)
    assert (again.steps, again.metrics, again.duration_s) == (2, {"loss": 0.5}, 1.5)


def test_non_finite_numbers_and_odd_names_are_strict_json() -> None:
    name = 'x}},{"step":null"é\n'
    rows = [(0, 1.5, {name: 0.5}), (1, 2.5, {name: -math.inf, "nan": math.nan}), (2, 3.5, {"inf": math.inf})]
    lines, lost = encode(rows)
    assert lost == 0
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines.splitlines()]
    assert read == [
        {"step": 0, "t": 1.5, "m": {name: 0.5}},
        {"step": 1, "t": 2.5, "m": {name: "-Infinity", "nan": "NaN"}},
        {"step": 2, "t": 3.5, "m": {"inf": "Infinity"}},
    ]


def test_of_plain_rows_each_is_a_line_even_if_a_name_looks_like_a_seam() -> None:
    name = '}},{"step":'
    lines, lost = encode([(0, 1.0, {name: 0.5}), (1, 2.0, {name: 1.5})])
    assert lost == 0
    assert [json.loads(line)["m"][name] for line in lines.splitlines()] == [0.5, 1.5]


def test_a_row_that_json_cant_hold_is_lost_alone() -> None:
    lines, lost = encode([(0, 1.0, {"a": 1.0}), (1, 1.0, {"\ud800": 1.0}), (2, 1.0, {"a": 2.0})])
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [0, 2]
    assert lost == 1


def test_a_line_that_was_torn_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":0}\n{"ste')
    file = RowFile(str(path))
    file.append(b'{"step":2}\n')
    file.append(b'{"step":3}\n')
    file.close()
    assert [row["step"] for row in read_rows(path)] == [0, 2, 3]


def test_a_busy_loop_loses_no_row_and_keeps_their_order(attempt: agent.AttemptDir) -> None:
    recorder = FileRecorder(attempt, "inc")
    ctx = make_context(50_000, None, recorder=recorder)
    for step in ctx.steps():
        ctx.log(loss=step)
    recorder.conclude(RESULT)
    assert [row["m"]["loss"] for row in read_rows(attempt.metrics)] == list(range(50_000))


KILLED = """
import os, sys, time
import alchemy_agent as agent
from alchemy.recording.recorder import FileRecorder
from tests.support.sdklab import make_context

attempt = agent.RunDir(sys.argv[1]).attempt("1-r0")
ctx = make_context(10**9, None, recorder=FileRecorder(attempt, "inc"))
for step in ctx.steps():
    ctx.log(loss=step, t=time.monotonic())
    if step % 100 == 0:
        ctx.log_eval(acc=step)
        time.sleep(0.001)
    if step and step % 20_000 == 0:
        print(time.monotonic(), flush=True)
"""


def test_what_was_logged_a_second_before_sigkill_is_on_the_disk(attempt: agent.AttemptDir) -> None:
    command = [sys.executable, "-c", KILLED, attempt.run_dir.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=plain_environment(), cwd=ROOT) as child:
        assert child.stdout is not None
        began = now = float(child.stdout.readline())
        while now < began + 1.5:
            now = float(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    rows = read_rows(attempt.metrics)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert rows[-1]["m"]["t"] > now - 1
    evaluations = read_rows(attempt.evals)
    assert [row["step"] for row in evaluations] == list(range(0, 100 * len(evaluations), 100))
    assert evaluations[-1]["step"] > 0
    assert record(attempt.run_dir.progress)["step"] > 0


def test_progress_is_reported_while_the_loop_runs(attempt: agent.AttemptDir) -> None:
    recorder = FileRecorder(attempt, "inc")
    ctx = make_context(10, None, recorder=recorder)
    for step in ctx.steps():
        if step == 4:
            ctx.log(loss=0.5)

            def fourth() -> dict[str, Any] | None:
                progress = agent.read_record(attempt.run_dir.progress)
                return progress if progress and progress["step"] == 4 else None

            assert eventually(fourth)["total"] == 10
    recorder.conclude(RESULT)


FULL = """
import resource, sys
import alchemy_agent as agent
from alchemy.recording.recorder import FileRecorder
from alchemy.result import Result
from tests.support.sdklab import make_context

attempt = agent.RunDir(sys.argv[1]).attempt("1-r0")
recorder = FileRecorder(attempt, "inc")
ctx = make_context(200, None, recorder=recorder)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, unlimited[1]))
for step in ctx.steps():
    ctx.log(loss=step)
    if step % 10 == 9:
        recorder.flush()
    if step == 149:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
recorder.conclude(Result(200, 200, None, {}, 1.0))
"""


def test_a_full_disk_is_a_warning_once_and_costs_only_the_rows_meanwhile(attempt: agent.AttemptDir) -> None:
    command = [sys.executable, "-c", FULL, attempt.run_dir.path]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, env=plain_environment(), cwd=ROOT, check=True
    )
    assert done.stderr.count("could not be written") == 1
    assert "training goes on" in done.stderr
    steps = [row["step"] for row in read_rows(attempt.metrics)]
    assert steps == sorted(set(steps))
    assert set(range(10)) | set(range(150, 200)) <= set(steps)
    assert len(steps) < 200
    assert record(attempt.result)["status"] == "completed"


def test_a_disk_that_hangs_makes_training_wait_only_once(
    attempt: agent.AttemptDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alchemy.recording.recorder._LIMIT", 2)
    monkeypatch.setattr("alchemy.recording.recorder._PATIENCE_S", 0.01)
    os.mkfifo(attempt.metrics)
    recorder = FileRecorder(attempt, "inc")
    reader = os.open(
        attempt.metrics, os.O_RDONLY | os.O_NONBLOCK
    )  # never read from: the pipe fills and blocks
    recorder.follow(Position(), 10)
    with caplog.at_level(logging.WARNING):
        for step in range(20_000):
            recorder.log(step, 0.0, {"loss": 0.5})
    assert "the disk does not answer" in caplog.text
    os.set_blocking(reader, True)
    drained = threading.Thread(target=lambda: all(iter(lambda: os.read(reader, 1 << 16), b"")))
    drained.start()
    recorder.conclude(RESULT)
    drained.join()
    os.close(reader)
    assert len(caplog.records) == 1


def test_a_result_that_cant_be_written_is_an_error(attempt: agent.AttemptDir) -> None:
    Path(attempt.result).mkdir()
    recorder = FileRecorder(attempt, "inc")
    recorder.follow(Position(), 10)
    recorder.log(0, 0.0, {"loss": 0.5})
    with pytest.raises(InfrastructureError, match=r"result.json.*free some space"):
        recorder.conclude(RESULT)
    assert len(read_rows(attempt.metrics)) == 1


def test_a_superseded_attempt_records_no_result(tmp_path: Path, attempt: agent.AttemptDir) -> None:
    recorder = FileRecorder(attempt, "inc")
    recorder.follow(Position(), 10)
    make_attempt(tmp_path, restarts=1)
    with pytest.raises(Fenced, match="1-r1"):
        recorder.conclude(RESULT)
    assert not Path(attempt.result).exists()


def test_a_forked_child_of_the_users_writes_nothing(attempt: agent.AttemptDir) -> None:
    recorder = FileRecorder(attempt, "inc")
    recorder.log(0, 0.0, {"loss": 0.5})
    pid = os.fork()
    if pid == 0:
        for step in range(5000):
            recorder.log(step, 0.0, {"loss": 1.5})
        recorder.conclude(RESULT)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert not Path(attempt.result).exists()
    recorder.conclude(RESULT)
    assert [row["m"]["loss"] for row in read_rows(attempt.metrics)] == [0.5]


def test_no_thread_is_left_behind(attempt: agent.AttemptDir) -> None:
    before = threading.active_count()
    recorder = FileRecorder(attempt, "inc")
    recorder.follow(Position(), 10)
    assert threading.active_count() == before + 1
    recorder.conclude(RESULT)
    assert threading.active_count() == before
