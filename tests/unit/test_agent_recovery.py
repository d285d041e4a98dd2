"""What becomes of the letters that an attempt took before it died, and how letters are sent."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from tests.support.agentlab import drop, make_attempt, names, record


class Killed(BaseException):
    """The process ends here."""


def killed(_: agent.Command) -> None:
    raise Killed


class Training:
    """One attempt of a run, with what its commands have changed."""

    def __init__(self, root: Path, k: int = 1) -> None:
        self.root, self.k = root, k
        self.attempt = make_attempt(root, k=k)
        self.run_dir = self.attempt.run_dir
        self.stops = 0
        self.mailbox = agent.Mailbox(self.attempt, self.stop, lambda: 100 * k)
        self.executed: list[agent.Command] = []

    def stop(self) -> None:
        self.stops += 1

    def note(self, command: agent.Command) -> str:
        self.executed.append(command)
        return "noted"

    def poll(self, **handlers: agent.Handler) -> None:
        self.mailbox.poll(handlers or {"update_params": self.note})

    def die_at(self, name: str, content: bytes = b'{"op": "update_params"}') -> None:
        """Take a letter and be killed in its execution."""
        drop(self.run_dir, name, content)
        handlers = dict.fromkeys(["update_params", "save_checkpoint", "graceful_stop", "dance"], killed)
        with pytest.raises(Killed):
            self.poll(**handlers)

    def succeed(self) -> Training:
        return Training(self.root, self.k + 1)

    def recover(
        self, applied: Container[str] = (), handlers: Mapping[str, agent.Handler] | None = None
    ) -> None:
        earlier = [self.run_dir.attempt(name) for name in self.run_dir.attempt_names()[:-1]]
        self.mailbox.recover(earlier, applied, {"update_params": self.note} if handlers is None else handlers)

    def answers(self) -> dict[str, dict[str, Any]]:
        return {name: record(Path(self.run_dir.ack) / name) for name in names(self.run_dir.ack)}


@pytest.fixture
def first(tmp_path: Path) -> Training:
    return Training(tmp_path)


def test_what_was_taken_and_not_executed_is_executed_by_the_next_attempt(first: Training) -> None:
    first.die_at("1-a.json", b'{"op": "update_params", "args": {"lr": 2}}')
    second = first.succeed()
    second.recover()
    assert second.executed == [agent.Command("update_params", "a", {"lr": 2}, "1-a.json")]
    [answer] = second.answers().values()
    assert (answer["outcome"], answer["attempt"], answer["step"]) == ("applied", "2-r0", 200)
    assert answer["result"] == "noted"


def test_what_was_answered_but_is_in_no_checkpoint_is_executed_again_under_the_same_answer(
    first: Training,
) -> None:
    drop(first.run_dir, "1-a.json", b'{"op": "update_params"}')
    drop(first.run_dir, "update_params.json")
    first.poll()
    told = first.answers()
    second = first.succeed()
    second.recover()
    assert second.executed == first.executed
    assert len(second.executed) == 2
    assert second.answers() == told


def test_what_the_checkpoint_holds_is_answered_and_not_executed(first: Training) -> None:
    first.die_at("1-a.json")
    second = first.succeed()
    second.recover(applied={"a"})
    assert second.executed == []
    [answer] = second.answers().values()
    assert (answer["outcome"], answer["why"]) == ("applied", "attempt 1-r0 did it, and a checkpoint holds it")
    third = second.succeed()
    third.recover(applied={"a"})
    assert third.answers() == second.answers()


def test_the_id_of_a_letter_by_hand_stays_its_own(first: Training) -> None:
    for lr in range(3):
        drop(first.run_dir, "update_params.json", b'{"lr": %d}' % lr)
        first.poll()
    first.die_at("update_params.json", b'{"lr": 3}')
    ids = [command.id for command in first.executed]
    second = first.succeed()
    second.recover(applied=ids[:2])
    assert [command.args["lr"] for command in second.executed] == [2, 3]
    assert second.executed[0] == first.executed[2]
    assert len(second.answers()) == 4
    assert len({answer["id"] for answer in second.answers().values()}) == 4
    third = second.succeed()
    third.recover(applied=ids[:2])
    assert third.executed == second.executed
    assert third.answers() == second.answers()


def test_letters_are_executed_again_in_the_order_in_which_they_were_taken(first: Training) -> None:
    for name in ("30-c.json", "4-d.json", "update_params.json", "5-e.json"):  # the later ones arrived later
        drop(first.run_dir, name, b'{"op": "update_params"}')
        first.poll()
    second = first.succeed()
    second.recover()
    assert [command.file for command in second.executed] == [command.file for command in first.executed]
    drop(second.run_dir, "1-b.json", b'{"op": "update_params"}')
    second.poll()
    third = second.succeed()
    third.recover()
    assert [command.file for command in third.executed] == [
        "30-c.json",
        "4-d.json",
        "update_params.json",
        "5-e.json",
        "1-b.json",
    ]


@pytest.mark.parametrize("op", ["graceful_stop", "save_checkpoint"])
def test_what_concerned_the_dead_attempt_alone_is_void(first: Training, op: str) -> None:
    first.die_at(f"{op}.json", b"{}")
    second = first.succeed()
    second.recover(handlers={op: second.note})
    assert (second.executed, second.stops) == ([], 0)
    [answer] = second.answers().values()
    assert (answer["outcome"], answer["op"]) == ("void", op)
    assert answer["why"] == "attempt 1-r0 took it and ended before it answered"
    third = second.succeed()
    third.recover()
    assert third.answers() == second.answers()


def test_a_stop_that_was_answered_stops_nobody_again(
    first: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(first.run_dir, "graceful_stop.json")
    first.poll()
    second = first.succeed()
    second.recover()
    assert (first.stops, second.stops) == (1, 0)
    assert second.answers() == first.answers()
    assert capsys.readouterr().err == ""


def test_what_was_refused_failed_or_unsupported_stays_so(first: Training) -> None:
    def refuse(_: agent.Command) -> None:
        raise agent.Refuse("no")

    drop(first.run_dir, "1-a.json", b'{"op": "update_params"}')
    first.poll(update_params=refuse)
    drop(first.run_dir, "2-b.json", b'{"op": "update_params"}')
    first.poll(update_params=lambda _: 1 / 0)
    drop(first.run_dir, "3-c.json", b'{"op": "update_params"}')
    first.poll(other=print)
    told = first.answers()
    assert [answer["outcome"] for answer in told.values()] == ["refused", "failed", "unsupported"]
    second = first.succeed()
    second.recover()
    assert (second.executed, second.answers()) == ([], told)


def test_what_nobody_handles_any_more_is_unsupported(first: Training) -> None:
    first.die_at("1-a.json", b'{"op": "dance"}')
    second = first.succeed()
    second.recover()
    assert [answer["outcome"] for answer in second.answers().values()] == ["unsupported"]


def test_a_letter_for_one_attempt_which_took_it_is_the_runs(first: Training) -> None:
    first.die_at("1-a.json", b'{"op": "update_params", "attempt": "1-r0"}')
    second = first.succeed()
    second.recover()
    assert [command.id for command in second.executed] == ["a"]


def test_a_letter_sent_again_meanwhile_is_executed_once(first: Training) -> None:
    first.die_at("1-a.json")
    second = first.succeed()
    drop(second.run_dir, "1-a.json", b'{"op": "update_params"}')
    second.recover()
    second.poll()
    assert len(second.executed) == 1
    assert names(second.run_dir.commands) == []
    assert len(names(second.attempt.claimed)) == 1
    third = second.succeed()
    third.recover()
    assert len(third.executed) == 1
    assert list(third.answers()) == ["1-a.json"]


def test_a_letter_that_fails_when_it_is_executed_again_keeps_its_answer_and_is_a_warning(
    first: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(first.run_dir, "1-a.json", b'{"op": "update_params"}')
    first.poll()
    second = first.succeed()
    second.recover(handlers={"update_params": lambda _: 1 / 0})
    assert [answer["outcome"] for answer in second.answers().values()] == ["applied"]
    assert "1-a.json, once applied, is now failed: ZeroDivisionError" in capsys.readouterr().err


def test_letters_that_were_taken_to_be_refused_are_refused(first: Training) -> None:
    claimed = Path(first.attempt.claimed)
    claimed.mkdir()
    (claimed / "1-a.000001aaaaaaaaaa.json").write_bytes(b"nonsense")
    (claimed / "note.000002aaaaaaaaaa.json").symlink_to("/etc/hostname")
    os.mkfifo(claimed / "pipe.000003aaaaaaaaaa.json")
    (claimed / "empty.000004aaaaaaaaaa.json").touch()
    second = first.succeed()
    second.recover(handlers={"empty": second.note})
    assert {name: answer["outcome"] for name, answer in second.answers().items()} == {
        "1-a.json": "refused",
        "note.json": "refused",
        "pipe.json": "refused",
        "empty.json": "applied",
    }


def test_nothing_is_executed_if_something_cannot_be_read(first: Training) -> None:
    first.die_at("1-a.json")
    second = first.succeed()
    (Path(second.run_dir.ack) / "1-a.json").mkdir()
    with pytest.raises(IsADirectoryError):
        second.recover()
    assert second.executed == []


def test_attempts_that_took_nothing_are_nothing_to_recover_from(first: Training) -> None:
    second = first.succeed()
    second.recover()
    assert second.answers() == {}


def test_a_command_that_is_sent_is_taken_and_its_answer_read(first: Training) -> None:
    name = agent.send_command(first.run_dir, "update_params", {"lr": 0.5}, attempt="1-r0")
    path = Path(first.run_dir.commands) / name
    assert json.loads(path.read_bytes()) == {
        "v": 1,
        "op": "update_params",
        "args": {"lr": 0.5},
        "attempt": "1-r0",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(first.run_dir.commands) == [name]
    assert agent.read_ack(first.run_dir, name) is None
    first.poll()
    assert (agent.read_ack(first.run_dir, name) or {})["outcome"] == "applied"


def test_commands_are_numbered_upwards_wherever_the_earlier_ones_lie(first: Training) -> None:
    sent = [agent.send_command(first.run_dir, "update_params", {}) for _ in range(2)]
    first.poll()
    drop(first.run_dir, "41-x.json", b"{}")
    sent.append(agent.send_command(first.run_dir, "update_params", {}))
    first.die_at("50-y.json")  # taken, and neither waiting nor answered
    for number, name in enumerate([*sent, agent.send_command(first.run_dir, "update_params", {})]):
        assert int(name.partition("-")[0]) == [1, 2, 42, 51][number]
    assert len({name.partition("-")[2] for name in sent}) == 3


def test_a_command_can_be_sent_before_anything_was_started(tmp_path: Path) -> None:
    name = agent.send_command(agent.RunDir(tmp_path / "jobs" / "run-1"), "update_params", {})
    first = Training(tmp_path)
    first.poll()
    assert [command.file for command in first.executed] == [name]


def test_a_command_that_nobody_would_read_is_not_sent(first: Training) -> None:
    with pytest.raises(ValueError, match="the command 'update_params' holds more than 65536 bytes"):
        agent.send_command(first.run_dir, "update_params", {"x": "y" * agent.COMMAND_BYTES})
    assert names(first.run_dir.commands) == []
