"""Attributes are read back by item and by value as they were written; wrong ones are refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_versions import SPACE, fill, publish_staged

from re4.bundle.attributes.columns import CodedColumn
from re4.bundle.attributes.reader import Attributes
from re4.bundle.attributes.writer import write_attributes
from re4.bundle.layout import attribute_files
from re4.bundle.manifest import AttributeInfo, ItemsInfo
from re4.bundle.publishing.publish import stage_version
from re4.bundle.verify import verify_version
from re4.common.attribute_values import position
from re4.common.errors import BundleDamagedError, BundleError

VALUES = st.one_of(st.text(min_size=1, max_size=3), st.integers(-3, 3), st.booleans())
SINGLE = st.lists(st.one_of(st.none(), VALUES), min_size=1, max_size=30)
MULTIPLE = st.lists(st.lists(VALUES, max_size=4), min_size=1, max_size=30)


def as_text(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def write_and_open(folder: Path, **columns: object) -> Attributes:
    num_items = len(next(iter(columns.values())))
    return Attributes.open(folder, write_attributes(folder, columns, num_items), num_items)


@given(column=st.one_of(SINGLE, MULTIPLE), data=st.data())
def test_every_item_keeps_its_values(
    column: list[object], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sets = [
        {as_text(value) for value in (item if isinstance(item, list) else [item]) if value is not None}
        for item in column
    ]
    if not any(sets):
        return
    attributes = write_and_open(tmp_path_factory.mktemp("attributes"), a=column)
    attributes.check()
    attribute = attributes["a"]
    values = attribute.values()
    assert values == sorted(set().union(*sets))
    wanted = data.draw(st.lists(st.sampled_from(values), unique=True))
    codes = attribute.value_codes(wanted)
    assert [values[code] for code in codes] == wanted
    expected = np.array([bool(have & set(wanted)) for have in sets])
    assert attribute.rows_with(codes.tolist()).tolist() == np.flatnonzero(expected).tolist()
    assert attribute.mask_with(codes.tolist()).tolist() == expected.tolist()
    assert attribute.num_with(codes.tolist()) == sum(len(have & set(wanted)) for have in sets)
    rows = np.array(data.draw(st.lists(st.integers(0, len(sets) - 1))), np.int64)
    assert attribute.have_any(rows, codes.tolist()).tolist() == expected[rows].tolist()
    found, lengths = attribute.codes_of(rows)
    if lengths is None:
        assert [{values[code]} if code < len(values) else set() for code in found] == [
            sets[row] for row in rows
        ]
    else:
        ends = np.cumsum(lengths)
        assert [
            {values[code] for code in found[end - length : end]}
            for end, length in zip(ends, lengths, strict=True)
        ] == [sets[row] for row in rows]


NUMBERS = st.one_of(st.integers(-40, 40), st.floats(-40, 40), st.sampled_from([1e300, -0.0, 12.25]))


@given(
    column=st.lists(st.lists(NUMBERS, max_size=3), min_size=1, max_size=40), ends=st.tuples(NUMBERS, NUMBERS)
)
def test_a_range_has_the_values_between_its_ends(
    column: list[list[float]], ends: tuple[float, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not any(column):
        return
    folder = tmp_path_factory.mktemp("attributes")
    single = [numbers[0] if numbers else None for numbers in column]
    if all(number is None for number in single):
        return
    attributes = write_and_open(folder, several=column, single=single)
    attributes.check()
    low, high = sorted(ends)
    for name, sets in (("several", column), ("single", [item[:1] for item in column])):
        attribute = attributes[name]
        assert attribute.order == "number"
        codes = attribute.codes_within(low, high)
        assert {float(attribute.value(code)) for code in codes} == {
            number for numbers in sets for number in numbers if low <= number <= high
        }
        expected = [any(low <= number <= high for number in numbers) for numbers in sets]
        assert attribute.mask_with(codes).tolist() == expected
        assert attribute.rows_with(codes).tolist() == np.flatnonzero(expected).tolist()
        assert attribute.have_any(np.arange(len(sets)), codes).tolist() == expected


def test_only_attributes_of_numbers_alone_or_of_dates_alone_have_an_order(tmp_path: Path) -> None:
    attributes = write_and_open(
        tmp_path,
        price=[12.5, 3.0, float("nan"), None],
        released=["2026-01-31", "1969-12-31T23:59:59", "2026-01-31T01:00:00+01:00", None],
        mixed=["7", "2026-01-31", None, None],
        title=["7", "seven", None, None],
        is_new=[True, False, None, None],
    )
    orders = {name: attributes[name].order for name in attributes.names}
    assert orders == {"price": "number", "released": "date", "mixed": None, "title": None, "is_new": None}
    assert attributes["price"].values() == ["12.5", "3"]
    january = position("2026-01-31")
    assert january is not None
    assert len(attributes["released"].codes_within(january[1], january[1])) == 2
    assert len(attributes["released"].codes_within(-1, 0)) == 1
    assert not len(attributes["title"].codes_within(-np.inf, np.inf))


@pytest.mark.parametrize("num_values", [1, 255, 256, 65_535, 65_536])
def test_codes_fit_however_many_values_there_are(num_values: int, tmp_path: Path) -> None:
    column: list[int | None] = [*range(num_values), None, 0]
    attribute = write_and_open(tmp_path, a=column)["a"]
    (last,) = attribute.value_codes([str(num_values - 1)])
    assert attribute.rows_with([last]).tolist() == [num_values - 1] + [num_values + 1] * (num_values == 1)
    assert attribute.codes_of(np.array([num_values]))[0].tolist() == [num_values]


def test_an_unknown_value_has_no_code(tmp_path: Path) -> None:
    attribute = write_and_open(tmp_path, genres=[["Drama", "Comedy"], [], ["Drama"]])["genres"]
    assert attribute.value_codes(["", "Dram", "Drama", "Dramas", "Zzz"]).tolist() == [-1, -1, 1, -1, -1]


def test_columns_that_are_coded_already_come_out_the_same(tmp_path: Path) -> None:
    coded = CodedColumn(
        values=["red", "blue"],
        codes_E=np.array([0, 0, 1, -1, 1]),
        offsets_N1=np.array([0, 2, 3, 3, 5]),
    )
    attribute = write_and_open(tmp_path, colour=[["red"], ["blue"], [], ["blue"]])["colour"]
    other = Attributes.open(tmp_path, write_attributes(tmp_path, {"colour": lambda: coded}, 4), 4)["colour"]
    assert other.values() == attribute.values() == ["blue", "red"]
    for code in (0, 1):
        assert other.rows_with([code]).tolist() == attribute.rows_with([code]).tolist()


def test_numpy_columns_are_taken(tmp_path: Path) -> None:
    attributes = write_and_open(tmp_path, is_cold=np.array([True, False, True]), year=np.array([1999, 7, 7]))
    assert attributes.names == ("is_cold", "year")
    (code,) = attributes["is_cold"].value_codes(["true"])
    assert attributes["is_cold"].rows_with([code]).tolist() == [0, 2]
    assert attributes["year"].values() == ["1999", "7"]


def test_an_unknown_attribute_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="colour, size"):
        write_and_open(tmp_path, colour=["red"], size=["L"])["weight"]
    with pytest.raises(BundleError, match="none at all"):
        Attributes.open(tmp_path, (), 1)["weight"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1j, "x"]}, r"attribute 'a', row 0: 1j is complex"),
        ({"a": [["x"], [b"y"]]}, "row 1"),
        ({"a": ["x"]}, "of 1 items, the catalogue has 2"),
        ({"a": [None, ""]}, "no item has a value"),
        ({"": ["x", "y"]}, "1 to 200 characters"),
        ({"a": ["\ud800", "y"]}, "lone surrogate"),
        ({"a": ["é" * 600, "y"]}, "1200 UTF-8 bytes"),
        ({f"a{number}": ["x", "y"] for number in range(65)}, "at most 64"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    columns: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        write_attributes(tmp_path, columns, 2)


@pytest.mark.parametrize(
    ("codes", "offsets", "values", "message"),
    [
        ([0, 1], None, ["x"], "codes from 0 to 1; -1 to 0"),
        ([0, 0], None, ["x", "x"], "listed twice"),
        ([0, 0], [0, 1, 1], ["x"], "do not rise from 0 to the 2 codes"),
        ([0, 0], [0, 2, 1], ["x"], "do not rise"),
    ],
)
def test_codes_that_contradict_themselves_are_refused(
    codes: list[int], offsets: list[int] | None, values: list[str], message: str, tmp_path: Path
) -> None:
    column = CodedColumn(
        values=values, codes_E=np.array(codes), offsets_N1=None if offsets is None else np.array(offsets)
    )
    with pytest.raises(BundleError, match=message):
        write_attributes(tmp_path, {"a": lambda: column}, 2)


def publish_with_attributes(bundles: Path) -> Path:
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
        infos = write_attributes(staged.path, {"colour": ["red", None, "blue"], "tags": [["a"], [], []]}, 3)
        return bundles / publish_staged(staged, attributes=infos)


def test_attributes_are_part_of_a_verified_version(bundles: Path) -> None:
    path = publish_with_attributes(bundles)
    items = verify_version(path).items
    assert [info.name for info in items.attributes] == ["colour", "tags"]
    assert Attributes.open(path, items.attributes, items.num_items)["tags"].rows_with([0]).tolist() == [0]


def test_a_version_without_attributes_has_none(version: Path) -> None:
    items = verify_version(version).items
    assert items.attributes == ()
    assert Attributes.open(version, items.attributes, items.num_items).names == ()


@pytest.mark.parametrize("place", range(6))
def test_a_missing_attribute_file_is_noticed(place: int, bundles: Path) -> None:
    path = publish_with_attributes(bundles)
    name = attribute_files(1, is_multi_valued=True)[place]
    (path / str(name)).unlink()
    with pytest.raises(BundleDamagedError, match=str(name)):
        verify_version(path)


def test_nothing_is_published_with_files_of_an_attribute_missing(bundles: Path) -> None:
    with stage_version(bundles) as staged:
        fill(staged.path, "one")
        infos = write_attributes(staged.path, {"colour": ["red", None, "blue"]}, 3)
        (staged.path / "attribute_0.rows.npy").unlink()
        with pytest.raises(BundleError, match=r"without attribute_0\.rows\.npy"):
            publish_staged(staged, attributes=infos)


def test_files_of_another_catalogue_are_refused(tmp_path: Path) -> None:
    infos = write_attributes(tmp_path, {"a": ["x", "y", "x"]}, 3)
    with pytest.raises(BundleDamagedError, match=r"codes\.npy"):
        Attributes.open(tmp_path, infos, 4)
    with pytest.raises(BundleDamagedError, match=r"offsets\.npy"):
        Attributes.open(tmp_path, [infos[0].model_copy(update={"num_values": 3})], 3)
    (tmp_path / "attribute_0.values.utf8").write_bytes(b"x")
    with pytest.raises(BundleDamagedError, match="the offsets end at 2"):
        Attributes.open(tmp_path, infos, 3)


def test_two_attributes_of_one_name_are_refused() -> None:
    info = AttributeInfo(name="a", num_values=1, is_multi_valued=False)
    with pytest.raises(ValueError, match="listed twice"):
        ItemsInfo(num_items=3, id_kind="string", space=SPACE, attributes=(info, info))


@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        ("0.codes", 1, 9, "code 9, 3 is the highest"),
        ("0.codes", 1, 0, "do not add up"),
        ("0.starts", 1, 3, "do not add up"),
        ("0.rows", 0, 4, "do not rise"),
        ("0.rows", 0, -1, "do not rise"),
        ("0.values.offsets", 1, 9, "not told apart"),
        ("1.codes", 0, 2, "code 2, 1 is the highest"),
        ("1.offsets", 1, 5, "offsets that do not rise"),
        ("2.positions", 1, 3, "positions that are not those of its values"),
    ],
)
def test_files_that_contradict_each_other_are_noticed(
    file: str, place: int, value: int, message: str, tmp_path: Path
) -> None:
    columns = {
        "letter": ["a", "b", "c", None],
        "tags": [["x"], ["y", "x"], [], ["y"]],
        "price": [1.5, 2, None, None],
    }
    infos = write_attributes(tmp_path, columns, 4)
    path = tmp_path / f"attribute_{file}.npy"
    array = np.load(path)
    array[place] = value
    np.save(path, array)
    with pytest.raises(BundleDamagedError, match=message):
        Attributes.open(tmp_path, infos, 4).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"\xc3bc", "values: the texts from number 0 on are not all"), (b"bac", "do not ascend")],
)
def test_values_that_no_search_would_find_are_noticed(text: bytes, message: str, tmp_path: Path) -> None:
    infos = write_attributes(tmp_path, {"letter": ["a", "b", "c"]}, 3)
    (tmp_path / "attribute_0.values.utf8").write_bytes(text)
    with pytest.raises(BundleDamagedError, match=message):
        Attributes.open(tmp_path, infos, 3).check()
