"""`re4 info`, and what all subcommands that call a server share: errors, TLS and tokens."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from running_server import RE4, RunningServer
from typer.testing import CliRunner

from re4.benchmarks.common import cpu_stability
from re4.benchmarks.load_generator.load import Timing
from re4.benchmarks.serve import runner
from re4.cli import build_app
from re4.serving.auth.tokens import token_hash
from re4.serving.cli import info


def test_info(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    info(address=server.address, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_items"] == 60
    assert facts["min_search_effort"] == 0.25
    info(address=server.address)
    said, _, settings = capsys.readouterr().out.partition("\nsettings\n")
    assert re.search(rf"^  version +{facts['version']}$", said, re.MULTILINE)
    assert re.search(r"^  max_num_candidates +1,000$", said, re.MULTILINE)
    assert re.search(r"^  num_processes +1  \(", settings, re.MULTILINE)


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


def test_subcommands_reach_a_server_with_tls_and_tokens(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load generator too; the token comes from a file or the environment."""
    monkeypatch.setattr(cpu_stability, "_SECONDS", 0.1)
    monkeypatch.setattr(runner, "_CEILING_TIMING", Timing(warmup_s=0.1, duration_s=0.4, deadline_s=10))
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
