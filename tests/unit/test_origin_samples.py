"""The origin's samples run as printed: indentation restored, free names supplied."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import alchemy_agent as agent
from alchemy.execution import execute
from alchemy.loading import find_task, fresh, load
from alchemy.recording.recorder import NullRecorder
from alchemy.runspec import CodeRef
from tests.support.agentlab import plain_environment
from tests.support.sdklab import make_spec

FREE_NAMES = """
import alchemy as al

class JEMAModel:
    def __init__(self, ctx_len):
        self.ctx_len = ctx_len

    def parameters(self):
        return []

    def state_dict(self):
        return {"ctx_len": self.ctx_len}

    def load_state_dict(self, state):
        self.ctx_len = state["ctx_len"]

class Adam:
    def __init__(self, parameters, lr=0.001):
        self.lr = lr

    def state_dict(self):
        return {"lr": self.lr}

    def load_state_dict(self, state):
        self.lr = state["lr"]

batch = None

def train_step(model, batch):
    return 0.5

def evaluate(model):
    return {"silhouette": model.ctx_len / 512, "nmi": 0.2}
"""

EXPERIMENT = """
exp = al.experiment("ctx_scaling",
    criteria={
        "silhouette": "> 0.3",
        "nmi": "> 0.1",
    },
    matrix={
        "ctx_len": [16, 32, 64, 128, 256, 512],
        "seed": [42, 123, 789],
    }
)

@exp.task(total_steps=500_000, eval_every=10_000)
def train(ctx):
    ctx.model = JEMAModel(ctx_len=ctx.param("ctx_len"))
    ctx.optimizer = Adam(ctx.model.parameters())
    for step in ctx.steps():
        loss = train_step(ctx.model, batch)
        ctx.log(loss=loss)
        if ctx.should_eval():
            ctx.log_eval(evaluate(ctx.model))
"""

PARAMETER = """
import alchemy as al

lr = al.param("lr", default=1e-3)
print(lr)
"""


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(agent.TASK_ID, raising=False)


def test_the_experiment_has_eighteen_trials_and_each_is_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "origin_ctx_scaling.py"
    path.write_text(FREE_NAMES + EXPERIMENT)
    module = load(CodeRef(str(path), path.stem, (str(tmp_path),), str(tmp_path)))
    cases = module.exp.cases
    assert len(cases) == 18
    assert cases[0].id == "ctx_len=16-seed=42"
    assert [criterion.metric for criterion in module.train.criteria] == ["silhouette", "nmi"]
    for case in (cases[0], cases[-1]):
        spec = make_spec(path, case.params, experiment="ctx_scaling", total_steps=20_000, eval_every=10_000)
        with fresh(module.__name__, case.params) as new:
            result = execute(find_task(new, "ctx_scaling", "train"), spec, NullRecorder())
        assert result.evaluation is not None
        assert result.evaluation.step == 19_999
        assert result.evaluation.metrics["silhouette"] == case.params["ctx_len"] / 512
        assert result.metrics == {"loss": 0.5}


def test_the_experiment_trains_without_a_framework_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ctx_scaling.py"
    path.write_text(FREE_NAMES + EXPERIMENT + "\ntrain()\n")
    command = [sys.executable, "-B", str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=plain_environment(), capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert [each.name for each in tmp_path.iterdir()] == ["ctx_scaling.py"]


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        ({}, "0.001"),
        ({"ALCHEMY_PARAMS": '{"lr": 0.5}'}, "0.001"),
        ({"ALCHEMY_TASK_ID": "run-1", "ALCHEMY_PARAMS": '{"lr": 0.5}'}, "0.5"),
        ({"ALCHEMY_TASK_ID": "run-1", "ALCHEMY_PARAMS": '{"other": 0.5}'}, "0.001"),
    ],
)
def test_one_line_has_three_behaviours(tmp_path: Path, environment: dict[str, str], printed: str) -> None:
    path = tmp_path / "sample.py"
    path.write_text(PARAMETER)
    environment = plain_environment(**environment)
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == printed


def test_without_default_and_framework_it_crashes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text('import alchemy as al\nlr = al.param("lr")\nprint("trained")')
    done = subprocess.run(
        [sys.executable, str(path)], env=plain_environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "MissingParameter: nothing supplies parameter 'lr'" in done.stderr
