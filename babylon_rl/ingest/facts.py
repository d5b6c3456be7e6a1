"""The facts of the world, written by the simulator; outcomes are computed from them (`ingest/outcomes.py`)."""

import math
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from babylon_rl.database import tables
from babylon_rl.database.upsert import upsert
from babylon_rl.errors import DataError


def write_facts(
    conn: sa.Connection,
    *,
    prices: Sequence[tuple[str, datetime, float]] = (),
    predictions: Sequence[tuple[str, str, str, str | None, float | None]] = (),
    news: Sequence[tuple[datetime, str, str | None]] = (),
) -> None:
    """Write facts; each replaces an earlier one with the same key. The caller commits.

    Args:
        conn: An open transaction on the database with schema `babylon_rl`.
        prices: (ticker, aware instant, price). An hour's closing price is the one at its end or just before.
        predictions: (market id, window id, question, `YES`/`NO`/None while unresolved, final probability or None).
        news: (aware instant, headline, ticker or None).

    Raises:
        DataError: An instant has no zone, or a price is not a finite number.
    """
    for ticker, at, price in prices:
        if at.tzinfo is None or not math.isfinite(price):
            raise DataError(
                f"price fact of {ticker!r} is {price!r} at {at!r}; expected a finite price at an aware instant"
            )
    for at, headline, _ in news:
        if at.tzinfo is None:
            raise DataError(f"news fact {headline[:60]!r} is at {at!r}; expected an aware instant")
    upsert(conn, tables.price_facts, [{"ticker": t, "at": at, "price": p} for t, at, p in prices])
    upsert(
        conn,
        tables.prediction_facts,
        [
            {"market_id": m, "window_id": w, "question": q, "outcome": o, "final_probability": p}
            for m, w, q, o, p in predictions
        ],
    )
    upsert(conn, tables.news_facts, [{"at": at, "headline": h, "ticker": t} for at, h, t in news])
