"""Block by block, on any number of threads, is the same sum with the same gradients."""

import pytest
import torch

from re4.training.kernels.parallel import run_blocks, with_gradients


class Squares:
    """Sums the squares of the rows that it is given."""

    def __init__(self, rows, gradients, block_rows):
        self.total = torch.zeros((), dtype=rows.dtype)
        self.threads = set()
        self._rows, self._gradients, self._block_rows = rows, gradients, block_rows

    def __call__(self, block):
        assert 0 < block.stop - block.start <= self._block_rows
        self.threads.add(torch.get_num_threads())
        self.total += self._rows[block].square().sum()
        self._gradients[block] = 2 * self._rows[block]


@pytest.fixture(params=[1, 3])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("block_rows", [1, 3, 7, 100])
def test_same_value_and_gradients_as_in_one_piece(block_rows, num_threads):
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = torch.zeros_like(rows)
    workers = run_blocks(
        lambda largest: Squares(rows, gradients, largest),
        num_rows=len(rows),
        block_rows=block_rows,
        device=rows.device,
    )
    assert len(workers) == min(num_threads, -(-len(rows) // block_rows))
    if len(workers) > 1:  # a worker's operations are its own thread's alone
        assert {threads for worker in workers for threads in worker.threads} == {1}
    assert torch.get_num_threads() == num_threads

    tracked = rows.clone().requires_grad_()
    total = torch.stack([worker.total for worker in workers]).sum()
    value = with_gradients(total, (tracked,), (gradients,))
    (3 * value).backward()
    assert value.item() == pytest.approx(float(rows.square().sum()), rel=1e-12)
    torch.testing.assert_close(tracked.grad, 6 * rows, rtol=1e-12, atol=1e-12)
    torch.ones(1, requires_grad=True).backward()
    assert torch.get_num_threads() == num_threads


def test_an_error_in_a_worker_is_raised(num_threads):
    def fail(block):
        raise ValueError(f"rows from {block.start}")

    with pytest.raises(ValueError, match="rows from 0"):
        run_blocks(lambda largest: fail, num_rows=9, block_rows=2, device=torch.device("cpu"))
    assert torch.get_num_threads() == num_threads
