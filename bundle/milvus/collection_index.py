"""The search of a collection, by the methods of a FAISS index: `ntotal`, `d` and `search`.

So servers and the tuning of an index search Milvus as they search FAISS. Milvus returns rows and approximate
scores; the true scores come from the item vectors of the version (`re4.bundle.scoring.rescoring`).

Legend: Q queries (requests x interests), D embedding, S results of a query.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.manifest import CollectionInfo
from re4.bundle.milvus.address import MilvusAddress
from re4.bundle.milvus.fields import VECTOR
from re4.bundle.milvus.stub import MilvusStub
from re4.common.errors import IndexUnavailableError

MAX_RESULTS: Final = 16_384
"""Most results of a query that Milvus returns."""
DEFAULT_TIMEOUT_S: Final = 60.0
_GROWTH: Final = 4
_NAMES: Final = {"nprobe": "nprobe", "ef_search": "ef"}
"""Milvus's names of the search parameters of a manifest."""
_EVENTUALLY: Final = 3
"""Consistency level: a filled collection never changes, so that no search waits for newer rows."""
_ANY_TIME: Final = 1
"""Guarantee timestamp of that level."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CollectionSelector:
    """The items that a search may find."""

    expression: str
    """A boolean expression on the collection's fields, which Milvus evaluates; empty for none."""
    contains: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None
    """Returns which rows may be found, where the expression alone allows more; None where it does not."""
    extra_depth: int = 0
    """Further results that are asked for at first, because some may not be found."""


@dataclass(kw_only=True, eq=False)
class CollectionParameters:
    """The parameters of one search."""

    values: Mapping[str, int | float] = field(default_factory=dict)
    """As in the manifest: `nprobe` or `ef_search`."""
    sel: CollectionSelector | None = None
    """None for all items."""


class CollectionIndex:
    """A collection in the form of a FAISS index by inner product. Threads may share it."""

    def __init__(self, info: CollectionInfo, num_items: int, embedding_dim: int) -> None:
        """Connect to nothing yet.

        Raises:
            UsageError: pymilvus is not installed.
            SecurityError: the token cannot be read.
        """
        self._stub = MilvusStub(MilvusAddress.parse(info.address))
        self._info = info
        self.ntotal = num_items
        self.d = embedding_dim
        self.nlist = info.num_lists
        self.where = f"the collection {info.name} at {info.address}"

    def search(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        *,
        params: CollectionParameters | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search for all queries in one call; further calls only where too few of the results may be found.

        Returns:
            `scores_QS` best first, and `rows_QS`, -1 where no further item was found; S is `num_results`.

        Raises:
            IndexUnavailableError: no answer within the time, or an error of the server.
        """
        params = params or CollectionParameters()
        selector, until_s = params.sel, perf_counter() + timeout_s
        depth = num_results + (0 if selector is None else selector.extra_depth)
        while True:
            depth = min(depth, MAX_RESULTS, self.ntotal)
            scores_QS, rows_QS = self._search(queries_QD, depth, params, max(until_s - perf_counter(), 1e-3))
            if selector is None or selector.contains is None:
                break
            is_last_Q = rows_QS[:, -1] < 0  # all that there is was found
            is_none_QS = (rows_QS < 0) | ~selector.contains(np.maximum(rows_QS, 0))
            order_QS = np.argsort(is_none_QS, axis=1, kind="stable")
            scores_QS = np.take_along_axis(np.where(is_none_QS, -np.inf, scores_QS), order_QS, 1)
            rows_QS = np.take_along_axis(np.where(is_none_QS, -1, rows_QS), order_QS, 1)
            is_short_Q = (~is_none_QS).sum(axis=1) < min(num_results, depth)
            if depth >= min(MAX_RESULTS, self.ntotal) or not (is_short_Q & ~is_last_Q).any():
                break
            depth *= _GROWTH
        missing = max(0, num_results - rows_QS.shape[1])
        if missing:
            scores_QS = np.pad(scores_QS, ((0, 0), (0, missing)), constant_values=-np.inf)
            rows_QS = np.pad(rows_QS, ((0, 0), (0, missing)), constant_values=-1)
        return (
            np.ascontiguousarray(scores_QS[:, :num_results], np.float32),
            np.ascontiguousarray(rows_QS[:, :num_results]),
        )

    def close(self) -> None:
        """Close the connection."""
        self._stub.close()

    def _search(
        self, queries_QD: NDArray[np.float32], depth: int, params: CollectionParameters, timeout_s: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        request = self._request(queries_QD, depth, params)
        try:
            reply = self._stub.call("Search", request, timeout_s).results
        except IndexUnavailableError as error:
            raise IndexUnavailableError(
                f"{self.where} cannot be searched: {error}",
                is_late=error.is_late,
                is_unreachable=error.is_unreachable,
            ) from None
        counts_Q = np.fromiter(reply.topks, np.int64)
        ids, scores = reply.ids.int_id.data, reply.scores
        num_queries = len(queries_QD)
        is_whole = len(counts_Q) == num_queries and counts_Q.sum() == len(ids) == len(scores)
        if not is_whole or counts_Q.max(initial=0) > depth:
            raise IndexUnavailableError(
                f"{self.where} answers {len(ids)} results of {len(counts_Q)} queries to {num_queries}"
            )
        rows_QS = np.full((num_queries, depth), -1, np.int64)
        scores_QS = np.full((num_queries, depth), -np.inf, np.float32)
        is_found_QS = np.arange(depth) < counts_Q[:, None]
        rows_QS[is_found_QS] = np.fromiter(ids, np.int64, len(ids))
        scores_QS[is_found_QS] = np.fromiter(scores, np.float32, len(scores))
        if len(ids) and not 0 <= rows_QS.min(initial=0, where=is_found_QS) <= rows_QS.max() < self.ntotal:
            raise IndexUnavailableError(
                f"{self.where} has rows beyond the {self.ntotal} items of the version"
            )
        return scores_QS, rows_QS

    def _request(self, queries_QD: NDArray[np.float32], depth: int, params: CollectionParameters) -> Any:
        from pymilvus.grpc_gen import common_pb2, milvus_pb2

        values = {_NAMES[name]: value for name, value in params.values.items()}
        if "ef" in values:
            values["ef"] = max(values["ef"], depth)  # Milvus refuses less
        if "nprobe" in values:
            values["nprobe"] = min(values["nprobe"], self.nlist)
        queries = common_pb2.PlaceholderValue(
            tag="$0",
            type=common_pb2.PlaceholderType.FloatVector,
            values=[query_D.tobytes() for query_D in np.ascontiguousarray(queries_QD, "<f4")],
        )
        facts = {
            "anns_field": VECTOR,
            "topk": str(depth),
            "params": json.dumps(values),
            "metric_type": "IP",
            "round_decimal": "-1",
        }
        return milvus_pb2.SearchRequest(
            db_name=self._stub.address.database,
            collection_name=self._info.name,
            dsl="" if params.sel is None else params.sel.expression,
            dsl_type=common_pb2.DslType.BoolExprV1,
            placeholder_group=common_pb2.PlaceholderGroup(placeholders=[queries]).SerializeToString(),
            nq=len(queries_QD),
            search_params=[common_pb2.KeyValuePair(key=key, value=value) for key, value in facts.items()],
            consistency_level=_EVENTUALLY,
            guarantee_timestamp=_ANY_TIME,
        )
