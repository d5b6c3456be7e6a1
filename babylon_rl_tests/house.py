"""The structure of the package, read from its imports: `python -m babylon_rl_tests.house [PACKAGE] [--arrows]`.

Prints modules, packages, edges, loose files, arrows that run back up the order, and circles. Every import counts,
also those inside functions and under `TYPE_CHECKING`: what a reader has to know is what the text names.
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import babylon_rl

PACKAGE = Path(babylon_rl.__file__).parent

ORDER = (
    "vocabulary",
    "common",
    "database",
    "ingest",
    "grouping",
    "judging",
    "store",
    "policy",
    "simulator",
    "base_policy",
    "training",
    "pipeline",
    "report",
    "export",
    "defs",
    "cli",
)
"""Each package uses only those before it. `vocabulary` stands for `types`, `errors`, `settings` and `windows`."""

LOOSE_FILES = {
    "__init__": "vocabulary",
    "types": "vocabulary",
    "errors": "vocabulary",
    "settings": "vocabulary",
    "windows": "vocabulary",
    "definitions": "defs",
}
MAX_LOOSE_FILES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What the imports say.

    Attributes:
        modules: Dotted name below the package → dotted names of the package that it imports.
        loose: Files at the root.
    """

    modules: Mapping[str, frozenset[str]]
    loose: tuple[str, ...]

    @property
    def edges(self) -> set[tuple[str, str]]:
        """Package → package, without the edges inside one."""
        return {(room(m), room(other)) for m, used in self.modules.items() for other in used if room(m) != room(other)}

    def module_edges(self) -> int:
        return sum(map(len, self.modules.values()))

    def upward(self) -> list[tuple[str, str]]:
        """Imports of a package that stands later in `ORDER`; the package's own front door (`__init__`) is exempt."""
        place = {name: i for i, name in enumerate(ORDER)}
        return sorted(
            (m, other)
            for m, used in self.modules.items()
            for other in used
            if m != "__init__" and place.get(room(other), -1) > place.get(room(m), len(ORDER))
        )

    def package_circle(self) -> list[str]:
        edges = self.edges - {("vocabulary", r) for r in (room(o) for o in self.modules.get("__init__", ()))}
        return circle({a: {b for x, b in edges if x == a} for a, _ in edges})

    def module_circle(self) -> list[str]:
        return circle({m: used for m, used in self.modules.items() if m != "__init__"})


def room(module: str) -> str:
    """The package that a module belongs to; a loose file that has none is a room of its own."""
    head = module.partition(".")[0]
    return LOOSE_FILES.get(head, head)


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of imports, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        return list(e.args[1])
    return []


def read_house(package: Path = PACKAGE) -> House:
    """Read a package from its files; nothing of it is imported."""
    paths = {
        name_of(p, package): p
        for p in sorted(package.rglob("*.py"))
        if "versions" not in p.parts and p.name != "env.py"
    }
    return House(
        modules={name: frozenset(imports_of(p, package.name, paths.keys()) - {name}) for name, p in paths.items()},
        loose=tuple(sorted(p.name for p in package.iterdir() if p.is_file())),
    )


def name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path, package: str, known: Iterable[str]) -> set[str]:
    """Modules of the package that a file imports, also inside functions."""
    names, found = set(known), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{a.name}" for a in node.names]
            wanted = [w if w.removeprefix(f"{package}.") in names else node.module for w in whole]
        else:
            continue
        found |= {w.removeprefix(f"{package}.") for w in wanted if w.startswith(f"{package}.")}
    return {f for f in found if f in names}


def main(arguments: list[str] | None = None) -> None:
    """Print the structure, of this package or of another checkout's."""
    parser = argparse.ArgumentParser(prog="python -m babylon_rl_tests.house", description=__doc__)
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE, help="folder of the package")
    parser.add_argument("--arrows", action="store_true", help="also print every edge between packages")
    given = parser.parse_args(arguments)
    house = read_house(given.package)
    rooms = {room(m) for m in house.modules}
    lines = [
        f"modules            {len(house.modules)}",
        f"imports            {house.module_edges()}",
        f"packages           {len(rooms)}: {', '.join(sorted(rooms, key=_place))}",
        f"package edges      {len(house.edges)}",
        f"loose files        {len(house.loose)}: {', '.join(house.loose)}",
        f"arrows back up     {len(house.upward())}",
        f"package circle     {' → '.join(house.package_circle()) or 'none'}",
        f"module circle      {' → '.join(house.module_circle()) or 'none'}",
    ]
    lines += [f"  up: {m} imports {other}" for m, other in house.upward()]
    if given.arrows:
        lines += [f"  {a} → {b}" for a, b in sorted(house.edges, key=lambda e: (_place(e[0]), _place(e[1])))]
    sys.stdout.write("\n".join(lines) + "\n")


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


if __name__ == "__main__":
    main()
