"""What to run: the contents of `run.json`, written once by the dispatcher and read on the node.

Where the code lies is not part of it: the same run may be submitted from another checkout of the same
code, so that belongs to a submission (`index.json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alchemy.matrix import Value, decode_params, encode_params

__all__ = ["CodeRef", "RunSpec"]


@dataclass(frozen=True, slots=True)
class CodeRef:
    """Where a task's code lies and how pytest imported it."""

    path: str
    """Absolute path of the experiment file."""
    module: str
    """Name under which pytest imported it; the node uses the same."""
    sys_path: tuple[str, ...]
    """Directories put first on `sys.path`, so that sibling imports work as they did here."""
    cwd: str
    """Working directory of the pytest call."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "sys_path": list(self.sys_path)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> CodeRef:
        """Read the JSON form; unknown fields are ignored.

        Raises:
            KeyError: A field is missing.
        """
        return cls(record["path"], record["module"], tuple(record["sys_path"]), record["cwd"])


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One task × one case, with everything that decides what is executed."""

    run: str
    """Run id: readable, filename-safe, ends in a prefix of the fingerprint; name of the run directory."""
    experiment: str
    task: str
    case: str
    """Case id as in the node id, for example `ctx_len=16-seed=42`; empty without a matrix."""
    params: Mapping[str, Value]
    total_steps: int
    eval_every: int | None
    seed: int
    """What the random number generators are seeded from: the replicate value, else the fingerprint."""
    seed_rng: bool
    fingerprint: str
    """SHA-256 in hex over everything that decides the result (docs/design.md, Identity)."""
    code: CodeRef
    """Where this submission finds the code; not part of the record."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, without the version field, which the wire adds."""
        record = asdict(self)
        record["params"] = encode_params(self.params)
        del record["code"]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any], code: CodeRef) -> RunSpec:
        """Read the JSON form; unknown fields are ignored.

        Raises:
            KeyError: A field is missing.
        """
        return cls(
            run=record["run"],
            experiment=record["experiment"],
            task=record["task"],
            case=record["case"],
            params=decode_params(record["params"]),
            total_steps=record["total_steps"],
            eval_every=record["eval_every"],
            seed=record["seed"],
            seed_rng=record["seed_rng"],
            fingerprint=record["fingerprint"],
            code=code,
        )
