"""Timestamps of an event log in any of the usual notations, as numbers that sort by time.

Whole and fractional numbers keep their values, because only their order matters; the unit (seconds,
milliseconds, …) is inferred from their size, for the report. Text is read as a number or as ISO
8601, in UTC unless it has a zone.
"""

import itertools
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast

import numpy as np
import numpy.typing as npt
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


@dataclass(frozen=True, kw_only=True)
class TimeSurvey:
    """What decides the notation of a column of timestamps. Surveys of two parts of a column can be added."""

    dtype: pl.DataType
    num_values: int
    num_not_whole: int = 0
    """Texts that are no 64-bit integers."""
    num_not_numbers: int = 0
    """Texts that are no numbers."""
    largest: float = 0.0
    """The largest magnitude of the finite numbers."""
    smallest: float = float("inf")
    """The smallest magnitude above 0."""

    @classmethod
    def of(cls, column: pl.Series) -> "TimeSurvey":
        """Survey a column without nulls."""
        values, num_not_whole, num_not_numbers = column, 0, 0
        if column.dtype == pl.String:
            values = column.cast(pl.Int64, strict=False)
            num_not_whole = values.null_count()
            if num_not_whole:
                values = column.cast(pl.Float64, strict=False)
                num_not_numbers = values.null_count()
        survey = cls(
            dtype=column.dtype,
            num_values=len(column),
            num_not_whole=num_not_whole,
            num_not_numbers=num_not_numbers,
        )
        if not values.dtype.is_numeric() or 2 * num_not_numbers >= len(column):
            return survey
        sizes = values.cast(pl.Float64).abs()
        sizes = sizes.filter(sizes.is_finite())
        return replace(
            survey,
            largest=cast(float, sizes.max() or 0.0),
            smallest=cast(float, sizes.filter(sizes > 0).min() or float("inf")),
        )

    def __add__(self, other: "TimeSurvey") -> "TimeSurvey":
        return TimeSurvey(
            dtype=self.dtype,
            num_values=self.num_values + other.num_values,
            num_not_whole=self.num_not_whole + other.num_not_whole,
            num_not_numbers=self.num_not_numbers + other.num_not_numbers,
            largest=max(self.largest, other.largest),
            smallest=min(self.smallest, other.smallest),
        )

    @property
    def form(self) -> pl.DataType:
        """The type as which the column is read: of text Int64, Float64 or Datetime (ISO 8601)."""
        if self.dtype != pl.String:
            return self.dtype
        if self.num_not_whole == 0:
            return pl.Int64()
        return pl.Float64() if 2 * self.num_not_numbers < self.num_values else pl.Datetime("us")

    def notation(self, where: str) -> tuple[str, float]:
        """Return the notation, for the report, and the units in a second.

        Raises:
            DataError: Units are mixed.
        """
        if self.dtype == pl.String and not self.form.is_numeric():
            return "ISO 8601", 1e6
        if self.dtype == pl.Date:
            return "dates", 1e6
        if isinstance(self.dtype, pl.Datetime):
            unit = _UNIT_OF_DATETIME[self.dtype.time_unit]
            return "dates and times", next(per_second for name, _, per_second in _UNITS if name == unit)
        smallest = min(self.smallest, self.largest)
        unit, limit, per_second = _unit_of(self.largest)
        if _unit_of(smallest)[1] != limit:
            raise DataError(
                f"{where} holds numbers from {smallest:g} to {self.largest:g}, which look like "
                f"{_unit_of(smallest)[0]} and {unit} mixed; write all timestamps in one unit, or keep those "
                "of the unit of most of them with --drop-invalid"
            )
        return f"{unit} since 1970", per_second


def parse_timestamps(where: str, column: pl.Series) -> Timestamps:
    """Read a column of timestamps.

    Args:
        where: The file and column, for messages.
        column: At least one value, none null.

    Raises:
        DataError: The type cannot be a time, values cannot be read (the first are named), or units
            are mixed.
    """
    check_time_type(where, column.dtype)
    survey = TimeSurvey.of(column)
    values = read_times(column, survey.form)
    unreadable = Unreadable.of(column, values)
    unreadable.refuse(where, survey.form)
    notation, units_per_second = survey.notation(where)
    return Timestamps(values=values, notation=notation, units_per_second=units_per_second)


def check_time_type(where: str, dtype: pl.DataType) -> None:
    """Refuse a type that cannot be a time.

    Raises:
        DataError: It cannot.
    """
    if not (dtype in (pl.String, pl.Date) or dtype.is_numeric() or isinstance(dtype, pl.Datetime)):
        raise DataError(f"{where} holds {dtype}; timestamps must be numbers, ISO 8601 text or dates")


def read_times(column: pl.Series, form: pl.DataType) -> pl.Series:
    """Return a column as Int64 or Float64, null or not finite where a value cannot be read in this form."""
    if column.dtype == pl.String and isinstance(form, pl.Datetime):
        return _parse_iso(column)
    if isinstance(form, pl.Datetime):
        return column.to_physical()
    if form == pl.Date:
        return column.cast(pl.Datetime("us")).to_physical()
    return column.cast(pl.Float64 if form.is_float() else pl.Int64, strict=False)


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """Timestamps that cannot be read. Those of two parts of a column can be added."""

    num_values: int
    """Of the column."""
    num_unreadable: int
    first: list[tuple[int, object]]
    """Number of the event, from 1, and the value of the first ones."""

    @classmethod
    def of(cls, column: pl.Series, values: pl.Series) -> "Unreadable":
        """Find the values of a column that `read_times` could not read."""
        rows = (values.is_null() | ~values.is_finite()).arg_true()
        first = [(row + 1, column[row]) for row in rows.head(_NUM_SHOWN)]
        return cls(num_values=len(column), num_unreadable=len(rows), first=first)

    def __add__(self, other: "Unreadable") -> "Unreadable":
        later = [(self.num_values + number, value) for number, value in other.first]
        return Unreadable(
            num_values=self.num_values + other.num_values,
            num_unreadable=self.num_unreadable + other.num_unreadable,
            first=[*self.first, *later][:_NUM_SHOWN],
        )

    def refuse(self, where: str, form: pl.DataType) -> None:
        """Raise an error if there are any.

        Raises:
            DataError: There are; the message has the first ones.
        """
        if not self.num_unreadable:
            return
        allowed = "finite numbers of at most 64 bits"
        if not form.is_numeric():
            allowed = "numbers since 1970 or ISO 8601 such as 2024-05-31T12:00:00Z"
        shown = ", ".join(f"event {number:,}: {value!r}" for number, value in self.first)
        raise DataError(
            f"{where} holds {self.num_unreadable:,} timestamps that cannot be read ({shown}); they must be "
            f"{allowed}; correct or remove these events, or leave them out with --drop-invalid"
        )


class TimeClasses:
    """The notation of each timestamp of a column: a date, or a number of one of the units."""

    def __init__(self, column: pl.Series) -> None:
        """Classify the values of a column, none of them null."""
        self._column = column
        numbers = pl.Series(dtype=pl.Float64)
        self._is_date = None
        if column.dtype == pl.String:
            numbers = column.cast(pl.Float64, strict=False)
            self._is_date = _parse_iso(column).is_not_null()
        elif column.dtype.is_numeric():
            numbers = column.cast(pl.Float64)
        self._num_numbers = len(numbers) - numbers.null_count()
        sizes = numbers.abs()
        is_finite = sizes.is_finite().fill_null(False)
        self._is_zero = is_finite & (sizes == 0)
        limits = itertools.pairwise([0.0, *(limit for _, limit, _ in _UNITS)])
        # 0 is a time of every unit.
        self._of_unit = [is_finite & (sizes >= low) & (sizes < high) for low, high in limits]

    @property
    def votes(self) -> npt.NDArray[np.int64]:
        """Numbers of dates, of numbers, and of numbers of each unit; votes of parts of a column add up."""
        num_dates = 0 if self._is_date is None else self._is_date.sum()
        return np.array([num_dates, self._num_numbers, *(mask.sum() for mask in self._of_unit)], np.int64)

    def readable(self, votes: npt.NDArray[np.int64]) -> pl.Series:
        """Return which timestamps have the notation, and the unit, of most of the votes: a mask."""
        if self._is_date is None and not self._column.dtype.is_numeric():
            return self._column.is_not_null()
        if self._is_date is not None and votes[0] > votes[1]:
            return self._is_date
        return self._of_unit[int(votes[2:].argmax())] | self._is_zero


def _unit_of(size: float) -> tuple[str, float, float]:
    return next(unit for unit in _UNITS if size < unit[1])


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
