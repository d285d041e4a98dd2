"""From an outcome and the criteria to a verdict and the words that go with it. Pure."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alchemy.criteria import judge
from pytest_alchemy.outcome import Reason, tell_checkpoint, tell_stop
from pytest_alchemy.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alchemy.criteria import Check, Criterion
    from alchemy.result import Evaluation, Result
    from pytest_alchemy.outcome import Outcome

__all__ = ["CaseVerdict", "crash", "judge_case", "refutation", "trouble", "where"]

_TAIL = 4000
"""Characters of a job's output shown with a failure; the logs have the rest."""


@dataclass(frozen=True, slots=True)
class CaseVerdict:
    """The verdict on one case and the checks behind it."""

    verdict: Verdict
    checks: tuple[Check, ...]
    stale_step: int | None = None
    """The step of the evaluation, where it predates the last step of the run."""

    @property
    def headline(self) -> str:
        """All checks in one line, missed ones first; the first line of a failure."""
        missed_first = sorted(self.checks, key=lambda check: check.ok)
        late = "" if self.stale_step is None else f" (evaluated after step {self.stale_step}, not at the end)"
        return "; ".join(check.sentence() for check in missed_first) + late


def judge_case(criteria: Sequence[Criterion], result: Result, *, shortened: bool) -> CaseVerdict:
    """Judge a completed run by the last `log_eval`."""
    evaluation = result.evaluation
    checks = judge(criteria, evaluation.metrics if evaluation else None, result.metrics)
    return CaseVerdict(_verdict(checks, shortened=shortened), checks, _stale_step(evaluation, result))


def _verdict(checks: Sequence[Check], *, shortened: bool) -> Verdict:
    if not checks:
        return Verdict.COMPLETED
    if shortened:
        return Verdict.SHORTENED
    return Verdict.SUPPORTED if all(check.ok for check in checks) else Verdict.REFUTED


def _stale_step(evaluation: Evaluation | None, result: Result) -> int | None:
    last = result.steps - 1
    return evaluation.step if evaluation and evaluation.step < last else None


def refutation(verdict: CaseVerdict, outcome: Outcome) -> str:
    """Return the text of a failed case: headline, table of all criteria, where to look."""
    return "\n".join([verdict.headline, "", *_table(verdict.checks), "", *where(outcome)])


def _table(checks: Sequence[Check]) -> list[str]:
    rows = [("", "criterion", "value")]
    rows += [("ok" if check.ok else "NO", str(check.criterion), check.shown) for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def where(outcome: Outcome) -> list[str]:
    """Return lines that say where the run's files are."""
    attempt = f" (attempt {outcome.attempt})" if outcome.attempt else ""
    return [f"  run  {outcome.directory}{attempt}", *(f"  log  {path}" for path in outcome.logs)]


def crash(outcome: Outcome) -> str:
    """Return the text of a case whose code failed in a job: its own traceback, then where to look."""
    error = outcome.result.error if outcome.result else None
    if error is None:
        return trouble(outcome)
    message = f"{error.type.removeprefix('builtins.')}: {error.message}".rstrip(": ")
    return "\n".join([message.partition("\n")[0], "", error.traceback.rstrip(), "", *where(outcome)])


def trouble(outcome: Outcome) -> str:
    """Return the text of a case with nothing to judge: reason, evidence, what was printed, where to look."""
    evidence = outcome.evidence or "no further evidence"
    lines = [f"{outcome.reason.value}: {evidence}"]
    if outcome.result and outcome.is_stopped and outcome.reason is Reason.STOPPED:
        lines = [f"{outcome.reason.value}: {tell_stop(outcome.result)}", *_saved(outcome.result)]
    tail = textwrap.indent((outcome.stderr or outcome.stdout).rstrip()[-_TAIL:], "    ")
    return "\n".join([*lines, *([tail] if tail else []), "", *where(outcome)])


def _saved(result: Result) -> list[str]:
    checkpoint = tell_checkpoint(result)
    return [f"  checkpoint {checkpoint} is committed"] if checkpoint else []
