"""Optimizers that follow a parameter: after `update_params lr=1e-4` a managed optimizer trains with 1e-4.

A hyperparameter of a group follows when its value *is* the object that `ctx.param` handed out: in
`Adam(..., lr=ctx.param("lr"))` the learning rate follows, in `lr=0.1 * ctx.param("lr")` it doesn't, and nor
does an int, which can't be told from another. What follows is noted at the assignment, as optimizer, group
and key, since loading a state puts other objects in their place.

With a scheduler the run goes on as if it had begun with the new value: what the schedule has made of the old
one so far is kept as a factor. That is exact where the learning rate is a multiple of the one the run began
with, or approaches an `eta_min` from it. A schedule with values of its own (`OneCycleLR`, `CyclicLR`, a
`SWALR` that has begun) is refused, as is a schedule that begins at 0, of which no factor can be told.

Nothing is imported here: optimizers, schedulers and tensors are recognised by their shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from alchemy.errors import ConfigurationError
from alchemy.live.params import LiveParams, Origin
from alchemy.live.schedules import Schedule, belongs, has_method, is_scheduler, number, same
from alchemy.matrix import Value

__all__ = ["Follower"]

# Of a group: the weights, and what a scheduler keeps there of the learning rate, which is set along with it.
_NOT_HYPERPARAMETERS = frozenset({"params", "param_names", "initial_lr"})
# Of a group, put there by OneCycleLR, CyclicLR and SWALR.
_KEYS_OF_SCHEDULERS = frozenset({"max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum"})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter's value stands in an optimizer."""

    group: int
    key: str
    item: int | None
    """Which element of a tuple such as `betas`; None for the value itself."""
    origin: Origin

    @property
    def what(self) -> str:
        return self.key if self.item is None else f"{self.key}[{self.item}]"

    def is_in(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the groups still have this place; user code may have changed them."""
        value = groups[self.group].get(self.key) if self.group < len(groups) else None
        if self.item is None:
            return value is not None
        return isinstance(value, (tuple, list)) and self.item < len(value)


@dataclass(slots=True)
class _Bound:
    """A managed optimizer; the places are the keys, in order."""

    optimizer: Any
    places: dict[_Place, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Write:
    """One number to set; in place where a tensor stands there."""

    container: Any
    key: Any
    item: int | None
    value: float

    def __call__(self) -> None:
        if self.item is None:
            _put(self.container, self.key, self.value)
        else:
            elements = list(self.container[self.key])
            _put(elements, self.item, self.value)
            self.container[self.key] = tuple(elements)


@dataclass(slots=True)
class _Plan:
    """What an update does to the optimizers, made whole before anything is set."""

    writes: list[_Write] = field(default_factory=list)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What follows, for people, with a note, and in how many groups."""
    notes: dict[str, None] = field(default_factory=dict)
    """What doesn't, and why."""

    def texts(self) -> list[str]:
        """Return all of it for people."""
        moves = [
            f"{text}{note}" if count == 1 else f"{text} ({count} groups){note}"
            for (text, note), count in self.moves.items()
        ]
        return [*moves, *self.notes]


class Follower:
    """Knows which hyperparameters of managed optimizers were taken from parameters, and lets them follow."""

    __slots__ = ("_optimizers", "_schedulers")

    def __init__(self) -> None:
        self._optimizers: dict[str, _Bound] = {}
        self._schedulers: dict[str, Any] = {}

    def bind(self, name: str, value: object, params: LiveParams) -> None:
        """Note what a managed value took from parameters; to be called before anything is restored into it.

        Args:
            name: The managed name; what had it before is forgotten.
            value: Anything; only optimizers and schedulers leave a trace.
            params: What handed the parameters out.
        """
        self.unbind(name)
        if _is_optimizer(value):
            self._optimizers[name] = _Bound(value)
        elif is_scheduler(value):
            self._schedulers[name] = value
        else:
            return
        # Also after a scheduler: CyclicLR puts values of its own into the groups.
        for bound in self._optimizers.values():
            if bound.optimizer is value or belongs(value, bound.optimizer):
                bound.places.update(dict.fromkeys(_places(bound.optimizer, params)))

    def unbind(self, name: str) -> None:
        """Forget a managed name, because it was deleted or now means something else."""
        self._optimizers.pop(name, None)
        self._schedulers.pop(name, None)

    def can_follow(self, old: Mapping[str, Any], new: Mapping[str, Value]) -> None:
        """Make sure that `follow` would go through; changes nothing.

        Raises:
            ConfigurationError: Something can't follow, and the update would be half done; says what and why.
        """
        self._plan(old, new)

    def follow(self, old: Mapping[str, Any], new: Mapping[str, Value]) -> list[str]:
        """Set what was taken from the parameters in `new`, between two steps.

        Args:
            old: The values before; may have others too.
            new: The new values, checked by `LiveParams.check`.

        Returns:
            For people: what followed, such as `optimizer.lr 0.001 -> 0.0001 (2 groups)`, then what didn't
            and why.

        Raises:
            ConfigurationError: As in `can_follow`; nothing was changed.
        """
        plan = self._plan(old, new)
        for write in plan.writes:
            write()
        return plan.texts()

    def _plan(self, old: Mapping[str, Any], new: Mapping[str, Value]) -> _Plan:
        plan = _Plan()
        for parameter in new:
            if new[parameter] == old[parameter]:
                continue
            places = [
                (name, bound.optimizer, place)
                for name, bound in self._optimizers.items()
                for place in bound.places
                if place.origin.name == parameter
            ]
            for name, optimizer, place in places:
                self._plan_place(
                    plan, name, optimizer, place, (place.origin.value_in(old), place.origin.value_in(new))
                )
            for name, bound in self._optimizers.items():
                _note_other_groups(plan, name, bound, parameter)
            if not places:
                plan.notes[_nothing_follows(parameter)] = None
        return plan

    def _plan_place(
        self, plan: _Plan, name: str, optimizer: Any, place: _Place, change: tuple[float, float]
    ) -> None:
        groups = optimizer.param_groups
        where = f"{name}.{place.what}"
        if not place.is_in(groups):
            plan.notes[f"{where} of group {place.group} is gone: nothing there could follow"] = None
            return
        group = groups[place.group]
        if change[0] == change[1]:
            return
        _refuse_unfit(where, place, change)
        if place.key == "lr" and place.item is None:
            self._plan_lr(plan, where, optimizer, place, change)
            return
        current = group[place.key] if place.item is None else group[place.key][place.item]
        if not same(current, change[0]):
            plan.notes[
                f"{where} stays {number(current)}: it was not at the old value of {place.origin}, "
                f"{number(change[0])}, so something else sets it"
            ] = None
            return
        plan.writes.append(_Write(group, place.key, place.item, change[1]))
        plan.moves[f"{where} {number(current)} -> {number(change[1])}", ""] += 1

    def _plan_lr(
        self, plan: _Plan, where: str, optimizer: Any, place: _Place, change: tuple[float, float]
    ) -> None:
        group = optimizer.param_groups[place.group]
        tops = {name: value for name, value in self._schedulers.items() if belongs(value, optimizer)}
        schedule = Schedule.of(tops)
        current = group["lr"]
        schedule.refuse(where, place.origin, current, group.get("initial_lr"), change)
        after = schedule.moved(current, change)
        plan.writes.append(_Write(group, "lr", None, after))
        if "initial_lr" in group:
            plan.writes.append(_Write(group, "initial_lr", None, change[1]))
        for scheduler in schedule.all:
            _plan_scheduler(plan, schedule, scheduler, place.group, change)
        note = schedule.note(place.origin, change, "initial_lr" in group, same(current, change[0]))
        plan.moves[f"{where} {number(current)} -> {number(after)}", note] += 1


def _plan_scheduler(
    plan: _Plan, schedule: Schedule, scheduler: Any, group: int, change: tuple[float, float]
) -> None:
    base = getattr(scheduler, "base_lrs", None)
    if isinstance(base, list) and group < len(base):
        plan.writes.append(_Write(base, group, None, change[1]))
    last = getattr(scheduler, "_last_lr", None)  # what get_last_lr() returns, which people log
    if isinstance(last, list) and group < len(last):
        plan.writes.append(_Write(last, group, None, schedule.moved(last[group], change)))


def _refuse_unfit(where: str, place: _Place, change: tuple[float, float]) -> None:
    old, new = change
    start = f"{place.origin} can't become {number(new)}: "
    if place.key in _KEYS_OF_SCHEDULERS:
        raise ConfigurationError(
            f"{place.origin} can't be updated: {where} belongs to a scheduler that computes from several "
            f"values of its own; start a new run with {place.origin}={number(new)} instead"
        )
    if old >= 0 > new:
        raise ConfigurationError(f"{start}{where} follows it, and no optimizer takes a negative {place.key}")
    if place.key == "betas" and not 0 <= new < 1:
        raise ConfigurationError(f"{start}{where} follows it, and must be at least 0 and less than 1")


def _note_other_groups(plan: _Plan, name: str, bound: _Bound, parameter: str) -> None:
    """Note the groups that don't follow although others of the same optimizer do."""
    keys = {(place.key, place.item): place.what for place in bound.places if place.origin.name == parameter}
    for (key, item), what in keys.items():
        followed = {place.group for place in bound.places if (place.key, place.item) == (key, item)}
        for index in sorted(set(range(len(bound.optimizer.param_groups))) - followed):
            plan.notes[f"{name}.{what} of group {index} stays: it was not taken from {parameter}"] = None


def _nothing_follows(parameter: str) -> str:
    return (
        f"nothing follows {parameter}: no hyperparameter of a managed optimizer is a float that "
        f"ctx.param({parameter!r}) returned (an int, a product or a tensor made of it is not one); code that "
        "asks again gets the new value"
    )


def _places(optimizer: Any, params: LiveParams) -> Iterator[_Place]:
    """Find the values in the groups that parameters handed out."""
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key in _NOT_HYPERPARAMETERS:
                continue
            origin = params.origin_of(value)
            if origin is None and key == "lr":
                # A scheduler's constructor has put a product there, and the value itself here.
                origin = params.origin_of(group.get("initial_lr"))
            if origin is not None:
                yield _Place(index, key, None, origin)
            for item, each in enumerate(value if isinstance(value, tuple) else ()):
                if (origin := params.origin_of(each)) is not None:
                    yield _Place(index, key, item, origin)


def _is_optimizer(value: object) -> bool:
    return (
        has_method(value, "step")
        and has_method(value, "state_dict")
        and isinstance(getattr(value, "param_groups", None), list)
    )


def _put(container: Any, key: Any, value: float) -> None:
    """Set a number; a tensor is filled, since a captured graph reads that very tensor."""
    current = container[key]
    if hasattr(current, "fill_"):
        current.fill_(value)
    else:
        container[key] = value
