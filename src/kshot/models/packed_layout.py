"""How the encoders of the BERT family name their parameters and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kshot.models.ops import ACTIVATIONS


@dataclass(frozen=True)
class Names:
    """Where an encoder keeps its parts; ``{}`` stands for a layer's number.

    Args:
        token_type: the token type embeddings, or None where a model has none.
        layer: what the names of a layer's modules start with.
        projections: queries, keys and values.
        out: what follows the heads.
        attention_norm: the LayerNorm after attention.
        up: the feed-forward network's first product.
        down: its second.
        output_norm: the LayerNorm after it.
        counts_from_padding: whether positions start at the padding index + 1.
    """

    token_type: str | None
    layer: str
    projections: tuple[str, str, str]
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str
    counts_from_padding: bool = False
    word: str = "embeddings.word_embeddings"
    position: str = "embeddings.position_embeddings"
    norm: str = "embeddings.LayerNorm"


def _bert(counts_from_padding: bool) -> Names:
    return Names(
        token_type="embeddings.token_type_embeddings",
        layer="encoder.layer.{}.",
        projections=("attention.self.query", "attention.self.key", "attention.self.value"),
        out="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        output_norm="output.LayerNorm",
        counts_from_padding=counts_from_padding,
    )


_DISTILBERT = Names(
    token_type=None,
    layer="transformer.layer.{}.",
    projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
)
_BY_CLASS = {
    "BertModel": _bert(False),
    "RobertaModel": _bert(True),
    "XLMRobertaModel": _bert(True),
    "DistilBertModel": _DISTILBERT,
}


@dataclass(frozen=True)
class Layout:
    """What a forward pass has to know of a model besides its parameters.

    Args:
        names: where its parts are.
        layers: how many layers it has.
        hidden: H, the width of its states.
        heads: how many attention heads share H.
        activation: of the feed-forward network.
        eps: of every LayerNorm.
        dropout: the probability for states.
        attention_dropout: the probability for attention weights.
        first_position: the position of a text's first token.
    """

    names: Names
    layers: int
    hidden: int
    heads: int
    activation: str
    eps: float
    dropout: float
    attention_dropout: float
    first_position: int


def layout_of(model: Any) -> Layout | None:
    """Return the layout of a Hugging Face encoder, or None where it is not of the plain BERT family."""
    names, config = _BY_CLASS.get(type(model).__name__), model.config
    if names is None or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return None
    distil = names is _DISTILBERT
    activation = config.activation if distil else config.hidden_act
    if not (isinstance(activation, str) and activation in ACTIVATIONS):
        return None
    return Layout(
        names=names,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        activation=activation,
        eps=1e-12 if distil else config.layer_norm_eps,
        dropout=config.dropout if distil else config.hidden_dropout_prob,
        attention_dropout=config.attention_dropout if distil else config.attention_probs_dropout_prob,
        first_position=config.pad_token_id + 1 if names.counts_from_padding else 0,
    )
