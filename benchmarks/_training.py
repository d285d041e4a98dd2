"""What the benchmarks of checkpoints save: a transformer's weights and Adam's moments, of a given size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["Training", "directory"]


class Training:
    """A model and its Adam, after a first step."""

    def __init__(self, size: int) -> None:
        """Make them.

        Args:
            size: Bytes of weights and both moments together, about; what is reached is `size` afterwards.
        """
        width = 256 if size < 500e6 else 1024
        self.model = torch.nn.ModuleList([torch.nn.Embedding(8000, width)])
        self.model.append(self._layer(width))
        layer, rest = (sum(p.nbytes for p in part.parameters()) for part in reversed(self.model))
        for _ in range(round((size / 3 - rest) / layer) - 1):
            self.model.append(self._layer(width))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.size = sum(tensor.nbytes for tensor in self.tensors())

    @staticmethod
    def _layer(width: int) -> torch.nn.Module:
        return torch.nn.TransformerEncoderLayer(width, 8, 4 * width)

    def state(self) -> dict[str, Any]:
        """Return all of it, as `torch.save` would be given it."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor: the weights, then what Adam keeps of each."""
        yield from self.model.state_dict().values()
        for state in self.optimizer.state.values():
            yield from state.values()


@contextmanager
def directory(parent: str) -> Iterator[Path]:
    """Lend a temporary directory in the file system that is to be measured."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=parent) as name:
        yield Path(name)
