"""The parameters of a running case, which the command `update_params` may change.

There are two views of them. Until the loop begins, code sees the values that the case was declared with, also
in a resumed run, so that constructors do exactly what they did when the run was new. From the first step on
it sees the live ones.

A float, also one inside a tuple or a dict, is handed out as an object that exists nowhere else, one for each
place and each value it has had. So an optimizer's `lr` that *is* that object was taken from that parameter,
and `origin_of` can tell; a product such as `0.1 * lr`, or an equal number from elsewhere, is another object.
It needn't be a new object for every call: one for each value says as much, and what has to be remembered
grows with the changes and not with the calls, so that code may ask in every step, and an optimizer that is
made in the middle of the loop is recognised like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from alchemy import params as parameters
from alchemy.errors import ConfigurationError
from alchemy.matrix import Value, decode_params, encode_params

__all__ = ["Change", "LiveParams", "Origin"]

_MAX_SHOWN = 80
# What every JSON writer in use keeps exactly.
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_SORTS: Mapping[type, str] = {
    bool: "true or false",
    int: "an int",
    float: "a number",
    str: "a text",
    tuple: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One update of parameters."""

    id: str
    """The id of the command that asked for it."""
    step: int
    """The step from which on the new values hold."""
    values: Mapping[str, Value]
    """The new values; parameters that aren't named stay as they are."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"id": self.id, "step": self.step, "values": encode_params(self.values)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Change:
        """Undo `to_record`.

        Raises:
            ValueError: The record is no change; says what is wrong with it.
        """
        match record:
            case {"id": str(name), "step": int(step), "values": dict(values)}:
                return cls(name, step, decode_params(values))
        raise ValueError(f"a change of parameters needs id, step and values, not {_brief(record)}")


class Origin(NamedTuple):
    """Where in the parameters a float stands."""

    name: str
    path: tuple[str | int, ...] = ()
    """Keys and indexes, where it is inside a dict or a tuple."""

    def __str__(self) -> str:
        return self.name + "".join(f"[{step!r}]" for step in self.path)

    def value_in(self, values: Mapping[str, Any]) -> Any:
        """Return what stands there in `values`."""
        value = values[self.name]
        for step in self.path:
            value = value[step]
        return value


class LiveParams(Mapping[str, Value]):
    """A case's parameters, read-only; `apply` is the one way to change them.

    One thread changes them, between two steps; any thread may read.
    """

    __slots__ = ("_begun", "_changes", "_declared", "_known", "_live")

    def __init__(self, declared: Mapping[str, Value]) -> None:
        """Take the values that the case was declared with."""
        self._known: dict[int, tuple[Origin, float]] = {}
        """By id(); with the object, so that no other one gets its id. In a pickled copy the ids are stale."""
        self._declared = {name: self._own(Origin(name), value) for name, value in declared.items()}
        self._live = self._declared
        self._changes: tuple[Change, ...] = ()
        self._begun = False

    def __getitem__(self, name: str) -> Value:
        return self._view[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)

    def __repr__(self) -> str:
        return f"LiveParams({self._view!r})"

    def lookup(self, name: str, default: Any = parameters.MISSING) -> Any:
        """Return one parameter; a dict is a copy, so that changing it reaches nobody else.

        Raises:
            MissingParameter: The case doesn't have it and there is no default.
        """
        __tracebackhide__ = True
        return parameters.lookup(self._view, name, default)

    def origin_of(self, value: object) -> Origin | None:
        """Return where this very object stands or stood in the parameters; None for any other object."""
        found = self._known.get(id(value))
        return found[0] if found is not None and found[1] is value else None

    def name_of(self, value: object) -> str | None:
        """Return the name of the parameter that this very object came from; None for any other object."""
        origin = self.origin_of(value)
        return None if origin is None else origin.name

    def begin(self) -> None:
        """From now on code sees the live values: the loop begins."""
        self._begun = True

    @property
    def live(self) -> Mapping[str, Value]:
        """The live values, also before the loop begins."""
        return dict(self._live)

    @property
    def changes(self) -> tuple[Change, ...]:
        """All changes of this run so far, oldest first, those before a resume included."""
        return self._changes

    def check(self, new: Mapping[str, Any]) -> dict[str, Value]:
        """Return the values of an update as parameters hold them, or refuse them all.

        A value must be of the same sort as the one it replaces: a number for a float, an int for an int, true
        or false for a bool, a text for a text; a list has as many elements, an object the same keys, and each
        of them the same sort. None stays None, since nothing says what else may stand there.

        Args:
            new: Name to value, as they come from JSON.

        Raises:
            ConfigurationError: Names the first parameter that can't be meant, and why.
        """
        if not isinstance(new, Mapping) or not new:
            raise ConfigurationError(
                f'update_params needs at least one new value, such as {{"lr": 0.001}}; {self._there_are()}'
            )
        for name in new:
            if name not in self._declared:
                raise ConfigurationError(
                    f"there is no parameter {_brief(name)} to update: {self._there_are()} (one that only "
                    "has a default in the code is not among them: put it into the matrix)"
                )
        return {name: _of_same_sort(name, value, self._live[name]) for name, value in new.items()}

    def apply(self, change: Change) -> None:
        """Let a change hold, once per id; its values have passed `check`.

        Raises:
            ConfigurationError: It names a parameter that the case doesn't have.
        """
        if any(change.id == each.id for each in self._changes):
            return
        self._live = self._changed(self._live, change)
        self._changes += (change,)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, as JSON."""
        return {"changes": [change.to_record() for change in self._changes]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` returned; what has been applied here is forgotten.

        Raises:
            ValueError: It is not what `state` returns.
            ConfigurationError: A change names a parameter that the case doesn't have.
        """
        match state:
            case {"changes": list(records)}:
                changes = tuple(Change.from_record(record) for record in records)
            case _:
                raise ValueError(f"the state of parameters needs a list of changes, not {_brief(state)}")
        live = self._declared
        for change in changes:
            live = self._changed(live, change)
        self._live, self._changes = live, changes

    @property
    def _view(self) -> dict[str, Value]:
        return self._live if self._begun else self._declared

    def _changed(self, values: dict[str, Value], change: Change) -> dict[str, Value]:
        """Return a new dict, so that a thread that is just reading sees all of a change or nothing of it."""
        unknown = [name for name in change.values if name not in self._declared]
        if unknown:
            raise ConfigurationError(
                f"the update {change.id} is of a parameter {unknown[0]!r}: {self._there_are()}"
            )
        return {**values, **{name: self._own(Origin(name), value) for name, value in change.values.items()}}

    def _own(self, origin: Origin, value: Value) -> Value:
        """Return an equal value whose floats nobody else has, and remember where they stand."""
        name, path = origin
        if isinstance(value, tuple):
            return tuple(self._own(Origin(name, (*path, i)), each) for i, each in enumerate(value))
        if isinstance(value, dict):
            return {key: self._own(Origin(name, (*path, key)), each) for key, each in value.items()}
        if isinstance(value, float):
            value *= 1.0  # makes a new float, of NaN and infinity too
            self._known[id(value)] = origin, value
        return value

    def _there_are(self) -> str:
        return f"the case has {', '.join(self._declared)}" if self._declared else "the case has no parameters"


def _of_same_sort(where: str, new: Any, old: Value) -> Value:
    """Return `new` in the type of `old`; `where` is the parameter's name, or for example `betas[0]`."""
    if isinstance(old, tuple) and isinstance(new, (list, tuple)):
        return _same_length(where, new, old)
    if isinstance(old, dict) and isinstance(new, dict):
        return _same_keys(where, new, old)
    if isinstance(old, float) and _is_int(new):
        new = _as_float(where, new)
    if type(new) is not type(old):
        raise ConfigurationError(f"{where} is {_sort(old)} ({_brief(old)}), and can't become {_brief(new)}")
    why = _why_unfit(new, old)
    if why:
        raise ConfigurationError(f"{where} can't become {_brief(new)}: {why}")
    return new


def _same_length(where: str, new: list[Any] | tuple[Any, ...], old: tuple[Value, ...]) -> Value:
    if len(new) != len(old):
        raise ConfigurationError(
            f"{where} has {len(old)} elements ({_brief(old)}), and can't become {_brief(new)} with {len(new)}"
        )
    pairs = enumerate(zip(new, old, strict=True))
    return tuple(_of_same_sort(f"{where}[{index}]", *pair) for index, pair in pairs)


def _same_keys(where: str, new: dict[Any, Any], old: dict[str, Value]) -> Value:
    if new.keys() != old.keys():
        raise ConfigurationError(
            f"{where} has the keys {', '.join(old) or 'of an empty object'}, and can't become {_brief(new)}: "
            "an update gives the whole value, with the same keys"
        )
    return {key: _of_same_sort(f"{where}[{key!r}]", new[key], old[key]) for key in old}


def _why_unfit(new: Any, old: Value) -> str:
    """Say why a value of the right type can't be one of a parameter; "" if it can."""
    if isinstance(old, float):
        return "it is not finite" if math.isfinite(old) and not math.isfinite(new) else ""
    if _is_int(new):
        return "" if _MIN_INT <= new <= _MAX_INT else "an int must fit into 64 bits"
    if isinstance(new, str):
        try:
            new.encode()
        except UnicodeEncodeError:
            return "it holds half a surrogate pair, which no file can"
    return ""


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_float(where: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigurationError(f"{where} can't become {_brief(value)}: it is too large") from None


def _sort(value: Value) -> str:
    if value is None:
        return "None, which says nothing about what else it may be,"
    whole = " (a matrix with 1.0 instead of 1 makes it a number)" if _is_int(value) else ""
    return f"{_SORTS[type(value)]}{whole}"


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 1]}…"
