"""One task × one case of the matrix as a pytest item: executed by the backend, judged here."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alchemy.errors import InfrastructureError
from pytest_alchemy import judge
from pytest_alchemy.facts import describe_case, describe_outcome, describe_run, describe_verdict, is_ours
from pytest_alchemy.outcome import Outcome, Reason
from pytest_alchemy.verdict import Verdict

if TYPE_CHECKING:
    from alchemy.experiment import Task
    from alchemy.matrix import Case
    from alchemy.result import Result
    from pytest_alchemy.backends import Plan
    from pytest_alchemy.session import Alchemy

__all__ = ["CaseCrashed", "CaseItem", "CaseLost", "CriteriaRefuted"]

_ALCHEMY_MARK = pytest.mark.alchemy


class CriteriaRefuted(Exception):
    """The run completed and its metrics miss a criterion: the hypothesis fails for this case."""


class CaseCrashed(Exception):
    """The user's code failed in a job; carries the job's own traceback as text."""


class CaseLost(Exception):
    """The machinery failed: neither the hypothesis nor the user's code is to blame."""


class CaseItem(pytest.Item):
    """One task × one case of the matrix. Executed by the backend, judged here."""

    def __init__(self, *, task: Task, case: Case, alchemy: Alchemy, name: str, parent: pytest.Module) -> None:
        # a node id given as text is parsed by pytest and then equals what --lf reads back from its cache
        super().__init__(name, parent, nodeid=f"{parent.nodeid}::{name}")
        self.task = task
        self.case = case
        self.alchemy = alchemy
        self._module = parent.obj
        self._plan: Plan | None = None
        self.outcome: Outcome | None = None
        """How a job ended, set by the loop of a remote backend; None where the case runs in this process."""
        self.veto: BaseException | None = None
        """What a setup hook raised when it was asked, before anything was submitted."""
        for mark in (*case.marks, *getattr(task, "pytestmark", ())):
            mark = getattr(mark, "mark", mark)  # noqa: PLW2901  a decorator or the mark itself
            self.own_markers.append(mark)
            self.keywords[mark.name] = True

    @classmethod
    def of(cls, parent: pytest.Module, task: Task, case: Case, alchemy: Alchemy) -> CaseItem:
        """Make the item `task[case id]` below its file."""
        name = f"{task.name}[{case.id}]" if case.id else task.name
        item: CaseItem = cls.from_parent(parent, name=name, task=task, case=case, alchemy=alchemy)
        return item

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters of the case."""
        return self.case.params

    @property
    def plan(self) -> Plan:
        """What to execute; computed when first asked for, since most collected cases are never run."""
        if self._plan is None:
            self._plan = self.alchemy.plan(self.task, self.case, self._module)
        return self._plan

    @property
    def is_remote(self) -> bool:
        """Whether a job runs it, not this process."""
        return self.alchemy.is_remote

    def iter_markers_with_node(self, name: str | None = None) -> Iterator[tuple[Any, pytest.Mark]]:
        """Add the mark `alchemy(**params)`, made on demand: ten thousand items would pay for it otherwise.

        A run that is shortened is not judged, so no failure of it is expected either.
        """
        if name in {None, "alchemy"}:
            yield self, _ALCHEMY_MARK.with_args(**self.case.params).mark
        shortened = self.alchemy.is_shortened(self.task)
        for node, mark in super().iter_markers_with_node(name):
            if not (shortened and mark.name == "xfail" and mark.kwargs.get("run", True)):
                yield node, mark

    def describe(self) -> None:
        """Say in the report's properties what is known before the case runs."""
        theirs = [each for each in self.user_properties if not is_ours(each[0])]  # a rerun begins anew
        options, plan = self.alchemy.options, self.plan
        shortened_to = plan.spec.total_steps if self.alchemy.is_shortened(self.task) else None
        self.user_properties[:] = theirs
        self.user_properties += describe_case(
            self.task, self.case, self.nodeid, options.backend, shortened_to
        )
        self.user_properties += describe_run(plan.spec.run, self.alchemy.run_directory(plan))

    def where(self) -> str:
        """Return the run's directory and attempt, for people."""
        attempt = dict(self.user_properties).get("alchemy.attempt")
        directory = self.alchemy.run_directory(self.plan)
        return f"{directory} (attempt {attempt})" if attempt else str(directory)

    def setup(self) -> None:
        """Report what the machinery did to a remote run.

        Raises:
            CaseLost: The machinery lost the run, so pytest reports an error, not a failure.
        """
        if self.outcome is not None and self.outcome.reason.is_infrastructure:
            self._describe(self.outcome)
            self._tell(Verdict.ERROR)
            raise CaseLost(judge.trouble(self.outcome))

    def runtest(self) -> None:
        """Run the case unless a job did, and judge it.

        Raises:
            CriteriaRefuted: A criterion is not met.
            CaseCrashed: The user's code failed in a job; in this process its own exception propagates.
            CaseLost: The run directory can't be written, or the training was stopped before its end.
        """
        __tracebackhide__ = True
        outcome = self._execute() if self.outcome is None else self.outcome
        self._describe(outcome)
        if outcome.is_stopped:  # whatever Slurm calls it
            self._tell(Verdict.ERROR)
            raise CaseLost(judge.trouble(outcome))
        exception = outcome.exception
        if outcome.result is None or outcome.result.error is not None:
            if outcome.reason is not Reason.CANCELLED:  # as by pytest.skip
                self._tell(Verdict.CRASHED)
            if exception is None or isinstance(exception, SystemExit):  # whose result says what to do instead
                raise CaseCrashed(judge.crash(outcome))
        if exception is not None:
            raise exception
        assert outcome.result is not None  # noqa: S101  for the type checker
        self._judge(outcome, outcome.result)

    def _execute(self) -> Outcome:
        try:
            return self.alchemy.execute(self.plan, self.task)
        except InfrastructureError as error:
            self.user_properties.append(("alchemy.reason", Reason.STORAGE.value))
            self._tell(Verdict.ERROR)
            raise CaseLost(str(error)) from error

    def _judge(self, outcome: Outcome, result: Result) -> None:
        __tracebackhide__ = True
        verdict = judge.judge_case(self.task.criteria, result, shortened=self.alchemy.is_shortened(self.task))
        self.user_properties += describe_verdict(verdict)
        self._tell(verdict.verdict)
        if verdict.verdict is Verdict.REFUTED:
            raise CriteriaRefuted(judge.refutation(verdict, outcome))

    def _describe(self, outcome: Outcome) -> None:
        self.user_properties += describe_outcome(outcome)
        if outcome.stdout:
            self.add_report_section("call", "stdout", outcome.stdout)
        if outcome.stderr:
            self.add_report_section("call", "stderr", outcome.stderr)

    def _tell(self, verdict: Verdict) -> None:
        self.user_properties.append(("alchemy.verdict", verdict.value))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return our own text for what we raise on purpose, first line first; else a traceback."""
        option = self.config.getoption  # with defaults: -p no:terminal takes these options away
        chosen: Any = style or option("tbstyle", "auto")
        if isinstance(excinfo.value, (CriteriaRefuted, CaseCrashed, CaseLost)):
            text = str(excinfo.value)
            return text.partition("\n")[0] if chosen == "line" else text
        if option("fulltrace", False) or chosen is None:
            return super().repr_failure(excinfo, style)
        return excinfo.getrepr(
            style="long" if chosen == "auto" else chosen,
            showlocals=option("showlocals", False),
            tbfilter=lambda info: _from_file_on(info, self.path, shorten=chosen == "auto"),
            truncate_locals=self.config.get_verbosity() <= 1,
        )

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return file, line of the task's function and name, as pytest asks for them."""
        code = getattr(inspect.unwrap(self.task.fn), "__code__", None)
        return self.path, code.co_firstlineno - 1 if code else 0, self.name


def _from_file_on(excinfo: pytest.ExceptionInfo[BaseException], path: Path, *, shorten: bool) -> Any:
    """Cut the frames that lead to the user's file; show the first and last at length, as pytest does."""
    frames = excinfo.traceback.cut(path=path).filter(excinfo)
    last = len(frames) - 1
    if not shorten:
        return frames
    return type(frames)(
        frame if index in {0, last} else frame.with_repr_style("short") for index, frame in enumerate(frames)
    )
