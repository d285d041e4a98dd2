"""Declare an experiment next to the training loop; pytest finds out whether it holds.

    import alchemy as al

    exp = al.experiment("ctx_scaling", criteria={"nmi": "> 0.1"}, matrix={"ctx_len": [16, 32]})

    @exp.task(total_steps=1000, eval_every=100)
    def train(ctx):
        ...

Without a framework around it the file trains as plain Python, and nothing is written.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  a node's interpreter is chosen far from where it fails
    raise ImportError(f"alchemy needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}")

from alchemy.context import Context
from alchemy.errors import AlchemyError, ConfigurationError, InfrastructureError, MissingParameter, Stopped
from alchemy.experiment import Experiment, Task, experiment
from alchemy.managing import managed
from alchemy.params import param
from alchemy.resources import Resources

__all__ = [
    "AlchemyError",
    "ConfigurationError",
    "Context",
    "Experiment",
    "InfrastructureError",
    "MissingParameter",
    "Resources",
    "Stopped",
    "Task",
    "experiment",
    "managed",
    "param",
]

__version__ = "0.1.0"
