"""The SDK's errors, one small tree.

AlchemyError
  ConfigurationError      what the user declared or asked for can't be meant; raised early, fatal
    MissingParameter      a parameter without default that nothing supplies
  InfrastructureError     the machinery failed, not the hypothesis and not the user's code
"""

from __future__ import annotations

__all__ = ["AlchemyError", "ConfigurationError", "InfrastructureError", "MissingParameter"]


class AlchemyError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigurationError(AlchemyError):
    """A declaration or setting that can't be meant; always raised before anything runs."""


class MissingParameter(ConfigurationError):
    """A parameter was asked for that the case does not have and that has no default."""


class InfrastructureError(AlchemyError):
    """The machinery failed (disk, scheduler, network, environment), not the hypothesis."""
