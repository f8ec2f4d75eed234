"""A server's settings: from a file, variables and options to the running server, its log and `Info`."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from running_server import RunningServer

from re4.common.errors import UsageError
from re4.serving.cli import info, serve
from re4.serving.retrieval.merging import POLICIES
from re4.serving.settings import MERGE_POLICIES, Fallback, Limits, ServerSettings
from re4.settings.sources import read_file

EXAMPLE = Path(__file__).parents[2] / "deploy" / "serve.toml"


def test_workers_get_the_settings_as_they_are() -> None:
    chosen = ServerSettings(
        bundles="somewhere",
        fallback=Fallback.POPULAR,
        limits=Limits(max_num_users=7),
        sources={"max_num_users": "a test"},
    )
    assert ServerSettings.from_json(chosen.to_json()) == chosen
    assert ServerSettings.from_json(ServerSettings().to_json()) == ServerSettings()


def test_the_names_of_the_merge_policies_are_those_of_the_policies() -> None:
    assert tuple(POLICIES) == MERGE_POLICIES


def test_the_example_file_can_be_used() -> None:
    given = read_file(EXAMPLE, ServerSettings)
    chosen = ServerSettings.gather({}, file=EXAMPLE, environment={})
    assert {each.name for each in chosen.effective() if each.source == f"file {EXAMPLE}"} == given.keys()


def test_every_setting_can_stand_in_a_file(tmp_path: Path) -> None:
    """But for those that have no value unless somebody gives one."""
    settings = ServerSettings()
    lines = {name: value for name, value, _ in settings.effective() if value != "None"}
    numbers = re.compile(r"-?\d+(\.\d+)?|True|False")
    texts = (
        f"{name} = {value.lower() if numbers.fullmatch(value) else json.dumps(value)}"
        for name, value in lines.items()
    )
    (tmp_path / "all.toml").write_text("\n".join(texts))
    again = ServerSettings.gather({}, file=tmp_path / "all.toml", environment={})
    assert dataclasses.replace(again, sources={}) == settings


def test_a_server_says_what_it_runs_on_and_why(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("max_queue_ms = 50\nmax_num_users = 9\nmax_batch_size = 2\nfallback = 'popular'\n")
    variables = {
        "RE4_SERVE_MAX_BATCH_SIZE": "3",
        "RE4_SERVE_MAX_NUM_USERS": "10",
        "RE4_SERVE_CONFIG": str(path),
    }
    with RunningServer(bundles, "--max-num-users", "11", env=variables) as running:
        info(address=running.address, as_json=True)
        facts = json.loads(capsys.readouterr().out)
        info(address=running.address)
        shown = capsys.readouterr().out
        log = running.log
    assert facts["max_num_users"] == 11
    expected = {
        "max_num_users": ("11", "flag --max-num-users"),
        "max_batch_size": ("3", "environment RE4_SERVE_MAX_BATCH_SIZE"),
        "max_queue_ms": ("50", f"file {path}"),
        "fallback": ("popular", f"file {path}"),
        "grace_s": ("10.0", "default"),
    }
    for name, (value, source) in expected.items():
        assert facts["settings"][name] == {"value": value, "source": source}
        assert re.search(rf"settings from {re.escape(source)}: .*{name}={value}\b", log)
    assert "flag --max-num-users" in shown
    assert "num_recall_samples" in shown
    assert "online_recall" not in shown  # there are no samples


def test_settings_that_do_not_belong_end_the_start(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("max_num_user = 5")
    with pytest.raises(UsageError, match="Did you mean max_num_users for max_num_user"):
        serve(config=path, bundles=bundles)
    monkeypatch.setenv("RE4_SERVE_ADDRESS", "0.0.0.0:0")
    with pytest.raises(
        UsageError, match=r"--address 0.0.0.0:0 \(from: environment RE4_SERVE_ADDRESS\) can be"
    ):
        serve(bundles=bundles)
    monkeypatch.setenv("RE4_SERVE_GRACE", "5")
    with pytest.raises(UsageError, match="Did you mean RE4_SERVE_GRACE_S for RE4_SERVE_GRACE"):
        serve(bundles=bundles)


def test_bundles_must_be_given() -> None:
    with pytest.raises(UsageError, match="RE4_SERVE_BUNDLES=DIR"):
        serve()
