"""`Retriever` answers as a server does: the same values, to the last bit."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_values import values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import RunningServer
from small_bundles import NUM_INTERESTS, SmallVersion

from re4 import (
    AttributeFilter,
    BundleDamagedError,
    BundleError,
    Candidates,
    NoUsableHistoryError,
    RequestError,
    RetrievalClient,
    Retriever,
    UsageError,
)
from re4.bundle.hidden_ids import change_hidden
from re4.bundle.publishing.version_lease import is_served
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.lmdb_store import LmdbStore
from re4.serving.histories.settings import HistorySettings
from re4.serving.histories.store import Event, event_mark

HISTORY = ["item-4-é", "item-9-é"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    SmallVersion(has_attributes=True).publish(folder)
    change_hidden(folder, hide=["item-7-é", "item-8-é"], kind="string")
    return folder


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[RetrievalClient]:
    with RunningServer(bundles) as server, RetrievalClient(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def retriever(bundles: Path) -> Iterator[Retriever]:
    with Retriever.open(bundles) as opened:
        yield opened


ids = st.integers(0, 69).map(lambda number: f"item-{number}-é")  # ten of them are unknown
histories = st.lists(ids, max_size=12).filter(lambda found: any(int(i.split("-")[1]) < 60 for i in found))
filters = st.builds(
    AttributeFilter,
    attribute=st.just("colour"),
    values=st.lists(st.sampled_from(["red", "green", "blue", "none"]), min_size=1, max_size=3),
    drop=st.booleans(),
)
options = st.fixed_dictionaries(
    {},
    optional={
        "exclude_history": st.booleans(),
        "return_interests": st.booleans(),
        "merge_policy": st.sampled_from(
            [None, "max-score", "equal-quota", "attention-quota", "round-robin", "soft-quota"]
        ),
        "filters": st.lists(filters, max_size=2),
        "search_effort": st.sampled_from([0.0, 0.5, 2.0]),
        "num_reasons": st.integers(0, 4),
    },
)
diverse = st.fixed_dictionaries(
    {
        "merge_policy": st.just("category-diversity"),
        "diversity": st.floats(0, 4, width=32),
        "diversity_attribute": st.just("colour"),
    }
)


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(histories, st.integers(1, 70), st.lists(ids, max_size=8), options | diverse)
def test_one_user_gets_the_servers_values(
    client: RetrievalClient,
    retriever: Retriever,
    history: list[str],
    num_candidates: int,
    exclude: list[str],
    options: dict[str, Any],
) -> None:
    expected = client.retrieve(history, num_candidates, exclude=exclude, **options)
    found = retriever.retrieve(history, num_candidates, exclude=exclude, **options)
    assert values_of(found) == values_of(expected)
    assert values_of(retriever.encode(history)) == values_of(client.encode(history))


def test_many_users_get_the_servers_values(client: RetrievalClient, retriever: Retriever) -> None:
    users = [[f"item-{(7 * user + i) % 60}-é" for i in range(1 + user % 5)] for user in range(200)]
    excluded = [[f"item-{user % 60}-é"] for user in range(200)]
    chosen: dict[str, Any] = {"exclude_history": True, "return_interests": True, "num_reasons": 2}
    found = retriever.retrieve_batch(users, 10, exclude=excluded, **chosen)
    assert values_of(found) == values_of(client.retrieve_batch(users, 10, exclude=excluded, **chosen))
    assert retriever.version == found[0].version == client.info()["version"]


def test_a_users_error_stays_with_that_user(retriever: Retriever) -> None:
    found = retriever.retrieve_batch([HISTORY, ["nobody"], HISTORY, [], ["x" * 2000]], 5)
    assert [type(each) for each in found] == [
        *(Candidates, NoUsableHistoryError, Candidates, NoUsableHistoryError, RequestError)
    ]
    with pytest.raises(NoUsableHistoryError, match="none of the 1 ids in history is known"):
        retriever.retrieve(["nobody"])
    with pytest.raises(NoUsableHistoryError, match="history is empty"):
        retriever.encode([])


def test_no_limit_of_a_server_applies(retriever: Retriever) -> None:
    found = retriever.retrieve(HISTORY * 10_000, 100_000)
    assert len(found.item_ids) == 58, "all but the hidden ones"
    assert len(retriever.retrieve_batch([HISTORY] * 1000, 1)) == 1000
    assert retriever.retrieve_batch([], 5) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_candidates": 0}, "num_candidates is 0"),
        ({"history": "item-1-é"}, "history is one text"),
        ({"history": [1, 2]}, "this catalogue's ids are strings"),
        ({"merge_policy": "best"}, "merge_policy is 'best'"),
        ({"filters": [AttributeFilter(attribute="size", values=["1"])]}, "'size'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_request_names_the_value(
    retriever: Retriever, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        retriever.retrieve(**{"history": HISTORY} | arguments)


def test_settings_are_those_of_a_server(bundles: Path) -> None:
    with Retriever.open(str(bundles), merge_policy="round-robin", fallback="popular") as chosen:
        assert sorted(chosen.retrieve(HISTORY, 9).interest_index[:NUM_INTERESTS]) == [*range(NUM_INTERESTS)]
        assert chosen.retrieve(["nobody"], 9).is_popularity_fallback
    with pytest.raises(UsageError, match="merge_policy is 'best'"):
        Retriever.open(bundles, merge_policy="best")
    with pytest.raises(UsageError, match="fallback"):
        Retriever.open(bundles, fallback="newest")  # type: ignore[arg-type]


def test_a_version_is_held_until_it_is_closed(bundles: Path, tmp_path: Path) -> None:
    version = tmp_path / SmallVersion(seed=1).publish(tmp_path)
    SmallVersion(seed=2).publish(tmp_path)
    with Retriever.open(version) as opened:
        assert opened.version == version.name, "not the live one"
        assert is_served(version)
    assert not is_served(version)
    with pytest.raises(UsageError, match="closed"):
        opened.retrieve(HISTORY)


def test_a_damaged_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no version was published here"):
        Retriever.open(tmp_path)
    version = tmp_path / SmallVersion().publish(tmp_path)
    data = (version / "vectors.npy").read_bytes()
    (version / "vectors.npy").chmod(0o600)
    (version / "vectors.npy").write_bytes(data[:-1] + b"?")
    with pytest.raises(BundleDamagedError, match=r"vectors\.npy"):
        Retriever.open(tmp_path)
    assert not is_served(version)


def test_threads_may_share_it(retriever: Retriever) -> None:
    expected = values_of(retriever.retrieve(HISTORY, 10))
    found: list[Any] = []

    def ask() -> None:
        found.extend(values_of(retriever.retrieve(HISTORY, 10)) for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 80


def test_stored_histories_count_as_those_of_a_request(tmp_path: Path) -> None:
    version = SmallVersion()
    version.publish(tmp_path / "bundles")
    items = [str(item) for item in version.ids[:3]]
    store = LmdbStore(LmdbEnvironment(tmp_path / "histories", 1 << 30), HistorySettings().bounds)
    now_ms = int(time.time() * 1e3)
    store.append([Event("u", now_ms, event_mark("", item), item) for item in items], now_ms)
    store.close()
    del store
    with Retriever.open(tmp_path / "bundles", histories=tmp_path / "histories") as retriever:
        assert retriever.retrieve(user_id="u").item_ids == retriever.retrieve(items).item_ids
        one, other = retriever.retrieve_batch([(), items[:1]], user_ids=["u", ""])
        assert one.item_ids == retriever.retrieve(items).item_ids
        assert other.item_ids == retriever.retrieve(items[:1]).item_ids
        with pytest.raises(NoUsableHistoryError):
            retriever.retrieve(user_id="nobody")
    with (
        Retriever.open(tmp_path / "bundles") as retriever,
        pytest.raises(UsageError, match="histories=FOLDER"),
    ):
        retriever.retrieve(user_id="u")
