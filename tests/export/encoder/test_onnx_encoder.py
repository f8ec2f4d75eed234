"""The exported encoder: the same numbers, its own parameters, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from run_samples import SPACE, SmallEncoder, export_small

from re4.common.errors import ExportError
from re4.common.onnx_runtime import onnxruntime
from re4.exporting.encoder import onnx_encoder
from re4.exporting.encoder.onnx_encoder import SPACE_KEY, list_initializers
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.encoder.parity import BATCH_SIZES, compare
from re4.training.config import TrainConfig
from re4.training.encoders import build_encoder
from re4.training.model.model import MultiInterestModel


def model_configs() -> list[object]:
    """The default encoder, and it with some options; test_every_model_served.py has the other models."""
    small: dict[str, Any] = {"embedding_dim": 8, "max_history_length": 6}
    configs = [
        TrainConfig(),
        TrainConfig(scores="cosine", temperature=0.1, num_blocks=1, **small),
        TrainConfig(position=False, head=True, num_interests=3, attention_dim=16, **small),
    ]
    return [
        pytest.param(
            config.resolve(100),
            id="-".join(
                map(str, (config.model, config.embedding_dim, config.scores, config.position, config.head))
            ),
        )
        for config in configs
    ]


@pytest.mark.parametrize("config", model_configs())
def test_every_encoder_computes_the_same_and_stays_small(config: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = build_encoder(config)
    difference = export_small(
        encoder,
        tmp_path / "encoder.onnx",
        length=config.max_history_length,
        num_interests=config.num_interests,
        dim=config.embedding_dim,
    )
    assert difference <= 1e-5
    assert (tmp_path / "encoder.onnx").stat().st_size < 1 << 20
    held = list_initializers(onnx.load(tmp_path / "encoder.onnx"))
    assert {name: value.shape for name, value in held.items()} == {
        name: tuple(value.shape) for name, value in encoder.state_dict().items()
    }


def test_nothing_of_the_backward_flow_is_exported(tmp_path: Path) -> None:
    config = TrainConfig(embedding_dim=16, attention_dim=24, construct_dim=12).resolve(1000)
    model = MultiInterestModel(config, num_items=1000)
    backward = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.startswith("encoder.")
    }
    assert len(backward) > 3, "the item table, and the parameters of re-construct"

    export_small(model.encoder, tmp_path / "encoder.onnx", length=20, num_interests=4, dim=16)

    graph = onnx.load(tmp_path / "encoder.onnx")
    held = {name: value.shape for name, value in list_initializers(graph).items()}
    assert sorted(held) == ["W1.weight", "W2.weight", "position", "w.weight"]
    assert not set(held.values()) & set(backward.values())
    constants = [
        onnx.numpy_helper.to_array(attribute.t).size
        for node in graph.graph.node
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    assert max(constants, default=0) <= 4, "no parameter hides in the graph's constants"


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("max_length", [1, 2, 5])
def test_all_batch_sizes_and_lengths(tmp_path: Path, max_length: int) -> None:
    encoder = SmallEncoder()
    export_small(encoder, tmp_path / "encoder.onnx", length=max_length)
    exported = OnnxEncoder((tmp_path / "encoder.onnx").read_bytes())
    rng = np.random.default_rng(0)
    for batch_size in (1, 2, 3, 257):
        for length in range(1, max_length + 1):
            vectors = rng.standard_normal((batch_size, length, 8), np.float32)
            lengths = rng.integers(1, length + 1, batch_size)
            interests, attention = exported(vectors, lengths)
            with torch.inference_mode():
                wanted = encoder(torch.from_numpy(vectors), torch.from_numpy(lengths))
            assert interests.shape == (batch_size, 3, 8)
            assert attention.shape == (batch_size, 3, length)
            np.testing.assert_allclose(interests, wanted[0].numpy(), rtol=0, atol=1e-5)
            np.testing.assert_allclose(attention, wanted[1].numpy(), rtol=0, atol=1e-5)


def test_values_in_the_padding_change_nothing(small_file: Path) -> None:
    exported = OnnxEncoder(small_file.read_bytes())
    vectors = np.random.default_rng(0).standard_normal((2, 5, 8), np.float32)
    other = vectors.copy()
    other[0, 2:] = 1e6
    lengths = np.array([2, 5])
    for got, wanted in zip(exported(other, lengths), exported(vectors, lengths), strict=True):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(exported(vectors, lengths)[1][0, :, 2:], 0)


def test_the_interface_that_servers_rely_on(small_file: Path) -> None:
    session = onnxruntime.InferenceSession(small_file, providers=["CPUExecutionProvider"])
    assert {put.name: put.shape for put in session.get_inputs()} == {
        "history_vectors": ["batch", "length", 8],
        "lengths": ["batch"],
    }
    assert {put.name: put.shape for put in session.get_outputs()} == {
        "interests": ["batch", 3, 8],
        "attention": ["batch", 3, "length"],
    }
    assert session.get_modelmeta().custom_metadata_map == {
        SPACE_KEY: SPACE,
        "re4.num_interests": "3",
        "re4.embedding_dim": "8",
        "re4.max_history_length": "5",
    }


def test_the_file_tells_nothing_about_the_machine(small_file: Path) -> None:
    content = small_file.read_bytes()
    assert b".py" not in content
    assert str(Path.home()).encode() not in content


def test_the_same_encoder_gives_the_same_file(small_file: Path, tmp_path: Path) -> None:
    export_small(SmallEncoder(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == small_file.read_bytes()


def test_the_exporter_keeps_quiet_and_leaves_the_encoder_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = SmallEncoder().train()
    before = torch.random.get_rng_state()
    export_small(encoder, tmp_path / "encoder.onnx")
    assert capfd.readouterr() == ("", "")
    assert encoder.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_difference_is_found_wherever_it_is(small_file: Path) -> None:
    """One batch size, one length: the check must reach all of them."""
    exported = OnnxEncoder(small_file.read_bytes())

    for batch_size in BATCH_SIZES:
        for length in range(1, 6):

            def off_by_a_little(vectors, lengths, *, at=(batch_size, length)):
                interests, attention = exported(vectors, lengths)
                if vectors.shape[:2] == at:
                    interests = interests + np.float32(1e-3)
                return interests, attention

            with pytest.raises(ExportError, match=f"a batch of {batch_size} histories padded to {length}"):
                onnx_encoder.check_parity(
                    SmallEncoder().eval(),
                    off_by_a_little,
                    num_interests=3,
                    embedding_dim=8,
                    max_history_length=5,
                )


def test_the_tolerance_follows_the_size_of_the_outputs() -> None:
    encoder = SmallEncoder()
    vectors = np.random.default_rng(0).standard_normal((2, 4, 8), np.float32)
    lengths = np.array([4, 2])

    def rounded(history, lengths, error):
        with torch.inference_mode():
            interests, attention = encoder(torch.from_numpy(history), torch.from_numpy(lengths))
        return interests.numpy() + np.float32(error), attention.numpy()

    compare(encoder, lambda *history: rounded(*history, 9e-6), vectors, lengths, 3)
    large = vectors * np.float32(1e4)
    compare(encoder, lambda *history: rounded(*history, 1e-2), large, lengths, 3)
    with pytest.raises(ExportError):
        compare(encoder, lambda *history: rounded(*history, 1e-2), vectors, lengths, 3)


def test_a_large_encoder_is_exported_all_the_same(tmp_path: Path) -> None:
    config = TrainConfig(embedding_dim=256, attention_dim=1024, max_history_length=2).resolve(9)
    export_small(build_encoder(config), tmp_path / "encoder.onnx", length=2, num_interests=4, dim=256)
    assert (tmp_path / "encoder.onnx").stat().st_size > 1 << 20
