"""A criterion is read strictly, compared exactly, and answered in one sentence."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alchemy.criteria import Check, Criterion, Op, Status, judge, parse, parse_criteria
from alchemy.errors import ConfigurationError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
COMPARISONS = [op for op in Op if op is not Op.WITHIN]


def check(text: str, value: Any) -> Check:
    (answer,) = judge([parse("nmi", text)], {"nmi": value})
    return answer


@pytest.mark.parametrize(
    ("text", "op", "bound", "upper", "written"),
    [
        ("> 0.3", Op.GREATER, 0.3, None, "> 0.3"),
        (">0.3", Op.GREATER, 0.3, None, "> 0.3"),
        ("  >=  1 ", Op.GREATER_EQUAL, 1.0, None, ">= 1"),
        ("< 1e-3", Op.LESS, 0.001, None, "< 1e-3"),
        ("<= +2.", Op.LESS_EQUAL, 2.0, None, "<= +2."),
        ("== 3", Op.EQUAL, 3.0, None, "== 3"),
        ("!= -.5", Op.NOT_EQUAL, -0.5, None, "!= -.5"),
        ("0.2..0.4", Op.WITHIN, 0.2, 0.4, "0.2..0.4"),
        ("-1 .. 2", Op.WITHIN, -1.0, 2.0, "-1..2"),
        ("1..2", Op.WITHIN, 1.0, 2.0, "1..2"),
        ("-2e-1..-1E-1", Op.WITHIN, -0.2, -0.1, "-2e-1..-1E-1"),
    ],
)
def test_every_form_is_read(text: str, op: Op, bound: float, upper: float | None, written: str) -> None:
    assert parse("nmi", text) == Criterion("nmi", op, bound, upper, written)


@given(st.sampled_from(COMPARISONS), FINITE)
def test_what_is_printed_of_a_comparison_reads_back(op: Op, bound: float) -> None:
    criterion = parse("nmi", f"{op.value}{bound!r}")
    assert criterion.bound == bound
    assert parse("nmi", criterion.text) == criterion


@given(FINITE, FINITE)
def test_what_is_printed_of_a_range_reads_back(one: float, other: float) -> None:
    low, high = sorted((one, other))
    criterion = parse("nmi", f"{low!r}..{high!r}")
    assert (criterion.bound, criterion.upper) == (low, high)
    assert parse("nmi", criterion.text) == criterion


@given(st.text("<>=!.0123456789eE+- nanif", max_size=12) | st.text(max_size=12))
def test_any_text_is_read_or_refused_as_a_configuration_error(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        criterion = parse("nmi", text)
        assert math.isfinite(criterion.bound)
        assert parse("nmi", criterion.text) == criterion


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("=> 0.3", ">= instead of =>"),
        ("= 0.3", "== instead of ="),
        ("≥ 0.3", "plain characters"),
        ("> 30%", "fraction"),
        ("0.3", "say how to compare"),
        ("> inf", "finite number"),
        ("> nan", "finite number"),
        ("> 1e999", "beyond every float"),
        ("> 0.3, < 0.5", "write a range"),
        ("1...2", "no such form"),
        ("0.4..0.2", "0.2..0.4"),
        ("", "no such form"),
        ("> ٣", "no such form"),
        ("high", "no such form"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_with_the_way_out(text: str, way_out: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(way_out)):
        parse("nmi", text)


@pytest.mark.parametrize("text", [0.3, None, True, ("> 0.3",)])
def test_a_threshold_that_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="criterion 'nmi' must be a str"):
        parse("nmi", text)


@pytest.mark.parametrize("metric", ["", " nmi", "n\nmi", 3, None])
def test_a_metric_needs_a_name(metric: Any) -> None:
    with pytest.raises(ConfigurationError, match="metric must be a name"):
        parse(metric, "> 0.3")


@pytest.mark.parametrize("criteria", ["nmi > 0.3", [("nmi", "> 0.3")], 3])
def test_criteria_that_are_no_mapping_are_refused(criteria: Any) -> None:
    with pytest.raises(ConfigurationError, match="criteria must be a dict"):
        parse_criteria(criteria)


def test_no_criteria_are_no_criteria() -> None:
    assert parse_criteria(None) == parse_criteria({}) == ()


@pytest.mark.parametrize(
    ("text", "met", "missed"),
    [
        ("> 0.3", [0.31, 1e300], [0.3, 0.2999999999]),
        (">= 0.3", [0.3, 0.31], [0.2999999999]),
        ("< 0.3", [0.29, -5], [0.3]),
        ("<= 0.3", [0.3], [0.3000000001]),
        ("== 3", [3, 3.0], [3.0000001]),
        ("!= 3", [2], [3]),
        ("0.2..0.4", [0.2, 0.3, 0.4], [0.19, 0.41]),
        ("== 1", [True], [False]),
    ],
)
def test_numbers_are_compared_exactly(text: str, met: list[float], missed: list[float]) -> None:
    assert all(check(text, value).status is Status.MET for value in met)
    assert all(check(text, value).status is Status.MISSED for value in missed)


@pytest.mark.parametrize(
    ("text", "value", "sentence"),
    [
        ("> 0.3", 0.271, "nmi 0.271, wanted > 0.3 (short by 0.029)"),
        ("> 0.3", 0.27123, "nmi 0.271, wanted > 0.3 (short by 0.029)"),
        ("> 0.3", 0.3, "nmi 0.3, wanted > 0.3 (equal is not enough)"),
        ("> 0.1", 0.0999999, "nmi 0.0999999, wanted > 0.1 (short by 1e-07)"),
        ("< 0.5", 0.7, "nmi 0.7, wanted < 0.5 (over by 0.2)"),
        ("0.2..0.4", 0.45, "nmi 0.45, wanted 0.2..0.4 (over by 0.05)"),
        ("0.2..0.4", 0.1, "nmi 0.1, wanted 0.2..0.4 (short by 0.1)"),
        ("== 3", 5, "nmi 5, wanted == 3 (off by 2)"),
        ("!= 3", 3, "nmi 3, wanted != 3"),
        ("> 20000", 12345.678, "nmi 12346, wanted > 20000 (short by 7654)"),
        ("> 0.3", True, "nmi ok"),
        ("> 0.3", 0.31, "nmi ok"),
        ("> 0.1", math.nan, "nmi is NaN, wanted > 0.1"),
        ("> 0.1", math.inf, "nmi is infinity, wanted > 0.1"),
        ("> 0.1", -math.inf, "nmi is -infinity, wanted > 0.1"),
        ("> 0.1", 10**400, "nmi is infinity, wanted > 0.1"),
        ("> 0.1", "high", "nmi is not a number but 'high', wanted > 0.1"),
        ("> 0.1", None, "nmi is not a number but None, wanted > 0.1"),
    ],
)
def test_the_answer_says_it_all_in_one_sentence(text: str, value: Any, sentence: str) -> None:
    assert check(text, value).sentence() == sentence


def test_a_metric_that_was_never_logged_says_so() -> None:
    criteria = parse_criteria({"nmi": "> 0.1"})
    assert [each.sentence() for each in judge(criteria, {})] == ["nmi was never logged, wanted > 0.1"]
    assert judge(criteria, None) == judge(criteria, {})
    (answer,) = judge(criteria, None)
    assert (answer.ok, answer.value, answer.status) == (False, None, Status.MISSING)


def test_a_metric_logged_under_a_similar_name_is_named() -> None:
    (answer,) = judge(parse_criteria({"silhouette": "> 0.1"}), {"Silhouete": 0.4, "nmi": 1.0})
    assert answer.sentence() == "silhouette was never logged, wanted > 0.1 (but Silhouete was)"


@given(st.sampled_from(COMPARISONS), FINITE, FINITE)
def test_the_printed_value_never_contradicts_the_answer(op: Op, bound: float, value: float) -> None:
    answer = check(f"{op.value} {bound!r}", value)
    assert answer.criterion.met_by(float(answer.shown)) == answer.ok


@given(st.sampled_from(COMPARISONS), FINITE, st.integers(-3, 3))
def test_the_printed_value_never_contradicts_the_answer_next_to_the_bound(
    op: Op, bound: float, ulps: int
) -> None:
    value = bound
    for _ in range(abs(ulps)):
        value = math.nextafter(value, math.copysign(math.inf, ulps))
    if math.isfinite(value):
        answer = check(f"{op.value} {bound!r}", value)
        assert answer.criterion.met_by(float(answer.shown)) == answer.ok


@given(FINITE, FINITE, FINITE)
def test_the_printed_value_lies_in_a_range_exactly_if_the_value_does(
    one: float, other: float, value: float
) -> None:
    low, high = sorted((one, other))
    answer = check(f"{low!r}..{high!r}", value)
    assert answer.criterion.met_by(float(answer.shown)) == answer.ok


def test_checks_come_in_the_order_of_the_criteria() -> None:
    criteria = parse_criteria({"b": "> 1", "a": "> 1"})
    assert [each.criterion.metric for each in judge(criteria, {"a": 2, "b": 0})] == ["b", "a"]


def test_a_metric_that_only_log_had_is_told_apart_from_one_that_nothing_had() -> None:
    criterion = parse("loss", "< 1")
    assert judge([criterion], {}, {"loss"})[0].sentence() == (
        "loss was logged by ctx.log, but not by the last log_eval, wanted < 1"
    )
    assert judge([criterion], {}, {"other"})[0].sentence().startswith("loss was never logged, wanted < 1")
