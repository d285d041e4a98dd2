"""What every transport promises; another one joins by being added to `TRANSPORTS`."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import alchemy_agent
from pytest_alchemy.transport import LocalTransport, Transport, TransportError, command_environment

TRANSPORTS: dict[str, Callable[[Path], Transport]] = {"local": LocalTransport}


@pytest.fixture(params=sorted(TRANSPORTS))
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    return TRANSPORTS[request.param](tmp_path)


def test_a_command_answers_with_status_and_both_streams(transport: Transport) -> None:
    done = transport.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=30)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert done.words == "err"


def test_arguments_are_not_read_by_any_shell(transport: Transport) -> None:
    hostile = ["a b", "$(id)", "`id`", "; id", "'", '"', "\n", "*", "--", "ü"]
    done = transport.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *hostile], timeout_s=30)
    assert done.stdout == f"{hostile}\n"


def test_a_command_has_nothing_to_read(transport: Transport) -> None:
    assert transport.run(["cat"], timeout_s=30).stdout == ""


def test_a_program_that_is_not_there_answers_as_in_a_shell(transport: Transport) -> None:
    done = transport.run(["no-such-program"], timeout_s=30)
    assert done.returncode == 127
    assert "no-such-program" in done.words


def test_a_command_that_takes_too_long_is_ended_and_its_words_are_kept(transport: Transport) -> None:
    done = transport.run(["/bin/sh", "-c", "echo 123; exec sleep 600"], timeout_s=0.5)
    assert (done.returncode, done.stdout) == (None, "123\n")


def test_bytes_that_are_no_text_do_no_harm(transport: Transport) -> None:
    assert transport.run(["printf", "\\377x"], timeout_s=30).stdout == "\ufffdx"


def test_a_file_is_written_whole_and_private_and_replaced(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "file"
    transport.put(str(path), b"one")
    transport.put(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_reader_sees_the_old_or_the_new_file_never_half_of_one(
    transport: Transport, tmp_path: Path
) -> None:
    path, done = tmp_path / "file", threading.Event()
    contents = [bytes([letter]) * 100_000 for letter in b"ab"]
    transport.put(str(path), contents[0])

    def write() -> None:
        for turn in range(40):
            transport.put(str(path), contents[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= set(contents)


def test_a_record_is_created_once(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert transport.create(str(path), {"by": "one"})
    assert not transport.create(str(path), {"by": "two"})
    assert alchemy_agent.read_record(path) == {"v": 1, "by": "one"}


def test_directories_are_private_and_may_be_there(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    transport.mkdir(str(path))
    transport.mkdir(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert transport.exists(str(path))
    assert not transport.exists(str(path / "c"))


def test_a_directory_is_published_whole_and_the_second_publisher_loses_gladly(
    transport: Transport, tmp_path: Path
) -> None:
    target = str(tmp_path / "sdk")
    transport.publish(target, {"pkg/a.py": b"a", "b.py": b"b"})
    transport.publish(target, {"pkg/a.py": b"other"})
    found = {path.relative_to(target).as_posix() for path in Path(target).rglob("*.py")}
    assert found == {"pkg/a.py", "b.py"}
    assert (Path(target) / "pkg/a.py").read_bytes() == b"a"
    assert [each.name for each in tmp_path.iterdir()] == ["sdk"]


def test_many_publishers_at_once_leave_one_directory(transport: Transport, tmp_path: Path) -> None:
    target, failed = str(tmp_path / "sdk"), []

    def publish(number: int) -> None:
        try:
            transport.publish(target, {f"{name}.py": b"%d" % number for name in "abc"})
        except TransportError as error:
            failed.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len({path.read_bytes() for path in Path(target).iterdir()}) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["sdk"]


def test_claims_of_a_run_are_counted_up(transport: Transport, tmp_path: Path) -> None:
    run = str(tmp_path / "jobs" / "run")
    assert [transport.claim(run, by) for by in ("one", "two")] == [1, 2]


def test_the_last_word_on_an_attempt_is_spoken_once(transport: Transport, tmp_path: Path) -> None:
    attempt = alchemy_agent.claim_attempt(alchemy_agent.RunDir(tmp_path / "jobs" / "run"), 1, 0)
    assert transport.conclude(attempt.path, "timeout", "one", "Slurm says TIMEOUT")
    assert not transport.conclude(attempt.path, "lost", "two", "")
    record = alchemy_agent.read_record(attempt.close)
    assert record is not None
    assert (record["attempt"], record["reason"], record["by"]) == ("1-r0", "timeout", "one")


def test_the_end_of_a_file(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    assert transport.read_tail(str(path), 4) == b"6789"
    assert transport.read_tail(str(path), 100) == b"0123456789"
    assert transport.read_tail(str(tmp_path / "none"), 4) == b""


def test_a_scan_brings_only_news(transport: Transport, tmp_path: Path) -> None:
    assert transport.scan(["run"]) == {}
    attempt = alchemy_agent.claim_attempt(alchemy_agent.RunDir(tmp_path / "jobs" / "run"), 1, 0)
    alchemy_agent.begin(attempt)
    news = transport.scan(["run", "other"])
    assert news["run"]["attempt"] == "1-r0"
    assert "other" not in news
    assert transport.scan(["run"]) == {}


def test_a_root_is_made_and_tried(transport: Transport, tmp_path: Path) -> None:
    transport.prepare(str(tmp_path / "a" / "root"))
    transport.prepare(str(tmp_path / "a" / "root"))
    assert [path.name for path in (tmp_path / "a" / "root").iterdir()] == [".gitignore"]


@pytest.mark.parametrize("call", ["prepare", "put", "mkdir", "create", "publish", "claim"])
def test_what_can_not_be_written_is_a_transport_error_that_names_the_path(
    transport: Transport, tmp_path: Path, call: str
) -> None:
    blocker = tmp_path / "a-file"
    blocker.write_text("")
    path = str(blocker / "below")
    arguments: dict[str, tuple[object, ...]] = {
        "put": (b"",),
        "create": ({},),
        "publish": ({"a": b""},),
        "claim": ("me",),
    }
    with pytest.raises(TransportError, match="a-file"):
        getattr(transport, call)(path, *arguments.get(call, ()))


def test_ctrl_c_in_the_terminal_does_not_reach_a_local_command(tmp_path: Path) -> None:
    """sbatch must not be cut in two: it runs outside the foreground process group."""
    ask = ["/bin/sh", "-c", "echo $$; ps -o sid= -p $$"]
    script = (
        f"import sys, pathlib; sys.path[:0] = {sys.path!r}\n"
        "from pytest_alchemy.transport import LocalTransport\n"
        f"print(LocalTransport(pathlib.Path({str(tmp_path)!r})).run({ask!r}, timeout_s=30).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    process, session = done.stdout.split()
    assert process == session


NEUTRAL = {"PATH": "/bin", "HOME": "/h", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "lab", "LANG": "de_DE.UTF-8"}
NOISE = {
    "SLURM_TIME_FORMAT": "relative",
    "SQUEUE_FORMAT": "%i",
    "SQUEUE_STATES": "RUNNING",
    "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_MEM_PER_NODE": "1",
    "SBATCH_WAIT": "1",
    "SBATCH_ARRAY_INX": "0-9",
}


def test_what_formats_or_filters_answers_is_kept_from_slurms_commands() -> None:
    assert command_environment("squeue", {**NEUTRAL, **NOISE}) == {
        **NEUTRAL,
        "LC_ALL": "C",
        "SLURM_BITSTR_LEN": "0",
    }


def test_sbatch_keeps_the_users_language_which_its_job_inherits() -> None:
    assert command_environment("sbatch", {**NEUTRAL, **NOISE, "LC_ALL": "de_DE.UTF-8"}) == {
        **NEUTRAL,
        "LC_ALL": "de_DE.UTF-8",
    }
