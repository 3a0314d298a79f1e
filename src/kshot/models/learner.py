"""The learner (base-learner): backbone and head, pure in its parameters; this one classifies texts.

Those of other kinds of task (`kshot.models.kinds`) differ in what they make of examples: units, their vectors, loss and score.

Nothing here holds the state of an adaptation: every function takes the parameters that it is evaluated at, so that fast
weights, finite differences and vectorised tasks all use the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.models.backbones import Backbone
from kshot.models.batch import Batch, EncodedEpisode, by_length, pad
from kshot.models.packed_batch import Packing
from kshot.models.select import ADAPTER, BACKBONE, HEAD
from kshot.models.spans import Placed
from kshot.models.tokens import TokenStore, token_store
from kshot.models.vectors import VectorStore, vector_store
from kshot.tasks import Corpus, Episode, Examples

Params = dict[str, Tensor]
T = TypeVar("T")
_PLAIN_TOKENS = 1_024  # padded, a pass on a processor: padding costs time there, and small products are cheap
_PACKED_TOKENS = 8_192


@dataclass(frozen=True)
class _Pass:
    """Some rows of a batch that go through the encoder together."""

    rows: list[int]
    input_ids: Tensor
    mask: Tensor
    packing: Packing | None


@dataclass(frozen=True)
class Learner:
    """Backbone and linear head, with the meta-parameters that they start from.

    The head's start is one shared class vector, copied for every class of a task, so that one set of meta-parameters
    serves any number of classes and no class is preferred (Ye & Chao 2022, "How to train your MAML to excel in few-shot
    classification", arXiv:2106.16245, section 5).

    Args:
        backbone: the encoder and tokenizer.
        params: the meta-parameters by name: ``backbone.*``, ``adapter.*``, ``head.*``, and an algorithm's own ``meta.*``.
        dropout: whether the backbone's dropout is active.
        stores: token ids of corpora, by fingerprint.
        vectors: text vectors of corpora, by fingerprint, where the backbone stays as it is.
        fast: whether to use the packed forward pass where the backbone has one; it is the same function.
        precision: ``fp32``, or ``bf16`` for products of rounded factors.
        names: whether the labels' names are support examples of their labels.
        untouched: the backbone's parameters before meta-training, where a task may go back to them.
    """

    backbone: Backbone
    params: Params
    dropout: bool = False
    stores: dict[str, TokenStore] = field(default_factory=dict)
    vectors: dict[str, VectorStore] = field(default_factory=dict)
    fast: bool = True
    precision: str = "fp32"
    names: bool = False
    untouched: Params | None = None
    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    parts: ClassVar[int] = 1  # how many times the backbone's width a unit's vector has; 0 for kinds without a head
    heads: ClassVar[int] = 1  # vectors that the head starts from
    head: ClassVar[str] = ""  # what the backbone is loaded with; see `kshot.models.backbones.load_backbone`
    labelled: ClassVar[bool] = True  # whether it tells labels apart
    whole_vocabulary: ClassVar[bool] = False  # whether the rows of all words are needed, whatever the texts

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(iter(self.params.values())).device

    def start(self, ways: int) -> Params:
        """Return the parameters with the head's shared class vector copied for ``ways`` classes: weight (N, H), bias (N,)."""
        if not self.labelled:  # a head, if any, is the same for all tasks
            return dict(self.params)
        weight, bias = self.params["head.weight"], self.params["head.bias"]
        return self.params | {"head.weight": weight.expand(ways, -1).contiguous(), "head.bias": bias.expand(ways).contiguous()}

    def features(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the vectors of the units (B, H): of texts, or of what the batch's spans make of them."""
        if batch.features is not None:
            return batch.features
        passes = self._passes(batch)
        below = batch.states or (None,) * len(passes)
        if batch.spans is not None:
            placed = (self._placed(params, *both, batch.first_layer) for both in zip(passes, below, strict=True))
            return batch.spans.pooled(placed)
        vectors = [self._forward(params, *both, batch.first_layer) for both in zip(passes, below, strict=True)]
        in_order = len(passes) == 1 and passes[0].rows == sorted(passes[0].rows)
        return vectors[0] if in_order else torch.cat(vectors)[_back([one.rows for one in passes])]

    def lowered(self, batch: Batch, moving: Iterable[str]) -> Batch:
        """Return the batch with the layers below the lowest that moves applied, differentiably where gradients are on.

        The same batch where there is nothing below, where each step draws its own dropout, and without the packed forward.
        """
        packed = self.backbone.packed
        first = 0 if packed is None or self.dropout else packed.lowest_layer(_module_names(dict.fromkeys(moving)))
        passes = self._passes(batch) if first and batch.features is None else []
        if packed is None or not passes or any(one.packing is None for one in passes):
            return batch
        names = _module_names(self.params)
        packings = [one.packing for one in passes if one.packing is not None]
        states = [packed.states(names, packing, precision=self.precision, last_layer=first) for packing in packings]
        return batch.with_states(tuple(states), first)

    def _forward(self, params: Mapping[str, Tensor], one: _Pass, states: Tensor | None, first_layer: int) -> Tensor:
        """Return the text vectors of one pass: by the packed forward where there is one, by the model's own elsewhere."""
        packed = self.backbone.packed
        if packed is not None and one.packing is not None:
            options = self._packed_options(states, first_layer)
            return packed.features(_module_names(params), one.packing, **options)
        return self.backbone.pool(self._token_states(params, one), one.mask)

    def _placed(self, params: Mapping[str, Tensor], one: _Pass, states: Tensor | None, first_layer: int) -> Placed:
        """Return the token states of one pass, by the same forward pass."""
        packed, width = self.backbone.packed, one.input_ids.shape[1]
        if packed is not None and one.packing is not None:
            found = packed.states(_module_names(params), one.packing, **self._packed_options(states, first_layer))
            return Placed(one.rows, width, found, one.packing.slots)
        return Placed(one.rows, width, self._token_states(params, one).flatten(0, 1))

    def _packed_options(self, states: Tensor | None, first_layer: int) -> dict[str, Any]:
        return {"dropout": self.dropout, "precision": self.precision, "first_layer": first_layer, "states": states}

    def _token_states(self, params: Mapping[str, Tensor], one: _Pass) -> Tensor:
        self.backbone.model.train(self.dropout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            states = self.backbone.states(params, one.input_ids, one.mask)
        return states.to(next(iter(params.values())).dtype)

    def _passes(self, batch: Batch) -> list[_Pass]:
        """Return a batch's passes, worked out once."""
        key = f"passes, fast={self.fast}"
        if key not in batch.memo:
            batch.memo[key] = self._divided(batch)
        passes: list[_Pass] = batch.memo[key]
        return passes

    def _divided(self, batch: Batch) -> list[_Pass]:
        """Divide a batch into passes of texts of like length."""
        assert batch.input_ids is not None and batch.mask is not None
        packed = self.backbone.packed if self.fast else None
        budget = (_PACKED_TOKENS if packed else _PLAIN_TOKENS) * (1 if self.device.type == "cpu" else 64)
        lengths = batch.mask.sum(1).tolist()
        whole = sum(lengths) <= budget and packed is not None
        passes = []
        for rows in [list(range(len(lengths)))] if whole else by_length(lengths, budget):
            width = max(lengths[row] for row in rows) if rows else 0
            ids, mask = (tokens[rows, :width] for tokens in (batch.input_ids, batch.mask))
            passes.append(_Pass(rows, ids, mask, packed.pack(ids, mask) if packed else None))
        return passes

    def logits(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the head's class scores (B, N), of text vectors of unit length, so that inner rates suit any backbone."""
        z = F.normalize(self.features(params, batch), dim=-1)
        return F.linear(z, params["head.weight"], params["head.bias"])

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return self.loss_of(self.logits(params, batch), batch)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of class scores (B, N), a scalar."""
        return F.cross_entropy(logits, batch.labels)

    def score(self, logits: Tensor, batch: Batch) -> float:
        """Return how good the answers of class scores (B, N) are, by what the kind is measured by, from 0 to 1."""
        return self.score_of(logits.argmax(-1), batch)

    def score_of(self, classes: Tensor, batch: Batch) -> float:
        """Return how good answers (B,) are, from 0 to 1."""
        return float((classes == batch.labels).double().mean())

    def class_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the classes of a task with these labels."""
        return tuple(labels)

    def featurised(self, batch: Batch) -> Batch:
        """Return the batch with its texts encoded by the meta-parameters, differentiably where gradients are on.

        And by the untouched ones, where there are any.
        """
        encoded = batch.with_features(self.features(self.params, batch))
        if (before := self.before()) is None or batch.features is not None:
            return encoded
        with torch.no_grad():
            return replace(encoded, untouched=before.features(before.params, batch))

    def before(self) -> Self | None:
        """Return the learner as it was before meta-training; None where that was not kept."""
        if self.untouched is None:
            return None
        return replace(self, params=self.params | self.untouched, untouched=None, vectors={})

    def annotated(self, examples: Examples, labels: Sequence[str]) -> Batch:
        """Return the examples as a batch without tokens or vectors.

        Args:
            examples: the examples.
            labels: those of the task or episode.
        """
        numbers = torch.tensor(examples.labels, dtype=torch.long)
        return Batch(numbers, len(labels), names=examples.names, texts=examples.texts)

    def batch(self, examples: Examples, labels: Sequence[str], corpus: str = "") -> Batch:
        """Return the examples as a batch: vectors or token ids from the stores of their corpus, where they are open."""
        rows, batch = examples.rows, self.annotated(examples, labels)
        if corpus in self.vectors and rows:
            stored = self.vectors[corpus].rows(rows).to(self.device)
            return batch.to(self.device).with_features(torch.cat([stored, self.embed_texts(examples.texts[len(rows) :])]))
        known = self.stores[corpus].rows(rows) if corpus in self.stores else []
        input_ids, mask = pad(known + self._tokens(examples.texts[len(known) :]), self.backbone.tokenizer.pad_token_id or 0)
        return replace(batch, input_ids=input_ids, mask=mask).to(self.device)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.backbone.tokenize(list(texts)) if texts else []

    def encode(self, episode: Episode) -> EncodedEpisode:
        """Return an episode's support and query batches."""
        episode = episode.named() if self.names else episode
        support, query = (self.batch(side, episode.labels, episode.corpus) for side in (episode.support, episode.query))
        return EncodedEpisode(support, query)

    @torch.no_grad()
    def embed(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the vectors (n, H) of texts given as token ids, batched by length so that little is padded."""
        quiet, padding = replace(self, dropout=False), self.backbone.tokenizer.pad_token_id or 0
        budget = _PLAIN_TOKENS if self.device.type == "cpu" else 64 * _PLAIN_TOKENS
        groups = by_length([len(ids) for ids in tokens], budget)
        vectors = [torch.empty(0, self.backbone.hidden_size, device=self.device)]
        for group in groups:
            ids, mask = pad([tokens[index] for index in group], padding)
            batch = Batch(torch.zeros(len(ids), dtype=torch.long), 1, ids, mask).to(self.device)
            vectors.append(quiet.features(self.params, batch))
        return torch.cat(vectors)[_back(groups)]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors (n, H) of texts."""
        return self.embed(self._tokens(texts))

    def embed_units(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the vectors of all units of texts, and how many each text has."""
        return self.embed_texts(texts), [1] * len(texts)

    def with_stores(self, corpora: Sequence[Corpus]) -> Self:
        """Return the learner with the token ids of these corpora at hand, tokenised now or in an earlier process."""
        return replace(self, stores={corpus.fingerprint: token_store(corpus, self.backbone) for corpus in corpora})

    def with_vectors(self, most: int) -> Self:
        """Return the learner with the text vectors of its corpora at hand, encoded now or in an earlier process.

        Args:
            most: a corpus with more rows is left: encoding it whole would cost more than encoding what is used of it.
        """
        chosen = {corpus: tokens for corpus, tokens in self.stores.items() if len(tokens) <= most}
        return replace(self, vectors={corpus: vector_store(corpus, tokens, self) for corpus, tokens in chosen.items()})

    def with_params(self, params: Mapping[str, Tensor]) -> Self:
        """Return the learner at other parameters."""
        return replace(self, params=dict(params))


def _module_names(params: Mapping[str, T]) -> dict[str, T]:
    """Return what is given by a learner's names by those of the backbone's modules."""
    return {name.removeprefix(BACKBONE).removeprefix(ADAPTER): value for name, value in params.items()}


def _back(groups: Sequence[Sequence[int]]) -> Tensor:
    """Return the positions that bring results by group back into the original order."""
    return torch.tensor([index for group in groups for index in group], dtype=torch.long).argsort()


def new_learner(backbone: Backbone, device: str | torch.device = "cpu", kind: type[Learner] = Learner) -> Learner:
    """Return a learner that starts at the pretrained weights, with a head whose shared class vector is zero.

    Args:
        backbone: the encoder or decoder.
        device: where to compute.
        kind: the learner of a kind of task; see `kshot.models.kinds`.
    """
    hidden = kind.parts * backbone.hidden_size
    dtype = next(backbone.model.parameters()).dtype
    backbone.model.to(device)
    params = {name: parameter.detach().to(device, copy=True) for name, parameter in backbone.parameters().items()}
    if hidden:
        params[HEAD + "weight"] = torch.zeros(kind.heads, hidden, dtype=dtype, device=device)
        params[HEAD + "bias"] = torch.zeros(kind.heads, dtype=dtype, device=device)
    return kind(backbone, {name: value.requires_grad_() for name, value in params.items()})
