"""An experiment file is executed for each case anew, and the process is left as it was."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from alchemy.errors import ConfigurationError, MissingParameter
from alchemy.loading import find_task, fresh, load
from alchemy.params import collecting, scope
from alchemy.runspec import CodeRef

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass, field
import alchemy as al

lr = al.param("lr", default=1e-3)
half = lr / 2
calls: list[float] = []

@dataclass
class Settings:
    width: int = 4
    names: list[str] = field(default_factory=list)

exp = al.experiment("demo", matrix={"lr": [0.5, 0.25]})

@exp.task(total_steps=1)
def train(ctx):
    calls.append(lr)
    return lr, half, ctx.param("lr"), len(calls), Settings()
"""
_number = itertools.count()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("ALCHEMY_TASK_ID", raising=False)
    path, modules = sys.path[:], set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(directory: Path, source: str = SOURCE) -> CodeRef:
    """Write an experiment file under a name no other test uses."""
    path = directory / f"loaded_{next(_number)}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return CodeRef(str(path), path.stem, (str(directory),), str(directory))


def imported(directory: Path, source: str = SOURCE) -> ModuleType:
    return load(write(directory, source))


def test_each_case_has_its_own_value_at_module_level(tmp_path: Path) -> None:
    module = imported(tmp_path)
    assert module.lr == 1e-3
    for case in module.exp.cases:
        lr = case.params["lr"]
        with fresh(module.__name__, case.params) as new:
            assert (new.lr, new.half, new.calls) == (lr, lr / 2, [])
            new.calls.append(lr)
    assert (module.lr, module.calls) == (1e-3, [])


def test_a_file_that_was_collected_without_a_value_gets_it_for_the_case(tmp_path: Path) -> None:
    source = "import alchemy as al\nlr = al.param('lr')\nhalf = lr / 2"
    with collecting():
        module = imported(tmp_path, source)
    with fresh(module, {"lr": 0.5}) as new:
        assert new.half == 0.25
    with pytest.raises(MissingParameter), fresh(module, {"width": 4}):
        pass


def test_classes_of_the_new_module_can_be_pickled(tmp_path: Path) -> None:
    module = imported(tmp_path)
    with fresh(module, {"lr": 0.5}) as new:
        settings = new.Settings(names=["a"])
        assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301
        assert importlib.import_module(module.__name__) is new
    assert sys.modules[module.__name__] is module


@pytest.mark.parametrize("end", [KeyError, SystemExit, KeyboardInterrupt])
def test_any_exception_puts_the_old_module_back(tmp_path: Path, end: type[BaseException]) -> None:
    module = imported(tmp_path)
    with pytest.raises(end), fresh(module, {"lr": 0.5}):
        raise end
    assert sys.modules[module.__name__] is module


def test_a_file_that_fails_for_a_case_leaves_the_old_module(tmp_path: Path) -> None:
    module = imported(tmp_path, "import alchemy as al\nx = 1 / al.param('d', default=1)")
    with pytest.raises(ZeroDivisionError), fresh(module, {"d": 0}):
        pass
    assert sys.modules[module.__name__] is module


def test_within_a_package_the_new_module_stands_there_too(tmp_path: Path) -> None:
    package = tmp_path / f"pack_{next(_number)}"
    code = write(package, "from . import near\nvalue = near.value")
    (package / "__init__.py").touch()
    (package / "near.py").write_text("value = 3")
    name = f"{package.name}.{code.module}"
    module = load(CodeRef(code.path, name, (str(tmp_path),), str(tmp_path)))
    assert module.value == 3
    parent = sys.modules[package.name]
    with fresh(module, {}) as new:
        assert getattr(parent, code.module) is new
    assert getattr(parent, code.module) is module


def test_a_dotted_name_needs_no_package_as_pytest_doesnt(tmp_path: Path) -> None:
    code = write(tmp_path / "a" / "b")
    module = load(CodeRef(code.path, f"nowhere_a.b.{code.module}", (), str(tmp_path)))
    assert sys.modules[f"nowhere_a.b.{code.module}"] is module
    assert find_task(module, "demo", "train").name == "train"


def test_a_package_whose_own_import_fails_says_so(tmp_path: Path) -> None:
    package = tmp_path / f"pack_{next(_number)}"
    code = write(package)
    (package / "__init__.py").write_text("import no_such_module_anywhere")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        load(CodeRef(code.path, f"{package.name}.{code.module}", (str(tmp_path),), str(tmp_path)))


def test_files_beside_it_come_before_others_of_their_name(tmp_path: Path) -> None:
    name = f"beside_{next(_number)}"
    for owner in ("theirs", "ours"):
        (tmp_path / owner).mkdir()
        (tmp_path / owner / f"{name}.py").write_text(f"owner = {owner!r}")
    sys.path.insert(0, str(tmp_path / "theirs"))
    code = write(tmp_path / "ours", f"import {name}\nowner = {name}.owner")
    assert load(code).owner == "ours"


def test_the_parameters_in_scope_reach_a_file_that_is_loaded(tmp_path: Path) -> None:
    with scope({"lr": 0.125}):
        assert imported(tmp_path).lr == 0.125


def test_a_file_that_fails_to_load_is_not_left_half_imported(tmp_path: Path) -> None:
    code = write(tmp_path, "1 / 0")
    with pytest.raises(ZeroDivisionError):
        load(code)
    assert code.module not in sys.modules


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.py is not there"):
        load(CodeRef(str(tmp_path / "gone.py"), "gone", (), str(tmp_path)))


def test_a_module_without_a_file_cant_be_executed_anew() -> None:
    with pytest.raises(ConfigurationError, match="'no_such'"), fresh("no_such", {}):
        pass


def test_a_task_is_found_by_name_also_where_only_the_task_has_one(tmp_path: Path) -> None:
    module = imported(tmp_path, SOURCE + "\ndel exp")
    assert find_task(module, "demo", "train") is module.train
    with pytest.raises(ConfigurationError, match=r"declares demo::train when.*and not demo::evaluate"):
        find_task(module, "demo", "evaluate")
    with pytest.raises(ConfigurationError, match="declares no task"):
        find_task(imported(tmp_path, ""), "demo", "train")
