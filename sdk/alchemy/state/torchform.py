"""State as plain data: what a restricted unpickler reads back, and nothing that would have to be imported.

`encode` takes what a `state_dict()` returned and makes new containers of it; tensors stay the ones they were.
What torch's `weights_only=True` refuses (numpy's scalars and arrays, defaultdict, deque, frozenset, and oddly
empty bytes) becomes a dict that carries a tag, and `decode` turns it back. Everything else is refused by its
path, as it would only be found out when the run must continue.

Lists and dicts that were one object in two places are one object afterwards too.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from alchemy.errors import ConfigurationError

__all__ = ["Unsaveable", "decode", "encode", "replace_tensors"]

TAG = "__alchemy__"
"""Key of the dicts that stand for something else; a user's own dict with this key is wrapped."""

_ATOMS = frozenset({type(None), bool, float, complex, str})
_FACTORIES: dict[str, Callable[[], Any]] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, tuple, list, dict, set, OrderedDict, Counter)
}
_MOST_BITS = 2000
"""Of an int: torch's restricted unpickler reads at most 255 bytes."""
_LAYOUTS = ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")


class Unsaveable(ConfigurationError):
    """A state holds something that can't be written as plain data; names where and what."""


class _RefusedError(Exception):
    """What `Unsaveable` says, while the path to it is still being collected, from its end."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path: list[object] = []


def encode(value: Any, name: str = "state") -> Any:
    """Return a state as plain data, in containers of its own, with the tensors that it holds.

    Args:
        value: What a `state_dict()` returned.
        name: What errors call it.

    Raises:
        Unsaveable: Something in it can't be saved.
    """
    __tracebackhide__ = True
    try:
        return _Encoder().encode(value)
    except _RefusedError as refused:
        where = ".".join([name, *map(str, reversed(refused.path))])
        why = refused.why
    except RecursionError:
        where, why = name, "it is nested too deeply"
    raise Unsaveable(
        f"{where} can't be saved: {why}. A state may hold tensors, numpy arrays and scalars, numbers, str, "
        "bytes and None, in dicts, lists, tuples and sets: change what state_dict() returns, or use "
        "managed.Custom"
    )


def decode(tree: Any) -> Any:
    """Return what was encoded; numpy arrays have memory of their own. The tree is used up."""
    return _Decoder().walk(tree)


def replace_tensors(tree: Any, replace: Callable[[Any], Any]) -> Any:
    """Put another tensor in the place of each; works within the tree's containers and returns the tree.

    Args:
        tree: What `encode` returned, or a file of it holds.
        replace: From a tensor to what stands in its place; called once per place.
    """
    return _Replacer(replace).walk(tree)


class _Encoder:
    """One walk through one state."""

    def __init__(self) -> None:
        self._numpy: Any = sys.modules.get("numpy")
        self._torch: Any = sys.modules.get("torch")
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()
        self._containers: dict[type, Callable[[Any], Any]] = {
            dict: self._dict,
            OrderedDict: self._ordered,
            Counter: lambda value: Counter(self._items(value)),
            defaultdict: self._defaultdict,
            list: lambda value: [self._at(i, each) for i, each in enumerate(value)],
            tuple: lambda value: tuple(self._at(i, each) for i, each in enumerate(value)),
            set: lambda value: {_key(each, self._numpy) for each in value},
            frozenset: lambda value: {TAG: "frozenset", "items": [_key(each, self._numpy) for each in value]},
            deque: self._deque,
        }

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return value
        if self._torch is not None and isinstance(value, self._torch.Tensor):
            return self._tensor(value)
        if kind in self._containers:
            return self._container(value, self._containers[kind])
        return self._other(value, kind)

    def _container(self, value: Any, make: Callable[[Any], Any]) -> Any:
        identity = id(value)
        if identity in self._done:
            return self._done[identity]
        if identity in self._open:
            raise _RefusedError("it contains itself")
        self._open.add(identity)
        made = make(value)
        self._open.remove(identity)
        self._done[identity] = made
        return made

    def _at(self, key: object, value: Any) -> Any:
        try:
            return self.encode(value)
        except _RefusedError as refused:
            refused.path.append(key)
            raise

    def _items(self, value: dict[Any, Any]) -> dict[Any, Any]:
        return {_key(key, self._numpy): self._at(key, each) for key, each in value.items()}

    def _dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        items = self._items(value)
        return {TAG: "dict", "items": _pairs(items)} if TAG in items else items

    def _ordered(self, value: OrderedDict[Any, Any]) -> OrderedDict[Any, Any]:
        made = OrderedDict(self._items(value))
        for name, each in vars(value).items():  # a module's state has the versions of its parts there
            setattr(made, name, self._at(name, each))
        return made

    def _defaultdict(self, value: defaultdict[Any, Any]) -> dict[str, Any]:
        factory = value.default_factory
        name = "" if factory is None else getattr(factory, "__name__", "")
        if factory is not None and _FACTORIES.get(name) is not factory:
            raise _RefusedError(f"it is a defaultdict that calls {factory!r}, which can't be saved")
        return {TAG: "defaultdict", "factory": name, "items": _pairs(self._items(value))}

    def _deque(self, value: deque[Any]) -> dict[str, Any]:
        items = [self._at(i, each) for i, each in enumerate(value)]
        return {TAG: "deque", "items": items, "maxlen": value.maxlen}

    def _tensor(self, value: Any) -> Any:
        torch = self._torch
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise _RefusedError(f"it is a tensor of the class {_name(type(value))}")
        if value.device.type == "meta":
            raise _RefusedError("it is a tensor without data (on the device meta)")
        if value.is_nested or str(value.layout).removeprefix("torch.") not in _LAYOUTS:
            raise _RefusedError(
                f"it is a tensor of the layout {'nested' if value.is_nested else value.layout}"
            )
        return value

    def _other(self, value: Any, kind: type) -> Any:
        if kind is int:
            if value.bit_length() > _MOST_BITS:
                raise _RefusedError(f"it is an int of {value.bit_length()} bits, of at most {_MOST_BITS}")
            return value
        if kind is bytes:
            return value or {TAG: "bytes"}
        if kind is bytearray:
            return {TAG: "bytearray", "data": self.encode(bytes(value))}
        if self._numpy is not None and isinstance(value, self._numpy.generic):
            dtype = _plain_dtype(value.dtype, self._numpy)
            return {TAG: "numpy.scalar", "dtype": dtype, "data": self.encode(value.tobytes())}
        if self._numpy is not None and kind is self._numpy.ndarray:
            return self._array(value)
        if self._torch is not None and kind in (self._torch.Size, self._torch.dtype, self._torch.device):
            return value
        raise _RefusedError(f"it is {_article(kind)}")

    def _array(self, value: Any) -> dict[str, Any]:
        import torch

        dtype = _plain_dtype(value.dtype, self._numpy)
        order = "F" if value.flags.fnc else "C"
        flat = self._numpy.ascontiguousarray(value.reshape(-1, order=order))
        if not flat.flags.writeable:
            flat = flat.copy()  # torch warns otherwise that it doesn't know read-only memory
        data = (
            torch.from_numpy(flat.view(self._numpy.uint8))
            if flat.nbytes
            else torch.empty(0, dtype=torch.uint8)
        )
        return {TAG: "numpy.ndarray", "dtype": dtype, "shape": value.shape, "order": order, "data": data}


class _Walker:
    """One walk through one tree of plain data, which changes it in place."""

    def __init__(self) -> None:
        self._torch: Any = sys.modules.get("torch")
        self._seen: dict[
            int, tuple[Any, Any]
        ] = {}  # with what the identity belongs to, so that it stays taken

    def walk(self, node: Any) -> Any:
        kind = type(node)
        if kind in _ATOMS or kind is int:
            return node
        if kind is tuple:
            return tuple(self.walk(each) for each in node)
        if kind is list or isinstance(node, dict):
            return self._once(node)
        if self._torch is not None and isinstance(node, self._torch.Tensor):
            return self.tensor(node)
        return node

    def _once(self, node: Any) -> Any:
        if id(node) not in self._seen:
            self._fill(node)
            self._seen[id(node)] = (
                node,
                self.tagged(node) if isinstance(node, dict) and TAG in node else node,
            )
        return self._seen[id(node)][1]

    def _fill(self, node: Any) -> None:
        places = list(enumerate(node)) if isinstance(node, list) else list(node.items())
        for key, value in places:
            node[key] = self.walk(value)
        if type(node) is OrderedDict:
            for name, value in list(vars(node).items()):
                setattr(node, name, self.walk(value))

    def tensor(self, tensor: Any) -> Any:
        return tensor

    def tagged(self, node: dict[Any, Any]) -> Any:
        return node


class _Replacer(_Walker):
    def __init__(self, replace: Callable[[Any], Any]) -> None:
        super().__init__()
        self._replace = replace

    def tensor(self, tensor: Any) -> Any:
        return self._replace(tensor)


class _Decoder(_Walker):
    def tagged(self, node: dict[Any, Any]) -> Any:
        kind, items = node[TAG], node.get("items")
        if kind == "dict":
            return dict(items or ())
        if kind == "defaultdict":
            return defaultdict(_FACTORIES.get(node["factory"]), items or ())
        if kind == "deque":
            return deque(items or (), node["maxlen"])
        if kind == "frozenset":
            return frozenset(items or ())
        if kind == "bytes":
            return b""
        if kind == "bytearray":
            return bytearray(node["data"])
        return _decoded_numpy(node)


def _decoded_numpy(node: dict[Any, Any]) -> Any:
    import numpy as np

    dtype = np.dtype(node["dtype"])
    if node[TAG] == "numpy.scalar":
        return np.ndarray((), dtype, node["data"])[()]
    if node[TAG] != "numpy.ndarray":
        raise ValueError(f"unknown tag {node[TAG]!r}")
    data, order = node["data"].numpy(), node["order"]
    return np.ndarray(node["shape"], dtype, data, order=order).copy(order)


def _pairs(items: dict[Any, Any]) -> list[Any]:
    """Return a dict as a list, which is never taken for one with a tag."""
    return [[key, value] for key, value in items.items()]


def _key(key: Any, numpy: Any) -> Any:
    """Return a dict's key, or a set's element, as one that reads back: equal, and of the same hash."""
    kind = type(key)
    if kind in _ATOMS or kind is int or (kind is bytes and key):
        return key
    if kind is tuple:
        return tuple(_key(each, numpy) for each in key)
    if (
        numpy is not None
        and isinstance(key, (numpy.number, numpy.bool_))
        and type(key.item()) in (*_ATOMS, int)
    ):
        return key.item()
    raise _RefusedError(f"the key or element {key!r} is {_article(kind)}")


def _plain_dtype(dtype: Any, numpy: Any) -> str:
    text = str(dtype.str)
    if dtype.hasobject or dtype.names or numpy.dtype(text) != dtype:
        raise _RefusedError(f"it is of numpy's dtype {dtype}")
    return text


def _article(kind: type) -> str:
    return f"of the type {_name(kind)}"


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
