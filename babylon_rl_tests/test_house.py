"""The order of the rooms, held by reading the imports: data and imports flow one way."""

import ast
from pathlib import Path

import babylon_rl

PACKAGE = Path(babylon_rl.__file__).parent
COMPOSERS = {"definitions", "cli", "demo", "train_command", "launch"}


def imports_of(path: Path) -> set[str]:
    """Every `babylon_rl.x.y` and top-level module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def modules() -> dict[str, set[str]]:
    """Dotted name below `babylon_rl` → its imports."""
    return {
        ".".join(p.relative_to(PACKAGE).with_suffix("").parts): imports_of(p)
        for p in sorted(PACKAGE.rglob("*.py"))
        if "versions" not in p.parts
    }


def room_uses(room: str, other: str) -> list[str]:
    return [
        name
        for name, imported in modules().items()
        if (name == room or name.startswith(room + "."))
        and any(i == f"babylon_rl.{other}" or i.startswith(f"babylon_rl.{other}.") for i in imported)
    ]


def test_the_domain_has_never_heard_of_dagster() -> None:
    guilty = [
        name
        for name, imported in modules().items()
        if not name.startswith("defs.")
        and name != "definitions"
        and any(i.split(".")[0] == "dagster" for i in imported)
    ]
    assert guilty == []


def test_only_composers_use_the_definitions() -> None:
    users = {
        name
        for name, imported in modules().items()
        if not name.startswith("defs") and any(i.startswith("babylon_rl.defs") for i in imported)
    }
    assert users <= COMPOSERS


def test_the_simulator_knows_neither_judging_nor_training() -> None:
    assert room_uses("simulator", "judging") == []
    assert room_uses("simulator", "training") == []


def test_nobody_but_the_simulator_and_its_yardsticks_sees_hidden_market_state() -> None:
    users = {
        name
        for name, imported in modules().items()
        if not name.startswith("simulator.") and any(i.startswith("babylon_rl.simulator.market") for i in imported)
    }
    # Cloning and its exam make their own play; evaluation plays held-out windows. Nothing between rows and weights.
    assert all(u.startswith(("policy.", "evaluation")) for u in users), users
    assert not any(
        u.startswith(("stages", "store", "grouping", "context", "judging", "training", "source")) for u in users
    )


def test_rooms_use_only_rooms_above_them() -> None:
    for room, below in {
        "source": ("judging", "training", "policy", "simulator", "grouping", "context", "stages", "store"),
        "grouping": ("judging", "training", "policy", "simulator", "context"),
        "judging": ("training", "policy", "simulator", "stages", "store"),
        "policy": ("judging", "training", "stages", "store"),
    }.items():
        for other in below:
            assert room_uses(room, other) == [], f"{room} imports {other}"


def test_only_settings_reads_the_environment() -> None:
    readers = [
        str(p.relative_to(PACKAGE))
        for p in sorted(PACKAGE.rglob("*.py"))
        if p.name != "settings.py"
        for node in ast.walk(ast.parse(p.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr == "getenv")
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and isinstance(node.func.value, ast.Attribute)
            and node.func.value.attr == "environ"
        )
    ]
    assert readers == []
