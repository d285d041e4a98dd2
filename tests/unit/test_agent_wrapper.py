"""The wrapper: around any command, as if it were not there, but for the run directory."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from tests.support.agentlab import (
    AGENT,
    drop,
    eventually,
    names,
    plain_environment,
    python,
    record,
    start_wrapped,
)

WAITING = """
import os, signal, sys, time
caught = []
def catch(number, _):
    caught.append(number)
    os.write(1, b"caught %s\\n" % signal.Signals(number).name.encode())
for name in ("TERM", "HUP", "USR1", "USR2", "INT", "QUIT"):
    signal.signal(getattr(signal, "SIG" + name), catch)
print("ready")
while signal.SIGTERM not in caught:
    time.sleep(0.01)
sys.exit(7)
"""


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(AGENT), *arguments]
    env = plain_environment(**environment)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def only_run(cwd: Path) -> agent.RunDir:
    (name,) = names(cwd / ".alchemy" / "jobs")
    return agent.RunDir(cwd / ".alchemy" / "jobs" / name)


def test_typed_by_hand_it_makes_a_run_of_its_own(tmp_path: Path) -> None:
    done = run(
        "--", "sh", "-c", "echo $ALCHEMY_TASK_ID $ALCHEMY_JOB_DIR $ALCHEMY_ATTEMPT; exit 3", cwd=tmp_path
    )
    run_dir = only_run(tmp_path)
    assert done.returncode == 3
    assert done.stdout.split() == [run_dir.name, run_dir.path, "1-r0"]
    assert done.stderr == f"alchemy: run directory {run_dir.path}\n"
    assert run_dir.name.startswith("wrapped-")
    described = record(run_dir.run_json)
    assert (described["run"], described["argv"][0], described["cwd"]) == (run_dir.name, "sh", str(tmp_path))
    assert record(run_dir.attempt("1-r0").exit)["code"] == 3
    assert record(run_dir.heartbeat)["attempt"] == "1-r0"


def test_in_a_slurm_job_the_run_is_named_after_it(tmp_path: Path) -> None:
    for _ in range(2):
        run("--", "true", cwd=tmp_path, SLURM_JOB_ID="4711")
    run("--", "true", cwd=tmp_path, SLURM_JOB_ID="4711", SLURM_PROCID="1")
    assert names(tmp_path / ".alchemy" / "jobs") == ["wrapped-4711", "wrapped-4711-2", "wrapped-4711-rank1"]


def test_a_requeued_job_makes_a_further_attempt_of_the_same_run(tmp_path: Path) -> None:
    run("--", "true", cwd=tmp_path, SLURM_JOB_ID="4711")
    run("--", "true", cwd=tmp_path, SLURM_JOB_ID="4711", SLURM_RESTART_COUNT="1")
    assert only_run(tmp_path).attempt_names() == ["1-r0", "1-r1"]
    again = run("--", "echo", "ran", cwd=tmp_path, SLURM_JOB_ID="4711", SLURM_RESTART_COUNT="1")
    assert again.stdout == "ran\n", "another command is another run"


def test_a_given_directory_gets_one_attempt_after_the_other(tmp_path: Path) -> None:
    for _ in range(2):
        assert run("--job-dir", "here/mine", "--", "true", cwd=tmp_path).returncode == 0
    run_dir = agent.RunDir(tmp_path / "here" / "mine")
    assert run_dir.attempt_names() == ["1-r0", "2-r0"]
    assert record(run_dir.run_json)["run"] == "mine"


def test_it_joins_the_run_that_the_environment_names(tmp_path: Path) -> None:
    run_dir = agent.RunDir(tmp_path / "jobs" / "given")
    agent.claim_attempt(run_dir, agent.next_claim(run_dir, "an earlier one"), 0)
    agent.write_record(run_dir.run_json, {"run": "given"})
    run("--", "true", cwd=tmp_path, ALCHEMY_TASK_ID="given", ALCHEMY_JOB_DIR=run_dir.path)
    assert record(run_dir.attempt("2-r0").exit)["code"] == 0
    assert record(run_dir.run_json) == {"v": 1, "run": "given"}
    assert not (tmp_path / ".alchemy").exists()


def test_a_restart_that_is_running_already_is_left_to_its_owner(tmp_path: Path) -> None:
    run_dir = agent.RunDir(tmp_path / "jobs" / "given")
    for restarts in (0, 1):
        agent.claim_attempt(run_dir, 1, restarts)
    names_it = {"ALCHEMY_TASK_ID": "given", "ALCHEMY_JOB_DIR": run_dir.path, "SLURM_RESTART_COUNT": "1"}
    done = run("--", "echo", "ran", cwd=tmp_path, **names_it)
    assert (done.returncode, done.stdout) == (0, "")
    assert "attempt 1-r1 of given is taken" in done.stderr


def test_a_wrapper_below_a_wrapper_only_runs_the_command(tmp_path: Path) -> None:
    inner = [sys.executable, str(AGENT), "--", "sh", "-c", "echo inside; exit 4"]
    done = run("--", *inner, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "inside\n")
    assert only_run(tmp_path).attempt_names() == ["1-r0"]


def test_the_command_can_import_the_agent_and_keeps_its_own_path_first(tmp_path: Path) -> None:
    program = "import alchemy_agent, os; print(alchemy_agent.__file__, os.environ['PYTHONPATH'])"
    done = run("--", sys.executable, "-S", "-c", program, cwd=tmp_path, PYTHONPATH="/theirs")
    assert done.stdout.split() == [str(AGENT), f"/theirs{os.pathsep}{AGENT.parent}"]


def test_standard_streams_are_the_commands(tmp_path: Path) -> None:
    command = [sys.executable, str(AGENT), "--", "sh", "-c", "cat; echo problem >&2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=plain_environment(), input=b"\x00bytes\xff", capture_output=True
    )
    assert done.stdout == b"\x00bytes\xff"
    assert done.stderr.endswith(b"problem\n")


def test_a_program_gets_the_signals_python_would_have_ignored(tmp_path: Path) -> None:
    assert run("--", "sh", "-c", "kill -PIPE $$; echo survived", cwd=tmp_path).returncode == -signal.SIGPIPE


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "a command is missing"),
        (("--",), 2, "a command is missing"),
        (("true",), 2, "unrecognized arguments: true"),
        (("--interval", "0", "--", "true"), 2, "positive number of seconds"),
        (("--", "no-such-program"), 127, "can't run no-such-program: No such file or directory"),
        (("--", "/"), 126, "can't run /: Permission denied"),
        (("--job-dir", "/dev/null/x", "--", "true"), 73, "nothing was started"),
    ],
)
def test_what_cannot_be_run_says_why(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert words in done.stderr


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "INT", "USR1"])
def test_death_by_a_signal_is_passed_on(tmp_path: Path, name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    done = run("--", "sh", "-c", f"kill -{name} $$; sleep 60", cwd=tmp_path)
    assert done.returncode == -number
    end = record(only_run(tmp_path).attempt("1-r0").exit)
    assert (end["code"], end["signal"]) == (None, number)


def test_each_signal_reaches_the_command_once_and_it_decides(tmp_path: Path) -> None:
    process = start_wrapped(tmp_path / "run", python(WAITING))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for name in ("HUP", "USR1", "USR2", "INT", "QUIT", "TERM"):
        process.send_signal(getattr(signal, f"SIG{name}"))
    output, _ = process.communicate(timeout=60)
    caught = sorted(line.split()[1] for line in output.splitlines())
    assert caught == ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2"]
    assert process.returncode == 7


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    program = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    command = [sys.executable, str(AGENT), "--", *python(program)]
    shell = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *command]
    done = subprocess.run(shell, cwd=tmp_path, env=plain_environment(), capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_ctrl_c_in_a_terminal_reaches_the_command_once(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:  # the terminal's session; its foreground group is the wrapper and the command
        command = [sys.executable, str(AGENT), "--job-dir", str(tmp_path / "run"), "--", *python(WAITING)]
        os.execve(sys.executable, command, plain_environment())  # noqa: S606
    seen = b""

    def read_until(word: bytes) -> None:
        nonlocal seen
        while word not in seen:
            seen += os.read(terminal, 4096)

    read_until(b"ready")
    for presses in range(1, 6):
        os.write(terminal, b"\x03")
        while seen.count(b"caught SIGINT") < presses:
            seen += os.read(terminal, 4096)
    # The wrapper passes signals on before it looks for commands: a SIGINT of its own would be there by now.
    drop(agent.RunDir(tmp_path / "run"), "graceful_stop.json")
    read_until(b"caught SIGTERM")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.WEXITSTATUS(status) == 7
    assert seen.count(b"caught SIGINT") == 5


def test_a_sigint_that_no_terminal_sent_reaches_the_command_in_a_terminal_too(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, str(AGENT), "--job-dir", str(tmp_path / "run"), "--", *python(WAITING)]
        os.execve(sys.executable, command, plain_environment())  # noqa: S606
    seen = b""
    for number, word in (
        (None, b"ready"),
        (signal.SIGINT, b"caught SIGINT"),
        (signal.SIGTERM, b"caught SIGTERM"),
    ):
        if number is not None:
            os.kill(pid, number)
        while word not in seen:
            seen += os.read(terminal, 4096)
    os.waitpid(pid, 0)
    os.close(terminal)


def test_where_ended_children_are_ignored_the_end_is_noticed_all_the_same(tmp_path: Path) -> None:
    command = [sys.executable, str(AGENT), "--job-dir", str(tmp_path / "run"), "--", "sh", "-c", "exit 5"]
    ignoring = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run([*python(ignoring), *command], env=plain_environment(), capture_output=True)
    assert done.returncode == 5, done.stderr


def test_it_answers_for_a_program_that_takes_no_commands(tmp_path: Path) -> None:
    process = start_wrapped(tmp_path / "run", python(WAITING))
    assert process.stdout is not None
    process.stdout.readline()
    run_dir = agent.RunDir(tmp_path / "run")
    drop(run_dir, "save_checkpoint.json")
    answer = eventually(lambda: agent.read_record(Path(run_dir.ack) / "save_checkpoint.json"))
    assert (answer["outcome"], answer["step"]) == ("unsupported", None)
    drop(run_dir, "0001-abc.json", b'{"op": "graceful_stop"}')
    assert process.communicate(timeout=60)[0] == "caught SIGTERM\n"
    assert record(Path(run_dir.ack) / "0001-abc.json")["outcome"] == "applied"
    assert process.returncode == 7


TRAINING = """
import alchemy_agent as agent, time
state = {"lr": 1.0}
def update(command):
    state.update(command.args)
    return state
step = 0
while state["lr"] > 0:
    agent.report_progress(step=step, total=None, metrics={"lr": state["lr"]})
    agent.check_commands({"update_params": update})
    step += 1
    time.sleep(0.001)
"""


def test_ops_the_training_handles_are_left_to_it_and_the_wrapper_answers_the_rest(tmp_path: Path) -> None:
    process = start_wrapped(tmp_path / "run", python(TRAINING))
    run_dir = agent.RunDir(tmp_path / "run")
    attempt = run_dir.attempt("1-r0")
    eventually((Path(attempt.rank(0)) / "handles.json").exists)
    for number in range(20):
        drop(
            run_dir, f"{number}-a{number}.json", b'{"op": "update_params", "args": {"lr": %d}}' % (number + 1)
        )
    drop(run_dir, "20-b.json", b'{"op": "save_checkpoint"}')
    drop(run_dir, "21-c.json", b'{"op": "update_params", "args": {"lr": 0}}')
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output, error) == (0, "", "")
    answers: dict[str, dict[str, Any]] = {
        name: record(Path(run_dir.ack) / name) for name in names(run_dir.ack)
    }
    applied = {
        name: answer["result"]["lr"] for name, answer in answers.items() if answer["outcome"] == "applied"
    }
    assert applied == {**{f"{number}-a{number}.json": number + 1 for number in range(20)}, "21-c.json": 0}
    assert answers.get("20-b.json", {"outcome": "unsupported"})["outcome"] == "unsupported"
    assert record(run_dir.progress)["metrics"]["lr"] > 0
    assert record(run_dir.heartbeat)["incarnation"] == record(attempt.start)["incarnation"]
