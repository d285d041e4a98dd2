"""The mailbox: which letters are taken, in which order, and what is answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from tests.support.agentlab import drop, make_attempt, names, record


class Desk:
    """A mailbox of a fresh attempt, with what it did."""

    def __init__(self, root: Path) -> None:
        self.attempt = make_attempt(root)
        self.run_dir = self.attempt.run_dir
        self.commands = Path(self.run_dir.commands)
        self.stops = 0
        self.mailbox = agent.Mailbox(self.attempt, self.stop, lambda: 7)

    def stop(self) -> None:
        self.stops += 1

    def poll(self, handlers: Mapping[str, agent.Handler] | None = None) -> list[agent.Command]:
        return self.mailbox.poll(handlers or {})

    def answers(self) -> list[str]:
        return names(self.run_dir.ack)

    def answer(self, name: str) -> dict[str, Any]:
        return record(Path(self.run_dir.ack) / name)

    def refusal(self, name: str) -> str:
        """Return why a letter that stays as it is gets refused."""
        assert self.poll() == []
        self.poll()
        answer = self.answer(name)
        assert answer["outcome"] == "refused"
        assert not (self.commands / name).exists()
        return str(answer["why"])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_handler_gets_the_command_and_its_answer_is_acknowledged(desk: Desk) -> None:
    drop(desk.run_dir, "update_params.json", b'{"lr": 0.1}')
    [taken] = desk.poll({"update_params": lambda command: {"was": 0.2, "is": command.args["lr"]}})
    answer = desk.answer("update_params.json")
    assert taken == agent.Command("update_params", answer["id"], {"lr": 0.1}, "update_params.json")
    assert (answer["outcome"], answer["result"], answer["step"]) == ("applied", {"was": 0.2, "is": 0.1}, 7)
    assert (answer["op"], answer["attempt"]) == ("update_params", "1-r0")
    assert names(desk.commands) == []
    assert names(desk.attempt.claimed) == [f"update_params.{answer['id']}.json"]


def test_a_result_that_is_no_json_is_left_out(desk: Desk) -> None:
    drop(desk.run_dir, "save_checkpoint.json")
    desk.poll({"save_checkpoint": lambda _: object()})
    assert desk.answer("save_checkpoint.json")["outcome"] == "applied"
    assert "result" not in desk.answer("save_checkpoint.json")


def test_a_handler_that_raises_fails_the_command_and_nothing_else(desk: Desk) -> None:
    def broken(_: agent.Command) -> None:
        raise KeyError("lr")

    drop(desk.run_dir, "update_params.json")
    assert len(desk.poll({"update_params": broken})) == 1
    answer = desk.answer("update_params.json")
    assert (answer["outcome"], answer["why"]) == ("failed", "KeyError: 'lr'")


def test_a_handler_may_refuse_and_the_sender_reads_why(desk: Desk) -> None:
    def strict(command: agent.Command) -> None:
        raise agent.Refuse(f"lr must be below 1, not {command.args['lr']}")

    drop(desk.run_dir, "update_params.json", b'{"lr": 3}')
    desk.poll({"update_params": strict})
    answer = desk.answer("update_params.json")
    assert (answer["outcome"], answer["why"]) == ("refused", "lr must be below 1, not 3")


def test_a_handler_that_ends_the_training_is_acknowledged_first(desk: Desk) -> None:
    drop(desk.run_dir, "graceful_stop.json")
    with pytest.raises(SystemExit):
        desk.poll({"graceful_stop": lambda _: exit(0)})
    assert desk.answer("graceful_stop.json")["outcome"] == "applied"
    assert desk.stops == 0


def test_without_handlers_stop_stops_and_the_rest_is_unsupported(desk: Desk) -> None:
    drop(desk.run_dir, "graceful_stop.json")
    drop(desk.run_dir, "dance.json")
    assert [command.op for command in desk.poll()] == ["dance", "graceful_stop"]
    assert desk.stops == 1
    assert desk.answer("graceful_stop.json")["why"] == "SIGTERM sent"
    assert desk.answer("dance.json")["outcome"] == "unsupported"
    assert "'dance'" in desk.answer("dance.json")["why"]


def test_letters_by_tools_are_taken_in_order_of_their_number(desk: Desk) -> None:
    for name in ("10-c.json", "9-b.json", "0000000008-a.json"):
        drop(desk.run_dir, name, b'{"op": "note", "args": {"from": "%s"}}' % name.encode())
    drop(desk.run_dir, "save_checkpoint.json")
    taken = desk.poll({"note": lambda _: None, "save_checkpoint": lambda _: None})
    assert [command.file for command in taken[:1]] == ["save_checkpoint.json"]
    assert [command.id for command in taken[1:]] == ["a", "b", "c"]
    assert desk.answer("10-c.json")["id"] == "c"


def test_a_letter_sent_twice_by_a_tool_is_executed_once(desk: Desk) -> None:
    calls: list[agent.Command] = []
    for _ in range(2):
        drop(desk.run_dir, "1-abc.json", b'{"op": "note"}')
        desk.poll({"note": calls.append})
    assert len(calls) == 1
    assert desk.answers() == ["1-abc.json"]
    assert names(desk.commands) == []


def test_a_letter_that_another_process_answered_is_not_executed(desk: Desk) -> None:
    drop(desk.run_dir, "1-abc.json", b'{"op": "note"}')
    desk.poll()
    answer = desk.answer("1-abc.json")
    drop(desk.run_dir, "1-abc.json", b'{"op": "note"}')
    assert agent.Mailbox(desk.attempt, desk.stop, lambda: 8).poll({"note": lambda _: None}) == []
    assert desk.answer("1-abc.json") == answer
    assert answer["outcome"] == "unsupported"


def test_a_letter_dropped_by_hand_again_is_a_new_one(desk: Desk) -> None:
    calls: list[agent.Command] = []
    for _ in range(60):  # several within one tick of the clock, whose answers would else be the same bytes
        drop(desk.run_dir, "save_checkpoint.json")
        desk.poll({"save_checkpoint": calls.append})
    assert len(calls) == 60
    later = {f"save_checkpoint-{number}.json" for number in range(2, 61)}
    assert set(desk.answers()) == {"save_checkpoint.json", *later}
    assert len({desk.answer(name)["nonce"] for name in desk.answers()}) == 60
    assert {desk.answer(name)["id"] for name in desk.answers()} == {command.id for command in calls}


@pytest.mark.parametrize("character", ["x", "\N{PILE OF POO}", "\udcff"])
def test_a_letter_with_a_very_long_name_is_answered_under_a_shorter_one(desk: Desk, character: str) -> None:
    name = os.fsdecode(os.fsencode(character * 250)[:248]) + ".json"
    (desk.commands / name).write_text("{}")
    [command] = desk.poll({})
    assert len(os.fsencode(command.file)) == 105
    assert desk.answer(command.file)["outcome"] == "unsupported"
    assert names(desk.commands) == []


def test_an_id_names_one_letter_only(desk: Desk) -> None:
    calls: list[agent.Command] = []
    for name in ("1-abc.json", "2-abc.json"):
        drop(desk.run_dir, name, b'{"op": "note"}')
    desk.poll({"note": calls.append})
    assert [command.file for command in calls] == ["1-abc.json"]
    assert desk.answer("2-abc.json")["why"] == "its id was used by 1-abc.json"
    assert desk.answer("1-abc.json")["id"] == "abc" != desk.answer("2-abc.json")["id"]


def test_a_letter_for_another_attempt_is_refused(desk: Desk) -> None:
    drop(desk.run_dir, "1-a.json", b'{"v": 1, "op": "note", "attempt": "1-r0"}')
    drop(desk.run_dir, "2-b.json", b'{"v": 1, "op": "note", "attempt": "1-r1"}')
    assert [command.id for command in desk.poll({"note": lambda _: None})] == ["a"]
    assert desk.answer("2-b.json")["outcome"] == "refused"
    assert desk.answer("2-b.json")["why"] == "it is meant for attempt 1-r1, and this is 1-r0"


def test_an_attempt_that_has_a_successor_leaves_all_letters_to_it(desk: Desk) -> None:
    make_attempt(Path(desk.run_dir.path).parents[1], k=2)
    drop(desk.run_dir, "graceful_stop.json")
    drop(desk.run_dir, "1-a.json", b"nonsense")
    assert desk.poll() == desk.poll() == []
    assert names(desk.commands) == ["1-a.json", "graceful_stop.json"]
    assert desk.answers() == []


def test_an_empty_file_counts_once_it_has_stayed_empty(desk: Desk) -> None:
    (desk.commands / "graceful_stop.json").touch()
    assert desk.poll() == []
    assert [command.args for command in desk.poll()] == [{}]
    assert desk.stops == 1


def test_a_file_still_being_written_is_waited_for(desk: Desk) -> None:
    path = desk.commands / "update_params.json"
    calls: list[agent.Command] = []
    for content in (b"", b'{"lr"', b'{"lr": 0.'):
        path.write_bytes(content)
        assert desk.poll({"update_params": calls.append}) == []
    path.write_bytes(b'{"lr": 0.5}')
    desk.poll({"update_params": calls.append})
    assert [command.args for command in calls] == [{"lr": 0.5}]


def test_ops_left_to_another_process_stay_where_they_are(desk: Desk) -> None:
    drop(desk.run_dir, "save_checkpoint.json")
    assert desk.mailbox.poll({}, leave=["save_checkpoint"]) == []
    assert names(desk.commands) == ["save_checkpoint.json"]
    assert desk.answers() == []


@pytest.mark.parametrize("name", [".x.json", "x.json~", "x.json.tmp", "x", ".nfs0000json", "notes.txt"])
def test_what_no_sender_means_as_a_letter_is_left_alone(desk: Desk, name: str) -> None:
    (desk.commands / name).write_text("{}")
    assert desk.poll() == desk.poll() == []
    assert names(desk.commands) == [name]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"stop!", "can't be understood: Expecting value"),
        (b"[]", "not a JSON object"),
        (b'{"lr": NaN}', "NaN is not JSON"),
        (b'{"lr": 1, "lr": 2}', "a key is given twice"),
        (b'{"a":' * 50 + b"1e999" + b"}" * 50, "too large"),
        (b"x" * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_letter_that_cannot_be_meant_is_refused_with_the_reason(
    desk: Desk, content: bytes, why: str
) -> None:
    drop(desk.run_dir, "update_params.json", content)
    assert why in desk.refusal("update_params.json")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"op": 1}', b'{"op": "x", "args": []}'])
def test_a_letter_by_a_tool_must_say_what_to_do(desk: Desk, content: bytes) -> None:
    drop(desk.run_dir, "1-abc.json", content)
    assert "can't be understood" in desk.refusal("1-abc.json")


def test_links_pipes_and_directories_are_refused_without_waiting(desk: Desk) -> None:
    (desk.commands / "link.json").symlink_to("/etc/hostname")
    (desk.commands / "dangling.json").symlink_to("nowhere")
    os.mkfifo(desk.commands / "pipe.json")
    (desk.commands / "directory.json").mkdir()
    assert desk.poll() == []
    whys = {name: desk.answer(name)["why"] for name in desk.answers()}
    assert whys == {
        "link.json": "it is a symbolic link",
        "dangling.json": "it is a symbolic link",
        "pipe.json": "it is not a regular file",
        "directory.json": "it is not a regular file",
    }
    assert names(desk.commands) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_letter_of_another_user_is_refused(desk: Desk) -> None:
    drop(desk.run_dir, "graceful_stop.json")
    os.chown(desk.commands / "graceful_stop.json", 12345, -1)
    assert desk.poll() == []
    assert "belongs to user 12345" in desk.answer("graceful_stop.json")["why"]
    assert desk.stops == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_letter_that_may_not_be_read_is_refused(desk: Desk) -> None:
    drop(desk.run_dir, "graceful_stop.json")
    (desk.commands / "graceful_stop.json").chmod(0)
    assert "permission denied" in desk.refusal("graceful_stop.json")


def test_a_mailbox_that_is_gone_is_no_news(desk: Desk) -> None:
    desk.commands.rmdir()
    assert desk.poll() == []


def test_an_answer_that_cannot_be_written_does_not_stop_the_training(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(desk.run_dir.ack).rmdir()
    Path(desk.run_dir.ack).write_text("in the way")
    drop(desk.run_dir, "graceful_stop.json")
    assert len(desk.poll()) == 1
    assert desk.stops == 1
    assert "the answer to graceful_stop.json (applied) could not be written" in capsys.readouterr().err


def test_an_answer_that_could_not_be_written_is_written_later_and_nothing_is_done_twice(desk: Desk) -> None:
    calls: list[agent.Command] = []
    ack = Path(desk.run_dir.ack)
    ack.rmdir()
    ack.write_text("in the way")
    for _ in range(2):  # the sender, who got no answer, sends it again
        drop(desk.run_dir, "1-abc.json", b'{"op": "note"}')
        desk.poll({"note": calls.append})
    ack.unlink()
    desk.poll()
    assert len(calls) == 1
    assert desk.answers() == ["1-abc.json"]


def test_of_two_readers_exactly_one_executes_each_letter(desk: Desk) -> None:
    executed: list[str] = []
    letters = [f"{number}-x{number}.json" for number in range(150)]
    barrier, done = threading.Barrier(3), threading.Event()

    def work() -> None:
        mailbox = agent.Mailbox(desk.attempt, desk.stop, lambda: None)
        barrier.wait()
        while not done.is_set() or names(desk.commands):
            mailbox.poll({"note": lambda command: executed.append(command.file)})

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    barrier.wait()
    for name in letters:
        drop(desk.run_dir, name, b'{"op": "note"}')
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(executed) == sorted(letters)
    assert desk.answers() == sorted(letters)
