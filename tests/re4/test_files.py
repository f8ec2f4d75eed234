"""Files appear whole or not at all."""

import json

import pytest

from re4.files import replacing, write_json


def test_replaces_when_the_block_ends_well(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "ü"})
    assert json.loads(path.read_text("utf-8")) == {"a": "ü"}
    assert list(tmp_path.iterdir()) == [path]


def test_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "value.txt"
    path.write_text("old")

    def fail_half_way():
        with replacing(path) as part:
            part.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
