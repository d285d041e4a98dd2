"""The managed values of one execution: what stands on the context, and what a checkpoint says of it.

Until the loop begins, whatever is assigned to a name takes the saved value at once, before control returns to
the user's code. When it begins, everything is set right once more, since later constructors may have changed
earlier values (a scheduler rescales its optimizer). From then on an assignment just replaces a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from alchemy.errors import ConfigurationError, InfrastructureError
from alchemy.state.declarations import Declared
from alchemy.state.kinds import (
    KINDS,
    Captured,
    Holder,
    JsonHolder,
    LoaderHolder,
    Owner,
    Saved,
    hold,
    is_revivable,
    revive,
)

__all__ = ["Checkpointed", "ManagedValues"]

_SCALARS = (float, int, bool, str, type(None))
_START_OVER = "or start over: pytest --alchemy-fresh, or ALCHEMY_FRESH=1 in the environment"


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """What the checkpoint that a run resumes from says of the managed values."""

    where: str
    """Its directory, for people."""
    values: Mapping[str, Saved] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    """Names that the training had deleted by then."""


class ManagedValues:
    """The table from names to managed values. Used from the training's thread alone."""

    def __init__(
        self,
        *,
        seed: int,
        resumed: Checkpointed | None = None,
        on_bind: Callable[[str, object], object] = lambda *_: None,
        on_drop: Callable[[str], object] = lambda *_: None,
    ) -> None:
        """Make an empty table.

        Args:
            seed: Seeds the randomness inside the workers of data loaders.
            resumed: What to restore; None in a run that starts at step 0.
            on_bind: Called with name and object of each new value, before it is restored.
            on_drop: Called with the name of a value that is no longer there.
        """
        self._owner = Owner(seed)
        self._resumed = resumed
        self._on_bind, self._on_drop = on_bind, on_drop
        self._holders: dict[str, Holder] = {}
        self._declared: dict[str, Declared[Any]] = {}
        self._deleted: list[str] = []
        self._rebound = (
            {name for name, saved in resumed.values.items() if saved.is_rebound} if resumed else set()
        )
        self._has_begun = False

    def __len__(self) -> int:
        return len(self._holders)

    def declare(self, name: str, declared: Declared[Any]) -> None:
        """Note the kind of a value that is assigned later."""
        self._declared[name] = declared

    def assign(self, name: str, value: Any) -> Any:
        """Register a value, restored if there is something to restore; return what to bind to the name.

        Raises:
            ConfigurationError: It can't be saved, or doesn't fit what was saved.
        """
        __tracebackhide__ = True
        holder = self._holders.get(name)
        if isinstance(holder, JsonHolder) and type(value) in _SCALARS and self._is_free(name):
            holder.value = value  # the usual case in a loop: ctx.total += loss
            return value
        if holder is not None and holder.value is value and self._has_begun:
            return value  # ctx.x += y on what changes in place
        new = self._hold(name, value)
        if self._has_begun:
            self._rebind(name, holder, new)
        self._on_drop(name)
        self._on_bind(name, value)
        self._holders[name] = new
        if not self._has_begun:
            self._restore(name, new)
        return self._holders[name].value

    def _rebind(self, name: str, old: Holder | None, new: Holder) -> None:
        """Note that a name means another object from now on, or refuse what no resumed run could restore."""
        __tracebackhide__ = True
        if is_revivable(new.kind):
            self._rebound.add(name)
        elif old is None or old.kind != new.kind:
            raise ConfigurationError(
                f"ctx.{name} is {'new' if old is None else 'of another kind'} in the loop: a run that goes "
                "on has no such object to restore it into. Assign one before ctx.steps()"
            )

    def forget(self, name: str) -> None:
        """Take a name out: later checkpoints are without it."""
        if self._holders.pop(name, None) is not None:
            self._deleted.append(name)
            self._on_drop(name)

    def begin(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Set every value right; to be called once, before the first step.

        Returns:
            What to bind on the context, by name, and the names to delete from it.

        Raises:
            ConfigurationError: The checkpoint has something that the code doesn't.
        """
        __tracebackhide__ = True
        self._has_begun = True
        if self._resumed is None:
            return {}, ()
        for name in self._unclaimed():
            self._take_over(name)
        gone = tuple(name for name in self._resumed.deleted if name in self._holders)
        for name in gone:
            self.forget(name)
        # Optimizers last: constructors of schedulers change what their optimizer had been restored to.
        for name in sorted(
            self._holders, key=lambda name: hasattr(self._holders[name].value, "param_groups")
        ):
            self._set_right(name, self._holders[name])
        return {name: holder.value for name, holder in self._holders.items()}, gone

    def capture(self) -> dict[str, tuple[str, Captured]]:
        """Return kind and copy of each value by name.

        Raises:
            ConfigurationError: A value holds something by now that can't be saved.
        """
        return {name: (holder.kind, _capture(name, holder)) for name, holder in self._holders.items()}

    @property
    def rebound(self) -> frozenset[str]:
        """Names that were bound, in the loop, to another object than before it."""
        return frozenset(self._rebound & self._holders.keys())

    @property
    def deleted(self) -> tuple[str, ...]:
        """Names that were managed and were deleted."""
        return tuple(name for name in dict.fromkeys(self._deleted) if name not in self._holders)

    def inexact(self) -> list[str]:
        """Return why a resumed run may differ from an undisturbed one, for people; empty if it won't."""
        holders = self._holders.items()
        return [
            f"ctx.{name}: {holder.cursor.exact}"
            for name, holder in holders
            if isinstance(holder, LoaderHolder) and holder.cursor.exact
        ]

    def enter_first_step(self) -> list[str]:
        """Be told that the first step begins; return why runs that go on from this one won't be bit-exact."""
        early = [
            (name, holder.cursor)
            for name, holder in self._holders.items()
            if isinstance(holder, LoaderHolder) and holder.cursor.has_given
        ]
        for _, cursor in early:
            cursor.enter_first_step()
        return [f"ctx.{name}: {cursor.exact}" for name, cursor in early]

    def _is_free(self, name: str) -> bool:
        """Whether a value may just be replaced by another."""
        return self._has_begun and name not in self._declared

    def _hold(self, name: str, value: Any) -> Holder:
        __tracebackhide__ = True
        if not name.isidentifier():
            raise ConfigurationError(f"{name!r} can't be the name of a managed value: use an identifier")
        declared = self._declared.get(name)
        try:
            return hold(value, self._owner) if declared is None else declared.hold(value, self._owner)
        except ConfigurationError as error:
            if declared is not None:
                raise ConfigurationError(f"ctx.{name} can't be managed: {error}") from None
            raise ConfigurationError(
                f"ctx.{name} can't be saved in a checkpoint: {error}. What can be: {KINDS}; anything else by "
                f"ctx.{name} = managed.Custom(save=..., load=...), and what needs no saving belongs in a "
                f"local variable, or on ctx under a name that begins with _"
            ) from None

    def _restore(self, name: str, holder: Holder) -> None:
        __tracebackhide__ = True
        resumed = self._resumed
        if resumed is None or name in resumed.deleted:
            return
        if name not in resumed.values:
            raise ConfigurationError(
                f"ctx.{name} is not in the checkpoint {resumed.where}, which has {_listed(resumed.values)}: "
                f"it would start anew beside values that don't. Take it away, {_START_OVER}"
            )
        saved = resumed.values[name]
        if saved.is_rebound and is_revivable(saved.kind):
            with _fitting(name, resumed):
                self._holders[name] = revive(saved)
            return
        if saved.kind != holder.kind:
            raise ConfigurationError(
                f"{_unfit(name, resumed)}: it was saved as {saved.kind}, and is {holder.kind} now; make it "
                f"what it was, {_START_OVER}"
            )
        with _fitting(name, resumed):
            holder.restore(saved)

    def _set_right(self, name: str, holder: Holder) -> None:
        __tracebackhide__ = True
        resumed = self._resumed
        assert resumed is not None  # noqa: S101  for the type checker
        with _fitting(name, resumed):
            holder.set_right(resumed.values[name])

    def _unclaimed(self) -> list[str]:
        assert self._resumed is not None  # noqa: S101  for the type checker
        return [name for name in self._resumed.values if name not in self._holders]

    def _take_over(self, name: str) -> None:
        """Take from the checkpoint what the code assigns in its loop only, as far as no object is needed."""
        __tracebackhide__ = True
        assert self._resumed is not None  # noqa: S101  for the type checker
        saved = self._resumed.values[name]
        if not is_revivable(saved.kind):
            raise ConfigurationError(
                f"the checkpoint {self._resumed.where} has ctx.{name} ({saved.kind}), which this code does "
                f"not assign before ctx.steps(): assign it there, so that it can be restored, {_START_OVER}"
            )
        with _fitting(name, self._resumed):
            self._holders[name] = revive(saved)


@contextmanager
def _fitting(name: str, resumed: Checkpointed) -> Iterator[None]:
    """Say of which name and checkpoint it is true that something doesn't fit, or can't be read after all."""
    try:
        yield
    except OSError as error:
        raise InfrastructureError(f"ctx.{name} can't be read from {resumed.where}: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{_unfit(name, resumed)}: {error}. Make it what it was, {_START_OVER}"
        ) from error


def _unfit(name: str, resumed: Checkpointed) -> str:
    return f"ctx.{name} does not fit the checkpoint {resumed.where}"


def _capture(name: str, holder: Holder) -> Captured:
    try:
        return holder.capture()
    except ConfigurationError as error:
        raise ConfigurationError(f"ctx.{name} can't be saved any more: {error}") from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"ctx.{name}" for name in names) or "nothing"
