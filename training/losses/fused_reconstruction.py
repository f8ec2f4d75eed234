"""The squared distances of the re-construct loss and their gradients in one pass over blocks of
users.

The equations are those of `flows/reconstruct.py`, with the backward pass written by hand, so that
the pieces of one block only are in memory. On a CPU a C kernel works on a block
(`kernels/fused_reconstruction.c`); otherwise PyTorch's operations do.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from re4.training.kernels import call_kernel, kernel_for
from re4.training.kernels.masks import valid_mask
from re4.training.kernels.parallel import BlockWorker, run_blocks

# Users of a block: their pieces, a few hundred kilobytes a tensor, stay in the CPU's cache.
_BLOCK_USERS = 32
# The kernel works on small groups of a block.
_NATIVE_BLOCK_USERS = 256
# The longest history of the kernel, which holds the shares of all pieces in all positions.
_NATIVE_LENGTH = 128


class DecoderWeights(NamedTuple):
    """The matrices W3 W4 and W5 W4 for L pieces, their biases, and a query for each position."""

    to_hidden: Tensor
    """[L C, D]"""
    hidden_bias: Tensor
    """[L C]"""
    to_pieces: Tensor
    """[L D, D]"""
    pieces_bias: Tensor
    """[L D]"""
    queries: Tensor
    """[L, C]"""

    def first(self, length: int) -> "DecoderWeights":
        """Return the weights of the first `length` pieces."""
        share = len(self.queries)
        return DecoderWeights(*(tensor[: len(tensor) // share * length] for tensor in self))


class Reconstruction(NamedTuple):
    """A reconstruction and its intermediate values; i counts pieces, j positions of the history."""

    hidden_Zic: Tensor
    shares_Zij: Tensor
    pieces_Zid: Tensor
    history_Zjd: Tensor


def reconstruct_histories(interests_ZD: Tensor, lengths_Z: Tensor, decoder: DecoderWeights) -> Reconstruction:
    """Reconstruct histories from interests [Z, D] of users with these lengths [Z]."""
    shape = (len(interests_ZD), len(decoder.queries), -1)
    hidden = torch.addmm(decoder.hidden_bias, interests_ZD, decoder.to_hidden.T).tanh_()
    pieces = torch.addmm(decoder.pieces_bias, interests_ZD, decoder.to_pieces.T)
    hidden_Zic, pieces_Zid = hidden.view(shape), pieces.view(shape)
    shares_Zij = torch.mm(hidden_Zic.flatten(0, 1), decoder.queries.T).view(shape)
    length = shape[1]
    padding_Zi = ~valid_mask(lengths_Z, length)
    shares_Zij.masked_fill_(padding_Zi[:, :, None], -torch.inf)
    shares_Zij -= shares_Zij.amax(dim=1, keepdim=True)
    shares_Zij.exp_()
    shares_Zij /= shares_Zij.sum(dim=1, keepdim=True)
    return Reconstruction(
        hidden_Zic, shares_Zij, pieces_Zid, torch.bmm(shares_Zij.transpose(1, 2), pieces_Zid)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Users:
    interests_BKD: Tensor
    history_vectors_BLD: Tensor
    positives_BKL: Tensor
    lengths_B: Tensor
    decoder: DecoderWeights
    interest_gradients_BKD: Tensor
    history_gradients_BLD: Tensor


def fused_reconstruction_sum(
    interests_BKD: Tensor,
    history_vectors_BLD: Tensor,
    *decoder: Tensor,
    positives_BKL: Tensor,
    lengths_B: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the sum over positives, and its gradients by interests, histories and each part of the
    decoder.

    Autograd tracks nothing. Users in order of their lengths are fastest: a block computes the
    pieces of its longest history.
    """
    dtype = history_vectors_BLD.dtype  # under autocast the other arguments may be bfloat16
    users = _Users(
        interests_BKD=interests_BKD.to(dtype).contiguous(),
        history_vectors_BLD=history_vectors_BLD.contiguous(),
        positives_BKL=positives_BKL.to(dtype).contiguous(),
        lengths_B=lengths_B.contiguous(),
        decoder=DecoderWeights(*(tensor.to(dtype).contiguous() for tensor in decoder)),
        interest_gradients_BKD=interests_BKD.new_empty(interests_BKD.shape, dtype=dtype),
        history_gradients_BLD=history_vectors_BLD.new_zeros(history_vectors_BLD.shape),
    )
    new_worker, block_users = _worker_for(users)
    workers = run_blocks(new_worker, num_rows=len(lengths_B), block_rows=block_users, device=lengths_B.device)
    for worker in workers[1:]:
        workers[0].total += worker.total
        for ours, theirs in zip(workers[0].gradients, worker.gradients, strict=True):
            ours += theirs
    return workers[0].total.to(dtype), (
        users.interest_gradients_BKD,
        users.history_gradients_BLD,
        *workers[0].gradients,
    )


class _Worker(BlockWorker, Protocol):
    total: Tensor
    gradients: DecoderWeights


def _worker_for(users: _Users) -> tuple[Callable[[int], _Worker], int]:
    """Return the worker for a block, by the kernel where there is one, and the block's number of users."""
    if users.positives_BKL.shape[2] <= _NATIVE_LENGTH:
        widths = {"DIM": users.interests_BKD.shape[2], "WIDTH": users.decoder.queries.shape[1]}
        compiled = kernel_for(users.interests_BKD, "fused_reconstruction.c", widths)
        if compiled is not None:
            return partial(_NativeWorker, users, compiled), _NATIVE_BLOCK_USERS
    return partial(_TorchWorker, users), _BLOCK_USERS


class _NativeWorker:
    def __init__(self, users: _Users, compiled: ctypes.CDLL, block_rows: int) -> None:
        self.total = torch.zeros((), dtype=torch.float64)
        self.gradients = DecoderWeights(*(torch.zeros_like(tensor) for tensor in users.decoder))
        self._users, self._add_users = users, compiled.fused_reconstruction

    def __call__(self, block: slice) -> None:
        users = self._users
        _, num_interests, length = users.positives_BKL.shape
        is_without_memory = call_kernel(
            self._add_users,
            block.stop - block.start,
            num_interests,
            length,
            users.interests_BKD[block],
            users.history_vectors_BLD[block],
            users.positives_BKL[block],
            users.lengths_B[block],
            *users.decoder,
            self.total,
            users.interest_gradients_BKD[block],
            users.history_gradients_BLD[block],
            *self.gradients,
        )
        if is_without_memory:
            raise MemoryError("no memory is left to reconstruct histories in")


class _TorchWorker:
    def __init__(self, users: _Users, block_rows: int) -> None:
        self.total = users.interests_BKD.new_zeros(())
        self.gradients = DecoderWeights(*(torch.zeros_like(tensor) for tensor in users.decoder))
        self._users = users

    def __call__(self, block: slice) -> None:
        users, lengths_B = self._users, self._users.lengths_B[block]
        longest, num_interests = int(lengths_B.max()), users.interests_BKD.shape[1]
        decoder, gradients = users.decoder.first(longest), self.gradients.first(longest)
        interests_ZD = users.interests_BKD[block].flatten(0, 1)
        hidden_Zic, shares_Zij, pieces_Zid, history_Zjd = reconstruct_histories(
            interests_ZD, lengths_B.repeat_interleave(num_interests), decoder
        )
        # The buffer of the history now holds twice the differences, the gradient of their squares.
        difference_BKjd = history_Zjd.view(-1, num_interests, *history_Zjd.shape[1:])
        difference_BKjd -= users.history_vectors_BLD[block, None, :longest]
        difference_BKjd *= users.positives_BKL[block, :, :longest, None]
        # A dot product would be rounded to bfloat16 where matrix products are.
        self.total += torch.linalg.vector_norm(difference_BKjd).square()
        difference_BKjd *= 2
        users.history_gradients_BLD[block, :longest] = difference_BKjd.sum(dim=1).neg_()

        shares_gradient_Zij = torch.bmm(pieces_Zid, history_Zjd.transpose(1, 2))
        piece_gradients_ZE = torch.bmm(shares_Zij, history_Zjd, out=pieces_Zid).flatten(1)
        shares_gradient_Zij -= (shares_Zij * shares_gradient_Zij).sum(dim=1, keepdim=True)
        logits_gradient_Rj = shares_gradient_Zij.mul_(shares_Zij).flatten(0, 1)
        gradients.queries.addmm_(logits_gradient_Rj.T, hidden_Zic.flatten(0, 1))
        hidden_gradients_ZF = torch.ops.aten.tanh_backward(
            (logits_gradient_Rj @ decoder.queries).view_as(hidden_Zic), hidden_Zic
        ).flatten(1)
        gradients.to_hidden.addmm_(hidden_gradients_ZF.T, interests_ZD)
        gradients.hidden_bias.add_(hidden_gradients_ZF.sum(dim=0))
        gradients.to_pieces.addmm_(piece_gradients_ZE.T, interests_ZD)
        gradients.pieces_bias.add_(piece_gradients_ZE.sum(dim=0))
        interest_gradients_ZD = users.interest_gradients_BKD[block].view_as(interests_ZD)
        torch.mm(hidden_gradients_ZF, decoder.to_hidden, out=interest_gradients_ZD)
        interest_gradients_ZD.addmm_(piece_gradients_ZE, decoder.to_pieces)
