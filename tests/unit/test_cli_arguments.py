"""KEY=VALUE on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_alchemy.cli.arguments import read_assignments
from pytest_alchemy.cli.trouble import Status, Trouble


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("adam", "adam"),
        ("a=b", "a=b"),
        ("", ""),
        ('"1e-4"', "1e-4"),
        ("[0.9,0.99]", [0.9, 0.99]),
        ('{"a": {"b": 1}}', {"a": {"b": 1}}),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("1.", "1."),
        ("1e999", "1e999"),
        ("größe", "größe"),
    ],
)
def test_a_value_is_json_where_it_is_json_else_text(text: str, value: Any) -> None:
    read = read_assignments([f"key={text}"])
    assert read == {"key": value}
    assert type(read["key"]) is type(value)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["lr"], "'lr' is not KEY=VALUE, such as lr=1e-4"),
        (["=1"], "'=1' is not KEY=VALUE, such as lr=1e-4"),
        (["lr=1", "lr=2"], "'lr' is given twice"),
        (["betas=[0.9, 0.99"], "is not JSON"),
        (["opt={lr:1}"], "in a shell, write opt='…'"),
        (['opt={"a":1,"a":2}'], "a key is given twice"),
        (['name="half'], "is not JSON"),
        (["deep=" + 100_000 * "["], "nested too deeply"),
        (["name=\udcff"], "is not UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(texts: list[str], why: str) -> None:
    with pytest.raises(Trouble) as raised:
        read_assignments(texts)
    assert why in str(raised.value)
    assert raised.value.status == Status.USAGE
