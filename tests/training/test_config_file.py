"""Hyper-parameters from a TOML file: options win, and what does not belong is refused by name."""

import json

import pytest
from typer.testing import CliRunner

from re4.cli import build_app
from re4.common.errors import UsageError
from re4.training.config import TrainConfig, read_settings

SMALL = """
embedding_dim = 8
attention_dim = 8
construct_dim = 4
num_epochs = 1
batch_size = 512
learning_rate = 1
"""


def write(folder, text):
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_setting_can_stand_in_a_file(tmp_path):
    settings = TrainConfig().resolve(100).to_json()
    lines = (f"{name} = {json.dumps(value)}" for name, value in settings.items())
    assert read_settings(write(tmp_path, "\n".join(lines))) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 0.1", "unknown learning_rat; known are model, num_interests"),
        ("num_interests = 4.0", "num_interests is 4.0; it must be of type int"),
        ("num_interests = true", "num_interests is True"),
        ("learning_rate = '0.1'", "learning_rate is '0.1'; it must be of type float"),
        ("position = 1", "position is 1; it must be of type bool"),
        ("[model]\nname = 're4'", "model is {'name': 're4'}"),
        ("num_interests =", "cannot be read"),
    ],
)
def test_what_does_not_belong_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read_settings(write(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(tmp_path / "absent.toml")


def test_options_win_over_the_file(planted, tmp_path):
    path = write(tmp_path, SMALL)
    words = ["--config", str(path), "--learning-rate", "0.01", "--no-position", "--num-interests", "2"]
    line = ["train", str(planted.path), "--out", str(tmp_path / "run"), *words]
    done = CliRunner().invoke(build_app(line), line)
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["embedding_dim"], config["batch_size"]) == (8, 512)
    assert (config["learning_rate"], config["position"], config["num_interests"]) == (0.01, False, 2)
    assert config["max_history_length"] == 20
