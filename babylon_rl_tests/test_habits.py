"""Habits of the tests themselves: names that can be read at a glance, and imports where a reader looks for them."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
MAX_NAME = 60

LOCAL_IMPORTS = {
    "babylon_rl.training.cpu_backend": "imports art, six seconds that collecting the tests should not cost",
    "babylon_rl.training.cpu_service": "imports art, six seconds that collecting the tests should not cost",
}
"""Our modules that a test may import inside a function, and why."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[Path, Function]]:
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield path.relative_to(TESTS), node


def modules_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return [a.name for a in node.names] if isinstance(node, ast.Import) else []


def test_names_of_tests_are_at_most_sixty_characters() -> None:
    names = [(str(path), f.name) for path, f in functions() if f.name.startswith("test_")]
    assert [n for n in names if len(n[1]) > MAX_NAME] == []


def test_our_modules_are_imported_at_the_top() -> None:
    helpers = {p.stem for p in TESTS.rglob("*.py")} | {"babylon_rl", "babylon_rl_tests"}
    local = {
        (str(path), module)
        for path, function in functions()
        for node in ast.walk(function)
        for module in modules_of(node)
        if module.partition(".")[0] in helpers
    }
    assert {(path, module) for path, module in local if module not in LOCAL_IMPORTS} == set()
    assert {module for _, module in local} == LOCAL_IMPORTS.keys(), "an exception that nobody needs any more"


def test_no_line_is_kept_from_the_formatter() -> None:
    """A layout that needs `fmt: skip` is a layout to change."""
    root = TESTS.parent
    skip = "# fmt" + ": skip"
    kept = [
        f"{path.relative_to(root)}:{n}"
        for folder in ("babylon_rl", "babylon_rl_tests", "benchmarks")
        for path in sorted((root / folder).rglob("*.py"))
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if skip in line
    ]
    assert kept == []
