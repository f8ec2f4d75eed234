from datetime import UTC, date, datetime

import polars as pl
import pytest

from re4.common.errors import DataError
from re4.training.data.timestamps import parse_timestamps

T0 = datetime(2024, 5, 31, 12, 0, 0, tzinfo=UTC)
SECONDS = 1_717_156_800  # T0


@pytest.mark.parametrize(
    ("column", "notation"),
    [
        (pl.Series([SECONDS, SECONDS + 60]), "seconds since 1970"),
        (pl.Series([SECONDS, SECONDS + 60], dtype=pl.UInt32), "seconds since 1970"),
        (pl.Series([SECONDS * 1000, (SECONDS + 60) * 1000]), "milliseconds since 1970"),
        (pl.Series([SECONDS * 10**6, (SECONDS + 60) * 10**6]), "microseconds since 1970"),
        (pl.Series([SECONDS * 10**9, (SECONDS + 60) * 10**9]), "nanoseconds since 1970"),
        (pl.Series([SECONDS + 0.25, SECONDS + 60.5]), "seconds since 1970"),
        (pl.Series([str(SECONDS), str(SECONDS + 60)]), "seconds since 1970"),
        (pl.Series([f"{SECONDS}.0", f"{SECONDS}.5"]), "seconds since 1970"),
        (pl.Series(["2024-05-31T12:00:00Z", "2024-05-31T12:01:00Z"]), "ISO 8601"),
        (pl.Series(["2024-05-31 12:00:00", "2024-05-31 12:01:00.5"]), "ISO 8601"),
        (pl.Series(["2024-05-31T14:00:00+02:00", "2024-05-31T14:01+0200"]), "ISO 8601"),
        (pl.Series([T0, T0.replace(minute=1)]), "dates and times"),
        (pl.Series([T0, T0.replace(minute=1)]).cast(pl.Datetime("ms", "UTC")), "dates and times"),
        (pl.Series([T0, T0.replace(minute=1)]).cast(pl.Datetime("ns", "UTC")), "dates and times"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.dtype) + " " + str(value[0]),
)
def test_every_notation_names_the_same_moment(column: pl.Series, notation: str) -> None:
    times = parse_timestamps("log", column)
    assert times.notation == notation
    assert times.date_of(times.values[0]) == "2024-05-31T12:00:00+00:00"
    assert times.values[0] < times.values[1]


def test_dates_are_midnight_utc() -> None:
    for column in (pl.Series([date(2024, 5, 31)]), pl.Series(["2024-05-31"])):
        times = parse_timestamps("log", column)
        assert times.date_of(times.values[0]) == "2024-05-31T00:00:00+00:00"


def test_iso_forms_may_be_mixed_and_sort_by_moment() -> None:
    column = pl.Series(
        [
            "2024-05-31T12:00:00.000001Z",
            "2024-05-31T14:00:00+02:00",
            "2024-05-31T11:59:59",
            "2024-05-31",
            "2024-05-31T11:59",
        ]
    )
    values = parse_timestamps("log", column).values
    assert values.arg_sort().to_list() == [3, 4, 2, 1, 0]


def test_what_cannot_be_read_is_counted_and_the_first_events_are_shown() -> None:
    column = pl.Series(["2024-05-31", "yesterday", "2024-06-01", "", "2024-13-01", "soon"])
    with pytest.raises(DataError) as caught:
        parse_timestamps("log.csv: column 'when'", column)
    message = str(caught.value)
    assert "log.csv: column 'when'" in message
    assert "4 timestamps" in message
    assert "event 2: 'yesterday', event 4: '', event 5: '2024-13-01'" in message
    assert "soon" not in message


def test_a_word_among_numbers_is_the_one_that_is_blamed() -> None:
    column = pl.Series(["n/a", *(str(SECONDS + n) for n in range(9))])
    with pytest.raises(DataError, match=r"1 timestamps .*event 1: 'n/a'"):
        parse_timestamps("log", column)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_must_be_finite(bad: float) -> None:
    with pytest.raises(DataError, match="event 2"):
        parse_timestamps("log", pl.Series([1.0, bad]))


def test_a_number_above_64_bits_is_refused() -> None:
    with pytest.raises(DataError, match="event 1: 18446744073709551615"):
        parse_timestamps("log", pl.Series([2**64 - 1], dtype=pl.UInt64))


def test_mixed_units_are_refused() -> None:
    with pytest.raises(DataError, match="seconds and milliseconds mixed"):
        parse_timestamps("log", pl.Series([SECONDS, SECONDS * 1000]))


def test_small_counters_and_zeros_are_fine() -> None:
    times = parse_timestamps("log", pl.Series([0, 3, 1]))
    assert times.values.to_list() == [0, 3, 1]
    assert times.date_of(0) == "1970-01-01T00:00:00+00:00"
    assert parse_timestamps("log", pl.Series([0, 0])).values.to_list() == [0, 0]


def test_a_moment_beyond_the_calendar_is_written_as_a_number() -> None:
    times = parse_timestamps("log", pl.Series([9e18]))
    assert times.date_of(9e20) == "9e+20"


@pytest.mark.parametrize("column", [pl.Series([True]), pl.Series([[1]]), pl.Series([b"1"])])
def test_other_types_are_refused(column: pl.Series) -> None:
    with pytest.raises(DataError, match="timestamps must be"):
        parse_timestamps("log", column)
