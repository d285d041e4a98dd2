"""The documents agree with the tree and with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
_LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ +(.*)$", _FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken_links(document: Path) -> list[str]:
    broken = []
    for link in _LINK.finditer(_FENCED.sub("", document.read_text())):
        target = (document.parent / link[1]).resolve() if link[1] else document
        is_anchored = link[2] and target.suffix == ".md"
        if not target.exists() or (is_anchored and link[2] not in _anchors(target.read_text())):
            broken.append(link[0])
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    assert _broken_links(document) == []


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Some `thing`, here\n")
    text = "[a](there.md) [b](there.md#some-thing-here) [c](gone.md) [d](there.md#gone) [e](https://gone.example)"
    (tmp_path / "page.md").write_text(text + "\n```\n[f](gone.md)\n```\n")
    assert _broken_links(tmp_path / "page.md") == ["[c](gone.md)", "[d](there.md#gone)"]


def test_every_option_and_ini_key_is_in_the_reference() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "pytest_alchemy").rglob("*.py"))
    options = set(re.findall(r"[\"'](--alchemy-[a-z-]+)[\"']", source))
    keys = set(re.findall(r"addini\(\s*[\"'](alchemy_\w+)[\"']", source))
    assert options
    assert keys
    reference = REFERENCE.read_text()
    assert sorted(name for name in options | keys if name not in reference) == []
