"""The real grpcurl works against the server as it is: reflection, health, and a call."""

import json

import pytest
from grpcurl_command import grpcurl
from running_server import RunningServer
from small_bundles import SmallVersion

pytestmark = pytest.mark.transports("native", "grpcio")


def test_list_and_describe(server: RunningServer) -> None:
    listed = grpcurl(server.address, "list").stdout.split()
    assert {"re4.v1.Retrieval", "grpc.health.v1.Health"} <= set(listed)
    assert grpcurl(server.address, "list", "re4.v1.Retrieval").stdout.split() == [
        "re4.v1.Retrieval.BatchRetrieve",
        "re4.v1.Retrieval.Encode",
        "re4.v1.Retrieval.FindItems",
        "re4.v1.Retrieval.ForgetUser",
        "re4.v1.Retrieval.GetHistory",
        "re4.v1.Retrieval.GetItems",
        "re4.v1.Retrieval.Info",
        "re4.v1.Retrieval.ListValues",
        "re4.v1.Retrieval.RecordEvents",
        "re4.v1.Retrieval.RemoveItems",
        "re4.v1.Retrieval.Retrieve",
        "re4.v1.Retrieval.UpsertItems",
    ]
    described = grpcurl(server.address, "describe", "re4.v1.RetrieveRequest").stdout
    assert "uint32 num_candidates = 2;" in described
    assert ".re4.v1.ItemIds history = 1;" in described


def test_health(server: RunningServer) -> None:
    for service in ("", "re4.v1.Retrieval"):
        question = json.dumps({"service": service})
        done = grpcurl("-d", question, server.address, "grpc.health.v1.Health/Check")
        assert json.loads(done.stdout) == {"status": "SERVING"}
    unknown = grpcurl("-d", '{"service": "other"}', server.address, "grpc.health.v1.Health/Check")
    assert "NotFound" in unknown.stderr


def test_retrieve(server: RunningServer, small_version: SmallVersion) -> None:
    history = [4, 9]
    question = json.dumps(
        {"history": {"strings": [small_version.ids[row] for row in history]}, "numCandidates": 5}
    )
    done = grpcurl("-d", question, server.address, "re4.v1.Retrieval/Retrieve")
    answer = json.loads(done.stdout)
    expected = small_version.best(history, 5)
    assert answer["items"]["strings"] == [small_version.ids[row] for row in expected]
    assert len(answer["scores"]) == len(answer["interest_numbers"]) == 5


def test_an_error_is_readable(server: RunningServer) -> None:
    done = grpcurl("-d", '{"numCandidates": 5}', server.address, "re4.v1.Retrieval/Retrieve")
    assert done.returncode != 0
    assert "Code: FailedPrecondition" in done.stderr
    assert "history is empty" in done.stderr


def test_no_reflection_where_it_is_off(int_server: RunningServer) -> None:
    done = grpcurl(int_server.address, "list")
    assert done.returncode != 0
    assert "does not support the reflection API" in done.stderr
