"""Typed terms in `-k`: `-k "ctx_len=16 and not seed<100"`.

Stock pytest refuses `=`, `!=`, `<` and `>` in `-k`, so giving them a meaning takes nothing away. Each
typed term is replaced by a word no test can have, the word is put among the keywords of exactly the cases
that match, and stock pytest evaluates the rest of the expression.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Selection", "Term", "parse"]

_TERM = re.compile(
    r"(?P<name>[^\W\d]\w*(?:\.\w+)*)\s*(?P<op>==|!=|<=|>=|=|<|>)\s*"
    r"(?P<value>\"[^\"]*\"|'[^']*'|\([^()]*,[^()]*\)|[^\s()\"'=<>!]+)"
)
_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS: Mapping[str, object] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison of a parameter with a literal."""

    name: str
    op: str
    literal: object
    """What the text means as a Python literal; a str where it means nothing else."""
    text: str
    """The value as typed, quotes removed."""
    source: str
    """The whole term as typed."""
    word: str
    """The word that stands for it in the expression handed to pytest."""

    def matches(self, params: Mapping[str, object]) -> bool:
        """Compare, exactly and by type; a case without the parameter never matches."""
        if self.name not in params:
            return False
        value = params[self.name]
        if self.op in {"=", "==", "!="}:
            return self._equals(value) is not (self.op == "!=")
        if not _is_number(value) or not _is_number(self.literal):
            return (
                isinstance(value, str) and isinstance(self.literal, str) and _ORDER[self.op](value, self.text)
            )
        return _ORDER[self.op](value, self.literal)

    def _equals(self, value: object) -> bool:
        if isinstance(value, str):
            return value == self.text
        if isinstance(value, bool) or isinstance(self.literal, bool):
            return value is self.literal
        return value == self.literal


@dataclass(frozen=True, slots=True)
class Selection:
    """A `-k` expression taken apart."""

    expression: str
    """For stock pytest: the expression with each typed term replaced by its word."""
    terms: tuple[Term, ...]

    def words(self, params: Mapping[str, object]) -> list[str]:
        """Return the words of the terms that a case with these parameters matches."""
        return [term.word for term in self.terms if term.matches(params)]

    def restore(self, text: str) -> str:
        """Put the terms as typed back into a message of pytest's."""
        for term in self.terms:
            text = text.replace(term.word, term.source)
        return text

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return the parameter names of the terms that are not among `names`, in order of appearance."""
        known = set(names)
        return list(dict.fromkeys(term.name for term in self.terms if term.name not in known))


def parse(expression: str) -> Selection:
    """Find the typed terms of a `-k` expression."""
    terms: list[Term] = []

    def replace(match: re.Match[str]) -> str:
        terms.append(_term(match, len(terms)))
        return terms[-1].word

    return Selection(_TERM.sub(replace, expression), tuple(terms))


def _term(match: re.Match[str], index: int) -> Term:
    raw = match["value"]
    quoted = raw[0] in "'\""
    text = raw[1:-1] if quoted else raw
    literal: object = text if quoted else _literal(raw)
    return Term(match["name"], match["op"], literal, text, match[0], f":alchemy{index:04d}:")


def _literal(text: str) -> object:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
