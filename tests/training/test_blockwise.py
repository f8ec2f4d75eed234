"""Block by block is the same sum with the same gradients, whatever the block."""

import pytest
import torch

from training.blockwise import blockwise_sum


def loss(rows, masks, matrix, offset):
    return ((rows @ matrix).tanh() * masks[:, None] + offset).square().sum()


@pytest.mark.parametrize("block_rows", [1, 3, 7, 100])
def test_same_value_and_gradients_as_in_one_piece(block_rows):
    generator = torch.Generator().manual_seed(0)
    rows, matrix = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((7, 4), (4, 5))
    )
    offset = torch.tensor(0.3, dtype=torch.float64)
    masks = torch.tensor([True, False, True, True, False, True, True])

    def by(compute):
        leaves = [tensor.clone().requires_grad_() for tensor in (rows, matrix, offset)]
        value = compute(*leaves)
        (3 * value).backward()
        return [value.detach(), *(leaf.grad for leaf in leaves)]

    whole = by(lambda rows, matrix, offset: loss(rows, masks, matrix, offset))
    blocks = by(
        lambda rows, matrix, offset: blockwise_sum(
            loss, rows=(rows, masks), shared=(matrix, offset), block_rows=block_rows
        )
    )
    for one, other in zip(whole, blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_without_gradients_it_is_only_the_sum():
    rows = torch.ones(4, 2)
    value = blockwise_sum(lambda rows: rows.sum(), rows=(rows,), shared=(), block_rows=3)
    assert float(value) == 8
    assert not value.requires_grad
