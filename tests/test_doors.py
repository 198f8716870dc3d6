"""Imports point down the list of rooms only, so that no cycle can form."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mambabyte"
# The modules and folders of mambabyte/, top first: each may import itself and those after it.
ROOMS = [
    "__main__", "__init__", "cli", "commands", "doctor", "integrations", "api", "training", "reporting",
    "serving", "evaluation", "coding", "generation", "runs", "checkpoints", "data", "lineage", "models",
    "config", "runtime", "errors", "ops",
]  # fmt: skip


def imports() -> Iterator[tuple[str, str, str]]:
    """(room, imported name, place) of each of our imports, also inside functions and `if TYPE_CHECKING`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith((".", "mambabyte.")) and name != "mambabyte.__version__":
                    yield room, name, f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"


IMPORTS = list(imports())


def level(name: str) -> int:
    """The index in ROOMS of an imported name; `mambabyte.load` and the like belong to `__init__`."""
    room = name.split(".")[1]
    return ROOMS.index(room if room in ROOMS else "__init__")


def test_every_room_is_in_the_list():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")} <= {
        *ROOMS
    }


def test_doors_open_downwards_only():
    upwards = [
        f"{place}: {room} imports {name}" for room, name, place in IMPORTS if level(name) < ROOMS.index(room)
    ]
    assert not upwards, "these imports point upwards:\n" + "\n".join(upwards)


def test_every_module_of_runtime_serves_two_rooms_below_commands():
    users = {f"mambabyte.runtime.{path.stem}": set() for path in PACKAGE.glob("runtime/[!_]*.py")}
    for room, name, _ in IMPORTS:
        for module in users:
            if room not in ("cli", "commands", "runtime") and f"{name}.".startswith(f"{module}."):
                users[module].add(room)
    assert not {module: rooms for module, rooms in users.items() if len(rooms) < 2}
