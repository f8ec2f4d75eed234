"""NVIDIA Triton by way of pytriton: encoder and index behind its dynamic batcher, called over gRPC.

Requests and replies are tensors: ids are BYTES, a history is padded with empty ones. Triton batches; the
function below gets whole batches, as pytriton's documentation advises.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from retrieval import Retrieval

MODEL = "re4"
MAX_BATCH_SIZE = 64
QUEUE_DELAYS_US = {"latency": 0, "throughput": 2_000}
"""The batcher's `max_queue_delay_microseconds`: above 0 it waits for a fuller batch."""


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("version", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--num-candidates", type=int, required=True)
    parser.add_argument("--setting", choices=tuple(QUEUE_DELAYS_US), required=True)
    words = parser.parse_args()
    retrieval = Retrieval(words.version)
    num_candidates = words.num_candidates

    @batch
    def infer(history: np.ndarray) -> dict[str, np.ndarray]:
        histories = [[id_.decode() for id_ in ids if id_] for ids in history.tolist()]
        rows_bm, scores_bm, interests_bm = retrieval.retrieve(histories, num_candidates)
        ids = retrieval.ids.ids(rows_bm.ravel())
        return {
            "ids": np.char.encode(np.array(ids), "utf-8").reshape(rows_bm.shape),
            "scores": scores_bm,
            "interests": interests_bm.astype(np.int32),
        }

    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=words.port,
        http_address="127.0.0.1",
        http_port=words.port + 1,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=infer,
            inputs=[Tensor(name="history", dtype=np.bytes_, shape=(retrieval.max_history_length,))],
            outputs=[
                Tensor(name="ids", dtype=np.bytes_, shape=(num_candidates,)),
                Tensor(name="scores", dtype=np.float32, shape=(num_candidates,)),
                Tensor(name="interests", dtype=np.int32, shape=(num_candidates,)),
            ],
            config=ModelConfig(
                max_batch_size=MAX_BATCH_SIZE,
                batcher=DynamicBatcher(max_queue_delay_microseconds=QUEUE_DELAYS_US[words.setting]),
            ),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    sys.exit(main())
