"""`-k` with typed terms and `-m alchemy(...)`, through a real session."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Project


@pytest.fixture
def mixed(scaling: Project) -> Project:
    """Six cases and two ordinary tests, one of which has a parameter's name."""
    scaling.write("experiments/test_ordinary.py", "def test_seed(): pass\ndef test_other(): pass\n")
    return scaling


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("ctx_len=16", 3),
        ("seed=1", 2),
        ("seed=12", 2),
        ("seed!=1", 4),
        ("ctx_len>=32 and seed<10", 2),
        ("not ctx_len=16", 5),
        ("test_seed or seed=12", 3),
        ("train and not (seed=1 or seed=2)", 2),
        ("train", 6),
    ],
)
def test_k_selects_by_value(mixed: Project, expression: str, count: int) -> None:
    assert len(mixed.node_ids("experiments", "-k", expression)) == count


def test_m_selects_by_value(mixed: Project) -> None:
    assert len(mixed.node_ids("experiments", "-m", "alchemy(ctx_len=16)")) == 3
    assert len(mixed.node_ids("experiments", "-m", "alchemy(ctx_len=16, seed=12)")) == 1
    assert len(mixed.node_ids("experiments", "-m", "not alchemy")) == 2


def test_a_name_that_no_case_has_is_named_with_those_that_exist(mixed: Project) -> None:
    result = mixed.run("experiments", "-k", "ctxlen=16")
    result.stdout.fnmatch_lines(
        ["alchemy: -k: no collected case has a parameter 'ctxlen'; there are: ctx_len, seed"]
    )
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_wrong_expression_is_shown_as_it_was_typed(mixed: Project) -> None:
    result = mixed.run("experiments", "-k", "ctx_len=16 and")
    result.stderr.fnmatch_lines(["*Wrong expression passed to '-k': ctx_len=16 and:*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_selection_goes_together_with_the_last_failed(mixed: Project) -> None:
    mixed.run("experiments").assert_outcomes(failed=3, passed=5)
    assert len(mixed.node_ids("experiments", "--lf")) == 3
    assert len(mixed.node_ids("experiments", "--lf", "-k", "seed=12")) == 1
