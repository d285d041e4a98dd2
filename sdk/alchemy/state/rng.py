"""States of random number generators as JSON: the global ones of python, numpy and torch, and private ones.

Nothing is drawn from any generator here, and no library is imported to look at its state. `restore` imports
what had been loaded when the states were taken.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import random
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from alchemy.errors import ConfigurationError

__all__ = ["capture", "capture_generator", "is_generator", "restore", "restore_generator"]

# What every JSON writer keeps exactly; PCG64 counts in 128 bits.
_LARGEST_INT = 2**53
_WORDS = struct.Struct("<625I")  # of python's Mersenne twister: 624 of state, and the place within them


def capture() -> dict[str, Any]:
    """Return the states of the global generators of the libraries that are loaded.

    Returns:
        What `restore` takes, made of JSON values: python's `random`; numpy's and torch's CPU generator if the
        library is loaded; those of every GPU once CUDA is in use.
    """
    states: dict[str, Any] = {"python": _python_state(random.getstate())}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        states["numpy"] = _to_json(numpy.random.get_state(legacy=False))
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = _tensor_text(torch.get_rng_state())
        if torch.cuda.is_initialized():  # asking for states would start the GPU otherwise
            states["cuda"] = [_tensor_text(state) for state in torch.cuda.get_rng_state_all()]
    return states


def restore(states: Mapping[str, Any]) -> None:
    """Put the global generators into the states that `capture` returned.

    Libraries that it had not found loaded are left alone. A state of a GPU that this machine doesn't have is
    dropped: what is computed on another kind of device is not the same anyway.

    Raises:
        ImportError: The states include numpy's or torch's, and the library is not installed.
    """
    random.setstate(_python_tuple(states["python"]))
    if "numpy" in states:
        importlib.import_module("numpy").random.set_state(_from_json(states["numpy"]))
    if "torch" in states:
        torch = importlib.import_module("torch")
        torch.set_rng_state(_text_tensor(torch, states["torch"]))
        cuda = states.get("cuda", ())
        if cuda and torch.cuda.is_available():
            present = cuda[: torch.cuda.device_count()]
            torch.cuda.set_rng_state_all([_text_tensor(torch, text) for text in present])


def is_generator(value: Any) -> bool:
    """Tell whether `capture_generator` knows this kind of object; imports nothing."""
    return _kind(value) is not None


def capture_generator(value: Any) -> dict[str, Any] | None:
    """Return the state of a private generator as JSON values, or None if it is no generator.

    Args:
        value: A `random.Random`, `numpy.random.Generator`, `numpy.random.RandomState` or `torch.Generator`.
            A `random.SystemRandom` has no state, so it is none.
    """
    kind = _kind(value)
    if kind is None:
        return None
    return {"kind": kind, "variant": _variant(kind, value), **_CAPTURE[kind](value)}


def restore_generator(value: Any, state: Mapping[str, Any]) -> None:
    """Put a private generator into the state that `capture_generator` returned.

    Raises:
        ConfigurationError: It is of another kind than the one captured, so its numbers would be others.
    """
    kind = _kind(value)
    ours = (kind, _variant(kind, value))
    saved = (state["kind"], state["variant"])
    if kind is None or ours != saved:
        raise ConfigurationError(
            f"the saved state of a {_describe(*saved)} can't go into a "
            f"{type(value).__qualname__ if kind is None else _describe(kind, ours[1])}"
        )
    _RESTORE[kind](value, state)


def _kind(value: Any) -> str | None:
    if isinstance(value, random.Random):
        # A subclass with a state of its own, such as SystemRandom, has more than is understood here.
        return "random.Random" if type(value).getstate is random.Random.getstate else None
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.random.RandomState):
        return "numpy.random.RandomState"
    if numpy is not None and isinstance(value, numpy.random.Generator):
        return "numpy.random.Generator"
    torch: Any = sys.modules.get("torch")
    return "torch.Generator" if torch is not None and isinstance(value, torch.Generator) else None


def _variant(kind: str | None, value: Any) -> str:
    """Return what else decides the numbers: numpy's algorithm, torch's kind of device."""
    if kind == "numpy.random.RandomState":
        return str(value.get_state(legacy=False)["bit_generator"])
    if kind == "numpy.random.Generator":
        return type(value.bit_generator).__name__
    return str(value.device.type) if kind == "torch.Generator" else ""


def _describe(kind: str, variant: str) -> str:
    return f"{kind} ({variant})" if variant else kind


def _python_state(state: tuple[Any, ...]) -> list[Any]:
    version, words, gauss = state
    return [version, base64.b64encode(_WORDS.pack(*words)).decode(), gauss]


def _python_tuple(state: list[Any]) -> tuple[Any, ...]:
    version, words, gauss = state
    return (version, _WORDS.unpack(base64.b64decode(words)), gauss)


def _capture_numpy(generator: Any) -> dict[str, Any]:
    seeds: Any = getattr(generator.bit_generator, "seed_seq", None)  # what spawn() makes its children from
    state = {"state": _to_json(generator.bit_generator.state)}
    if type(seeds) is sys.modules["numpy"].random.SeedSequence:
        state["seeds"] = _to_json(seeds.state)
    return state


def _restore_numpy(generator: Any, state: Mapping[str, Any]) -> None:
    bits: Any = generator.bit_generator
    bits.state = _from_json(state["state"])
    if "seeds" in state:
        seeds = _from_json(state["seeds"])
        seeds["spawn_key"] = tuple(seeds["spawn_key"])
        # How a copied or unpickled generator gets its sequence; numpy 1 copies only the state.
        with suppress(TypeError):
            bits.__setstate__((bits.state, sys.modules["numpy"].random.SeedSequence(**seeds)))


def _restore_torch(generator: Any, state: Mapping[str, Any]) -> None:
    generator.set_state(_text_tensor(sys.modules["torch"], state["state"]))


_CAPTURE: dict[str, Callable[[Any], dict[str, Any]]] = {
    "random.Random": lambda value: {"state": _python_state(value.getstate())},
    "numpy.random.RandomState": lambda value: {"state": _to_json(value.get_state(legacy=False))},
    "numpy.random.Generator": _capture_numpy,
    "torch.Generator": lambda value: {"state": _tensor_text(value.get_state())},
}
_RESTORE: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "random.Random": lambda value, state: value.setstate(_python_tuple(state["state"])),
    "numpy.random.RandomState": lambda value, state: value.set_state(_from_json(state["state"])),
    "numpy.random.Generator": _restore_numpy,
    "torch.Generator": _restore_torch,
}


def _to_json(value: Any) -> Any:
    """Spell out what numpy's states are made of: dicts, sequences, arrays and large ints."""
    if isinstance(value, Mapping):
        return {name: _to_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(inner) for inner in value]
    if hasattr(value, "dtype"):
        if value.ndim == 0:
            return _to_json(value.item())
        return {"dtype": value.dtype.str, "bytes": base64.b64encode(value.tobytes()).decode()}
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        return {"int": hex(value)}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"int"}:
        return int(value["int"], 16)
    if value.keys() == {"dtype", "bytes"}:
        numpy = importlib.import_module("numpy")
        return numpy.frombuffer(base64.b64decode(value["bytes"]), dtype=value["dtype"]).copy()
    return {name: _from_json(inner) for name, inner in value.items()}


def _tensor_text(state: Any) -> str:
    # As torch may have been built without numpy, the bytes are read from where they lie.
    return base64.b64encode(ctypes.string_at(state.data_ptr(), state.numel())).decode()


def _text_tensor(torch: Any, text: str) -> Any:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
