"""The kinds of managed values as a user names them: `managed.Torch()`, `managed.Json()` and so on.

Each can be declared on a context (`ctx.model = managed.Torch()`, then the object) or in a class of one's own,
where it is a descriptor that gives the attribute its type:

    class Ctx(al.Context):
        model = managed.Torch[MyModel]()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from alchemy.errors import ConfigurationError
from alchemy.state.kinds import (
    ArrayHolder,
    CustomHolder,
    GeneratorHolder,
    Holder,
    JsonHolder,
    LoaderHolder,
    Owner,
    StateHolder,
    TensorHolder,
    has_state,
    hold,
)

__all__ = ["Array", "Custom", "Declared", "Generator", "Json", "Loader", "Torch"]

T = TypeVar("T")


class Declared(Generic[T]):
    """A kind that was named before the value is there; in a class of contexts, a descriptor."""

    wants = "a value"
    """What it takes, for people."""
    _name = ""

    def hold(self, value: Any, owner: Owner) -> Holder:
        """Return a holder of the value.

        Raises:
            ConfigurationError: The value is not of this kind.
        """
        raise NotImplementedError

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Declared[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        try:
            return vars(instance)[self._name]
        except KeyError:
            raise AttributeError(
                f"ctx.{self._name} has no value yet: assign {self.wants} to it", name=self._name, obj=instance
            ) from None

    def __set__(self, instance: Any, value: T) -> None:
        __tracebackhide__ = True
        instance._assign(self._name, value)  # noqa: SLF001  the context's side of this protocol

    def __delete__(self, instance: Any) -> None:
        instance._forget(self._name)  # noqa: SLF001  likewise

    def _refuse(self, value: object) -> ConfigurationError:
        kind = type(value)
        return ConfigurationError(
            f"it is declared as managed.{type(self).__name__}, which takes {self.wants}, and got "
            f"{kind.__module__}.{kind.__qualname__}"
        )


class Torch(Declared[T]):
    """An object with `state_dict` and `load_state_dict`, or a tensor."""

    wants = "an object with state_dict and load_state_dict, or a tensor"

    def hold(self, value: Any, owner: Owner) -> Holder:
        """Return a holder of the value."""
        holder = hold(value, owner) if has_state(value) or _is_tensor(value) else None
        if isinstance(holder, (StateHolder, TensorHolder)):
            return holder
        raise self._refuse(value)


class Loader(Declared[T]):
    """A `torch.utils.data.DataLoader`."""

    wants = "a torch.utils.data.DataLoader"

    def hold(self, value: Any, owner: Owner) -> Holder:
        """Return a holder of the value."""
        return _of_kind(self, LoaderHolder, value, owner)


class Array(Declared[T]):
    """A numpy array."""

    wants = "a numpy array"

    def hold(self, value: Any, owner: Owner) -> Holder:
        """Return a holder of the value."""
        return _of_kind(self, ArrayHolder, value, owner)


class Generator(Declared[T]):
    """A random number generator of one's own."""

    wants = "a random.Random, numpy.random.Generator or torch.Generator"

    def hold(self, value: Any, owner: Owner) -> Holder:
        """Return a holder of the value."""
        return _of_kind(self, GeneratorHolder, value, owner)


class Json(Declared[T]):
    """None, a bool, int, float or str, or lists, tuples and dicts of these."""

    wants = "None, bool, int, float, str, or lists, tuples and dicts of these"

    def hold(self, value: Any, owner: Owner) -> Holder:
        """Return a holder of the value."""
        return _of_kind(self, JsonHolder, value, owner)


class Custom(Declared[T]):
    """Anything, saved and loaded by two functions.

    Args:
        save: Takes the value, returns bytes. Called between two steps; it must not draw random numbers.
        load: Takes the newly made value and the bytes; changes the value in place and returns None, or
            returns what replaces it. Don't unpickle: whoever can write to the run root could run code.
    """

    wants = "any value"

    def __init__(self, *, save: Callable[[T], bytes], load: Callable[[T, bytes], T | None]) -> None:
        """Take the two functions."""
        for name, function in (("save", save), ("load", load)):
            if not callable(function):
                raise ConfigurationError(f"managed.Custom: {name}= must be a function, not {function!r}")
        self._save, self._load = save, load

    def hold(self, value: Any, owner: Owner) -> Holder:  # noqa: ARG002
        """Return a holder of the value."""
        return CustomHolder(value, self._save, self._load)


def _is_tensor(value: Any) -> bool:
    return callable(getattr(value, "detach", None)) and hasattr(value, "dtype")


def _of_kind(declared: Declared[Any], kind: type[Holder], value: Any, owner: Owner) -> Holder:
    try:
        holder = hold(value, owner)
    except ConfigurationError as error:
        if kind is JsonHolder:
            raise ConfigurationError(f"{declared._refuse(value)} ({error})") from None  # noqa: SLF001
        raise
    if isinstance(holder, kind):
        return holder
    raise declared._refuse(value)  # noqa: SLF001
