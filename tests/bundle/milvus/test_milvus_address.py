"""Addresses of Milvus, and the credentials for them."""

from pathlib import Path

import pytest

from re4.bundle.manifest import CollectionInfo, IndexInfo
from re4.bundle.milvus.address import MilvusAddress, is_milvus, milvus_token, parse_index
from re4.bundle.milvus.collections import collection_name
from re4.common.errors import SecurityError, UsageError
from re4.exporting.settings import VersionSettings


@pytest.mark.parametrize(
    "text",
    [
        "milvus://a.example:19530",
        "milvus+tls://a.example:443",
        "milvus://10.0.0.1:1/shop",
        "milvus://[::1]:2",
    ],
)
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert is_milvus(text)
    assert str(MilvusAddress.parse(text)) == text


def test_an_index_has_an_address_and_a_type() -> None:
    address, name = parse_index("milvus://h?index=hnsw")
    assert (str(address), name) == ("milvus://h:19530", "hnsw")
    assert parse_index("milvus://h:1/db")[1] == "auto"
    assert VersionSettings(index="ivf").milvus_address is None
    assert str(VersionSettings(index="milvus://h:1").milvus_address) == "milvus://h:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("milvus://root:secret@h:1", "holds credentials"),
        ("milvus://", "is no address"),
        ("milvus://h:port", "is no address"),
        ("milvus://h:1/a/b", "is no address"),
        ("milvus://h:1?index=pq", "only .index=NAME"),
        ("milvus://h:1?other=ivf", "only .index=NAME"),
    ],
)
def test_other_texts_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_index(text)
    assert "secret" not in str(caught.value)


def test_the_token_is_in_the_environment_or_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RE4_MILVUS_TOKEN", raising=False)
    monkeypatch.delenv("RE4_MILVUS_TOKEN_FILE", raising=False)
    assert milvus_token() == ""
    monkeypatch.setenv("RE4_MILVUS_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(SecurityError, match="cannot be read"):
        milvus_token()
    (tmp_path / "token").write_text("root:word\n")
    assert milvus_token() == "root:word"
    monkeypatch.setenv("RE4_MILVUS_TOKEN", "key")
    assert milvus_token() == "key"


def test_a_manifest_without_a_collection_is_written_as_before() -> None:
    assert "collection" not in IndexInfo(kind="flat").model_dump(mode="json")
    name = collection_name("20260131T235959Z-0123abcd")
    info = CollectionInfo(address="milvus://h:1", name=name, index_type="FLAT")
    index = IndexInfo(kind="milvus-flat", collection=info)
    assert IndexInfo.model_validate_json(index.model_dump_json()) == index
