"""The hour: which text is a window, which instant is in it, and which window a row belongs to."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import DataError
from babylon_rl.ingest.queries import scenario_of, window_of
from babylon_rl.windows import HourWindow

START = datetime(2025, 1, 13, 14, 20, tzinfo=UTC)
HOUR_14 = HourWindow.parse("2025-01-13T14:00")
hours = st.datetimes(datetime(1000, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(hours)
def test_an_id_read_back_is_the_same_window(at: datetime) -> None:
    window = HourWindow.containing(at)
    assert HourWindow.parse(str(window)) == window == window_of(str(window), START)
    assert window_of(window.start_at.strftime("%Y-%m-%d-%H"), START) == window
    assert at in window


@given(hours)
def test_every_instant_is_in_exactly_one_of_neighbouring_windows(at: datetime) -> None:
    window = HourWindow.containing(at)
    assert [at in w for w in window.next(-1).until(window.next())] == [False, True, False]


def test_a_window_is_half_open() -> None:
    assert HOUR_14.start_at in HOUR_14
    assert HOUR_14.end_at - timedelta(microseconds=1) in HOUR_14
    assert HOUR_14.end_at not in HOUR_14
    assert not HOUR_14.closed_at(HOUR_14.end_at - timedelta(microseconds=1))
    assert HOUR_14.closed_at(HOUR_14.end_at)


def test_the_hour_is_utc_whatever_zone_an_instant_is_given_in() -> None:
    at = datetime(2025, 1, 13, 19, 50, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert HourWindow.containing(at) == HOUR_14


@pytest.mark.parametrize(
    "text",
    ["", "2025-01-13T14:30", "2025-01-13 14:00", "2025-13-13T14:00", "2025-02-29T14:00", "2025-01-13T24:00", "x"],
)
def test_what_is_no_full_utc_hour_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected the form"):
        HourWindow.parse(text)


@pytest.mark.parametrize(
    ("window_id", "expected"),
    [
        ("2025-01-13T09:00", "2025-01-13T09:00"),
        ("2025-01-13-09", "2025-01-13T09:00"),
        ("2024-02-29-23", "2024-02-29T23:00"),
        (None, "2025-01-13T14:00"),
        ("", "2025-01-13T14:00"),
        ("test-window-1", "2025-01-13T14:00"),
        ("2025-01-13T09:30", "2025-01-13T14:00"),
        ("2023-02-29T09:00", "2025-01-13T14:00"),
        ("1900-02-29-09", "2025-01-13T14:00"),
        ("2025-01-13T24:00", "2025-01-13T14:00"),
        ("2025-01-13T09:00\n", "2025-01-13T14:00"),
        ("٢٠٢٥-01-13T09:00", "2025-01-13T14:00"),
        ("0000-01-13T09:00", "2025-01-13T14:00"),
        ("0999-01-13T09:00", "2025-01-13T14:00"),
    ],
)
def test_a_row_without_a_valid_window_id_is_of_its_start_hour(window_id: str | None, expected: str) -> None:
    assert str(window_of(window_id, START)) == expected


# ── scenarios ──────────────────────────────────────────────────────────────────────────────────────


@given(hours, st.text(min_size=1, max_size=100).filter(lambda s: not s.isspace()))
def test_a_scenarios_id_read_back_is_the_same_window(at: datetime, scenario: str) -> None:
    window = HourWindow.containing(at).of_scenario(scenario)
    assert HourWindow.parse(str(window)) == window
    assert not set("/# ") & set(str(window)), "an agent and a digest are put behind it"
    assert (str(window)[:16], window.hour) == (str(HourWindow.containing(at)), HourWindow.containing(at))
    assert window.hour < window < window.next()
    assert window.next() == HourWindow.containing(at).next(), "ranges are of hours"


@pytest.mark.parametrize(
    "scenario_id",
    [
        None,
        "",
        "  ",
        "2025-01-13T14:00",
        "2025-01-13-14",
        "2025-01-13T14:00:00Z",
        "2025-01-13 14:00:00.000+00:00",
        "autonomous-tick-7",
        "tick_12",
    ],
)
def test_what_agents_cannot_share_is_no_scenario(scenario_id: str | None) -> None:
    assert scenario_of(scenario_id) == ""


@pytest.mark.parametrize(
    "scenario_id", ["trust-attack-01", "2025-01-13T14:00-trust", "benchmark-1", "14", "tick-storm-2"]
)
def test_any_other_text_is_a_scenario(scenario_id: str) -> None:
    assert scenario_of(f" {scenario_id} ") == scenario_id


@pytest.mark.parametrize("text", ["2025-01-13T14:00~", "2025-01-13T14:30~x", "~x", "2025-01-13T14:00 ~x"])
def test_a_scenario_of_no_hour_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected the form"):
        HourWindow.parse(text)
