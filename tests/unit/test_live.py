"""The parameters of a running case: two views, updates of the same sort, objects that tell their origin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from alchemy.errors import ConfigurationError, MissingParameter
from alchemy.live.params import Change, LiveParams
from alchemy.matrix import Value
from alchemy.params import param, scope

DECLARED: Mapping[str, Value] = {
    "lr": 1e-3,
    "width": 64,
    "nesterov": False,
    "name": "adam",
    "clip": None,
    "betas": (0.9, 0.999),
    "opt": {"eps": 1e-8, "steps": (1, 2)},
}


def begun(declared: Mapping[str, Value] = DECLARED, *changes: Change) -> LiveParams:
    params = LiveParams(declared)
    for change in changes:
        params.apply(change)
    params.begin()
    return params


def test_until_the_loop_begins_the_declared_values_hold_and_then_the_live_ones() -> None:
    params = LiveParams(DECLARED)
    params.apply(Change("c1", 7, {"lr": 1e-4}))
    assert params["lr"] == params.lookup("lr") == 1e-3
    assert params.live == {**DECLARED, "lr": 1e-4}
    params.begin()
    assert params["lr"] == params.lookup("lr") == 1e-4
    assert dict(params) == {**DECLARED, "lr": 1e-4}
    params.apply(Change("c2", 9, {"lr": 1e-5, "width": 32}))
    assert (params["lr"], params["width"], params["name"]) == (1e-5, 32, "adam")


def test_what_is_missing_is_the_default_or_an_error_that_names_what_there_is() -> None:
    params = LiveParams({"lr": 0.1})
    assert params.lookup("width", None) is None
    with pytest.raises(MissingParameter, match=r"'width'.*the case has lr"):
        params.lookup("width")


def test_changing_a_dict_reaches_nobody_else() -> None:
    params = begun()
    params.lookup("opt")["eps"] = 9
    assert params.lookup("opt") == DECLARED["opt"]


@pytest.mark.parametrize("value", [1e-3, 0.0, -0.0, math.inf])
def test_a_value_that_was_handed_out_is_recognised_and_an_equal_one_is_not(value: Value) -> None:
    params = LiveParams({"lr": value, "other": value})
    handed = params.lookup("lr")
    assert handed == value
    assert params.name_of(handed) == "lr"
    assert params.name_of(params.lookup("other")) == "other"
    assert params.name_of(value) is None
    assert LiveParams({"lr": value}).name_of(handed) is None


def test_a_float_inside_a_value_is_recognised_with_its_place() -> None:
    params = begun(
        {"betas": (0.9, 0.999), "opt": {"sgd": ({"lr": 0.1},)}}, Change("c", 1, {"betas": (0.5, 0.6)})
    )
    origin = params.origin_of(params.lookup("opt")["sgd"][0]["lr"])
    assert origin is not None
    assert str(origin) == "opt['sgd'][0]['lr']"
    assert origin.value_in({"opt": {"sgd": ({"lr": 7},)}}) == 7
    assert [str(params.origin_of(each)) for each in params.lookup("betas")] == ["betas[0]", "betas[1]"]


def test_not_a_number_is_recognised_too() -> None:
    params = LiveParams({"lr": math.nan})
    assert math.isnan(params.lookup("lr"))
    assert params.name_of(params.lookup("lr")) == "lr"


def test_a_module_that_reads_its_parameters_gets_objects_that_are_recognised() -> None:
    params = LiveParams({"lr": 0.1})
    with scope(params):
        assert params.name_of(param("lr", 0.1)) == "lr"


def test_what_was_handed_out_before_a_change_is_still_recognised() -> None:
    params = LiveParams({"lr": 0.1})
    before = params.lookup("lr")
    params.begin()
    params.apply(Change("c1", 1, {"lr": 0.01}))
    assert params.name_of(before) == "lr"
    assert params.name_of(params.lookup("lr")) == "lr"


def test_asking_in_every_step_costs_no_memory() -> None:
    params = begun({"lr": 0.1})
    assert len({id(params.lookup("lr")) for _ in range(1000)}) == 1


@pytest.mark.parametrize("value", [1, 64, True, "adam", None, (), {}, (0.1,)])
def test_what_could_be_the_same_object_as_anything_else_is_not_recognised(value: Value) -> None:
    params = LiveParams({"x": value})
    assert params.name_of(params.lookup("x")) is None


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("lr", 0.01, 0.01),
        ("lr", 1, 1.0),
        ("width", 65, 65),
        ("nesterov", True, True),
        ("name", "sgd", "sgd"),
        ("clip", None, None),
        ("betas", [0, 0.5], (0.0, 0.5)),
        ("opt", {"steps": [3, 4], "eps": 1}, {"eps": 1.0, "steps": (3, 4)}),
    ],
)
def test_a_value_of_the_same_sort_is_taken_in_the_type_of_the_old_one(
    name: str, given: Any, taken: Value
) -> None:
    found = LiveParams(DECLARED).check({name: given})
    assert found == {name: taken}
    assert repr(found[name]) == repr(taken)


@pytest.mark.parametrize(
    ("new", "text"),
    [
        ({}, r"needs at least one new value.*the case has lr, width"),
        ([], r"needs at least one new value"),
        ({"rate": 1}, r"no parameter 'rate' to update: the case has lr, width.*put it into the matrix"),
        ({"lr": 0.1, "rate": 1}, r"no parameter 'rate'"),
        ({"lr": "0.1"}, r"^lr is a number \(0.001\), and can't become '0.1'$"),
        ({"lr": True}, r"lr is a number"),
        ({"lr": None}, r"lr is a number"),
        ({"lr": math.nan}, r"lr can't become nan: it is not finite"),
        ({"lr": math.inf}, r"not finite"),
        ({"lr": 10**400}, r"lr can't become 1000.*too large"),
        ({"width": 64.0}, r"width is an int \(a matrix with 1.0 instead of 1 makes it a number\) \(64\)"),
        ({"width": True}, r"width is an int"),
        ({"width": 2**64}, r"64 bits"),
        ({"nesterov": 1}, r"nesterov is true or false"),
        ({"name": 1}, r"name is a text"),
        ({"name": "\ud800"}, r"surrogate"),
        ({"clip": 1.0}, r"clip is None, which says nothing"),
        ({"betas": 0.9}, r"betas is a list"),
        ({"betas": [0.9]}, r"betas has 2 elements"),
        ({"betas": [0.9, "x"]}, r"betas\[1\] is a number \(0.999\), and can't become 'x'"),
        ({"opt": {"eps": 1.0}}, r"opt has the keys eps, steps"),
        ({"opt": {"eps": 1.0, "steps": [1, 2.5]}}, r"opt\['steps'\]\[1\] is an int"),
    ],
)
def test_an_update_that_cant_be_meant_is_refused_with_the_reason(new: Any, text: str) -> None:
    params = LiveParams(DECLARED)
    with pytest.raises(ConfigurationError, match=text):
        params.check(new)
    assert dict(params) == DECLARED


def test_a_value_that_was_not_finite_may_stay_so() -> None:
    assert LiveParams({"x": math.inf}).check({"x": -math.inf}) == {"x": -math.inf}


def test_a_case_without_parameters_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"'lr'.*the case has no parameters"):
        LiveParams({}).check({"lr": 1})


def test_one_id_has_one_effect() -> None:
    params = begun({"lr": 0.1}, Change("c1", 3, {"lr": 0.01}))
    params.apply(Change("c2", 4, {"lr": 0.5}))
    params.apply(Change("c1", 5, {"lr": 0.01}))
    assert params["lr"] == 0.5
    assert [change.id for change in params.changes] == ["c1", "c2"]


def test_a_change_of_an_unknown_parameter_changes_nothing() -> None:
    params = begun({"lr": 0.1})
    with pytest.raises(ConfigurationError, match=r"update c1 .*'rate'.*the case has lr"):
        params.apply(Change("c1", 3, {"lr": 0.5, "rate": 1.0}))
    assert params["lr"] == 0.1
    assert params.changes == ()


def test_a_resumed_run_goes_on_with_the_values_and_the_history_it_had() -> None:
    params = begun(DECLARED, Change("c1", 3, {"lr": 0.01, "betas": (0.5, 0.6)}), Change("c2", 9, {"lr": 0.1}))
    state = json.loads(json.dumps(params.state()))
    resumed = LiveParams(DECLARED)
    resumed.restore(state)
    assert dict(resumed) == DECLARED
    assert resumed.changes == params.changes
    resumed.begin()
    assert dict(resumed) == dict(params)
    assert resumed.name_of(resumed.lookup("lr")) == "lr"
    assert resumed.state() == params.state()


def test_restoring_forgets_what_was_applied_here() -> None:
    params = begun({"lr": 0.1}, Change("c1", 3, {"lr": 0.01}))
    params.restore({"changes": []})
    assert params["lr"] == 0.1


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"changes": {}},
        {"changes": [{"id": "c1"}]},
        {"changes": [{"id": "c1", "step": "3", "values": {}}]},
    ],
)
def test_a_state_that_is_none_is_refused(state: Any) -> None:
    params = begun({"lr": 0.1})
    with pytest.raises(ValueError, match=r"needs"):
        params.restore(state)
    assert params["lr"] == 0.1


def test_a_state_with_an_unknown_parameter_is_refused() -> None:
    state = begun({"rate": 0.1}, Change("c1", 3, {"rate": 0.5})).state()
    with pytest.raises(ConfigurationError, match=r"'rate'.*the case has lr"):
        LiveParams({"lr": 0.1}).restore(state)
