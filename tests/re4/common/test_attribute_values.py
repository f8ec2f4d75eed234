"""Values of attributes as texts, and the order of numbers and dates."""

from datetime import UTC, date, datetime

import numpy as np
import pytest

from re4.common.attribute_values import position, positions, value_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("drama", "drama"),
        (7, "7"),
        (7.0, "7"),
        (np.float32(0.5), "0.5"),
        (1e300, "1e+300"),
        (True, "true"),
        (date(2026, 1, 31), "2026-01-31"),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01-31T12:00:00+00:00"),
        (None, None),
        ("", None),
        (float("nan"), None),
        (float("-inf"), None),
    ],
)
def test_texts_of_values(value: object, text: str | None) -> None:
    assert value_text(value) == text


def test_other_types_have_no_text() -> None:
    with pytest.raises(TypeError, match="is bytes"):
        value_text(b"x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "nan",
        "inf",
        "1e999",
        "0x10",
        "1_000",
        " 1",
        "1 ",
        "٣",
        "2026",
        "9" * 65,
        "2026-02-30",
        "2026-1-1",
    ],
)
def test_texts_that_are_no_number_or_date_of_use(text: str) -> None:
    assert position(text) == (("number", 2026.0) if text == "2026" else None)


def test_numbers_and_dates_in_order() -> None:
    numbers = ["-1e3", "-2.5", "0", ".5", "7", "1e3"]
    dates = [
        "0001-01-01",
        "1969-12-31",
        "2026-01-31",
        "2026-01-31T00:00:01",
        "2026-01-31 12:00Z",
        "9999-12-31",
    ]
    for texts in (numbers, dates):
        found = positions(texts)
        assert found is not None
        assert (np.diff(found) > 0).all()
    assert position("2026-01-31T01:00+01:00") == position("2026-01-31")
    assert positions([numbers[0], dates[0]]) is None
