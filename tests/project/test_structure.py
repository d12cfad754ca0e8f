"""The project's shape, read from its source: which way imports run, and how long things are."""

import ast

import pytest
from conftest import ROOT

FACES = {"cnn_basic": 100, "resnet50_fashion": 300, "common": 200}  # and their most lines
ROOMS = sorted(path.stem for path in (ROOT / "fashion").glob("*.py"))
FILES = [ROOT / f"{name}.py" for name in FACES] + [ROOT / "fashion" / f"{n}.py" for n in ROOMS]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def imports(path):
    """The modules of ours that a file imports, anywhere in it: "common", "fashion.data" …"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inside = {f"{node.module}.{name.name}" for name in node.names}
            rooms = inside & {f"fashion.{room}" for room in ROOMS}
            found |= rooms or {node.module}
    ours = {path.stem for path in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/*.py")}
    return {name for name in found if name.split(".")[0] in ours}


ROOM_IMPORTS = {
    room: {name.removeprefix("fashion.") for name in imports(ROOT / "fashion" / f"{room}.py")}
    for room in ROOMS
}


def test_imports_are_seen():
    """Of what the tests below rest on."""
    assert "fashion.devices" in imports(ROOT / "cnn_basic.py")
    assert "fashion.run" in imports(ROOT / "common.py")
    assert "common" in imports(ROOT / "resnet50_fashion.py")
    assert {"data", "errors", "environment", "progress", "devices"} <= ROOM_IMPORTS["features"]


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_rooms_alone(room):
    # `import fashion` is of the package's own clock, which imports nothing of ours.
    assert ROOM_IMPORTS[room] <= {*ROOMS, "fashion"}


def test_the_lowest_rooms_stand_on_nothing_else():
    assert ROOM_IMPORTS["__init__"] == set()
    assert ROOM_IMPORTS["errors"] == set()
    assert ROOM_IMPORTS["data"] == {"errors"}


def test_rooms_import_in_no_circle():
    left = {room: ROOM_IMPORTS[room] - {"fashion"} for room in ROOMS}
    while free := {room for room, needed in left.items() if not needed & left.keys()}:
        left = {room: needed for room, needed in left.items() if room not in free}
    assert not left, f"in a circle, or above one: {sorted(left)}"


@pytest.mark.parametrize("face", FACES)
def test_face_imports_common_and_rooms_alone(face):
    for name in imports(ROOT / f"{face}.py"):
        assert name.startswith("fashion.") or (name == "common" and face != "common")


def test_no_other_python_file_is_at_the_top():
    assert {path.stem for path in ROOT.glob("*.py")} == set(FACES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_file_is_short(path):
    assert len(path.read_text().splitlines()) <= FACES.get(path.stem, 250)


@pytest.mark.parametrize("script", ["cnn_basic", "resnet50_fashion"])
def test_main_is_short(script):
    tree = ast.parse((ROOT / f"{script}.py").read_text())
    (main,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    assert main.end_lineno - main.lineno + 1 <= 30


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_function_takes_more_than_five_arguments(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            assert len(names) <= 5, f"{getattr(node, 'name', 'lambda')}({', '.join(names)})"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_each_room_and_each_face_has_its_tests():
    expected = {f"test_{name.strip('_')}.py" for name in (*ROOMS, *FACES)}
    assert expected <= {path.name for path in (ROOT / "tests").glob("test_*.py")}
