"""A parameter comes from the case, else from the job's environment, else from its default, else nowhere."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest

from alchemy.errors import ConfigurationError, MissingParameter
from alchemy.params import Placeholder, collecting, lookup, param, scope


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALCHEMY_TASK_ID", raising=False)
    monkeypatch.delenv("ALCHEMY_PARAMS", raising=False)


def test_the_case_goes_over_the_environment_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert param("lr", default=1e-3) == 1e-3
    monkeypatch.setenv("ALCHEMY_TASK_ID", "run-1")
    monkeypatch.setenv("ALCHEMY_PARAMS", '{"lr": 0.5, "size": [1, 2]}')
    assert param("lr", default=1e-3) == 0.5
    assert param("size") == (1, 2)
    with scope({"lr": 0.25}):
        assert param("lr", 1e-3) == 0.25
        with scope({"lr": 0.125}):
            assert param("lr") == 0.125
        assert param("lr") == 0.25
    assert param("lr") == 0.5


def test_without_a_task_id_the_environment_supplies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALCHEMY_PARAMS", '{"lr": 0.5}')
    assert param("lr", 1e-3) == 1e-3


@pytest.mark.parametrize("default", [None, False, 0, ""])
def test_an_empty_default_is_a_default(default: object) -> None:
    assert param("lr", default) is default


def test_without_a_default_a_missing_parameter_names_itself_and_those_there_are() -> None:
    with pytest.raises(MissingParameter, match=r"'lr'.*no case is being executed.*default"):
        param("lr")
    with scope({"width": 4}), pytest.raises(MissingParameter, match=r"'lr'.*the case has width"):
        param("lr")


@pytest.mark.parametrize("text", ["{", "[1]", "nonsense"])
def test_an_environment_that_cant_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ALCHEMY_TASK_ID", "run-1")
    monkeypatch.setenv("ALCHEMY_PARAMS", text)
    with pytest.raises(ConfigurationError, match=r"ALCHEMY_PARAMS"):
        param("lr", 1e-3)


def test_the_scope_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), scope({"lr": 1.0}):
        raise KeyError
    assert param("lr", 2.0) == 2.0


def test_threads_of_the_case_see_its_parameters() -> None:
    seen: list[object] = []
    with scope({"lr": 0.5}):
        thread = threading.Thread(target=lambda: seen.append(param("lr", None)))
        thread.start()
        thread.join()
    assert seen == [0.5]


def test_changing_a_dict_reaches_nobody_else() -> None:
    params: Any = {"opt": {"lr": 0.1, "betas": ({"b": 1},)}}
    value = lookup(params, "opt")
    value["lr"] = 9
    value["betas"][0]["b"] = 9
    assert lookup(params, "opt") == {"lr": 0.1, "betas": ({"b": 1},)}


def test_while_collecting_only_what_nothing_supplies_is_a_placeholder() -> None:
    with collecting():
        assert param("lr", 1e-3) == 1e-3
        assert isinstance(param("lr"), Placeholder)
        with scope({"lr": 0.5}):
            assert param("lr") == 0.5
    with pytest.raises(MissingParameter):
        param("lr")


@pytest.fixture
def placeholder() -> Any:
    with collecting():
        return param("width")


@pytest.mark.parametrize(
    "use",
    [
        lambda p: p * 2 + 1,
        lambda p: 2**p - 3 // p,
        lambda p: -p % 7 < 3,
        lambda p: p == 4,
        lambda p: p["lr"][0].lower(),
        lambda p: 1.5 + p,
        lambda p: abs(round(p, 2)),
        copy.copy,
    ],
)
def test_a_placeholder_absorbs_what_module_level_code_does_with_it(
    placeholder: Any, use: Callable[[Any], Any]
) -> None:
    assert isinstance(use(placeholder), Placeholder)


@pytest.mark.parametrize(
    "convert",
    [
        int,
        float,
        str,
        bool,
        list,
        len,
        hash,
        range,
        lambda p: f"{p:.3f}",
        lambda p: f"{p}",
        lambda p: [10, 20][p],
        lambda p: 1 if p > 2 else 0,
        lambda p: 3 in p,
    ],
)
def test_a_placeholder_refuses_conversion_and_names_itself(
    placeholder: Any, convert: Callable[[Any], Any]
) -> None:
    with pytest.raises(MissingParameter, match=r"'width'.*collected.*default.*ctx.param"):
        convert(placeholder)


def test_a_placeholder_can_be_shown(placeholder: Any) -> None:
    assert "width" in repr(placeholder)
