"""One market, whatever it is called: `$BTC`, `BTC`, its organisation's id and its organisation's name.

What belongs here: the names that the game's catalog (`Organization`, and `PerpMarketSnapshot` where there is one) gives
its markets. Where no catalog tells, `$` alone is dropped.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from babylon_rl.ingest.fact_tables import FactTables


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketNames:
    """Which names are one ticker.

    Attributes:
        organizations: Organisation id → its ticker: the catalog's, or the id itself where it has none.
        tickers: Simplified name (letters and digits, without case) → ticker; a name that two markets share is in none.
        other_names: Ticker → what else it is called.
    """

    organizations: Mapping[str, str] = field(default_factory=dict)
    tickers: Mapping[str, str] = field(default_factory=dict)
    other_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def find_ticker(self, name: str) -> str:
        """The ticker of a name; of one that the catalog does not tell, the name without `$`."""
        return self.tickers.get(_simplify(name), name.lstrip("$"))

    def is_unknown(self, name: str) -> bool:
        """Whether there is a catalog, and it does not tell which market this is."""
        return bool(self.organizations) and _simplify(name) not in self.tickers

    def list_other_names(self, ticker: str) -> tuple[str, ...]:
        return self.other_names.get(ticker, ())


def read_market_names(conn: sa.Connection, facts: FactTables) -> MarketNames:
    """Read the catalog; empty where there is none."""
    known: dict[str, dict[str, str]] = {}  # organisation id → its ticker and name
    organization, snapshot = facts.tables.get("Organization"), facts.tables.get("PerpMarketSnapshot")
    if organization is not None:
        columns = ", ".join(organization.select(c) for c in ("id", "name", "ticker"))
        for row in conn.exec_driver_sql(f"SELECT {columns} FROM {organization.sql}"):  # noqa: S608  # from the catalog
            known[row.id] = {"ticker": row.ticker or "", "name": row.name or ""}
    if snapshot is not None:
        columns = ", ".join(snapshot.select(c) for c in ("organization_id", "name", "ticker"))
        for row in conn.exec_driver_sql(f"SELECT {columns} FROM {snapshot.sql} ORDER BY 3 DESC"):  # noqa: S608
            own = known.setdefault(row.organization_id, {"ticker": "", "name": row.name or ""})
            own["ticker"] = own["ticker"] or row.ticker
    return name_markets((id_, own["ticker"], own["name"]) for id_, own in known.items())


def name_markets(organizations: Iterable[tuple[str, str, str]]) -> MarketNames:
    """Names of markets.

    Args:
        organizations: (organisation id, ticker or "", name or ""), in any order.
    """
    rows = sorted((id_, ticker.lstrip("$"), name) for id_, ticker, name in organizations if id_)
    shared = Counter(ticker for _, ticker, _ in rows)
    by_id = {id_: ticker if ticker and shared[ticker] == 1 else id_ for id_, ticker, _ in rows}
    owners: defaultdict[str, set[str]] = defaultdict(set)
    others: dict[str, tuple[str, ...]] = {}
    for id_, ticker, name in rows:
        own = by_id[id_]
        names = [n for n in (id_, ticker, name) if n]
        for n in names:
            owners[_simplify(n)].add(own)
        others[own] = tuple(dict.fromkeys(n for n in (id_, name) if n and n != own))
    return MarketNames(
        organizations=by_id,
        tickers={n: next(iter(o)) for n, o in owners.items() if len(o) == 1 and n},
        other_names=others,
    )


def _simplify(name: str) -> str:
    """Letters and digits without case: `Open AI`, `open-ai` and `$OPENAI` are one name."""
    return "".join(c for c in name.casefold() if c.isalnum())
