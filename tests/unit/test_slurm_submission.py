"""sbatch: what is asked, and the three things its answer can mean."""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from alchemy.errors import ConfigurationError
from alchemy.resources import Resources
from pytest_alchemy.slurm.squeue import JobId
from pytest_alchemy.slurm.submission import (
    Accepted,
    Refused,
    Submission,
    Unclear,
    cancel_command,
    check_option,
    check_path,
    chunked,
    read_answer,
    read_max_array_size,
    sbatch_command,
    script,
    submission_key,
    warning_s,
)
from pytest_alchemy.transport import Completed
from tests.support.recorded import VERSIONS, recorded

EVERYTHING = Resources(nodes=2, gpus=1, cpus=4, mem="8G", time="1:00:00", partition="long", account="lab")
HOSTILE = [
    "a b",
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"',
    "a\n#SBATCH --time=1",
    "--wrap=x",
    "ü",
    "*",
]


def submission(**changes: object) -> Submission:
    given: dict[str, object] = {
        "key": "al-s-1-abc",
        "directory": "/root/submissions/al-s-1-abc",
        "tasks": 3,
        "limit": None,
        "resources": Resources(),
        "options": (),
        "python": "/usr/bin/python3",
        "sdk": "/root/sdk/123",
    }
    return Submission(**{**given, **changes})  # type: ignore[arg-type]


def test_only_we_retry_and_output_is_never_cut() -> None:
    command = sbatch_command(submission())
    assert {"--parsable", "--no-requeue", "--open-mode=append", "--kill-on-invalid-dep=yes"} <= set(command)


def test_script_and_arguments_come_last() -> None:
    assert sbatch_command(submission())[-4:] == [
        "/root/submissions/al-s-1-abc/script.sh",
        "/usr/bin/python3",
        "/root/sdk/123",
        "/root/submissions/al-s-1-abc",
    ]


def test_resources_become_options() -> None:
    options = set(sbatch_command(submission(resources=EVERYTHING)))
    assert {"--nodes=2", "--gres=gpu:1", "--cpus-per-task=4", "--mem=8G"} <= options
    assert {"--time=1:00:00", "--partition=long", "--account=lab"} <= options


def test_what_is_not_asked_for_is_left_to_the_site() -> None:
    options = " ".join(sbatch_command(submission()))
    assert not any(
        f"--{name}=" in options for name in ("nodes", "gres", "mem", "time", "partition", "account")
    )


def test_the_array_has_one_index_per_run_and_the_limit() -> None:
    assert "--array=0-2" in sbatch_command(submission())
    assert "--array=0-2%50" in sbatch_command(submission(limit=50))


def test_percent_signs_of_the_root_are_not_patterns_of_the_output() -> None:
    command = sbatch_command(submission(directory="/data/100%j/submissions/k"))
    assert "--output=/data/100%%j/submissions/k/slurm-%a.out" in command
    assert "--chdir=/data/100%j/submissions/k" in command


@pytest.mark.parametrize("hostile", HOSTILE)
def test_arguments_arrive_as_they_are_and_nothing_of_them_runs(hostile: str, tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    path.write_bytes(script())
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/sh\nprintf "%s\\n--\\n" "$@" "$PYTHONPATH"\n')
    spy.chmod(0o700)
    done = subprocess.run(
        ["/bin/bash", path, spy, hostile, hostile], cwd=tmp_path, capture_output=True, text=True, env={}
    )
    assert done.stdout.split("\n--\n") == ["-m", "alchemy.job", hostile, hostile, ""]
    assert not (tmp_path / "canary").exists()


def run_script(tmp_path: Path, job: str, *setup: str, arguments: Sequence[str] = (), **environ: str) -> str:
    """Run the script with a shell program in the interpreter's place; return what was printed."""
    (tmp_path / "script.sh").write_bytes(script(setup))
    (tmp_path / "job").write_text(f"#!/bin/bash\n{job}\n")
    (tmp_path / "job").chmod(0o700)
    command = ["/bin/bash", f"{tmp_path}/script.sh", f"{tmp_path}/job", "/sdk", "/dir", *arguments]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **environ}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True, timeout=30).stdout


def test_a_warning_before_anybody_listens_ends_nothing(tmp_path: Path) -> None:
    warn = "kill -USR1 $$"
    assert run_script(tmp_path, f"{warn}; echo still here", warn) == "still here\n"


@pytest.mark.parametrize(("fresh", "seen"), [(True, "1"), (False, "")])
def test_a_wish_to_start_over_reaches_the_job_and_not_its_setup(
    tmp_path: Path, fresh: bool, seen: str
) -> None:
    arguments = sbatch_command(submission(fresh=fresh))[-4:]
    assert (arguments[-1] == "fresh") is fresh
    arguments = ["fresh"] if fresh else []
    told = run_script(tmp_path, 'echo "$ALCHEMY_FRESH $*"', 'echo "setup: $*"', arguments=arguments)
    assert told == f"setup: \n{seen} -m alchemy.job /dir\n"


END_TIME = 'echo "$ALCHEMY_END_TIME"'


def answer(tmp_path: Path, words: str) -> None:
    """Put a squeue on PATH."""
    (tmp_path / "squeue").write_text(f"#!/bin/bash\n{words}\n")
    (tmp_path / "squeue").chmod(0o700)


def test_the_end_of_the_job_is_asked_from_an_old_slurm(tmp_path: Path) -> None:
    answer(tmp_path, 'echo "7 1795534000"; echo "8 1795534$#0$SLURM_TIME_FORMAT"; echo "9 NONE"')
    assert run_script(tmp_path, END_TIME, SLURM_JOB_ID="7") == "1795534000\n"
    assert run_script(tmp_path, END_TIME, SLURM_JOB_ID="8") == "179553430%s\n"
    assert run_script(tmp_path, END_TIME, SLURM_JOB_ID="9") == "NONE\n"


def test_a_newer_slurm_that_says_it_is_not_asked(tmp_path: Path) -> None:
    answer(tmp_path, f"touch {tmp_path}/asked")
    given = run_script(tmp_path, END_TIME, SLURM_JOB_ID="7", SLURM_JOB_END_TIME="1795534001")
    assert given == "1795534001\n"
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("words", ["exit 1", "echo slurm_load_jobs error; exit 1", "echo", "kill $$"])
@pytest.mark.parametrize("setup", ["set -euo pipefail", "PATH=/nowhere"])
def test_a_slurm_without_an_answer_fails_no_job_and_leaves_no_stale_end(
    tmp_path: Path, words: str, setup: str
) -> None:
    answer(tmp_path, words)
    assert run_script(tmp_path, END_TIME, setup, SLURM_JOB_ID="7", ALCHEMY_END_TIME="5") == "\n"
    assert run_script(tmp_path, END_TIME, setup, ALCHEMY_END_TIME="5") == "\n"


def test_a_job_is_warned_before_its_time_limit() -> None:
    assert "--signal=B:USR1@120" in sbatch_command(submission(warning_s=120))
    assert "--signal" not in " ".join(sbatch_command(submission()))


@pytest.mark.parametrize(
    ("wished_s", "limit_min", "expected_s"),
    [
        (120.0, None, 120),
        (120.0, 60.0, 120),
        (120.0, 8.0, 120),
        (120.0, 2.0, 30),
        (120.0, 1.0, 15),
        (120.0, math.inf, 120),
        (1e9, math.inf, 65535),
        (0.5, 60.0, 1),
    ],
)
def test_a_short_job_is_not_warned_as_it_starts(
    wished_s: float, limit_min: float | None, expected_s: int
) -> None:
    assert warning_s(wished_s, limit_min) == expected_s


def test_setup_lines_run_first_and_do_not_see_our_arguments(tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    path.write_bytes(script(('echo "setup sees: $*"', "export PYTHONPATH=/site")))
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/sh\necho "job sees: $PYTHONPATH $*"\n')
    spy.chmod(0o700)
    done = subprocess.run(["/bin/bash", path, spy, "/sdk", "/dir"], capture_output=True, text=True, env={})
    assert done.stdout == "setup sees: \njob sees: /sdk:/site -m alchemy.job /dir\n"


@pytest.mark.parametrize(
    ("stdout", "job"), [("123\n", JobId("123")), ("123;c2\n", JobId("123", "c2")), ("note\n7\n", JobId("7"))]
)
def test_an_id_is_an_id(stdout: str, job: JobId) -> None:
    assert read_answer(Completed(0, stdout, "sbatch: warning: x")) == Accepted(job)


@pytest.mark.parametrize("returncode", [1, None])
def test_an_id_counts_even_if_sbatch_failed_or_was_killed_afterwards(returncode: int | None) -> None:
    assert read_answer(Completed(returncode, "123\n", "sbatch: error: Socket timed out")) == Accepted(
        JobId("123")
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sbatch-bad-partition", "invalid partition specified: nope"),
        ("sbatch-bad-value", "Invalid --time specification"),
        ("sbatch-too-much-memory", "Memory specification can not be satisfied"),
        ("sbatch-array-too-large", "Invalid job array specification"),
        ("sbatch-unknown-option", "unrecognized option"),
    ],
)
def test_a_refusal_has_its_own_words(version: str, name: str, words: str) -> None:
    answer = read_answer(recorded(version, name))
    assert isinstance(answer, Refused)
    assert words in answer.words


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_acceptance(version: str) -> None:
    assert isinstance(read_answer(recorded(version, "sbatch-accepted")), Accepted)


@pytest.mark.parametrize(
    "completed",
    [
        Completed(None, "", ""),
        Completed(0, "", ""),
        Completed(0, "Submitted batch", ""),
        Completed(
            1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
        ),
        *(recorded(version, "sbatch-no-controller") for version in VERSIONS),
    ],
)
def test_anything_else_leaves_it_open_whether_there_is_a_job(completed: Completed) -> None:
    assert isinstance(read_answer(completed), Unclear)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_array_size_is_read_from_the_configuration(version: str) -> None:
    assert read_max_array_size(recorded(version, "scontrol-config").stdout) == 1001
    assert read_max_array_size("MaxArraySize            = 4000001\n") == 4000001
    assert read_max_array_size("") == 1001


def test_arrays_are_split_at_the_limit() -> None:
    assert [len(chunk) for chunk in chunked(range(2500), 1001)] == [1001, 1001, 498]
    assert list(chunked([], 10)) == []


def test_a_whole_array_is_cancelled_by_its_id() -> None:
    assert cancel_command(JobId("12"), None) == ["scancel", "12"]
    assert cancel_command(JobId("12", "c2"), None, pending_only=True) == [
        "scancel", "--clusters=c2", "--state=PENDING", "12",
    ]  # fmt: skip


def test_tasks_are_named_without_the_state_filter() -> None:
    """With it, scancel 22.05 would end every waiting task of the array."""
    assert cancel_command(JobId("12"), [4, 0, 1, 2], pending_only=True) == ["scancel", "12_[0-2,4-4]"]


@pytest.mark.parametrize("path", ["relative", "/a\nb", "/a\\b", "/a:b", "/a\x00b", ""])
def test_paths_that_slurm_or_python_would_misread_are_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="the run root"):
        check_path(path, "the run root")


@pytest.mark.parametrize("path", ["/a b/c", "/100%j", "/ü", "/it's", '/"', "/$HOME"])
def test_other_paths_are_taken_as_they_are(path: str) -> None:
    check_path(path, "the run root")


@pytest.mark.parametrize(
    "option", ["--qos=high", "--exclusive", "--mem-per-cpu=4G", "--constraint=a100&ib", "--nodelist=n[1-4]"]
)
def test_a_site_may_add_options(option: str) -> None:
    assert check_option(option, "here") == option


@pytest.mark.parametrize(
    "option", ["qos=high", "-q high", "--qos high", "--qos=a\nb", "--=x", "--qos=", "; rm -rf"]
)
def test_an_extra_option_has_one_form(option: str) -> None:
    with pytest.raises(ConfigurationError, match="of the form --key=value"):
        check_option(option, "here")


@pytest.mark.parametrize(
    "option", ["--array=0-9", "--arr=0-9", "--wrap=x", "--job-name=x", "--wait", "--output=x", "--out=x"]
)
def test_our_own_options_can_not_be_replaced_nor_abbreviated(option: str) -> None:
    with pytest.raises(ConfigurationError, match="sets it itself"):
        check_option(option, "here")


def test_a_signal_as_an_option_points_to_the_patience() -> None:
    with pytest.raises(ConfigurationError, match=r"sets it itself.*warn_s of the profile's patience"):
        check_option("--signal=TERM@60", "here")


def test_an_option_that_is_a_resource_points_there() -> None:
    with pytest.raises(ConfigurationError, match="say it as resource 'time'"):
        check_option("--time=1", "here")


def test_a_key_is_safe_as_job_name_and_file_name() -> None:
    assert shlex.quote(submission_key("0f3a", 2, "c0ffee")) == "al-0f3a-2-c0ffee"
