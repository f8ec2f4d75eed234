"""Versions whose index is a collection in Milvus, against a real server with TLS and tokens.

Export, answers, accidents, pruning.

The last tests harm the server and the versions that the first ones use.
"""

import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import grpc
import numpy as np
import polars as pl
import pytest
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from live_catalogue import open_snapshot, records_of, upsert
from milvus_process import TOKEN, MilvusProcess
from rebuild_samples import Shop
from running_server import DEADLINE_S, RunningServer, wait_until
from small_bundles import MAX_HISTORY
from typer.testing import CliRunner

from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.layout import COLLECTION_PREFIX, CURRENT, INDEX, VECTORS
from re4.bundle.live_items.records import Removal
from re4.bundle.manifest import CollectionInfo, Manifest
from re4.bundle.milvus.address import CA_FILE, TOKEN_FILE, MilvusAddress
from re4.bundle.milvus.address import TOKEN as TOKEN_VARIABLE
from re4.bundle.milvus.collections import (
    check_collection,
    collection_name,
    drop_orphans,
    record_for_dropping,
)
from re4.bundle.milvus.server import MilvusServer
from re4.bundle.publishing.rollback import roll_back
from re4.bundle.verify import verify_version
from re4.cli import build_app
from re4.common.errors import (
    BundleDamagedError,
    BundleError,
    BundleMismatchError,
    BundleUnavailableError,
    GateError,
    IndexUnavailableError,
    Re4Error,
    TooLateError,
)
from re4.protos.v1 import retrieval_pb2 as pb
from re4.protos.v1 import retrieval_pb2_grpc
from re4.serving.host.batch_deadline import DEADLINE_NS
from re4.serving.retrieval.filtered_search import SearchOptions
from re4.serving.retrieval.filters import Condition
from re4.serving.retrieval.merging import POLICIES
from re4.serving.retrieval.pipeline import Query, QueryResult
from re4.serving.versions.snapshot import Snapshot

NUM_ITEMS = 600
_PATIENCE = ("--index-timeout-ms", "3000", "--max-queue-ms", "20000")
"""Other tests may take the cores: no call must fail for that."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, kw_only=True)
class World:
    """A bundle directory with three versions of the same items."""

    milvus: MilvusProcess
    shop: Shop
    catalogue: Path
    local: str
    """With a flat index in its file."""
    flat: str
    """With a flat index in Milvus."""
    ivf: str
    """With lists in Milvus."""

    @property
    def bundles(self) -> Path:
        return self.shop.bundles

    def collections(self) -> set[str]:
        with self.server() as server:
            return set(server._client.list_collections())

    def server(self) -> MilvusServer:
        return MilvusServer(MilvusAddress.parse(self.milvus.address))

    def manifest(self, version: str) -> Manifest:
        return verify_version(self.bundles / version)

    def records(self) -> set[str]:
        return {path.name for path in self.bundles.glob(f"{COLLECTION_PREFIX}*")}


def _write_catalogue(shop: Shop) -> Path:
    rng = np.random.default_rng(5)
    path = shop.folder / "catalogue.parquet"
    pl.DataFrame(
        {
            "item_id": shop.version.ids,
            "colour": rng.choice(["red", "green", "blue", None], NUM_ITEMS),
            "tags": [[tag for tag in "abcde" if rng.random() < 0.3] for _ in range(NUM_ITEMS)],
            "price": [None if row % 9 == 0 else (row % 50 - 20) / 4 for row in range(NUM_ITEMS)],
        }
    ).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("milvus")
    shop = Shop(folder, num_items=NUM_ITEMS)
    authority, token = Authority(folder), folder / "token"
    token.write_text(f"{TOKEN}\n")
    with MilvusProcess(folder / "server", authority.issue()) as milvus, pytest.MonkeyPatch.context() as patch:
        patch.setenv(CA_FILE, str(authority.path))
        patch.setenv(TOKEN_FILE, str(token))
        catalogue, versions = _write_catalogue(shop), []
        for index in ("flat", milvus.address, f"{milvus.address}?index=ivf-sq8"):
            options = ("--catalogue", catalogue, "--attributes", "colour,tags,price", "--index", index)
            error, report = shop.rebuild(*options)
            assert error is None, error
            versions.append(report["version"])
        local, flat, ivf = versions
        yield World(milvus=milvus, shop=shop, catalogue=catalogue, local=local, flat=flat, ivf=ivf)
        _end_watches()


def _end_watches() -> None:
    """End the threads that watch an index for snapshots of this process: the server is about to end."""
    gc.collect()  # errors of searches hold their snapshot in a cycle
    for thread in threading.enumerate():
        if thread.name == "index watch":
            thread.join(DEADLINE_S)


@pytest.fixture(scope="module")
def snapshots(world: World) -> tuple[Snapshot, Snapshot, Snapshot]:
    """The same items, searched in the file, in Milvus, and with the item vectors of Milvus."""
    return (
        open_snapshot(world.bundles, world.local),
        open_snapshot(world.bundles, world.flat),
        open_snapshot(world.bundles, world.flat, maps_vectors=False),
    )


def test_a_version_names_its_collection_and_no_credentials(world: World) -> None:
    for version, index_type in ((world.flat, "FLAT"), (world.ivf, "IVF_SQ8")):
        manifest = world.manifest(version)
        collection = manifest.index.collection
        assert collection is not None
        assert (collection.name, collection.index_type) == (collection_name(version), index_type)
        assert collection.address == world.milvus.address
        assert not (world.bundles / version / INDEX).exists()
        assert manifest.index.recall is not None
        assert manifest.index.recall >= 0.95
        check_collection(world.bundles / version, manifest)
    assert world.collections() == {collection_name(world.flat), collection_name(world.ivf)}
    assert not world.records()
    listed = CliRunner().invoke(build_app(["versions"]), ["versions", str(world.bundles), "--json"])
    assert "Milvus IVF_SQ8" in listed.stdout


@pytest.mark.parametrize(
    ("name", "value"), [(TOKEN_VARIABLE, "root:wrong"), (CA_FILE, ""), (CA_FILE, "stranger"), (None, "")]
)
def test_strangers_and_wrong_credentials_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None, value: str
) -> None:
    address = world.milvus.address
    if value == "stranger":
        value = str(Authority(tmp_path, "stranger").path)
    if name is None:
        address = address.replace("+tls", "")
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(BundleUnavailableError, match="is its token right"):
        MilvusServer(MilvusAddress.parse(address), timeout_s=5)
    if name is not None:
        path = world.bundles / world.flat
        assert "cannot be searched" in open_snapshot(path.parent, path.name).index_failure


_Policies = st.sampled_from(sorted(POLICIES))
_COLOURS, _TAGS = 3, 5


@st.composite
def _conditions(draw: st.DrawFn) -> tuple[Condition, ...]:
    chosen = []
    if draw(st.booleans()):
        codes = draw(st.sets(st.integers(0, _COLOURS - 1)))
        chosen.append(Condition("colour", tuple(sorted(codes)), draw(st.booleans())))
    if draw(st.booleans()):
        codes = draw(st.sets(st.integers(0, _TAGS - 1)))
        chosen.append(Condition("tags", tuple(sorted(codes)), draw(st.booleans())))
    if draw(st.booleans()):
        low, high = sorted(draw(st.tuples(*[st.sampled_from([-np.inf, -3.5, 0.0, 2.25, np.inf])] * 2)))
        chosen.append(Condition("price", (), draw(st.booleans()), (low, high)))
    return tuple(chosen)


@st.composite
def _queries(draw: st.DrawFn) -> list[Query]:
    rows = st.integers(0, NUM_ITEMS - 1)
    queries = []
    for _ in range(draw(st.integers(1, 3))):
        conditions = draw(_conditions())
        queries.append(
            Query(
                history_rows_L=np.array(draw(st.lists(rows, min_size=1, max_size=MAX_HISTORY)), np.int64),
                num_candidates=draw(st.sampled_from([0, 1, 20, 200])),
                excluded_rows=np.array(sorted(draw(st.sets(rows, max_size=30))), np.int64),
                options=SearchOptions(conditions, draw(st.sampled_from([1.0, 2.0])))
                if conditions or draw(st.booleans())
                else None,
                merge_policy=POLICIES[draw(_Policies)],
            )
        )
    return queries


class Triples(list[tuple[Snapshot, ...]]):
    """The snapshots with the same changes. Short in hypothesis's report."""

    def __repr__(self) -> str:
        return "triples"


@pytest.fixture(scope="module")
def changed(snapshots: tuple[Snapshot, ...], world: World) -> Triples:
    """The snapshots without changes, with hidden items, and with live items too."""
    ids = world.shop.version.ids
    hidden = HiddenIds(ids=tuple(sorted(ids[::7])))
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((20, world.shop.version.vectors_ND.shape[1]))
    changes = [
        *(upsert(f"new-{n}", vector, colour=("red",)) for n, vector in enumerate(vectors[:12])),
        *(upsert(ids[n], vector, tags=("a", "z")) for n, vector in enumerate(vectors[12:])),
        *(upsert(ids[n], tags=("b",)) for n in range(20, 26)),  # with the version's vectors
        *(Removal(id_) for id_ in ids[100:110]),
    ]
    records = records_of(changes)
    triples = Triples([snapshots])
    triples.append(tuple(each.with_hidden(hidden) for each in snapshots))
    triples.append(tuple(each.with_changes(hidden, records) for each in snapshots))
    return triples


def _result(result: QueryResult | Re4Error) -> QueryResult:
    if isinstance(result, Re4Error):
        raise result
    return result


@given(queries=_queries(), place=st.integers(0, 2))
def test_answers_equal_those_of_the_flat_index(changed: Triples, queries: list[Query], place: int) -> None:
    local, *others = changed[place]
    with pytest.MonkeyPatch.context() as patch:
        # In a small catalogue each set of items is small enough to be compared one by one, without Milvus.
        patch.setattr("re4.serving.retrieval.filters.MAX_EXACT_ROWS", 0)
        patch.setattr("re4.serving.retrieval.live_items.view.MAX_EXACT_ROWS", 0)
        for snapshot in (local, *others):
            snapshot.filter_cache._results.clear()
            if snapshot.filter_cache._all_items is not None:
                snapshot.filter_cache._all_items._results.clear()
        expected, *found = (each.pipeline.run(queries) for each in (local, *others))
    for one, other in zip(map(_result, [*expected, *expected]), map(_result, chain(*found)), strict=True):
        np.testing.assert_array_equal(other.merged.rows_M, one.merged.rows_M)
        np.testing.assert_array_equal(other.merged.interest_numbers_M, one.merged.interest_numbers_M)
        np.testing.assert_allclose(other.merged.scores_M, one.merged.scores_M, rtol=1e-4, atol=1e-5)


def test_lists_in_milvus_find_what_their_recall_promises(
    world: World, snapshots: tuple[Snapshot, ...]
) -> None:
    local, remote = snapshots[0], open_snapshot(world.bundles, world.ivf)
    fetched = open_snapshot(world.bundles, world.ivf, maps_vectors=False)
    shares = []
    for rows_L in np.random.default_rng(3).integers(0, NUM_ITEMS, (40, MAX_HISTORY)):
        query = Query(history_rows_L=rows_L, num_candidates=20)
        one, other, same = (
            _result(each.pipeline.run([query])[0]).merged for each in (local, remote, fetched)
        )
        np.testing.assert_array_equal(same.rows_M, other.rows_M)
        np.testing.assert_array_equal(same.scores_M, other.scores_M)
        shares.append(np.isin(one.rows_M, other.rows_M).mean())
    assert np.mean(shares) > 0.9


def test_filters_are_answered_by_milvus(
    snapshots: tuple[Snapshot, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The K vectors of all requests of a batch are one search, which has the filter as an expression."""
    monkeypatch.setattr("re4.serving.retrieval.filters.MAX_EXACT_ROWS", 0)
    remote, calls = snapshots[1], []
    remote.filter_cache._results.clear()
    index = remote.pipeline._searcher._index._index
    call = index._stub.call

    def counting(name: str, request: object, timeout_s: float) -> object:
        calls.append(request)
        return call(name, request, timeout_s)

    monkeypatch.setattr(index._stub, "call", counting)
    options = SearchOptions((Condition("colour", (1,), False), Condition("price", (), True, (0.0, np.inf))))
    for chosen in (None, options):
        queries = [Query(history_rows_L=np.array([row]), num_candidates=5, options=chosen) for row in (1, 2)]
        assert len(remote.pipeline.run(queries)) == 2
    unfiltered, filtered = (each for each in calls if each.nq > 1)
    assert (unfiltered.nq, unfiltered.dsl) == (6, "")
    assert (filtered.nq, filtered.dsl) == (
        6,
        "(attribute_0 in [1]) and (not (attribute_2 > -1 and attribute_2_position >= 0.0))",
    )


def test_few_allowed_items_are_compared_in_milvus_where_the_vectors_are(
    snapshots: tuple[Snapshot, ...], world: World
) -> None:
    local, _, fetched = (
        each.with_hidden(HiddenIds(ids=tuple(sorted(world.shop.version.ids[:5])))) for each in snapshots
    )
    options = SearchOptions((Condition("tags", (2,), False),))
    query = Query(history_rows_L=np.array([7, 300]), num_candidates=200, options=options)
    one, other = (_result(each.pipeline.run([query])[0]).merged for each in (local, fetched))
    np.testing.assert_array_equal(other.rows_M, one.rows_M)
    rows = np.array([599, -1, 0, 599])
    np.testing.assert_array_equal(fetched.vectors_of(rows)[[0, 2, 3]], local.vectors_of(rows)[[0, 2, 3]])


def test_deadlines_are_handed_on(world: World, snapshots: tuple[Snapshot, ...]) -> None:
    query = Query(history_rows_L=np.array([1]), num_candidates=5)
    for snapshot in snapshots[1:]:
        token = DEADLINE_NS.set(0.0)
        try:
            (result,) = snapshot.pipeline.run([query])
        finally:
            DEADLINE_NS.reset(token)
        assert isinstance(result, TooLateError)
        assert "deadline" in str(result)
        (result,) = snapshot.pipeline.run([query])
        assert isinstance(result, QueryResult)


def test_a_failed_gate_leaves_no_collection(world: World) -> None:
    before = world.collections()
    error, _ = world.shop.rebuild(
        "--index", world.milvus.address, "--catalogue", world.catalogue, "--min-items-ratio", 1.1
    )
    assert isinstance(error, GateError)
    assert world.collections() == before
    assert not world.records()


_DYING = """
import sys, time
from pathlib import Path
from re4.bundle.milvus.address import MilvusAddress
from re4.bundle.milvus.collections import NewCollection
with NewCollection(Path(sys.argv[1]), MilvusAddress.parse(sys.argv[2])) as collection:
    collection.server.create(collection.name, 8, {}, [], {})
    print(collection.name, flush=True)
    time.sleep(1000)
"""


def test_pruning_drops_what_a_killed_job_left(world: World) -> None:
    before = world.collections()
    with world.server() as server:
        server.create("of_others", 8, {}, [], {})
    command = [sys.executable, "-c", _DYING, str(world.bundles), world.milvus.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        name = job.stdout.readline().strip()
        assert world.collections() == {*before, "of_others", name}
        words = ["prune", str(world.bundles), "--keep", "9"]
        CliRunner().invoke(build_app(words), words, catch_exceptions=False)
        assert name in world.collections()  # the job is alive
        job.send_signal(signal.SIGKILL)
        job.wait()
    CliRunner().invoke(build_app(words), words, catch_exceptions=False)
    assert world.collections() == {*before, "of_others"}
    assert not world.records()
    with world.server() as server:
        server.drop("of_others")


def _other(manifest: Manifest, **changes: object) -> Manifest:
    collection = manifest.index.collection
    assert collection is not None
    index = manifest.index.model_copy(update={"collection": collection.model_copy(update=changes)})
    return manifest.model_copy(update={"index": index})


def test_another_collection_is_refused(world: World) -> None:
    manifest, path = world.manifest(world.flat), world.bundles / world.flat
    with pytest.raises(BundleMismatchError, match="is not there"):
        check_collection(path, _other(manifest, name="nothing"))
    with world.server() as server:
        server.create("narrow", 4, {}, [], {})
        server.create("foreign", 8, {}, [], {})
        server._client.create_index("foreign", _ip_index(server))
    with pytest.raises(BundleMismatchError, match="has 4 dimensions and the metric of no index"):
        check_collection(path, _other(manifest, name="narrow"))
    with pytest.raises(BundleMismatchError, match="was not made from the item vectors"):
        check_collection(path, _other(manifest, name="foreign"))
    with pytest.raises(BundleMismatchError, match="lacks the fields attribute_9"):
        check_collection(path, _other(manifest, fields=("attribute_9",)))
    with world.server() as server:
        server.drop("narrow")
        server.drop("foreign")


def _ip_index(server: MilvusServer) -> object:
    params = server._client.prepare_index_params()
    params.add_index("vector", index_type="FLAT", metric_type="IP")
    return params


class Calls:
    """A client that reports statuses, without retries."""

    def __init__(self, channel: grpc.Channel, world: World) -> None:
        self.retrieval = retrieval_pb2_grpc.RetrievalStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        ids = pb.ItemIds(strings=[str(id_) for id_ in world.shop.version.ids[:3]])
        self._request = pb.RetrieveRequest(history=ids, num_candidates=10)
        self._encode = pb.EncodeRequest(history=ids)

    def retrieve(self, timeout_s: float = 20.0) -> pb.RetrieveReply:
        return self.retrieval.Retrieve(self._request, timeout=timeout_s)

    def status(self, timeout_s: float = 20.0) -> tuple[grpc.StatusCode, str]:
        try:
            self.retrieve(timeout_s)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def encode(self) -> pb.EncodeReply:
        return self.retrieval.Encode(self._encode, timeout=20)

    def vectors(self) -> list[list[float]]:
        request = pb.GetItemsRequest(items=self._request.history, return_vectors=True)
        return [list(item.vector) for item in self.retrieval.GetItems(request, timeout=20).items]

    def health(self) -> int:
        return self._health.Check(health_pb2.HealthCheckRequest(), timeout=20).status

    def info(self) -> pb.InfoReply:
        return self.retrieval.Info(pb.InfoRequest(), timeout=20)


@contextmanager
def _serving(world: World, *options: str) -> Iterator[Calls]:
    with (
        RunningServer(world.bundles, "--poll-interval-s", "0.02", *_PATIENCE, *options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield Calls(channel, world)


@pytest.fixture
def vectors_in_milvus_alone(world: World) -> Iterator[None]:
    """The version `flat` lacks its file of item vectors."""
    path = world.bundles / world.flat / VECTORS
    aside = path.rename(world.bundles.parent / VECTORS)
    yield
    aside.rename(path)


@pytest.mark.usefixtures("vectors_in_milvus_alone")
def test_versions_change_under_load_and_a_stopped_milvus_is_reported(world: World) -> None:
    with pytest.raises(BundleDamagedError, match=f"{VECTORS}: missing"):
        verify_version(world.bundles / world.flat)
    with _serving(world, "--item-vectors", "index") as calls:
        wait_until(lambda: calls.info().version == world.ivf)
        statuses: list[tuple[grpc.StatusCode, str]] = []
        is_over = threading.Event()

        def load() -> None:
            while not is_over.is_set():
                statuses.append(calls.status())

        callers = [threading.Thread(target=load) for _ in range(2)]
        for caller in callers:
            caller.start()
        answers = {}
        try:
            for version in (world.local, world.flat):
                (world.bundles / CURRENT).write_text(f"{version}\n")
                wait_until(lambda version=version: calls.info().version == version)
                answers[version] = calls.retrieve()
        finally:
            is_over.set()
            for caller in callers:
                caller.join()
        assert {code for code, _ in statuses} == {grpc.StatusCode.OK}
        assert answers[world.flat].items == answers[world.local].items
        assert answers[world.flat].interest_numbers == answers[world.local].interest_numbers
        np.testing.assert_allclose(calls.vectors(), world.shop.version.vectors_ND[:3], rtol=1e-6)

        assert calls.health() == _SERVING
        world.milvus.pause()
        try:
            assert calls.status(0.05)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            wait_until(lambda: calls.health() == _NOT_SERVING)
            code, details = calls.status()
            assert code is grpc.StatusCode.UNAVAILABLE
            assert world.milvus.address in details
            assert "no answer within 3000 ms" in details
            assert "no answer within 3000 ms" in calls.info().index_failure
            assert len(calls.encode().interests.vectors) > 0  # the history's vectors are in the cache
        finally:
            world.milvus.resume()
        wait_until(lambda: calls.health() == _SERVING)
        assert calls.retrieve().items == answers[world.flat].items


def test_a_milvus_that_was_killed_is_used_again(world: World) -> None:
    with world.server() as server:
        server.create("re4_gone", 8, {}, [], {})
    gone = CollectionInfo(address=world.milvus.address, name="re4_gone", index_type="FLAT")
    roll_back(world.bundles, world.flat)
    with _serving(world) as calls:
        expected = calls.retrieve().items
        world.milvus.kill()
        wait_until(lambda: calls.status()[0] is grpc.StatusCode.UNAVAILABLE)
        wait_until(lambda: calls.health() == _NOT_SERVING)
        # A worker that starts while Milvus is away loads the version.
        away = open_snapshot(world.bundles, world.flat)
        (result,) = away.pipeline.run([Query(history_rows_L=np.array([1]), num_candidates=5)])
        assert isinstance(result, IndexUnavailableError)
        # Pruning leaves what it cannot drop to the next one.
        record_for_dropping(world.bundles, gone)
        assert len(drop_orphans(world.bundles)) == 1
        world.milvus.start()
        wait_until(lambda: calls.health() == _SERVING)
        assert calls.retrieve().items == expected
    assert not drop_orphans(world.bundles)
    assert "re4_gone" not in world.collections()


def test_missing_rows_are_refused_and_a_pruned_version_loses_its_collection(world: World) -> None:
    roll_back(world.bundles, world.ivf)
    with world.server() as server:
        server._client.delete(collection_name(world.flat), ids=[5])
    with pytest.raises(BundleError, match="has 599 rows, and not the 600"):
        roll_back(world.bundles, world.flat)
    with _serving(world) as calls:
        (world.bundles / CURRENT).write_text(f"{world.flat}\n")
        wait_until(lambda: "599 rows" in calls.info().failure)
        assert calls.info().version == world.ivf
        assert calls.status()[0] is grpc.StatusCode.OK
        (world.bundles / CURRENT).write_text(f"{world.ivf}\n")
    words = ["prune", str(world.bundles), "--keep", "0"]
    CliRunner().invoke(build_app(words), words, catch_exceptions=False)
    assert not (world.bundles / world.flat).exists()
    assert world.collections() == {collection_name(world.ivf)}
    assert not world.records()
