"""The losses of a step by microbatches: some hundred examples, forward and backward on one thread.

A batch has its longest histories first, so a microbatch of neighbours has little padding, its
tensors stay in the CPU's cache, and its thread does not wait for others. The losses are sums over
examples, pairs of user and interest, or positives. Each is divided by its count in the whole batch,
so that microbatches add up to means.

The item vectors of a microbatch are gathered beforehand; it returns the gradients of these vectors.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from re4.training.config import TrainConfig
from re4.training.encoders.encoder import Encoded, Encoder
from re4.training.losses.accidental_hits import AccidentalHits
from re4.training.losses.flows.reattend import reattend_sum
from re4.training.losses.flows.reconstruct import reconstruct_sum
from re4.training.losses.flows.recontrast import outside_history, positives, recontrast_sum
from re4.training.losses.fused_reconstruction import DecoderWeights
from re4.training.losses.history_ranking import history_ranking_sum
from re4.training.losses.mixture import mixture_sum
from re4.training.losses.mutual_information import information_loss_sum
from re4.training.losses.routing_regularization import routing_regularization_sum
from re4.training.losses.sampled_softmax import (
    binary_cross_entropy_sum,
    blend_interests,
    sampled_softmax_sum,
    select_interest,
)

_FEWEST_EXAMPLES, _MOST_EXAMPLES = 64, 512
_MICROBATCHES_PER_THREAD = 2


def num_microbatches(num_examples: int, device: torch.device) -> int:
    """Return the number of microbatches: on a CPU two a thread, within limits of their size.

    Each has a fixed cost. Two a thread balance the threads, because the first ones have longer
    histories.
    """
    if device.type != "cpu":
        return 1
    fewest, most = (round(num_examples / size) for size in (_MOST_EXAMPLES, _FEWEST_EXAMPLES))
    return max(1, fewest, min(most, _MICROBATCHES_PER_THREAD * torch.get_num_threads()))


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedNegatives:
    """The negatives that all examples of a step share."""

    vectors_MD: Tensor
    corrections_M: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class MicrobatchGradients:
    """The losses of a microbatch, and the gradients of their weighted total."""

    terms: dict[str, Tensor]
    """Each loss before its weight."""
    total: Tensor
    history_BLD: Tensor
    target_BD: Tensor
    negatives_MD: Tensor
    parameters: tuple[Tensor, ...]


class Microbatch:
    """Some examples of a batch: first `encode`; then `differentiate`, with the counts of all microbatches."""

    def __init__(
        self,
        *,
        rows_BL: Tensor,
        lengths_B: Tensor,
        targets_B: Tensor,
        history_BLD: Tensor,
        target_BD: Tensor,
        hits: AccidentalHits,
        is_every_position: bool,
        target_corrections_B: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        """Take the examples; with a generator, pair users for re-contrast.

        Args:
            rows_BL: histories, as long as the longest one.
            lengths_B: their valid positions.
            targets_B: the targets, numbered as the items of the histories.
            history_BLD: vectors of the histories; `differentiate` returns their gradient.
            target_BD: vectors of the targets, likewise.
            hits: where a target is among its own negatives.
            is_every_position: whether every position of a history has a target.
            target_corrections_B: from the negatives' sampler.
            generator: draws the pairs; None without re-contrast.
        """
        self._rows_BL, self._lengths_B, self._targets_B = rows_BL, lengths_B, targets_B
        self._history_BLD = history_BLD.detach().requires_grad_()
        self._target_BD = target_BD.detach().requires_grad_()
        self._hits, self._target_corrections_B = hits, target_corrections_B
        self._is_every_position = is_every_position
        self._positions_PKD: Tensor | None = None
        self._outside = None if generator is None else outside_history(rows_BL, lengths_B, generator)
        self._encoded: Encoded | None = None
        self._positives_BKL: Tensor | None = None

    def encode(self, encoder: Encoder) -> int:
        """Run the forward flow; return the number of positives, 0 for an encoder without attention."""
        if self._is_every_position:
            self._positions_PKD = encoder.encode_positions(self._history_BLD, self._lengths_B)
            return 0
        self._encoded = encoder.encode(self._history_BLD, self._lengths_B)
        if self._encoded.log_attention_BKL is None:
            return 0
        self._positives_BKL = positives(self._encoded.attention_BKL.detach(), self._lengths_B)
        return int(self._positives_BKL.sum())

    def differentiate(
        self,
        *,
        config: TrainConfig,
        decoder: DecoderWeights | None,
        negatives: SharedNegatives,
        parameters: Sequence[Tensor],
        batch_size: int,
        num_positives: int,
    ) -> MicrobatchGradients:
        """Compute the losses and their gradients, as a part of a batch with these counts."""
        vectors_MD = negatives.vectors_MD.detach().requires_grad_()
        sums = self._sums(config, decoder, negatives, vectors_MD)
        counts: dict[str, int] = defaultdict(lambda: max(num_positives, 1))
        counts |= {
            "recommend": batch_size,
            "routing": batch_size,
            "information": batch_size,
            "history": batch_size,
            "attend": batch_size * config.K,
        }
        terms = {name: value / counts[name] for name, value in sums.items()}
        weights = {"recommend": 1.0} | {
            name: getattr(config, f"{name}_weight") for name in terms if name != "recommend"
        }
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        inputs = [self._history_BLD, self._target_BD, vectors_MD, *parameters]
        found = torch.autograd.grad(total, inputs, allow_unused=True)
        history_BLD, target_BD, negatives_MD, *others = (
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(inputs, found, strict=True)
        )
        return MicrobatchGradients(
            terms={name: value.detach() for name, value in terms.items()},
            total=total.detach(),
            history_BLD=history_BLD,
            target_BD=target_BD,
            negatives_MD=negatives_MD,
            parameters=tuple(others),
        )

    def _sums(
        self,
        config: TrainConfig,
        decoder: DecoderWeights | None,
        negatives: SharedNegatives,
        vectors_MD: Tensor,
    ) -> dict[str, Tensor]:
        if self._positions_PKD is not None:  # without flows, which are for one history
            return self._sums_of_scores(config, self._positions_PKD, None, negatives, vectors_MD)[1]
        encoded, lengths_B, history_BLD = self._encoded, self._lengths_B, self._history_BLD
        assert encoded is not None, "encode comes first"
        interests_BKD = encoded.interests_BKD
        interest_BD, sums = self._sums_of_scores(
            config, interests_BKD, encoded.active_BK, negatives, vectors_MD
        )
        if config.history_weight:
            sums["history"] = history_ranking_sum(
                interest_BD=interest_BD,
                target_vectors_BD=self._target_BD,
                targets_B=self._targets_B,
                interests_BKD=interests_BKD,
                history_vectors_BLD=history_BLD,
                history_BL=self._rows_BL,
                lengths_B=lengths_B,
            )
        if config.routing_weight:
            sums["routing"] = routing_regularization_sum(encoded.attention_BKL, lengths_B)
        if encoded.log_attention_BKL is None:  # the flows need the attention
            return sums
        assert self._positives_BKL is not None, "encode sets the positives of an encoder with attention"
        if self._outside is not None:
            other_B, outside_BL = self._outside
            sums["contrast"] = recontrast_sum(
                interests_BKD=interests_BKD,
                history_vectors_BLD=history_BLD,
                positives_BKL=self._positives_BKL,
                lengths_B=lengths_B,
                other_B=other_B,
                outside_BL=outside_BL,
                temperature=config.contrast_temperature,
            )
        if config.attend_weight:
            sums["attend"] = reattend_sum(
                interests_BKD=interests_BKD,
                history_vectors_BLD=history_BLD,
                log_attention_BKL=encoded.log_attention_BKL,
                lengths_B=lengths_B,
            )
        if decoder is not None:
            sums["construct"] = reconstruct_sum(
                decoder=decoder,
                interests_BKD=interests_BKD,
                history_vectors_BLD=history_BLD,
                positives_BKL=self._positives_BKL,
                lengths_B=lengths_B,
            )
        return sums

    def _sums_of_scores(
        self,
        config: TrainConfig,
        interests_BKD: Tensor,
        active_BK: Tensor | None,
        negatives: SharedNegatives,
        vectors_MD: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the interests that the targets train [B, D], and the losses of scores of items."""
        interest_BD = self._training_interest(config, interests_BKD, active_BK)
        sums = {"recommend": self._recommend(config, interests_BKD, interest_BD, negatives, vectors_MD)}
        if config.information_weight and config.K > 1:
            number = int(self._targets_B.sum())
            sums["information"] = information_loss_sum(
                interests_BKD, vectors_MD, active_BK=active_BK, number=number
            )
        return interest_BD, sums

    def _recommend(
        self,
        config: TrainConfig,
        interests_BKD: Tensor,
        interest_BD: Tensor,
        negatives: SharedNegatives,
        vectors_MD: Tensor,
    ) -> Tensor:
        """Return the sum of the recommendation loss."""
        if config.loss == "mixture":
            return mixture_sum(
                interests_BKD=interests_BKD,
                target_vectors_BD=self._target_BD,
                negative_vectors_MD=vectors_MD,
                hits=self._hits,
                target_correction_B=self._target_corrections_B,
                negative_correction_M=negatives.corrections_M,
            )
        if config.loss == "bce":
            return binary_cross_entropy_sum(
                interest_BD=interest_BD,
                target_vectors_BD=self._target_BD,
                negative_vectors_MD=vectors_MD,
                hits=self._hits,
            )
        return sampled_softmax_sum(
            interest_BD=interest_BD,
            target_vectors_BD=self._target_BD,
            negative_vectors_MD=vectors_MD,
            hits=self._hits,
            rivals_BKD=interests_BKD if config.negative_scores == "served" else None,
            hardness=config.hard_negatives,
            target_correction_B=self._target_corrections_B,
            negative_correction_M=negatives.corrections_M,
        )

    def _training_interest(
        self, config: TrainConfig, interests_BKD: Tensor, active_BK: Tensor | None
    ) -> Tensor:
        """Return the interest of each user that the target trains, [B, D]."""
        target_BD = self._target_BD
        if config.interest_choice == "soft":
            return blend_interests(
                interests_BKD, target_BD, sharpness=config.choice_sharpness, active_BK=active_BK
            )
        chosen_B = select_interest(interests_BKD.detach(), target_BD.detach())
        return interests_BKD[torch.arange(len(chosen_B), device=chosen_B.device), chosen_B]
