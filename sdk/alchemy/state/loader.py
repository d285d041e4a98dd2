"""Lets a user's own `torch.utils.data.DataLoader` go on in the middle of an epoch, with nothing added to it.

While a run goes, what is needed to repeat the present iteration is remembered: the states of the generators
at the moments when the sampler draws, and how many batches were handed out. A resumed run draws the same
indices again, without loading what they stand for, and hands out the rest. That leaves every generator as it
was, so that the resumed run draws no random number that the undisturbed one didn't.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from alchemy.errors import ConfigurationError
from alchemy.state import workerseeds
from alchemy.state.loaderparts import Batches, FollowedSampler, Placing
from alchemy.state.loaderstate import (
    Draws,
    Iteration,
    Repeated,
    States,
    compare_settings,
    is_iterable,
    kind_of,
    settings,
)

__all__ = ["Cursor", "adopt", "is_loader"]

_ATTRIBUTE = "_alchemy_cursor"
_PLAIN = "_alchemy_plain"
_TOO_EARLY = (
    "a batch was taken before the first step, and may have been kept for it: take each within its step, as "
    "in zip(ctx.steps(), loader), not zip(loader, ctx.steps())"
)


def is_loader(value: object) -> bool:
    """Tell whether a value is a torch DataLoader; imports nothing."""
    data: Any = sys.modules.get("torch.utils.data")
    return data is not None and isinstance(value, data.DataLoader)


def adopt(loader: Any, seed: int, *, owner: object = None) -> Cursor:
    """Return the cursor of a loader, which is given one unless it has one of the same owner.

    The loader stays the same object. Its class becomes a subclass of what it was, which looks the same.

    Args:
        loader: A torch DataLoader.
        seed: Seeds the randomness inside its workers.
        owner: The execution that uses the loader, which is referred to weakly. Another one's cursor is
            replaced: a loader made once for several executions begins anew in each. Generators and samplers
            that the user made with it stay in the state they are in. None: whoever's it is.
    """
    known = _cursor_of(loader)
    if known is not None and (owner is None or known.is_owned_by(owner)):
        return known
    plain = _plain_of(loader)
    cursor = Cursor(loader, plain, seed, owner)
    vars(loader)[_ATTRIBUTE] = cursor
    # Persistent workers that are running already are seeded for another execution, or not for each batch.
    loader._iterator = None  # noqa: SLF001
    loader.__class__ = _managed(plain)
    return cursor


def _plain_of(loader: Any) -> Any:
    """Return the class that a loader had before it was adopted."""
    kind: Any = type(loader)
    return vars(kind).get(_PLAIN, kind)


def _cursor_of(loader: Any) -> Cursor | None:
    cursor: Cursor | None = vars(loader).get(_ATTRIBUTE)
    # A shallow copy of a loader has a reference to the cursor of the original.
    return cursor if cursor is not None and cursor.belongs_to(loader) else None


@cache
def _managed(plain: Any) -> Any:
    """Return a subclass of a class of loaders, whose instances ask their cursor."""

    def __iter__(self: Any) -> Iterator[Any]:  # noqa: N807
        cursor = _cursor_of(self)
        return plain.__iter__(self) if cursor is None else cursor.begin()

    def _index_sampler(self: Any) -> Any:
        cursor = _cursor_of(self)
        sampler = super(managed, self)._index_sampler
        return sampler if cursor is None or is_iterable(self) else FollowedSampler(sampler, cursor.draw_from)

    def __reduce__(self: Any) -> Any:  # noqa: N807
        return _revive, (plain, {name: value for name, value in vars(self).items() if name != _ATTRIBUTE})

    methods = {
        _PLAIN: plain,
        "__iter__": __iter__,
        "_index_sampler": property(_index_sampler),
        "__reduce__": __reduce__,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
    }
    managed: Any = type(plain.__name__, (plain,), methods)
    return managed


def _revive(plain: Any, attributes: Mapping[str, Any]) -> Any:
    """Return a copy of a loader, which nobody follows."""
    copy = object.__new__(plain)
    vars(copy).update(attributes)
    return copy


class Cursor:
    """Where a loader is in its data; it belongs to the loader and doesn't keep it alive."""

    def __init__(self, loader: Any, plain: Any, seed: int, owner: object) -> None:
        """Take the loader, the class that the user gave it, the seed for its workers, and whose it is."""
        # A cycle of references would let workers live on until the garbage collector comes by.
        self._loader = weakref.ref(loader)
        self._seed = seed
        self.notes: tuple[str, ...] = ()
        """Sentences on what has changed since the loader was saved and leaves the order of its data alone."""
        self._plain = plain
        self._owner = None if owner is None else weakref.ref(owner)
        self._states = States(self._loader)
        self._begun = 0
        self._known: list[weakref.ref[Batches]] = []
        self._pending: Mapping[str, Any] | None = None
        self._opening: tuple[Iteration, Repeated | None] | None = None
        self._draws: Draws | None = None
        self._workers_began: dict[str, Any] | None = None
        self._is_replacing = False
        self._doubt = ""

    @property
    def loader(self) -> Any:
        """The loader.

        Raises:
            ReferenceError: It is gone.
        """
        loader = self._loader()
        if loader is None:
            raise ReferenceError("the DataLoader of this cursor no longer exists")
        return loader

    @property
    def exact(self) -> str:
        """Why a resumed run may get other batches than an undisturbed one, in a sentence; "" if the same."""
        loader, iterable = self.loader, is_iterable(self.loader)
        if _cursor_of(loader) is not self:
            return "another execution has begun to use it, so its place in the data is no longer known"
        if not self._is_followed():
            return f"{kind_of(loader)} has an __iter__ of its own, so a resumed run begins an epoch anew"
        if loader.num_workers and not loader.in_order:
            return "with in_order=False the order of batches depends on which worker is faster"
        if loader.persistent_workers and iterable:
            return "what an IterableDataset leaves behind in persistent workers isn't saved"
        if loader.num_workers and not iterable and not workerseeds.can_seed():
            return "this version of torch has no way to seed workers for each batch"
        if self._states.interleaved:
            return (
                f"its {'IterableDataset' if iterable else 'sampler'} draws from the global random number "
                "generators again and again while training does, too: give it a generator of its own"
            )
        return self._doubt

    def belongs_to(self, loader: object) -> bool:
        """Tell whether it is this loader's."""
        return self._loader() is loader

    def is_owned_by(self, owner: object) -> bool:
        """Tell whether this execution made it."""
        return self._owner is not None and self._owner() is owner

    @property
    def has_given(self) -> bool:
        """Whether an iteration that is under way has handed out a batch, since it was restored if it was.

        When the first step begins, that is a batch which a resumed run does not get again.
        """
        return any(batches.has_given for batches in self._under_way())

    def enter_first_step(self) -> None:
        """Be told that the first step begins: batches that were handed out by now run ahead of their steps.

        Then each checkpoint lacks one that was taken and not used; `exact` says so, in resumed runs as well.
        """
        if self.has_given:
            self._doubt = self._doubt or _TOO_EARLY

    def begin(self) -> Iterator[Any]:
        """Begin an iteration, or go on with the one that was saved; the loader's `__iter__` does this."""
        if not self._is_followed():
            return self._plain.__iter__(self.loader)  # type: ignore[no-any-return]
        saved, self._pending = self._pending, None
        if saved is None and self._under_way():
            self._doubt = (
                "an iteration began before an earlier one was over, and only the latest can go on later"
            )
        if saved is None:
            iteration = Iteration(self._begun)
            self._begun += 1
            opened = self._open(iteration, None)
        else:
            iteration, opened = self._go_on(saved)
        batches = Batches(opened, iteration, self._take_for(iteration))
        self._known.append(weakref.ref(batches))
        return batches

    def draw_from(self, sampler: Any) -> Iterator[Any]:
        """Return an iterator over a sampler, remembered if it is for the iteration that is being begun."""
        if self._opening is None:
            return iter(sampler)
        if self._is_replacing:  # an iterator with workers begins twice when it is made, and once later
            self._is_replacing = False
            return iter(())
        iteration, repeated = self._opening
        self._draws = Draws(sampler, iteration, self._states, repeated)
        if not self._places():
            return self._draws
        return Placing(self._draws, iteration.number, iteration.position)

    def capture(self) -> dict[str, Any]:
        """Return, between two batches, what `restore` needs to go on after the last one, as JSON."""
        under_way = [batches.iteration for batches in self._under_way()]
        return {
            "settings": settings(self.loader),
            "seed": self._seed,
            "begun": self._begun,
            # What was restored and not asked for yet is still to be gone on with.
            "under_way": under_way[-1].to_record() if under_way else self._pending,
            "others": [iteration.number for iteration in under_way[:-1]],
            "workers_began": self._workers_began,
            "own": self._states.capture_own(),
            "doubt": self._doubt,
            "interleaved": self._states.interleaved,
        }

    def check(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Return sentences on what has changed since a state was captured and leaves the order alone.

        Raises:
            ConfigurationError: Something has changed that the order depends on, such as the batch size.
        """
        return compare_settings(state["settings"], settings(self.loader))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `capture` was called; best called right before the first step of the training.

        An iteration that is under way goes on with what the saved one had left, whatever it has given so
        far; if there is none, the next one to be begun does, unless the saved one was over. What was begun
        and dropped before, to look at a batch or to compute a mean, is as in a new run then. The global
        generators stay as they are.

        Raises:
            ConfigurationError: Something has changed that the order depends on, or the sampler gives other
                indices than it gave; that may be found out only when the next iteration begins.
        """
        self.notes = self.check(state)
        self._seed, self._begun = state["seed"], state["begun"]
        self._workers_began, self._pending = state["workers_began"], state["under_way"]
        self._doubt, self._states.interleaved = state["doubt"], state["interleaved"]
        self._states.restore_own(state["own"])
        here = [batches for batches in self._under_way() if batches.iteration.number not in state["others"]]
        if here and self._pending is None:
            self._doubt = "an iteration began before the training that was over when the run was saved"
        elif here:
            if here[-1].has_given:
                self._doubt = self._doubt or _TOO_EARLY
            saved, self._pending = self._pending, None
            here[-1].batches = None  # its workers end before others are started
            iteration, opened = self._go_on(saved)
            here[-1].go_on_with(iteration, opened, self._take_for(iteration))

    def _is_followed(self) -> bool:
        return self._plain.__iter__ is sys.modules["torch.utils.data"].DataLoader.__iter__

    def _places(self) -> bool:
        """Tell whether workers are told where a batch stands, and seed themselves by it."""
        return bool(self.loader.num_workers) and not is_iterable(self.loader) and workerseeds.can_seed()

    def _under_way(self) -> list[Batches]:
        """Return the iterations that somebody still holds and that aren't over, oldest first."""
        alive = [batches for reference in self._known if (batches := reference()) is not None]
        alive = [batches for batches in alive if not batches.over]
        self._known = [weakref.ref(batches) for batches in alive]
        return alive

    def _go_on(self, saved: Any) -> tuple[Iteration, Any]:
        """Repeat a saved iteration as far as it had come."""
        iteration = Iteration(saved["number"], position=saved["position"], begun=saved["begun"])
        repeated = Repeated(saved, self._states.capture())
        try:
            if saved["begun"] is not None:
                self._states.restore(saved["begun"])
            opened = self._open(iteration, repeated)
            if self._draws is not None:
                self._draws.repeat()
            else:
                self._discard(opened, iteration, saved)
        finally:
            if not repeated.is_done:
                self._states.restore(repeated.before)
        return iteration, opened

    def _discard(self, opened: Any, iteration: Iteration, saved: Mapping[str, Any]) -> None:
        """Load again what an iterable dataset had given: it alone knows how it goes on."""
        iteration.first = saved["first"]
        if iteration.first is not None:
            self._states.restore(iteration.first)
        for number in range(iteration.position):
            if next(opened, self) is self:
                raise ConfigurationError(
                    f"the IterableDataset was over after {number} batches; in the run that was saved it had "
                    f"given {iteration.position} and wasn't"
                )

    def _open(self, iteration: Iteration, repeated: Repeated | None) -> Any:
        """Have the loader make its iterator."""
        loader, persistent = self.loader, self.loader.persistent_workers
        before = loader.worker_init_fn, loader.generator
        has_workers = persistent and self._workers_began is not None
        if repeated is None and (loader.num_workers or is_iterable(loader)):
            iteration.begun = self._workers_began if has_workers else self._states.capture()
        if has_workers and repeated is None and loader._iterator is None:  # noqa: SLF001
            # In the undisturbed run the workers were there already, so their seed may cost no number now.
            loader.generator, self._is_replacing = self._states.generator_of(self._workers_began), True
        if persistent:
            self._workers_began = iteration.begun
        if self._places():
            loader.worker_init_fn = workerseeds.WorkerStart(self._seed, loader.worker_init_fn)
        elif loader.num_workers:
            loader.worker_init_fn = workerseeds.SparedStart(loader.worker_init_fn)
        self._draws, self._opening = None, (iteration, repeated)
        try:
            return self._plain.__iter__(loader)
        finally:
            self._opening, self._is_replacing = None, False
            loader.worker_init_fn, loader.generator = before

    def _take_for(self, iteration: Iteration) -> Callable[[Any], Any]:
        if self.loader.num_workers or not is_iterable(self.loader):
            return next
        return partial(self._take, iteration)

    def _take(self, iteration: Iteration, opened: Iterator[Any]) -> Any:
        """Return the next batch of an iterable dataset, remembering what it drew its seed from."""
        if iteration.first is None:
            iteration.first = self._states.capture()
        if iteration.number > 0:
            return next(opened)
        return self._states.next_of(opened, iteration.position)
