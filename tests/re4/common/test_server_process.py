"""A server process that does not start, or logs more lines than are kept."""

from pathlib import Path

import pytest
from small_bundles import SmallVersion

from re4.common import server_process
from re4.common.errors import ServerError
from re4.common.server_process import ServerProcess


def test_a_server_that_cannot_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "nowhere")
    with pytest.raises(ServerError, match=r"ended without a line .*listening(.|\n)*nowhere"), server:
        pass
    assert server.stop() == 1


def test_the_newest_lines_of_the_log_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "_NUM_KEPT_LINES", 3)
    SmallVersion().publish(tmp_path)
    lines: list[str] = []
    with (
        ServerProcess(tmp_path, "--num-processes", "1", on_line=lines.append) as server,
        pytest.raises(ServerError, match=r"ran for 0 seconds without a line 'no such line'"),
    ):
        server.wait_for("no such line", timeout_s=0)
    assert server.stop() == 0
    assert len(lines) > 3
    assert server.log.splitlines() == lines[-3:]
    assert server.wait_for(lines[-1], after=len(lines) - 1)
    with pytest.raises(ServerError, match="ended"):
        server.wait_for(".", after=len(lines))
