"""Timestamps of an event log in any of the usual notations, as numbers that sort by time.

Whole and fractional numbers keep their values, because only their order matters; the unit (seconds,
milliseconds, …) is inferred from their size, for the report. Text is read as a number or as ISO
8601, in UTC unless it has a zone.
"""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import polars as pl

from re4.common.errors import DataError

# The largest magnitude of each unit. 1e11 seconds is the year 5138, 1e11 milliseconds is 1973: the times of
# event logs lie between these.
_UNITS: tuple[tuple[str, float, float], ...] = (
    ("seconds", 1e11, 1.0),
    ("milliseconds", 1e14, 1e3),
    ("microseconds", 1e17, 1e6),
    ("nanoseconds", float("inf"), 1e9),
)
_UNIT_OF_DATETIME = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_ISO_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
)
_NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Timestamps:
    """A column of timestamps and its notation."""

    values: pl.Series
    """Int64 or Float64 [E], rising with time."""
    notation: str
    """The notation of the column, for the report, such as `seconds since 1970`."""
    units_per_second: float
    """Units of `values` in a second."""

    def date_of(self, value: float, *, precise: bool = False) -> str:
        """Write one of the values as an ISO 8601 date and time in UTC, or as a number where no date fits.

        Args:
            value: The time.
            precise: Whether to write a fraction of a second, to microseconds; without it, seconds
                are cut off.
        """
        try:
            date = datetime.fromtimestamp(value / self.units_per_second, UTC)
        except (ValueError, OverflowError, OSError):
            return f"{value:g}"
        return date.isoformat(timespec="auto" if precise else "seconds")

    def value_of(self, date: str) -> float:
        """Read an ISO 8601 date or time, UTC without a zone, as a value in the unit of the column.

        Raises:
            DataError: It is no date.
        """
        microseconds = parse_timestamps("a cut", pl.Series([date], dtype=pl.String))
        if microseconds.notation != "ISO 8601":
            raise DataError(f"{date!r} is no date; give ISO 8601, such as 2024-05-31 or 2024-05-31T12:00:00Z")
        return int(microseconds.values[0]) * self.units_per_second / 1e6


def parse_timestamps(where: str, column: pl.Series) -> Timestamps:
    """Read a column of timestamps.

    Args:
        where: The file and column, for messages.
        column: At least one value, none null.

    Raises:
        DataError: The type cannot be a time, values cannot be read (the first are named), or units
            are mixed.
    """
    if column.dtype == pl.String:
        numbers = _as_numbers(column)
        if numbers is not None:
            return _numeric(where, numbers, column)
        values = _parse_iso(column)
        _refuse(
            where, column, values.is_null(), "numbers since 1970 or ISO 8601 such as 2024-05-31T12:00:00Z"
        )
        return Timestamps(values=values, notation="ISO 8601", units_per_second=1e6)
    if column.dtype.is_integer():
        return _numeric(where, column.cast(pl.Int64, strict=False), column)
    if column.dtype.is_float():
        return _numeric(where, column.cast(pl.Float64), column)
    if isinstance(column.dtype, pl.Datetime):
        unit = _UNIT_OF_DATETIME[column.dtype.time_unit]
        per_second = next(per_second for name, _, per_second in _UNITS if name == unit)
        return Timestamps(
            values=column.to_physical(), notation="dates and times", units_per_second=per_second
        )
    if column.dtype == pl.Date:
        values = column.cast(pl.Datetime("us")).to_physical()
        return Timestamps(values=values, notation="dates", units_per_second=1e6)
    raise DataError(f"{where} holds {column.dtype}; timestamps must be numbers, ISO 8601 text or dates")


def are_readable(column: pl.Series) -> pl.Series:
    """Return which timestamps can be read together: in the notation, and the unit, of most of them.

    Args:
        column: At least one value, none null.

    Returns:
        A mask, Boolean.
    """
    if column.dtype == pl.String:
        numbers = column.cast(pl.Float64, strict=False)
        is_date = _parse_iso(column).is_not_null()
        if is_date.sum() > numbers.is_not_null().sum():
            return is_date
    elif column.dtype.is_numeric():
        numbers = column.cast(pl.Float64)
    else:
        return column.is_not_null()
    sizes = numbers.abs()
    is_finite = sizes.is_finite().fill_null(False)
    limits = [0.0, *(limit for _, limit, _ in _UNITS)]
    # 0 is a time of every unit.
    of_unit = [is_finite & (sizes >= low) & (sizes < high) for low, high in itertools.pairwise(limits)]
    return max(of_unit, key=lambda mask: cast(int, mask.sum())) | (is_finite & (sizes == 0))


def _numeric(where: str, values: pl.Series, given: pl.Series) -> Timestamps:
    _refuse(where, given, values.is_null() | ~values.is_finite(), "finite numbers of at most 64 bits")
    sizes = values.cast(pl.Float64).abs()
    largest = cast(float, sizes.max())
    smallest = cast(float, sizes.filter(sizes > 0).min() or largest)
    unit, limit, per_second = _unit_of(largest)
    if _unit_of(smallest)[1] != limit:
        raise DataError(
            f"{where} holds numbers from {smallest:g} to {largest:g}, which look like "
            f"{_unit_of(smallest)[0]} and {unit} mixed; write all timestamps in one unit, or keep those "
            "of the unit of most of them with --drop-invalid"
        )
    return Timestamps(values=values, notation=f"{unit} since 1970", units_per_second=per_second)


def _unit_of(size: float) -> tuple[str, float, float]:
    return next(unit for unit in _UNITS if size < unit[1])


def _as_numbers(text: pl.Series) -> pl.Series | None:
    """Read text as numbers, null where that fails; None where most of it are no numbers at all."""
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == 0:
        return whole
    fractional = text.cast(pl.Float64, strict=False)
    return fractional if 2 * fractional.null_count() < len(text) else None


def _parse_iso(column: pl.Series) -> pl.Series:
    """Read ISO 8601 text as microseconds since 1970, null where that fails."""
    text = column.str.replace(" ", "T", literal=True).str.replace("[Zz]$", "+00:00")
    values = pl.repeat(None, len(text), dtype=pl.Int64, eager=True)
    for form in _ISO_FORMATS:
        left = values.is_null()
        if not left.any():
            break
        read = text.filter(left).str.to_datetime(form, strict=False, time_unit="us").cast(pl.Int64)
        values = values.scatter(left.arg_true(), read)
    return values


def _refuse(where: str, given: pl.Series, bad: pl.Series, allowed: str) -> None:
    rows = bad.arg_true()
    if len(rows) == 0:
        return
    shown = ", ".join(f"event {row + 1:,}: {given[row]!r}" for row in rows.head(_NUM_SHOWN))
    raise DataError(
        f"{where} holds {len(rows):,} timestamps that cannot be read ({shown}); they must be {allowed}; "
        "correct or remove these events, or leave them out with --drop-invalid"
    )
