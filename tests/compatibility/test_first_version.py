"""A run and a bundle of the first version load, and give the answers that the first version gave.

`first/` was made by that version; `record.py` wrote its answers. Integers, ids, order and messages must be
equal; scores may differ in the last bits, since another CPU sums in another order.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from running_server import RunningServer

from re4.protos.v1 import retrieval_pb2 as pb
from re4.training.data.dataset import Dataset
from re4.training.evaluation.protocol import evaluate
from re4.training.run.run import Run

FIRST = Path(__file__).parent / "first"
LINES = [json.loads(line) for line in (FIRST / "answers.jsonl").read_text().splitlines()]
REPLIES = {"Retrieve": pb.RetrieveReply, "BatchRetrieve": pb.BatchRetrieveReply, "Encode": pb.EncodeReply}


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    bundles = tmp_path_factory.mktemp("first") / "bundles"
    shutil.copytree(FIRST / "bundles", bundles)
    with (
        RunningServer(bundles, "--fallback", "popular") as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        yield channel


def fields(method: str, data: bytes) -> Any:
    reply = REPLIES[method].FromString(data)
    if method == "Retrieve":
        reply.ClearField("stage_times")
    return MessageToDict(reply)


def assert_equal_but_for_rounding(seen: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert seen.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal_but_for_rounding(seen[name], value)
    elif isinstance(expected, list):
        assert len(seen) == len(expected)
        for one, other in zip(seen, expected, strict=True):
            assert_equal_but_for_rounding(one, other)
    elif isinstance(expected, float):
        assert seen == pytest.approx(expected, rel=1e-5, abs=1e-6)
    else:
        assert seen == expected


@pytest.mark.parametrize("number", range(len(LINES)))
def test_the_bundle_gives_the_answers_that_it_gave(channel: grpc.Channel, number: int) -> None:
    line = LINES[number]
    call = channel.unary_unary(f"/re4.v1.Retrieval/{line['method']}")
    reply = call(base64.b64decode(line["request"]))
    assert_equal_but_for_rounding(
        fields(line["method"], reply), fields(line["method"], base64.b64decode(line["reply"]))
    )


def test_the_run_loads_and_has_the_quality_that_it_had() -> None:
    run = Run.open(FIRST / "run")
    seen = evaluate(run.load_model(), Dataset.open(FIRST / "data").test, exclude_history=False)
    expected = json.loads((FIRST / "run" / "evaluation.json").read_text())["test"]
    assert_equal_but_for_rounding({name: asdict(seen)[name] for name in expected}, expected)
