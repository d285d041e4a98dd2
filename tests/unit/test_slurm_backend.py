"""The backend without a cluster: real files, and a stand-in for Slurm's commands behind the transport."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import alchemy_agent
from alchemy.errors import ConfigurationError, InfrastructureError
from alchemy.resources import Resources
from alchemy.result import Result
from alchemy.runspec import CodeRef, RunSpec
from pytest_alchemy.backends import Plan
from pytest_alchemy.events import Event, Finished, Notice, Queued
from pytest_alchemy.outcome import Outcome, Reason
from pytest_alchemy.profile import Profile
from pytest_alchemy.slurm.backend import SlurmBackend
from pytest_alchemy.slurm.settings import Knobs, SlurmSettings
from pytest_alchemy.transport import Completed, LocalTransport, News, TransportError

KNOBS = Knobs(scan_fast_s=0.01, scan_slow_s=0.05, squeue_fast_s=0.02, squeue_slow_s=0.05, grace_s=0.1)
ACCEPT_ALL = {"sh": (0, ""), "scontrol": (0, "MaxArraySize = 3\n"), "squeue": (0, ""), "scancel": (0, "")}


class Scripted(LocalTransport):
    """Local files; Slurm's commands answer from a table, sbatch with ever new ids."""

    def __init__(self, root: Path, answers: Mapping[str, tuple[int, str]] = ACCEPT_ALL) -> None:
        super().__init__(root, {})
        self.answers = answers
        self.asked: list[list[str]] = []

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:  # noqa: ARG002
        self.asked.append(list(argv))
        program = Path(argv[0]).name
        if program == "sbatch" and program not in self.answers:
            return Completed(0, f"{len(self.calls('sbatch'))}\n", "")
        returncode, words = self.answers[program]
        return Completed(returncode, *(("", words) if returncode else (words, "")))

    def calls(self, program: str) -> list[list[str]]:
        return [argv for argv in self.asked if argv[0] == program]


@dataclass
class Stage:
    """A backend, and the hands that play the nodes."""

    root: Path
    transport: Scripted
    backend: SlurmBackend
    told: list[Event] = field(default_factory=list)

    def listen(self, until: Callable[[list[Event]], bool]) -> None:
        deadline = time.monotonic() + 30.0
        while not until(self.told):
            self.told.append(self.backend.events().get(timeout=max(0.0, deadline - time.monotonic())))

    def outcomes(self, *plans: Plan) -> list[Outcome]:
        def ended() -> dict[str, Outcome]:
            return {event.run: event.outcome for event in self.told if isinstance(event, Finished)}

        self.listen(lambda _: {plan.spec.run for plan in plans} <= set(ended()))
        return [ended()[plan.spec.run] for plan in plans]

    def notices(self) -> list[str]:
        return [event.text for event in self.told if isinstance(event, Notice)]

    def play(self, run: str, k: int = 1) -> None:
        """Do what a node does for a run that completes."""
        attempt = alchemy_agent.claim_attempt(alchemy_agent.RunDir(self.root / "jobs" / run), k, 0)
        alchemy_agent.begin(attempt)
        alchemy_agent.write_record(attempt.result, Result(1, 1, None, {}, 0.5).to_record())
        alchemy_agent.finish(attempt, 0, None, 0.75)


MakeStage = Callable[..., Stage]


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[MakeStage]:
    made: list[Stage] = []

    def make(
        transport: type[Scripted] = Scripted,
        answers: Mapping[str, tuple[int, str]] | None = None,
        **told: Any,
    ) -> Stage:
        root = told.pop("root", tmp_path / "root")
        hands = transport(root, {**ACCEPT_ALL, **(answers or {})})
        settings = SlurmSettings(root, knobs=told.pop("knobs", KNOBS), **told)
        made.append(Stage(root, hands, SlurmBackend(settings, hands)))
        return made[-1]

    yield make
    for stage in made:
        stage.backend.close()


def plan(run: str, at: str = "/", **resources: object) -> Plan:
    code = CodeRef(f"{at}x.py", "x", (at,), at)
    spec = RunSpec(run, "e", "t", "", {}, 1, None, 0, True, "f", code)
    return Plan(spec, Resources.parse(resources, "test"))


def records(stage: Stage, name: str) -> list[dict[str, Any]]:
    paths = sorted((stage.root / "submissions").glob(f"*/{name}"))
    return [json.loads(path.read_text("utf-8")) for path in paths]


def test_runs_of_equal_wishes_share_an_array_which_is_split_where_slurm_wants(make_stage: MakeStage) -> None:
    stage = make_stage()
    plans = [plan("a"), plan("b", cpus=2), plan("c"), plan("d"), plan("e")]
    stage.backend.check(plans)
    stage.backend.submit(plans)
    indices = [[entry["run"] for entry in record["runs"]] for record in records(stage, "index.json")]
    assert indices == [["a", "c", "d"], ["e"], ["b"]]
    queued = {event.run: event.job for event in drain(stage) if isinstance(event, Queued)}
    assert queued == {"a": "1_0", "c": "1_1", "d": "1_2", "e": "2_0", "b": "3_0"}


def drain(stage: Stage) -> list[Event]:
    stage.listen(lambda told: len([event for event in told if isinstance(event, Queued)]) >= 5)
    return stage.told


def test_what_is_about_to_happen_is_written_before_sbatch_runs(make_stage: MakeStage) -> None:
    class Curious(Scripted):
        seen: list[list[str]] = []  # noqa: RUF012

        def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
            if argv[0] == "sbatch":
                self.seen.append(sorted(path.name for path in Path(argv[-1]).iterdir()))
            return super().run(argv, timeout_s=timeout_s)

    stage = make_stage(Curious)
    stage.backend.submit([plan("a")])
    assert Curious.seen == [["index.json", "intent.json", "script.sh"]]
    (intent,) = records(stage, "intent.json")
    assert intent["command"] == stage.transport.calls("sbatch")[0]
    (answer,) = records(stage, "answer.json")
    assert (answer["answer"], answer["job"]) == ("accepted", "1")
    assert json.loads((stage.root / "jobs/a/run.json").read_text("utf-8"))["run"] == "a"


def test_a_run_that_is_submitted_again_takes_the_next_number(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.backend.submit([plan("a")])
    stage.play("a")
    stage.outcomes(plan("a"))
    again = make_stage()
    again.backend.submit([plan("a")])
    assert sorted(record["runs"][0]["attempt"] for record in records(again, "index.json")) == [1, 2]
    again.play("a", k=2)
    assert again.outcomes(plan("a"))[0].attempt == "2-r0"


def test_where_the_code_lies_is_said_by_each_submission_not_by_the_run(make_stage: MakeStage) -> None:
    first = make_stage()
    first.backend.submit([plan("a"), plan("b"), plan("c", at="/elsewhere/")])
    again = make_stage()
    again.backend.submit([plan("a", at="/checkout/")])
    found = []
    for index in records(again, "index.json"):
        found += [(each["run"], index["codes"][each["code"]]["path"]) for each in index["runs"]]
        assert len(index["codes"]) in (1, 2)
    assert sorted(found) == [
        ("a", "/checkout/x.py"), ("a", "/x.py"), ("b", "/x.py"), ("c", "/elsewhere/x.py"),
    ]  # fmt: skip
    assert "x.py" not in (first.root / "jobs/a/run.json").read_text("utf-8")


def test_files_alone_end_a_run_even_while_squeue_fails(make_stage: MakeStage) -> None:
    stage = make_stage(answers={"squeue": (1, "slurm_load_jobs error: Socket timed out")})
    stage.backend.submit([plan("a"), plan("b")])
    stage.listen(lambda _: bool(stage.notices()))
    stage.play("a")
    (outcome,) = stage.outcomes(plan("a"))
    assert (outcome.reason, outcome.duration_s) == (Reason.COMPLETED, 0.75)
    assert stage.notices() == ["squeue fails, jobs live on: slurm_load_jobs error: Socket timed out"]
    stage.transport.answers = ACCEPT_ALL
    stage.listen(lambda _: "squeue answers again" in stage.notices())
    stage.play("b")
    assert stage.outcomes(plan("b"))[0].reason is Reason.COMPLETED


def test_jobs_that_slurm_forgot_have_vanished_not_succeeded(make_stage: MakeStage) -> None:
    stage = make_stage(knobs=replace(KNOBS, vanish_s=0.3))
    stage.backend.submit([plan("a")])
    assert stage.outcomes(plan("a"))[0].reason is Reason.VANISHED


def test_directories_that_can_not_be_read_for_a_while_are_told_once(make_stage: MakeStage) -> None:
    class Blinking(Scripted):
        failures = 3

        def scan(self, runs: Sequence[str]) -> News:
            if self.failures:
                self.failures -= 1
                raise TransportError("Stale file handle")
            return super().scan(runs)

    stage = make_stage(Blinking)
    stage.backend.submit([plan("a")])
    stage.play("a")
    assert stage.outcomes(plan("a"))[0].reason is Reason.COMPLETED
    assert stage.notices() == [
        "run directories can't be read: Stale file handle",
        "run directories can be read again",
    ]


def test_what_could_be_read_of_a_run_counts_beside_what_could_not(make_stage: MakeStage) -> None:
    class Half(Scripted):
        def scan(self, runs: Sequence[str]) -> News:
            news = super().scan(runs)
            return {run: {**news.get(run, {}), "problem": "EIO: heartbeat.json"} for run in runs}

    stage = make_stage(Half)
    stage.backend.submit([plan("a")])
    stage.play("a")
    assert stage.outcomes(plan("a"))[0].reason is Reason.COMPLETED
    assert stage.notices() == ["a can't be read: EIO: heartbeat.json"]


def test_a_run_that_can_not_be_read_is_not_judged_meanwhile(make_stage: MakeStage) -> None:
    class Blind(Scripted):
        rounds = 0

        def scan(self, runs: Sequence[str]) -> News:
            self.rounds += 1
            return {run: {"problem": "EIO"} for run in runs} if self.rounds < 8 else super().scan(runs)

    stage = make_stage(Blind, knobs=replace(KNOBS, vanish_s=0.05))
    stage.backend.submit([plan("a")])
    stage.play("a")
    assert stage.outcomes(plan("a"))[0].reason is Reason.COMPLETED
    assert stage.notices() == ["a can't be read: EIO", "a can be read again"]


def test_a_run_that_another_session_took_over_is_fenced_and_its_receipts_are_left_alone(
    make_stage: MakeStage,
) -> None:
    stage = make_stage()
    stage.backend.submit([plan("a")])
    stage.play("a", k=2)
    (outcome,) = stage.outcomes(plan("a"))
    assert (outcome.reason, outcome.attempt) == (Reason.FENCED, None)
    assert "attempt 2-r0" in outcome.evidence
    assert not (stage.root / "jobs/a/attempts/2-r0/close.json").exists()


def test_a_fault_of_the_watcher_itself_ends_every_run_with_its_story(make_stage: MakeStage) -> None:
    class Broken(Scripted):
        def scan(self, runs: Sequence[str]) -> News:  # noqa: ARG002
            raise ZeroDivisionError("a bug")

    stage = make_stage(Broken)
    stage.backend.submit([plan("a"), plan("b")])
    for outcome in stage.outcomes(plan("a"), plan("b")):
        assert outcome.reason is Reason.INFRASTRUCTURE
        assert "ZeroDivisionError: a bug" in outcome.evidence


def test_what_can_not_be_written_down_is_not_submitted(make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage()
    (tmp_path / "root/jobs").mkdir(parents=True)
    (tmp_path / "root/jobs/a").write_text("in the way")
    stage.backend.submit([plan("a")])
    (outcome,) = stage.outcomes(plan("a"))
    assert outcome.reason is Reason.INFRASTRUCTURE
    assert "jobs/a" in outcome.evidence
    assert stage.transport.calls("sbatch") == []


def test_jobs_whose_number_can_not_be_written_down_are_watched_all_the_same(make_stage: MakeStage) -> None:
    class Full(Scripted):
        def create(self, path: str, record: Mapping[str, Any]) -> bool:
            if path.endswith("/answer.json"):
                raise TransportError(f"{path}: Disk quota exceeded")
            return super().create(path, record)

    stage = make_stage(Full)
    stage.backend.submit([plan("a"), plan("b")])
    stage.play("a")
    stage.play("b")
    assert [outcome.reason for outcome in stage.outcomes(plan("a"), plan("b"))] == [Reason.COMPLETED] * 2
    (notice,) = stage.notices()
    assert "answer.json: Disk quota exceeded" in notice


def test_the_watcher_survives_a_receipt_that_was_closed_by_somebody_else(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.backend.submit([plan("a")])
    run = alchemy_agent.RunDir(stage.root / "jobs/a")
    stage.play("a")
    stage.outcomes(plan("a"))
    latest = run.latest()
    assert latest is not None
    assert not alchemy_agent.conclude(latest, "lost", "another", "")
    record = alchemy_agent.read_record(latest.close)
    assert record is not None
    assert (record["reason"], record["by"]) == ("completed", "session")


class Interrupted(Scripted):
    """The user presses Ctrl-C while the first sbatch is at work."""

    def __init__(self, root: Path, answers: Mapping[str, tuple[int, str]] = ACCEPT_ALL) -> None:
        super().__init__(root, answers)
        self.go_on = threading.Event()

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        if argv[0] == "sbatch" and not self.calls("sbatch"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            self.go_on.wait(30.0)
        return super().run(argv, timeout_s=timeout_s)


def test_after_ctrl_c_nothing_more_is_submitted_and_what_is_under_way_is_named(make_stage: MakeStage) -> None:
    stage = make_stage(Interrupted)
    hands = stage.transport
    assert isinstance(hands, Interrupted)
    plans = [plan("a"), plan("b", cpus=2), plan("c", cpus=3)]
    with pytest.raises(KeyboardInterrupt):
        stage.backend.submit(plans)
    (key,) = [record["key"] for record in records(stage, "intent.json")]
    told = "\n".join(stage.backend.how_to_return())
    assert f"squeue --me --name={key}" in told
    assert f"scancel --me --name={key}" in told
    hands.go_on.set()
    for outcome in stage.outcomes(*plans[1:]):
        assert (outcome.reason, outcome.evidence) == (Reason.CANCELLED, "not submitted: the session was left")
    assert len(hands.calls("sbatch")) == 1
    told = "\n".join(stage.backend.how_to_return())
    assert "scancel 1" in told
    assert key not in told


def test_ctrl_c_while_files_are_written_submits_nothing(make_stage: MakeStage) -> None:
    class Early(Scripted):
        def claim(self, run_directory: str, by: str) -> int:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            left.wait(30.0)
            return super().claim(run_directory, by)

    left = threading.Event()
    stage = make_stage(Early)
    with pytest.raises(KeyboardInterrupt):
        stage.backend.submit([plan("a")])
    assert stage.backend.how_to_return() == []
    left.set()
    assert stage.outcomes(plan("a"))[0].reason is Reason.CANCELLED
    assert stage.transport.calls("sbatch") == []


def test_a_submission_that_is_looked_up_is_named_to_who_leaves(make_stage: MakeStage) -> None:
    stage = make_stage(answers={"sbatch": (1, "sbatch: error: Socket timed out on send/recv operation")})
    stage.backend.submit([plan("a")])
    (key,) = [record["key"] for record in records(stage, "intent.json")]
    assert f"--name={key}" in "\n".join(stage.backend.how_to_return())


def test_cancel_waits_until_scancel_was_carried_out(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.backend.submit([plan("a"), plan("b")])
    assert stage.backend.cancel(["a", "b"])
    assert stage.transport.calls("scancel") == [["scancel", "1"]]
    assert [outcome.reason for outcome in stage.outcomes(plan("a"), plan("b"))] == [Reason.CANCELLED] * 2
    assert stage.backend.cancel(["a", "b"])


@pytest.mark.parametrize("sbatch", [(0, "1"), (1, "sbatch: error: Socket timed out")])
def test_a_scancel_that_fails_has_been_quoted_when_cancel_returns(
    make_stage: MakeStage, sbatch: tuple[int, str]
) -> None:
    stage = make_stage(answers={"sbatch": sbatch, "scancel": (1, "scancel: error: Unable to contact")})
    stage.backend.submit([plan("a")])
    assert not stage.backend.cancel(["a"])
    while not stage.backend.events().empty():
        stage.told.append(stage.backend.events().get())
    assert stage.notices()[-1].startswith("scancel ")
    assert stage.notices()[-1].endswith("failed: scancel: error: Unable to contact")


def test_cancel_does_not_wait_for_ever(make_stage: MakeStage) -> None:
    class Stuck(Scripted):
        def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
            if argv[0] == "scancel":
                over.wait(30.0)
            return super().run(argv, timeout_s=timeout_s)

    over = threading.Event()
    stage = make_stage(Stuck, knobs=replace(KNOBS, cancel_s=0.05))
    stage.backend.submit([plan("a")])
    assert not stage.backend.cancel(["a"])
    over.set()


def test_nothing_is_started_or_written_before_it_is_asked_for(make_stage: MakeStage) -> None:
    stage = make_stage()
    assert stage.backend.cancel(["a"])
    assert stage.backend.how_to_return() == []
    stage.backend.close()
    assert not stage.root.exists()
    assert stage.transport.asked == []


def test_a_closed_backend_refuses_to_submit(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.backend.submit([plan("a")])
    stage.backend.close()
    assert not stage.backend.cancel(["a"])
    with pytest.raises(InfrastructureError, match="does not watch any more"):
        stage.backend.submit([plan("b")])


class TestCheck:
    def test_a_host_is_not_there_yet(self, make_stage: MakeStage) -> None:
        with pytest.raises(ConfigurationError, match="submission over SSH is not there yet"):
            make_stage(profile=Profile(host="login")).backend.check([])

    def test_a_root_that_can_not_be_written(self, make_stage: MakeStage, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match=r"can't be written.*--alchemy-root"):
            make_stage(root=tmp_path / "file" / "root").backend.check([])

    def test_a_directory_that_is_there_already_loses_nothing(
        self, make_stage: MakeStage, tmp_path: Path
    ) -> None:
        (tmp_path / ".gitignore").write_text("theirs\n")
        make_stage(root=tmp_path).backend.check([])
        assert (tmp_path / ".gitignore").read_text() == "theirs\n"
        assert {path.name for path in tmp_path.iterdir()} == {".gitignore", "jobs", "submissions"}

    def test_a_root_that_slurm_would_misread(self, make_stage: MakeStage, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="the run root can't hold"):
            make_stage(root=tmp_path / "a\nb").backend.check([])

    def test_a_limit_is_kept_before_anything_is_written(self, make_stage: MakeStage) -> None:
        stage = make_stage(profile=Profile(name="c", limits=Resources(gpus=1)))
        with pytest.raises(ConfigurationError, match="gpus=2 is asked for"):
            stage.backend.check([plan("a", gpus=2)])
        assert not stage.root.exists()

    def test_a_missing_program_is_named(self, make_stage: MakeStage) -> None:
        with pytest.raises(ConfigurationError, match=r"scancel is not on PATH.*login node"):
            make_stage(answers={"sh": (0, "scancel\n")}).backend.check([])

    def test_a_slurm_that_does_not_answer_is_quoted(self, make_stage: MakeStage) -> None:
        with pytest.raises(ConfigurationError, match=r"does not answer.*connect failure"):
            make_stage(answers={"scontrol": (1, "connect failure")}).backend.check([])

    def test_a_slurm_without_arrays_is_told(self, make_stage: MakeStage) -> None:
        with pytest.raises(ConfigurationError, match="allows no job arrays"):
            make_stage(answers={"scontrol": (0, "MaxArraySize            = 0\n")}).backend.check([])

    def test_an_interpreter_that_is_none(self, make_stage: MakeStage) -> None:
        with pytest.raises(ConfigurationError, match="is not an interpreter"):
            make_stage(profile=Profile(python="--wrap=x")).backend.check([])
