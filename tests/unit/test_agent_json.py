"""The wire's JSON: strict, so that any language reads it, and proof against hostile input."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alchemy_agent as agent

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(st.dictionaries(st.text(), values))
def test_what_is_written_reads_back_equal(record: dict[str, Any]) -> None:
    assert agent.loads(agent.dumps(record)) == record


@given(st.dictionaries(st.text(), st.floats() | st.lists(st.floats())))
def test_whatever_the_floats_the_text_is_strict_json(record: dict[str, Any]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    json.loads(agent.dumps(record), parse_constant=refuse)


def test_non_finite_numbers_are_spelled_out_at_any_depth() -> None:
    record = {"a": math.nan, "b": {"c": [math.inf, {"d": -math.inf}]}}
    assert agent.dumps(record) == b'{"a":"NaN","b":{"c":["Infinity",{"d":"-Infinity"}]}}\n'


def test_text_is_compact_utf8_on_one_line() -> None:
    assert agent.dumps({"név": "a\nb", "n": [1, 2]}) == '{"név":"a\\nb","n":[1,2]}\n'.encode()


def test_a_name_that_is_no_text_is_written_all_the_same() -> None:
    undecodable = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert agent.loads(agent.dumps({"argv": [undecodable]})) == {"argv": ["caf?"]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1',
        b"[1]",
        b'"text"',
        b"null",
        b"{} {}",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"9" * 10_000 + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_not_one_strict_object_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the words are the json module's)
        agent.loads(data)
