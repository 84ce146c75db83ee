"""How the house is laid out: imports point one way, and never in a circle."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "rome_mlx"
#: a room imports itself and what stands on earlier lines
ROOMS = [{"errors", "intervals"}, {"facts"}, {"storage"}, {"accel"}, {"models"},
         {"tracing", "moments"}, {"editing"}, {"evaluation"}, {"calibration"},
         {"pipeline", "planning"}, {"view"}, {"cli"}]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
#: methods that draw, which may import what draws when they are called
DRAWING = {("tracing.trace", "view.plot"), ("tracing.average", "view.plot"),
           ("tracing.patching", "view.plot"), ("pipeline", "view.report")}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """{module: the package's modules that it imports, anywhere in it}."""
    known, found = modules(), {}
    for name, path in known.items():
        here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = here[:len(here) - node.level + 1] + (node.module or "").split(".")
            base = ".".join(part for part in base if part)
            for alias in node.names:
                whole = f"{base}.{alias.name}".lstrip(".")
                found[name].add(whole if whole in known else base)
    return found


def test_every_module_stands_in_a_room():
    assert {name.split(".")[0] for name in modules()} <= {*FLOOR, "", "__main__"}


def test_no_import_points_upward():
    upward = {(name, other) for name, others in imports().items() for other in others
              if name.split(".")[0] in FLOOR and (other == "" or FLOOR[other.split(".")[0]]
                                                  > FLOOR[name.split(".")[0]])}
    assert upward - {(name, "") for name in ("__main__", "cli")} <= DRAWING


def test_no_two_rooms_of_a_floor_import_one_another():
    for name, others in imports().items():
        room = name.split(".")[0]
        beside = {other for other in others if FLOOR.get(other.split(".")[0]) == FLOOR.get(room)}
        assert all(other.split(".")[0] == room for other in beside), (name, beside)


def test_no_imports_go_in_a_circle():
    graph = {name: {other for other in others if (name, other) not in DRAWING and other}
             for name, others in imports().items() if name}

    def reach(name: str, seen: tuple[str, ...]) -> None:
        assert name not in seen, " -> ".join((*seen[seen.index(name):], name))
        if name not in done:
            for other in graph.get(name, ()):
                reach(other, (*seen, name))
            done.add(name)

    done: set[str] = set()
    for name in graph:
        reach(name, ())


def test_names_stand_once():
    """Two files of one name are a puzzle for whoever looks for one of them."""
    names = [path.name for path in PACKAGE.rglob("*.py") if path.parent.name != "cli"]
    twice = {name for name in names if names.count(name) > 1} - {"__init__.py"}
    assert not twice
