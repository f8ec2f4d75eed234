"""The item table's optimiser moves touched rows only, and as Adam would where its two forms agree."""

import pytest
import torch

import re4.training.kernels
from re4.training.model.model import TouchedRows
from re4.training.trainer.optimiser import RowWiseAdam


def table(num_items, dim, seed=0):
    embedding = torch.nn.Embedding(num_items, dim)
    with torch.no_grad():
        embedding.weight.copy_(torch.randn(num_items, dim, generator=torch.Generator().manual_seed(seed)))
    embedding.weight.requires_grad_(False)
    return embedding


def step(optimiser, embedding, rows, target):
    touched = TouchedRows(rows, embedding.weight if rows is None else embedding.weight[rows])
    (touched.vectors_RD - target).square().sum().backward()
    optimiser.step(touched)


def test_rows_that_are_not_touched_stay_as_they_are():
    embedding = table(10, 4)
    before = embedding.weight.clone()
    optimiser = RowWiseAdam(embedding, learning_rate=0.1, weight_decay=0.01)
    for rows in ([1, 3], [3, 7]):
        step(optimiser, embedding, torch.tensor(rows), 5.0)
    changed = (embedding.weight != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [1, 3, 7]


def test_all_rows_touched_is_the_same_as_the_whole_table():
    one, other = table(6, 3), table(6, 3)
    optimisers = [RowWiseAdam(each, learning_rate=0.1, weight_decay=0.01) for each in (one, other)]
    for _ in range(5):
        step(optimisers[0], one, None, 2.0)
        step(optimisers[1], other, torch.arange(6), 2.0)
    torch.testing.assert_close(one.weight, other.weight)


def test_with_one_entry_a_row_it_is_adam():
    """The mean over a row of one entry is the entry: then row-wise Adam is Adam."""
    ours, theirs = table(5, 1), table(5, 1)
    optimiser = RowWiseAdam(ours, learning_rate=0.05, weight_decay=0.1)
    theirs.weight.requires_grad_(True)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.05, weight_decay=0.1)
    for target in (1.0, 2.0, -3.0, 0.5):
        step(optimiser, ours, None, target)
        adam.zero_grad()
        (theirs.weight - target).square().sum().backward()
        adam.step()
    torch.testing.assert_close(ours.weight, theirs.weight.detach())


@pytest.mark.skipif(not re4.training.kernels.has_kernels(), reason="there is no C compiler here")
@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_compiled_code_moves_rows_alike(monkeypatch, native_alone, dim, weight_decay):
    ours, theirs = table(10_000, dim), table(10_000, dim)
    generator = torch.Generator().manual_seed(1)
    optimisers = [RowWiseAdam(each, learning_rate=0.1, weight_decay=weight_decay) for each in (ours, theirs)]
    for _ in range(3):
        rows = torch.randperm(10_000, generator=generator)[:6000].sort().values
        step(optimisers[0], ours, rows, 2.0)
        with monkeypatch.context() as without:
            without.setenv("RE4_NATIVE", "0")
            step(optimisers[1], theirs, rows, 2.0)
    step(optimisers[0], ours, None, 2.0)
    with monkeypatch.context() as without:
        without.setenv("RE4_NATIVE", "0")
        step(optimisers[1], theirs, None, 2.0)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-5)
    for name, value in optimisers[0].state().items():
        torch.testing.assert_close(value, optimisers[1].state()[name], rtol=1e-5, atol=1e-6)
