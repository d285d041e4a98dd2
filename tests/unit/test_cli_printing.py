"""What reaches a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from pytest_alchemy.cli.printing import complain, say, size, table, visible, when


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_234_567_890, "1.23 GB"),
        (10**15, "1.00 PB"),
        (10**18, "1000 PB"),
    ],
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert size(count) == text


def test_cells_stand_below_each_other_whatever_their_letters_take() -> None:
    assert table([["a", "b"], ["日本", "x"], ["long", ""]]) == ["a     b", "日本  x", "long"]


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "a\rb", "a\tb", "\u202e", "\udcff", "\x9b"])
def test_no_text_moves_the_cursor(text: str) -> None:
    assert visible(text).isprintable()
    assert table([[text]])[0].isprintable()


def test_plain_text_stays_as_it_is() -> None:
    assert visible("größe 日本 …") == "größe 日本 …"


def test_a_terminal_without_the_letters_gets_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    say("größe")
    complain("größe")
    for stream in streams:
        stream.seek(0)
    assert [stream.read() for stream in streams] == ["gr\\xf6\\xdfe\n", "alchemy: gr\\xf6\\xdfe\n"]


@pytest.mark.parametrize("seconds", [1e300, -1e300, float("nan"), float("inf")])
def test_a_time_outside_of_every_calendar_is_left_out(seconds: float) -> None:
    assert when(seconds) == ""
