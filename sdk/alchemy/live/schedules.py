"""How an optimizer's learning rate depends on the one it began with, told by the schedulers it has.

Schedulers are recognised by their shape: nothing is imported here. With most of them the learning rate is
floor + (first − floor) × factor, where the floor is 0, or the `eta_min` of a cosine, and the factor depends
on how far the schedule is. So where it would be now with another first value can be computed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alchemy.errors import ConfigurationError

__all__ = ["Schedule", "belongs", "has_method", "is_scheduler", "number", "same"]

# Their learning rate is a multiple of the one the run began with, apart from eta_min and min_lr.
_MULTIPLES = frozenset(
    f"torch.optim.lr_scheduler.{name}"
    for name in (
        "LambdaLR",
        "MultiplicativeLR",
        "StepLR",
        "MultiStepLR",
        "ConstantLR",
        "LinearLR",
        "ExponentialLR",
        "PolynomialLR",
        "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts",
        "ReduceLROnPlateau",
        "SequentialLR",
        "ChainedScheduler",
    )
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """All managed schedulers of one optimizer, and how their learning rate depends on the first one."""

    tops: Mapping[str, Any]
    all: tuple[Any, ...]
    """Those, and all that are in them."""
    floor: float | None
    """The learning rate is floor + (first − floor) × a factor; None where it isn't as simple as that."""

    @classmethod
    def of(cls, tops: Mapping[str, Any]) -> Schedule:
        """Look into the managed schedulers of one optimizer."""
        seen: dict[int, Any] = {}
        for scheduler in tops.values():
            _collect(scheduler, seen)
        inner = {id(each) for top in seen.values() for each in _inside(top)}
        floor = _common_floor(top for top in tops.values() if id(top) not in inner)
        return cls(tops, tuple(seen.values()), floor)

    @property
    def floor_or_0(self) -> float:
        """The floor; 0 where there is none in particular, which is then not exact."""
        return self.floor or 0.0

    def moved(self, lr: Any, change: tuple[float, float]) -> float:
        """Return what a learning rate would be now, had the run begun with the new value."""
        old, new = change
        if same(lr, old):
            return new
        floor = self.floor_or_0
        return floor + (float(lr) - floor) / (old - floor) * (new - floor)

    def refuse(
        self, where: str, parameter: object, current: Any, initial: Any, change: tuple[float, float]
    ) -> None:
        """Refuse what no factor can express.

        Raises:
            ConfigurationError: Says why, and what to do.
        """
        start = f"{parameter} can't be updated: "
        instead = f"start a new run with {parameter}={number(change[1])} instead"
        for scheduler in self.all:
            kinds = {kind.__name__ for kind in type(scheduler).__mro__}
            begun_swa = "SWALR" in kinds and getattr(scheduler, "_step_count", 0) > 1
            if begun_swa or kinds & {"OneCycleLR", "CyclicLR"}:
                raise ConfigurationError(
                    f"{start}{type(scheduler).__name__} sets {where} from values of its own; {instead}"
                )
        if initial is not None and not same(initial, change[0]):
            raise ConfigurationError(
                f"{start}the schedule of {where} begins at {number(initial)} and not at {parameter}, "
                f"{number(change[0])}; {instead}"
            )
        scheduled = bool(self.all) or initial is not None
        if change[0] == self.floor_or_0 and not scheduled and not same(current, change[0]):
            raise ConfigurationError(
                f"{start}{where} is {number(current)} while {parameter} is {number(change[0])}, so something "
                "else sets it, and no factor between the two can be kept"
            )
        if change[0] == self.floor_or_0 and scheduled:
            raise ConfigurationError(
                f"{start}the schedule of {where} stands still at {number(change[0])}, so that what it makes "
                f"of another value can't be told; {instead}"
            )

    def note(self, parameter: object, change: tuple[float, float], scheduled: bool, at_old: bool) -> str:
        """Say how the learning rate followed, and what is not as in a run that began with the new value."""
        new = number(change[1])
        if not self.all and not scheduled:
            factor = number(change[1] / change[0]) if change[0] else ""
            return "" if at_old else f", scaled by {factor}: it was not at {parameter}, {number(change[0])}"
        if not self.all:
            return (
                f", as if it had begun at {new}; its scheduler is not managed, and one that keeps its "
                "base_lrs (LambdaLR, for example) sets it back: assign it, ctx.scheduler = ..., so that it "
                "can follow"
            )
        names = " and ".join(f"{name} ({type(value).__name__})" for name, value in self.tops.items())
        return "; ".join([f", as if {names} had begun at {new}", *self._caveats(change)])

    def _caveats(self, change: tuple[float, float]) -> Iterator[str]:
        for floor in dict.fromkeys(float(getattr(each, "eta_min", 0.0)) for each in self.all):
            if floor:
                yield f"eta_min stays {number(floor)}"
        if self.floor is None:
            yield "not exactly, since one schedule has an eta_min and another one is combined with it"
        if any(any(getattr(each, "min_lrs", ())) for each in self.all):
            yield "min_lr stays"
        for each in self.all:
            kind = f"{type(each).__module__}.{type(each).__qualname__}"
            if kind not in _MULTIPLES:
                yield f"provided that {type(each).__name__} makes a multiple of where it began"
        if change[1] == self.floor_or_0:
            yield "from there no further update can follow"


def is_scheduler(value: object) -> bool:
    """Whether this is a learning rate scheduler."""
    if not (has_method(value, "step") and has_method(value, "state_dict")):
        return False
    return hasattr(value, "optimizer") and any(
        hasattr(value, name) for name in ("last_epoch", "base_lrs", "_schedulers")
    )


def belongs(scheduler: Any, optimizer: Any) -> bool:
    """Whether a scheduler sets the learning rate of this optimizer, or of one that shares its groups."""
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
    return groups is not None and groups is optimizer.param_groups


def has_method(value: object, name: str) -> bool:
    """Whether the type has it; asking the object would run the properties of anything a user may assign."""
    return callable(getattr(type(value), name, None))


def _collect(scheduler: Any, seen: dict[int, Any]) -> None:
    """Add a scheduler and all that are in it, each once."""
    if id(scheduler) not in seen:
        seen[id(scheduler)] = scheduler
        for each in _inside(scheduler):
            _collect(each, seen)


def _inside(scheduler: Any) -> list[Any]:
    """Return the schedulers that one has as attributes or in a list, as SequentialLR does."""
    values: Iterable[Any] = getattr(scheduler, "__dict__", {}).values()
    flat = (each for value in values for each in (value if isinstance(value, (list, tuple)) else (value,)))
    return [each for each in flat if is_scheduler(each)]


def _floor(scheduler: Any, above: frozenset[int]) -> float | None:
    """Return what the learning rate approaches while this scheduler makes it; None if it isn't as simple."""
    if hasattr(scheduler, "eta_min"):
        return float(scheduler.eta_min)
    above |= {id(scheduler)}
    inside = [each for each in _inside(scheduler) if id(each) not in above]
    milestones = getattr(scheduler, "_milestones", None)
    if milestones is not None and len(inside) == len(milestones) + 1:
        return _floor(inside[bisect_right(milestones, scheduler.last_epoch)], above)
    return _common_floor(inside, above)


def _common_floor(schedulers: Iterable[Any], above: frozenset[int] = frozenset()) -> float | None:
    floors = [_floor(scheduler, above) for scheduler in schedulers]
    if len(floors) == 1:
        return floors[0]
    return None if any(floor != 0 for floor in floors) else 0.0


def same(current: Any, value: float) -> bool:
    """Whether a value in a group is that of a parameter; a tensor has it rounded."""
    if hasattr(current, "fill_"):
        return math.isclose(float(current), value, rel_tol=1e-6)
    return bool(current == value)


def number(value: Any) -> str:
    """Return a number for people."""
    return f"{float(value):.6g}"
