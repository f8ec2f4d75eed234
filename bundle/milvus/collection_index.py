"""The search of a collection, by the methods of a FAISS index: `ntotal`, `d` and `search`.

So servers and the tuning of an index search Milvus as they search FAISS. Milvus returns rows and approximate
scores; the true scores come from the item vectors (`re4.bundle.scoring.rescoring`): those of the version's
file, or those of the collection, which a search returns with its results.

Legend: Q queries (requests x interests), D embedding, S results of a query, R rows, U different rows.
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
from re4.bundle.milvus.fields import ROW, VECTOR
from re4.bundle.milvus.stub import MilvusStub
from re4.common.errors import IndexUnavailableError

MAX_RESULTS: Final = 16_384
"""Most results of a query that Milvus returns."""
_MAX_EF: Final = 32_768
"""Milvus's largest `ef`."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorsOfRows:
    """Vectors of some items, at least one."""

    rows_U: NDArray[np.int64]
    """Ascending, each once."""
    vectors_UD: NDArray[np.float32]

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of rows, each of which is there or -1; the place of -1 is -1."""
        return np.where(rows < 0, -1, np.searchsorted(self.rows_U, rows))

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows at some places; -1 at the place -1."""
        return np.append(self.rows_U, -1)[places]


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
        scores_QS, rows_QS, _ = self._search_allowed(queries_QD, num_results, params, timeout_s)
        return scores_QS, rows_QS

    def search_with_vectors(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        *,
        params: CollectionParameters | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], VectorsOfRows]:
        """Search as `search`, and return the vectors of all results too."""
        scores_QS, rows_QS, found = self._search_allowed(
            queries_QD, num_results, params, timeout_s, with_vectors=True
        )
        return scores_QS, rows_QS, found

    def vectors_of(
        self, rows_R: NDArray[np.int64], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> NDArray[np.float32]:
        """Return the vectors of rows, each of which is there once, by one call.

        Raises:
            IndexUnavailableError: no answer within the time, an error of the server, or a row is missing.
        """
        from pymilvus.grpc_gen import milvus_pb2

        request = milvus_pb2.QueryRequest(
            db_name=self._stub.address.database,
            collection_name=self._info.name,
            expr=f"{ROW} in [{','.join(map(str, rows_R.tolist()))}]",
            output_fields=[ROW, VECTOR],
            consistency_level=_EVENTUALLY,
            guarantee_timestamp=_ANY_TIME,
        )
        reply = self._call("Query", request, timeout_s)
        fields = {field.field_name: field for field in reply.fields_data}
        found_R = np.fromiter(fields[ROW].scalars.long_data.data if ROW in fields else (), np.int64)
        vectors_RD = self._vectors_in(fields.get(VECTOR), len(found_R))
        order_R = np.argsort(found_R)
        if not np.array_equal(found_R[order_R], np.sort(rows_R)):
            raise IndexUnavailableError(f"{self.where} lacks rows of the version")
        vectors = np.empty_like(vectors_RD)
        vectors[np.argsort(rows_R)] = vectors_RD[order_R]
        return vectors

    def close(self) -> None:
        """Close the connection."""
        self._stub.close()

    def _search_allowed(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        params: CollectionParameters | None,
        timeout_s: float,
        *,
        with_vectors: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], VectorsOfRows]:
        params = params or CollectionParameters()
        selector, until_s = params.sel, perf_counter() + timeout_s
        depth = num_results + (0 if selector is None else selector.extra_depth)
        while True:
            depth = min(depth, MAX_RESULTS, self.ntotal)
            scores_QS, rows_QS, found = self._search(
                queries_QD, depth, params, max(until_s - perf_counter(), 1e-3), with_vectors=with_vectors
            )
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
            found,
        )

    def _search(
        self,
        queries_QD: NDArray[np.float32],
        depth: int,
        params: CollectionParameters,
        timeout_s: float,
        *,
        with_vectors: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], VectorsOfRows]:
        request = self._request(queries_QD, depth, params, [VECTOR] if with_vectors else [])
        reply = self._call("Search", request, timeout_s).results
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
        rows_R = np.fromiter(ids, np.int64, len(ids))
        rows_QS[is_found_QS] = rows_R
        scores_QS[is_found_QS] = np.fromiter(scores, np.float32, len(scores))
        if len(ids) and not 0 <= rows_R.min() <= rows_R.max() < self.ntotal:
            raise IndexUnavailableError(
                f"{self.where} has rows beyond the {self.ntotal} items of the version"
            )
        rows_U, vectors_UD = np.zeros(1, np.int64), np.zeros((1, self.d), np.float32)
        if with_vectors and len(rows_R):
            field = next((field for field in reply.fields_data if field.field_name == VECTOR), None)
            rows_U, firsts_U = np.unique(rows_R, return_index=True)
            vectors_UD = self._vectors_in(field, len(rows_R))[firsts_U]
        return scores_QS, rows_QS, VectorsOfRows(rows_U=rows_U, vectors_UD=vectors_UD)

    def _call(self, name: str, request: Any, timeout_s: float) -> Any:
        try:
            return self._stub.call(name, request, timeout_s)
        except IndexUnavailableError as error:
            raise IndexUnavailableError(
                f"{self.where} cannot be searched: {error}",
                is_late=error.is_late,
                is_unreachable=error.is_unreachable,
            ) from None

    def _vectors_in(self, field: Any, num_rows: int) -> NDArray[np.float32]:
        """Return the vectors of a field of a reply: [R, D]."""
        # The encoded message ends with all numbers, side by side: far faster than number by number.
        encoded = b"" if field is None else field.vectors.float_vector.SerializeToString()
        num_bytes = 4 * num_rows * self.d
        if field is not None and len(field.vectors.float_vector.data) == num_rows * self.d:
            numbers = np.frombuffer(encoded, "<f4", num_rows * self.d, len(encoded) - num_bytes)
            return numbers.reshape(num_rows, self.d)
        raise IndexUnavailableError(f"{self.where} answers without the {num_rows} vectors of its results")

    def _request(
        self,
        queries_QD: NDArray[np.float32],
        depth: int,
        params: CollectionParameters,
        output_fields: list[str],
    ) -> Any:
        from pymilvus.grpc_gen import common_pb2, milvus_pb2

        values = {_NAMES[name]: value for name, value in params.values.items()}
        if "ef" in values:
            values["ef"] = min(max(values["ef"], depth), _MAX_EF)  # Milvus refuses less and more
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
            output_fields=output_fields,
            search_params=[common_pb2.KeyValuePair(key=key, value=value) for key, value in facts.items()],
            consistency_level=_EVENTUALLY,
            guarantee_timestamp=_ANY_TIME,
        )
