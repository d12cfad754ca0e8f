"""The structure of the project, read from its source: levels of imports and lengths."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_SCRIPT_LINES = {"cnn_basic": 100, "resnet50_fashion": 300, "common": 200}
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_MAIN_LINES, MAX_ARGUMENTS = 250, 50, 30, 5
# Each level imports only lower ones; the units of one level do not import each other.
LEVELS = [
    {"fashion"},  # the package's own __init__, which configures Keras
    {"fashion.errors", "fashion.options", "fashion.environment"},
    {"fashion.datasets", "fashion.devices", "fashion.recipes"},
    {"fashion.backbones", "fashion.evaluation", "fashion.tracking"},
    {"fashion.reporting", "fashion.fine_tuning", "common"},
    {"fashion.cli"},
    {"cnn_basic", "resnet50_fashion"},
]
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units}


def module_name(path):
    """Return the dotted name of a file: "fashion.datasets.dataset", or "fashion.datasets"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module):
    """Return the script, foundation module or subpackage that a module belongs to."""
    return ".".join(module.split(".")[:2])


PATHS = {
    module_name(path): path
    for path in [*(ROOT / f"{name}.py" for name in MAX_SCRIPT_LINES), *ROOT.glob("fashion/**/*.py")]
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def imported_modules(tree):
    """Return the project's modules that a module imports, including lazy imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & PATHS.keys()) or {node.module}
    return found & PATHS.keys()


IMPORTS = {name: imported_modules(tree) for name, tree in TREES.items()}


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def num_lines(node):
    return node.end_lineno - node.lineno + 1


def test_imports_are_found():
    """Check what the other tests rely on, including an import inside a function."""
    assert {"fashion.devices", "common"} <= IMPORTS["cnn_basic"]
    assert "fashion.tracking.run" in IMPORTS["common"]
    assert "fashion.datasets.dataset" in IMPORTS["fashion.backbones.feature_cache"]
    lazy = ast.parse("def f():\n    from fashion.cli import predict\n    import common")
    assert imported_modules(lazy) == {"fashion.cli.predict", "common"}


def test_every_module_has_a_level():
    assert {unit_of(name) for name in PATHS} == LEVEL.keys()


@pytest.mark.parametrize("module", PATHS)
def test_module_imports_only_lower_levels_and_its_own_subpackage(module):
    unit = unit_of(module)
    for imported in IMPORTS[module]:
        other = unit_of(imported)
        assert other == unit or LEVEL[other] < LEVEL[unit], f"{module} imports {imported}"


def test_modules_import_in_no_circle():
    left = {name: imports - {"fashion"} for name, imports in IMPORTS.items()}
    while free := {name for name, imports in left.items() if not imports & left.keys()}:
        left = {name: imports for name, imports in left.items() if name not in free}
    assert not left, f"in a circle, or above one: {sorted(left)}"


def test_foundation_modules_import_nothing_of_the_project():
    for module in LEVELS[0] | LEVELS[1]:
        assert IMPORTS[module] == set(), module


def test_subpackages_have_only_a_docstring():
    for name, path in PATHS.items():
        if path.name == "__init__.py" and name != "fashion":
            (statement,) = TREES[name].body
            assert ast.get_docstring(TREES[name]), name
            assert isinstance(statement, ast.Expr), name


def test_numbers_are_separate_from_files_and_figures():
    """`evaluation/` computes numbers only."""
    for name, tree in TREES.items():
        if name.startswith("fashion.evaluation"):
            source = ast.dump(tree)
            assert "matplotlib" not in source and "'wandb'" not in source, name


def test_no_other_python_file_is_at_the_top_level():
    assert {path.stem for path in ROOT.glob("*.py")} == MAX_SCRIPT_LINES.keys()


@pytest.mark.parametrize("module", PATHS)
def test_module_is_short(module):
    lines = PATHS[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_SCRIPT_LINES.get(module, MAX_MODULE_LINES)


@pytest.mark.parametrize("module", PATHS)
def test_functions_are_short(module):
    for function in functions(TREES[module]):
        is_main = function.name == "main" and module in MAX_SCRIPT_LINES
        limit = MAX_MAIN_LINES if is_main else MAX_FUNCTION_LINES
        assert num_lines(function) <= limit, function.name


@pytest.mark.parametrize("module", PATHS)
def test_functions_take_few_arguments(module):
    lambdas = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Lambda)]
    for function in [*functions(TREES[module]), *lambdas]:
        args = function.args
        names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        names = names[1:] if names[:1] in (["self"], ["cls"]) else names
        assert len(names) <= MAX_ARGUMENTS, (getattr(function, "name", "lambda"), names)


def test_run_is_short():
    classes = [n for n in TREES["fashion.tracking.run"].body if isinstance(n, ast.ClassDef)]
    (run,) = (node for node in classes if node.name == "Run")
    assert num_lines(run) <= 150


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("module", PATHS)
def test_every_module_and_script_has_a_test_file(module):
    *packages, name = module.split(".")[1:] or ["scripts", module]
    if module == "fashion":
        packages, name = [], "init"
    elif PATHS[module].name == "__init__.py":
        return  # contains only a docstring
    assert (ROOT / "tests" / Path(*packages) / f"test_{name}.py").exists()
