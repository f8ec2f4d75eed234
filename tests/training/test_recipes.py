"""The recipes of CONTRIBUTING.md for an encoder and for negatives, taken from the page and run."""

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from re4.exporting.encoder.onnx_encoder import export_encoder
from re4.training import api, presets, samplers
from re4.training.config import TrainConfig
from re4.training.run.run import Run

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def recipe(heading: str) -> list[str]:
    """The code blocks under a heading, without their indent."""
    _, _, rest = PAGE.read_text("utf-8").partition(f"### {heading}\n")
    section = re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in blocks]


def follow(heading: str, module: str, table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a recipe says: the first block is a new module, the second one an entry of a table."""
    source, entry = recipe(heading)
    made = ModuleType(module)
    exec(source, made.__dict__)
    monkeypatch.setitem(sys.modules, module, made)
    for name, value in eval(f"{{{entry}}}", vars(presets)).items():
        monkeypatch.setitem(table, name, value)


def test_the_gated_encoder_trains_and_is_exported(planted, small_options, tmp_path, monkeypatch) -> None:
    follow("A new encoder", "re4.training.encoders.gated", presets.PRESETS, monkeypatch)
    # The choices of the setting are read from the table when the module is imported.
    declared = TrainConfig.__dataclass_fields__["model"]
    monkeypatch.setattr(declared, "metadata", {**declared.metadata, "choices": presets.PRESETS})
    options = {**small_options, "num_epochs": 1, "batch_size": 4096}
    api.train(planted, tmp_path / "run", device="cpu", model="gated", **options)
    run = Run.open(tmp_path / "run")
    encoder = run.load_model().encoder
    assert type(encoder).__name__ == "GatedEncoder"
    difference = export_encoder(
        encoder,
        num_interests=run.config.K,
        embedding_dim=run.config.embedding_dim,
        max_history_length=run.config.max_history_length,
        space="any",
        path=tmp_path / "encoder.onnx",
    )
    assert difference < 1e-4


def test_the_square_root_sampler_draws_and_trains(planted, small_options, tmp_path, monkeypatch) -> None:
    follow("A new kind of negatives", "re4.training.samplers.square_root", samplers.SAMPLERS, monkeypatch)
    counts_N = torch.tensor([100, 1, 0, 25])
    sampler = samplers.build_sampler("square-root", 17_000, counts_N)
    drawn = sampler.draw(torch.Generator().manual_seed(1), torch.tensor([0, 1]))
    expected_N = drawn.correction(torch.arange(4)).exp()
    torch.testing.assert_close(expected_N, torch.tensor([10_000.0, 1_000, 1_000, 5_000]))
    torch.testing.assert_close(torch.bincount(drawn.rows_M).float(), expected_N, rtol=0.1, atol=0)
    # The choices of the setting are read from the table when the module is imported.
    declared = TrainConfig.__dataclass_fields__["negatives"]
    monkeypatch.setattr(declared, "metadata", {**declared.metadata, "choices": samplers.SAMPLERS})
    options = {**small_options, "num_epochs": 1, "batch_size": 4096}
    api.train(planted, tmp_path / "run", device="cpu", negatives="square-root", num_negatives=20, **options)
