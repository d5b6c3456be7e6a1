"""The embedded server: quick to find, hard to kill, and not ours to take down by accident."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from babylon_rl.database.connection import connect, event_log_url, game_url, normalise, platform_url
from babylon_rl.database.embedded import ensure_database, ensure_server, stop_server
from babylon_rl.errors import ConfigError
from babylon_rl.settings import Settings

START = (
    "import sys; from pathlib import Path; from babylon_rl.database.embedded import ensure_server;"
    "print(ensure_server(Path(sys.argv[1])), flush=True)"
)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """One home for the whole file: what these tests do to its server, the next call must mend."""
    yield from a_home()


@pytest.fixture
def fresh_home() -> Iterator[Path]:
    yield from a_home()


def a_home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="babylon-test-"))
    yield home
    stop_server(home)
    shutil.rmtree(home, ignore_errors=True)


def query(url: str, statement: str = "SELECT 1") -> object:
    with psycopg.connect(url) as conn:
        row = conn.execute(statement).fetchone()
        return row and row[0]


def pid_of(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def start_in_own_process(home: Path) -> str:
    done = subprocess.run([sys.executable, "-c", START, str(home)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_two_processes_at_once_get_one_server(home: Path) -> None:
    stop_server(home)
    shutil.rmtree(home)
    with ThreadPoolExecutor(2) as pool:
        urls = set(pool.map(start_in_own_process, [home, home]))
    assert len(urls) == 1
    assert query(urls.pop(), "SELECT current_database()") == "babylon"


def test_it_outlives_its_starter_and_a_ctrl_c_in_its_terminal(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START + ";import time; time.sleep(60)", str(home)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite run in the background of a shell inherits an ignored SIGINT; a person's terminal does not ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        os.killpg(starter.pid, signal.SIGINT)  # what a terminal sends on Ctrl-C
        starter.wait(10)
    assert os.getsid(pid_of(home)) != starter.pid
    assert query(url) == 1


def test_after_kill_9_the_server_starts_with_its_data(home: Path) -> None:
    url = ensure_server(home)
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 7 AS x")
    os.kill(pid_of(home), signal.SIGKILL)
    assert query(ensure_server(home), "SELECT x FROM kept") == 7


def test_a_server_whose_home_was_deleted_is_replaced(fresh_home: Path) -> None:
    """Guards the socket: the old server, once it notices, would remove the new one's."""
    ensure_server(fresh_home)
    old = pid_of(fresh_home)
    shutil.rmtree(fresh_home)
    url = ensure_server(fresh_home)
    assert pid_of(fresh_home) != old
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)
    assert query(url) == 1


def test_a_server_whose_socket_was_swept_away_is_started_again(home: Path) -> None:
    url = ensure_server(home)
    (home / "postgres" / ".s.PGSQL.5432").unlink()
    assert ensure_server(home) == url
    assert query(url) == 1


def test_a_pid_file_of_another_process_does_not_count(home: Path) -> None:
    ensure_server(home)
    lines = (home / "postgres" / "postmaster.pid").read_text().splitlines()
    stop_server(home)
    (home / "postgres" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    assert query(ensure_server(home)) == 1


def test_a_killed_initdb_does_not_stop_the_next_start(fresh_home: Path) -> None:
    (fresh_home / "postgres.new").mkdir()
    (fresh_home / "postgres.new" / "PG_VERSION").write_text("18\n")
    assert query(ensure_server(fresh_home)) == 1


def test_a_home_too_deep_for_a_socket_works(fresh_home: Path) -> None:
    deep = fresh_home / ("deep folder " * 12)
    try:
        url = ensure_server(deep)
        assert query(url) == 1
        assert str(fresh_home) not in url
    finally:
        stop_server(deep)


def test_a_running_server_is_found_at_once(home: Path) -> None:
    url = ensure_server(home)
    began = time.perf_counter()
    assert ensure_server(home) == url
    assert time.perf_counter() - began < 0.5
    stop_server(home)
    stop_server(home)
    with pytest.raises(ConfigError):
        connect(url)


def test_dagster_always_has_a_database_of_its_own(home: Path) -> None:
    settings = Settings.load(
        BABYLON_HOME=str(home),
        DATABASE_URL="postgresql+asyncpg://u:p@db.example:5432/game?schema=public&pgbouncer=true",
    ).database
    assert game_url(settings) == platform_url(settings) == "postgresql://u:p@db.example:5432/game"
    url = event_log_url(settings)
    assert query(url, "SELECT current_database()") == "dagster"
    assert query(url, "SHOW synchronous_commit") == "off"
    assert event_log_url(settings.model_copy(update={"dagster_url": None})) == url


def test_sessions_speak_utc_whatever_the_database_says(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE \"{conn.info.dbname}\" SET timezone = 'Asia/Tokyo'")
    engine = connect(empty_database_url)
    with engine.connect() as conn:
        assert conn.exec_driver_sql("SHOW timezone").scalar() == "UTC"
    engine.dispose()


def test_a_prisma_url_keeps_its_schema_as_the_search_path(server_url: str, empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as conn:
        conn.execute("CREATE SCHEMA game")
    mark = "&" if "?" in empty_database_url else "?"
    assert (
        query(normalise(f"{empty_database_url}{mark}schema=game", "DATABASE_URL"), "SELECT current_schema()") == "game"
    )


def test_an_unreachable_server_is_an_error_without_password() -> None:
    with pytest.raises(ConfigError) as e:
        connect("postgresql://me:s3cret@127.0.0.1:1/game")
    assert "cannot be reached" in str(e.value)
    assert "s3cret" not in str(e.value)
    assert e.value.__suppress_context__
    with pytest.raises(ConfigError, match="rights") as e:
        ensure_database("postgresql://me:s3cret@127.0.0.1:1/game", "x")
    assert "s3cret" not in str(e.value)


@pytest.mark.parametrize("url", ["mysql://me:s3cret@h/x", "s3cret", "postgresql://me:s3cret@h:notaport/x"])
def test_a_bad_database_url_is_named_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL") as e:
        normalise(url, "DATABASE_URL")
    assert "s3cret" not in str(e.value)
