"""Plain values survive a checkpoint as they were, types included; everything else is named and refused."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, namedtuple
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alchemy_agent as agent
from alchemy.state.jsonform import NotPlain, decode, encode

KEYS = st.one_of(st.text(), st.integers(), st.none(), st.booleans(), st.tuples(st.integers(), st.text()))
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(st.sampled_from(["$", "value", "a"]), inner, max_size=3),
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Compare types too, and NaN with NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (left == right and math.copysign(1, left) == math.copysign(1, right)) or (
            left != left and right != right
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(map(same, left.items(), right.items()))
    return bool(left == right)


@given(PLAIN)
def test_what_is_encoded_comes_back_as_it_was(value: Any) -> None:
    assert same(decode(json.loads(json.dumps(encode(value), allow_nan=False))), value)


def test_the_wire_changes_nothing_in_a_form() -> None:
    value = [math.nan, math.inf, -math.inf, -0.0, 0.1, 2**80, "NaN", ("a", {1: {"$": 2}})]
    assert same(decode(agent.loads(agent.dumps({"form": encode(value)}))["form"]), value)


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")  # noqa: PYI024


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"a": [1, {2, 3}]}, r"\['a'\]\[1\].*set"),
        (b"bytes", "bytes"),
        (Colour.RED, "Colour"),
        (Point(1, 2), "Point"),
        (OrderedDict(a=1), "OrderedDict"),
        ({b"key": 1}, "a key of it.*bytes"),
    ],
)
def test_what_is_not_plain_is_named_with_its_place(value: object, names: str) -> None:
    with pytest.raises(NotPlain, match=names):
        encode(value)


def test_a_list_in_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotPlain, match="nested"):
        encode(value)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown form"):
        decode({"$": "complex", "value": [1, 2]})
