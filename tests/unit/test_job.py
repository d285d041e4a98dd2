"""On a node: one interpreter claims the attempt, and a fork of it runs the case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent as agent
from alchemy import job
from alchemy.result import Result
from alchemy.runspec import CodeRef, RunSpec
from tests.support.agentlab import eventually, plain_environment, record
from tests.support.sdklab import make_spec, read_rows

GOLDEN = Path(__file__).parents[1] / "data" / "wire" / "v1"
SOURCE = """
import os, sys
import alchemy as al
import beside

lr = al.param("lr", default=1e-3)
exp = al.experiment("demo", matrix={"lr": [0.5, 0.25]})

@exp.task(total_steps=3)
def train(ctx):
    print("lr", lr, "cwd", os.getcwd(), "argv", sys.argv, "name", __name__)
    print("to stderr", file=sys.stderr)
    for step in ctx.steps():
        ctx.log(loss=lr)
    ctx.log_eval(acc=beside.value)
"""


class Node:
    """A run root with one submission of two runs, and a way to start its tasks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.code = root / "code"
        self.code.mkdir(parents=True)
        (self.code / "beside.py").write_text("value = 3")
        self.submission = root / "submissions" / "key-1"
        self.submission.mkdir(parents=True)
        self.write_index([{"run": "run-a", "attempt": 1}, {"run": "run-b", "attempt": 1}])

    def write_index(self, runs: list[dict[str, Any]], *codes: Path) -> None:
        """Write the index of runs whose code is the first of `codes`, unless they name another."""
        paths = codes or (self.code / "demo_file.py",)
        records = [make_spec(path).code.to_record() for path in paths]
        runs = [{"code": 0, **entry} for entry in runs]
        agent.write_record(self.submission / "index.json", {"codes": records, "runs": runs})

    def write_run(self, run: str, source: str = SOURCE, **changes: Any) -> agent.RunDir:
        path = self.code / "demo_file.py"
        path.write_text(source)
        run_dir = agent.RunDir(self.root / "jobs" / run)
        Path(run_dir.path).mkdir(parents=True)
        spec = make_spec(path, {"lr": 0.25, "shape": (1, 2)}, run=run, **changes)
        agent.write_record(run_dir.run_json, spec.to_record())
        return run_dir

    def start(self, task: int = 0, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "alchemy.job", str(self.submission)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.root,
            env=plain_environment(SLURM_ARRAY_TASK_ID=str(task), **environ),
            start_new_session=True,
        )

    def run(self, task: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        with self.start(task, **environ) as process:
            output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "root")


def test_a_task_of_the_array_runs_its_case(node: Node) -> None:
    run_dir = node.write_run("run-b")
    done = node.run(task=1)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    attempt = run_dir.attempt("1-r0")
    result = Result.from_record(record(attempt.result))
    assert (result.steps, result.metrics, result.error) == (3, {"loss": 0.25}, None)
    assert result.evaluation is not None
    assert result.evaluation.metrics == {"acc": 3.0}
    assert record(attempt.exit)["code"] == 0
    assert record(run_dir.progress)["incarnation"] == record(attempt.start)["incarnation"]
    path = node.code / "demo_file.py"
    assert Path(attempt.stdout).read_text() == (
        f"lr 0.25 cwd {node.code} argv {[str(path)]} name demo_file\n"
    )
    assert Path(attempt.stderr).read_text() == "to stderr\n"


def test_each_run_finds_its_code_where_its_submission_says(node: Node, tmp_path: Path) -> None:
    """Another checkout of the same code has the same runs, and must not execute the first one's files."""
    run_dir = node.write_run("run-a")
    other = tmp_path / "other" / "demo_file.py"
    other.parent.mkdir()
    other.write_text(SOURCE)
    (other.parent / "beside.py").write_text("value = 4")
    node.write_index([{"run": "run-a", "attempt": 2, "code": 1}], node.code / "demo_file.py", other)
    assert node.run().returncode == 0
    result = Result.from_record(record(run_dir.attempt("2-r0").result))
    assert result.evaluation is not None
    assert result.evaluation.metrics == {"acc": 4.0}
    assert str(other.parent) in Path(run_dir.attempt("2-r0").stdout).read_text()


def test_the_golden_records_say_what_to_run() -> None:
    run, index = (record(GOLDEN / f"{name}.json") for name in ("run", "index"))
    code = CodeRef.from_record(index["codes"][index["runs"][1]["code"]])
    spec = RunSpec.from_record(run, code)
    assert spec.params["betas"] == (0.9, 0.999)
    assert {"v": 1, **spec.to_record()} == run
    assert code.to_record() == index["codes"][0]


def test_the_second_process_of_a_submission_leaves_before_any_user_code(node: Node) -> None:
    run_dir = node.write_run("run-a")
    assert node.run().returncode == 0
    again = node.run()
    assert again.returncode == 0
    assert again.stderr.startswith("alchemy: duplicate: attempt 1-r0 of run-a is taken")
    assert Path(run_dir.attempt("1-r0").stdout).read_text().count("\n") == 1


def test_a_job_that_slurm_restarted_is_another_attempt(node: Node) -> None:
    run_dir = node.write_run("run-a")
    assert node.run().returncode == 0
    assert node.run(SLURM_RESTART_COUNT="2").returncode == 0
    assert run_dir.attempt_names() == ["1-r0", "1-r2"]


def test_the_job_sees_its_run_and_its_parameters_by_environment(node: Node) -> None:
    source = SOURCE.replace("import beside", "import beside, json").replace(
        'print("to stderr", file=sys.stderr)',
        "print(json.dumps({k: v for k, v in os.environ.items() if 'ALCHEMY_' in k}), file=sys.stderr)",
    )
    run_dir = node.write_run("run-a", source)
    assert node.run().returncode == 0
    seen = json.loads(Path(run_dir.attempt("1-r0").stderr).read_text())
    assert json.loads(seen["ALCHEMY_PARAMS"]) == {"lr": 0.25, "shape": [1, 2]}
    assert (seen["ALCHEMY_TASK_ID"], seen["ALCHEMY_JOB_DIR"]) == ("run-a", run_dir.path)
    assert seen["ALCHEMY_ATTEMPT"] == "1-r0"


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("raise ValueError('bad luck')", "builtins.ValueError", "bad luck"),
        ("sys.exit(0)", "builtins.SystemExit", "called sys.exit(0)"),
        ("ctx.log(loss='x')", "alchemy.errors.ConfigurationError", "metric 'loss'"),
    ],
)
def test_a_task_that_fails_exits_with_1_and_says_why(node: Node, line: str, kind: str, message: str) -> None:
    run_dir = node.write_run("run-a", SOURCE.replace("ctx.log(loss=lr)", line))
    assert node.run().returncode == 1
    attempt = run_dir.attempt("1-r0")
    error = record(attempt.result)["error"]
    assert error["type"] == kind
    assert message in error["message"]
    shown = Path(attempt.stderr).read_text()
    assert f'File "{node.code}/demo_file.py", line 14, in train' in shown
    assert "alchemy/execution.py" not in shown


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("def broken(:", "invalid syntax"),
        ("import sys; sys.exit()", "sys.exit"),
        (SOURCE.replace("demo", "other"), "declares other::train when it is executed"),
    ],
)
def test_a_file_that_fails_leaves_a_result_too(node: Node, source: str, message: str) -> None:
    run_dir = node.write_run("run-a", source)
    assert node.run().returncode == 1
    result = Result.from_record(record(run_dir.attempt("1-r0").result))
    assert result.error is not None
    assert message in result.error.message
    assert (result.steps, result.total_steps) == (0, 3)


def test_a_signal_ends_the_case_and_its_rows_are_there(node: Node) -> None:
    source = SOURCE.replace("ctx.log(loss=lr)", "ctx.log(loss=lr); import time; time.sleep(600)")
    run_dir = node.write_run("run-a", source)
    attempt = run_dir.attempt("1-r0")
    with node.start() as process:
        eventually(lambda: Path(attempt.metrics).exists() and read_rows(attempt.metrics))
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert record(attempt.exit)["signal"] == signal.SIGTERM
    assert not Path(attempt.result).exists()
    assert [row["step"] for row in read_rows(attempt.metrics)] == [0]


def test_a_managed_training_that_is_asked_to_stop_leaves_with_a_status_of_its_own(node: Node) -> None:
    source = SOURCE.replace("for step", "ctx.walk = {}\n    for step")
    waiting = "import pathlib, time; pathlib.Path('held').touch(); time.sleep(0 if ctx.should_stop else 0.01)"
    source = source.replace(
        "ctx.log(loss=lr)", f"ctx.log(loss=lr)\n        while not ctx.should_stop: {waiting}"
    )
    run_dir = node.write_run("run-a", source)
    attempt = run_dir.attempt("1-r0")
    with node.start() as process:
        eventually((node.code / "held").exists)
        os.kill(process.pid, signal.SIGUSR1)
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert (record(attempt.exit)["code"], record(attempt.result)["status"]) == (75, "stopped")
    assert Path(attempt.stderr).read_text().endswith("alchemy: stopped by SIGUSR1\n")


def test_a_crash_of_the_interpreter_shows_where_it_was(node: Node) -> None:
    source = SOURCE.replace("ctx.log(loss=lr)", "os.kill(os.getpid(), 11)")
    run_dir = node.write_run("run-a", source)
    assert node.run().returncode == -signal.SIGSEGV
    shown = Path(run_dir.attempt("1-r0").stderr).read_text()
    assert "Segmentation fault" in shown
    assert "in train" in shown


def test_a_result_that_cant_be_written_is_a_trouble_of_the_disk(node: Node) -> None:
    blocked = "os.mkdir(os.environ['ALCHEMY_JOB_DIR'] + '/attempts/1-r0/result.json')"
    run_dir = node.write_run("run-a", SOURCE.replace("ctx.log(loss=lr)", "pass") + f"    {blocked}\n")
    assert node.run().returncode == job.EX_IOERR
    attempt = run_dir.attempt("1-r0")
    assert "result could not be written" in Path(attempt.stderr).read_text()
    assert record(attempt.exit)["code"] == job.EX_IOERR


def test_code_that_cant_be_seen_on_the_node_is_a_trouble_of_the_environment(node: Node) -> None:
    run_dir = node.write_run("run-a")
    (node.code / "demo_file.py").unlink()
    assert node.run().returncode == job.EX_CONFIG
    attempt = run_dir.attempt("1-r0")
    assert "the code can't be read" in Path(attempt.stderr).read_text()
    assert not Path(attempt.result).exists()


def unfit(node: Node, capsys: pytest.CaptureFixture[str], **environ: str) -> str:
    """Run the entry here, where it is expected to give up before it claims anything; return its words."""
    assert job.main([str(node.submission)], environ, patience_s=0) == job.EX_CONFIG
    assert not list(node.root.glob("jobs/*/attempts"))
    words = capsys.readouterr().err
    assert words.startswith("alchemy: ")
    assert words.count("\n") == 1
    return words


def test_without_its_files_nothing_is_claimed(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run.json can't be read" in unfit(node, capsys)
    (node.submission / "index.json").unlink()
    assert "index.json can't be read" in unfit(node, capsys)


@pytest.mark.parametrize(
    "entry",
    [
        {"run": "../x", "attempt": 1},
        {"run": ".x", "attempt": 1},
        {"run": "x"},
        {"run": "x", "attempt": 1, "code": 1},
    ],
)
def test_an_index_that_names_no_run_claims_nothing(
    node: Node, capsys: pytest.CaptureFixture[str], entry: dict[str, Any]
) -> None:
    node.write_index([entry])
    assert "index.json" in unfit(node, capsys)


def test_a_number_outside_of_the_index_claims_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run number 7" in unfit(node, capsys, SLURM_ARRAY_TASK_ID="7")
    assert "SLURM_ARRAY_TASK_ID='x'" in unfit(node, capsys, SLURM_ARRAY_TASK_ID="x")


def test_records_of_another_version_claim_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = node.write_run("run-a")
    record_of_later = record(run_dir.run_json) | {"v": 2}
    Path(run_dir.run_json).write_text(json.dumps(record_of_later))
    assert "of version 2 and this SDK reads 1" in unfit(node, capsys)


def test_a_run_of_another_kind_claims_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    Path(node.root / "jobs" / "run-a").mkdir(parents=True)
    agent.write_record(node.root / "jobs" / "run-a" / "run.json", {"run": "run-a", "argv": ["x"]})
    assert "does not say what to run" in unfit(node, capsys)


def test_without_a_submission_it_shows_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([]) == job.EX_CONFIG
    assert "usage: python -m alchemy.job SUBMISSION_DIR" in capsys.readouterr().err


def test_before_the_fork_neither_orjson_nor_anything_heavy_is_imported() -> None:
    heavy = ["orjson", "torch", "numpy", "logging"]
    program = f"import sys, alchemy.job; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
