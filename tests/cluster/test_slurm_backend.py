"""The Slurm backend on a real Slurm: arrays, ends of every kind, cancelling, and what a refusal says."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty

import pytest

from alchemy.errors import ConfigurationError
from alchemy.resources import Resources
from alchemy.runspec import CodeRef, RunSpec
from pytest_alchemy.backends import Plan, RemoteBackend
from pytest_alchemy.events import Event, Finished, Notice, Progressed, Queued, Started
from pytest_alchemy.outcome import Outcome, Reason
from pytest_alchemy.profile import Profile
from pytest_alchemy.slurm.backend import SlurmBackend
from pytest_alchemy.slurm.settings import Knobs, SlurmSettings
from pytest_alchemy.transport import Completed, LocalTransport
from tests.support.slurmcluster import SlurmCluster

KNOBS = Knobs(scan_slow_s=1.0, squeue_slow_s=2.0, grace_s=3.0)
"""Impatient: nothing here is on a network file system."""
PATIENCE_S = 60.0

EXPERIMENT = """
import os, signal, sys, time
import alchemy as al

exp = al.experiment("trial", matrix={"mode": ["ok", "crash", "kill", "leave", "sleep", "wait", "exit"]})

@exp.task(total_steps=3)
def train(ctx):
    mode = ctx.param("mode")
    print("mode is", mode, flush=True)
    print("and this is stderr", file=sys.stderr, flush=True)
    for step in ctx.steps():
        ctx.log(loss=1.0 / (step + 1))
        if mode == "crash":
            raise ValueError("the user's own")
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "leave":
            os._exit(5)
        if mode == "exit":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        if mode in ("sleep", "exit"):
            time.sleep(600)
        while mode == "wait" and not os.path.exists("go"):
            time.sleep(0.05)
    ctx.log_eval({"score": 0.5})
"""


@dataclass
class Trial:
    """A backend on the test cluster and what it told."""

    backend: SlurmBackend
    code: Path
    told: list[Event] = field(default_factory=list)

    def plan(self, mode: str, **resources: object) -> Plan:
        run = f"trial-{mode}-{uuid.uuid4().hex[:8]}"
        spec = RunSpec(
            run=run,
            experiment="trial",
            task="train",
            case=f"mode={mode}",
            params={"mode": mode},
            total_steps=3,
            eval_every=None,
            seed=1,
            seed_rng=True,
            fingerprint="f" * 64,
            code=CodeRef(str(self.code), self.code.stem, (str(self.code.parent),), str(self.code.parent)),
        )
        return Plan(spec, Resources.parse(resources, "test"))

    def start(self, *plans: Plan) -> None:
        self.backend.check(plans)
        self.backend.submit(plans)

    def until(self, condition: Callable[[Event], bool], patience_s: float = PATIENCE_S) -> Event:
        """Return the first event that fits, told already or still to come."""
        deadline = time.monotonic() + patience_s
        for event in self.told:
            if condition(event):
                return event
        while True:
            try:
                event = self.backend.events().get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                pytest.fail(f"nothing of that kind came in time; there were {self.told}")
            self.told.append(event)
            if condition(event):
                return event

    def until_started(self, plan: Plan) -> None:
        self.until(lambda event: isinstance(event, Started) and event.run == plan.spec.run)

    def outcomes(self, *plans: Plan, patience_s: float = PATIENCE_S) -> list[Outcome]:
        """Wait until all have finished."""
        found = []
        for plan in plans:

            def ends(event: Event, run: str = plan.spec.run) -> bool:
                return isinstance(event, Finished) and event.run == run

            event = self.until(ends, patience_s)
            assert isinstance(event, Finished)
            found.append(event.outcome)
        return found

    def of(self, plan: Plan) -> list[Event]:
        return [event for event in self.told if getattr(event, "run", None) == plan.spec.run]


MakeTrial = Callable[..., Trial]


@pytest.fixture
def make_trial(cluster: SlurmCluster, tmp_path: Path) -> Iterator[MakeTrial]:
    """Make backends on the shared cluster; whatever they submitted is gone afterwards."""
    code = tmp_path / "experiments" / "trial.py"
    code.parent.mkdir()
    code.write_text(EXPERIMENT, encoding="utf-8")
    made: list[Trial] = []

    def make(
        profile: Profile | None = None,
        *,
        root: str = "root",
        knobs: Knobs = KNOBS,
        on: SlurmCluster | None = None,
        transport: type[LocalTransport] = LocalTransport,
        max_jobs: int | None = None,
    ) -> Trial:
        directory = tmp_path / root
        settings = SlurmSettings(directory, profile or Profile(), max_jobs=max_jobs, knobs=knobs)
        backend = SlurmBackend(settings, transport(directory, (on or cluster).env))
        made.append(Trial(backend, code))
        return made[-1]

    yield make
    for trial in made:
        trial.backend.close()
    cluster.run(["scancel", "--me"])
    cluster.wait_until_empty()


@pytest.fixture
def trial(make_trial: MakeTrial) -> Trial:
    return make_trial()


def read(path: Path) -> dict[str, object]:
    record = json.loads(path.read_text("utf-8"))
    assert isinstance(record, dict)
    return record


def test_it_is_a_remote_backend(trial: Trial) -> None:
    assert isinstance(trial.backend, RemoteBackend)


def test_two_arrays_run_to_the_end_and_tell_their_story(trial: Trial) -> None:
    small, large = [trial.plan("ok") for _ in range(3)], [trial.plan("ok", cpus=2) for _ in range(2)]
    trial.start(*small, *large)
    assert [outcome.reason for outcome in trial.outcomes(*small, *large)] == [Reason.COMPLETED] * 5
    for plan in small + large:
        kinds = [type(event) for event in trial.of(plan)]
        assert kinds[0] is Queued
        assert kinds[-1] is Finished
        assert kinds.count(Started) == kinds.count(Finished) == 1
        assert kinds.index(Started) < kinds.index(Progressed)
    arrays = {event.job.split("_")[0] for event in trial.told if isinstance(event, Queued)}
    assert len(arrays) == 2


def test_an_outcome_has_result_logs_and_times(trial: Trial) -> None:
    plan = trial.plan("ok")
    trial.start(plan)
    (outcome,) = trial.outcomes(plan)
    assert outcome.result is not None
    assert outcome.result.evaluation is not None
    assert outcome.result.evaluation.metrics == {"score": 0.5}
    assert (outcome.stdout, outcome.stderr) == ("mode is ok\n", "and this is stderr\n")
    assert outcome.attempt == "1-r0"
    assert 0.0 < outcome.duration_s < PATIENCE_S
    assert 0.0 < outcome.queued_s < PATIENCE_S
    close = read(outcome.directory / "attempts/1-r0/close.json")
    assert (close["reason"], close["attempt"]) == ("completed", "1-r0")


def test_the_user_s_crash_arrives_with_its_traceback(trial: Trial) -> None:
    plan = trial.plan("crash")
    trial.start(plan)
    (outcome,) = trial.outcomes(plan)
    assert outcome.reason is Reason.USER_ERROR
    assert outcome.result is not None
    assert outcome.result.error is not None
    assert outcome.result.error.message == "the user's own"
    assert "trial.py" in outcome.result.error.traceback


@pytest.mark.parametrize(("mode", "words"), [("kill", "killed by SIGKILL"), ("leave", "exited with code 5")])
def test_an_end_without_a_result_is_decided_with_slurms_word(trial: Trial, mode: str, words: str) -> None:
    plan = trial.plan(mode)
    trial.start(plan)
    (outcome,) = trial.outcomes(plan)
    assert outcome.reason is Reason.USER_ERROR
    assert outcome.evidence.startswith(words)
    assert "Slurm says FAILED" in outcome.evidence


def test_a_second_submission_of_a_run_is_a_new_attempt(make_trial: MakeTrial) -> None:
    first = make_trial()
    plan = first.plan("ok")
    first.start(plan)
    first.outcomes(plan)
    again = make_trial()
    again.start(plan)
    (outcome,) = again.outcomes(plan)
    assert (outcome.reason, outcome.attempt) == (Reason.COMPLETED, "2-r0")


def test_cancelled_by_somebody_else(trial: Trial, cluster: SlurmCluster) -> None:
    plan, other = trial.plan("sleep"), trial.plan("sleep")
    trial.start(plan, other)
    trial.until_started(plan)
    cluster.run(["scancel", trial.backend.how_to_return()[-1].split()[-1]])
    outcomes = trial.outcomes(plan, other)
    assert [outcome.reason for outcome in outcomes] == [Reason.CANCELLED] * 2
    assert "CANCELLED" in outcomes[0].stderr  # Slurm's own line, written outside the attempt


def test_waiting_tasks_that_somebody_cancels_are_cancelled_not_lost(
    make_trial: MakeTrial, cluster: SlurmCluster
) -> None:
    trial = make_trial(max_jobs=1)
    first, second, third = (trial.plan("sleep") for _ in range(3))
    trial.start(first, second, third)
    trial.until_started(first)
    trial.until(lambda event: isinstance(event, Queued) and event.run == third.spec.run and event.why != "")
    job = next(event.job for event in trial.told if isinstance(event, Queued) and event.run == third.spec.run)
    cluster.run(["scancel", job])  # leaves no trace in squeue but its absence
    (outcome,) = trial.outcomes(third)
    assert (outcome.reason, outcome.attempt) == (Reason.CANCELLED, None)
    assert not any(isinstance(event, Finished) for event in [*trial.of(first), *trial.of(second)])


def test_cancel_of_what_waits_leaves_alone_what_runs(make_trial: MakeTrial) -> None:
    trial = make_trial(max_jobs=1)
    first, *waiting = (trial.plan("sleep") for _ in range(4))
    trial.start(first, *waiting)
    trial.until_started(first)
    trial.backend.cancel([plan.spec.run for plan in (first, *waiting)], pending_only=True)
    assert [outcome.reason for outcome in trial.outcomes(*waiting)] == [Reason.CANCELLED] * 3
    assert not any(isinstance(event, Finished) for event in trial.of(first))
    trial.backend.cancel([first.spec.run])
    (outcome,) = trial.outcomes(first)
    assert (outcome.reason, outcome.attempt) == (Reason.CANCELLED, "1-r0")


def test_cancel_of_one_waiting_task_spares_its_siblings(make_trial: MakeTrial) -> None:
    trial = make_trial(max_jobs=1)
    first, second, third = (trial.plan("sleep") for _ in range(3))
    trial.start(first, second, third)
    trial.until_started(first)
    trial.backend.cancel([second.spec.run], pending_only=True)
    (outcome,) = trial.outcomes(second)
    assert outcome.reason is Reason.CANCELLED
    trial.backend.cancel([first.spec.run])
    trial.until_started(third)


def test_a_refusal_is_told_for_each_run_in_sbatchs_words(trial: Trial) -> None:
    refused, fine = [trial.plan("ok", partition="nope") for _ in range(2)], trial.plan("ok")
    trial.start(*refused, fine)
    for outcome in trial.outcomes(*refused):
        assert outcome.reason is Reason.SUBMIT_REFUSED
        assert "invalid partition specified: nope" in outcome.evidence
    assert trial.outcomes(fine)[0].reason is Reason.COMPLETED


def test_an_interpreter_that_is_not_there_is_the_environments_fault(make_trial: MakeTrial) -> None:
    trial = make_trial(Profile(python="/nowhere/bin/python"))
    plan = trial.plan("ok")
    trial.start(plan)
    (outcome,) = trial.outcomes(plan)
    assert (outcome.reason, outcome.attempt) == (Reason.ENVIRONMENT, None)
    assert "/nowhere/bin/python" in outcome.stderr


def test_setup_lines_run_and_a_root_may_have_an_odd_name(make_trial: MakeTrial) -> None:
    odd = "odd %j '$(x)' röot"
    trial = make_trial(Profile(python="env", setup=("echo set up",)), root=odd)
    plan = trial.plan("ok")
    trial.start(plan)
    (outcome,) = trial.outcomes(plan)
    assert outcome.reason is Reason.ENVIRONMENT  # `env -m` is no Python
    assert outcome.stderr.startswith("set up\n")
    good = make_trial(Profile(setup=("echo set up",)), root=odd)
    plan = good.plan("ok")
    good.start(plan)
    assert good.outcomes(plan)[0].reason is Reason.COMPLETED


def test_gpus_are_asked_for(trial: Trial) -> None:
    plan = trial.plan("ok", gpus=1)
    trial.start(plan)
    (outcome,) = trial.outcomes(plan)
    assert outcome.attempt is not None
    assert read(outcome.directory / "attempts" / outcome.attempt / "start.json")["gpus"] in {"0", "1"}


def test_leaving_says_how_to_come_back_and_jobs_live_on(trial: Trial, cluster: SlurmCluster) -> None:
    plan = trial.plan("sleep")
    trial.start(plan)
    trial.until_started(plan)
    lines = trial.backend.how_to_return()
    trial.backend.close()
    assert "live on" in lines[0]
    squeue = next(line for line in lines if "squeue" in line).split(":", 1)[1].split()
    assert "al-session-1-" in cluster.run([*squeue, "--noheader", "--format=%j"]).stdout


def test_the_sdk_is_staged_once_and_jobs_leave_it_as_it_is(make_trial: MakeTrial) -> None:
    for _ in range(2):
        trial = make_trial()
        plan = trial.plan("ok")
        trial.start(plan)
        trial.outcomes(plan)
    (directory,) = (trial.backend.root / "sdk").iterdir()
    caches = list(directory.rglob("*.pyc"))
    assert caches
    assert all(path.stat().st_mtime <= directory.stat().st_ctime for path in caches)


def test_without_slurms_commands_check_says_what_to_do(tmp_path: Path, cluster: SlurmCluster) -> None:
    settings = SlurmSettings(tmp_path / "root")
    backend = SlurmBackend(settings, LocalTransport(settings.root, {**cluster.env, "PATH": str(tmp_path)}))
    with pytest.raises(ConfigurationError, match=r"sbatch is not on PATH.*login node"):
        backend.check([])


def test_a_controller_that_is_away_is_told_before_anything_is_submitted(
    tmp_path: Path, cluster: SlurmCluster
) -> None:
    settings = SlurmSettings(tmp_path / "root", knobs=replace(KNOBS, command_s=1.0))
    environ = {**cluster.env, "SLURM_CONF": str(tmp_path / "none.conf")}
    backend = SlurmBackend(settings, LocalTransport(settings.root, environ))
    with pytest.raises(ConfigurationError, match="Slurm does not answer"):
        backend.check([])


def test_a_controller_that_dies_is_told_once_and_files_go_on(
    make_cluster: Callable[..., SlurmCluster], make_trial: MakeTrial, tmp_path: Path
) -> None:
    own = make_cluster()
    trial = make_trial(on=own)
    first = trial.plan("wait")
    trial.start(first)
    trial.until_started(first)
    own.kill("slurmctld")
    complaint = trial.until(lambda event: isinstance(event, Notice))
    assert "squeue fails, jobs live on: slurm_load_jobs error: Unable to contact slurm" in str(complaint)
    assert not any(isinstance(event, Finished) for event in trial.told)
    (tmp_path / "experiments/go").touch()
    assert trial.outcomes(first)[0].reason is Reason.COMPLETED
    assert len([event for event in trial.told if isinstance(event, Notice)]) == 1


def test_a_node_that_fails_is_to_blame(
    make_cluster: Callable[..., SlurmCluster], make_trial: MakeTrial
) -> None:
    own = make_cluster()
    trial = make_trial(on=own)
    plan = trial.plan("sleep")
    trial.start(plan)
    trial.until_started(plan)
    for node in own.nodes:
        own.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"])
    (outcome,) = trial.outcomes(plan)
    assert (outcome.reason, outcome.attempt) == (Reason.NODE_FAILURE, "1-r0")


def test_a_training_that_exits_when_it_is_told_to_was_cancelled_all_the_same(trial: Trial) -> None:
    plan = trial.plan("exit")
    trial.start(plan)
    trial.until(lambda event: isinstance(event, Progressed) and event.run == plan.spec.run)
    assert trial.backend.cancel([plan.spec.run])
    (outcome,) = trial.outcomes(plan)
    assert outcome.reason is Reason.CANCELLED
    assert outcome.result is not None
    assert outcome.result.error is not None
    assert outcome.result.error.type == "builtins.SystemExit"


@pytest.mark.long
@pytest.mark.parametrize("mode", ["sleep", "exit"])
def test_a_time_limit_is_a_fact_of_its_own(trial: Trial, mode: str) -> None:
    plan = trial.plan(mode, time="1")
    trial.start(plan)
    trial.until_started(plan)
    (outcome,) = trial.outcomes(plan, patience_s=150.0)
    assert outcome.reason is Reason.TIMEOUT
    assert outcome.duration_s > 30.0


class Mumbling(LocalTransport):
    """sbatch's answer gets lost, after (or, if `deaf`, before) it did its work."""

    deaf = False

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        if argv[0] != "sbatch":
            return super().run(argv, timeout_s=timeout_s)
        if not self.deaf:
            super().run(argv, timeout_s=timeout_s)
        return Completed(None, "", "")


class Deaf(Mumbling):
    deaf = True


def test_a_submission_whose_answer_was_lost_is_found_by_its_name(make_trial: MakeTrial) -> None:
    trial = make_trial(transport=Mumbling)
    plans = [trial.plan("ok") for _ in range(2)]
    trial.start(*plans)
    assert [outcome.reason for outcome in trial.outcomes(*plans)] == [Reason.COMPLETED] * 2
    assert [outcome.attempt for outcome in trial.outcomes(*plans)] == ["1-r0"] * 2
    assert any(isinstance(event, Notice) and "looked up by its name" in event.text for event in trial.told)


def test_a_submission_that_never_arrived_is_given_up_in_the_end(make_trial: MakeTrial) -> None:
    trial = make_trial(transport=Deaf, knobs=replace(KNOBS, lookup_s=2.0))
    plan = trial.plan("ok")
    trial.start(plan)
    (outcome,) = trial.outcomes(plan)
    assert outcome.reason is Reason.INFRASTRUCTURE
    assert "no clear answer" in outcome.evidence


def test_notices_are_rare(trial: Trial) -> None:
    plan = trial.plan("ok")
    trial.start(plan)
    trial.outcomes(plan)
    assert not [event for event in trial.told if isinstance(event, Notice)]
