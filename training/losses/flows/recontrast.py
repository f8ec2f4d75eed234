"""Re-contrast: pull each interest towards the history items that it stands for, push it from
others.

Positives of interest k are the history items whose attention is above the uniform share, `P_k = {
x_j : a[k,j] > 1/N_x }` with N_x this user's history length (strict: a history of one item has
none). Negatives are the user's other history items, the user's other interests, and items outside
the history. Each positive gives `-log( e^(s⁺/τ) / (e^(s⁺/τ) + Σ e^(s⁻/τ)) )` with cosine similarity
s.
"""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from re4.training.kernels import call_kernel, kernel_for
from re4.training.kernels.masks import valid_mask
from re4.training.kernels.parallel import with_gradients

# In place of minus infinity: its exponential is 0, and gradients through it stay finite.
_NEVER = -1e9


def positives(attention_BKL: Tensor, lengths_B: Tensor) -> Tensor:
    """Return which history items each interest stands for: bool [B, K, L], false on padding."""
    return attention_BKL > (1 / lengths_B.to(attention_BKL.dtype))[:, None, None]


def outside_history(rows_BL: Tensor, lengths_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pair each user with another one of the microbatch, drawn at every call.

    Returns:
        other_B: int64, the other user's place. usable_BL: bool, the positions of the other's
        history whose item is not in the user's own history; all false for a single user.
    """
    batch, length = rows_BL.shape
    place_B = torch.arange(batch, device=rows_BL.device)
    if batch == 1:
        return place_B, torch.zeros_like(rows_BL, dtype=torch.bool)
    shift = torch.randint(1, batch, (1,), generator=generator, device=generator.device).to(rows_BL.device)
    other_B = (place_B + shift) % batch
    valid_BL = valid_mask(lengths_B, length)
    shared_BLL = (rows_BL[other_B][:, :, None] == rows_BL[:, None, :]) & valid_BL[:, None, :]
    return other_B, valid_BL[other_B] & ~shared_BLL.any(dim=2)


def similarities(
    *, interests_BKD: Tensor, history_vectors_BLD: Tensor, other_B: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each interest's cosines, divided by the temperature.

    Returns:
        To the own history [B, K, L], to the user's interests [B, K, K], to the other's history [B,
        K, L].
    """
    interests_BKD = F.normalize(interests_BKD, dim=2)
    history_BLD = F.normalize(history_vectors_BLD, dim=2)
    scaled_BKD = interests_BKD / temperature
    return (
        scaled_BKD @ history_BLD.transpose(1, 2),
        scaled_BKD @ interests_BKD.transpose(1, 2),
        scaled_BKD @ history_BLD[other_B].transpose(1, 2),
    )


def recontrast_sum(
    *,
    interests_BKD: Tensor,
    history_vectors_BLD: Tensor,
    positives_BKL: Tensor,
    lengths_B: Tensor,
    other_B: Tensor,
    outside_BL: Tensor,
    temperature: float,
) -> Tensor:
    """Return the sum over all positives, a scalar.

    `other_B` and `outside_BL` come from `outside_history`.
    """
    compiled = kernel_for(interests_BKD, "recontrast.c", {"DIM": interests_BKD.shape[2]})
    if compiled is not None:
        inputs = (interests_BKD, history_vectors_BLD)
        total, gradients = _compiled_sum(
            compiled,
            *inputs,
            about_users=(positives_BKL, lengths_B, other_B, outside_BL),
            temperature=temperature,
        )
        return with_gradients(total, inputs, gradients)
    to_history_BKL, to_interests_BKK, to_outside_BKL = similarities(
        interests_BKD=interests_BKD,
        history_vectors_BLD=history_vectors_BLD,
        other_B=other_B,
        temperature=temperature,
    )
    num_interests, length = positives_BKL.shape[1:]
    valid_BL = valid_mask(lengths_B, length)
    itself_KK = torch.eye(num_interests, dtype=torch.bool, device=lengths_B.device)
    negatives = torch.cat(
        [
            to_history_BKL.masked_fill(positives_BKL | ~valid_BL[:, None, :], _NEVER),
            to_interests_BKK.masked_fill(itself_KK, _NEVER),
            to_outside_BKL.masked_fill(~outside_BL[:, None, :], _NEVER),
        ],
        dim=2,
    )
    # -log(e^p / (e^p + e^n)) = log(1 + e^(n - p)), with n the log-sum-exp of the negatives.
    loss_BKL = F.softplus(negatives.logsumexp(dim=2, keepdim=True) - to_history_BKL)
    return (loss_BKL * positives_BKL).sum()


def _compiled_sum(
    compiled: ctypes.CDLL,
    interests_BKD: Tensor,
    history_vectors_BLD: Tensor,
    *,
    about_users: tuple[Tensor, ...],
    temperature: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the sum, and its gradients by interests and history."""
    gradients = (
        interests_BKD.new_zeros(interests_BKD.shape),
        history_vectors_BLD.new_zeros(history_vectors_BLD.shape),
    )
    total = torch.zeros((), dtype=torch.float64)
    is_without_memory = call_kernel(
        compiled.recontrast,
        *interests_BKD.shape[:2],
        history_vectors_BLD.shape[1],
        interests_BKD.contiguous(),
        history_vectors_BLD.contiguous(),
        *(about.contiguous() for about in about_users),
        torch.tensor(1 / temperature),
        total,
        *gradients,
    )
    if is_without_memory:
        raise MemoryError("no memory is left to re-contrast in")
    return total.float(), gradients
