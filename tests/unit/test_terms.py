"""Typed terms in `-k`: what they match, and what is left for stock pytest."""

from __future__ import annotations

import pytest

from pytest_alchemy.terms import parse

CASE = {
    "ctx_len": 16,
    "seed": 1,
    "lr": 1e-3,
    "opt": "adam",
    "amp": True,
    "warmup": None,
    "betas": (0.9, 0.999),
}


@pytest.mark.parametrize(
    "term",
    [
        "ctx_len=16",
        "ctx_len==16.0",
        "ctx_len = 16",
        "lr=1e-3",
        "lr=0.001",
        "lr<1e-2",
        "ctx_len>=16",
        "ctx_len!=32",
        "opt=adam",
        "opt='adam'",
        'opt!="sgd"',
        "amp=True",
        "amp=true",
        "warmup=None",
        "betas=(0.9,0.999)",
    ],
)
def test_a_term_matches_the_case_it_describes(term: str) -> None:
    assert parse(term).words(CASE) == [parse(term).terms[0].word]


@pytest.mark.parametrize(
    "term",
    [
        "ctx_len=160",
        "ctx_len=1",
        "seed=123",
        "seed=True",
        "amp=1",
        "opt=ada",
        "opt=Adam",
        "lr=0.002",
        "ctx_len<16",
        "warmup=0",
        "opt<3",
        "other=1",
        "other!=1",
    ],
)
def test_a_term_does_not_match_by_prefix_or_across_types(term: str) -> None:
    assert parse(term).words(CASE) == []


def test_everything_but_the_terms_is_left_to_pytest() -> None:
    selection = parse("train and not (seed=1 or seed>=42) or slow")
    first, second = selection.terms
    assert selection.expression == f"train and not ({first.word} or {second.word}) or slow"
    assert (first.name, first.op, second.op) == ("seed", "=", ">=")


def test_a_message_of_pytest_is_translated_back_into_what_was_typed() -> None:
    selection = parse("ctx_len = 16 and")
    assert (
        selection.restore(f"Wrong expression: {selection.expression}") == "Wrong expression: ctx_len = 16 and"
    )


def test_names_that_no_case_has_are_found_once_and_in_order() -> None:
    assert parse("sed=1 or ctxlen=2 or sed=3 or seed=4").unknown(CASE) == ["sed", "ctxlen"]


def test_a_plain_expression_has_no_terms() -> None:
    assert parse("train and not slow").terms == ()
