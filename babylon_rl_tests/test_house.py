"""The order of the packages, held by reading the imports: data and imports flow one way.

`python -m babylon_rl_tests.house` prints the same order, with its edges.
"""

import ast

import pytest

from babylon_rl_tests.house import MAX_LOOSE_FILES, ORDER, PACKAGE, main, package_of, read_structure

STRUCTURE = read_structure()


def test_every_package_has_a_place_in_the_order() -> None:
    assert {package_of(m) for m in STRUCTURE.modules} == set(ORDER)


def test_packages_use_only_those_before_them() -> None:
    assert STRUCTURE.upward() == []


def test_no_circle_between_packages() -> None:
    assert STRUCTURE.package_circle() == []


def test_no_circle_between_files() -> None:
    assert STRUCTURE.module_circle() == []


def test_the_root_is_short() -> None:
    assert len(STRUCTURE.loose) <= MAX_LOOSE_FILES, STRUCTURE.loose


def test_the_command_prints_the_order(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    output = capsys.readouterr().out
    assert f"{len(ORDER)}: {', '.join(ORDER)}" in output
    assert "arrows back up     0\n" in output


def test_a_back_arrow_and_a_circle_are_found(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The tests above can fail: the same reading of a package that is wrong in both ways."""
    package = tmp_path / "house"
    (package / "common").mkdir(parents=True)
    (package / "store").mkdir()
    for file in ("__init__.py", "common/__init__.py", "store/__init__.py"):
        (package / file).write_text("")
    (package / "common/a.py").write_text("def f() -> None:\n    from house.store import b\n")
    (package / "store/b.py").write_text("from house.common.a import f\n")
    wrong = read_structure(package)
    assert wrong.upward() == [("common.a", "store.b")]
    assert set(wrong.package_circle()) == {"common", "store"}
    assert set(wrong.module_circle()) == {"common.a", "store.b"}


def test_only_dagsters_own_packages_import_dagster() -> None:
    guilty = {
        str(p.relative_to(PACKAGE))
        for p in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(p.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "dagster" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dagster")
    }
    assert {g for g in guilty if not g.startswith("defs/")} == {"definitions.py", "cli/runner.py"}


def test_the_report_reads_no_database() -> None:
    """Numbers in, page out: others measure, and others read the database."""
    used = {
        (m, u)
        for m in STRUCTURE.modules
        if package_of(m) == "report"
        for u in STRUCTURE.modules[m]
        if package_of(u) in ("database", "store")
    }
    sql = {
        (p.name, alias.name if isinstance(node, ast.Import) else node.module)
        for p in sorted((PACKAGE / "report").glob("*.py"))
        for node in ast.walk(ast.parse(p.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        in ("sqlalchemy", "psycopg")
    }
    assert used | sql == set()


def test_hidden_market_state_stays_with_the_simulator() -> None:
    """Making the base policy and evaluating play markets of their own; nothing between rows and weights may."""
    users = {m for m, used in STRUCTURE.modules.items() if "simulator.market" in used}
    assert {package_of(u) for u in users} <= {"simulator", "base_policy", "pipeline"}
    assert {u for u in users if package_of(u) == "pipeline"} == {"pipeline.evaluate"}


def test_the_simulator_knows_no_judging_or_training() -> None:
    assert not {b for a, b in STRUCTURE.edges if a == "simulator"} & {"judging", "store", "training"}


def test_only_settings_reads_the_environment() -> None:
    readers = [
        str(p.relative_to(PACKAGE))
        for p in sorted(PACKAGE.rglob("*.py"))
        if p.parent.name != "settings"
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
