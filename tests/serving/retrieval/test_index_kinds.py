"""Every kind on the allow-list serves with its manifest's parameters; nothing else gets through."""

from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from index_kind_versions import KIND_SETTINGS, NUM_ITEMS, VersionOfKind, version_of
from plain_search import plain_search
from running_server import RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.manifest import IndexInfo
from re4.bundle.verify import verify_version
from re4.common.errors import BundleError
from re4.common.shared_list_search import SharedListSearch
from re4.exporting.index.build import build_index
from re4.exporting.index.coarse_quantizer import replace_quantizer
from re4.serving.retrieval.indexes.kinds import KINDS
from re4.serving.retrieval.pipeline import Query
from re4.serving.settings import ServerSettings
from re4.serving.versions.snapshot import Snapshot, load_snapshot
from re4.serving.versions.version_check import load_and_try

NUM_CANDIDATES = 10


def expected_rows(
    version: VersionOfKind, interests_KD: np.ndarray, settings: dict, num_candidates: int = NUM_CANDIDATES
) -> list[int]:
    """K searches in this process, their union, and its best by the vectors."""
    interests_KD = interests_KD.astype(np.float32)
    num_found = int(num_candidates * settings["k_factor"])
    if "shared_nprobe" in settings and SharedListSearch(version.built.index)._scan is not None:
        num_found = NUM_ITEMS  # compiled code makes one pool of all that it reads
    parameters = version.built.family.parameters(settings)
    rough: dict[int, float] = {}
    for row, score in plain_search(version.built.index, interests_KD, num_found, settings, parameters):
        rough[row] = max(score, rough.get(row, -np.inf))
    pool = sorted(rough, key=lambda row: -rough[row])[: int(num_candidates * settings["pool_factor"])]
    true = {row: (version.vectors_ND[row] @ interests_KD.T).max() for row in pool}
    return sorted(true, key=lambda row: (-true[row], row))[:num_candidates]


def assert_true_scores(
    version: SmallVersion,
    interests_KD: np.ndarray,
    rows: list[int],
    scores_M: np.ndarray,
    interest_numbers_M: np.ndarray,
) -> None:
    """The score is the named interest's inner product with the item's own vector, codes or not."""
    products = (version.vectors_ND[rows] * interests_KD[interest_numbers_M]).sum(axis=1)
    np.testing.assert_allclose(scores_M, products, rtol=1e-4, atol=1e-4)


def test_the_allow_list_is_this() -> None:
    assert set(KINDS) == {"flat", "hnsw", "ivf", "milvus-flat", "milvus-hnsw", "milvus-ivf"}


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunningServer]]:
    """A bundle directory, and a server that follows it."""
    bundles = tmp_path_factory.mktemp("following")
    SmallVersion().publish(bundles)
    with RunningServer(bundles, "--poll-interval-s", "0.02") as server:
        yield bundles, server


@pytest.mark.parametrize("kind", KIND_SETTINGS)
def test_a_server_searches_with_the_manifests_parameters(
    kind: str, following: tuple[Path, RunningServer]
) -> None:
    bundles, server = following
    version = version_of(kind)
    name = version.publish(bundles)
    server.wait_for(f"worker 1: serving {name}")
    rng = np.random.default_rng(2)
    histories = [rng.integers(NUM_ITEMS, size=4).tolist() for _ in range(40)]
    wanted = KIND_SETTINGS[kind][1]
    others = {**wanted, **{name: 1 for name in wanted if not name.endswith("_factor")}}
    differs, shares = 0, []
    with RetrievalClient(server.address) as client:
        for history in histories:
            reply = client.retrieve([version.ids[row] for row in history], NUM_CANDIDATES)
            assert reply.version == name
            rows = [version.ids.index(item) for item in reply.item_ids]
            interests_KD, _ = version.encode(history)
            assert rows == expected_rows(version, interests_KD, wanted)
            assert_true_scores(version, interests_KD, rows, reply.scores, reply.interest_index)
            differs += rows != expected_rows(version, interests_KD, others)
            shares.append(len(set(rows) & set(version.best(history, NUM_CANDIDATES))) / NUM_CANDIDATES)
    assert differs > 0, "with the least of everything the answers would be others"
    assert np.mean(shares) > 0.7


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], tuple[VersionOfKind, Snapshot]]:
    def load_kind(kind: str) -> tuple[VersionOfKind, Snapshot]:
        version = version_of(kind)
        path = tmp_path / version.publish(tmp_path)
        return version, load_snapshot(path, verify_version(path), max_batch_size=8)

    return load_kind


def test_tables_of_residual_codes_may_be_larger_than_a_small_file(tmp_path: Path) -> None:
    factory, settings = "IVF256,PQ8x4fsr", {"nprobe": 9, "k_factor": 1, "pool_factor": 2}
    version = VersionOfKind(factory, IndexInfo(kind="ivf", factory=factory, search_parameters=settings))
    path = tmp_path / version.publish(tmp_path)
    snapshot = load_snapshot(path, verify_version(path), max_batch_size=2)
    (answer,) = snapshot.pipeline.run([Query(history_rows_L=np.array([3, 1]), num_candidates=5)])
    assert len(answer.merged.rows_M) == 5


@pytest.mark.parametrize("kind", KIND_SETTINGS)
def test_missing_results_are_never_candidates(
    kind: str, load: Callable[[str], tuple[VersionOfKind, Snapshot]]
) -> None:
    """An index that finds too few items fills its results with -1, which is not the last item."""
    version, snapshot = load(kind)
    excluded = np.arange(0, NUM_ITEMS, 2)
    asked = [
        Query(history_rows_L=np.array([3, 4]), num_candidates=NUM_ITEMS),
        Query(history_rows_L=np.array([700]), num_candidates=NUM_ITEMS, excluded_rows=excluded),
        Query(history_rows_L=np.array([9, 1, 5]), num_candidates=3),
    ]
    answers = snapshot.pipeline.run(asked)
    for answer, query in zip(answers, asked, strict=True):
        rows = answer.merged.rows_M.tolist()
        assert 0 <= min(rows) <= max(rows) < NUM_ITEMS
        assert len(set(rows)) == len(rows)
        assert not set(rows) & set(query.excluded_rows.tolist())
        assert_true_scores(
            version, answer.interests_KD, rows, answer.merged.scores_M, answer.merged.interest_numbers_M
        )
    raw = snapshot.pipeline._searcher.search(answers[0].interests_KD, NUM_ITEMS)[1]
    assert (raw == -1).any() or kind.startswith("hnsw")
    assert len(answers[2].merged.rows_M) == 3


@pytest.mark.parametrize("kind", KIND_SETTINGS)
def test_answers_do_not_depend_on_the_batch(
    kind: str, load: Callable[[str], tuple[VersionOfKind, Snapshot]]
) -> None:
    _, snapshot = load(kind)
    asked = [Query(history_rows_L=np.array([row, row + 1]), num_candidates=7) for row in range(8)]
    together = snapshot.pipeline.run(asked)
    for query, answer in zip(asked, together, strict=True):
        alone = snapshot.pipeline.run([query])[0]
        assert alone.merged.rows_M.tolist() == answer.merged.rows_M.tolist()


def serialised(index: faiss.Index) -> bytes:
    return faiss.serialize_index(index).tobytes()


def filled(factory: str, vectors_ND: np.ndarray, metric: int = faiss.METRIC_INNER_PRODUCT) -> faiss.Index:
    index = faiss.index_factory(vectors_ND.shape[1], factory, metric)
    index.train(vectors_ND)
    index.add(vectors_ND)
    return index


def _of_other_size(version: VersionOfKind) -> bytes:
    index = build_index("IVF16,PQ8x4fs", version.vectors_ND).index
    index.add(version.vectors_ND[:5])
    return serialised(index)


def _lists_around_other_centroids(vectors_ND: np.ndarray) -> faiss.Index:
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(8), 8, 16, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors_ND)
    index.add(vectors_ND)
    return index


def _lists_chosen_by(chooser: faiss.Index, vectors_ND: np.ndarray) -> faiss.Index:
    index = filled("IVF16,Flat", vectors_ND)
    centroids_CD = index.quantizer.reconstruct_n(0, 16)
    chooser.train(centroids_CD)
    chooser.add(centroids_CD)
    centroids = faiss.IndexRefineFlat(chooser, faiss.swig_ptr(centroids_CD))
    chooser.this.disown()
    centroids.own_fields = True
    replace_quantizer(index, centroids)
    return index


WRONG_INDEXES: dict[str, tuple[str, Callable[[VersionOfKind], bytes], str]] = {
    "a graph where lists belong": (
        "ivf",
        lambda version: serialised(filled("HNSW8_SQ8", version.vectors_ND)),
        "begins with b'IHNs', a ivf index with b'IwFl'",
    ),
    "lists where a graph belongs": (
        "hnsw",
        lambda version: serialised(filled("IVF8,SQ8", version.vectors_ND)),
        "begins with b'IwSq', a hnsw index with b'IHNf'",
    ),
    "vectors that it brings itself": (
        "ivf",
        lambda version: serialised(filled("IVF8,SQ8,RFlat", version.vectors_ND)),
        "begins with b'IxRF'",
    ),
    "a type that is on no list": (
        "ivf",
        lambda version: serialised(filled("PCA4,IVF8,Flat", version.vectors_ND)),
        "begins with b'IxPT'",
    ),
    "centroids of another metric": (
        "ivf",
        lambda version: serialised(_lists_around_other_centroids(version.vectors_ND)),
        "centroids: IndexFlatL2",
    ),
    "more items than vectors": ("ivf of codes", _of_other_size, "805 items of 8 dimensions"),
    "another metric": (
        "hnsw",
        lambda version: serialised(filled("HNSW8", version.vectors_ND, faiss.METRIC_L2)),
        "metric 1",
    ),
    "another catalogue": (
        "ivf of codes",
        lambda version: serialised(
            build_index("IVF16,PQ8x4fs", SmallVersion(num_items=NUM_ITEMS).vectors_ND).index
        ),
        "of the golden candidates, a ivf index must find 50.00%",
    ),
    "lists chosen by something else": (
        "ivf",
        lambda version: serialised(_lists_chosen_by(faiss.index_factory(8, "SQ8", 0), version.vectors_ND)),
        "centroids' chooser: IndexScalarQuantizer",
    ),
    "cut off": ("ivf of codes", lambda version: version.index[:-100], "FAISS refuses it"),
    "noise behind the right signature": (
        "hnsw",
        lambda version: b"IHNf" + np.random.default_rng(0).bytes(5000),
        "FAISS refuses it",
    ),
}


@pytest.mark.parametrize("name", WRONG_INDEXES)
def test_an_index_of_other_parts_is_refused(name: str, tmp_path: Path) -> None:
    kind, make, message = WRONG_INDEXES[name]
    version = version_of(kind)
    version.index = make(version)
    path = tmp_path / version.publish(tmp_path)
    with pytest.raises(BundleError) as refused:
        load_and_try(path, ServerSettings(max_batch_size=4))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("flat", {"nprobe": 3}, "takes no search parameters"),
        ("ivf", {}, "nprobe, k_factor, pool_factor are needed, found none"),
        ("ivf", {"nprobe": 0, "k_factor": 1, "pool_factor": 1}, "nprobe is 0"),
        ("ivf", {"nprobe": 2.5, "k_factor": 1, "pool_factor": 1}, r"nprobe is 2\.5"),
        (
            "ivf",
            {"shared_nprobe": 2, "k_factor": 1, "pool_factor": 1},
            "nprobe, shared_nprobe, reach_drop, k",
        ),
        ("hnsw", {"ef_search": 2, "shared_nprobe": 2, "k_factor": 1, "pool_factor": 1}, "are needed, found"),
        (
            "ivf",
            {"nprobe": 2, "shared_nprobe": 1.5, "reach_drop": 0.5, "k_factor": 1, "pool_factor": 1},
            r"shared_nprobe is 1\.5",
        ),
        (
            "ivf",
            {"nprobe": 2, "shared_nprobe": 9, "reach_drop": 0, "k_factor": 1, "pool_factor": 1},
            r"reach_drop is 0,",
        ),
        ("ivf", {"nprobe": 2, "ef_search": 3}, "pool_factor are needed, found ef_search, nprobe"),
        ("ivf", {"nprobe": 2, "k_factor": 0.5, "pool_factor": 1}, r"k_factor is 0\.5"),
        ("ivf", {"nprobe": 2, "k_factor": 1.5, "pool_factor": 0}, r"pool_factor is 0"),
        ("hnsw", {"ef_search": 1 << 40, "k_factor": 1, "pool_factor": 1}, "ef_search is 1099511627776"),
        ("hnsw", {"nprobe": 2, "k_factor": 2}, "ef_search, k_factor, pool_factor are needed"),
    ],
)
def test_parameters_of_another_kind_are_refused(kind: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KINDS[kind].search_parameters(settings)
