"""`al.managed`: a managed loop without an experiment, and the names of the kinds of managed values.

@al.managed(total_steps=500_000, checkpoint_every=50_000)
def train(ctx):
    ctx.model = MyModel(hidden=ctx.param("hidden"))
    for step in ctx.steps():
        ...

train()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, TypeAlias, TypeVar

from alchemy.checks import check_context, check_function, flag, positive
from alchemy.context import Context
from alchemy.loop.cadence import Checkpointing
from alchemy.state import declarations

__all__ = ["Managed", "managed"]

Function: TypeAlias = "Callable[[Any], Any]"
T = TypeVar("T")


@dataclass(eq=False, repr=False)
class Managed:
    """A function with a managed loop; called without an argument it trains.

    It looks like the function it wraps (`__name__`, `__doc__`, `__wrapped__`).
    """

    fn: Function
    total_steps: int
    eval_every: int | None
    seed_rng: bool
    checkpointing: Checkpointing
    context: type[Context] | None

    def __post_init__(self) -> None:
        own = dict(vars(self))
        update_wrapper(self, self.fn)
        vars(self).update(own)  # again: an attribute of the function must not cover one of ours

    def __repr__(self) -> str:
        return f"<managed {self.fn.__name__}>"

    def __call__(self, ctx: Context | None = None) -> Any:
        """Call the function with this context; without one, train, and return what the function returns.

        In a job (`ALCHEMY_TASK_ID` is set, as by `python -m alchemy_agent -- python train.py`) the run is
        recorded, and one that was interrupted goes on; elsewhere nothing is written.

        Raises:
            Stopped: It was asked to stop, and can go on later; a program ends by it with status 75.
        """
        __tracebackhide__ = True
        if ctx is not None:
            return self.fn(ctx)
        from alchemy.execution import execute_plainly  # deferred: a declaration needs nothing that runs

        return execute_plainly(self, {}, "seed")


class managed:  # noqa: N801  a decorator, and the namespace of the kinds
    """Give a function a managed loop: it saves, goes on after an interruption, and takes commands.

    Args:
        total_steps: Number of steps of `ctx.steps()`, which counts 0 … total_steps-1.
        checkpoint_every: Steps between checkpoints of what is assigned to the context.
        checkpoint_minutes: Minutes between checkpoints; without either, 10.
        eval_every: `ctx.should_eval()` is true every that many steps and after the last one.
        keep: How many checkpoints stay, 2 or more.
        async_save: Whether the training goes on while a checkpoint is written.
        seed_rng: Whether a parameter named `seed` seeds the random number generators.
        context: A class of contexts with typed attributes; by default what annotates the argument.

    Raises:
        ConfigurationError: Names the argument and what can't be meant.
    """

    # Classes of their own: type checkers take `managed.Torch[Model]()` for nothing less.

    class Torch(declarations.Torch[T]):
        """An object with `state_dict` and `load_state_dict`, or a tensor."""

    class Loader(declarations.Loader[T]):
        """A `torch.utils.data.DataLoader`."""

    class Array(declarations.Array[T]):
        """A numpy array."""

    class Generator(declarations.Generator[T]):
        """A random number generator of one's own."""

    class Json(declarations.Json[T]):
        """None, a bool, int, float or str, or lists, tuples and dicts of these."""

    class Custom(declarations.Custom[T]):
        """Anything, saved and loaded by two functions; see `alchemy.state.declarations.Custom`."""

    def __init__(
        self,
        *,
        total_steps: int,
        checkpoint_every: int | None = None,
        checkpoint_minutes: float | None = None,
        eval_every: int | None = None,
        keep: int = 2,
        async_save: bool = True,
        seed_rng: bool = True,
        context: type[Context] | None = None,
    ) -> None:
        """Check what is declared."""
        self._total_steps = positive("total_steps", total_steps)
        self._eval_every = None if eval_every is None else positive("eval_every", eval_every)
        self._seed_rng = flag("seed_rng", seed_rng)
        self._checkpointing = Checkpointing.parse(checkpoint_every, checkpoint_minutes, keep, async_save)
        self._context = check_context(context)

    def __call__(self, fn: Function) -> Managed:
        """Return the function with its loop."""
        check_function(fn, "al.managed", "@al.managed(...)")
        return Managed(
            fn, self._total_steps, self._eval_every, self._seed_rng, self._checkpointing, self._context
        )
