"""What a Slurm backend is told: where, how much, and how patient it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alchemy.resources import Resources
from pytest_alchemy.profile import Profile

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Knobs", "SlurmSettings"]


@dataclass(frozen=True, slots=True)
class Knobs:
    """Patience, in seconds."""

    scan_fast_s: float = 0.2
    """Between two scans of the run directories while runs start and end …"""
    scan_steady_s: float = 1.0
    """… while they only report steps …"""
    scan_slow_s: float = 10.0
    """… and at most."""
    squeue_fast_s: float = 1.0
    """Between two calls of squeue while its answers change, or somebody waits for its word …"""
    squeue_slow_s: float = 30.0
    """… and at most."""
    grace_s: float = 15.0
    """How long the other witness (Slurm's word, or files on their way) is waited for after an end."""
    vanish_s: float = 60.0
    """How long healthy answers must miss a job, and its files be silent, before it counts as vanished."""
    stall_s: float = 90.0
    """How long a heartbeat may be silent: directory caches of NFS live up to 60 s."""
    submit_s: float = 60.0
    """Time limit of sbatch, which blocks and retries when Slurm is full."""
    command_s: float = 30.0
    """Time limit of any other command of Slurm; one that can't reach its controller takes 9 s to say so."""
    lookup_s: float = 60.0
    """How long a submission without a clear answer is looked up by its name."""
    cancel_s: float = 30.0
    """How long `cancel` waits until scancel has answered."""
    warn_s: float = 120.0
    """How long before its time limit a job is told to save and stop, at most a quarter of that limit."""
    close_s: float = 10.0
    """How long `close` waits for a command under way."""


@dataclass(frozen=True, slots=True)
class SlurmSettings:
    """Everything the user set that matters to the Slurm backend."""

    root: Path
    """Run root, on a file system that all nodes share."""
    profile: Profile = field(default_factory=Profile)
    command_line: Resources = field(default_factory=Resources)
    session: str = "session"
    """Id of this pytest session, part of each submission's name."""
    max_jobs: int | None = None
    """How many tasks of one array may run at a time."""
    fresh: bool = False
    """Whether runs start over where they could go on."""
    knobs: Knobs = field(default_factory=Knobs)
