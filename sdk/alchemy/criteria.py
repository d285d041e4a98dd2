"""Point checks: a threshold on a metric of one case, and the words in which the answer is given."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from alchemy.errors import ConfigurationError

__all__ = ["Check", "Criterion", "Op", "Status", "judge", "parse", "parse_criteria"]

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_COMPARISON = re.compile(rf"\s*(>=|<=|==|!=|>|<)\s*({_NUMBER})\s*", re.ASCII)
# Not next to a third dot: `1...2` could be read in two ways.
_RANGE = re.compile(rf"\s*({_NUMBER})\s*(?<!\.)\.\.(?!\.)\s*({_NUMBER})\s*", re.ASCII)
_FORMS = '"> 0.3", ">= 1", "< 2", "<= 2", "== 3", "!= 3" or a range such as "0.2..0.4", both ends included'
_HINTS = (
    (re.compile(r"\s*=>"), "write >= instead of =>"),
    (re.compile(r"\s*=<"), "write <= instead of =<"),
    (re.compile(r"\s*=[^=]"), "write == instead of ="),
    (re.compile(r"\s*[≥≤≠]"), "write >=, <= or != in plain characters"),
    (re.compile(r".*%"), "write a fraction instead of a percentage"),
    (re.compile(rf"\s*{_NUMBER}\s*$"), "say how to compare, such as > or =="),
    (re.compile(r".*(\binf|\bnan)", re.IGNORECASE), "a bound is a finite number"),
    (re.compile(r".*(,|\band\b|&)"), "for two bounds write a range"),
)


class Op(str, Enum):
    """How a metric is compared with the bound."""

    GREATER = ">"
    GREATER_EQUAL = ">="
    LESS = "<"
    LESS_EQUAL = "<="
    EQUAL = "=="
    NOT_EQUAL = "!="
    WITHIN = ".."


class Status(Enum):
    """What became of a criterion; everything but MET refutes."""

    MET = "met"
    MISSED = "missed"
    NAN = "NaN"
    INFINITE = "infinity"
    MISSING = "missing"
    NOT_A_NUMBER = "not a number"


@dataclass(frozen=True, slots=True)
class Criterion:
    """A threshold on one metric; made by `parse`."""

    metric: str
    op: Op
    bound: float
    """What the metric is compared with; the lower end of a range."""
    upper: float | None
    """The upper end of a range, which belongs to it; None for everything else."""
    text: str
    """As written, spaces evened out: `> 0.3`, `0.2..0.4`."""

    def __str__(self) -> str:
        return f"{self.metric} {self.text}"

    def met_by(self, value: float) -> bool:
        """Whether a number satisfies the threshold, compared exactly."""
        match self.op:
            case Op.GREATER:
                return value > self.bound
            case Op.GREATER_EQUAL:
                return value >= self.bound
            case Op.LESS:
                return value < self.bound
            case Op.LESS_EQUAL:
                return value <= self.bound
            case Op.EQUAL:
                return value == self.bound
            case Op.NOT_EQUAL:
                return value != self.bound
        return self.upper is not None and self.bound <= value <= self.upper

    def nearest(self, value: float) -> float:
        """Return the bound that a number is closest to."""
        if self.upper is not None and abs(value - self.upper) < abs(value - self.bound):
            return self.upper
        return self.bound


@dataclass(frozen=True, slots=True)
class Check:
    """A criterion held against what was measured."""

    criterion: Criterion
    value: float | None
    """What was measured; None if nothing was, or nothing that is a number."""
    status: Status
    note: str = ""
    """For a person: the name that may have been meant, or what stood in place of a number."""

    @property
    def ok(self) -> bool:
        """Whether the criterion is met."""
        return self.status is Status.MET

    @property
    def shown(self) -> str:
        """The measured value, in as few digits as tell it from the bound; without one what is wrong."""
        if self.value is None or not math.isfinite(self.value):
            return "-infinity" if self.value == -math.inf else self.status.value
        return _short(self.value, self.criterion.nearest(self.value))

    def sentence(self) -> str:
        """Return what a failure says of this criterion: `silhouette 0.271, wanted > 0.3 (short by 0.029)`."""
        metric, wanted = self.criterion.metric, f"wanted {self.criterion.text}"
        match self.status:
            case Status.MET:
                return f"{metric} ok"
            case Status.MISSED:
                return f"{metric} {self.shown}, {wanted}{self._by_how_much()}"
            case Status.MISSING:
                if self.note == _BY_LOG_ONLY:
                    return f"{metric} {_BY_LOG_ONLY}, {wanted}"
                return f"{metric} was never logged, {wanted}{self.note and f' ({self.note})'}"
            case Status.NOT_A_NUMBER:
                return f"{metric} is not a number but {self.note}, {wanted}"
        return f"{metric} is {self.shown}, {wanted}"

    def _by_how_much(self) -> str:
        value, op = self.value, self.criterion.op
        if value is None or op is Op.NOT_EQUAL:
            return ""
        bound = self.criterion.nearest(value)
        distance = abs(bound - value)
        if distance == 0:
            return " (equal is not enough)"
        if not math.isfinite(distance):
            return ""
        word = "off" if op is Op.EQUAL else "short" if value < bound else "over"
        return f" ({word} by {_digits(distance, 2)})"


def parse_criteria(criteria: object) -> tuple[Criterion, ...]:
    """Read the criteria of an experiment or a task; None means there are none.

    Raises:
        ConfigurationError: Names the metric and what can't be read.
    """
    if criteria is None:
        return ()
    if not isinstance(criteria, Mapping):
        raise ConfigurationError(f'criteria must be a dict such as {{"nmi": "> 0.1"}}, not {criteria!r}')
    return tuple(parse(metric, text) for metric, text in criteria.items())


def parse(metric: object, text: object) -> Criterion:
    """Read a threshold: `> 0.3`, `>= 1`, `< 2`, `<= 2`, `== 3`, `!= 3` or `0.2..0.4` (both ends included).

    Raises:
        ConfigurationError: The metric has no usable name, or the text can't be read.
    """
    if not isinstance(metric, str) or not metric or metric != metric.strip() or not metric.isprintable():
        raise ConfigurationError(f"a criterion's metric must be a name as in log_eval, not {metric!r}")
    if not isinstance(text, str):
        hint = f'; write "> {text}", "< {text}" or the like' if isinstance(text, (int, float)) else ""
        raise ConfigurationError(f"criterion {metric!r} must be a str such as {_FORMS}, not {text!r}{hint}")
    if found := _COMPARISON.fullmatch(text):
        op, number = found.groups()
        return Criterion(metric, Op(op), _bound(metric, text, number), None, f"{op} {number}")
    found = _RANGE.fullmatch(text)
    if not found:
        hint = next((hint for form, hint in _HINTS if form.match(text)), "no such form")
        raise _unreadable(metric, text, f"{hint}. A criterion reads {_FORMS}")
    lower, upper = (_bound(metric, text, number) for number in found.groups())
    if lower > upper:
        raise _unreadable(metric, text, f"the lower end comes first: {found[2]}..{found[1]}")
    return Criterion(metric, Op.WITHIN, lower, upper, f"{found[1]}..{found[2]}")


_BY_LOG_ONLY = "was logged by ctx.log, but not by the last log_eval"


def judge(
    criteria: Iterable[Criterion], metrics: Mapping[str, Any] | None, logged: Collection[str] = ()
) -> tuple[Check, ...]:
    """Hold each criterion against the metrics of an evaluation.

    Args:
        criteria: What to check.
        metrics: Of the last evaluation; None if there was none.
        logged: Names of metrics that `ctx.log` had: criteria don't read it, but a mistake shows there.
    """
    return tuple(_check(criterion, metrics or {}, logged) for criterion in criteria)


def _check(criterion: Criterion, metrics: Mapping[str, Any], logged: Collection[str]) -> Check:
    if criterion.metric not in metrics:
        note = _BY_LOG_ONLY if criterion.metric in logged else _similar(criterion.metric, metrics)
        return Check(criterion, None, Status.MISSING, note)
    measured = metrics[criterion.metric]
    value = _number(measured)
    if value is None:
        return Check(criterion, None, Status.NOT_A_NUMBER, _brief(measured))
    if math.isnan(value):
        return Check(criterion, value, Status.NAN)
    if math.isinf(value):
        return Check(criterion, value, Status.INFINITE)
    return Check(criterion, value, Status.MET if criterion.met_by(value) else Status.MISSED)


def _number(measured: Any) -> float | None:
    if isinstance(measured, (str, bytes)) or measured is None:
        return None
    try:
        return float(measured)
    except OverflowError:  # an int beyond every float
        return math.inf if measured > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        return None


def _similar(metric: str, metrics: Mapping[str, Any]) -> str:
    import difflib  # deferred: only a failure needs it

    folded = {str(name).casefold(): str(name) for name in metrics}
    close = difflib.get_close_matches(metric.casefold(), folded, n=1, cutoff=0.75)
    return f"but {folded[close[0]]} was" if close else ""


def _bound(metric: str, text: str, number: str) -> float:
    bound = float(number)
    if math.isinf(bound):
        raise _unreadable(metric, text, f"{number} is beyond every float")
    return bound


def _unreadable(metric: str, text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"criterion {metric!r}: can't read {_brief(text)}: {why}")


def _short(value: float, bound: float) -> str:
    """Return the shortest form, from three digits up, that keeps the value on its side of the bound.

    Rounding may move it by a twentieth of its distance from the bound: 0.0999999 beside 0.1 stays 0.0999999.
    """
    allowed = abs(value - bound) / 20
    for digits in range(3, 17):
        text = _digits(value, digits)
        if abs(float(text) - value) <= allowed:
            return text
    return repr(value)


def _digits(value: float, digits: int) -> str:
    """Return the value in so many significant digits, and whole numbers below 1e15 without an exponent."""
    size = abs(value)
    before_the_point = len(str(int(size))) if size < 1e15 else 0
    return format(value, f".{max(digits, before_the_point)}g")


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
