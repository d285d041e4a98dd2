#!/usr/bin/env python3
"""The far side of pytest-alchemy: a run directory, and everything that may be said through it.

One file, standard library only, Python 3.8 or newer, so that it can be copied to any login or compute
node and be used there alone. It needs a shared directory and nothing else: no port, no daemon.

Protocol, below the run root:

    jobs/<run>/
      run.json                        what to run; written once, before anything starts
      claims/<k>.json                 exclusively created: who may make the k-th submission
      heartbeat.json  progress.json   for people: rank 0 of the highest attempt
      commands/  ack/                 mailbox: drop `graceful_stop.json` here, read the answer there
      attempts/<k>-r<restarts>/       mkdir claims it; whoever finds it taken leaves
        start.json exit.json result.json    by the node
        close.json                          exclusively created by whoever concludes
        stdout.log stderr.log metrics.jsonl evals.jsonl
        claimed/                            commands this attempt took
        ranks/<r>/heartbeat.json progress.json handles.json

Every file has one writer, for ever. A record is a JSON object with `"v": 1`, written as a temporary
file in the same directory and renamed, so it is there whole or not there. On a network file system a
reader may still meet a missing, stale or empty file: that is *no news*, never an answer. Freshness is
read from `(incarnation, seq)`, never from a clock: `time` fields are for people.

In a training loop (no-ops unless ALCHEMY_TASK_ID is set):

    from alchemy_agent import report_progress, check_commands
    report_progress(step=1000, total=50000, metrics={"loss": 0.3})
    check_commands()

Around a program that knows nothing of us:

    python alchemy_agent.py -- python train.py
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import sys
import threading
import time
from collections import deque
from typing import Any, Dict, Iterable, List, Mapping, NoReturn, Optional, Union

Record = Dict[str, Any]
PathLike = Union[str, "os.PathLike[str]"]

WIRE_VERSION = 1
HEARTBEAT_S = 15.0
"""Seconds between heartbeats; readers wait for at least 90 s without news before they worry."""
COMMAND_POLL_S = 1.0
"""Seconds between two looks into `commands/`."""
PROGRESS_S = 0.2
"""Least seconds between two writes of `progress.json` through `report_progress`."""
RATE_WINDOW_S = 30.0
"""The rate is an average over the reports of the last so many seconds."""
RECORD_BYTES = 1 << 20
"""A larger record is not read."""
COMMAND_BYTES = 64 << 10
"""A larger command is refused."""

TASK_ID = "ALCHEMY_TASK_ID"
JOB_DIR = "ALCHEMY_JOB_DIR"
ATTEMPT = "ALCHEMY_ATTEMPT"
GRACEFUL_STOP = "graceful_stop"


# --- JSON: strict, so that every language reads what we write --------------------------------------


def dumps(record: Mapping[str, Any]) -> bytes:
    """Return compact UTF-8 JSON and a newline; non-finite floats become "NaN", "Infinity", "-Infinity".

    Raises:
        TypeError: A value is not JSON.
    """
    try:
        text = _encode(dict(record))
    except ValueError:
        text = _encode(_spell_out(record))
    # A lone surrogate (an undecodable byte of a file name) has no UTF-8 form: it becomes "?".
    return text.encode("utf-8", "replace") + b"\n"


def loads(data: bytes) -> Record:
    """Read one JSON object.

    Raises:
        ValueError: Not an object, not strict JSON (NaN, Infinity, 1e999), a key given twice, too deep.
    """
    try:
        value = _decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 (the data is wrong, not the caller)
    return value


def _spell_out(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _spell_out(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spell_out(item) for item in value]
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is given twice")
    return record


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique
).decode


# --- Files: whole or not there ---------------------------------------------------------------------


def read_record(path: PathLike, limit: int = RECORD_BYTES) -> Optional[Record]:
    """Read a record; None is *no news*: missing, empty, torn, stale, unreadable, over `limit` bytes."""
    try:
        return loads(_read(path, limit))
    except (OSError, ValueError):
        return None


def write_record(path: PathLike, record: Mapping[str, Any], durable: bool = True) -> None:
    """Write a record atomically, private to its owner; `durable` waits until it would survive a power loss.

    Raises:
        OSError: It is not there. (On NFS an error doesn't prove that: it is read back first.)
    """
    path = os.fspath(path)
    data, temporary = _versioned(record), _temporary(path)
    try:
        _put(temporary, data, durable)
        os.replace(temporary, path)
        if durable:
            _sync_directory(os.path.dirname(path))
    except OSError:
        _remove(temporary)
        if not _holds(path, data):
            raise


def create_record(path: PathLike, record: Mapping[str, Any]) -> bool:
    """Write a record if its name is free, durably; return False if somebody else's content has the name.

    Raises:
        OSError: It could not be written, and nobody has the name.
    """
    path = os.fspath(path)
    data, temporary = _versioned(record), _temporary(path)
    try:
        _put(temporary, data, durable=True)
        os.link(temporary, path)  # unlike rename, refuses to replace
        _sync_directory(os.path.dirname(path))
    except OSError:
        if _holds(path, data):
            return True
        if os.path.lexists(path):
            return False
        raise
    finally:
        _remove(temporary)
    return True


def _versioned(record: Mapping[str, Any]) -> bytes:
    return dumps({"v": WIRE_VERSION, **record})


def _temporary(path: str) -> str:
    """Return a name nobody else uses, in the same directory, that readers ignore."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(6).hex()}.tmp")


def _put(path: str, data: bytes, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)  # on NFS a full disk may show only here


def _read(path: PathLike, limit: int) -> bytes:
    """Read a whole file. Neither follows a link nor waits for a pipe.

    Raises:
        OSError: It can't be read, or (EFBIG) holds more than `limit` bytes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _drain(fd, limit)
    finally:
        os.close(fd)


def _drain(fd: int, limit: int) -> bytes:
    data = os.read(fd, limit + 1)
    while data and len(data) <= limit:
        more = os.read(fd, limit + 1 - len(data))
        if not more:
            return data
        data += more
    if data:
        raise OSError(errno.EFBIG, f"more than {limit} bytes")
    return data


def _holds(path: str, data: bytes) -> bool:
    try:
        return _read(path, len(data)) == data
    except OSError:
        return False


def _sync_directory(path: str) -> None:
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _make_directory(path: str) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)


# --- Paths: nobody else joins them -----------------------------------------------------------------

_ATTEMPT_NAME = re.compile(r"([1-9][0-9]{0,8})-r(0|[1-9][0-9]{0,8})", re.ASCII)


class RunDir:
    """`jobs/<run>/`; the directory's name is the run id."""

    def __init__(self, path: PathLike) -> None:
        self.path = os.path.abspath(path)  # the training may change its working directory
        self.name = os.path.basename(self.path)
        self.run_json = os.path.join(self.path, "run.json")
        self.heartbeat = os.path.join(self.path, "heartbeat.json")
        self.progress = os.path.join(self.path, "progress.json")
        self.commands = os.path.join(self.path, "commands")
        self.ack = os.path.join(self.path, "ack")
        self.attempts = os.path.join(self.path, "attempts")
        self.claims = os.path.join(self.path, "claims")
        self.checkpoints = os.path.join(self.path, "checkpoints")

    def attempt(self, name: str) -> AttemptDir:
        """Return the paths of the attempt called `name`, such as `1-r0`.

        Raises:
            ValueError: No attempt is called so.
        """
        return AttemptDir(os.path.join(self.attempts, name))

    def attempt_names(self) -> List[str]:
        """Return the names of all attempts, oldest first; none if nothing was started.

        Raises:
            OSError: The directory can't be read.
        """
        try:
            return _attempts_in_order(os.listdir(self.attempts))
        except FileNotFoundError:
            return []

    def latest(self) -> Optional[AttemptDir]:
        """Return the highest attempt, None if nothing was started.

        Raises:
            OSError: The directory can't be read.
        """
        names = self.attempt_names()
        return self.attempt(names[-1]) if names else None


class AttemptDir:
    """`attempts/<k>-r<restarts>/`: submission number `k`, restarted by the scheduler `restarts` times."""

    def __init__(self, path: PathLike) -> None:
        self.path = os.path.abspath(path)
        self.name = os.path.basename(self.path)
        match = _ATTEMPT_NAME.fullmatch(self.name)
        if match is None:
            raise ValueError(f"{self.name!r} is not the name of an attempt; they look like '1-r0'")
        self.k, self.restarts = int(match[1]), int(match[2])
        self.run_dir = RunDir(os.path.dirname(os.path.dirname(self.path)))
        self.start = os.path.join(self.path, "start.json")
        self.exit = os.path.join(self.path, "exit.json")
        self.result = os.path.join(self.path, "result.json")
        self.close = os.path.join(self.path, "close.json")
        self.stdout = os.path.join(self.path, "stdout.log")
        self.stderr = os.path.join(self.path, "stderr.log")
        self.metrics = os.path.join(self.path, "metrics.jsonl")
        self.evals = os.path.join(self.path, "evals.jsonl")
        self.claimed = os.path.join(self.path, "claimed")

    def rank(self, rank: int) -> str:
        """Return the directory of one rank, where its heartbeat and progress lie."""
        return os.path.join(self.path, "ranks", str(rank))


def attempt_name(k: int, restarts: int) -> str:
    """Return `1-r0` for the first submission, not restarted."""
    return f"{k}-r{restarts}"


def _attempts_in_order(names: Iterable[str]) -> List[str]:
    matches = [match for match in map(_ATTEMPT_NAME.fullmatch, names) if match]
    return [match[0] for match in sorted(matches, key=lambda match: (int(match[1]), int(match[2])))]


# --- Attempts: claims and receipts -----------------------------------------------------------------


class Duplicate(Exception):  # noqa: N818 (a circumstance to leave quietly on, not an error)
    """Somebody else already runs this attempt."""


def claim_attempt(run_dir: RunDir, k: int, restarts: int) -> AttemptDir:
    """Make the attempt's directory, which makes it ours, and the mailbox of the run.

    Raises:
        Duplicate: The directory is there already.
        OSError: It can't be made.
    """
    attempt = run_dir.attempt(attempt_name(k, restarts))
    for directory in (run_dir.attempts, run_dir.commands, run_dir.ack):
        _make_directory(directory)
    try:
        os.mkdir(attempt.path, 0o700)
    except FileExistsError:
        raise Duplicate(f"attempt {attempt.name} of {run_dir.name} is taken ({attempt.path})") from None
    return attempt


def next_claim(run_dir: RunDir, by: str) -> int:
    """Take the smallest free submission number, 1 or more; `by` names the taker for people.

    Raises:
        OSError: The claim can't be written.
    """
    _make_directory(run_dir.claims)
    claim, k = {"by": by, "time": _now(), "nonce": os.urandom(8).hex()}, 1
    while not create_record(os.path.join(run_dir.claims, f"{k}.json"), claim):
        k += 1
    return k


def begin(attempt: AttemptDir) -> str:
    """Write `start.json`; return the incarnation, a fresh name of this process for its heartbeats.

    Raises:
        OSError: It can't be written.
    """
    incarnation = os.urandom(16).hex()
    record = _signed(attempt, incarnation)
    record.update(
        host=_host(),
        pid=os.getpid(),
        python=".".join(map(str, sys.version_info[:3])),
        time=_now(),
        slurm=_slurm(os.environ),
        gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
    write_record(attempt.start, record)
    return incarnation


def finish(attempt: AttemptDir, code: Optional[int], signum: Optional[int], duration_s: float) -> None:
    """Write `exit.json`: the exit code, or the signal that ended the process; the other one is None.

    Raises:
        OSError: It can't be written.
    """
    record = _signed(attempt)
    record.update(code=code, signal=signum, time=_now(), duration_s=round(duration_s, 6))
    write_record(attempt.exit, record)


def conclude(attempt: AttemptDir, reason: str, by: str, evidence: str) -> bool:
    """Write `close.json`, the last word on an attempt; return False if it was spoken by somebody else.

    Raises:
        OSError: It can't be written.
    """
    record = _signed(attempt)
    record.update(reason=reason, by=by, evidence=evidence, time=_now())
    return create_record(attempt.close, record)


def environment(attempt: AttemptDir) -> Dict[str, str]:
    """Return the variables by which a process finds its attempt."""
    return {TASK_ID: attempt.run_dir.name, JOB_DIR: attempt.run_dir.path, ATTEMPT: attempt.name}


def _signed(attempt: AttemptDir, incarnation: Optional[str] = None) -> Record:
    record: Record = {"run": attempt.run_dir.name, "attempt": attempt.name}
    if incarnation is not None:
        record["incarnation"] = incarnation
    return record


def _slurm(environ: Mapping[str, str]) -> Optional[Record]:
    if "SLURM_JOB_ID" not in environ:
        return None
    names = ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT", "JOB_NODELIST", "CLUSTER_NAME")
    return {name.lower(): environ.get("SLURM_" + name) for name in names}


def _host() -> str:
    return os.uname().nodename


def _now() -> float:
    """Return seconds since 1970 for people; no reader compares the clocks of two machines."""
    return round(time.time(), 3)


def _warn(text: str) -> None:
    sys.stderr.write(f"alchemy: {text}\n")


# --- Heartbeat and progress: observations, whose loss is counted and stops nothing -----------------


class _Observation:
    """One small record of one rank, replaced again and again."""

    def __init__(self, attempt: AttemptDir, incarnation: str, rank: int, name: str) -> None:
        self.attempt = attempt
        self.seq = 0
        self.lost = 0
        self._incarnation = incarnation
        self._directory = attempt.rank(rank)
        self._own = os.path.join(self._directory, name)
        self._for_people = os.path.join(attempt.run_dir.path, name) if rank == 0 else None

    def write(self, fields: Mapping[str, Any]) -> None:
        self.seq += 1
        record = {**_signed(self.attempt, self._incarnation), "seq": self.seq, **fields, "time": _now()}
        try:
            if self.seq == 1 or self.lost:
                _make_directory(self._directory)
            write_record(self._own, record, durable=False)
            names = self.attempt.run_dir.attempt_names() if self._for_people else ()
            if self._for_people and names and names[-1] == self.attempt.name:
                write_record(self._for_people, record, durable=False)
        except OSError:
            self.lost += 1


class Heartbeat:
    """Says every `interval_s` seconds that the process lives; beats that can't be written are counted."""

    def __init__(
        self, attempt: AttemptDir, incarnation: str, interval_s: float = HEARTBEAT_S, rank: int = 0
    ) -> None:
        self.interval_s = interval_s
        self._observation = _Observation(attempt, incarnation, rank, "heartbeat.json")
        self._stopped = threading.Event()
        self._thread: Optional[threading.Thread] = None

    @property
    def lost(self) -> int:
        """How many beats could not be written."""
        return self._observation.lost

    def beat(self) -> None:
        """Write one beat, now."""
        self._observation.write({"interval_s": self.interval_s, "host": _host(), "pid": os.getpid()})

    def start(self) -> None:
        """Beat now, and then from a background thread until `stop`."""
        self.beat()
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="alchemy-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the background thread; no beat follows."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopped.wait(self.interval_s):
            self.beat()


class Progress:
    """Says how far the training is. `.lost` counts the reports that could not be written."""

    def __init__(self, attempt: AttemptDir, incarnation: str, rank: int = 0) -> None:
        self._observation = _Observation(attempt, incarnation, rank, "progress.json")
        self._window: deque[tuple[float, int]] = deque(maxlen=256)

    @property
    def lost(self) -> int:
        """How many reports could not be written."""
        return self._observation.lost

    def report(
        self, step: int, total: Optional[int], metrics: Optional[Mapping[str, Any]], now_monotonic: float
    ) -> None:
        """Write step, total, rate (steps per second, recent), ETA (seconds) and metrics, now.

        Metrics are numbers or what `float()` reads, such as a tensor of one element; others become None.
        """
        rate = self._rate(step, now_monotonic)
        eta = max(total - 1 - step, 0) / rate if rate and total is not None else None
        values = {str(name): _number(value) for name, value in (metrics or {}).items()}
        self._observation.write({"step": step, "total": total, "rate": rate, "eta_s": eta, "metrics": values})

    def _rate(self, step: int, now: float) -> Optional[float]:
        window = self._window
        if window and step < window[-1][1]:  # started again
            window.clear()
        window.append((now, step))
        while len(window) > 2 and now - window[0][0] > RATE_WINDOW_S:
            window.popleft()
        elapsed = now - window[0][0]
        return (step - window[0][1]) / elapsed if elapsed > 0 else None


def _number(value: Any) -> Union[int, float, None]:
    if isinstance(value, (int, float)):
        return value
    try:
        return float(value)
    except Exception:  # noqa: BLE001 (a foreign type's own error; an observation never stops training)
        return None
