"""Records on disk: whole or not there, private, and read without ever raising."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import alchemy_agent as agent
from tests.support.agentlab import names

FAULTS = shutil.which("strace")


def test_a_record_carries_its_version_first_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    agent.write_record(path, {"a": 1})
    assert path.read_bytes() == b'{"v":1,"a":1}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("durable", [True, False])
def test_writing_replaces_and_leaves_nothing_beside(tmp_path: Path, durable: bool) -> None:
    for number in range(3):
        agent.write_record(tmp_path / "x.json", {"n": number}, durable=durable)
    assert agent.read_record(tmp_path / "x.json") == {"v": 1, "n": 2}
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", bytes(range(256)) * 5000])
def test_any_bytes_are_written_as_they_are_privately_and_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "script.sh"
    path.write_bytes(b"before")
    agent.write_bytes(path, data)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["script.sh"]


def test_readers_never_see_a_part_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    agent.write_record(path, {"n": 0, "fill": ""})
    done = threading.Event()
    seen: list[bool] = []

    def read() -> None:
        while not done.is_set():
            record = agent.read_record(path)
            seen.append(record is not None and len(record["fill"]) == 1000 * record["n"])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(300):
        agent.write_record(path, {"n": n % 50, "fill": "x" * 1000 * (n % 50)}, durable=False)
    done.set()
    reader.join()
    assert seen
    assert all(seen)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"v":1,"a"', b"[]", b'{"a":NaN}', b'{"a":"' + b"x" * 200 + b'"}']
)
def test_what_cannot_be_read_now_is_no_news(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert agent.read_record(path, limit=100) is None


def test_a_record_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    data = agent.dumps({"a": "x" * 50})
    (tmp_path / "x.json").write_bytes(data)
    assert agent.read_record(tmp_path / "x.json", limit=len(data)) is not None
    assert agent.read_record(tmp_path / "x.json", limit=len(data) - 1) is None


def test_only_a_regular_file_is_read_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    agent.write_record(tmp_path / "real.json", {"a": 1})
    (tmp_path / "link.json").symlink_to("real.json")
    (tmp_path / "directory.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("link.json", "directory.json", "pipe.json", "missing.json", "real.json/x"):
        assert agent.read_record(tmp_path / name) is None


def test_a_record_that_cannot_be_written_raises_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    agent.write_record(path, {"n": 1})
    program = (
        "import resource, sys, alchemy_agent as agent\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "agent.write_record(sys.argv[1], {'fill': 'x' * 1000})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert agent.read_record(path) == {"v": 1, "n": 1}
    assert names(tmp_path) == ["x.json"]


def test_of_many_creators_one_wins_and_its_record_stays(tmp_path: Path) -> None:
    path, won = tmp_path / "x.json", []
    barrier = threading.Barrier(8)

    def create(who: int) -> None:
        barrier.wait()
        if agent.create_record(path, {"who": who}):
            won.append(who)

    threads = [threading.Thread(target=create, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert agent.read_record(path) == {"v": 1, "who": won[0]}
    assert names(tmp_path) == ["x.json"]


def test_creating_again_what_stands_there_already_is_success(tmp_path: Path) -> None:
    assert agent.create_record(tmp_path / "x.json", {"a": 1})
    assert agent.create_record(tmp_path / "x.json", {"a": 1})
    assert not agent.create_record(tmp_path / "x.json", {"a": 2})


def test_creating_without_a_directory_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        agent.create_record(tmp_path / "missing" / "x.json", {})


def under_fault(fault: str, call: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run one call of the agent with a system call that fails, as the kernel would let it fail."""
    program = f"import sys, alchemy_agent as agent\nprint(agent.{call}(sys.argv[1], {{'n': 2}}))"
    strace = ["strace", "-qq", "-o", os.devnull, "-e", f"inject={fault}"]
    done = subprocess.run([*strace, sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("this machine does not let strace inject faults")
    return done


@pytest.mark.skipif(FAULTS is None, reason="strace is not installed")
@pytest.mark.parametrize("call", ["write_record", "create_record"])
def test_an_error_after_the_record_is_in_place_is_no_failure(tmp_path: Path, call: str) -> None:
    # The second fsync is the directory's, after the rename or link.
    done = under_fault("fsync:error=EIO:when=2", call, tmp_path / "x.json")
    assert done.returncode == 0, done.stderr
    assert agent.read_record(tmp_path / "x.json") == {"v": 1, "n": 2}


@pytest.mark.skipif(FAULTS is None, reason="strace is not installed")
@pytest.mark.parametrize("call", ["write_record", "create_record"])
@pytest.mark.parametrize("fault", ["fsync:error=ENOSPC:when=1", "rename,link,linkat:error=ESTALE"])
def test_an_error_before_is_raised_and_nothing_is_left(tmp_path: Path, call: str, fault: str) -> None:
    done = under_fault(fault, call, tmp_path / "x.json")
    assert "OSError" in done.stderr
    assert names(tmp_path) == []
