"""The SDK's errors, one small tree.

AlchemyError
  ConfigurationError      what the user declared or asked for can't be meant; raised early, fatal
    MissingParameter      a parameter without default that nothing supplies
  InfrastructureError     the machinery failed, not the hypothesis and not the user's code
    BrokenCheckpoint      one checkpoint that can't be trusted
    CheckpointUnusable    there was progress, and no checkpoint of it can be trusted

Stopped, which ends a training in good order, is a SystemExit and no error.
"""

from __future__ import annotations

__all__ = [
    "STOPPED_STATUS",
    "AlchemyError",
    "BrokenCheckpoint",
    "CheckpointUnusable",
    "ConfigurationError",
    "InfrastructureError",
    "MissingParameter",
    "Stopped",
]

STOPPED_STATUS = 75
"""Exit status of a training that was asked to stop and did (EX_TEMPFAIL of sysexits.h: try again later)."""


class AlchemyError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigurationError(AlchemyError):
    """A declaration or setting that can't be meant; always raised before anything runs."""


class MissingParameter(ConfigurationError):
    """A parameter was asked for that the case does not have and that has no default."""


class InfrastructureError(AlchemyError):
    """The machinery failed (disk, scheduler, network, environment), not the hypothesis."""


class BrokenCheckpoint(InfrastructureError):
    """One checkpoint is not what its manifest says; names the file and what is wrong with it."""


class CheckpointUnusable(InfrastructureError):
    """The run had committed progress, and nothing of it verifies: it must not start over unasked."""


class Stopped(SystemExit):
    """Raised by the loop, at a step's boundary, when the training was asked to stop.

    What had to be saved is saved. Let it pass: a program that does ends with `STOPPED_STATUS`, by which the
    dispatcher knows that the run can go on later.
    """

    def __init__(self, why: str) -> None:
        """Take who asked, for people: `SIGTERM`, `the command graceful_stop`."""
        super().__init__(STOPPED_STATUS)
        self.why = why
