"""Which files count as experiments, decided without importing them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_alchemy.sniff import declares_experiment


@pytest.mark.parametrize(
    "source",
    [
        "import alchemy as al\nexp = al.experiment('x')",
        "import alchemy\nexp = alchemy.experiment('x')",
        "from alchemy import experiment\nexp = experiment('x')",
        "from alchemy import experiment as declare\nexp = declare('x')",
        "from alchemy import *\nexp = experiment('x')",
        "if True:\n    import alchemy as al\nexp = al.experiment('x')",
        "def make():\n    import alchemy as al\n    return al.experiment('x')",
        "import alchemy as al, os\nal.experiment('x')",
        "import os, alchemy as al\nal.experiment('x')",
    ],
)
def test_a_file_that_calls_experiment_is_one(tmp_path: Path, source: str) -> None:
    path = tmp_path / "any_name.py"
    path.write_text(source)
    assert declares_experiment(path)


@pytest.mark.parametrize(
    "source",
    [
        "import alchemy as al\nlr = al.param('lr', default=1)",
        "import sqlalchemy\nexp = sqlalchemy.experiment('x')",
        "from mlflow import experiment\nexperiment('alchemy')",
        "# import alchemy as al\nexp = al.experiment('x')",
        '"""\nimport alchemy as al\nexp = al.experiment("x")\n"""',
        "import alchemy_agent\nalchemy_agent.experiment('x')",
        "from .alchemy import experiment\nexperiment('x')",
        "",
    ],
)
def test_a_file_that_only_looks_like_one_is_none(tmp_path: Path, source: str) -> None:
    path = tmp_path / "any_name.py"
    path.write_text(source)
    assert not declares_experiment(path)


def test_a_file_that_cannot_be_parsed_is_one_so_that_its_error_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import alchemy as al\nexp = al.experiment('x'")
    assert declares_experiment(path)


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert not declares_experiment(tmp_path / "missing.py")
