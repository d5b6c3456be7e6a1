"""The structure of the package, read from its imports: `python -m babylon_rl_tests.house [PACKAGE] [--arrows]`.

Prints modules, packages, edges, loose files, arrows that run back up the order, and circles. Every import counts,
also those inside functions and under `TYPE_CHECKING`: a reader has to know those modules too.
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
    "deployment",
    "store",
    "policy",
    "simulator",
    "base_policy",
    "training",
    "gateway",
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
class Structure:
    """The structure that the imports give.

    Attributes:
        modules: Dotted name below the package → dotted names of the package that it imports.
        loose: Files at the root.
    """

    modules: Mapping[str, frozenset[str]]
    loose: tuple[str, ...]

    @property
    def edges(self) -> set[tuple[str, str]]:
        """Package → package, without the edges inside one."""
        return {
            (package_of(m), package_of(other))
            for m, used in self.modules.items()
            for other in used
            if package_of(m) != package_of(other)
        }

    def module_edges(self) -> int:
        return sum(map(len, self.modules.values()))

    def upward(self) -> list[tuple[str, str]]:
        """Imports of a package that comes later in `ORDER`; `babylon_rl/__init__.py`, the public interface, is exempt."""
        place = {name: i for i, name in enumerate(ORDER)}
        return sorted(
            (m, other)
            for m, used in self.modules.items()
            for other in used
            if m != "__init__" and place.get(package_of(other), -1) > place.get(package_of(m), len(ORDER))
        )

    def package_circle(self) -> list[str]:
        edges = self.edges - {("vocabulary", r) for r in (package_of(o) for o in self.modules.get("__init__", ()))}
        return find_circle({a: {b for x, b in edges if x == a} for a, _ in edges})

    def module_circle(self) -> list[str]:
        return find_circle({m: used for m, used in self.modules.items() if m != "__init__"})


def package_of(module: str) -> str:
    """The package that a module belongs to; an unknown loose file counts as a package of its own."""
    head = module.partition(".")[0]
    return LOOSE_FILES.get(head, head)


def find_circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of imports, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        return list(e.args[1])
    return []


def read_structure(package: Path = PACKAGE) -> Structure:
    """Read a package from its files; nothing of it is imported."""
    paths = {
        name_of(p, package): p
        for p in sorted(package.rglob("*.py"))
        if "versions" not in p.parts and p.name != "env.py"
    }
    return Structure(
        modules={name: frozenset(imports_of(p, package.name, paths.keys()) - {name}) for name, p in paths.items()},
        loose=tuple(sorted(p.name for p in package.iterdir() if p.is_file())),
    )


def name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path, package: str, known: Iterable[str]) -> set[str]:
    """Modules of the package that a file imports, also inside functions."""
    names, imported = set(known), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            candidates = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{a.name}" for a in node.names]
            candidates = [w if w.removeprefix(f"{package}.") in names else node.module for w in whole]
        else:
            continue
        imported |= {w.removeprefix(f"{package}.") for w in candidates if w.startswith(f"{package}.")}
    return {f for f in imported if f in names}


def main(arguments: list[str] | None = None) -> None:
    """Print the structure, of this package or of another checkout's."""
    parser = argparse.ArgumentParser(prog="python -m babylon_rl_tests.house", description=__doc__)
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE, help="folder of the package")
    parser.add_argument("--arrows", action="store_true", help="also print every edge between packages")
    given = parser.parse_args(arguments)
    structure = read_structure(given.package)
    packages = {package_of(m) for m in structure.modules}
    lines = [
        f"modules            {len(structure.modules)}",
        f"imports            {structure.module_edges()}",
        f"packages           {len(packages)}: {', '.join(sorted(packages, key=_rank))}",
        f"package edges      {len(structure.edges)}",
        f"loose files        {len(structure.loose)}: {', '.join(structure.loose)}",
        f"arrows back up     {len(structure.upward())}",
        f"package circle     {' → '.join(structure.package_circle()) or 'none'}",
        f"module circle      {' → '.join(structure.module_circle()) or 'none'}",
    ]
    lines += [f"  up: {m} imports {other}" for m, other in structure.upward()]
    if given.arrows:
        lines += [f"  {a} → {b}" for a, b in sorted(structure.edges, key=lambda e: (_rank(e[0]), _rank(e[1])))]
    sys.stdout.write("\n".join(lines) + "\n")


def _rank(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


if __name__ == "__main__":
    main()
