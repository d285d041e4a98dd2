"""`alchemy command`: letters to a real mailbox, and what is said about its answers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from pytest_alchemy.cli import waiting
from pytest_alchemy.cli.trouble import Status
from pytest_alchemy.cli.waiting import Ending, await_answer
from tests.support.agentlab import eventually, make_attempt, record
from tests.support.agentlab import names as everything
from tests.support.clilab import Program


@pytest.fixture
def alchemy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(tmp_path, capsys)


@pytest.fixture
def attempt(tmp_path: Path) -> agent.AttemptDir:
    return make_attempt(tmp_path)


@contextmanager
def meanwhile(act: Callable[[threading.Event], object]) -> Iterator[None]:
    """Run `act` in a thread during the block; its event is set when the block ends."""
    end = threading.Event()
    thread = threading.Thread(target=act, args=(end,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def training(
    attempt: agent.AttemptDir, handlers: Mapping[str, agent.Handler] | None = None, step: int | None = 1200
) -> Iterator[list[agent.Command]]:
    """Execute what is sent to an attempt during the block."""
    mailbox, taken = agent.Mailbox(attempt, lambda: None, lambda: step), list[agent.Command]()

    def act(end: threading.Event) -> None:
        while not end.wait(0.005):
            taken.extend(mailbox.poll(handlers or {}))

    with meanwhile(act):
        yield taken


def names(directory: str | Path) -> list[str]:
    """Return what lies in a directory and is no temporary file."""
    return [name for name in everything(directory) if name[0] != "."]


def letters(attempt: agent.AttemptDir) -> list[dict[str, Any]]:
    """Return what lies in the mailbox, unopened."""
    return [record(Path(attempt.run_dir.commands, name)) for name in names(attempt.run_dir.commands)]


def update(command: agent.Command) -> dict[str, Any]:
    return {
        "checkpoint": "1-r0/step-00001200",
        "followed": [f"optimizer.lr 0.001 -> {command.args['lr']}", "ema stays"],
    }


def test_what_was_applied_is_said_in_one_line(alchemy: Program, attempt: agent.AttemptDir) -> None:
    with training(attempt, {"update_params": update}) as taken:
        said = alchemy("command", "run", "update_params", "lr=1e-4", "opt=adam")
    assert (said.status, said.err) == (0, "")
    assert said.lines == [
        "applied after step 1200: optimizer.lr 0.001 -> 0.0001; ema stays; checkpoint 1-r0/step-00001200"
    ]
    assert taken[0].args == {"lr": 0.0001, "opt": "adam"}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, ""),
        ({"checkpoint": "1-r0/step-00001200"}, ": checkpoint 1-r0/step-00001200"),
        ({"checkpoint": None, "warning": "the disk is full"}, ": no checkpoint was made; the disk is full"),
        ({"epoch": 3, "name": "größe"}, ': epoch 3; name "größe"'),
        ([1, 2], ": [1, 2]"),
        ("\x1b[2J", ': "\\u001b[2J"'),
    ],
)
def test_whatever_a_handler_returns_is_shown(
    alchemy: Program, attempt: agent.AttemptDir, result: Any, words: str
) -> None:
    with training(attempt, {"save_checkpoint": lambda _: result}):
        said = alchemy("command", "run", "save_checkpoint")
    assert said.lines == [f"applied after step 1200{words}"]


def test_before_the_first_step_no_step_is_named(alchemy: Program, attempt: agent.AttemptDir) -> None:
    with training(attempt, step=None):
        assert alchemy("command", "run", "graceful_stop").lines == ["applied: SIGTERM sent"]


def refuse(_: agent.Command) -> None:
    raise agent.Refuse("lr can't become \x1b[2J")


def fail(_: agent.Command) -> None:
    raise KeyError("lr")


@pytest.mark.parametrize(
    ("handlers", "lines"),
    [
        (
            {"update_params": refuse},
            ["refused after step 1200: lr can't become \\x1b[2J", "nothing was changed, and the run goes on"],
        ),
        (
            {"update_params": fail},
            [
                "failed after step 1200: KeyError: 'lr'",
                "the run goes on; what its handler had done by then stays",
            ],
        ),
        (
            {},
            [
                "unsupported after step 1200: the training announced no handler for 'update_params'",
                "nothing was changed; a program takes what it hands check_commands a handler for",
            ],
        ),
    ],
)
def test_what_was_not_applied_says_why_and_what_that_means(
    alchemy: Program, attempt: agent.AttemptDir, handlers: Mapping[str, agent.Handler], lines: list[str]
) -> None:
    with training(attempt, handlers):
        said = alchemy("command", "run", "update_params", "lr=3")
    assert (said.status, said.lines) == (Status.BAD, lines)


def test_a_letter_is_meant_for_the_latest_attempt(alchemy: Program, attempt: agent.AttemptDir) -> None:
    latest = make_attempt(alchemy.root, k=2)
    said = alchemy("command", "run", "save_checkpoint", "--wait=0")
    assert said.status == 0
    [letter] = letters(attempt)
    assert (letter["op"], letter["args"], letter["attempt"]) == ("save_checkpoint", {}, "2-r0")
    [name] = names(attempt.run_dir.commands)
    assert said.lines == [f"sent to attempt 2-r0; the answer will be in {latest.run_dir.ack}/{name}"]


def test_an_attempt_that_begins_meanwhile_refuses_it(alchemy: Program, attempt: agent.AttemptDir) -> None:
    def begin(end: threading.Event) -> None:
        eventually(lambda: names(attempt.run_dir.commands))
        with training(make_attempt(alchemy.root, k=2)):
            end.wait()

    with meanwhile(begin):
        said = alchemy("command", "run", "save_checkpoint")
    assert said.status == Status.BAD
    assert said.lines[0] == "refused after step 1200: it is meant for attempt 1-r0, and this is 2-r0"


def test_values_may_stand_behind_options(alchemy: Program, attempt: agent.AttemptDir) -> None:
    argv = ["command", f"--root={alchemy.root}", "run", "update_params", "a=1", "--wait", "0", "b=[2]"]
    assert alchemy.plain(*argv).status == 0
    assert letters(attempt)[0]["args"] == {"a": 1, "b": [2]}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["dance"], "there is no command 'dance': there are save_checkpoint, graceful_stop, update_params;"),
        (["update_params"], "update_params needs what to update, such as lr=1e-4"),
        (["save_checkpoint", "lr=1"], "save_checkpoint takes no values, and was given lr"),
        (["update_params", "lr"], "'lr' is not KEY=VALUE"),
        (["update_params", f"lr={'x' * 70_000}"], "holds more than 65536 bytes: send less at once"),
    ],
)
def test_what_no_training_understands_is_not_sent(
    alchemy: Program, attempt: agent.AttemptDir, argv: list[str], words: str
) -> None:
    said = alchemy("command", "run", *argv)
    assert (said.status, said.out) == (Status.USAGE, "")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert letters(attempt) == []


def test_any_sends_what_only_the_program_knows(alchemy: Program, attempt: agent.AttemptDir) -> None:
    with training(attempt, {"dance": lambda command: command.args}):
        said = alchemy("command", "run", "dance", "tune=polka", "--any")
    assert said.lines == ['applied after step 1200: tune "polka"']


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_a_usage_error(
    alchemy: Program, attempt: agent.AttemptDir, seconds: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        alchemy("command", "run", "save_checkpoint", f"--wait={seconds}")
    assert raised.value.code == Status.USAGE
    assert letters(attempt) == []


# --- No answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda attempt: agent.conclude(attempt, "stopped", "me", ""), "ended (stopped)"),
        (lambda attempt: agent.finish(attempt, 1, None, 1.0), "ended with exit status 1"),
        (lambda attempt: agent.finish(attempt, None, 9, 1.0), "ended by signal 9"),
    ],
)
def test_to_a_run_that_is_over_nothing_is_sent(
    alchemy: Program, attempt: agent.AttemptDir, end: Callable[[agent.AttemptDir], object], words: str
) -> None:
    end(attempt)
    said = alchemy("command", "run", "save_checkpoint")
    assert (said.status, said.out) == (Status.BAD, "")
    assert said.err == (
        f"alchemy: run run-1 is over, so nothing was sent: attempt 1-r0 {words}; "
        "a command needs one that runs\n"
    )
    assert letters(attempt) == []


def test_to_a_run_that_never_started_nothing_is_sent(alchemy: Program) -> None:
    directory = alchemy.root / "jobs/run-1"
    directory.mkdir(parents=True)
    said = alchemy("command", "run", "save_checkpoint")
    assert said.status == Status.BAD
    assert "has not started yet" in said.err
    assert names(directory) == []


def test_a_mailbox_that_cannot_be_written_is_named(alchemy: Program, attempt: agent.AttemptDir) -> None:
    Path(attempt.run_dir.commands).rmdir()
    Path(attempt.run_dir.commands).touch()
    said = alchemy("command", "run", "save_checkpoint")
    assert said.status == Status.NO_RUN
    assert said.err.startswith(f"alchemy: nothing was sent: {attempt.run_dir.commands}")
    assert said.err.endswith(": Not a directory\n")


def test_without_an_answer_the_letter_can_be_taken_back(alchemy: Program, attempt: agent.AttemptDir) -> None:
    said = alchemy("command", "run", "save_checkpoint", "--wait=1e-9")
    assert (said.status, said.out) == (Status.NO_ANSWER, "")
    [name] = names(attempt.run_dir.commands)
    err = re.sub(r"within \S+ s", "within 0 s", said.err)
    assert err == (
        f"alchemy: no answer within 0 s: the run has no heartbeat yet; delete commands/{name} to take it "
        f"back, or look for the answer, ack/{name}, in {attempt.run_dir.path}\n"
    )


def test_a_heartbeat_that_stays_is_news_only_after_its_period(
    alchemy: Program, attempt: agent.AttemptDir
) -> None:
    agent.Heartbeat(attempt, "abc", interval_s=15.0).beat()
    assert "too short to tell" in alchemy("command", "run", "save_checkpoint", "--wait=0.01").err
    agent.Heartbeat(attempt, "abc", interval_s=0.001).beat()
    said = alchemy("command", "run", "save_checkpoint", "--wait=0.01")
    assert "the heartbeat stays 1 and should move every 0.001 s: the run is stalled or gone" in said.err


def test_a_heartbeat_that_moves_shows_a_run_that_lives(attempt: agent.AttemptDir) -> None:
    heartbeat = agent.Heartbeat(attempt, "abc")
    heartbeat.beat()
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        heartbeat.beat()

    wait = await_answer(attempt, "1-x.json", 10, clock=lambda: now[0], sleep=sleep)
    assert (wait.ending, wait.waited_s) == (Ending.TIME, 10)
    assert wait.has_beaten
    assert wait.pulse.startswith(f"the run is alive (heartbeat 1 -> {heartbeat.seq}) and looks for commands")


def test_looking_gets_rarer_but_never_rare(attempt: agent.AttemptDir) -> None:
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        now[0] += seconds
        pauses.append(seconds)

    await_answer(attempt, "1-x.json", 60, clock=lambda: now[0], sleep=sleep)
    assert pauses[0] < 0.05
    assert max(pauses) <= 0.5
    assert len(pauses) < 150


@pytest.mark.parametrize(
    ("is_taken", "words"), [(False, "it is void"), (True, "the next attempt settles it")]
)
def test_an_attempt_that_ends_without_an_answer_is_not_waited_for(
    alchemy: Program,
    attempt: agent.AttemptDir,
    monkeypatch: pytest.MonkeyPatch,
    is_taken: bool,
    words: str,
) -> None:
    monkeypatch.setattr(waiting, "_GRACE_S", 0.05)

    def end(_: threading.Event) -> None:
        [name] = eventually(lambda: names(attempt.run_dir.commands))
        if is_taken:  # and the process died before it answered
            Path(attempt.claimed).mkdir()
            Path(attempt.run_dir.commands, name).rename(Path(attempt.claimed, f"{name[:-5]}.00000001.json"))
        agent.finish(attempt, None, 9, 1.0)

    with meanwhile(end):
        said = alchemy("command", "run", "save_checkpoint", "--wait=600")
    assert said.status == Status.NO_ANSWER
    assert said.err == (f"alchemy: no answer: attempt 1-r0 ended by signal 9 before it gave one; {words}\n")


def test_an_answer_given_at_the_very_end_is_found(alchemy: Program, attempt: agent.AttemptDir) -> None:
    def stop(_: agent.Command) -> None:
        agent.finish(attempt, 75, None, 1.0)  # seen before the answer is

    with training(attempt, {"graceful_stop": stop}):
        assert alchemy("command", "run", "graceful_stop").lines == ["applied after step 1200"]


# --- JSON ------------------------------------------------------------------------------------------


def test_json_holds_the_whole_answer(alchemy: Program, attempt: agent.AttemptDir) -> None:
    with training(attempt, {"update_params": update}):
        said = alchemy("command", "run", "update_params", "lr=1e-4", "--json")
    assert said.status == 0
    answer = said.record["answer"]
    assert record(Path(attempt.run_dir.ack, said.record["letter"])) == answer
    assert (answer["outcome"], answer["result"]["checkpoint"]) == ("applied", "1-r0/step-00001200")
    assert (said.record["run"], said.record["attempt"]) == ("run-1", "1-r0")
    assert (said.record["op"], said.record["args"]) == ("update_params", {"lr": 0.0001})


def test_json_without_an_answer_says_so(alchemy: Program, attempt: agent.AttemptDir) -> None:
    said = alchemy("command", "run", "save_checkpoint", "--json", "--wait=0.01")
    assert said.status == Status.NO_ANSWER
    assert said.record["answer"] is None
    assert (said.record["is_over"], said.record["heartbeat_moved"]) == (False, False)
    assert names(attempt.run_dir.commands) == [said.record["letter"]]


def test_ctrl_c_ends_the_waiting_and_not_what_was_sent(attempt: agent.AttemptDir, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest_alchemy.cli.main", "command", "run", "save_checkpoint"]
    with subprocess.Popen([*argv, f"--root={tmp_path}"], stderr=subprocess.PIPE, text=True) as process:
        [letter] = eventually(lambda: names(attempt.run_dir.commands))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == Status.INTERRUPTED
    assert names(attempt.run_dir.commands) == [letter]
