"""A matrix expands to cases whose ids are readable, unique and fit for a node id."""

from __future__ import annotations

import enum
import json
import re
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alchemy.errors import ConfigurationError
from alchemy.matrix import MAX_CASES, Case, cases_of, decode_params, encode_params, parse_axes, slug
from alchemy.params import Placeholder

# What JSON can hold: text without half surrogate pairs, ints of 64 bits, finite floats.
TEXTS = st.text(st.characters(codec="utf-8"), max_size=100)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    # Near misses of each other, which random text would hardly ever hit.
    | st.sampled_from(
        ["1", "1.0", "True", "None", "a,b", "a", "(a)", "'a'", "%27a%27", "1-b=2", "1-b='2", "-"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def typed(value: Any) -> object:
    """Return the value in a form that differs wherever type or content does: 1, 1.0 and True are three."""
    if isinstance(value, tuple):
        return ("tuple", *map(typed, value))
    if isinstance(value, dict):
        return ("dict", frozenset((key, typed(each)) for key, each in value.items()))
    return (type(value).__name__, repr(value))


def axis(**options: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(VALUES, min_size=1, unique_by=typed, **options)


def expand(matrix: Any) -> tuple[Case, ...]:
    return cases_of(parse_axes(matrix))


def error_of(matrix: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        expand(matrix)
    return str(caught.value)


def ids_of(*values: Any) -> list[str]:
    return [case.id for case in expand({"x": values})]


def test_the_cases_of_the_origin_come_in_order_of_declaration_with_the_last_axis_fastest() -> None:
    cases = expand({"ctx_len": [16, 32], "seed": [42, 123]})
    assert [case.id for case in cases] == [
        "ctx_len=16-seed=42",
        "ctx_len=16-seed=123",
        "ctx_len=32-seed=42",
        "ctx_len=32-seed=123",
    ]
    assert cases[1].params == {"ctx_len": 16, "seed": 123}
    assert list(cases[1].params) == ["ctx_len", "seed"]


@pytest.mark.parametrize("matrix", [None, {}])
def test_without_a_matrix_there_is_one_nameless_case(matrix: Any) -> None:
    (case,) = expand(matrix)
    assert (case.id, case.params, case.marks) == ("", {}, ())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (16, "16"),
        (-1, "-1"),
        (1e-3, "0.001"),
        (1e-5, "1e-05"),
        (-0.0, "-0.0"),
        (True, "True"),
        (None, "None"),
        ("adam", "adam"),
        ("cuda:0", "cuda:0"),
        ("größe", "größe"),
        ((0.9, 0.999), "(0.9,0.999)"),
        ((), "()"),
        (("a", (1,)), "(a,(1))"),
        ({"b": 2, "a": 1}, "{a=1,b=2}"),
        ("1", "'1'"),
        ("1e-3", "'1e-3'"),
        ("0x10", "'0x10'"),
        ("true", "'true'"),
        ("None", "'None'"),
        ("", "''"),
        ("a,b", "'a,b'"),
        ("a=b", "'a=b'"),
        ("it's", "'it%27s'"),
        ("two words", "two%20words"),
        ("data/train", "data%2Ftrain"),
        ("std::vector", "std%3A%3Avector"),
        ("x[0]", "x%5B0%5D"),
        ("100%", "100%25"),
        ("line\nbreak", "line%0Abreak"),
        ("\u202eright to left", "%E2%80%AEright%20to%20left"),
    ],
)
def test_a_value_reads_in_its_id_as_it_was_written(value: Any, text: str) -> None:
    assert ids_of(value) == [f"x={text}"]


def test_a_long_value_is_cut_and_stays_apart_from_its_neighbours() -> None:
    first, second = ids_of("words " * 1000 + "a", "words " * 1000 + "b")
    assert first != second
    assert len(first) < 100
    assert first.startswith("x=words%20words")


@given(axis(max_size=6), axis(max_size=6))
def test_ids_are_unique_and_fit_for_a_node_id(first: list[Any], second: list[Any]) -> None:
    ids = [case.id for case in expand({"a": first, "b": second})]
    assert len(set(ids)) == len(first) * len(second)
    for each in ids:
        assert not re.search(r"[\s\[\]/]|::", each)
        assert each.isprintable()


@given(st.dictionaries(st.sampled_from(["a", "b", "lr"]), axis(max_size=3)))
def test_parameters_survive_json(matrix: dict[str, list[Any]]) -> None:
    for case in expand(matrix):
        text = json.dumps(encode_params(case.params), allow_nan=False)
        assert typed(decode_params(json.loads(text))) == typed(dict(case.params))


def test_decoded_parameters_are_no_ones_but_the_readers() -> None:
    record = {"cfg": {"layers": [1, 2]}}
    decode_params(record)["cfg"]["layers"] = ()  # type: ignore[index]
    assert record == {"cfg": {"layers": [1, 2]}}


def test_changing_the_declaration_afterwards_does_not_reach_the_cases() -> None:
    cfg = {"width": 1}
    (case,) = expand({"cfg": [cfg]})
    cfg["width"] = 2
    assert case.params == {"cfg": {"width": 1}}


def test_a_pytest_param_brings_its_marks_and_its_id() -> None:
    xfail, skip = pytest.mark.xfail(reason="too short"), pytest.mark.skip
    cases = expand(
        {
            "ctx_len": [pytest.param(4, marks=xfail), 16],
            "betas": [pytest.param((0.9, 0.999), id="usual"), pytest.param((0.5, 0.9), marks=[skip])],
        }
    )
    assert [(case.id, case.marks) for case in cases] == [
        ("ctx_len=4-betas=usual", (xfail,)),
        ("ctx_len=4-betas=(0.5,0.9)", (xfail, skip)),
        ("ctx_len=16-betas=usual", ()),
        ("ctx_len=16-betas=(0.5,0.9)", (skip,)),
    ]
    assert cases[0].params == {"ctx_len": 4, "betas": (0.9, 0.999)}


def test_a_range_is_an_axis() -> None:
    assert ids_of(*range(2)) == [case.id for case in expand({"x": range(2)})]


@pytest.mark.parametrize(
    ("values", "way_out"),
    [
        ("abc", r"\['abc'\]"),
        (16, r"\[16\]"),
        ([], "is empty"),
        ((), "is empty"),
        ({1, 2}, "no lasting order"),
        ({"a": 1}, "write a list"),
        ((i for i in range(3)), "write a list"),
        (np.linspace(0, 1, 3), r"numpy.ndarray take \.tolist\(\)"),
        (pytest.param(1), "into a list"),
        (Placeholder("width"), "a list, a tuple or a range"),
    ],
)
def test_an_axis_that_is_no_list_of_values_is_refused_with_the_way_out(values: Any, way_out: str) -> None:
    message = error_of({"seed": [1], "lr": values})
    assert "'lr'" in message
    assert re.search(way_out, message)


class Color(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        ([1, 2], "use a tuple"),
        ((1, [2]), "use a tuple"),
        (float("nan"), "no NaN"),
        (float("-inf"), "no infinity"),
        ({"a": float("inf")}, "no infinity"),
        (2**64, "64 bits"),
        ("\ud800", "surrogate"),
        (np.float64(0.1), r"use \.item\(\)"),
        (np.int64(1), r"use \.item\(\)"),
        (np.array([1, 2]), r"\.tolist\(\)"),
        (Color.RED, r"int\(\.\.\.\)"),
        (Point(1, 2), r"tuple\(\.\.\.\)"),
        (OrderedDict(a=1), r"dict\(\.\.\.\)"),
        ({1: 2}, "keys must be str"),
        ({"\ud800": 2}, "surrogate"),
        (1j, "can't be written as JSON"),
        (b"x", "can't be written as JSON"),
        (object, "build the object from them in the task"),
        ((pytest.param(1), 2), "tuple"),
    ],
)
def test_a_value_that_json_would_change_is_refused_with_axis_value_and_way_out(
    value: Any, way_out: str
) -> None:
    message = error_of({"seed": [1], "opt": ["adam", value]})
    assert message.startswith("matrix axis 'opt', value ")
    assert repr(value)[:70] in message
    assert re.search(way_out, message)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    assert "nested deeper" in error_of({"x": [loop]})


@pytest.mark.parametrize(
    "twice",
    [
        [1, 2, 1],
        [0.001, 1e-3],
        ["a", "a"],
        [{"a": 1, "b": 2}, {"b": 2, "a": 1}],
        [1, pytest.param(1, id="one")],
    ],
)
def test_a_value_that_comes_twice_is_refused(twice: list[Any]) -> None:
    assert "twice" in error_of({"lr": twice})


def test_two_values_under_one_id_are_refused() -> None:
    message = error_of({"lr": [pytest.param(1, id="fast"), pytest.param(2, id="fast")]})
    assert "the id fast twice" in message


def test_a_pytest_param_of_several_values_is_refused() -> None:
    assert "pytest.param((a, b))" in error_of({"betas": [pytest.param(0.9, 0.999)]})


@pytest.mark.parametrize("name", ["", "weight decay", "lr-max", "1st", "a=b", "a..b", 3, None])
def test_an_axis_name_must_be_usable_as_a_name(name: Any) -> None:
    assert "identifier" in error_of({name: [1]})


def test_a_dotted_axis_name_is_usable() -> None:
    assert expand({"model.width": [8]})[0].id == "model.width=8"


@pytest.mark.parametrize("matrix", [[("a", [1])], "a=1", 3])
def test_a_matrix_that_is_no_mapping_is_refused(matrix: Any) -> None:
    assert "matrix must be a dict" in error_of(matrix)


def test_an_accidental_explosion_is_refused_before_it_fills_the_memory() -> None:
    message = error_of({f"a{i}": range(100) for i in range(8)})
    assert f"{MAX_CASES:,} is the limit" in message


@given(st.text(max_size=200), st.integers(1, 120))
def test_a_slug_is_safe_as_a_file_name(text: str, limit: int) -> None:
    name = slug(text, limit)
    assert re.fullmatch(r"[A-Za-z0-9_=+][A-Za-z0-9._=+-]*", name)
    assert len(name) <= limit


@pytest.mark.parametrize(
    ("text", "name"),
    [("ctx_len=16-seed=42", "ctx_len=16-seed=42"), ("x=two%20words", "x=two_words"), ("..", "_"), ("", "_")],
)
def test_a_slug_keeps_what_it_can(text: str, name: str) -> None:
    assert slug(text) == name
