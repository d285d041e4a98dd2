"""Resources are checked where they are declared, and none of them can become shell or scheduler text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alchemy.errors import ConfigurationError
from alchemy.resources import Resources

GIVEN: dict[str, st.SearchStrategy[Any]] = {
    "nodes": st.integers(1, 100),
    "gpus": st.integers(0, 8),
    "cpus": st.integers(1, 128),
    "mem": st.sampled_from(["4G", "500M"]),
    "time": st.sampled_from(["30", "1-12:00:00"]),
    "partition": st.sampled_from(["gpu", "cpu,long"]),
    "account": st.sampled_from(["a", "b"]),
}
WISHES = st.fixed_dictionaries({}, optional=GIVEN).map(lambda wishes: Resources.parse(wishes, "here"))


def parse(**wishes: Any) -> Resources:
    return Resources.parse(wishes, "experiment 'demo'")


def test_everything_can_be_said() -> None:
    wishes = {
        "nodes": 2,
        "gpus": 4,
        "cpus": 8,
        "mem": "16G",
        "time": "2:00:00",
        "partition": "a,b",
        "account": "x",
    }
    assert parse(**wishes).given() == wishes


def test_nothing_need_be_said() -> None:
    assert parse() == parse(gpus=None) == Resources()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("gpus", 0, 0),
        ("gpus", "2", 2),
        ("mem", 4000, "4000M"),
        ("mem", "16g", "16G"),
        ("mem", "0", "0"),
        ("time", 30, "30"),
        ("time", "90:30", "90:30"),
        ("time", "1-12", "1-12"),
        ("time", "1-12:30:00", "1-12:30:00"),
        ("time", "unlimited", "UNLIMITED"),
    ],
)
def test_slurms_own_forms_are_read(name: str, value: Any, read: Any) -> None:
    assert getattr(parse(**{name: value}), name) == read


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("nodes", 0, "1 or more"),
        ("gpus", -1, "0 or more"),
        ("gpus", True, "whole number"),
        ("gpus", 1.5, "whole number"),
        ("gpus", "a100:2", "whole number"),
        ("cpus", "٣", "whole number"),
        ("mem", "16GB", "write '16G'"),
        ("mem", "1.5G", "such as '16G'"),
        ("mem", -1, "such as '16G'"),
        ("time", "2h", "hours:minutes:seconds"),
        ("time", "10\n", "hours:minutes:seconds"),
        ("partition", "-p", "not beginning with '-'"),
        ("partition", "", "letters"),
        ("partition", "a b", "letters"),
        ("partition", "gpu\n#SBATCH --wrap=x", "letters"),
        ("partition", "gpu\n", "letters"),
        ("account", "$(id)", "letters"),
        ("account", "a;b", "letters"),
        ("account", "a#b", "letters"),
        ("account", "x" * 201, "letters"),
        ("account", 3, "letters"),
    ],
)
def test_a_value_of_another_form_is_refused_with_the_way_out(name: str, value: Any, way_out: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(**{name: value})
    assert str(caught.value).startswith(f"experiment 'demo': resource {name} ")
    assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpu", "gpus"),
        ("GPUs", "gpus"),
        ("memory", "mem"),
        ("cpus-per-task", "cpus"),
        ("partitoin", "partition"),
    ],
)
def test_an_unknown_resource_is_refused_with_the_close_match(name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"unknown resource '{name}'; did you mean '{meant}'"):
        parse(**{name: 1})


def test_an_unknown_resource_that_is_close_to_nothing_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigurationError, match="known are nodes, gpus, cpus, mem, time, partition, account"
    ):
        parse(quantum=1)


def test_trusted_text_belongs_into_a_profile() -> None:
    with pytest.raises(ConfigurationError, match=r"\[tool\.alchemy\.clusters\.NAME\]"):
        parse(setup="module load cuda")


@pytest.mark.parametrize("mapping", ["gpus=1", [("gpus", 1)], 3])
def test_resources_that_are_no_mapping_are_refused(mapping: Any) -> None:
    with pytest.raises(ConfigurationError, match="resources must be a dict"):
        Resources.parse(mapping, "here")


@given(WISHES, WISHES)
def test_what_is_said_goes_over_what_was_said_before(upper: Resources, lower: Resources) -> None:
    assert upper.over(lower).given() == {**lower.given(), **upper.given()}


@given(WISHES)
def test_saying_nothing_changes_nothing(wishes: Resources) -> None:
    assert wishes.over(Resources()) == Resources().over(wishes) == wishes.over(wishes) == wishes
