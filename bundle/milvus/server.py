"""A Milvus server offline: collections are made, filled, indexed, loaded, looked at, renamed and dropped.

Legend: D embedding, C items of a chunk.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from re4.bundle.milvus.address import MilvusAddress, authorities_file, milvus_token
from re4.bundle.milvus.fields import MAX_VALUES_OF_ITEM, ROW, VECTOR
from re4.bundle.milvus.stub import MilvusStub, require_pymilvus
from re4.common.errors import BundleUnavailableError, IndexUnavailableError

CONNECT_TIMEOUT_S: Final = 10.0
_CALL_TIMEOUT_S: Final = 60.0
_LONG_TIMEOUT_S: Final = 3_600.0
"""For calls that wait until the rows are on disk."""
_STALLED_S: Final = 1_800.0
"""An index or a load without progress for so long has failed."""
_POLL_S: Final = 0.2

OnShare = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class CollectionFacts:
    """A collection as the server has it."""

    description: Mapping[str, Any]
    """What this project wrote at its creation; empty for a collection of others."""
    embedding_dim: int
    """0 without a vector field of ours."""
    metric: str
    """Empty without an index."""
    fields: frozenset[str]
    is_loaded: bool


class MilvusServer:
    """A connected server. Use it in a `with` block."""

    def __init__(self, address: MilvusAddress, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect.

        Raises:
            UsageError: pymilvus is not installed.
            BundleUnavailableError: the server does not answer.
        """
        require_pymilvus()
        import pymilvus

        self.address = address
        self._stub = MilvusStub(address)
        scheme = "https" if address.has_tls else "http"
        # Despite its name, pymilvus trusts the authorities of this file.
        trust = {"server_pem_path": authorities_file()} if address.has_tls and authorities_file() else {}
        with self._errors():
            self._client = pymilvus.MilvusClient(
                f"{scheme}://{address.target}",
                token=milvus_token(),
                db_name=address.database,
                timeout=timeout_s,
                dedicated=True,
                **trust,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._stub.close()

    def create(
        self,
        name: str,
        embedding_dim: int,
        code_fields: Mapping[str, bool],
        position_fields: Sequence[str],
        description: Mapping[str, Any],
    ) -> None:
        """Create an empty collection.

        Args:
            name: Of the collection.
            embedding_dim: D.
            code_fields: Fields of codes, with whether an item has several.
            position_fields: Fields of numbers.
            description: Facts that `facts` returns.
        """
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(
            auto_id=False, enable_dynamic_field=False, description=json.dumps(dict(description))
        )
        schema.add_field(ROW, DataType.INT64, is_primary=True)
        schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=embedding_dim)
        for field, is_multi_valued in code_fields.items():
            if is_multi_valued:
                schema.add_field(
                    field, DataType.ARRAY, element_type=DataType.INT32, max_capacity=MAX_VALUES_OF_ITEM
                )
            else:
                schema.add_field(field, DataType.INT32)
        for field in position_fields:
            schema.add_field(field, DataType.DOUBLE)
        with self._errors():
            self._client.create_collection(
                name, schema=schema, consistency_level="Eventually", timeout=_CALL_TIMEOUT_S
            )

    def insert(
        self,
        name: str,
        first_row: int,
        vectors_CD: NDArray[np.float32],
        codes: Mapping[str, NDArray[np.int32] | Sequence[NDArray[np.int32]]],
        positions: Mapping[str, NDArray[np.float64]],
    ) -> None:
        """Insert a chunk of items in ascending rows. It is never repeated, so that no row is there twice.

        Args:
            name: Of the collection.
            first_row: Row of the first item.
            vectors_CD: Their vectors.
            codes: By field: one code for each item, or several.
            positions: By field.
        """
        from pymilvus.grpc_gen import milvus_pb2, schema_pb2

        types, size = schema_pb2.DataType, len(vectors_CD)
        rows = schema_pb2.LongArray(data=range(first_row, first_row + size))
        vectors = schema_pb2.VectorField(
            dim=vectors_CD.shape[1], float_vector=schema_pb2.FloatArray(data=vectors_CD.ravel().tolist())
        )
        fields = [
            schema_pb2.FieldData(
                type=types.Int64, field_name=ROW, scalars=schema_pb2.ScalarField(long_data=rows)
            ),
            schema_pb2.FieldData(type=types.FloatVector, field_name=VECTOR, vectors=vectors),
        ]
        for field, values in codes.items():
            if isinstance(values, np.ndarray):
                kind, scalars = types.Int32, _int_field(schema_pb2, values)
            else:
                arrays = [_int_field(schema_pb2, each) for each in values]
                kind, scalars = (
                    types.Array,
                    schema_pb2.ScalarField(
                        array_data=schema_pb2.ArrayArray(data=arrays, element_type=types.Int32)
                    ),
                )
            fields.append(schema_pb2.FieldData(type=kind, field_name=field, scalars=scalars))
        for field, numbers in positions.items():
            doubles = schema_pb2.ScalarField(double_data=schema_pb2.DoubleArray(data=numbers.tolist()))
            fields.append(schema_pb2.FieldData(type=types.Double, field_name=field, scalars=doubles))
        request = milvus_pb2.InsertRequest(
            db_name=self.address.database, collection_name=name, fields_data=fields, num_rows=size
        )
        with self._errors():
            self._stub.call("Insert", request, _CALL_TIMEOUT_S)

    def make_index(
        self, name: str, index_type: str, parameters: Mapping[str, int], on_share: OnShare
    ) -> None:
        """Write all inserted rows to disk, and make their index."""
        with self._errors():
            self._client.flush(name, timeout=_LONG_TIMEOUT_S)
            params = self._client.prepare_index_params()
            params.add_index(VECTOR, index_type=index_type, metric_type="IP", params=dict(parameters))
            self._client.create_index(name, params, sync=False, timeout=_CALL_TIMEOUT_S)

            def share() -> float:
                found = self._client.describe_index(name, VECTOR, timeout=_CALL_TIMEOUT_S)
                if found["state"] == "Failed":
                    raise BundleUnavailableError(f"{self.address}: the index of {name} failed: {found}")
                done = found["state"] == "Finished" and not found["pending_index_rows"]
                return 1.0 if done else min(0.99, found["indexed_rows"] / max(1, found["total_rows"]))

            self._wait(f"the index of {name}", share, on_share)

    def load(self, name: str, on_share: OnShare = lambda _: None) -> None:
        """Load a collection into the memory of the server's query nodes, where it is not there yet."""
        with self._errors():
            self._client.load_collection(name, _async=True, timeout=_CALL_TIMEOUT_S)

            def share() -> float:
                found = self._client.get_load_state(name, timeout=_CALL_TIMEOUT_S)
                return 1.0 if _is_loaded(found) else min(0.99, found.get("progress", 0) / 100)

            self._wait(f"the load of {name}", share, on_share)

    def facts(self, name: str) -> CollectionFacts | None:
        """Return what the server has under a name; None for nothing."""
        with self._errors():
            if not self._client.has_collection(name, timeout=_CALL_TIMEOUT_S):
                return None
            found = self._client.describe_collection(name, timeout=_CALL_TIMEOUT_S)
            fields = {field["name"]: field for field in found["fields"]}
            index = (
                self._client.describe_index(name, VECTOR, timeout=_CALL_TIMEOUT_S)
                if self._client.list_indexes(name, VECTOR)
                else {}
            )
            state = self._client.get_load_state(name, timeout=_CALL_TIMEOUT_S)
        try:
            description = json.loads(found["description"])
        except ValueError:
            description = {}
        return CollectionFacts(
            description=description if isinstance(description, dict) else {},
            embedding_dim=int(fields[VECTOR]["params"].get("dim", 0)) if VECTOR in fields else 0,
            metric=str((index or {}).get("metric_type", "")),
            fields=frozenset(fields),
            is_loaded=_is_loaded(state),
        )

    def num_rows(self, name: str, rows: Sequence[int] | None = None) -> int:
        """Return how many rows a loaded collection has, or how many of the given ones."""
        expression = "" if rows is None else f"{ROW} in [{','.join(map(str, rows))}]"
        with self._errors():
            found = self._client.query(
                name,
                filter=expression,
                output_fields=["count(*)"],
                consistency_level="Strong",
                timeout=_CALL_TIMEOUT_S,
            )
        return int(found[0]["count(*)"])

    def rename(self, name: str, new_name: str) -> None:
        """Rename a collection."""
        with self._errors():
            self._client.rename_collection(name, new_name, timeout=_CALL_TIMEOUT_S)

    def drop(self, name: str) -> None:
        """Drop a collection; do nothing where there is none."""
        with self._errors():
            self._client.drop_collection(name, timeout=_CALL_TIMEOUT_S)

    def _wait(self, what: str, share: Callable[[], float], on_share: OnShare) -> None:
        best, since_s = -1.0, monotonic()
        while (now := share()) < 1:
            if now > best:
                best, since_s = now, monotonic()
                on_share(now)
            if monotonic() - since_s > _STALLED_S:
                raise BundleUnavailableError(f"{self.address}: {what} made no progress for {_STALLED_S:g} s")
            sleep(_POLL_S)
        on_share(1.0)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import grpc
        import pymilvus

        try:
            yield
        except IndexUnavailableError as error:
            raise BundleUnavailableError(f"{self.address}: {error}") from None
        except (pymilvus.MilvusException, grpc.RpcError, grpc.FutureTimeoutError, OSError) as error:
            reason = getattr(error, "message", "") or str(error) or type(error).__name__
            tls = " with TLS, by a certificate that is trusted" if self.address.has_tls else " without TLS"
            raise BundleUnavailableError(
                f"{self.address}: {reason[:300]}. Is Milvus running there{tls}, and is its token right?"
            ) from None


def _int_field(schema_pb2: Any, values: NDArray[np.int32]) -> Any:
    return schema_pb2.ScalarField(int_data=schema_pb2.IntArray(data=values.tolist()))


def _is_loaded(state: Mapping[str, Any]) -> bool:
    return str(state["state"]).rpartition(".")[2] == "Loaded"
