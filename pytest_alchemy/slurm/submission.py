"""sbatch: the script, the arguments, and what its answer means.

Nothing a user typed becomes shell text or an `#SBATCH` line. The script is constant but for the
profile's setup lines, which are trusted; everything else travels as arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from alchemy.errors import ConfigurationError
from pytest_alchemy.slurm.squeue import JobId

if TYPE_CHECKING:
    from alchemy.resources import Resources
    from pytest_alchemy.transport import Completed

__all__ = [
    "DEFAULT_MAX_ARRAY_SIZE",
    "Accepted",
    "Answer",
    "Refused",
    "Submission",
    "Unclear",
    "cancel_by_name",
    "cancel_command",
    "check_option",
    "check_path",
    "chunked",
    "output_path",
    "read_answer",
    "read_max_array_size",
    "sbatch_command",
    "script",
    "submission_key",
    "warning_s",
]

DEFAULT_MAX_ARRAY_SIZE = 1001
"""Slurm's own default: tasks in one array."""

_SCRIPT = """\
#!/bin/bash
# Written by pytest-alchemy. Arguments: PYTHON SDK_DIRECTORY SUBMISSION_DIRECTORY [fresh]
alchemy_python=$1 alchemy_sdk=$2 alchemy_submission=$3
# The warning before the time limit is for the training; until it listens, a warning must not end the job.
trap '' USR1
if [ "${{4-}}" = fresh ]; then export ALCHEMY_FRESH=1; fi
# A setup line such as `source activate` must not see our arguments.
shift $#
{setup}# When the time limit comes, in seconds since 1970. Before 23.02 Slurm says so only if it is asked.
ALCHEMY_END_TIME=${{SLURM_JOB_END_TIME-}}
if [ -z "$ALCHEMY_END_TIME" ] && [ -n "${{SLURM_JOB_ID-}}" ]; then
    while read -r alchemy_job alchemy_end; do
        if [ "$alchemy_job" = "$SLURM_JOB_ID" ]; then ALCHEMY_END_TIME=$alchemy_end; fi
    done < <(env -u SLURM_CLUSTERS SLURM_TIME_FORMAT=%s \
        timeout 5 squeue --noheader --jobs="$SLURM_JOB_ID" --format='%A %e' 2>/dev/null)
fi
export ALCHEMY_END_TIME
export PYTHONPATH="$alchemy_sdk${{PYTHONPATH:+:$PYTHONPATH}}"
exec "$alchemy_python" -m alchemy.job "$alchemy_submission"
"""

_OURS = frozenset(
    {
        "account", "array", "chdir", "cpus-per-task", "error", "gres", "help", "hold", "input", "job-name",
        "kill-on-invalid-dep", "mem", "nodes", "no-requeue", "open-mode", "output", "parsable", "partition",
        "quiet", "signal", "test-only", "time", "usage", "verbose", "version", "wait", "wrap",
    }
)  # fmt: skip
_AS_RESOURCE = {
    "account": "account",
    "cpus-per-task": "cpus",
    "gres": "gpus",
    "mem": "mem",
    "nodes": "nodes",
    "partition": "partition",
    "time": "time",
}
_OPTION = re.compile(r"--([a-z][a-z0-9-]+)(?:=([^\x00-\x1f\x7f]+))?")
_LONGEST_WARNING_S = 65535
"""More of it sbatch refuses."""
_NOT_IN_A_PATH = re.compile(r"[\x00-\x1f\x7f\\:]")
_JOB_ID = re.compile(r"(\d+)(?:;([A-Za-z0-9_.-]+))?")
_MAX_ARRAY_SIZE = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)
_AMBIGUOUS = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Zero Bytes were transmitted",
    "Communication connection failure",
    "Unexpected message received",
    "Transport endpoint is not connected",
    "Connection reset",
    "Connection timed out",
    "Rate limit exceeded",
    "temporarily unable to accept job",
)
"""sbatch's words after which the job may exist all the same, or may be tried again."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submission:
    """One call of sbatch: an array of runs with equal wishes."""

    key: str
    """Name of the job and of its directory, unique for ever."""
    directory: str
    """`submissions/<key>` below the root."""
    tasks: int
    limit: int | None
    """How many tasks may run at a time."""
    resources: Resources
    options: tuple[str, ...]
    """Further options of sbatch from the profile, one `--key=value` each."""
    python: str
    sdk: str
    """Directory of our staged SDK."""
    warning_s: int | None = None
    """How long before its time limit a job is warned."""
    fresh: bool = False
    """Whether the runs start over where they could go on."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """sbatch said which job it made."""

    job: JobId


@dataclass(frozen=True, slots=True)
class Refused:
    """sbatch said no; nothing was submitted."""

    words: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """The job may exist: only its name can tell."""

    words: str


Answer: TypeAlias = "Accepted | Refused | Unclear"


def submission_key(session: str, number: int, token: str) -> str:
    """Return a name for the `number`-th submission of a session; `token` is random."""
    return f"al-{session}-{number}-{token}"


def warning_s(wished_s: float, limit_min: float | None) -> int:
    """Return how long before its time limit a job is warned: as wished, but at most a quarter of the limit.

    Slurm looks at limits every half minute and warns up to a minute too early rather than too late, so a
    short job would be warned as it starts.

    Args:
        wished_s: What the site wants, in seconds.
        limit_min: The time limit in minutes; None where it is left to the site.
    """
    quarter_s = math.inf if limit_min is None else limit_min * 60 / 4
    return max(1, math.floor(min(wished_s, quarter_s, _LONGEST_WARNING_S)))


def script(setup: Iterable[str] = ()) -> bytes:
    """Return the batch script with the profile's trusted setup lines."""
    return _SCRIPT.format(setup="".join(f"{line}\n" for line in setup)).encode()


def sbatch_command(submission: Submission) -> list[str]:
    """Return the arguments that submit; the script is `script.sh` in the submission's directory."""
    limit = f"%{submission.limit}" if submission.limit else ""
    # To the batch shell only, which has become our supervisor and passes it on.
    warning = [] if submission.warning_s is None else [f"--signal=B:USR1@{submission.warning_s}"]
    return [
        "sbatch",
        "--parsable",
        "--no-requeue",
        "--open-mode=append",
        "--kill-on-invalid-dep=yes",
        *warning,
        f"--job-name={submission.key}",
        f"--chdir={submission.directory}",
        f"--output={output_path(submission.directory.replace('%', '%%'), '%a')}",
        f"--array=0-{submission.tasks - 1}{limit}",
        *_resource_options(submission.resources),
        *submission.options,
        f"{submission.directory}/script.sh",
        submission.python,
        submission.sdk,
        submission.directory,
        *(["fresh"] if submission.fresh else []),
    ]


def output_path(directory: str, index: int | str) -> str:
    """Return where Slurm puts what a task prints before and outside our attempt."""
    return f"{directory}/slurm-{index}.out"


def read_answer(completed: Completed) -> Answer:
    """Read what sbatch said. An id on stdout counts whatever the exit code (it may come before a kill)."""
    for line in reversed(completed.stdout.splitlines()):
        if match := _JOB_ID.fullmatch(line.strip()):
            return Accepted(JobId(match[1], match[2]))
    words = completed.words
    if not completed.returncode or any(sign in words for sign in _AMBIGUOUS):
        return Unclear(words or "sbatch answered nothing")
    return Refused(words)


def read_max_array_size(config: str) -> int:
    """Read `scontrol show config`; Slurm's default where it does not say. 0 means: no arrays."""
    match = _MAX_ARRAY_SIZE.search(config)
    return int(match[1]) if match else DEFAULT_MAX_ARRAY_SIZE


def cancel_command(job: JobId, indices: Iterable[int] | None, *, pending_only: bool = False) -> list[str]:
    """Return the command that ends an array, or (with `indices`) some of its tasks.

    `scancel --state=PENDING 12_3` ends every waiting task of array 12, not only the third (seen on 22.05):
    the filter goes with whole arrays only, and tasks are named without it.
    """
    cluster = [f"--clusters={job.cluster}"] if job.cluster else []
    if indices is None:
        return ["scancel", *cluster, *(["--state=PENDING"] if pending_only else []), job.number]
    tasks = ",".join(f"{each.start}-{each.stop - 1}" for each in _joined(indices))
    return ["scancel", *cluster, f"{job.number}_[{tasks}]"]


def cancel_by_name(key: str, *, pending_only: bool = False) -> list[str]:
    """Return the command that ends a submission of ours whose id is not known."""
    return ["scancel", "--me", f"--name={key}", *(["--state=PENDING"] if pending_only else [])]


def chunked(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split into arrays that Slurm accepts, of at most `size` tasks."""
    return (items[start : start + size] for start in range(0, len(items), size))


def check_path(path: str, what: str) -> None:
    r"""Refuse a path that Slurm would read as something else.

    Raises:
        ConfigurationError: It is relative, or holds a control character, a backslash (which switches the
            `%` patterns of `--output` off) or a colon (which PYTHONPATH takes for the end of it).
    """
    if not path.startswith("/"):
        raise ConfigurationError(f"{what} must be an absolute path, not {path!r}")
    if bad := _NOT_IN_A_PATH.search(path):
        raise ConfigurationError(
            f"{what} can't hold {bad[0]!r}, which Slurm or Python would misread: {path!r}"
        )


def check_option(option: str, where: str) -> str:
    """Check a further option of sbatch.

    Raises:
        ConfigurationError: It is not of the form `--key=value`, or it belongs to pytest-alchemy.
    """
    match = _OPTION.fullmatch(option)
    if not match:
        raise ConfigurationError(f"{where}: {option!r} is not an option of sbatch of the form --key=value")
    # sbatch accepts an unambiguous beginning for the whole, so `--arr` would be our `--array`.
    taken = sorted(name for name in _OURS if name.startswith(match[1]))
    if taken:
        key = _AS_RESOURCE.get(taken[0])
        advice = f"say it as resource {key!r}" if key else "pytest-alchemy sets it itself"
        if taken[0] == "signal":
            advice += ", how long before the time limit by warn_s of the profile's patience"
        raise ConfigurationError(f"{where}: {option!r} can't be an extra option of sbatch: {advice}")
    return option


def _resource_options(resources: Resources) -> list[str]:
    wishes = {
        "nodes": resources.nodes,
        "gres": None if resources.gpus is None else f"gpu:{resources.gpus}",
        "cpus-per-task": resources.cpus,
        "mem": resources.mem,
        "time": resources.time,
        "partition": resources.partition,
        "account": resources.account,
    }
    return [f"--{name}={value}" for name, value in wishes.items() if value is not None]


def _joined(indices: Iterable[int]) -> list[range]:
    """Join neighbours: 0, 1, 2, 5 becomes 0-2 and 5."""
    joined: list[range] = []
    for index in sorted(set(indices)):
        if joined and joined[-1].stop == index:
            joined[-1] = range(joined[-1].start, index + 1)
        else:
            joined.append(range(index, index + 1))
    return joined
