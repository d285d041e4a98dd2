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
        start.json resume.json exit.json result.json    by the node
        close.json                          exclusively created by whoever concludes
        stdout.log stderr.log metrics.jsonl evals.jsonl
        claimed/                            commands this attempt took
        ranks/<r>/heartbeat.json progress.json handles.json
      checkpoints/  pins/             the SDK's

Every file has one writer, for ever. A record is a JSON object with `"v": 1`, written as a temporary
file in the same directory and renamed, so it is there whole or not there. On a network file system a
reader may still meet a missing, stale or empty file: that is *no news*, never an answer. Freshness is
read from `(incarnation, seq)`, never from a clock: `time` fields are for people.

In a training loop (no-ops unless ALCHEMY_TASK_ID is set):

    from alchemy_agent import report_progress, check_commands
    report_progress(step=1000, total=50000, metrics={"loss": 0.3})    # 1000 of 50000 steps are finished
    check_commands()

Around a program that knows nothing of us:

    python alchemy_agent.py -- python train.py
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import math
import os
import re
import resource
import signal
import stat
import sys
import threading
import time
from collections import deque
from typing import Any, Callable, Container, Dict, Iterable, Iterator, Mapping, NamedTuple, NoReturn, Union

Record = Dict[str, Any]  # evaluated by Python 3.8 too, unlike the annotations
Handler = Callable[["Command"], Any]
PathLike = Union[str, "os.PathLike[str]"]

WIRE_VERSION = 1
HEARTBEAT_S = 15.0  # between heartbeats; readers wait for at least 90 s without news before they worry
COMMAND_POLL_S = 1.0  # between two looks into `commands/`
PROGRESS_S = 0.2  # at least, between two writes of `progress.json` through `report_progress`
RATE_WINDOW_S = 30.0  # the rate is an average over the reports of so many seconds
RECORD_BYTES = 1 << 20  # a larger record is not read
COMMAND_BYTES = 64 << 10  # a larger command is refused

TASK_ID = "ALCHEMY_TASK_ID"
JOB_DIR = "ALCHEMY_JOB_DIR"
ATTEMPT = "ALCHEMY_ATTEMPT"
GRACEFUL_STOP = "graceful_stop"
SAVE_CHECKPOINT = "save_checkpoint"


# --- JSON: strict, so that every language reads what we write --------------------------------------


def dumps(record: Mapping[str, Any]) -> bytes:
    """Return compact UTF-8 JSON and a newline; non-finite floats become "NaN", "Infinity", "-Infinity"."""
    try:
        text = _encode(dict(record))
    except ValueError:
        text = _encode(_spell_out(record))
    # A lone surrogate (an undecodable byte of a file name) has no UTF-8 form: it becomes "?".
    return text.encode("utf-8", "replace") + b"\n"


def loads(data: bytes) -> Record:
    """Read one JSON object; ValueError if it is none, holds NaN or 1e999, has a key twice, is too deep."""
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


def read_record(path: PathLike, limit: int = RECORD_BYTES) -> Record | None:
    """Read a record; None is *no news*: missing, empty, torn, stale, unreadable, over `limit` bytes."""
    try:
        return loads(_read(path, limit))
    except (OSError, ValueError):
        return None


def write_record(path: PathLike, record: Mapping[str, Any], durable: bool = True) -> None:
    """Write a record as `write_bytes` writes a file."""
    write_bytes(path, dumps({"v": WIRE_VERSION, **record}), durable)


def write_bytes(path: PathLike, data: bytes, durable: bool = True) -> None:
    """Write a file atomically, private to its owner; `durable` waits until it would survive a power loss.

    On NFS an error doesn't prove failure, so it is read back; OSError means that it is not there.
    """
    _commit(os.fspath(path), data, durable, os.replace)


def create_record(path: PathLike, record: Mapping[str, Any]) -> bool:
    """Write a record, durably, if its name is free; False if somebody else's content has the name."""
    path = os.fspath(path)
    try:
        # Unlike a rename, a link refuses to replace.
        _commit(path, dumps({"v": WIRE_VERSION, **record}), True, os.link)
    except OSError:
        if os.path.lexists(path):
            return False
        raise
    return True


def _commit(path: str, data: bytes, durable: bool, put_in_place: Callable[[str, str], None]) -> None:
    directory, name = os.path.split(path)
    # A name nobody else uses, in the same directory, that readers ignore.
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(6).hex()}.tmp")
    try:
        _put(temporary, data, durable)
        put_in_place(temporary, path)
        if durable:
            _sync_directory(directory)
    except OSError:
        if not _holds(path, data):
            raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


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


def _read(path: PathLike, limit: int, check: Callable[[os.stat_result], None] | None = None) -> bytes:
    """Read a whole file that passes `check`, EFBIG beyond `limit`; follows no link, waits for no pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if check is not None:
            check(os.fstat(fd))
        data = more = os.read(fd, limit + 1)
        while more and len(data) <= limit:
            more = os.read(fd, limit + 1 - len(data))
            data += more
    finally:
        os.close(fd)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"more than {limit} bytes", os.fspath(path))
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


def make_directory(path: str) -> None:
    """Make a directory and those above it that are missing, private to their owner, or raise OSError."""
    if os.path.isdir(path):
        return
    if os.path.dirname(path) != path:
        make_directory(os.path.dirname(path) or ".")
    with contextlib.suppress(FileExistsError):  # somebody else was quicker; a file in the way shows later
        os.mkdir(path, 0o700)


# --- Paths: nobody else joins them -----------------------------------------------------------------

_ATTEMPT_NAME = re.compile(r"([1-9][0-9]{0,8})-r(0|[1-9][0-9]{0,8})", re.ASCII)
_CLAIM_NAME = re.compile(r"([1-9][0-9]{0,8})\.json", re.ASCII)


class RunDir:
    """`jobs/<run>/`; the directory's name is the run id."""

    def __init__(self, path: PathLike) -> None:
        self.path = os.path.abspath(path)  # the training may change its working directory
        self.name = os.path.basename(self.path)
        inside = functools.partial(os.path.join, self.path)
        records = ("run.json", "heartbeat.json", "progress.json")
        self.run_json, self.heartbeat, self.progress = map(inside, records)
        self.commands, self.ack = inside("commands"), inside("ack")
        self.attempts, self.claims = inside("attempts"), inside("claims")
        self.checkpoints, self.pins = inside("checkpoints"), inside("pins")

    def attempt(self, name: str) -> AttemptDir:
        """Return the paths of the attempt called `name`, such as `1-r0`; ValueError if none can be."""
        return AttemptDir(os.path.join(self.attempts, name))

    def attempt_names(self) -> list[str]:
        """Return the names of all attempts, oldest first; none if nothing was started."""
        try:
            return sorted(filter(_ATTEMPT_NAME.fullmatch, os.listdir(self.attempts)), key=_numbers)
        except FileNotFoundError:
            return []

    def latest(self) -> AttemptDir | None:
        """Return the highest attempt, None if nothing was started."""
        names = self.attempt_names()
        return self.attempt(names[-1]) if names else None


class AttemptDir:
    """`attempts/<k>-r<restarts>/`: submission number `k`, restarted by the scheduler `restarts` times."""

    def __init__(self, path: PathLike) -> None:
        self.path = os.path.abspath(path)
        self.name = os.path.basename(self.path)
        self.k, self.restarts = _numbers(self.name)
        if not self.k:
            raise ValueError(f"{self.name!r} is not the name of an attempt; they look like '1-r0'")
        self.run_dir = RunDir(os.path.dirname(os.path.dirname(self.path)))
        inside = functools.partial(os.path.join, self.path)
        receipts = ("start.json", "exit.json", "result.json", "close.json", "resume.json")
        self.start, self.exit, self.result, self.close, self.resume = map(inside, receipts)
        self.stdout, self.stderr = inside("stdout.log"), inside("stderr.log")
        self.metrics, self.evals = inside("metrics.jsonl"), inside("evals.jsonl")
        self.claimed = inside("claimed")

    def is_latest(self) -> bool:
        """Return whether no later attempt of the run can be seen; OSError if none can be."""
        return self.run_dir.attempt_names()[-1:] in ([], [self.name])

    def rank(self, rank: int) -> str:
        """Return the directory of one rank, where its heartbeat and progress lie."""
        return os.path.join(self.path, "ranks", str(rank))


def attempt_name(k: int, restarts: int) -> str:
    """Return `1-r0` for the first submission, not restarted."""
    return f"{k}-r{restarts}"


def _numbers(name: str) -> tuple[int, int]:
    match = _ATTEMPT_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else (0, 0)


# --- Attempts: claims and receipts -----------------------------------------------------------------


class Duplicate(Exception):
    """Somebody else already runs this attempt: a reason to leave quietly, not an error."""


def claim_attempt(run_dir: RunDir, k: int, restarts: int) -> AttemptDir:
    """Make the attempt's directory, so that it is ours, and the run's mailbox; `Duplicate` if it is taken."""
    attempt = run_dir.attempt(attempt_name(k, restarts))
    for directory in (run_dir.attempts, run_dir.commands, run_dir.ack):
        make_directory(directory)
    try:
        os.mkdir(attempt.path, 0o700)
    except FileExistsError:
        raise Duplicate(f"attempt {attempt.name} of {run_dir.name} is taken ({attempt.path})") from None
    return attempt


def next_claim(run_dir: RunDir, by: str) -> int:
    """Take the submission number after the highest one taken, 1 at first; `by` names the taker for people."""
    make_directory(run_dir.claims)
    taken = map(_CLAIM_NAME.fullmatch, os.listdir(run_dir.claims))
    k = max((int(match[1]) for match in taken if match), default=0) + 1
    claim = {"by": by, "time": _now(), "nonce": os.urandom(8).hex()}
    while not create_record(os.path.join(run_dir.claims, f"{k}.json"), claim):
        k += 1  # somebody was quicker, or the listing was stale
    return k


def begin(attempt: AttemptDir) -> str:
    """Write `start.json`; return the incarnation, a fresh name of this process for its heartbeats."""
    incarnation, python = os.urandom(16).hex(), ".".join(map(str, sys.version_info[:3]))
    fields = {"host": os.uname().nodename, "pid": os.getpid(), "python": python, "slurm": _slurm(os.environ)}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    write_record(attempt.start, _signed(attempt, incarnation=incarnation, **fields, gpus=gpus))
    return incarnation


def finish(attempt: AttemptDir, code: int | None, signum: int | None, duration_s: float) -> None:
    """Write `exit.json`: the exit code, or the signal that ended the process; the other one is None."""
    ending = {"code": code, "signal": signum, "duration_s": round(duration_s, 6)}
    write_record(attempt.exit, _signed(attempt, **ending))


def conclude(attempt: AttemptDir, reason: str, by: str, evidence: str) -> bool:
    """Write `close.json`, the last word on an attempt; return False if somebody else spoke it."""
    return create_record(attempt.close, _signed(attempt, reason=reason, by=by, evidence=evidence))


def environment(attempt: AttemptDir) -> dict[str, str]:
    """Return the variables by which a process finds its attempt."""
    return {TASK_ID: attempt.run_dir.name, JOB_DIR: attempt.run_dir.path, ATTEMPT: attempt.name}


def _signed(attempt: AttemptDir, **fields: Any) -> Record:
    return {"run": attempt.run_dir.name, "attempt": attempt.name, **fields, "time": _now()}


def _slurm(environ: Mapping[str, str]) -> Record | None:
    if "SLURM_JOB_ID" not in environ:
        return None
    names = ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT", "JOB_NODELIST", "CLUSTER_NAME")
    return {name.lower(): environ.get("SLURM_" + name) for name in names}


def _now() -> float:
    """Return seconds since 1970 for people; no reader compares the clocks of two machines."""
    return round(time.time(), 3)


def _warn(text: str) -> None:
    sys.stderr.write(f"alchemy: {text}\n")


# --- Heartbeat and progress: observations, whose loss is counted and stops nothing -----------------


class _Observation:
    """One small record of one rank, replaced again and again; `lost` counts the writes that failed."""

    _file: str

    def __init__(self, attempt: AttemptDir, incarnation: str, rank: int) -> None:
        self.lost = self.seq = 0
        self._attempt, self._incarnation = attempt, incarnation
        self._own = os.path.join(attempt.rank(rank), self._file)
        self._for_people = os.path.join(attempt.run_dir.path, self._file) if rank == 0 else ""

    def _write(self, **fields: Any) -> None:
        self.seq += 1
        record = _signed(self._attempt, incarnation=self._incarnation, seq=self.seq, **fields)
        try:
            if self.seq == 1 or self.lost:
                make_directory(os.path.dirname(self._own))
            write_record(self._own, record, durable=False)
            if self._for_people and self._attempt.is_latest():
                write_record(self._for_people, record, durable=False)
        except OSError:
            self.lost += 1


class Heartbeat(_Observation):
    """Says every `interval_s` seconds that the process lives.

    A supervisor beats from a process of its own. The thread that `start` makes shares the training's
    interpreter, so it is silent while one long call of C holds the GIL (a regular expression, an extension).
    """

    _file = "heartbeat.json"

    def __init__(
        self, attempt: AttemptDir, incarnation: str, interval_s: float = HEARTBEAT_S, rank: int = 0
    ) -> None:
        super().__init__(attempt, incarnation, rank)
        self.interval_s = interval_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Write one beat, now."""
        self._write(interval_s=self.interval_s, host=os.uname().nodename, pid=os.getpid())

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

    def _run(self) -> None:
        while not self._stopped.wait(self.interval_s):
            self.beat()


class Progress(_Observation):
    """Says how far the training is."""

    _file = "progress.json"

    def __init__(self, attempt: AttemptDir, incarnation: str, rank: int = 0) -> None:
        super().__init__(attempt, incarnation, rank)
        self._window: deque[tuple[float, int]] = deque(maxlen=256)

    def report(
        self,
        step: int,
        total: int | None,
        metrics: Mapping[str, Any] | None,
        now_monotonic: float,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write step, total, rate (steps per second, recent), ETA (seconds), metrics and `extra` fields, now.

        `step` is the number of finished steps: 0 at the beginning, `total` at the end. A training that goes
        on from 5000 reports that first, lest it pass for the work of an instant.
        Metrics are numbers or what `float()` reads, such as a tensor of one element; others become None.
        """
        rate = self._rate(step, now_monotonic)
        eta = max(total - step, 0) / rate if rate and total is not None else None
        values = {str(name): _number(value) for name, value in (metrics or {}).items()}
        self._write(step=step, total=total, rate=rate, eta_s=eta, metrics=values, **(extra or {}))

    def _rate(self, step: int, now: float) -> float | None:
        window = self._window
        if window and step < window[-1][1]:  # started again
            window.clear()
        window.append((now, step))
        while len(window) > 2 and now - window[0][0] > RATE_WINDOW_S:
            window.popleft()
        elapsed = now - window[0][0]
        return (step - window[0][1]) / elapsed if elapsed > 0 else None


def _number(value: Any) -> int | float | None:
    if isinstance(value, (int, float)):
        return value
    try:
        return float(value)
    except Exception:  # noqa: BLE001 (a foreign type's own error; an observation never stops training)
        return None


# --- Commands: a mailbox; each letter is taken once and answered -----------------------------------

_BY_TOOL = re.compile(r"([0-9]{1,18})-([A-Za-z0-9][A-Za-z0-9._-]{0,99})\.json", re.ASCII)
_TAKEN = re.compile(r"(.+)\.([0-9a-f]{8,})\.json", re.ASCII | re.DOTALL)
_UNFIT = {
    errno.ELOOP: "it is a symbolic link",
    errno.ENXIO: "it is not a regular file",
    errno.EACCES: "it can't be read: permission denied",
    errno.EFBIG: f"it holds more than {COMMAND_BYTES} bytes",
}


class Command(NamedTuple):
    """Something to do: `op` with `args`, absolute values and never changes relative to what is.

    `id` is this one letter's, and stays so when a later attempt executes it again.
    """

    op: str
    id: str
    args: Record
    file: str


class Refuse(Exception):
    """Raised by a handler that won't execute a command and changed nothing; the text tells the sender why."""


class _Opened(NamedTuple):
    command: Command
    why: str  # it is refused; "" if it isn't
    unsettled: bytes | None  # what it holds, if that may still become something else


class Mailbox:
    """The run's `commands/` and `ack/`, as one process uses them.

    Args:
        attempt: For which commands are taken.
        stop: Called for `graceful_stop` where no handler wants it, after it was acknowledged.
        step: Returns the step that stands in the acknowledgement.
    """

    def __init__(self, attempt: AttemptDir, stop: Callable[[], None], step: Callable[[], int | None]) -> None:
        self._attempt, self._stop, self._step = attempt, stop, step
        self._directory, self._ack = attempt.run_dir.commands, attempt.run_dir.ack
        self._unfinished: dict[str, bytes] = {}  # empty or malformed letters, as the last poll found them
        self._taken = itertools.count(1)
        self._files: dict[str, str] = {}  # by id
        self._told: dict[str, str] = {}  # outcome by id, as earlier attempts told it
        self._unsent: deque[tuple[str, Record]] = deque()  # answers to which files

    def poll(self, handlers: Mapping[str, Handler], leave: Container[str] = ()) -> list[Command]:
        """Take the letters that lie there, execute and acknowledge each; return the commands among them.

        By hand (`<op>.json`) comes first, then by tool (`<seq>-<id>.json`) in order of seq. Ops in
        `leave` are another process's, and all of them a later attempt's. What can't be read now is read
        later: no OSError.
        """
        with contextlib.suppress(OSError):
            self._send()
        commands = []
        for name in self._names():
            opened = self._examine(name)
            if opened is None or (not opened.why and opened.command.op in leave):
                continue
            unique = self._take(name, opened.command.file)
            # The same letter sent again, because its answer was late: the answer stands.
            if not unique or (_BY_TOOL.fullmatch(name) and os.path.lexists(os.path.join(self._ack, name))):
                continue
            command = self._admit(opened, unique)
            if command is not None:
                self._execute(command, handlers.get(command.op))
                commands.append(command)
        return commands

    def recover(
        self,
        attempts: Iterable[AttemptDir],
        applied: Container[str],
        handlers: Mapping[str, Handler],
        own: Container[str] = (GRACEFUL_STOP, SAVE_CHECKPOINT),
    ) -> list[Command]:
        """Settle what earlier attempts took, before this one's first step and poll; return what was executed.

        An answer that is there stands, the only one. What was refused or failed stays so. An op in `own`
        concerned only the attempt that took it: `void`. Anything else that is not in `applied` is executed,
        again if need be, as what it changed was lost with that attempt.

        Args:
            attempts: Those whose work this one continues, oldest first; they have ended.
            applied: Ids of the commands whose effects are in the state that was restored.
            handlers: As for `poll`.
            own: Ops that are not executed for another attempt.

        Raises:
            OSError: A letter or an answer can't be read now; nothing was executed.
        """
        letters = [(attempt.name, *letter) for attempt in attempts for letter in self._taken_by(attempt)]
        for file in {opened.command.file for _, opened, _ in letters}:
            self._told.update(self._answers_to(file))
        again = []
        for taker, opened, unique in letters:
            command = self._admit(opened, unique)
            if command is None:
                continue
            told = self._told.get(command.id)
            if command.id in applied:
                self._answer(command, "applied", f"attempt {taker} did it, and a checkpoint holds it")
            elif command.op in own and told is None:
                self._answer(command, "void", f"attempt {taker} took it and ended before it answered")
            elif command.op not in own and told in (None, "applied"):
                self._execute(command, handlers.get(command.op))
                again.append(command)
        return again

    def _names(self) -> list[str]:
        try:
            names = [n for n in os.listdir(self._directory) if n.endswith(".json") and n[0] != "."]
            if names and not self._attempt.is_latest():
                return []
        except OSError:
            return []
        self._unfinished = {name: data for name, data in self._unfinished.items() if name in names}
        return sorted(names, key=_place)

    def _examine(self, name: str) -> _Opened | None:
        """Open a letter; None if it isn't there (any more) or may still be being written."""
        try:
            opened = self._open(os.path.join(self._directory, name), name, self._attempt.name)
        except OSError:
            return None
        if opened.unsettled is not None and self._unfinished.get(name) != opened.unsettled:
            self._unfinished[name] = opened.unsettled
            return None
        return opened

    def _open(self, path: str, file: str, taker: str) -> _Opened:
        """Read a letter that this attempt took or may take; OSError if it can't be read now."""
        data = b""
        try:
            data = _read(path, COMMAND_BYTES, self._check)
            command = _parse(file, data, taker)
        except Refuse as refusal:
            return _Opened(_unopened(file), str(refusal), None)
        except ValueError as error:
            return _Opened(_unopened(file), f"it can't be understood: {error}", data)
        except OSError as error:
            if error.errno not in _UNFIT:
                raise
            return _Opened(_unopened(file), _UNFIT[error.errno], None)
        return _Opened(command, "", None if data else data)  # `touch commands/graceful_stop.json`

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise Refuse(_UNFIT[errno.ENXIO])
        # Where a server maps user ids, our own files may seem to be somebody's, like the directory.
        if status.st_uid not in (os.geteuid(), os.stat(self._directory).st_uid):
            raise Refuse(f"it belongs to user {status.st_uid}, the run to user {os.geteuid()}")

    def _take(self, name: str, file: str) -> str:
        """Move a letter to this attempt; return its unique name there, "" if another process was quicker."""
        # A name that only we can have made, so that finding it proves that it was we who moved the letter;
        # such names sort in the order of taking.
        unique = f"{next(self._taken):06x}{os.urandom(5).hex()}"
        target = os.path.join(self._attempt.claimed, f"{file[: -len('.json')]}.{unique}.json")
        try:
            make_directory(self._attempt.claimed)
            os.rename(os.path.join(self._directory, name), target)
            _sync_directory(self._attempt.claimed)  # after a power loss it must not lie there again
            _sync_directory(self._directory)
        except OSError:
            if not os.path.lexists(target):  # on NFS an error doesn't prove that nothing was moved
                return ""
        return unique

    def _taken_by(self, attempt: AttemptDir) -> Iterator[tuple[_Opened, str]]:
        """Yield the letters that an attempt took, with their unique names, in the order in which it did."""
        try:
            names = os.listdir(attempt.claimed)
        except FileNotFoundError:
            return
        for match in sorted(filter(None, map(_TAKEN.fullmatch, names)), key=lambda match: match[2]):
            path = os.path.join(attempt.claimed, match[0])
            yield self._open(path, match[1] + ".json", attempt.name), match[2]

    def _answers_to(self, file: str) -> Iterator[tuple[str, str]]:
        """Yield id and outcome of each answer to a letter of this name."""
        for path in _numbered(self._ack, file):
            try:
                answer = loads(_read(path, RECORD_BYTES))
            except FileNotFoundError:
                return
            except ValueError:  # it is there, and will not be replaced
                continue
            yield str(answer.get("id")), str(answer.get("outcome"))

    def _admit(self, opened: _Opened, unique: str) -> Command | None:
        """Return the command of a letter that was taken, None if it is refused or was sent before."""
        command, why, _ = opened
        command = command._replace(id=command.id or unique)
        first = self._files.setdefault(command.id, "")
        if first == command.file:
            return None
        if first:
            command, why = command._replace(id=unique), f"its id was used by {first}"
        self._files[command.id] = command.file
        if why:
            self._answer(command, "refused", why)
        return None if why else command

    def _execute(self, command: Command, handler: Handler | None) -> None:
        if handler is not None:
            try:
                self._answer(command, "applied", "", handler(command))
            except SystemExit:
                self._answer(command, "applied", "the training ends")
                raise
            except Refuse as refusal:
                self._answer(command, "refused", str(refusal))
            except Exception as error:  # noqa: BLE001 (a bug in a handler must not end the training)
                self._answer(command, "failed", f"{type(error).__name__}: {error}")
        elif command.op == GRACEFUL_STOP:
            self._answer(command, "applied", "SIGTERM sent")
            self._stop()
        else:
            self._answer(command, "unsupported", f"the training announced no handler for {command.op!r}")

    def _answer(self, command: Command, outcome: str, why: str, result: Any = None) -> None:
        told = self._told.get(command.id)
        if told not in (None, outcome):
            _warn(f"{command.file}, once {told}, is now {outcome}: {why}")
        if told is not None:
            return
        record: Record = {"id": command.id, "op": command.op, "outcome": outcome, "why": why}
        # The nonce keeps two equal answers within one tick of the clock from passing for one.
        record.update(step=self._step(), attempt=self._attempt.name, time=_now(), nonce=os.urandom(8).hex())
        with contextlib.suppress(TypeError, ValueError):  # no JSON, no result
            record.update(loads(dumps({"result": result} if result is not None else {})))
        self._unsent.append((command.file, record))
        try:
            self._send()
        except OSError as error:
            _warn(f"the answer to {command.file} ({outcome}) could not be written yet: {error}")

    def _send(self) -> None:
        while self._unsent:
            file, record = self._unsent[0]
            make_directory(self._ack)
            places = (path for path in _numbered(self._ack, file) if not os.path.lexists(path))
            any(create_record(path, record) for path in places)
            self._unsent.popleft()


def _place(name: str) -> tuple[int, str]:
    match = _BY_TOOL.fullmatch(name)
    return (int(match[1]), name) if match else (-1, name)


def _unopened(name: str) -> Command:
    """Return what a letter's name says; by hand, it has no id before it is taken."""
    match = _BY_TOOL.fullmatch(name)
    if match:
        return Command("", match[2], {}, name)
    stem = os.fsdecode(os.fsencode(name)[: -len(".json")][:100])  # there must be room for more in its names
    return Command(stem, "", {}, stem + ".json")


def _parse(name: str, data: bytes, taker: str) -> Command:
    """Read a letter; ValueError: why it can't be a command, Refuse: it is for another attempt."""
    command = _unopened(name)
    if not command.id:
        return command._replace(args=loads(data or b"{}"))
    body = loads(data)
    op, args, attempt = body.get("op"), body.get("args", {}), body.get("attempt")
    if not isinstance(op, str) or not isinstance(args, dict):
        raise ValueError('wanted {"op": "name", "args": {...}}')  # noqa: TRY004 (the data is wrong, not the caller)
    if attempt not in (None, taker):
        raise Refuse(f"it is meant for attempt {attempt}, and this is {taker}")
    return command._replace(op=op, args=args)


def _numbered(directory: str, name: str) -> Iterator[str]:
    """Yield where answers may lie: x.json and, as letters by hand share a name, x-2.json, x-3.json ..."""
    yield os.path.join(directory, name)
    for number in () if _BY_TOOL.fullmatch(name) else itertools.count(2):
        yield os.path.join(directory, f"{name[: -len('.json')]}-{number}.json")


def send_command(run_dir: RunDir, op: str, args: Mapping[str, Any], attempt: str | None = None) -> str:
    """Drop a letter for the training; return its file name, under which `read_ack` finds the answer.

    `attempt` is the only one that may take it, such as `1-r0`; None: whichever there is. ValueError if the
    command is too large, OSError if it could not be written durably.
    """
    letter = {"v": WIRE_VERSION, "op": op, "args": args, **({} if attempt is None else {"attempt": attempt})}
    if len(dumps(letter)) > COMMAND_BYTES:
        raise ValueError(f"the command {op!r} {_UNFIT[errno.EFBIG][3:]}")
    make_directory(run_dir.commands)
    number = 0
    claimed = [run_dir.attempt(name).claimed for name in run_dir.attempt_names()]
    for directory in (run_dir.commands, run_dir.ack, *claimed):
        with contextlib.suppress(FileNotFoundError):
            number = max([number, *(_place(name)[0] for name in os.listdir(directory))])
    name = f"{min(number + 1, 10**18 - 1):08d}-{os.urandom(8).hex()}.json"
    create_record(os.path.join(run_dir.commands, name), letter)
    return name


def read_ack(run_dir: RunDir, name: str) -> Record | None:
    """Return what became of a letter, None as long as nobody answered: then it may be sent again as it is."""
    return read_record(os.path.join(run_dir.ack, name))


def announce(attempt: AttemptDir, ops: Iterable[str]) -> None:
    """Say which ops a loop in this process executes: supervisor and `check_commands` leave them to it.

    Best said before the supervisor looks first, a second after the start; no ops once the loop has ended.
    """
    _announced[attempt.path] = frozenset(ops)
    _write_handles(attempt, ops)


_announced: dict[str, frozenset[str]] = {}  # by attempt


def _write_handles(attempt: AttemptDir, ops: Iterable[str]) -> None:
    handles = os.path.join(attempt.rank(0), "handles.json")
    make_directory(os.path.dirname(handles))
    write_record(handles, {"ops": sorted(ops)}, durable=False)


# --- Two lines in a training loop ------------------------------------------------------------------


def report_progress(step: int, total: int | None = None, metrics: Mapping[str, Any] | None = None) -> None:
    """Say how far the training is; cheap enough for every step (written five times a second at most).

    Args:
        step: How many steps are finished. It is written as it is given, so that a loop that calls this at
            the end of its body, `for step in range(total)`, passes `step + 1`.
        total: How many there will be; the report of the last one is always written.
        metrics: Numbers, or what `float()` reads.
    """
    here = _here()
    if here is not None:
        here.report(int(step), None if total is None else int(total), metrics, time.monotonic())


def check_commands(handlers: Mapping[str, Handler] | None = None) -> list[Command]:
    """Execute waiting commands and return them; cheap enough for every step (looks once a second).

    Args:
        handlers: What to call for which op. Its return value, if it is JSON, stands in the
            acknowledgement; its exception makes the command `failed`, and the training goes on.
            Without a handler `graceful_stop` becomes a SIGTERM, and other ops are `unsupported`.
    """
    here = _here()
    return here.check(handlers or {}, time.monotonic()) if here is not None else []


class _Here:
    """What this process is to its run, found from the environment at the first call."""

    def __init__(self, attempt: AttemptDir) -> None:
        rank = os.environ.get("RANK", "0")  # torchrun's; of several processes only one may be a writer
        self.rank = int(rank) if rank.isdigit() else 0
        self._progress = Progress(attempt, os.urandom(16).hex(), self.rank)
        self._mailbox = Mailbox(attempt, lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: self._step)
        self._attempt = attempt
        self._poll_s = seconds("ALCHEMY_COMMAND_POLL_S", COMMAND_POLL_S)
        self._ops: set[str] | None = None
        self._step: int | None = None
        self._reported = self._polled = -math.inf

    def report(self, step: int, total: int | None, metrics: Mapping[str, Any] | None, now: float) -> None:
        self._step = step
        last = total is not None and step >= total
        if last or now - self._reported >= PROGRESS_S:
            self._reported = now
            self._progress.report(step, total, metrics, now)

    def check(self, handlers: Mapping[str, Handler], now: float) -> list[Command]:
        if self.rank or now - self._polled < self._poll_s:
            return []
        leave = _announced.get(self._attempt.path, frozenset())
        self._polled, ops = now, {*handlers, *leave}
        if ops != self._ops:  # so that the wrapper leaves these to us
            self._ops = ops
            with contextlib.suppress(OSError):
                _write_handles(self._attempt, ops)
        return self._mailbox.poll(handlers, leave)


def _here() -> _Here | None:
    return _find_here(*(os.environ.get(name, "") for name in (TASK_ID, JOB_DIR, ATTEMPT)))


@functools.lru_cache
def _find_here(task_id: str, job_dir: str, name: str) -> _Here | None:
    if not task_id:
        return None
    try:
        run = RunDir(job_dir or os.path.join(".alchemy", "jobs", task_id))
        attempt = run.attempt(name) if name else run.latest()
        if attempt is not None:
            return _Here(attempt)
        why = "nobody started an attempt; `python alchemy_agent.py -- ...` does"
    except OSError as error:
        why = str(error)
    _warn(f"nothing is reported to {run.path}: {why}")
    return None


def seconds(variable: str, default: float) -> float:
    """Return a number of seconds from the environment; ValueError if what stands there is none."""
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ValueError(f"{variable}={text!r}: a number of seconds is wanted, such as {default}")
    return value


# --- Supervisor: one parent, one child, no threads --------------------------------------------------

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGQUIT)
_KEPT = (*_FORWARDED, signal.SIGCHLD)
_SI_KERNEL = 0x80  # `si_code` of what no process sent


def supervise(child: Callable[[], int], attempt: AttemptDir, heartbeat_s: float | None = None) -> int:
    """Fork, run `child` there, keep the attempt's records until it ends; return how it ended.

    To be called from the main thread of a process without others. Signals go on to the child.
    The answer is the exit code, or minus the number of the signal that ended the child. What Python does
    at the end of a program (`atexit`) is left to `child`, which may as well become another program.
    OSError means that the child did not run: `start.json` could not be written, or no process be made.
    """
    beat_s = heartbeat_s or seconds("ALCHEMY_HEARTBEAT_S", HEARTBEAT_S)
    poll_s = seconds("ALCHEMY_COMMAND_POLL_S", COMMAND_POLL_S)
    heartbeat = Heartbeat(attempt, begin(attempt), beat_s)
    with _signals_kept() as mask:
        started = time.monotonic()
        pid = _fork(child, mask)
        mailbox = Mailbox(attempt, lambda: os.kill(pid, signal.SIGTERM), lambda: _last_step(attempt))
        chores = [(beat_s, heartbeat.beat), (poll_s, lambda: mailbox.poll({}, _childs_ops(attempt)))]
        status = _watch(pid, chores)
        duration = time.monotonic() - started
        try:
            finish(attempt, None if status < 0 else status, -status if status < 0 else None, duration)
        except OSError as error:
            _warn(f"{attempt.exit} could not be written: {error}")
    return status


def pass_on(status: int) -> int:
    """End as the child did: return its exit code, or die of the same signal."""
    if status >= 0:
        return status
    _flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler to reset
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status  # process 1 of a container doesn't die of signals: as a shell says it


@contextlib.contextmanager
def _signals_kept() -> Iterator[set[int]]:
    """Let signals wait for `sigtimedwait`, from before the fork on, so that none is lost; yield the old mask.

    One that comes after the child's end has nobody to go to, and must not take the receipt with it.
    """
    # Ignored, as some parents leave it to us, it would neither wake us nor leave us a status to read.
    ours = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)
    try:
        yield mask
    finally:
        while signal.sigtimedwait(_KEPT, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, ours or signal.SIG_DFL)


def _fork(child: Callable[[], int], mask: Iterable[int]) -> int:
    """Start a process that runs `child` under this signal mask and ends; return its id."""
    _flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = int(child())
    except BaseException:  # noqa: BLE001 (nothing may climb into the parent's frames)
        sys.excepthook(*sys.exc_info())
    finally:
        _flush()
        os._exit(pass_on(status) & 0xFF)


def _watch(pid: int, chores: list[tuple[float, Callable[[], Any]]]) -> int:
    now = time.monotonic()
    due = [now, now + chores[1][0]]  # a first heartbeat at once; the child may announce its handlers first
    while True:
        for index, (period, chore) in enumerate(chores):
            if now >= due[index]:
                chore()
                due[index] = now + period
        came = signal.sigtimedwait(_KEPT, max(0.0, min(due) - time.monotonic()))
        if came is not None and came.si_signo != signal.SIGCHLD and not _terminal_sent(came):
            os.kill(pid, came.si_signo)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        now = time.monotonic()


def _terminal_sent(came: signal.struct_siginfo) -> bool:
    """Whether this is Ctrl-C of a terminal, which reaches the child without us, being in the same group."""
    return came.si_signo in (signal.SIGINT, signal.SIGQUIT) and came.si_code == _SI_KERNEL


def _childs_ops(attempt: AttemptDir) -> list[str]:
    ops = (read_record(os.path.join(attempt.rank(0), "handles.json")) or {}).get("ops")
    return ops if isinstance(ops, list) else []


def _last_step(attempt: AttemptDir) -> int | None:
    return (read_record(os.path.join(attempt.rank(0), "progress.json")) or {}).get("step")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, broken, closed
            stream.flush()


# --- Wrapper: python alchemy_agent.py -- python train.py --------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run a command under supervision; return what it returns, die as it dies."""
    job_dir, interval_s, command = _arguments(sys.argv[1:] if argv is None else argv)
    if not job_dir and os.environ.get(TASK_ID) and os.environ.get(ATTEMPT):
        return _become(command)  # somebody above us supervises this attempt already
    try:
        attempt = _attempt_of(job_dir, command)
        os.environ.update(environment(attempt), PYTHONPATH=_python_path())
        return pass_on(supervise(lambda: _become(command), attempt, interval_s))
    except Duplicate as duplicate:
        _warn(f"{duplicate}; leaving it to that process")
        return 0
    except (OSError, ValueError) as error:
        _warn(f"{error}; nothing was started")
        return os.EX_CANTCREAT


def _arguments(argv: list[str]) -> tuple[str | None, float | None, list[str]]:
    import argparse  # only the wrapper needs it

    parser = argparse.ArgumentParser(
        prog="alchemy_agent",
        usage="python alchemy_agent.py [--job-dir DIR] [--interval SECONDS] -- COMMAND [ARGUMENT ...]",
        description="Run a command; write its heartbeat and take commands for it in a run directory.",
    )
    parser.add_argument("--job-dir", help="run directory (default: .alchemy/jobs/wrapped-<job id or uuid>)")
    parser.add_argument("--interval", type=float, help=f"seconds between beats (default: {HEARTBEAT_S:g})")
    end = argv.index("--") if "--" in argv else len(argv)
    options, command = parser.parse_args(argv[:end]), argv[end + 1 :]
    if not command:
        parser.error("a command is missing: put it after --")
    if options.interval is not None and not 0 < options.interval < math.inf:
        parser.error("--interval wants a positive number of seconds")
    return options.job_dir, options.interval, command


def _become(command: list[str]) -> int:
    """Become `command`, or return what a shell would: 127 if it isn't there, 126 if it can't run."""
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; a program expects the default
        signal.signal(signum, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 (argv, and no shell)
    except OSError as error:
        _warn(f"can't run {command[0]}: {error.strerror}")
        return 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126


def _attempt_of(job_dir: str | None, command: list[str]) -> AttemptDir:
    """Claim an attempt of the run that option or environment names, else of a run of our own."""
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    directory = job_dir or os.environ.get(JOB_DIR)
    description = {"argv": command, "cwd": os.getcwd()}
    if directory or os.environ.get(TASK_ID):
        run = RunDir(directory or os.path.join(".alchemy", "jobs", os.environ[TASK_ID]))
        make_directory(run.path)
        create_record(run.run_json, {"run": run.name, **description})
    else:
        run = _own_run(description, restarts)
        _warn(f"run directory {run.path}")
    latest = run.latest()
    k = latest.k if latest and restarts else next_claim(run, f"wrapper on {os.uname().nodename}")
    return claim_attempt(run, k, restarts)


def _own_run(description: Record, restarts: int) -> RunDir:
    """Make a run named after the Slurm job; further commands of the same job are numbered."""
    rank = os.environ.get("SLURM_PROCID") or "0"
    job = os.environ.get("SLURM_JOB_ID") or os.urandom(6).hex()
    name = f"wrapped-{job}" if rank == "0" else f"wrapped-{job}-rank{rank}"
    for number in itertools.count(1):
        run = RunDir(os.path.join(".alchemy", "jobs", name if number == 1 else f"{name}-{number}"))
        make_directory(os.path.dirname(run.path))
        try:
            os.mkdir(run.path, 0o700)
        except FileExistsError:
            there = read_record(run.run_json) or {}
            if restarts and there.get("argv") == description["argv"]:
                return run
            continue
        create_record(run.run_json, {"run": run.name, **description})
        return run
    raise AssertionError  # count() has no end


def _python_path() -> str:
    """Return PYTHONPATH with this file's directory last, so that the child can `import alchemy_agent`."""
    here, path = os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")
    # Installed, it is found anyway, and its neighbours may be wrong for the child's interpreter.
    if os.path.basename(here) in ("site-packages", "dist-packages"):
        return path
    return os.pathsep.join(filter(None, (path, here)))


# --- Scanner: the news of many runs at once ---------------------------------------------------------

_ONCE = ("start", "resume", "exit", "result", "close")
_MOVING = ("heartbeat", "progress")


class Scanner:
    """Reads what runs say, for a poller: two listings per run, and records only where they may be new."""

    def __init__(self, root: PathLike) -> None:
        self._jobs = os.path.join(os.path.abspath(root), "jobs")
        self._views: dict[str, _View] = {}

    def poll(self, run_ids: Iterable[str]) -> dict[str, Record]:
        """Return the news since the last poll, by run; a run without news is missing.

        Keys: `attempt` (a new highest one; all that was said before is void), `start`, `resume`, `exit`,
        `result`, `close` (once each), `heartbeat`, `progress` (when they moved), `problem` (this time the run
        could not be read, which says nothing about the run). All of it is JSON.
        """
        news: dict[str, Record] = {}
        for run in run_ids:
            view = self._views.get(run)
            if view is None:
                view = self._views[run] = _View(os.path.join(self._jobs, run))
            said = view.poll()
            if said:
                news[run] = said
        return news


class _View:
    """What the scanner knows of one run."""

    __slots__ = ("_attempts", "_key", "_last", "_missing", "_path")

    def __init__(self, path: str) -> None:
        self._attempts = os.path.join(path, "attempts")
        self._path = ""
        self._key = (0, 0)
        self._missing = set(_ONCE)
        self._last: dict[str, tuple[bytes, Any, Any]] = {}

    def poll(self) -> Record:
        news: Record = {}
        try:
            # A stale listing may show older attempts only, or none: the one that was told stays.
            key = max([self._key, *map(_numbers, os.listdir(self._attempts))])
            path = os.path.join(self._attempts, attempt_name(*key))
            present = os.listdir(path)
        except FileNotFoundError:
            return news  # not started, or not visible yet
        except OSError as error:
            return {"problem": f"{type(error).__name__}: {error}"}
        # From here on nothing raises: what is ticked off as told is told.
        if key > self._key:
            self._key, self._path, self._missing, self._last = key, path, set(_ONCE), {}
            news["attempt"] = os.path.basename(path)
        self._read_attempt(present, news)
        return news

    def _read_attempt(self, present: list[str], news: Record) -> None:
        running = "exit" in self._missing
        for name in [n for n in _ONCE if n in self._missing and n + ".json" in present]:
            record = read_record(os.path.join(self._path, name + ".json"))
            if record is not None:
                news[name] = record
                self._missing.discard(name)
        if running and "ranks" in present:  # and once more in the poll that finds the exit
            for name in _MOVING:
                self._read_moving(name, news)

    def _read_moving(self, name: str, news: Record) -> None:
        last, *known = self._last.get(name, (b"", None, -1))
        try:
            data = _read(f"{self._path}/ranks/0/{name}.json", RECORD_BYTES)
            record = loads(data) if data != last else {}
        except (OSError, ValueError):  # missing, torn, a stale handle: no news, and no loss of other news
            return
        incarnation, seq = record.get("incarnation"), record.get("seq")
        # A cache may show an older record after a newer one.
        if isinstance(seq, int) and (incarnation != known[0] or seq > known[1]):
            self._last[name] = (data, incarnation, seq)
            news[name] = record


if __name__ == "__main__":
    sys.exit(main())
