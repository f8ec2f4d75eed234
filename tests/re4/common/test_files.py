"""Files appear complete or not at all."""

import json
import os
import stat

import numpy as np
import pytest
from safetensors.numpy import save_file

from re4.common.files import replacing, write_json


def test_replaces_when_the_block_ends_well(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "ü"})
    assert json.loads(path.read_text("utf-8")) == {"a": "ü"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_writer_that_makes_private_files_leaves_one_that_others_may_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "weights") as part:
            save_file({"row": np.zeros(3)}, part)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == mode


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
