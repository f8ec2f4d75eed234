"""Each kind of bad request gets its status and a message that names field, value and range, over real gRPC.

Good callers ask all the while, and every answer that they get is right.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from running_server import DEADLINE_S, PAUSE_S, RunningServer, raw_call
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.protos.v1 import retrieval_pb2 as pb

pytestmark = pytest.mark.transports("native", "grpcio")

BAD = grpc.StatusCode.INVALID_ARGUMENT
NUM_GOOD_CALLERS = 2


class GoodCallers:
    """Callers in the background that check every answer."""

    def __init__(self, address: str, version: SmallVersion) -> None:
        self._address = address
        self._version = version
        self._stop = threading.Event()
        self._answered = threading.Condition()
        self._num_answers = 0
        self._pool = ThreadPoolExecutor(NUM_GOOD_CALLERS)
        self._callers = [self._pool.submit(self._call, number) for number in range(NUM_GOOD_CALLERS)]

    def _call(self, number: int) -> None:
        ids = self._version.ids
        history = [number, number + 7, 3]
        expected = [ids[row] for row in self._version.best(history, 9, excluded=history)]
        with RetrievalClient(self._address) as client:
            while not self._stop.wait(PAUSE_S):
                found = client.retrieve([ids[row] for row in history], 9, exclude_history=True)
                assert found.item_ids == expected
                with self._answered:
                    self._num_answers += 1
                    self._answered.notify_all()

    def assert_still_answered(self) -> None:
        """Wait until every caller can have had one more right answer."""
        with self._answered:
            wanted = self._num_answers + NUM_GOOD_CALLERS + 1
            assert self._answered.wait_for(
                lambda: self._num_answers >= wanted or any(caller.done() for caller in self._callers),
                DEADLINE_S,
            )
        for caller in self._callers:
            assert not caller.done() or caller.exception() is None, caller.exception()

    def stop(self) -> None:
        self._stop.set()
        for caller in self._callers:
            caller.result(DEADLINE_S)
        self._pool.shutdown()


@pytest.fixture(scope="module")
def good_callers(server: RunningServer, small_version: SmallVersion) -> Iterator[GoodCallers]:
    callers = GoodCallers(server.address, small_version)
    callers.assert_still_answered()
    yield callers
    callers.stop()


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def strings(*ids: str) -> pb.ItemIds:
    return pb.ItemIds(strings=ids)


KNOWN = strings("item-1-é")


def asking(**fields: object) -> pb.RetrieveRequest:
    """A request that is right but for these fields."""
    return pb.RetrieveRequest(history=KNOWN, num_candidates=5, **fields)


BAD_RETRIEVES = {
    "no candidates": (
        pb.RetrieveRequest(history=KNOWN),
        BAD,
        "num_candidates is 0; it must be from 1 to 1000",
    ),
    "too many candidates": (
        pb.RetrieveRequest(history=KNOWN, num_candidates=1001),
        BAD,
        "num_candidates is 1001; it must be from 1 to 1000",
    ),
    "empty message": (pb.RetrieveRequest(), BAD, "num_candidates is 0"),
    "empty history": (
        pb.RetrieveRequest(num_candidates=5),
        grpc.StatusCode.FAILED_PRECONDITION,
        "history is empty",
    ),
    "unknown history": (
        pb.RetrieveRequest(history=strings("x", "y"), num_candidates=5),
        grpc.StatusCode.FAILED_PRECONDITION,
        "none of the 2 ids in history is known",
    ),
    "too long a history": (
        pb.RetrieveRequest(history=strings(*["item-1-é"] * 10_001), num_candidates=5),
        BAD,
        "history has 10001 ids; it may have from 0 to 10000",
    ),
    "too many exclusions": (
        pb.RetrieveRequest(history=KNOWN, num_candidates=5, exclude=strings(*["x"] * 10_001)),
        BAD,
        "exclude has 10001 ids; it may have from 0 to 10000",
    ),
    "integers for a string catalogue": (
        pb.RetrieveRequest(history=pb.ItemIds(ints=[1, 2]), num_candidates=5),
        BAD,
        "history has 2 ids in ints; this catalogue's ids are strings: fill history.strings",
    ),
    "integers to exclude": (
        pb.RetrieveRequest(history=KNOWN, num_candidates=5, exclude=pb.ItemIds(ints=[1])),
        BAD,
        "exclude has 1 ids in ints; this catalogue's ids are strings: fill exclude.strings",
    ),
    "both kinds": (
        pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"], ints=[1]), num_candidates=5),
        BAD,
        "history has 1 ids in strings and 1 in ints; only one may be filled",
    ),
    "no such merge policy": (
        pb.RetrieveRequest(history=KNOWN, num_candidates=5, merge_policy=9),
        BAD,
        "merge_policy is 9; it must be from 0 to 6: the server's choice, max-score, equal-quota",
    ),
    "no such attribute": (
        asking(filters=[{"attribute": "tags", "values": ["a"]}, {"attribute": "size", "values": ["L"]}]),
        BAD,
        "filters[1].attribute is 'size'; version",
    ),
    "an attribute that does not say which": (
        asking(filters=[{"values": ["a"]}]),
        BAD,
        "has colour, tags, is_even",
    ),
    "a filter without values": (
        asking(filters=[{"attribute": "tags"}]),
        BAD,
        "filters[0].values is empty; give at least one value of 'tags'",
    ),
    "a range of texts": (
        asking(filters=[{"attribute": "tags", "range": {"above": "1"}}]),
        BAD,
        "filters[0].range: the values of 'tags' are not all numbers or all dates; give values",
    ),
    "a range and values": (
        asking(filters=[{"attribute": "price", "values": ["1"], "range": {"above": "1"}}]),
        BAD,
        "filters[0] has values and a range",
    ),
    "a range without bounds": (
        asking(filters=[{"attribute": "price", "range": {}}]),
        BAD,
        "filters[0].range is empty; give above, at_least, below or at_most",
    ),
    "a range with two lower bounds": (
        asking(filters=[{"attribute": "price", "range": {"above": "1", "at_least": "2"}}]),
        BAD,
        "filters[0].range has above and at_least",
    ),
    "a bound of another kind": (
        asking(filters=[{"attribute": "price", "range": {"below": "2026-01-31"}}]),
        BAD,
        "filters[0].range.below is '2026-01-31'; 'price' has numbers, such as 0",
    ),
    "too many filters": (
        asking(filters=[{"attribute": "tags", "values": ["a"]}] * 17),
        BAD,
        "filters has 17 filters; it may have from 0 to 16",
    ),
    "too many values": (
        asking(filters=[{"attribute": "tags", "values": ["a"] * 600}] * 2),
        BAD,
        "filters has 1200 values; it may have from 0 to 1000",
    ),
    "diversity of nothing": (
        asking(merge_policy=pb.MERGE_POLICY_CATEGORY_DIVERSITY, diversity=0.5),
        BAD,
        "diversity_attribute is ''; version",
    ),
    "diversity below 0": (
        asking(merge_policy=pb.MERGE_POLICY_CATEGORY_DIVERSITY, diversity=-0.5, diversity_attribute="tags"),
        BAD,
        "diversity is -0.5; it must be 0 or more, and finite",
    ),
    "infinite diversity": (
        asking(
            merge_policy=pb.MERGE_POLICY_CATEGORY_DIVERSITY,
            diversity=float("inf"),
            diversity_attribute="tags",
        ),
        BAD,
        "diversity is inf",
    ),
    "diversity by another policy": (
        asking(diversity=0.5, diversity_attribute="tags"),
        BAD,
        "those two go with 5 (category-diversity) alone",
    ),
    "too little effort": (asking(search_effort=0.1), BAD, "search_effort is 0.1; it must be from 0.25 to 8"),
    "too much effort": (asking(search_effort=9), BAD, "search_effort is 9; it must be from 0.25 to 8"),
    "effort that is no number": (asking(search_effort=float("nan")), BAD, "search_effort is nan"),
    "too many reasons": (asking(num_reasons=51), BAD, "num_reasons is 51; it must be from 0 to 50"),
    "an empty id": (
        pb.RetrieveRequest(history=strings("item-1-é", ""), num_candidates=5),
        BAD,
        "history.strings[1] is 0 bytes of UTF-8; an id has from 1 to 1024",
    ),
    "an overlong id": (
        pb.RetrieveRequest(history=KNOWN, num_candidates=5, exclude=strings("a", "é" * 513)),
        BAD,
        "exclude.strings[1] is 1026 bytes of UTF-8; an id has from 1 to 1024",
    ),
}


@pytest.mark.parametrize("name", BAD_RETRIEVES)
def test_bad_retrieve(name: str, channel: grpc.Channel, good_callers: GoodCallers) -> None:
    request, status, text = BAD_RETRIEVES[name]
    code, details = raw_call(channel, "Retrieve", request.SerializeToString())
    assert code is status
    assert text in details
    good_callers.assert_still_answered()


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field on the wire."""
    assert len(payload) < 128
    return bytes([number << 3 | 2, len(payload)]) + payload


NOT_UTF8 = b"\xff\xfe-not-text"

MALFORMED = {
    "text that is not UTF-8": (
        "Retrieve",
        field(1, field(1, b"good") + field(1, NOT_UTF8)),
        "history.strings[1] is not valid UTF-8",
    ),
    "exclusion that is not UTF-8": (
        "Retrieve",
        field(1, field(1, b"good")) + field(3, field(1, NOT_UTF8)),
        "exclude.strings[0] is not valid UTF-8",
    ),
    "Encode with text that is not UTF-8": (
        "Encode",
        field(1, field(1, NOT_UTF8)),
        "history.strings[0] is not valid UTF-8",
    ),
    "cut off": ("Retrieve", b"\x0a\x7f\x0a", "3 bytes are not a re4.v1.RetrieveRequest message"),
    "cut off inside": ("Retrieve", field(1, b"\x0a\x7f"), "are not a re4.v1.RetrieveRequest message"),
    "noise": ("Info", b"\xff" * 50, "50 bytes are not a re4.v1.InfoRequest message"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bytes(name: str, channel: grpc.Channel, good_callers: GoodCallers) -> None:
    method, data, text = MALFORMED[name]
    code, details = raw_call(channel, method, data)
    assert code is BAD
    assert text in details
    good_callers.assert_still_answered()


def test_oversized_message(channel: grpc.Channel, good_callers: GoodCallers) -> None:
    code, details = raw_call(channel, "Retrieve", b"\x00" * ((1 << 20) + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1048577" in details
    assert "1048576" in details
    good_callers.assert_still_answered()


def test_encode_has_no_answer_for_an_unusable_history(
    channel: grpc.Channel, good_callers: GoodCallers
) -> None:
    for history in (pb.ItemIds(), strings("x")):
        request = pb.EncodeRequest(history=history)
        code, details = raw_call(channel, "Encode", request.SerializeToString())
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "history" in details
    good_callers.assert_still_answered()


def test_unknown_method(channel: grpc.Channel) -> None:
    assert raw_call(channel, "Train", b"")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_strings_for_an_integer_catalogue(int_server: RunningServer) -> None:
    request = pb.RetrieveRequest(history=strings("1000"), num_candidates=5)
    with grpc.insecure_channel(int_server.address) as int_channel:
        code, details = raw_call(int_channel, "Retrieve", request.SerializeToString())
    assert code is BAD
    assert "history has 1 ids in strings; this catalogue's ids are integers: fill history.ints" in details


def test_a_caller_that_hangs_up_disturbs_no_other(
    channel: grpc.Channel, good_callers: GoodCallers, small_version: SmallVersion
) -> None:
    call = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
    request = pb.RetrieveRequest(history=KNOWN, num_candidates=50).SerializeToString()
    for _ in range(50):
        call.future(request, timeout=DEADLINE_S).cancel()
    good_callers.assert_still_answered()
