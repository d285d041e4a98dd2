"""What stands between a DataLoader's parts, so that its cursor sees what passes: indices in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from alchemy.state.loaderstate import Draws, Iteration
from alchemy.state.workerseeds import Placed

__all__ = ["Batches", "FollowedSampler", "Placing"]


class FollowedSampler:
    """Stands where a loader's iterators look for the sampler, and tells them to remember what they draw."""

    def __init__(self, sampler: Any, draw_from: Callable[[Any], Iterator[Any]]) -> None:
        """Take the sampler, and what makes an iterator over it."""
        self._sampler, self._draw_from = sampler, draw_from

    def __iter__(self) -> Iterator[Any]:
        return self._draw_from(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


class Placing:
    """Tells workers with each batch of indices where in the run it stands."""

    def __init__(self, draws: Draws, iteration: int, position: int) -> None:
        """Take the draws, the number of their iteration, and how many batches of it were handed out."""
        self._draws, self._iteration, self._position = draws, iteration, position

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Placed:
        index = next(self._draws)
        self._position += 1
        return Placed(self._iteration, self._position - 1, index)


class Batches:
    """What `iter(loader)` returns: the loader's own iterator, counted."""

    def __init__(self, batches: Any, iteration: Iteration, take: Callable[[Any], Any]) -> None:
        """Take the iterator, where it is remembered, and what takes a batch of it."""
        self.batches, self.iteration, self.take = batches, iteration, take
        self.over = False
        self._first = iteration.position

    @property
    def has_given(self) -> bool:
        """Whether a batch was taken of it here; what a saved one had given before doesn't count."""
        return self.iteration.position > self._first

    def go_on_with(self, iteration: Iteration, batches: Any, take: Callable[[Any], Any]) -> None:
        """Give from now on what a saved iteration had left."""
        self.batches, self.iteration, self.take = batches, iteration, take
        self._first = iteration.position

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            batch = self.take(self.batches)
        except StopIteration:
            self.over = True
            raise
        except Exception:
            self.iteration.position += 1  # whoever calls again gets the batch after the one that failed
            raise
        self.iteration.position += 1
        return batch

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)
