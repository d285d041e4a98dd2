"""The run root: made once, out of the way of a repository, and never at the cost of somebody's file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pytest_alchemy.root import check_writable, make_root


def test_a_root_that_we_make_is_private_and_ignored_by_git(tmp_path: Path) -> None:
    root = tmp_path / "a" / "root"
    make_root(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert (root / ".gitignore").read_text().splitlines()[-1] == "*"


@pytest.mark.parametrize("theirs", [None, "*.pyc\n"])
def test_a_directory_that_was_there_keeps_its_gitignore_or_has_none(
    tmp_path: Path, theirs: str | None
) -> None:
    if theirs is not None:
        (tmp_path / ".gitignore").write_text(theirs)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    make_root(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(OSError, match="root"):
        make_root(tmp_path / "root")


def test_a_root_is_tried_without_leaving_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="gone"):
        check_writable(tmp_path / "gone")
