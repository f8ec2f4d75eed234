"""The model in training: item vectors, encoder, backward flows, and the sum of their losses.

`L = L_Rec + λ_CL L_CL + λ_ATT L_ATT + λ_CT L_CT + λ_RR L_RR`. A flow whose weight is 0 has no
parameters and is not computed. Export takes the item vectors and `encoder`; the flows serve
training alone.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.encoders import build_encoder
from re4.training.encoders.encoder import Encoded
from re4.training.kernels.parallel import in_threads, with_gradients
from re4.training.kernels.precision import arithmetic
from re4.training.losses.accidental_hits import find_accidental_hits
from re4.training.losses.flows.reconstruct import Reconstruct
from re4.training.losses.fused_reconstruction import DecoderWeights
from re4.training.model.attributes import AttributeEffects
from re4.training.model.microbatch import Microbatch, MicrobatchGradients, SharedNegatives, num_microbatches
from re4.training.samplers.sampler import Negatives

ITEM_TABLE: Final = "item_embedding.weight"
"""The item vectors among the weights of a model, and of a run."""


class TouchedRows:
    """The item vectors that a step reads, gathered into one small matrix: a leaf of the step's graph."""

    def __init__(self, rows_R: Tensor | None, vectors_RD: Tensor) -> None:
        """Take the vectors of rows, sorted and without repeats; None stands for the whole table."""
        self.rows_R = rows_R
        self.vectors_RD = vectors_RD.detach().requires_grad_()

    @property
    def gradient_RD(self) -> Tensor:
        """The gradient of the rows, after the backward pass."""
        gradient_RD = self.vectors_RD.grad
        assert gradient_RD is not None, "the backward pass comes first"
        return gradient_RD


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of one batch: the weighted total, and each term before its weight."""

    total: Tensor
    terms: dict[str, Tensor]
    touched: TouchedRows
    """The item vectors of the step; after the backward pass they hold their gradient."""


class MultiInterestModel(nn.Module):
    """Item vectors, an encoder, and the losses that train them."""

    def __init__(
        self,
        config: TrainConfig,
        num_items: int,
        *,
        attributes: AttributeEffects | None = None,
        to_be_loaded: bool = False,
    ) -> None:
        """Make a model with random weights.

        Args:
            config: Its settings.
            num_items: Size of the catalogue.
            attributes: Effects of the items' attributes, to be trained with them; `item_embedding` then has
                the items' own parts.
            to_be_loaded: Whether the item vectors take no memory, because `load_state_dict(…,
                assign=True)` follows.
        """
        super().__init__()
        self.config = config
        shape = (num_items, config.embedding_dim)
        if to_be_loaded:
            self.item_embedding = nn.Embedding(*shape, _weight=torch.empty(shape, device="meta"))
        else:
            self.item_embedding = nn.Embedding(*shape)
            nn.init.normal_(self.item_embedding.weight, std=config.embedding_dim**-0.5)
        # Gradients flow to the rows of a step (`TouchedRows`), never to the whole table.
        self.item_embedding.weight.requires_grad_(False)
        self.attributes = attributes
        self.encoder = build_encoder(config)
        self.reconstruct: Reconstruct | None = None
        if config.construct_weight:
            self.reconstruct = Reconstruct(
                embedding_dim=config.embedding_dim,
                max_history_length=config.L,
                construct_dim=config.construct_dim,
            )

    def set_item_vectors(self, vectors_ND: Tensor) -> None:
        """Replace the item vectors, before training."""
        if self.attributes is not None:
            vectors_ND = self.attributes.own_parts(vectors_ND)
        self.item_embedding.weight.copy_(vectors_ND)

    @property
    def item_table_ND(self) -> Tensor:
        """The item vectors [N, D] as they are trained, float32, detached; with attributes their own parts."""
        return self.item_embedding.weight.detach()

    def item_vectors_ND(self) -> Tensor:
        """Return the item vectors [N, D] as served, float32, detached."""
        return self.as_scored(self.whole_vectors_ND())

    def whole_vectors_ND(self) -> Tensor:
        """Return the item vectors [N, D] with the parts of their attributes, float32, detached."""
        if self.attributes is None:
            return self.item_table_ND
        return self.attributes.added_to(self.item_table_ND, None).detach()

    def run_weights(self) -> dict[str, Tensor]:
        """Return the weights that a run keeps: whole item vectors, encoder and flows."""
        kept = {
            name: value for name, value in self.state_dict().items() if not name.startswith("attributes.")
        }
        return kept | {ITEM_TABLE: self.whole_vectors_ND()}

    def interests(self, rows_BL: Tensor, lengths_B: Tensor) -> Encoded:
        """Encode histories of item rows, newest first."""
        vectors_BLD = self.item_embedding(rows_BL)
        if self.attributes is not None:
            own_RD = vectors_BLD.flatten(0, 1)
            vectors_BLD = self.attributes.added_to(own_RD, rows_BL.flatten()).view_as(vectors_BLD)
        encoded: Encoded = self.encoder.encode(self.as_scored(vectors_BLD), lengths_B)
        return encoded

    def as_scored(self, vectors: Tensor) -> Tensor:
        """Return item vectors as they enter scores: of length 1 for cosine scores."""
        return F.normalize(vectors, dim=-1) if self.config.scores == "cosine" else vectors

    def losses(self, batch: Batch, negatives: Negatives, generator: torch.Generator) -> Losses:
        """Compute the loss of a batch against the negatives; other users are drawn from the
        generator.

        The gradients are computed at the same time (see `microbatch.py`); the backward pass of the
        total only distributes them to the parameters and the touched rows.
        """
        touched, places_BL, places_B, places_M = self._touch(batch, negatives)
        vectors_RD = self.as_scored(self._whole(touched, generator))
        drawn_M, correction = negatives.rows_M, negatives.correction
        num_examples = len(batch.lengths_B)
        num_blocks = min(num_examples, num_microbatches(len(places_B), vectors_RD.device))
        blocks = _blocks(num_examples, num_blocks)
        targets = [batch.targets_of(block) for block in blocks]
        longest = [int(batch.lengths_B[block].max()) for block in blocks]
        histories = [places_BL[block, :length] for block, length in zip(blocks, longest, strict=True)]
        hits = find_accidental_hits(places_B, places_M)
        # All vectors that the microbatches read, gathered once: histories, targets, drawn negatives.
        read = [*(places.flatten() for places in histories), places_B]
        if drawn_M is not None:
            read.append(places_M)
        gathered_GD = F.embedding(torch.cat(read), vectors_RD)
        pieces = torch.split(gathered_GD, [len(places) for places in read])
        targets_BD = pieces[len(histories)]
        corrections_M = None
        if correction is not None:
            rows_M = torch.arange(len(vectors_RD), device=places_B.device) if drawn_M is None else drawn_M
            corrections_M = correction(rows_M)
        shared = SharedNegatives(
            vectors_MD=vectors_RD if drawn_M is None else pieces[-1],
            corrections_M=corrections_M,
        )
        microbatches = [
            Microbatch(
                rows_BL=places,
                lengths_B=batch.lengths_B[block],
                targets_B=places_B[own],
                history_BLD=piece.view(*places.shape, -1),
                target_BD=targets_BD[own],
                hits=hits.of(own),
                is_every_position=batch.is_every_position,
                target_corrections_B=None if correction is None else correction(batch.targets_B[own]),
                generator=generator if self.config.contrast_weight else None,
            )
            for block, own, places, piece in zip(
                blocks, targets, histories, pieces[: len(histories)], strict=True
            )
        ]
        # Microbatches differentiate by the encoder's weights and by the decoder made from the flows' weights.
        weights: list[Tensor] = list(self.encoder.parameters())
        decoder = self.reconstruct.decoder() if self.reconstruct else None
        found = self._differentiate(microbatches, shared, weights, decoder, batch_size=len(places_B))
        inputs = [*weights, *(decoder or ())]
        gradients = [
            _total(list(of_one)) for of_one in zip(*(each.parameters for each in found), strict=True)
        ]
        of_gathered = [each.history_BLD.flatten(0, 1) for each in found] + [each.target_BD for each in found]
        of_negatives = _total([each.negatives_MD for each in found])
        if drawn_M is None:
            inputs.append(vectors_RD)
            gradients.append(of_negatives)
        else:
            of_gathered.append(of_negatives)
        inputs.append(gathered_GD)
        gradients.append(torch.cat(of_gathered))
        return Losses(
            total=with_gradients(_total([each.total for each in found]), tuple(inputs), tuple(gradients)),
            terms={name: _total([each.terms[name] for each in found]) for name in found[0].terms},
            touched=touched,
        )

    def _differentiate(
        self,
        microbatches: list[Microbatch],
        negatives: SharedNegatives,
        weights: list[Tensor],
        decoder: DecoderWeights | None,
        *,
        batch_size: int,
    ) -> list[MicrobatchGradients]:
        """Run the microbatches, a thread each: forward, then backward with the number of positives of all."""
        device, parameters = negatives.vectors_MD.device, list(weights)
        if decoder is not None:
            decoder = DecoderWeights(*(part.detach().requires_grad_() for part in decoder))
            parameters += decoder
        bf16 = torch.is_autocast_enabled(device.type)

        def encode(number: int) -> int:
            with arithmetic(device, bf16=bf16):
                return microbatches[number].encode(self.encoder)

        counts = self.whole_counts(batch_size, sum(in_threads(encode, len(microbatches), device)))

        def differentiate(number: int) -> MicrobatchGradients:
            with arithmetic(device, bf16=bf16):
                return microbatches[number].differentiate(
                    config=self.config,
                    decoder=decoder,
                    negatives=negatives,
                    parameters=parameters,
                    batch_size=counts[0],
                    num_positives=counts[1],
                )

        return in_threads(differentiate, len(microbatches), device)

    def _whole(self, touched: TouchedRows, generator: torch.Generator) -> Tensor:
        """Return the vectors of a step; with attributes, some items are without their own part."""
        if self.attributes is None:
            return touched.vectors_RD
        own_RD = self.attributes.without_some_own(touched.vectors_RD, touched.rows_R, generator)
        return self.attributes.added_to(own_RD, touched.rows_R)

    def _touch(self, batch: Batch, negatives: Negatives) -> tuple[TouchedRows, Tensor, Tensor, Tensor]:
        """Gather the rows of a step; return them, and the places of history, targets and negatives
        in them."""
        if negatives.rows_M is None:
            touched = self.read_rows(None)
            every_N = torch.arange(len(touched.vectors_RD), device=batch.targets_B.device)
            return touched, batch.rows_BL, batch.targets_B, every_N
        history = batch.rows_BL.flatten()
        rows_R, places = torch.unique(
            torch.cat([history, batch.targets_B, negatives.rows_M]), return_inverse=True
        )
        counts = [len(history), len(batch.targets_B), len(negatives.rows_M)]
        places_BL, places_B, places_M = places.split(counts)
        return self.read_rows(rows_R), places_BL.view_as(batch.rows_BL), places_B, places_M

    def read_rows(self, rows_R: Tensor | None) -> TouchedRows:
        """Gather rows, sorted and without repeats; None stands for the whole table, without a copy."""
        table_ND = self.item_table_ND
        return TouchedRows(rows_R, table_ND if rows_R is None else table_ND.index_select(0, rows_R))

    def whole_counts(self, num_targets: int, num_positives: int) -> tuple[int, int]:
        """Return the counts of a whole batch, of which this process may have a part."""
        return num_targets, num_positives


def _blocks(size: int, num_blocks: int) -> list[slice]:
    """Cut `size` examples into `num_blocks` even blocks."""
    edges = [size * number // num_blocks for number in range(num_blocks + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _total(tensors: list[Tensor]) -> Tensor:
    """Add up in a fixed order; the first tensor becomes the sum."""
    first, *others = tensors
    for other in others:
        first += other
    return first
