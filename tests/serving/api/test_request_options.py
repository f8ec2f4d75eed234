"""Filters, explanations, effort and merge policies over real gRPC: each request has its own options."""

import json
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from grpcurl_command import GRPCURL
from index_kind_versions import NUM_ITEMS, version_of
from running_server import DEADLINE_S, RunningServer
from small_bundles import SmallVersion

from re4 import AttributeFilter, RetrievalClient
from re4.common.errors import ServerError
from re4.serving.api.batch_handler import batch_group
from re4.serving.api.validation import CheckedRequest
from re4.serving.batching.queue import BatchGroup
from re4.serving.retrieval.filtered_search import SearchOptions
from re4.serving.retrieval.filters import Condition

pytestmark = pytest.mark.transports("native", "grpcio")

HISTORY = [4, 9, 31]


@pytest.fixture
def client(server: RunningServer) -> Iterator[RetrievalClient]:
    with RetrievalClient(server.address) as client:
        yield client


@pytest.fixture
def history(small_version: SmallVersion) -> list[str]:
    return [small_version.ids[row] for row in HISTORY]


def failing(version: SmallVersion, tag: str) -> list[int]:
    return [row for row in range(version.num_items) if tag not in version.attributes["tags"][row]]


def test_filtered_candidates_are_the_best_of_those_that_pass(
    client: RetrievalClient, small_version: SmallVersion, history: list[str]
) -> None:
    keep = AttributeFilter(attribute="tags", values=["a", "no such tag"])
    found = client.retrieve(history, 100, filters=[keep], exclude_history=True)
    expected = small_version.best(HISTORY, 100, excluded=[*failing(small_version, "a"), *HISTORY])
    assert found.item_ids == [small_version.ids[row] for row in expected]


def test_a_value_that_no_item_has_matches_nothing(client: RetrievalClient, history: list[str]) -> None:
    unknown = {"attribute": "colour", "values": ["ultraviolet"]}
    assert client.retrieve(history, 5, filters=[AttributeFilter(**unknown)]).item_ids == []
    dropped = client.retrieve(history, 5, filters=[AttributeFilter(**unknown, drop=True)])
    assert dropped.item_ids == client.retrieve(history, 5).item_ids


def test_a_range_keeps_or_drops_the_values_between_its_bounds(
    client: RetrievalClient, small_version: SmallVersion, history: list[str]
) -> None:
    def rows(**condition: object) -> list[int]:
        found = client.retrieve(history, 60, filters=[AttributeFilter(attribute="price", **condition)])
        return sorted(small_version.ids.index(id_) for id_ in found.item_ids)

    assert rows(above=1, below=2.5) == [5, 6, 7, 8, 9]
    assert rows(at_least="1.00", at_most=2.5) == [4, 5, 6, 7, 8, 9, 10]
    assert rows(at_least=1, drop=True) == [0, 1, 2, 3]
    assert rows(above=1e9) == []


def test_in_a_batch_each_user_has_their_own_options(
    client: RetrievalClient, small_version: SmallVersion, history: list[str]
) -> None:
    for each in client.retrieve_batch(
        [history] * 9, 7, filters=[AttributeFilter(attribute="is_even", values=["true"])], num_reasons=2
    ):
        alone = client.retrieve(
            history, 7, filters=[AttributeFilter(attribute="is_even", values=["true"])], num_reasons=2
        )
        assert each.item_ids == alone.item_ids
        assert each.reasons.item_ids == alone.reasons.item_ids
        np.testing.assert_allclose(each.reasons.weights, alone.reasons.weights, rtol=1e-5)
    wrong = client.retrieve_batch([history], 7, filters=[AttributeFilter(attribute="size", values=["L"])])
    assert isinstance(wrong[0], ServerError)
    assert "has colour, tags, is_even" in str(wrong[0])


def test_reasons_are_the_history_items_that_the_interest_attends_to(
    client: RetrievalClient, small_version: SmallVersion, history: list[str]
) -> None:
    found = client.retrieve(history, 5, num_reasons=2, return_interests=True)
    for k, attention_L in enumerate(found.interests.attention):
        order = np.argsort(-attention_L)[:2]
        assert found.reasons.item_ids[k] == [found.interests.attended_item_ids[place] for place in order]
        np.testing.assert_allclose(found.reasons.weights[k], attention_L[order], rtol=1e-5)
    assert client.retrieve(history, 5).reasons is None


def test_info_says_what_can_be_asked_for(client: RetrievalClient) -> None:
    facts = client.info()
    assert facts["attributes"] == {
        "colour": {"num_values": 3, "is_multi_valued": False, "order": ""},
        "tags": {"num_values": 5, "is_multi_valued": True, "order": ""},
        "is_even": {"num_values": 2, "is_multi_valued": False, "order": ""},
        "price": {"num_values": 60, "is_multi_valued": False, "order": "number"},
    }
    assert (facts["max_num_filters"], facts["max_num_filter_values"], facts["max_num_reasons"]) == (
        16,
        1000,
        50,
    )
    assert (facts["min_search_effort"], facts["max_search_effort"]) == (0.25, 8)


def test_a_version_without_attributes_says_so(int_server: RunningServer) -> None:
    with RetrievalClient(int_server.address) as client:
        assert client.info()["attributes"] == {}
        with pytest.raises(ServerError, match="has no attributes"):
            client.retrieve([1000], 5, filters=[AttributeFilter(attribute="tags", values=["a"])])


def test_more_effort_finds_more_and_changes_nothing_for_others(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    version = version_of("ivf", search_parameters={"nprobe": 2, "k_factor": 1, "pool_factor": 1})
    bundles = tmp_path_factory.mktemp("ivf")
    version.publish(bundles)
    rng = np.random.default_rng(0)
    histories = [rng.integers(NUM_ITEMS, size=4).tolist() for _ in range(30)]
    best = [set(version.best(history, 10)) for history in histories]
    found: dict[float, list[set[int]]] = {}
    with RunningServer(bundles) as server, RetrievalClient(server.address) as client:
        for effort in (0, 0.5, 8, 1, 0):
            answers = client.retrieve_batch(
                [[version.ids[row] for row in history] for history in histories], 10, search_effort=effort
            )
            rows = [{version.ids.index(item) for item in answer.item_ids} for answer in answers]
            assert found.setdefault(effort, rows) == rows
    recalls = {
        effort: np.mean([len(a & b) for a, b in zip(rows, best, strict=True)])
        for effort, rows in found.items()
    }
    assert found[0] == found[1]
    assert recalls[0.5] < recalls[1] < recalls[8] == 10  # of 16 lists, all 16


@pytest.fixture(scope="module")
def popular(
    tmp_path_factory: pytest.TempPathFactory, transport: str
) -> Iterator[tuple[SmallVersion, RunningServer]]:
    """A version with attributes, and a server that falls back to its popular items."""
    version = SmallVersion(has_attributes=True)
    bundles = tmp_path_factory.mktemp("popular")
    version.publish(bundles)
    with RunningServer(bundles, "--fallback", "popular") as server:
        yield version, server


@pytest.mark.parametrize("drop", [False, True])
def test_popular_items_are_filtered_too_and_never_too_few(
    drop: bool, popular: tuple[SmallVersion, RunningServer]
) -> None:
    version, server = popular
    with RetrievalClient(server.address) as client:
        even = AttributeFilter(attribute="is_even", values=["true"], drop=drop)
        found = client.retrieve([], 100, filters=[even], exclude=[version.ids[0], version.ids[1]])
    allowed = [row for row in range(2, 60) if row % 2 == int(drop)]
    popular = [row for row in version.popular_rows.tolist() if row in allowed]
    rest = [row for row in allowed if row not in popular]
    assert found.item_ids == [version.ids[row] for row in popular + rest]


def test_grpcurl_can_ask_for_all_of_it(
    server: RunningServer, small_version: SmallVersion, history: list[str]
) -> None:
    question = {
        "history": {"strings": history},
        "num_candidates": 4,
        "num_reasons": 1,
        "search_effort": 2,
        "filters": [
            {"attribute": "tags", "values": ["a", "b"]},
            {"attribute": "is_even", "values": ["true"], "drop": True},
        ],
        "merge_policy": "MERGE_POLICY_CATEGORY_DIVERSITY",
        "diversity": 1e6,
        "diversity_attribute": "colour",
    }
    done = subprocess.run(
        [GRPCURL, "-plaintext", "-d", json.dumps(question), server.address, "re4.v1.Retrieval/Retrieve"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    answer = json.loads(done.stdout)
    rows = [small_version.ids.index(item) for item in answer["items"]["strings"]]
    assert all(row % 2 and {"a", "b"} & set(small_version.attributes["tags"][row]) for row in rows)
    assert len({small_version.attributes["colour"][row] for row in rows}) == 4
    assert len(answer["reasons"]["items"]["strings"]) == 3


def test_other_searches_are_batched_separately() -> None:
    def group(options: SearchOptions | None, num_candidates: int = 100) -> BatchGroup:
        request = CheckedRequest(
            snapshot=SimpleNamespace(is_index_remote=False),
            history_ids=["a"],
            num_candidates=num_candidates,
            options=options,
        )
        return batch_group(request)._replace(version=0)

    red, blue = (SearchOptions((Condition("colour", (code,), False),)) for code in (0, 1))
    assert group(None) == BatchGroup(version=0, relative_cost=1)
    assert group(red) == group(blue) == BatchGroup(version=0, relative_cost=4, kind="filtered")
    assert group(red, 1000) == BatchGroup(version=0, relative_cost=8, kind="filtered")
    assert group(SearchOptions(effort=3.0)) == BatchGroup(version=0, relative_cost=4, kind="effort")
    assert group(SearchOptions(effort=0.5)) == group(None), "a lower effort delays no other request"
