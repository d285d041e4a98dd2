"""An experiment file is executed for each case anew, and the process is left as it was."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template
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
    with fresh(module.__name__, {"lr": 0.5}) as new:
        assert new.half == 0.25
    with pytest.raises(MissingParameter), fresh(module.__name__, {"width": 4}):
        pass


def test_classes_of_the_new_module_can_be_pickled(tmp_path: Path) -> None:
    module = imported(tmp_path)
    with fresh(module.__name__, {"lr": 0.5}) as new:
        settings = new.Settings(names=["a"])
        assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301
        assert importlib.import_module(module.__name__) is new
    assert sys.modules[module.__name__] is module


@pytest.mark.parametrize("end", [KeyError, SystemExit, KeyboardInterrupt])
def test_any_exception_puts_the_old_module_back(tmp_path: Path, end: type[BaseException]) -> None:
    module = imported(tmp_path)
    with pytest.raises(end), fresh(module.__name__, {"lr": 0.5}):
        raise end
    assert sys.modules[module.__name__] is module


def test_a_file_that_fails_for_a_case_leaves_the_old_module(tmp_path: Path) -> None:
    module = imported(tmp_path, "import alchemy as al\nx = 1 / al.param('d', default=1)")
    with pytest.raises(ZeroDivisionError), fresh(module.__name__, {"d": 0}):
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
    with fresh(module.__name__, {}) as new:
        assert getattr(parent, code.module) is new
    assert getattr(parent, code.module) is module
    delattr(parent, code.module)
    with fresh(module.__name__, {}):
        pass
    assert not hasattr(parent, code.module)


def helpers(directory: Path, **sources: str) -> dict[str, str]:
    """Write modules under names no other test uses; $name in a source is replaced by such a name."""
    names = {name: f"{name}_{next(_number)}" for name in sources}
    for name, source in sources.items():
        (directory / f"{names[name]}.py").write_text(Template(source).substitute(names))
    return names


def values_of(module: ModuleType, *cases: float) -> list[object]:
    """Return `module.value` as it is for each value of the parameter `lr`."""
    values = []
    for lr in cases:
        with fresh(module.__name__, {"lr": lr}) as new:
            values.append(new.value() if callable(new.value) else new.value)
    return values


@pytest.mark.parametrize(
    "reading",
    [
        'value = al.param("lr", default=1.0)',
        'value = al.param("lr")',
        'class C:\n    lr = al.param("lr", default=1.0)\nvalue = C.lr',
        'value = {n: al.param(n, default=1.0) for n in ["lr"]}["lr"]',
        'def read(): return al.param("lr", default=1.0)\nvalue = read()',
    ],
)
def test_a_helpers_module_level_parameters_are_each_cases_own(tmp_path: Path, reading: str) -> None:
    names = helpers(tmp_path, conf=f"import alchemy as al\n{reading}")
    with collecting():
        module = imported(tmp_path, f"from {names['conf']} import value")
    before = sys.modules[names["conf"]]
    assert values_of(module, 0.5, 0.25) == [0.5, 0.25]
    assert sys.modules[names["conf"]] is before


@pytest.mark.parametrize("first", ["", "import $conf\n"])
def test_what_a_helper_makes_of_anothers_parameter_is_each_cases_own(tmp_path: Path, first: str) -> None:
    names = helpers(
        tmp_path,
        conf="import alchemy as al\nlr = al.param('lr', default=1.0)",
        model="def build():\n    pass\nfrom $conf import lr as rate\nhalf = rate / 2",
        train="import os.path, $model as model\nquarter = model.half / 2",
    )
    source = Template(f"{first}from $train import quarter as value").substitute(names)
    module = imported(tmp_path, source)
    before = [sys.modules[name] for name in names.values()]
    assert values_of(module, 8.0, 4.0) == [2.0, 1.0]
    assert [sys.modules[name] for name in names.values()] == before
    assert module.value == 0.25


def test_a_helper_imported_within_a_case_is_not_left_to_the_next(tmp_path: Path) -> None:
    names = helpers(
        tmp_path,
        late="import alchemy as al\nlr = al.param('lr', default=1.0)",
        later="from $late import lr",
        plain="x = []",
    )
    source = "def value():\n    import $late, $plain\n    from $later import lr\n    return lr"
    module = imported(tmp_path, Template(source).substitute(names))
    assert values_of(module, 0.5, 0.25) == [0.5, 0.25]
    assert [name for name in names.values() if name in sys.modules] == [names["plain"]]


def test_a_helper_that_reads_parameters_only_when_called_keeps_its_state(tmp_path: Path) -> None:
    names = helpers(tmp_path, cache="import alchemy as al\nseen = []\ndef lr(): return al.param('lr')")
    source = "from $cache import lr, seen\ndef value():\n    seen.append(lr())\n    return len(seen)"
    module = imported(tmp_path, Template(source).substitute(names))
    assert values_of(module, 0.5, 0.25) == [1, 2]


@pytest.mark.parametrize(
    "use", ["from {0} import conf", "from {0}.conf import lr", "import {0}.conf as conf"]
)
@pytest.mark.parametrize("init", ["", "from . import conf", "from .conf import lr"])
def test_a_helper_in_a_package_is_each_cases_own_however_it_is_imported(
    tmp_path: Path, use: str, init: str
) -> None:
    package = tmp_path / f"pack_{next(_number)}"
    package.mkdir()
    (package / "__init__.py").write_text(init)
    (package / "conf.py").write_text("import alchemy as al\nlr = al.param('lr', default=1.0)")
    value = "lr" if use.endswith("lr") else "conf.lr"
    module = imported(tmp_path, f"{use.format(package.name)}\nvalue = {value}")
    parent = sys.modules[package.name]
    before = vars(parent).copy()
    assert values_of(module, 0.5, 0.25) == [0.5, 0.25]
    assert sys.modules[package.name] is parent
    assert vars(parent) == before


def test_an_experiment_inside_a_package_that_reads_parameters_is_executed_for_the_case(
    tmp_path: Path,
) -> None:
    package = tmp_path / f"pack_{next(_number)}"
    code = write(package, "from . import lr\nfrom .conf import half\nvalue = lr + half")
    (package / "__init__.py").write_text("import alchemy as al\nlr = al.param('lr', default=1.0)")
    (package / "conf.py").write_text("from . import lr\nhalf = lr / 2")
    module = load(CodeRef(code.path, f"{package.name}.{code.module}", (str(tmp_path),), str(tmp_path)))
    assert values_of(module, 8.0, 4.0) == [12.0, 6.0]
    assert sys.modules[module.__name__] is module
    assert getattr(sys.modules[package.name], code.module) is module


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
