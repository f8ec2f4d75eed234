"""The compiled comparison of live items finds what a product with all of their vectors finds."""

import numpy as np
import pytest

from re4.common.native_code import is_native_allowed
from re4.serving.retrieval.live_items import exact_scan
from re4.serving.retrieval.live_items.exact_scan import ItemCodes, open_item_codes

pytestmark = pytest.mark.skipif(
    not is_native_allowed() or exact_scan._library() is None, reason="there is no C compiler for AVX2 here"
)

NUM_LISTS, SIZE = 3, 20
FIRST_ROW = 1000


def codes_of(vectors_RD: np.ndarray, chunk: int = 7) -> ItemCodes:
    codes = open_item_codes(vectors_RD.shape[1])
    assert codes is not None
    for start in range(0, len(vectors_RD), chunk):
        codes.append(vectors_RD[start : start + chunk])
    return codes


def by_products(
    scores_BR: np.ndarray, rows_BM: np.ndarray, scores_BM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([rows_BM, np.tile(FIRST_ROW + np.arange(scores_BR.shape[1]), (NUM_LISTS, 1))], 1)
    scores = np.concatenate([scores_BM, scores_BR], 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :SIZE]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("dim", [1, 10, 64])
@pytest.mark.parametrize("num_interests", [1, 3, 4, 9])
@pytest.mark.parametrize("has_hidden", [False, True])
def test_lists_hold_the_best_of_both(dim: int, num_interests: int, has_hidden: bool) -> None:
    rng = np.random.default_rng(dim * num_interests)
    vectors_RD = rng.standard_normal((333, dim)).astype(np.float32)
    vectors_RD *= rng.choice([0, 1e-3, 1, 1.01, 50], (333, 1)).astype(np.float32)
    vectors_RD[100:150] = vectors_RD[0:50]  # ties
    interests_BKD = rng.standard_normal((NUM_LISTS, num_interests, dim)).astype(np.float32)
    products_BKR = np.einsum("bkd,rd->bkr", interests_BKD, vectors_RD, optimize=False)
    best_BR = products_BKR.max(axis=1)
    spread = best_BR.std()
    is_hidden_R = rng.random(333) < 0.3 if has_hidden else None
    if is_hidden_R is not None:
        is_hidden_R[64:100] = True
        best_BR[:, is_hidden_R] = -np.inf
    best_BR[:, :21] = -np.inf
    scores_BM = np.sort(rng.standard_normal((NUM_LISTS, SIZE)).astype(np.float32) * spread)
    scores_BM = np.ascontiguousarray(scores_BM[:, ::-1])
    scores_BM[1] = -np.inf
    rows_BM = np.where(scores_BM == -np.inf, -1, np.arange(SIZE))
    numbers_BM = np.zeros((NUM_LISTS, SIZE), np.int64)
    expected_rows, expected = by_products(best_BR, rows_BM, scores_BM)
    codes_of(vectors_RD).view().merge_into(
        rows_BM,
        scores_BM,
        numbers_BM,
        interests_BKD,
        vectors_RD,
        start=21,
        is_hidden_R=is_hidden_R,
        first_row=FIRST_ROW,
    )
    np.testing.assert_allclose(scores_BM, expected, rtol=1e-5, atol=1e-5)
    is_other = rows_BM != expected_rows  # only rounding may exchange neighbours
    for list_, place in zip(*np.nonzero(is_other), strict=True):
        assert rows_BM[list_, place] in [*expected_rows[list_], -1] or np.isclose(
            scores_BM[list_, place], expected[list_, -1], atol=1e-5
        )
    for list_, place in zip(*np.nonzero(rows_BM >= FIRST_ROW), strict=True):
        of_item_K = products_BKR[list_, :, rows_BM[list_, place] - FIRST_ROW]
        assert of_item_K[numbers_BM[list_, place]] == pytest.approx(of_item_K.max(), abs=1e-5)


def test_a_view_stays_valid_while_items_are_added() -> None:
    rng = np.random.default_rng(0)
    vectors_RD = rng.standard_normal((2000, 8)).astype(np.float32)
    codes = codes_of(vectors_RD[:50])
    view = codes.view()
    codes.append(vectors_RD[50:])
    found = []
    for scan in (view, codes_of(vectors_RD[:50]).view(), codes.view()):
        rows_BM, scores_BM = np.full((1, 5), -1), np.full((1, 5), -np.inf, np.float32)
        scan.merge_into(
            rows_BM,
            scores_BM,
            None,
            vectors_RD[None, None, 7],
            vectors_RD[:50],
            start=0,
            is_hidden_R=None,
            first_row=0,
        )
        found.append((rows_BM.tolist(), scores_BM.tolist()))
    assert found[0] == found[1] == found[2]
    assert found[0][0][0][0] == np.argmax(vectors_RD[:50] @ vectors_RD[7])


def test_a_failed_compilation_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path
) -> None:
    broken = tmp_path / "exact_scan.c"
    broken.write_text("no C")
    monkeypatch.setattr(exact_scan, "_SOURCE", broken)
    exact_scan._library.cache_clear()
    try:
        caplog.set_level("INFO")
        assert open_item_codes(8) is None
        assert "live items are compared more slowly" in caplog.text
    finally:
        exact_scan._library.cache_clear()
