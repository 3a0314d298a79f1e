"""The learner (base-learner): backbone and head for classification, pure in its parameters.

Nothing here holds the state of an adaptation: every function takes the parameters that it is evaluated at, so that fast
weights, finite differences and vectorised tasks all use the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.models.backbones import Backbone
from kshot.models.batch import Batch, EncodedEpisode, by_length, pad
from kshot.models.select import BACKBONE, HEAD
from kshot.models.tokens import TokenStore, token_store
from kshot.tasks import Corpus, Episode, Examples

Params = dict[str, Tensor]
_TOKENS_A_PASS = 1_024


@dataclass(frozen=True)
class Learner:
    """Backbone and linear head, with the meta-parameters that they start from.

    The head's start is one shared class vector, copied for every class of a task, so that one set of meta-parameters
    serves any number of classes and no class is preferred (Ye & Chao 2022, "How to train your MAML to excel in few-shot
    classification", arXiv:2106.16245, section 5).

    Args:
        backbone: the encoder and tokenizer.
        params: the meta-parameters by name: ``backbone.*``, ``head.*``, and an algorithm's own ``meta.*``.
        dropout: whether the backbone's dropout is active.
        stores: token ids of corpora, by fingerprint.
    """

    backbone: Backbone
    params: Params
    dropout: bool = False
    stores: dict[str, TokenStore] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(iter(self.params.values())).device

    @property
    def _budget(self) -> int:
        """Padded tokens a forward pass: few on a processor, where padding costs time and small products are cheap."""
        return _TOKENS_A_PASS if self.device.type == "cpu" else 64 * _TOKENS_A_PASS

    def start(self, ways: int) -> Params:
        """Return the parameters with the head's shared class vector copied for ``ways`` classes: weight (N, H), bias (N,)."""
        weight, bias = self.params["head.weight"], self.params["head.bias"]
        return self.params | {"head.weight": weight.expand(ways, -1), "head.bias": bias.expand(ways)}

    def features(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return text vectors (B, H)."""
        if batch.features is not None:
            return batch.features
        assert batch.input_ids is not None and batch.mask is not None
        self.backbone.model.train(self.dropout)
        lengths = batch.mask.sum(1).tolist()
        groups = by_length(lengths, self._budget)
        vectors = []
        for group in groups:
            ids, mask = (tokens[group, : lengths[group[-1]]] for tokens in (batch.input_ids, batch.mask))
            vectors.append(self.backbone.pool(self.backbone.states(params, ids, mask), mask))
        return torch.cat(vectors)[_back(groups)]

    def logits(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the head's class scores (B, N), of text vectors of unit length, so that inner rates suit any backbone."""
        z = F.normalize(self.features(params, batch), dim=-1)
        return F.linear(z, params["head.weight"], params["head.bias"])

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        return F.cross_entropy(self.logits(params, batch), batch.labels)

    def featurised(self, batch: Batch) -> Batch:
        """Return the batch with its texts encoded by the meta-parameters, differentiably where gradients are on."""
        return batch.with_features(self.features(self.params, batch))

    def batch(self, examples: Examples, ways: int, corpus: str = "") -> Batch:
        """Return the examples as a padded batch; token ids come from the store of their corpus where it is open."""
        store = self.stores.get(corpus) if examples.rows else None
        tokens = self.backbone.tokenize(list(examples.texts)) if store is None else store.rows(examples.rows)
        input_ids, mask = pad(tokens, self.backbone.tokenizer.pad_token_id or 0)
        return Batch(torch.tensor(examples.labels, dtype=torch.long), ways, input_ids, mask).to(self.device)

    def encode(self, episode: Episode) -> EncodedEpisode:
        """Return an episode's support and query batches."""
        support, query = (self.batch(side, episode.ways, episode.corpus) for side in (episode.support, episode.query))
        return EncodedEpisode(support, query)

    @torch.no_grad()
    def embed(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the vectors (n, H) of texts given as token ids, batched by length so that little is padded."""
        quiet, padding = replace(self, dropout=False), self.backbone.tokenizer.pad_token_id or 0
        groups = by_length([len(ids) for ids in tokens], self._budget)
        vectors = [torch.empty(0, self.backbone.hidden_size, device=self.device)]
        for group in groups:
            ids, mask = pad([tokens[index] for index in group], padding)
            batch = Batch(torch.zeros(len(ids), dtype=torch.long), 1, ids, mask).to(self.device)
            vectors.append(quiet.features(self.params, batch))
        return torch.cat(vectors)[_back(groups)]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors (n, H) of texts."""
        return self.embed(self.backbone.tokenize(list(texts)) if texts else [])

    def with_stores(self, corpora: Sequence[Corpus]) -> Learner:
        """Return the learner with the token ids of these corpora at hand, tokenised now or in an earlier process."""
        return replace(self, stores={corpus.fingerprint: token_store(corpus, self.backbone) for corpus in corpora})

    def with_params(self, params: Mapping[str, Tensor]) -> Learner:
        """Return the learner at other parameters."""
        return replace(self, params=dict(params))


def _back(groups: Sequence[Sequence[int]]) -> Tensor:
    """Return the positions that bring results by group back into the original order."""
    return torch.tensor([index for group in groups for index in group], dtype=torch.long).argsort()


def new_learner(backbone: Backbone, device: str | torch.device = "cpu") -> Learner:
    """Return a learner that starts at the pretrained weights, with a head whose shared class vector is zero."""
    hidden = backbone.hidden_size
    dtype = next(backbone.model.parameters()).dtype
    backbone.model.to(device)
    params = {BACKBONE + name: parameter.detach().clone() for name, parameter in backbone.model.named_parameters()}
    params[HEAD + "weight"] = torch.zeros(1, hidden, dtype=dtype, device=device)
    params[HEAD + "bias"] = torch.zeros(1, dtype=dtype, device=device)
    return Learner(backbone, {name: value.requires_grad_() for name, value in params.items()})
