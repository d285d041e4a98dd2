"""The examples do what their first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.agentlab import eventually
from tests.support.sessions import run_pytest, run_python

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

pytest.importorskip("torch", reason="the examples need torch: pip install 'pytest-alchemy[examples]'")
pytest.importorskip(
    "sklearn", reason="the examples need scikit-learn: pip install 'pytest-alchemy[examples]'"
)


def _run(tmp_path: Path, *args: str) -> str:
    """Run the examples from the project's root, keeping runs elsewhere; return what pytest printed."""
    done = run_pytest(
        "-p", "no:cacheprovider", "examples/", f"--alchemy-root={tmp_path}", "-v", *args, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _verdicts(printed: str) -> Counter[str]:
    words = re.findall(r"ctx_scaling.py::train\[\S+\] (PASSED|XFAIL|FAILED|ERROR)", printed)
    return Counter(words)


def test_a_smoke_test_runs_every_example(tmp_path: Path) -> None:
    printed = _run(tmp_path, "--alchemy-max-steps=2")
    assert _verdicts(printed).total() == 9
    assert printed.count("test_digits_data.py::") == 6
    assert "resume.py::train[lr=0.01-seed=42] PASSED" in printed
    assert len(list((tmp_path / "jobs").iterdir())) == 10


def test_half_the_picture_is_refuted_and_the_whole_supported(tmp_path: Path) -> None:
    """The two cases nearest to each other; all nine are a long test."""
    printed = _run(tmp_path, "-k", "ctx_len>=32 and seed=789")
    assert _verdicts(printed) == {"XFAIL": 1, "PASSED": 1}


def test_a_training_that_is_killed_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    """As its first lines say, with fewer steps: killed twice, against once undisturbed."""
    copy = tmp_path / "resume.py"
    source = (EXAMPLES / "resume.py").read_text()
    copy.write_text(source.replace("STEPS = 3000", "STEPS = 1500"))
    command = ("-p", "no:cacheprovider", "resume.py", "-s")
    whole = run_pytest(*command, "--alchemy-root=whole", cwd=tmp_path).stdout
    for attempt in ("1-r0", "2-r0"):
        _run_until_saved(tmp_path, command, attempt)
    last = run_pytest(*command, "--alchemy-root=killed", cwd=tmp_path).stdout
    assert re.search(r"1500/1500 \(from \d+\)", last)
    told = re.compile(r"step 1500  accuracy \S+  weights \S+")
    assert told.findall(last) == told.findall(whole) != []


def _run_until_saved(directory: Path, command: Sequence[str], attempt: str) -> None:
    """Start pytest, and kill it as soon as this attempt has made a checkpoint of its own."""
    argv = [sys.executable, "-m", "pytest", *command, "--alchemy-root=killed"]
    with subprocess.Popen(argv, cwd=directory, stdout=subprocess.DEVNULL) as session:

        def has_saved() -> bool:
            assert session.poll() is None, "it ended too early"
            return any(directory.glob(f"killed/jobs/*/checkpoints/{attempt}/*/committed.json"))

        eventually(has_saved)
        session.kill()


@pytest.mark.long
def test_more_context_helps(tmp_path: Path) -> None:
    printed = _run(tmp_path)
    assert _verdicts(printed) == {"XFAIL": 6, "PASSED": 3}
    rows = re.findall(r"^ctx_len=(\d+)-seed=\d+ +(-?[\d.]+)", printed, re.MULTILINE)
    silhouettes: dict[int, list[float]] = {}
    for length, value in rows:
        silhouettes.setdefault(int(length), []).append(float(value))
    ascending = [silhouettes[length] for length in (16, 32, 64)]
    assert all(max(less) + 0.1 < min(more) for less, more in pairwise(ascending))


def test_the_experiment_is_a_plain_script_too(tmp_path: Path) -> None:
    """Without a framework it trains its first case and writes nothing."""
    copy = tmp_path / "ctx_scaling.py"
    source = (EXAMPLES / "ctx_scaling.py").read_text()
    copy.write_text(source.replace("total_steps=2_000", "total_steps=20"))
    done = run_python("-B", "ctx_scaling.py", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == [copy]


def test_the_figures_told_are_those_found(tmp_path: Path) -> None:
    """One case of the table in the first lines, within what another kind of CPU may round."""
    _run(tmp_path, "-k", "ctx_len=64 and seed=42")
    [result] = tmp_path.glob("jobs/*/attempts/1-r0/result.json")
    found = re.search(r'"silhouette":([\d.]+)', result.read_text())
    told = re.search(r"^ +64 +([\d.]+)", (EXAMPLES / "ctx_scaling.py").read_text(), re.MULTILINE)
    assert found is not None
    assert told is not None
    assert float(found[1]) == pytest.approx(float(told[1]), abs=0.03)


def test_the_readme_lists_every_example() -> None:
    listed = set(re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
