"""Only `store/` uses our tables, and `ingest/` the few that it fills itself; tested by reading every module."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl.database import tables as t
from babylon_rl_tests.house import PACKAGE

# `database/` creates the tables; nothing there knows what their rows mean.
STORES = ("store/", "database/")
# Facts of the world, outcomes computed from them, and the counts of recorded rows with the queues that the game's triggers fill.
OF_INGEST = {
    "price_facts",
    "prediction_facts",
    "news_facts",
    "computed_outcomes",
    "window_summary",
    "window_counts",
    "row_changes",
    "outcome_changes",
}
TABLES = {table.name for table in t.platform.tables.values()}
VIEWS = {"stale_windows", "judge_costs", "trainable_windows"}
_IN_SQL = re.compile(rf"\b{t.OUR_SCHEMA}\.({'|'.join(sorted(TABLES | VIEWS | {t.CREATED_GAME_TABLES}))})\b")
_DEFINED_IN = ("babylon_rl.database.tables", "babylon_rl.database.live_tables")
_CUT_OFF = re.compile(rf"\b{t.OUR_SCHEMA}\.$")  # `f"babylon_rl.{name}"`


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def named_in_sql(tree: ast.Module) -> set[str]:
    """Tables and views that the module's texts name with their schema; docstrings are prose and may."""
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]
    return {m for text in texts for m in _IN_SQL.findall(text)} | {"?" for text in texts if _CUT_OFF.search(text)}


def imported_tables(tree: ast.Module) -> set[str]:
    """Tables that the module takes from `database/tables.py`, as attributes of it or by name."""
    names, imported = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "babylon_rl.database":
            names |= {a.asname or a.name for a in node.names if a.name == "tables"}
        elif isinstance(node, ast.ImportFrom) and node.module in _DEFINED_IN:
            imported |= {a.name for a in node.names} - {"OUR_SCHEMA"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            imported |= {node.attr} - {"OUR_SCHEMA"}
    return imported


def touched(tree: ast.Module) -> set[str]:
    return named_in_sql(tree) | imported_tables(tree)


def test_only_the_store_and_ingest_touch_our_tables() -> None:
    allowed = {"ingest/": OF_INGEST}
    guilty = {}
    for name, tree in modules():
        if name.startswith(STORES):
            continue
        own = next((tables for folder, tables in allowed.items() if name.startswith(folder)), set())
        if wrong := touched(tree) - own:
            guilty[name] = sorted(wrong)
    assert guilty == {}


@pytest.mark.parametrize(
    ("source", "tables"),
    [
        ('q = "SELECT 1 FROM babylon_rl.check_results"', {"check_results"}),
        ('q = f"SELECT 1 FROM babylon_rl.{name}"', {"?"}),
        ("from babylon_rl.database import tables as t\nq = t.judgments.c", {"judgments"}),
        ("from babylon_rl.database.tables import windows", {"windows"}),
        ("from babylon_rl.database.live_tables import served_calls", {"served_calls"}),
        ('"""Reads babylon_rl.judgments."""\nimport babylon_rl.windows', set()),
    ],
)
def test_each_way_to_name_a_table_is_recognised(source: str, tables: set[str]) -> None:
    """The test above can fail."""
    assert touched(ast.parse(source)) == tables


def test_every_table_of_ingest_is_a_table() -> None:
    assert OF_INGEST <= TABLES
    assert Path(PACKAGE, "ingest").is_dir()


@pytest.mark.parametrize(
    ("sign", "owner"), [("pg_advisory", "database/locks.py"), ("on_conflict_do", "database/upsert.py")]
)
def test_locks_and_upserts_are_written_once(sign: str, owner: str) -> None:
    """Everything else calls `lock_transaction`, `upsert` or `insert_missing`. COPY (`bulk_copy`) writes its own SQL."""
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if sign in path.read_text(encoding="utf-8").replace("pg_try_advisory", "pg_advisory")
    }
    assert users == {owner}
