"""The forward pass of the BERT family over packed tokens: the same numbers as Hugging Face's, without the padding.

A padded batch of short texts spends much of its time on padding, and autograd's second derivative of it on passes over
memory. Here the linear layers see real tokens alone, attention sees texts in groups of like length, and the operations bring
their own first and second derivatives (`kshot.models.ops`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.models.low_rank import low_rank
from kshot.models.ops import activate, layer_norm, linear
from kshot.models.packed_attention import attention
from kshot.models.packed_batch import Packing, pack
from kshot.models.packed_layout import Layout, layout_of
from kshot.models.packed_pooling import PACKED_POOLINGS

_NARROW = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class PackedEncoder:
    """An encoder of the BERT family, pure in its parameters.

    Parameters are given by their Hugging Face names. They may hold low-rank adapters (Hu et al. 2021, arXiv:2106.09685) as
    ``MODULE.lora_A.weight`` (r, I) and ``MODULE.lora_B.weight`` (O, r), and scales (Liu et al. 2022, arXiv:2205.05638) as
    ``MODULE.ia3_l``: (O, 1) for a module's outputs, (1, I) for its inputs. The rows of the word embeddings may be a subset, as
    long as token ids count in it.

    Args:
        layout: names and settings of the model.
        pooling: ``mean``, ``cls`` or ``max`` over the tokens of a text.
        lora_scaling: the factor of every low-rank update.
    """

    layout: Layout
    pooling: str
    lora_scaling: float = 1.0

    def pack(self, input_ids: Tensor, mask: Tensor) -> Packing | None:
        """Return token ids (B, L) and mask (B, L) packed for this model; None where padding is not at the right."""
        return pack(input_ids, mask, self.layout.heads, self.layout.first_position)

    def features(self, params: Mapping[str, Tensor], packing: Packing, **options: Any) -> Tensor:
        """Return text vectors (B, H) in the original order of the texts; the options are those of `states`."""
        return PACKED_POOLINGS[self.pooling](self.states(params, packing, **options), packing)

    def lowest_layer(self, modules: Iterable[str]) -> int:
        """Return the lowest layer that holds one of some parameters, by module names; 0 where one is below all layers."""
        prefixes = [self.layout.names.layer.format(number) for number in range(self.layout.layers)]
        found = [[number for number, prefix in enumerate(prefixes) if name.startswith(prefix)] for name in modules]
        return min((numbers[0] if numbers else 0 for numbers in found), default=0)

    def states(
        self,
        params: Mapping[str, Tensor],
        packing: Packing,
        *,
        dropout: bool = False,
        precision: str = "fp32",
        first_layer: int = 0,
        states: Tensor | None = None,
        last_layer: int | None = None,
    ) -> Tensor:
        """Return token states (N, H) in packed order.

        Args:
            params: parameters by name.
            packing: the batch.
            dropout: draw and apply dropout, with the same numbers as Hugging Face's forward pass of the padded batch.
            precision: ``fp32`` computes in the format of the parameters; ``bf16`` rounds the factors and results of all
                products of linear layers, those of both derivatives included, and keeps the rest wide.
            first_layer: the layer that ``states`` enter.
            states: what goes into the first layer (N, H), of an earlier call; None for the embeddings.
            last_layer: the layer before which to stop; None for all.
        """
        run = _Run(self, params, packing, dropout, _NARROW[precision])
        x = run.embeddings() if states is None else states
        for number in range(first_layer, self.layout.layers if last_layer is None else last_layer):
            x = run.layer(number, x)
        return x


def packed_encoder(model: Any, pooling: str) -> PackedEncoder | None:
    """Return the packed forward pass of a Hugging Face encoder, or None where there is none for its kind.

    BERT (so MiniLM and E5), RoBERTa, XLM-R and DistilBERT have one, with absolute positions and a GELU or ReLU.
    """
    layout = layout_of(model)
    return None if layout is None or pooling not in PACKED_POOLINGS else PackedEncoder(layout, pooling)


@dataclass(frozen=True)
class _Run:
    """One forward pass."""

    encoder: PackedEncoder
    params: Mapping[str, Tensor]
    packing: Packing
    dropout: bool
    narrow: torch.dtype | None

    @property
    def layout(self) -> Layout:
        return self.encoder.layout

    def embeddings(self) -> Tensor:
        names, params = self.layout.names, self.params
        x = F.embedding(self.packing.input_ids, params[names.word + ".weight"])
        if names.token_type is not None:
            x = x + params[names.token_type + ".weight"][0]
        x = x + F.embedding(self.packing.positions, params[names.position + ".weight"])
        return self._dropped(self._norm(names.norm, x))

    def layer(self, number: int, x: Tensor) -> Tensor:
        names = self.layout.names
        prefix = names.layer.format(number)
        head_size = self.layout.hidden // self.layout.heads
        qkv = self._linear([prefix + name for name in names.projections], x)
        mixed = attention(qkv, self.packing.groups, self.layout.heads, head_size**-0.5, self._attention_dropout(x))
        mixed = self._linear([prefix + names.out], mixed)
        if names.token_type is not None:  # DistilBERT, the one without token types, has no dropout here
            mixed = self._dropped(mixed)
        x = self._norm(prefix + names.attention_norm, mixed + x)
        inner = activate(self._linear([prefix + names.up], x), self.layout.activation)
        inner = self._dropped(self._linear([prefix + names.down], inner))
        return self._norm(prefix + names.output_norm, inner + x)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, self.params[name + ".weight"], self.params[name + ".bias"], self.layout.eps)

    def _linear(self, modules: Sequence[str], x: Tensor) -> Tensor:
        """Return the outputs of modules with one input side by side, with their adapters where there are any."""
        params = self.params
        weights, biases = ([params[f"{module}.{kind}"] for module in modules] for kind in ("weight", "bias"))
        scales = [params.get(module + ".ia3_l") for module in modules]
        if len(modules) == 1 and scales[0] is not None and scales[0].shape[0] == 1:
            x, scales = x * scales[0], [None]
        y = linear(x, weights, biases, self.narrow)
        if any(module + ".lora_A.weight" in params for module in modules):
            downs, ups = zip(
                *(self._update(module, x, len(w)) for module, w in zip(modules, weights, strict=True)), strict=True
            )
            y = low_rank(y, x, downs, ups, self.encoder.lora_scaling, self.narrow)
        if any(scale is not None for scale in scales):
            ones = [y.new_ones(len(bias)) if scale is None else scale[:, 0] for scale, bias in zip(scales, biases, strict=True)]
            y = y * torch.cat(ones)
        return y

    def _update(self, module: str, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return LoRA's A and B of a module, of rank 0 where it has none."""
        a, b = (self.params.get(f"{module}.lora_{side}.weight") for side in "AB")
        return (x.new_zeros(0, x.shape[1]), x.new_zeros(width, 0)) if a is None or b is None else (a, b)

    def _dropped(self, x: Tensor) -> Tensor:
        """Apply dropout to states (N, H), with the factors that the padded batch would draw."""
        if not (self.dropout and self.layout.dropout):
            return x
        drawn = F.dropout(x.new_ones(*self.packing.shape, x.shape[1]), self.layout.dropout)
        return x * drawn.flatten(0, 1)[self.packing.slots]

    def _attention_dropout(self, x: Tensor) -> list[Tensor]:
        """Draw the factors of the attention weights of each group."""
        if not (self.dropout and self.layout.attention_dropout):
            return []
        texts, width = self.packing.shape
        drawn = F.dropout(x.new_ones(texts, self.layout.heads, width, width), self.layout.attention_dropout)
        parts = torch.split(drawn[self.packing.order], [group.texts for group in self.packing.groups])
        return [
            part[:, :, : group.width, : group.width].reshape(-1, group.width, group.width)
            for part, group in zip(parts, self.packing.groups, strict=True)
        ]
