"""The supervisor: a real child, real signals, and the records that tell how it ended."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from tests.support.agentlab import eventually, make_attempt, names, plain_environment, python, record


def run_forked(attempt: agent.AttemptDir, child: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the body `child` in a fork under the agent, in a process of its own that ends as the child does."""
    body = "\n".join("    " + line for line in child.splitlines())
    source = (
        "import os, signal, sys, alchemy_agent as agent\n"
        "from alchemy.forking import run_forked\n"
        f"def child():\n{body}\n    return 0\n"
        "attempt = agent.RunDir(sys.argv[1]).attempt(sys.argv[2])\n"
        "status = run_forked(attempt, child)\n"
        "print('status', status)\n"
        "sys.exit(agent.pass_on(status))\n"
    )
    command = [*python(source), attempt.run_dir.path, attempt.name]
    return subprocess.run(
        command, env=plain_environment(**environment), capture_output=True, text=True, timeout=60
    )


def ending(attempt: agent.AttemptDir) -> tuple[Any, Any]:
    end = record(attempt.exit)
    return end["code"], end["signal"]


def test_output_goes_to_the_attempts_logs_and_not_to_the_callers(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    done = run_forked(
        attempt, "print('to out')\nprint('to err', file=sys.stderr)\nos.system('echo from a child')"
    )
    assert done.stdout == "status 0\n"
    assert Path(attempt.stdout).read_text() == "to out\nfrom a child\n"
    assert Path(attempt.stderr).read_text() == "to err\n"
    assert Path(attempt.stdout).stat().st_mode & 0o777 == 0o600
    assert ending(attempt) == (0, None)


def test_the_child_knows_its_attempt(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    run_forked(attempt, "print(*[os.environ[n] for n in (agent.TASK_ID, agent.JOB_DIR, agent.ATTEMPT)])")
    assert Path(attempt.stdout).read_text().split() == ["run-1", attempt.run_dir.path, "1-r0"]


@pytest.mark.parametrize(
    ("child", "code", "signum"),
    [
        ("return 7", 7, None),
        ("sys.exit()", 0, None),
        ("sys.exit(5)", 5, None),
        ("raise ValueError('oh')", 1, None),
        ("return None", 1, None),
        ("import atexit; atexit.register(lambda: 1 / 0)", 0, None),
        ("raise KeyboardInterrupt", None, 2),
        ("os.kill(os.getpid(), signal.SIGKILL)", None, 9),
        ("os.abort()", None, 6),
    ],
)
def test_the_end_of_the_child_is_recorded_and_passed_on(
    tmp_path: Path, child: str, code: int | None, signum: int | None
) -> None:
    attempt = make_attempt(tmp_path)
    done = run_forked(attempt, child)
    assert ending(attempt) == (code, signum)
    assert done.returncode == (code if signum is None else -signum)
    assert record(attempt.exit)["duration_s"] > 0


def test_an_exception_shows_its_traceback_and_says_goodbye_properly(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    run_forked(attempt, "import atexit; atexit.register(print, 'goodbye')\nsys.exit('no data')")
    assert Path(attempt.stdout).read_text() == "goodbye\n"
    assert Path(attempt.stderr).read_text() == "no data\n"
    other = make_attempt(tmp_path, k=2)
    run_forked(other, "raise ValueError('oh')")
    assert "ValueError: oh" in Path(other.stderr).read_text()


def test_a_background_thread_of_the_child_may_finish(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    run_forked(
        attempt,
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.05), print('done'))).start()",
    )
    assert Path(attempt.stdout).read_text() == "done\n"


def test_the_end_is_noticed_at_once_however_rare_beats_and_polls_are(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    run_forked(attempt, "return 0", ALCHEMY_HEARTBEAT_S="86400", ALCHEMY_COMMAND_POLL_S="86400")
    assert record(attempt.exit)["duration_s"] < 3600
    assert record(attempt.run_dir.heartbeat)["seq"] == 1


def test_whole_lines_are_on_disk_when_the_child_is_killed(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    run_forked(attempt, "print('line')\nos.kill(os.getpid(), signal.SIGKILL)")
    assert Path(attempt.stdout).read_text() == "line\n"


def test_the_child_starts_with_the_signals_of_an_ordinary_process(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    run_forked(
        attempt,
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.set_wakeup_fd(-1))\n"
        "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)",
    )
    assert Path(attempt.stdout).read_text() == "set() -1\nTrue\nTrue\n"


SUPERVISOR = """
import os, sys, time, alchemy_agent as agent
from alchemy.forking import run_forked
def child():
    time.sleep(3600)
    return 0
sys.exit(agent.pass_on(run_forked(agent.RunDir(sys.argv[1]).attempt(sys.argv[2]), child)))
"""


def start_supervisor(attempt: agent.AttemptDir, source: str = SUPERVISOR) -> subprocess.Popen[bytes]:
    command = [*python(source), attempt.run_dir.path, attempt.name]
    return subprocess.Popen(command, env=plain_environment(), start_new_session=True)


def test_the_heart_beats_while_the_child_lives_and_stops_with_it(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    process = start_supervisor(attempt)
    eventually(lambda: (agent.read_record(attempt.run_dir.heartbeat) or {}).get("seq", 0) >= 3)
    process.terminate()
    assert process.wait(60) == -15
    assert ending(attempt) == (None, 15)
    assert record(attempt.run_dir.heartbeat)["incarnation"] == record(attempt.start)["incarnation"]


@pytest.mark.parametrize("round_", range(8))
def test_a_signal_around_the_start_of_the_child_is_not_lost(tmp_path: Path, round_: int) -> None:
    attempt = make_attempt(tmp_path)
    process = start_supervisor(attempt)
    eventually(
        lambda: Path(attempt.start).exists()
    )  # written just before signals are caught and the child forked
    time.sleep(round_ / 2000)  # hit the fork now a little before and now a little after
    process.terminate()
    assert process.wait(60) == -15


PERSECUTED = """
import os, signal, sys, alchemy_agent as agent
from alchemy.forking import run_forked
def child():
    supervisor = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if os.fork() == 0:
        try:
            while True:
                os.kill(supervisor, signal.SIGTERM)
        except ProcessLookupError:
            os._exit(0)
    return 4
run_forked(agent.RunDir(sys.argv[1]).attempt(sys.argv[2]), child)
"""


def test_signals_after_the_childs_end_do_not_take_the_receipt_with_them(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    start_supervisor(attempt, PERSECUTED).wait(60)
    assert ending(attempt) == (4, None)


def test_a_graceful_stop_dropped_by_hand_terminates_the_child(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    process = start_supervisor(attempt)
    (Path(attempt.run_dir.commands) / "graceful_stop.json").touch()
    assert process.wait(60) == -15
    assert record(Path(attempt.run_dir.ack) / "graceful_stop.json")["why"] == "SIGTERM sent"


def test_an_attempt_that_cannot_be_begun_runs_nothing(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    Path(attempt.path).rmdir()
    done = run_forked(attempt, "print('ran')")
    assert "FileNotFoundError" in done.stderr
    assert not Path(attempt.path).exists()


def test_a_receipt_that_cannot_be_written_does_not_change_how_the_child_ended(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    done = run_forked(attempt, f"os.mkdir({attempt.exit!r})\nreturn 3")
    assert done.returncode == 3
    assert "exit.json could not be written" in done.stderr


def test_the_parent_leaves_no_process_and_no_descriptor_behind(tmp_path: Path) -> None:
    source = (
        "import os, signal, sys, alchemy_agent as agent\n"
        "from alchemy.forking import run_forked\n"
        "run = agent.RunDir(sys.argv[1])\n"
        "before = len(os.listdir('/proc/self/fd')), signal.getsignal(signal.SIGTERM)\n"
        "for k in range(1, 4): run_forked(agent.claim_attempt(run, k, 0), lambda: 0)\n"
        "assert (len(os.listdir('/proc/self/fd')), signal.getsignal(signal.SIGTERM)) == before\n"
        "try: os.waitpid(-1, 0)\n"
        "except ChildProcessError: print('alone')\n"
    )
    run_dir = tmp_path / "jobs" / "x"
    done = subprocess.run(
        [*python(source), str(run_dir)], env=plain_environment(), capture_output=True, text=True
    )
    assert done.stdout == "alone\n", done.stderr
    assert names(run_dir / "attempts") == ["1-r0", "2-r0", "3-r0"]
