"""Which objects a checkpoint can hold, and how each is captured and restored.

A holder keeps one managed value of the user's, who goes on using the object itself: nothing is wrapped. It is
captured on the training's thread, between two steps, into something that later changes can't reach.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from alchemy.errors import BrokenCheckpoint, ConfigurationError
from alchemy.state import jsonform, loader, rng, tensors

__all__ = [
    "KINDS",
    "ArrayHolder",
    "Blob",
    "Captured",
    "CustomHolder",
    "GeneratorHolder",
    "Holder",
    "Inline",
    "JsonHolder",
    "LoaderHolder",
    "NumberHolder",
    "Owner",
    "Saved",
    "StateHolder",
    "TensorHolder",
    "has_state",
    "hold",
    "is_revivable",
    "revive",
]


@dataclass(frozen=True, eq=False)
class Owner:
    """One execution, to which managed values belong: a loader that another had begins anew."""

    seed: int
    """Seeds the randomness inside the workers of loaders."""


@dataclass(frozen=True, slots=True)
class Inline:
    """A captured value small enough to stand in `loop.json`."""

    form: Any
    """JSON."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A captured value that becomes a file of its own."""

    suffix: str
    write: Callable[[Any], object]
    """Writes it to a binary file; called later, on another thread."""
    note: Any = None
    """JSON that `restore` gets back, from `loop.json`."""


Captured: TypeAlias = "Inline | Blob"


@dataclass(frozen=True, slots=True)
class Saved:
    """A value as a checkpoint that was verified has it."""

    kind: str
    form: Any = None
    """What was `Inline`, or the note of a `Blob`."""
    path: Path | None = None
    """The file of a `Blob`."""
    is_rebound: bool = False
    """Whether the name had been bound, in the loop, to another object than before it."""


class Holder(ABC):
    """Keeps one managed value."""

    kind: ClassVar[str]
    value: Any

    @abstractmethod
    def capture(self) -> Captured:
        """Take a copy of what the value is now.

        Raises:
            ConfigurationError: It holds something by now that can't be saved.
        """

    @abstractmethod
    def restore(self, saved: Saved) -> None:
        """Bring the value to what was saved, in place; where it can't be changed in place, replace it.

        Raises:
            ConfigurationError: It doesn't fit what was saved.
        """

    def set_right(self, saved: Saved) -> None:
        """Do so once more, right before the first step.

        Raises:
            ConfigurationError: As in `restore`.
        """
        self.restore(saved)


class StateHolder(Holder):
    """Anything with `state_dict` and `load_state_dict`: modules, optimizers, schedulers, averages …."""

    kind: ClassVar[str] = "torch"

    def __init__(self, value: Any) -> None:
        """Take the object.

        Raises:
            ConfigurationError: Its state holds something that can't be saved.
        """
        self.value = value
        self._buffers = tensors.Buffers()
        tensors.check_saveable(value.state_dict())

    def capture(self) -> Captured:
        """Copy its state into memory that is kept for the next time."""
        state = self._buffers.capture(self.value.state_dict())
        return Blob(".pt", lambda file: tensors.write_state(state, file), _shapes(self.value))

    def restore(self, saved: Saved) -> None:
        """Load its state."""
        # Loading an optimizer matches states with parameters by their order alone.
        if saved.form != (now := _shapes(self.value)):
            raise ConfigurationError(
                f"its parameters had the shapes {saved.form} when it was saved, and have {now} now"
            )
        try:
            tensors.load_into(self.value, str(saved.path))
        except (OSError, BrokenCheckpoint):
            raise
        except Exception as error:
            raise ConfigurationError(f"its load_state_dict raised {type(error).__name__}: {error}") from error


class TensorHolder(Holder):
    """A tensor of its own; restored in place."""

    kind: ClassVar[str] = "tensor"

    def __init__(self, value: Any) -> None:
        """Take the tensor.

        Raises:
            ConfigurationError: It is of a kind of its own that can't be saved.
        """
        self.value = value
        self._buffers = tensors.Buffers()
        tensors.check_saveable({"tensor": value.detach()})

    @classmethod
    def revived(cls, saved: Saved) -> TensorHolder:
        """Return a holder of the saved tensor itself, on the device where it was."""
        state: Any = tensors.read_state(str(saved.path), mapped=False)
        return cls(state["tensor"].to(saved.form))

    def capture(self) -> Captured:
        """Copy it into memory that is kept for the next time."""
        state = self._buffers.capture({"tensor": self.value.detach()})
        return Blob(".pt", lambda file: tensors.write_state(state, file), str(self.value.device))

    def restore(self, saved: Saved) -> None:
        """Copy what was saved into it."""
        state: Any = tensors.read_state(str(saved.path), mapped=False)
        then = state["tensor"]
        if (then.shape, then.dtype) != (self.value.shape, self.value.dtype):
            raise ConfigurationError(
                f"it was saved with shape {tuple(then.shape)} and {then.dtype}, and is of shape "
                f"{tuple(self.value.shape)} and {self.value.dtype} now"
            )
        self.value.detach().copy_(then)


class ArrayHolder(Holder):
    """A numpy array, restored in place."""

    kind: ClassVar[str] = "array"

    def __init__(self, value: Any) -> None:
        """Take the array.

        Raises:
            ConfigurationError: Only pickle could save it: it holds Python objects, or is more than an array.
        """
        self.value = value
        if type(value) not in (_numpy().ndarray, _numpy().memmap):
            raise ConfigurationError(f"{type(value).__qualname__} is more than a plain numpy array")
        if value.dtype.hasobject:
            raise ConfigurationError(f"an array of dtype {value.dtype} holds Python objects")

    @classmethod
    def revived(cls, saved: Saved) -> ArrayHolder:
        """Return a holder of the saved array itself."""
        return cls(_numpy().load(saved.path, allow_pickle=False))

    def capture(self) -> Captured:
        """Copy it."""
        copy = self.value.copy()
        return Blob(".npy", lambda file: _numpy().lib.format.write_array(file, copy, allow_pickle=False))

    def restore(self, saved: Saved) -> None:
        """Copy what was saved into it."""
        then = _numpy().load(saved.path, allow_pickle=False)
        if (then.shape, then.dtype) != (self.value.shape, self.value.dtype):
            raise ConfigurationError(
                f"it was saved with shape {then.shape} and {then.dtype}, and is of shape {self.value.shape} "
                f"and {self.value.dtype} now"
            )
        self.value[...] = then


class NumberHolder(Holder):
    """A numpy number such as `np.float32(0.1)`, which keeps its type; replaced when it is restored."""

    kind: ClassVar[str] = "number"

    def __init__(self, value: Any) -> None:
        self.value = value

    @classmethod
    def revived(cls, saved: Saved) -> NumberHolder:
        """Return a holder of the saved number itself."""
        numpy, form = _numpy(), saved.form
        return cls(numpy.frombuffer(bytes.fromhex(form["bytes"]), numpy.dtype(form["dtype"]))[0])

    def capture(self) -> Captured:
        """Take its bytes."""
        return Inline({"dtype": self.value.dtype.str, "bytes": self.value.tobytes().hex()})

    def restore(self, saved: Saved) -> None:
        """Replace it by what was saved."""
        self.value = self.revived(saved).value


class JsonHolder(Holder):
    """None, a bool, int, float or str, or lists, tuples and dicts of these."""

    kind: ClassVar[str] = "json"

    def __init__(self, value: Any) -> None:
        """Take the value.

        Raises:
            ConfigurationError: It is something else.
        """
        self.value = value
        self.capture()

    @classmethod
    def revived(cls, saved: Saved) -> JsonHolder:
        """Return a holder of what was saved."""
        return cls(jsonform.decode(saved.form))

    def capture(self) -> Captured:
        """Encode it."""
        try:
            return Inline(jsonform.encode(self.value))
        except jsonform.NotPlain as error:
            raise ConfigurationError(str(error)) from None

    def restore(self, saved: Saved) -> None:
        """Fill a list or dict with what was saved, so that other names for it see it; replace the rest."""
        then = jsonform.decode(saved.form)
        if type(then) is type(self.value) is list:
            self.value[:] = then
        elif type(then) is type(self.value) is dict:
            self.value.clear()
            self.value.update(then)
        else:
            self.value = then


class GeneratorHolder(Holder):
    """A random number generator of the user's own: of Python, numpy or torch."""

    kind: ClassVar[str] = "generator"

    def __init__(self, value: Any) -> None:
        self.value = value

    def capture(self) -> Captured:
        """Take its state."""
        return Inline(rng.capture_generator(self.value))

    def restore(self, saved: Saved) -> None:
        """Set its state."""
        try:
            rng.restore_generator(self.value, saved.form)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"it is another kind of generator than the one saved: {error}"
            ) from error


class LoaderHolder(Holder):
    """A `torch.utils.data.DataLoader`: how far it is in its epoch, and in which order it goes on."""

    kind: ClassVar[str] = "loader"

    def __init__(self, value: Any, owner: Owner) -> None:
        self.value = value
        self.cursor = loader.adopt(value, seed=owner.seed, owner=owner)

    def capture(self) -> Captured:
        """Take its position."""
        return Inline(self.cursor.capture())

    def restore(self, saved: Saved) -> None:
        """See whether it fits; code before the loop may iterate over it as it did in the first attempt."""
        self.cursor.check(saved.form)

    def set_right(self, saved: Saved) -> None:
        """Let its iteration go on where the saved one was."""
        self.cursor.restore(saved.form)


class CustomHolder(Holder):
    """Whatever two functions of the user's can turn into bytes and back."""

    kind: ClassVar[str] = "custom"

    def __init__(self, value: Any, save: Callable[[Any], bytes], load: Callable[[Any, bytes], Any]) -> None:
        """Take the value and its functions.

        Raises:
            ConfigurationError: `save` doesn't return bytes.
        """
        self.value = value
        self._save, self._load = save, load
        self.capture()

    def capture(self) -> Captured:
        """Call `save`."""
        data = self._save(self.value)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ConfigurationError(f"its save= returned {type(data).__qualname__} and not bytes")
        copy = bytes(data)
        return Blob(".bin", lambda file: file.write(copy))

    def restore(self, saved: Saved) -> None:
        """Call `load`; what it returns, unless that is None, replaces the value."""
        assert saved.path is not None  # noqa: S101  for the type checker: a blob has a file
        replacement = self._load(self.value, saved.path.read_bytes())
        if replacement is not None:
            self.value = replacement

    def set_right(self, saved: Saved) -> None:
        """Do nothing: `load` was written for a newly made value, and may add to what is there."""


KINDS = (
    "objects with state_dict and load_state_dict (torch modules, optimizers, schedulers …), DataLoaders, "
    "tensors, numpy arrays, random number generators (random.Random, numpy.random.Generator, "
    "torch.Generator), and None, bool, int, float, str with lists, tuples and dicts of these"
)
"""For people: what `hold` takes."""


def hold(value: Any, owner: Owner) -> Holder:
    """Return a holder of the kind that fits the value.

    Args:
        value: The user's object.
        owner: The execution that it belongs to.

    Raises:
        ConfigurationError: No kind fits, or the object holds something that can't be saved.
    """
    if has_state(value):
        return StateHolder(value)
    if loader.is_loader(value):
        return LoaderHolder(value, owner)
    if _is_of("torch", ("Tensor",), value):
        return TensorHolder(value)
    if _is_of("numpy", ("ndarray",), value):
        return ArrayHolder(value)
    if _is_of("numpy", ("number", "bool"), value):
        return NumberHolder(value)
    if rng.is_generator(value):
        return GeneratorHolder(value)
    return JsonHolder(value)


_REVIVED: Mapping[str, Callable[[Saved], Holder]] = {
    each.kind: each.revived for each in (ArrayHolder, JsonHolder, NumberHolder, TensorHolder)
}


def is_revivable(kind: str) -> bool:
    """Tell whether a value of this kind can be made anew from what was saved of it."""
    return kind in _REVIVED


def revive(saved: Saved) -> Holder:
    """Return a holder of a value made anew from what was saved of it.

    Raises:
        KeyError: Values of its kind can't be; `is_revivable` tells.
    """
    return _REVIVED[saved.kind](saved)


def has_state(value: object) -> bool:
    """Tell whether an object (not a class) has the two methods by which torch saves and loads."""
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict")
    )


def _is_of(library: str, names: Iterable[str], value: object) -> bool:
    """Tell whether a value is of a library's types, which it can be only if that is loaded."""
    module: Any = sys.modules.get(library)
    return module is not None and isinstance(value, tuple(getattr(module, name) for name in names))


def _numpy() -> Any:
    import numpy as np  # deferred: only who hands in an array has it

    return np


def _shapes(value: Any) -> list[list[list[int]]] | None:
    """Return the shapes of an optimizer's parameters by group; None of what is no optimizer."""
    groups = getattr(value, "param_groups", None)
    if not isinstance(groups, list) or not callable(getattr(value, "step", None)):
        return None
    return [[list(parameter.shape) for parameter in group["params"]] for group in groups]
