"""Our own code on its way to the nodes: one directory per content, first on the job's path."""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from alchemy.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_alchemy.transport import Transport

__all__ = ["sdk_digest", "sdk_files", "stage"]

_UNCHECKED_HASH = (1).to_bytes(4, "little")
"""Flag of a .pyc that is never compared with its source: a content-addressed directory can't change."""


def stage(transport: Transport, root: str) -> str:
    """Copy the SDK and the agent below `<root>/sdk/`, unless they are there, and return the directory.

    Raises:
        TransportError: They could not be written.
    """
    files = sdk_files()
    directory = f"{root}/sdk/{sdk_digest(files)}"
    if not transport.exists(directory):
        transport.mkdir(f"{root}/sdk")
        transport.publish(directory, {**files, **_compiled(files, directory)})
    return directory


def sdk_files() -> dict[str, bytes]:
    """Return the files a job needs, by their path in the staged directory.

    Raises:
        ConfigurationError: This installation is not made of files.
    """
    package, agent = _location("alchemy").parent, _location("alchemy_agent")
    files = {f"alchemy/{path.relative_to(package).as_posix()}": path for path in package.rglob("*.py")}
    return {name: path.read_bytes() for name, path in sorted({**files, agent.name: agent}.items())}


def sdk_digest(files: Mapping[str, bytes]) -> str:
    """Return a name for exactly these contents."""
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def _location(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigurationError(
            f"the files of {module!r} can't be found: install pytest-alchemy unpacked, not zipped"
        )
    return Path(spec.origin)


def _compiled(files: Mapping[str, bytes], directory: str) -> dict[str, bytes]:
    """Compile for this interpreter, so that a thousand jobs of an array don't all do so at once."""
    caches = {}
    for name, source in files.items():
        code = compile(source, f"{directory}/{name}", "exec", dont_inherit=True, optimize=0)
        header = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source)
        caches[importlib.util.cache_from_source(name, optimization="")] = header + marshal.dumps(code)
    return caches
