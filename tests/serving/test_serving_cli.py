"""`re4 retrieve` and `re4 info` against running servers: for people and for machines."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from running_server import RE4, RunningServer
from small_bundles import SmallVersion
from typer.testing import CliRunner

from re4.benchmarks.common import steadiness
from re4.benchmarks.load_generator.load import Timing
from re4.benchmarks.serve import measure
from re4.cli import build_app
from re4.common.errors import UsageError
from re4.serving.auth.tokens import token_hash
from re4.serving.cli import info
from re4.serving.client.cli import retrieve


def test_retrieve_as_json(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [4, 9]
    retrieve(
        f"{small_version.ids[4]}, {small_version.ids[9]},unknown",
        address=server.address,
        num_candidates=5,
        exclude=small_version.ids[7],
        exclude_history=True,
        merge="max-score",
        as_json=True,
    )
    answer = json.loads(capsys.readouterr().out)
    expected = small_version.best(history, 5, excluded=[7, *history])
    assert [one["item_id"] for one in answer["candidates"]] == [small_version.ids[row] for row in expected]
    assert answer["num_unknown_history_ids"] == 1


def test_integers_are_sent_as_integers(
    int_server: RunningServer, int_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieve(
        f"{int_version.ids[4]},{int_version.ids[9]}",
        address=int_server.address,
        num_candidates=5,
        as_json=True,
    )
    answer = json.loads(capsys.readouterr().out)
    expected = [int_version.ids[row] for row in int_version.best([4, 9], 5)]
    assert [one["item_id"] for one in answer["candidates"]] == expected
    with pytest.raises(UsageError, match="--history 'a,b': this catalogue's ids are integers"):
        retrieve("a,b", address=int_server.address)


def test_retrieve_for_people(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieve(f"unknown,{small_version.ids[4]}", address=server.address, num_candidates=3)
    said = capsys.readouterr()
    for row in small_version.best([4], 3):
        assert str(small_version.ids[row]) in said.out
    assert "1 ids of the history are unknown" in said.err


def test_filters_and_reasons(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = small_version.ids
    asked = {"address": server.address, "num_candidates": 60, "reasons": 2}
    retrieve(f"{ids[4]},{ids[9]}", keep=["tags=a, b"], drop=["is_even=true"], **asked, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    expected = {
        ids[row] for row in range(1, 60, 2) if {"a", "b"} & set(small_version.attributes["tags"][row])
    }
    assert {one["item_id"] for one in answer["candidates"]} == expected
    assert all({one["item_id"] for one in each} == {ids[4], ids[9]} for each in answer["reasons"])
    retrieve(f"{ids[4]},{ids[9]}", keep=["tags=a"], **asked)
    said = capsys.readouterr().out
    assert "because of" in said
    assert "%)" in said
    with pytest.raises(UsageError, match="--drop 'tags': give an attribute and its values"):
        retrieve(ids[4], address=server.address, drop=["tags"])


def test_variety(
    server: RunningServer, small_version: SmallVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieve(
        small_version.ids[4],
        address=server.address,
        num_candidates=4,
        merge="category-diversity",
        diversity=1e6,
        diversity_attribute="colour",
        as_json=True,
    )
    found = json.loads(capsys.readouterr().out)["candidates"]
    colours = [small_version.attributes["colour"][small_version.ids.index(one["item_id"])] for one in found]
    assert len(set(colours)) == 4


def test_info(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    info(address=server.address, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_items"] == 60
    info(address=server.address)
    assert facts["version"] in capsys.readouterr().out


def test_the_command_prints_an_error_as_one_message(server: RunningServer) -> None:
    command = [
        *RE4,
        "retrieve",
        "--address",
        server.address,
        "--history",
        "item-1-é",
        "--num-candidates",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "num_candidates is 0; it must be from 1 to 1000" in done.stderr
    assert "Traceback" not in done.stderr
    lost = subprocess.run(
        [*RE4, "info", "--address", "127.0.0.1:1"], capture_output=True, text=True, check=False
    )
    assert lost.returncode == 1
    assert "re4 serve --bundles DIR --address 127.0.0.1:1" in " ".join(lost.stderr.split())


def test_verbs_reach_a_server_with_tls_and_tokens(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load generator too; the token comes from a file or the environment."""
    monkeypatch.setattr(steadiness, "_SECONDS", 0.1)
    monkeypatch.setattr(measure, "_CEILING_TIMING", Timing(warmup_s=0.1, duration_s=0.4, deadline_s=10))
    authority = Authority(tmp_path)
    pair, own = authority.issue(), authority.issue("caller")
    (tmp_path / "token").write_text("a-secret-token\n")
    entry = f'[me]\nsha256 = "{token_hash("a-secret-token").hex()}"\n'
    (tmp_path / "tokens.toml").write_text(entry)
    (tmp_path / "ids").write_text("item-1-é\n")
    options = {
        "--tls-certificate": pair.certificate,
        "--tls-key": pair.key,
        "--tls-client-ca": authority.path,
        "--tokens": tmp_path / "tokens.toml",
    }
    words = [str(word) for option in options.items() for word in option]
    tls = ["--ca", str(authority.path), "--certificate", str(own.certificate), "--key", str(own.key)]
    with RunningServer(bundles, *words, "--num-processes", "1") as running:

        def ask(*words: str, **variables: str) -> Any:
            line = [*words, "--address", running.address, *tls]
            return CliRunner().invoke(build_app(line), line, env=variables)

        assert json.loads(ask("info", "--json", RE4_TOKEN="a-secret-token").stdout)["num_items"] == 60
        assert "UNAUTHENTICATED" in str(ask("info").exception)
        token = ["--token-file", str(tmp_path / "token")]
        assert "item-" in ask("retrieve", "--history", "item-1-é", *token).stdout
        load = ["--rate", "10", "--num-runs", "1", "--duration-s", "0.3", "--warmup-s", "0", "--json"]
        out = ["--out", str(tmp_path / "out"), "--ids", str(tmp_path / "ids")]
        report = json.loads(ask("bench", "serve", *load, *out, *token).stdout)
        assert report["status"] in ("complete", "client-limited")  # as busy as this machine is
        (point,) = report["points"]
        assert point["num_answered"] == point["num_calls"] > 0
