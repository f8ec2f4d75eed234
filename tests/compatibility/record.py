"""Record a server's answers for the compatibility test: request and reply bytes, one JSON object a line.

usage: record.py ADDRESS > first/answers.jsonl

The folder `first/` holds a data set, a run and a bundle made by the first version of the project.
"""

import base64
import json
import sys
from collections.abc import Iterator

import grpc

from re4.protos.v1 import retrieval_pb2 as pb

ITEMS = [f"item-{number:02d}-é" for number in range(72)]


def requests() -> Iterator[tuple[str, pb.RetrieveRequest | pb.BatchRetrieveRequest | pb.EncodeRequest]]:
    """Yield a method and a request for each feature of the contract."""
    history = pb.ItemIds(strings=[ITEMS[3], ITEMS[13], ITEMS[1], ITEMS[25], ITEMS[5]])
    drama = pb.AttributeFilter(attribute="genre", values=["drama", "action|comedy"])
    old = pb.AttributeFilter(attribute="year", values=["1990", "1991"], drop=True)
    yield "Retrieve", pb.RetrieveRequest(history=history, num_candidates=20)
    yield "Retrieve", pb.RetrieveRequest(history=history, num_candidates=9, exclude_history=True)
    yield "Retrieve", pb.RetrieveRequest(history=history, num_candidates=5, return_interests=True)
    yield "Retrieve", pb.RetrieveRequest(history=history, num_candidates=10, filters=[drama, old])
    yield "Retrieve", pb.RetrieveRequest(history=history, num_candidates=10, num_reasons=2, search_effort=2.0)
    yield "Retrieve", pb.RetrieveRequest(num_candidates=7)
    yield "Retrieve", pb.RetrieveRequest(history=pb.ItemIds(strings=["unknown"]), num_candidates=3)
    for policy in range(1, 5):
        yield "Retrieve", pb.RetrieveRequest(history=history, num_candidates=12, merge_policy=policy)
    yield (
        "Retrieve",
        pb.RetrieveRequest(
            history=history, num_candidates=12, merge_policy=5, diversity=0.6, diversity_attribute="genre"
        ),
    )
    users = [
        pb.RetrieveRequest(history=history, num_candidates=4),
        pb.RetrieveRequest(num_candidates=0),
        pb.RetrieveRequest(history=pb.ItemIds(strings=ITEMS[20:50]), num_candidates=6),
    ]
    yield "BatchRetrieve", pb.BatchRetrieveRequest(users=users)
    yield "Encode", pb.EncodeRequest(history=history)


if __name__ == "__main__":
    with grpc.insecure_channel(sys.argv[1]) as channel:
        for method, request in requests():
            reply = channel.unary_unary(f"/re4.v1.Retrieval/{method}")(request.SerializeToString())
            line = {
                "method": method,
                "request": base64.b64encode(request.SerializeToString()).decode(),
                "reply": base64.b64encode(reply).decode(),
            }
            print(json.dumps(line))
