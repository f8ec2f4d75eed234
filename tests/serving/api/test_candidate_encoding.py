"""Encoded candidates equal the serialised message with the same candidates."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.bundle.ids.id_map import ItemIds, write_item_ids
from re4.common.errors import BundleError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api import candidate_encoding
from re4.serving.api.candidate_encoding import encode_candidates
from re4.serving.retrieval.merging import MergedList

STRINGS = ["a", "é", "x" * 127, "y" * 128, "日本" * 100, "z" * 1024]
INTS = [0, -1, 2**63 - 1, -(2**63), 7, 300]


@pytest.fixture(scope="module", params=[STRINGS, INTS], ids=["strings", "ints"])
def item_ids(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ItemIds:
    folder = tmp_path_factory.mktemp("ids")
    return ItemIds.open(folder, write_item_ids(folder, request.param), len(request.param))


CANDIDATES = st.lists(
    st.tuples(st.integers(0, 5), st.floats(width=32), st.sampled_from([0, 1, 127, 128, 70_000])), max_size=300
)


def merged(found: list[tuple[int, float, int]]) -> MergedList:
    return MergedList(
        np.array([row for row, _, _ in found], np.int64),
        np.array([score for _, score, _ in found], np.float32),
        np.array([number for _, _, number in found], np.int64),
    )


@pytest.fixture(params=[True, False], ids=["compiled", "by NumPy"], autouse=True, scope="module")
def _compiled_or_not(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            assert candidate_encoding.open_compiled() is not None
        else:
            patch.setattr(candidate_encoding, "open_compiled", lambda: None)
        yield


@pytest.mark.parametrize("reply_type", [pb.RetrieveReply, pb.BatchRetrieveReply])
@given(parts=st.lists(CANDIDATES, min_size=1, max_size=3))
def test_pieces_together_are_the_message(reply_type: type, parts: list, item_ids: ItemIds) -> None:
    data = b"".join(encode_candidates([merged(part) for part in parts], item_ids))
    reply = reply_type.FromString(data + reply_type(version="v").SerializeToString())
    whole = merged([candidate for part in parts for candidate in part])
    expected = reply_type(version="v")
    ids = item_ids.ids(whole.rows_M)
    (expected.items.strings if item_ids.kind == "string" else expected.items.ints).extend(ids)
    expected.scores.extend(whole.scores_M.tolist())
    expected.interest_numbers.extend(whole.interest_numbers_M.tolist())
    # As bytes: a score that is not a number equals nothing.
    if not ids:
        expected.ClearField("items")
    assert reply.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def test_a_row_out_of_range_is_an_error(item_ids: ItemIds) -> None:
    with pytest.raises(BundleError, match="item rows from -1 to 2"):
        encode_candidates([merged([(2, 0.0, 0), (-1, 0.0, 0)])], item_ids)
