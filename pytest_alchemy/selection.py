"""The edge of typed `-k`: hands the terms to stock pytest and remembers names that no case has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from pytest_alchemy.options import UNKNOWN_NAMES
from pytest_alchemy.terms import Selection, parse

__all__ = ["typed_keywords"]


@contextmanager
def typed_keywords(config: pytest.Config, items: Sequence[pytest.Item]) -> Iterator[None]:
    """Let stock `-k` evaluate an expression with typed terms inside the block.

    Raises:
        pytest.UsageError: The expression is wrong; in the words the user typed.
    """
    original = config.option.keyword
    selection = parse(original or "")
    if not selection.terms:
        yield
        return
    _mark(config, items, selection)
    config.option.keyword = selection.expression
    try:
        yield
    except pytest.UsageError as error:
        raise pytest.UsageError(selection.restore(str(error))) from None
    finally:
        config.option.keyword = original


def _mark(config: pytest.Config, items: Sequence[pytest.Item], selection: Selection) -> None:
    names: dict[str, None] = {}
    for item in items:
        params = getattr(item, "params", None)
        if params is not None:
            names.update(dict.fromkeys(params))
            item.extra_keyword_matches.update(selection.words(params))
    if unknown := selection.unknown(names):
        existing = f"there are: {', '.join(names)}" if names else "no experiment was collected"
        config.stash[UNKNOWN_NAMES] = (
            f"alchemy: -k: no collected case has a parameter {', '.join(map(repr, unknown))}; {existing}"
        )
