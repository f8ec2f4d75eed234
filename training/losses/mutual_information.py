"""Mutual information between an item and the interest that finds it: keeps interests apart.

With `p(e)` the softmax of the served scores, `max_k z_k · e`, and `q(k|e)` the softmax of the scores of
e over a user's interests, the loss is `log K - (H(Σ_e p(e) q(k|e)) - Σ_e p(e) H(q(·|e)))`, at least 0.
The first entropy is large where the interests share the items that the user is offered; the second
is small where each item belongs to one interest. Re-contrast looks at vectors only, and can be
met by short interests that find nothing; this loss cannot.

`p` passes no gradient: the loss divides the user's items among the interests, and does not move
probability to items that divide well.

Legend: B examples, P examples of the sample, K interests, M items, D embedding.
"""

import math

import torch
from torch import Tensor

_MAX_EXAMPLES = 64
"""Of a microbatch, spread evenly: a sample has the same expected gradient for a fraction of the work."""
_MAX_ITEMS = 2000
"""Of the negatives, likewise."""
_TINY = 1e-9
# In place of minus infinity: its product with a probability of 0 is 0.
_NEVER = -1e9


def information_loss_sum(
    interests_BKD: Tensor, vectors_MD: Tensor, *, active_BK: Tensor | None = None, number: int = 0
) -> Tensor:
    """Return the sum over the examples, estimated from a sample of them, a scalar.

    Args:
        interests_BKD: Of the examples.
        vectors_MD: Vectors of the negatives.
        active_BK: Which interests a user has; None where every user has all.
        number: Any number that differs between steps: it decides which negatives count.
    """
    size, num_interests, _ = interests_BKD.shape
    picked = slice(None, None, -(-size // _MAX_EXAMPLES))
    stride = -(-len(vectors_MD) // _MAX_ITEMS)
    items = slice(number % stride, None, stride)
    scores_PKM = interests_BKD[picked] @ vectors_MD[items].T
    if active_BK is not None:
        scores_PKM = scores_PKM.masked_fill(~active_BK[picked, :, None], _NEVER)
    chance_PM = scores_PKM.detach().amax(dim=1).softmax(dim=1)
    log_share_PKM = scores_PKM.log_softmax(dim=1)
    share_PKM = log_share_PKM.exp()
    used_PK = torch.einsum("pkm,pm->pk", share_PKM, chance_PM)
    entropy_P = -(used_PK * used_PK.clamp_min(_TINY).log()).sum(dim=1)
    within_P = -(chance_PM * (share_PKM * log_share_PKM).sum(dim=1)).sum(dim=1)
    return (math.log(num_interests) - entropy_P + within_P).mean() * size
