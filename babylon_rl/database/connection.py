"""Which database is whose, and how to connect to it.

What belongs here: URLs from settings, and engines. Nothing here reads a table.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from babylon_rl.errors import ConfigError
from babylon_rl.settings import DatabaseSettings

# Prisma's own URL parameters, which libpq refuses.
_PRISMA_ONLY: Final = (
    "schema",
    "connection_limit",
    "pool_timeout",
    "pgbouncer",
    "sslaccept",
    "sslidentity",
    "sslpassword",
    "socket_timeout",
    "statement_cache_size",
)


def game_url(settings: DatabaseSettings) -> str:
    """The game's database as a plain `postgresql://` URL: `DATABASE_URL`, else the embedded server, started.

    Raises:
        ConfigError: `DATABASE_URL` is no PostgreSQL URL, or the embedded server does not start.
    """
    if settings.url is None:
        from babylon_rl.database.embedded import ensure_server  # loaded only where the server is needed

        return ensure_server(settings.home)
    return normalise(settings.url.get_secret_value(), "DATABASE_URL")


def platform_url(settings: DatabaseSettings) -> str:
    """Where schema `babylon_rl` lives: `BABYLON_PLATFORM_URL`, else beside the game's tables."""
    if settings.platform_url is None:
        return game_url(settings)
    return normalise(settings.platform_url.get_secret_value(), "BABYLON_PLATFORM_URL")


def event_log_url(settings: DatabaseSettings) -> str:
    """Dagster's own database: `BABYLON_DAGSTER_URL`, else `dagster` on the embedded server.

    Dagster's tables never go into the game's database, whoever owns that.
    """
    if settings.dagster_url is not None:
        return normalise(settings.dagster_url.get_secret_value(), "BABYLON_DAGSTER_URL")
    # Its event log is many small commits; losing the last half second of it in a crash loses no data of ours.
    from babylon_rl.database.embedded import ensure_database, ensure_server

    return ensure_database(ensure_server(settings.home), "dagster", options={"synchronous_commit": "off"})


def normalise(url: str, variable: str) -> str:
    """Any spelling of a PostgreSQL URL, as the plain one that libpq, psycopg and psycopg2 all read.

    Driver suffixes go, and so do Prisma's parameters; its `schema` becomes the search path.

    Raises:
        ConfigError: It is not a PostgreSQL URL; the message names `variable`, never the URL.
    """
    try:
        parsed = make_url(url)
        dialect = parsed.drivername.partition("+")[0]
        if dialect not in ("postgresql", "postgres"):
            raise ConfigError(f"{variable} starts with {dialect + '://'!r}; expected postgresql://user@host:5432/name")
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(f"{variable} is not a URL; expected the form postgresql://user@host:5432/name") from None
    schema = parsed.query.get("schema")
    parsed = parsed.set(drivername="postgresql").difference_update_query(_PRISMA_ONLY)
    if isinstance(schema, str) and schema != "public":
        parsed = _with_option(parsed, f"-csearch_path={schema}")
    return parsed.render_as_string(hide_password=False)


def connect(url: str) -> sa.Engine:
    """An engine on psycopg 3 with a small pool, whose sessions are in UTC. Dispose of it when done.

    Raises:
        ConfigError: The server cannot be reached or refuses us; the message shows no password.
    """
    parsed = _with_option(make_url(url).set(drivername="postgresql+psycopg"), "-ctimezone=UTC")
    engine = sa.create_engine(
        parsed, pool_size=4, max_overflow=8, pool_pre_ping=True, connect_args={"connect_timeout": 10}
    )
    try:
        with engine.connect():
            return engine
    except (sa.exc.OperationalError, UnicodeError) as e:
        engine.dispose()
        reason = str(getattr(e, "orig", e)).strip().replace("\n", " ")
        if parsed.password:
            reason = reason.replace(str(parsed.password), "***")
        raise ConfigError(
            f"database {_describe(parsed)} cannot be reached: {reason[:300]}; expected a running PostgreSQL; "
            "check DATABASE_URL, or unset it to use the embedded server"
        ) from None


def find_lost_connection(error: BaseException) -> str | None:
    """The driver's first words where an error, or what it came from, is a connection to PostgreSQL that was lost.

    Drivers are known by name: Dagster brings psycopg2, which nothing of ours imports. None for any other error.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        e = waiting.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if _is_lost_connection(e):
            return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)[:300]
        related = (getattr(e, "orig", None), e.__cause__, e.__context__)
        waiting += [r for r in (*related, *getattr(e, "exceptions", ())) if isinstance(r, BaseException)]
    return None


def _is_lost_connection(e: BaseException) -> bool:
    names = {c.__name__ for c in type(e).__mro__ if c.__module__.partition(".")[0] in ("psycopg", "psycopg2")}
    if "OperationalError" in names:
        code = getattr(e, "sqlstate", None) or getattr(e, "pgcode", None)
        return code is None or code.startswith(("08", "57P"))  # connection exceptions, and a server that shuts down
    return "InterfaceError" in names and "closed" in str(e)


def _with_option(url: URL, option: str) -> URL:
    old = url.query.get("options", "")
    return url.update_query_dict({"options": f"{old} {option}".strip()})


def _describe(url: URL) -> str:
    host = url.host or url.query.get("host") or "localhost"
    return f"{url.database!r} on {host!r}" + (f" port {url.port}" if url.port else "")
