"""What the reports of a case carry: flat text properties, so that they survive pytest-xdist and JUnit.

The names are a format: `junit.py`, `summary.py` and other people's report plugins read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from alchemy.experiment import Experiment, Task
    from alchemy.matrix import Case
    from pytest_alchemy.judge import CaseVerdict
    from pytest_alchemy.outcome import Outcome

__all__ = [
    "CaseFacts",
    "Property",
    "describe_case",
    "describe_outcome",
    "describe_run",
    "describe_suite",
    "describe_verdict",
]

Property = tuple[str, object]


def describe_case(task: Task, case: Case, node: str, backend: str) -> list[Property]:
    """Return what is known before a case runs; reported even for one that is skipped."""
    return [
        ("alchemy.experiment", task.experiment.name),
        ("alchemy.task", task.name),
        ("alchemy.node", node),
        ("alchemy.case", case.id),
        ("alchemy.backend", backend),
        *((f"param.{name}", str(value)) for name, value in case.params.items()),
        *describe_suite(task.experiment),
    ]


def describe_suite(experiment: Experiment) -> Iterator[Property]:
    """Yield what concerns the experiment as a whole."""
    for criterion in experiment.criteria:
        yield f"alchemy.suite.criterion.{criterion.metric}", criterion.text
    for axis, values in experiment.matrix.items():
        yield f"alchemy.suite.matrix.{axis}", _some([str(value) for value in values])
    for tag, value in experiment.tags.items():
        yield f"alchemy.suite.tag.{tag}", str(value)


def _some(texts: list[str], limit: int = 20) -> str:
    more = f", … ({len(texts)} in all)" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def describe_run(run: str, directory: Path) -> Iterator[Property]:
    """Yield where a run's files are, known before it starts."""
    yield "alchemy.run", run
    yield "alchemy.directory", str(directory)


def describe_outcome(outcome: Outcome) -> Iterator[Property]:
    """Yield what the backend reported of a run."""
    yield "alchemy.reason", outcome.reason.value
    if outcome.attempt:
        yield "alchemy.attempt", outcome.attempt
    yield "alchemy.queued_s", f"{outcome.queued_s:.3f}"
    yield "alchemy.duration_s", f"{outcome.duration_s:.3f}"
    for log in outcome.logs:
        yield "alchemy.log", str(log)
    if outcome.result:
        yield "alchemy.steps", f"{outcome.result.steps}/{outcome.result.total_steps}"
        evaluation = outcome.result.evaluation
        for name, value in (evaluation.metrics if evaluation else outcome.result.metrics).items():
            yield f"metric.{name}", f"{value:.6g}"


def describe_verdict(verdict: CaseVerdict) -> Iterator[Property]:
    """Yield the checks of a case."""
    for check in verdict.checks:
        word = "met" if check.ok else "not met"
        yield f"criterion.{check.criterion.metric}", f"{check.criterion.text}: {word}, {check.shown}"


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """The properties of one report, read back by name."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, properties: Iterable[tuple[str, object]]) -> CaseFacts | None:
        """Read the `user_properties` of a report; None if it is not one of ours."""
        values = {name: str(value) for name, value in properties}
        return cls(values) if "alchemy.experiment" in values else None

    def get(self, name: str) -> str:
        """Return one `alchemy.` property, empty if the report has none."""
        return self.values.get(f"alchemy.{name}", "")

    def group(self, prefix: str) -> dict[str, str]:
        """Return the properties below a prefix such as `criterion`, without it, in order."""
        return {
            name[len(prefix) + 1 :]: value
            for name, value in self.values.items()
            if name.startswith(prefix + ".")
        }
