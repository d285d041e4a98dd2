"""What the order of a DataLoader's data depends on, taken and put back: settings, generators, the sampler."""

from __future__ import annotations

import hashlib
import inspect
import marshal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from alchemy.errors import ConfigurationError
from alchemy.state import generators, rng

__all__ = [
    "Draws",
    "Iteration",
    "Repeated",
    "States",
    "compare_settings",
    "is_iterable",
    "kind_of",
    "settings",
]


def settings(loader: Any) -> dict[str, Any]:
    """Return what must be the same, or nearly so, for a saved position to mean anything."""
    iterable = is_iterable(loader)
    return {
        "dataset": "iterable" if iterable else "map",
        "length": None if iterable else _length(loader.dataset),
        "batch_size": loader.batch_size,
        "drop_last": bool(loader.drop_last),
        "sampler": kind_of(loader.sampler),
        "batch_sampler": kind_of(loader.batch_sampler),
        "num_workers": loader.num_workers,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": bool(loader.persistent_workers),
    }


def compare_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Return sentences about differences that leave the order of the data as it was.

    Raises:
        ConfigurationError: Something differs that changes the order.
    """
    changed = {name: (saved[name], now[name]) for name in now if saved[name] != now[name]}
    harmless = {"prefetch_factor", "persistent_workers"}
    if now["dataset"] == "map":
        harmless.add("num_workers")  # an iterable dataset is divided among them
    for name, (then, today) in changed.items():
        if name not in harmless:
            raise ConfigurationError(
                f"the DataLoader had {name} {then!r} when it was saved and has {today!r} now, and its place "
                "in the data means nothing in another order"
            )
    notes = [f"{name} was {then!r} and is {today!r} now" for name, (then, today) in changed.items()]
    if 0 in changed.get("num_workers", ()):
        notes.append("what the dataset draws at random is not the same with workers as without")
    return tuple(notes)


def is_iterable(loader: Any) -> bool:
    """Tell whether the dataset decides on the order itself, so that there is no sampler."""
    from torch.utils.data import IterableDataset  # deferred: who has a loader has torch

    return isinstance(loader.dataset, IterableDataset)


def kind_of(value: object) -> str | None:
    """Return the name of a value's class; None of None."""
    return None if value is None else type(value).__qualname__  # a module may have another name as a program


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None  # its sampler does without


class States:
    """The generators that a loader's parts draw from, global ones included, and the samplers' counters.

    Counters are the numbers that samplers keep as attributes, such as the `epoch` of a DistributedSampler.
    Only those that are seen to change are set: the others are the user's settings.
    """

    def __init__(self, loader: Callable[[], Any]) -> None:
        """Take what returns the loader: a reference that doesn't keep it alive."""
        self._loader = loader
        self._initial = {path: getattr(owner, name) for path, owner, name in self._counters()}
        self._moving: set[str] = set()
        self.interleaved = False
        """Whether the order was seen to depend on global generators while training draws from them, too."""

    def capture(self) -> dict[str, Any]:
        """Return all states, as JSON."""
        return {"global": rng.capture(), **self.capture_own()}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Put everything into the states that `capture` returned.

        Raises:
            ConfigurationError: A generator is missing, or is of another kind.
        """
        rng.restore(states["global"])
        self.restore_own(states)

    def capture_own(self) -> dict[str, Any]:
        """Return the states of all but the global generators, as JSON."""
        counters = {path: getattr(owner, name) for path, owner, name in self._counters()}
        self._moving |= {path for path, now in counters.items() if self._initial.setdefault(path, now) != now}
        return {
            "generators": {path: rng.capture_generator(value) for path, value in self._generators().items()},
            "counters": counters,
            "moving": sorted(self._moving),
        }

    def restore_own(self, states: Mapping[str, Any]) -> None:
        """Put everything but the global generators into the states that `capture_own` returned.

        Raises:
            ConfigurationError: A generator is missing, or is of another kind.
        """
        present = self._generators()
        for path, saved in states["generators"].items():
            if path not in present:
                raise ConfigurationError(
                    f"the DataLoader had a {saved['kind']} as {path} when it was saved, and has none now"
                )
            rng.restore_generator(present[path], saved)
        self._moving.update(states["moving"])
        for path, owner, name in self._counters():
            if path in self._moving and path in states["counters"]:
                setattr(owner, name, states["counters"][path])

    def generator_of(self, states: Any) -> Any:
        """Return a new generator in the state that the one had which torch takes the workers' seed from."""
        from torch import Generator  # deferred: who has a loader has torch

        generator = Generator()
        from_global = {"kind": "torch.Generator", "variant": "cpu", "state": states["global"]["torch"]}
        rng.restore_generator(generator, states["generators"].get("generator", from_global))
        return generator

    def next_of(self, source: Iterator[Any], taken: int) -> Any:
        """Take the next item of what decides on the order, watching whether it draws from global generators.

        Watching is slow, so it is done ever more rarely, and should be done in one iteration only.

        Args:
            source: Gives the items.
            taken: How many it gave before; the first may draw.
        """
        if taken == 0 or taken & (taken - 1):
            return next(source)
        before = rng.capture()
        try:
            return next(source)
        finally:
            self.interleaved = self.interleaved or rng.capture() != before

    def _generators(self) -> dict[str, Any]:
        loader = self._loader()
        return generators.find(
            generator=loader.generator,
            sampler=loader.sampler,
            batch_sampler=loader.batch_sampler,
            dataset=loader.dataset,
            collate_fn=loader.collate_fn,
        )

    def _counters(self) -> list[tuple[str, Any, str]]:
        from torch.utils.data import Sampler  # deferred: who has a loader has torch

        loader, found = self._loader(), []
        for path, owner in generators.walk(sampler=loader.sampler, batch_sampler=loader.batch_sampler):
            if owner is loader.sampler or owner is loader.batch_sampler or isinstance(owner, Sampler):
                attributes = getattr(owner, "__dict__", {})
                numbers = [name for name in attributes if type(attributes[name]) in (int, float, bool)]
                found += [(f"{path}.{name}", owner, name) for name in numbers]
        return found


@dataclass(slots=True)
class Iteration:
    """One pass over a loader, as it is remembered."""

    number: int
    """Counts the iterations begun, from 0."""
    position: int = 0
    """How many batches were handed out."""
    drawn: int = 0
    """How many batches of indices the sampler gave; with workers, more than were handed out."""
    exhausted: bool = False
    """The sampler said that there are no more."""
    begun: dict[str, Any] | None = None
    """All states before the iterator was made, if it needs them."""
    iterated: dict[str, Any] | None = None
    """Those before `iter(sampler)`, if that may do anything yet."""
    first: dict[str, Any] | None = None
    """Those before the first draw, which is where most samplers take their seed."""
    indices: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    """A running digest of all indices drawn."""

    def to_record(self) -> dict[str, Any]:
        """Return it as JSON."""
        names = ("number", "position", "drawn", "exhausted", "begun", "iterated", "first")
        return {**{name: getattr(self, name) for name in names}, "indices": self.indices.hexdigest()}

    def is_like(self, record: Mapping[str, Any]) -> bool:
        """Tell whether the same indices were drawn as in a recorded iteration."""
        drawn = (self.drawn, self.exhausted, self.indices.hexdigest())
        return drawn == (record["drawn"], record["exhausted"], record["indices"])


@dataclass(slots=True)
class Repeated:
    """An iteration that is repeated as far as it had come."""

    record: Mapping[str, Any]
    before: Mapping[str, Any]
    """All states before that began, in which whatever is drawn then must find them again."""
    is_done: bool = False


class Draws:
    """Goes once through a sampler, remembering what is needed to do so again."""

    def __init__(self, sampler: Any, iteration: Iteration, states: States, repeated: Repeated | None) -> None:
        """Begin.

        Args:
            sampler: The user's.
            iteration: Where it is remembered; what an earlier object wrote there is forgotten, since an
                iterator with workers begins twice and keeps the second.
            states: How generators are read and set.
            repeated: What it repeats before it goes on.
        """
        self._iteration, self._states, self._repeated = iteration, states, repeated
        iteration.drawn, iteration.exhausted = 0, False
        iteration.indices = hashlib.blake2b(digest_size=16)
        self._kind = kind_of(sampler)
        if repeated is not None:
            iteration.iterated, iteration.first = repeated.record["iterated"], repeated.record["first"]
            if iteration.iterated is not None:
                states.restore(iteration.iterated)
        elif not inspect.isgeneratorfunction(getattr(type(sampler), "__iter__", None)):
            iteration.iterated = (
                states.capture()
            )  # a generator function would do nothing before the first draw
        self._is_watched = iteration.number == 0
        self._sampler = iter(sampler)
        self._ahead: deque[Any] = deque()
        self._is_plain = False
        """Whether nothing but counting and the digest is left to do: the usual batch costs no more."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._is_plain:
            return self._next()
        iteration = self._iteration
        try:
            index = next(self._sampler)
        except StopIteration:
            iteration.exhausted = True
            raise
        iteration.drawn += 1
        iteration.indices.update(_as_bytes(index))
        return index

    def _next(self) -> Any:
        if self._repeated is not None:
            self.repeat()
        if self._ahead:
            return self._ahead.popleft()
        self._is_plain = self._iteration.first is not None and not self._is_watched
        return self._draw()

    def repeat(self) -> None:
        """Draw what the saved iteration had drawn, unless that is done, and keep what it had not handed out.

        Raises:
            ConfigurationError: Other indices come.
        """
        repeated, self._repeated = self._repeated, None
        if repeated is None:
            return
        record = repeated.record
        if record["first"] is not None:
            self._states.restore(record["first"])
        with suppress(StopIteration):
            for number in range(record["drawn"] + record["exhausted"]):
                index = self._draw()
                if number >= record["position"]:
                    self._ahead.append(index)
        if not self._iteration.is_like(record):
            raise ConfigurationError(
                f"{self._kind} gave other indices than in the run that was saved, of which {record['drawn']} "
                "batches had to be repeated. If its data are the same, it draws from the global random "
                "number generators while training does, too: give it one of its own "
                "(generator=torch.Generator()), and start over"
            )
        self._states.restore(repeated.before)
        repeated.is_done = True

    def _draw(self) -> Any:
        iteration = self._iteration
        if iteration.first is None:
            iteration.first = self._states.capture()
        try:
            index = (
                self._states.next_of(self._sampler, iteration.drawn)
                if self._is_watched
                else next(self._sampler)
            )
        except StopIteration:
            iteration.exhausted = True
            raise
        iteration.drawn += 1
        iteration.indices.update(_as_bytes(index))
        return index


def _as_bytes(index: Any) -> bytes:
    """Return bytes that are equal for equal indices, in other processes too."""
    try:
        return marshal.dumps(index, 2)  # the version that knows no references: equal values, equal bytes
    except ValueError:
        pass
    if hasattr(index, "tolist"):
        return _as_bytes(index.tolist())
    if isinstance(index, (list, tuple)):
        return b"(" + b",".join(_as_bytes(item) for item in index) + b")"
    return type(index).__qualname__.encode()  # its repr may have an address in it
