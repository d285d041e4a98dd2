"""Figures for people."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_alchemy.figures import columns, count, cut, duration, number, rate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9999, "9999"),
        (10_000, "10k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_999, "1M"),
        (1_500_000, "1.5M"),
        (2_000_000_000, "2G"),
        (5 * 10**12, "5000G"),
    ],
)
def test_large_counts_have_three_digits_and_a_unit(value: int, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (5.4, "5s"),
        (59.6, "1m00s"),
        (62, "1m02s"),
        (3600, "1h00m"),
        (11_220, "3h07m"),
        (212_400, "2d11h"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (None, ""),
        (0, ""),
        (math.inf, ""),
        (35.24, "35.2/s"),
        (1, "1/s"),
        (12_345, "12.3k/s"),
        (1234.5, "1234/s"),
        (0.5, "30/min"),
        (0.001, "3.6/h"),
    ],
)
def test_a_slow_rate_is_by_the_minute_or_hour(per_second: float | None, text: str) -> None:
    assert rate(per_second) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234, "0.123"),
        (1234.4, "1234"),
        (-2500, "-2500"),
        (0.000012, "1.2e-05"),
        (5, "5"),
        (2e6, "2e+06"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_metric_has_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("text", "width", "result"),
    [
        ("short", 5, "short"),
        ("longer", 5, "lo..."),
        ("longer", 2, ".."),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日..."),
        ("a\x1b[31m\nb", 20, "a?[31m?b"),
    ],
)
def test_text_is_cut_to_columns_and_to_one_line(text: str, width: int, result: str) -> None:
    assert cut(text, width) == result


@given(st.text(), st.integers(0, 30))
def test_cut_text_never_takes_more_than_its_columns(text: str, width: int) -> None:
    assert columns(cut(text, width)) <= width
    assert cut(text, width).isprintable()
