"""The client of a real server: right answers, in the catalogue's own ids."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from running_server import RunningServer, open_files
from small_bundles import MAX_HISTORY, SmallVersion

from re4 import RequestError, RetrievalClient, ServerError


@pytest.fixture(scope="module")
def client(server: RunningServer) -> RetrievalClient:
    with RetrievalClient(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def int_client(int_server: RunningServer) -> RetrievalClient:
    with RetrievalClient(int_server.address) as opened:
        yield opened


def ids(version: SmallVersion, rows: list[int]) -> list[str] | list[int]:
    return [version.ids[row] for row in rows]


def test_candidates(client: RetrievalClient, small_version: SmallVersion) -> None:
    history = [4, 9, 30]
    found = client.retrieve(ids(small_version, history), 10)
    assert found.item_ids == ids(small_version, small_version.best(history, 10))
    expected = small_version.scores(history)[small_version.best(history, 10)]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)
    assert found.interest_index.shape == (10,)
    assert found.version == client.info()["version"]
    assert found.num_unknown_history_ids == 0
    assert not found.is_popularity_fallback
    assert found.interests is None
    assert found.stage_times["batch_size"] >= 1


def test_integer_ids_stay_integers(int_client: RetrievalClient, int_version: SmallVersion) -> None:
    history = [4, 9, 30]
    found = int_client.retrieve(np.array(ids(int_version, history)), 10)
    assert found.item_ids == ids(int_version, int_version.best(history, 10))
    assert not found.is_popularity_fallback


def test_the_caller_chooses_the_merge_policy(client: RetrievalClient, small_version: SmallVersion) -> None:
    history = ids(small_version, [4, 9, 30])
    default, best = (client.retrieve(history, 9, merge_policy=policy) for policy in (None, "max-score"))
    assert default.item_ids == best.item_ids
    equal = client.retrieve(history, 9, merge_policy="equal-quota")
    assert np.bincount(equal.interest_index, minlength=3).tolist() == [3, 3, 3]
    in_turns = client.retrieve(history, 9, merge_policy="round-robin")
    assert sorted(in_turns.item_ids) == sorted(equal.item_ids)
    assert sorted(in_turns.interest_index[:3].tolist()) == [0, 1, 2]
    by_attention = client.retrieve(history, 9, merge_policy="attention-quota", exclude_history=True)
    assert len(set(by_attention.item_ids) - set(history)) == 9
    with pytest.raises(RequestError, match="merge_policy is 'best'; there is max-score, equal-quota"):
        client.retrieve(history, 9, merge_policy="best")


def test_only_the_newest_known_ids_of_a_long_history_count(
    client: RetrievalClient, small_version: SmallVersion
) -> None:
    newest = [11, 12, 13, 14, 15, 16]
    assert len(newest) == MAX_HISTORY
    old = [20, 21, 22]
    mixed: list[str] = []
    for item in ids(small_version, old + newest):
        mixed += [item, f"unknown-{item}"]
    found = client.retrieve(mixed, 10, return_interests=True)
    assert found.item_ids == ids(small_version, small_version.best(newest, 10))
    assert found.num_unknown_history_ids == len(old + newest)
    assert found.interests.attended_item_ids == ids(small_version, newest)


def test_exclusions_reach_the_whole_history_however_long(
    client: RetrievalClient, small_version: SmallVersion
) -> None:
    history = list(range(40))
    found = client.retrieve(
        ids(small_version, history),
        50,
        exclude=[*ids(small_version, [45, 45]), "unknown"],
        exclude_history=True,
    )
    assert found.item_ids == ids(small_version, small_version.best(history, 50, excluded=[*history, 45]))
    assert len(found.item_ids) == 60 - 41


def test_interests_and_attention(client: RetrievalClient, small_version: SmallVersion) -> None:
    history = [5, 2, 5, 40]
    interests_KD, attention_KL = small_version.encode(history)
    encoded = client.encode([*ids(small_version, history), "unknown"])
    retrieved = client.retrieve(ids(small_version, history), 3, return_interests=True).interests
    for found in (encoded, retrieved):
        np.testing.assert_allclose(found.vectors, interests_KD, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.attention, attention_KL, rtol=1e-4, atol=1e-5)
        assert found.attended_item_ids == ids(small_version, history)
        assert found.version == client.info()["version"]
    assert encoded.num_unknown_history_ids == 1
    assert retrieved.num_unknown_history_ids == 0


@pytest.mark.parametrize("history", [[], [1, 2, 3]])
def test_popular_items_for_a_user_without_a_usable_history(
    history: list[int], int_client: RetrievalClient, int_version: SmallVersion
) -> None:
    popular = ids(int_version, int_version.popular_rows)
    found = int_client.retrieve(history, 5, exclude=[popular[0], popular[2]])
    assert found.item_ids == [popular[1], *popular[3:7]]
    assert found.is_popularity_fallback
    assert found.interest_index.tolist() == [0] * 5
    assert found.scores.tolist() == [0] * 5
    assert found.num_unknown_history_ids == len(history)
    every = int_client.retrieve([], 1000).item_ids
    assert every[: len(popular)] == popular
    assert every[len(popular) :] == [item for item in int_version.ids if item not in popular]


def test_the_fallback_is_for_retrieve_alone(int_client: RetrievalClient) -> None:
    with pytest.raises(ServerError, match="FAILED_PRECONDITION"):
        int_client.encode([])


def test_info(client: RetrievalClient, int_client: RetrievalClient) -> None:
    facts = client.info()
    assert (facts["model"], facts["num_interests"], facts["embedding_dim"]) == ("re4", 3, 8)
    assert (facts["index"], facts["num_items"], facts["item_id_kind"]) == ("flat", 60, "string")
    assert (facts["max_history_length"], facts["max_num_candidates"]) == (MAX_HISTORY, 1000)
    assert facts["effective_interests"] == 0, "it was not measured for this version"
    assert (facts["failed_version"], facts["failure"]) == ("", "")
    assert int_client.info()["item_id_kind"] == "int"
    assert int_client.info()["num_processes"] == 2


def test_both_processes_on_the_port_answer(int_server: RunningServer, int_version: SmallVersion) -> None:
    """The kernel gives each new connection to one of the two: open as many as it takes to reach both."""
    history = [3, 4]
    expected = ids(int_version, int_version.best(history, 5))
    with ExitStack() as clients:
        for _ in range(100):
            fresh = clients.enter_context(RetrievalClient(int_server.address))
            assert fresh.retrieve(ids(int_version, history), 5).item_ids == expected
            if len(connected_workers(int_server)) == 2:
                break
        assert len(connected_workers(int_server)) == 2


def connected_workers(server: RunningServer) -> set[int]:
    """Workers of a server that hold a connection of a client, as the kernel lists them."""
    port = f":{int(server.address.rpartition(':')[2]):04X}"
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()
    ]
    inodes = {row[9] for row in rows if row[1].endswith(port) and row[3] == "01"}
    return {
        worker
        for worker in server.workers()
        if any(link.removeprefix("socket:[").removesuffix("]") in inodes for link in open_files(worker))
    }


def test_the_client_refuses_ids_that_cannot_be_sent(client: RetrievalClient) -> None:
    with pytest.raises(RequestError, match="history is one text, 'item-1-é'"):
        client.retrieve("item-1-é")
    with pytest.raises(RequestError, match="history holds int, str"):
        client.retrieve(["item-1-é", 1])
    with pytest.raises(RequestError, match="exclude holds NoneType"):
        client.retrieve(["item-1-é"], exclude=[None])
    with pytest.raises(RequestError, match="cannot be sent"):
        client.retrieve([2**63])
    with pytest.raises(RequestError, match="cannot be sent"):
        client.retrieve(["\ud800"])
    with pytest.raises(RequestError, match="cannot be sent"):
        client.retrieve(["item-1-é"], -1)


def test_the_client_says_what_to_do_where_no_server_answers() -> None:
    with (
        RetrievalClient("127.0.0.1:1") as lost,
        pytest.raises(ServerError, match=r"UNAVAILABLE from 127\.0\.0\.1:1.*re4 serve --bundles"),
    ):
        lost.info()


def test_a_status_of_the_server_is_in_the_clients_error(client: RetrievalClient) -> None:
    with pytest.raises(
        ServerError, match=r"INVALID_ARGUMENT from .*num_candidates is 0; it must be from 1 to"
    ):
        client.retrieve(["item-1-é"], 0)
