"""The edge to sbatch: checks, writes down what is about to happen, submits, writes down the answer."""

from __future__ import annotations

import hashlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alchemy.errors import ConfigurationError
from pytest_alchemy.profile import effective, read_minutes
from pytest_alchemy.slurm.receipts import run_directory
from pytest_alchemy.slurm.staging import stage
from pytest_alchemy.slurm.submission import (
    DEFAULT_MAX_ARRAY_SIZE,
    Accepted,
    Answer,
    Refused,
    Submission,
    check_path,
    chunked,
    read_answer,
    read_max_array_size,
    sbatch_command,
    script,
    submission_key,
    warning_s,
)
from pytest_alchemy.transport import TransportError

if TYPE_CHECKING:
    from alchemy.resources import Resources
    from pytest_alchemy.backends import Plan
    from pytest_alchemy.slurm.settings import SlurmSettings
    from pytest_alchemy.transport import Completed, Transport

__all__ = ["Batch", "Prepared", "Sent", "Submitter"]

_PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
_WHICH = ("/bin/sh", "-c", 'for name; do command -v "$name" >/dev/null || echo "$name"; done', "sh")
"""Prints those of its arguments that are no program. (`sbatch --version` takes 30 s without a slurm.conf.)"""
_WRITERS = 8
"""Threads that write run directories: on a network file system each file is a wait, not work."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs that go into one array."""

    plans: tuple[Plan, ...]
    resources: Resources


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that is written down and can be handed to sbatch."""

    key: str
    directory: str
    """`submissions/<key>` below the root."""
    claims: tuple[tuple[str, int], ...]
    """Run id and submission number, by array index."""
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch that was handed to sbatch."""

    key: str
    claims: tuple[tuple[str, int], ...]
    answer: Answer
    trouble: str | None = None
    """Why the answer could not be written down."""


class Submitter:
    """Turns plans into job arrays."""

    def __init__(self, settings: SlurmSettings, transport: Transport) -> None:
        self._settings = settings
        self._transport = transport
        self._root = str(settings.root)
        self._array_size = DEFAULT_MAX_ARRAY_SIZE
        self._number = 0

    def check(self, plans: Sequence[Plan]) -> None:
        """Find out what can be known to be wrong before anything is submitted.

        Raises:
            ConfigurationError: See the message.
        """
        profile = self._settings.profile
        if profile.host is not None:
            raise ConfigurationError(
                f"cluster {profile.name!r} names host {profile.host!r}, but submission over SSH is not there "
                "yet: run pytest on the login node, with a profile without host"
            )
        check_path(self._root, "the run root")
        if self._python.startswith("-") or not self._python.isprintable():
            raise ConfigurationError(
                f"cluster {profile.name!r}: python = {self._python!r} is not an interpreter"
            )
        for plan in plans:
            self._resources(plan)
        self._check_root()
        self._check_programs()

    def batches(self, plans: Sequence[Plan]) -> Iterator[Batch]:
        """Group runs of equal wishes, no group larger than an array may be."""
        groups: dict[Resources, list[Plan]] = {}
        for plan in plans:
            groups.setdefault(self._resources(plan), []).append(plan)
        for resources, group in groups.items():
            yield from (Batch(tuple(chunk), resources) for chunk in chunked(group, self._array_size))

    def prepare(self, batch: Batch) -> Prepared:
        """Write run directories, claims and the intent.

        Raises:
            TransportError: The files could not be written.
        """
        self._number += 1
        key = submission_key(self._settings.session, self._number, secrets.token_hex(3))
        submission = self._describe(key, batch)
        claims = self._claim(batch, key)
        command = tuple(sbatch_command(submission))
        self._write_intent(submission, _index(batch, claims), command)
        return Prepared(key, submission.directory, claims, command)

    def send(self, prepared: Prepared) -> Sent:
        """Submit and write the answer down. From here on there may be jobs, so nothing is raised."""
        try:
            completed = self._transport.run(prepared.command, timeout_s=self._settings.knobs.submit_s)
            answer = read_answer(completed)
        except TransportError as error:
            answer = Refused(str(error))  # sbatch did not even start
        return Sent(prepared.key, prepared.claims, answer, self._write_answer(prepared, answer))

    @property
    def _python(self) -> str:
        return self._settings.profile.python or sys.executable

    def _resources(self, plan: Plan) -> Resources:
        return effective(self._settings.profile, plan.resources, self._settings.command_line)

    def _check_root(self) -> None:
        try:
            self._transport.prepare(self._root)
            for directory in ("jobs", "submissions"):
                self._transport.mkdir(f"{self._root}/{directory}")
        except TransportError as error:
            raise ConfigurationError(
                f"the run root can't be written: {error}; choose another with --alchemy-root, on a file "
                "system that all nodes share"
            ) from error

    def _check_programs(self) -> None:
        missing = self._run(*_WHICH, *_PROGRAMS).stdout.split()
        if missing:
            raise ConfigurationError(
                f"{missing[0]} is not on PATH: the slurm backend needs Slurm's commands where pytest runs; "
                "start it on a login node of the cluster, or leave --alchemy-backend=slurm out"
            )
        config = self._run("scontrol", "show", "config")
        if config.returncode != 0:
            raise ConfigurationError(
                f"Slurm does not answer: `scontrol show config` said: {config.words or 'nothing in time'}"
            )
        self._array_size = read_max_array_size(config.stdout)
        if self._array_size == 0:
            raise ConfigurationError(
                "this Slurm allows no job arrays (MaxArraySize = 0), and the slurm backend submits nothing "
                "else: ask those who run the cluster to allow them"
            )

    def _run(self, *argv: str) -> Completed:
        try:
            return self._transport.run(argv, timeout_s=self._settings.knobs.command_s)
        except TransportError as error:
            raise ConfigurationError(f"Slurm's commands can't be run: {error}") from error

    def _describe(self, key: str, batch: Batch) -> Submission:
        limit = batch.resources.time
        return Submission(
            key=key,
            directory=f"{self._root}/submissions/{key}",
            tasks=len(batch.plans),
            limit=self._settings.max_jobs,
            resources=batch.resources,
            options=self._settings.profile.options,
            python=self._python,
            sdk=stage(self._transport, self._root),
            fresh=self._settings.fresh,
            warning_s=warning_s(self._settings.knobs.warn_s, read_minutes(limit) if limit else None),
        )

    def _claim(self, batch: Batch, key: str) -> tuple[tuple[str, int], ...]:
        def prepare(plan: Plan) -> tuple[str, int]:
            directory = run_directory(self._root, plan.spec.run)
            self._transport.mkdir(directory)
            # Another session may have written it: the run id stands for the same contents.
            self._transport.create(f"{directory}/run.json", plan.spec.to_record())
            return plan.spec.run, self._transport.claim(directory, key)

        with ThreadPoolExecutor(_WRITERS) as pool:
            return tuple(pool.map(prepare, batch.plans))

    def _write_intent(self, submission: Submission, index: Mapping[str, Any], command: Sequence[str]) -> None:
        text = script(self._settings.profile.setup)
        self._transport.mkdir(submission.directory)
        self._transport.put(f"{submission.directory}/script.sh", text)
        self._transport.create(f"{submission.directory}/index.json", index)
        self._transport.create(
            f"{submission.directory}/intent.json",
            {
                "key": submission.key,
                "session": self._settings.session,
                "command": list(command),
                "script_sha256": hashlib.sha256(text).hexdigest(),
                "time": time.time(),  # for people only
            },
        )

    def _write_answer(self, prepared: Prepared, answer: Answer) -> str | None:
        try:
            self._transport.create(f"{prepared.directory}/answer.json", _answer_record(answer))
        except TransportError as error:
            return f"sbatch's answer to {prepared.key} could not be written down: {error}"
        return None


def _index(batch: Batch, claims: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Say which run is which task of the array, and where this session has the code of each."""
    codes = list(dict.fromkeys(plan.spec.code for plan in batch.plans))
    number = {code: place for place, code in enumerate(codes)}
    return {
        "codes": [code.to_record() for code in codes],
        "runs": [
            {"run": run, "attempt": k, "code": number[plan.spec.code]}
            for plan, (run, k) in zip(batch.plans, claims, strict=True)
        ],
    }


def _answer_record(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Accepted):
        return {"answer": "accepted", "job": answer.job.number, "cluster": answer.job.cluster}
    return {"answer": "refused" if isinstance(answer, Refused) else "unclear", "words": answer.words}
