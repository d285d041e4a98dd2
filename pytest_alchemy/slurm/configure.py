"""From pytest's options to a Slurm backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_alchemy.options import read_options, read_resources
from pytest_alchemy.profile import load_profile
from pytest_alchemy.slurm.backend import SlurmBackend
from pytest_alchemy.slurm.settings import Knobs, SlurmSettings

if TYPE_CHECKING:
    import pytest

__all__ = ["from_config"]


def from_config(config: pytest.Config) -> SlurmBackend:
    """Make the backend for this session.

    Raises:
        ConfigurationError: The profile or a resource can't be meant.
    """
    options = read_options(config)
    profile = load_profile(options.rootdir, options.cluster)
    root = options.root or (Path(profile.root).expanduser() if profile.root else options.default_root)
    settings = SlurmSettings(
        root=root,
        profile=profile,
        command_line=read_resources(options.resources),
        session=options.session,
        max_jobs=options.max_jobs,
        fresh=options.fresh,
        knobs=Knobs(**profile.patience),
    )
    return SlurmBackend(settings)
