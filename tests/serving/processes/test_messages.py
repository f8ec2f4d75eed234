"""Lines between the supervisor and its workers: whatever is sent arrives, and nothing else is believed."""

from datetime import UTC, datetime

import pytest

from re4.bundle.hidden_ids import MAX_BYTES
from re4.serving.auth.certificates import _MAX_FILE_BYTES, Certificates
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import (
    MAX_LINE_BYTES,
    HideItems,
    LoadVersion,
    StartWorker,
    from_line,
    to_line,
)
from re4.serving.settings import ServerSettings


@pytest.mark.parametrize(
    "message",
    [
        LoadVersion(path="bundles/\udcff/20260131T235959Z-0123abcd", files={"index": [1, 2, 3]}),
        HideItems(id_kind="string", ids=["a", "\ud800", "\x7f\n\u2028é"], failure=""),
        HideItems(id_kind="int", ids=[1, -(2**70)], failure='"why"'),
        RecallSample(path="x", interests="zczMPQAAIMA=", rows=[1], excluded=[]),
    ],
)
def test_whatever_is_sent_arrives_on_one_line(message: LoadVersion) -> None:
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert from_line(line) == message


def test_the_largest_list_of_hidden_items_fits_with_the_largest_certificates() -> None:
    file = b"x" * _MAX_FILE_BYTES
    certificates = Certificates(chain=file, key=file, client_ca=file, not_after=datetime.now(UTC))
    for character in ("a", "\x7f", "é", "\U0001f600"):
        id_ = character * (MAX_BYTES // len(character.encode()))
        command = StartWorker(
            number=1,
            host="127.0.0.1",
            port=1,
            path=None,
            files={},
            folder="/tmp",
            settings=ServerSettings().to_json(),
            hidden=vars(HideItems(id_kind="string", ids=[id_], failure="")),
            certificates=certificates.to_message(),
        )
        assert len(to_line(command)) < MAX_LINE_BYTES


def test_certificates_arrive_as_they_were_and_their_key_is_in_no_text() -> None:
    for client_ca in (None, b"", b"authority\xff"):
        sent = Certificates(chain=b"chain\0", key=b"KEY\n", client_ca=client_ca, not_after=datetime.now(UTC))
        assert Certificates.from_message(sent.to_message()) == sent
        assert "KEY" not in f"{sent!r}"


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b'{"LoadVersion": null}\n',
        b'{"LoadVersion": {}}\n',
        b'{"LoadVersion": {"path": "x", "files": {}, "more": 1}}\n',
        b'{"Unknown": {}}\n',
        b'{"LoadVersion": {"path": "x", "files": {}}, "Unknown": {}}\n',
        b'{"LoadVersion": {"path": "x", "files": {}\n',
        b"\xff\xfe\n",
        b"[" * 200_000,
        b'{"LoadVersion": ' * 50_000,
        b"1" * 5_000,
    ],
    ids=range(14),
)
def test_nothing_else_is_a_message(line: bytes) -> None:
    with pytest.raises(ValueError, match="are no message"):
        from_line(line)
