"""The documents that a newcomer reads agree with the code."""

import re
from pathlib import Path

import pytest
import typer
from click import Group

from babylon_rl.cli.main import app
from babylon_rl.cli.settings import with_tables
from babylon_rl.errors import ConfigError
from babylon_rl.settings import UNSET, Settings, variables
from babylon_rl_tests.house import ORDER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TEXT = {".py", ".md", ".toml", ".yaml", ".html", ".ini"}


def texts() -> list[Path]:
    """Every text file of the repository; not what is installed or generated beside it."""
    folders = ("babylon_rl", "babylon_rl_tests", "benchmarks", "docs", ".ci")
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file() and p.suffix in TEXT]
    files = [p for p in files if "node_modules" not in p.parts]  # what npm installed
    return sorted(files + [p for p in ROOT.iterdir() if p.is_file() and (p.suffix in TEXT or p.name == "Makefile")])


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for v in variables(Settings.load()):
        monkeypatch.delenv(v.name, raising=False)


def test_the_readmes_settings_are_those_of_the_code() -> None:
    """If they differ: `babylon-rl settings --write README.md`, once the descriptions read well."""
    assert with_tables(README) == README


def test_tables_do_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_BUDGET_USD", "3")
    assert with_tables(README) == README


def test_a_file_without_markers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"notes\.md lacks the lines"):
        with_tables("# Notes\n", name="notes.md")


def test_settings_without_a_default_say_what_happens_unset() -> None:
    parts = [getattr(Settings.load(), p) for p in ("database", "judge", "training", "serving")]
    fields = [f for p in (Settings.load(), *parts) for f in type(p).model_fields.values() if f.validation_alias]
    assert [f.validation_alias for f in fields if (f.default is None) != (UNSET in (f.description or ""))] == []


def test_values_in_force_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_BUDGET_USD", "3")
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:secret@host/game")
    by_name = {v.name: v for v in variables(Settings.load())}
    assert (by_name["JUDGE_BUDGET_USD"].value, by_name["JUDGE_BUDGET_USD"].is_set) == ("3.0", True)
    assert (by_name["BABYLON_SEED"].value, by_name["BABYLON_SEED"].is_set) == ("1", False)
    assert "secret" not in by_name["DATABASE_URL"].value
    assert {v.name for v in by_name.values() if v.secret} >= {"DATABASE_URL", "OPENAI_API_KEY", "WANDB_API_KEY"}


def test_every_command_of_the_readme_exists() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, Group)
    commands = set(group.commands)
    assert set(re.findall(r"babylon-rl ([a-z][a-z-]+)", README)) <= commands
    (ours,) = re.findall(r"And ours: (.*?)\. Each has", README, flags=re.DOTALL)
    assert {c.split()[0] for c in re.findall(r"`([^`]+)`", ours)} <= commands


def test_links_lead_somewhere() -> None:
    broken = [
        (str(p.relative_to(ROOT)), link)
        for p in texts()
        if p.suffix == ".md"
        for link in re.findall(r"\]\(([^)#:\s]+)\)", p.read_text(encoding="utf-8"))
        if not (p.parent / link).exists()
    ]
    assert broken == []


def test_no_file_cites_what_is_not_in_the_repository() -> None:
    cited = re.compile(r"\b(POLICY|DESIGN|GUIDE|HOUSE|STYLE|DATA)\.md\b|\[DESIGN\b")
    guilty = [str(p.relative_to(ROOT)) for p in texts() if cited.search(p.read_text(encoding="utf-8"))]
    assert set(guilty) - {"babylon_rl_tests/test_docs.py"} == set()


def test_contributing_names_the_order_of_the_packages() -> None:
    (block,) = re.findall(r"```text\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    assert tuple(block.replace("→", " ").split()) == ORDER
