"""Adapters: their names, what they compute, how they differentiate, and what is refused."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import refusal
from decoders import double_precision  # noqa: F401
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from tiny import (  # noqa: F401
    finite_difference_error,
    gradient_of,
    law_episodes,
    needs_tiny,
    one_thread,
    random_backbone,
    random_batch,
    random_episode,
    same_bits,
    snapshot,
    tiny_learner,
)
from transformers import (
    AlbertConfig,
    AlbertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from kshot.errors import ConfigError
from kshot.meta import MAML, ProtoNet
from kshot.models import AdapterSpec, Backbone, BackboneSpec, Learner, add_adapter, new_learner
from kshot.models.pooling import POOLINGS
from kshot.training import TrainingConfig, meta_train

KINDS = ("lora", "ia3", "prompt")
STEEP = {"inner_lr": 0.1, "head_lr": 1.0, "inner_steps": 2}
TOLERANCE = 1e-9  # measured: 1.5e-10 and below

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODELS = {
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=24, **QUIET)),
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=1, max_position_embeddings=24)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=24)
    ),
    "roberta": lambda: RobertaModel(
        RobertaConfig(**SMALL, max_position_embeddings=24, pad_token_id=1), add_pooling_layer=False
    ),
    "albert": lambda: AlbertModel(AlbertConfig(**SMALL, embedding_size=8), add_pooling_layer=False),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(
            **SMALL, max_position_embeddings=24, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
        )
    ),
}
QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@cache
def model_of(family: str) -> torch.nn.Module:
    """A random model in float64; not to be changed."""
    if family == "bert":
        return random_backbone().model
    torch.manual_seed(0)
    model = MODELS[family]().double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model.set_attn_implementation("eager")
    return model


def backbone_of(family: str = "bert", pooling: str = "auto") -> Backbone:
    return Backbone(deepcopy(model_of(family)), None, BackboneSpec("random", pooling))


def adapted(kind: str, family: str = "bert", pooling: str = "auto", nudge: float = 0.3, **options) -> Learner:
    """A learner with an adapter whose weights are moved away from their start, and three classes."""
    learner = new_learner(add_adapter(backbone_of(family, pooling), AdapterSpec(kind, **{"rank": 3, "tokens": 4} | options)))
    generator = torch.Generator().manual_seed(2)

    def draw(value: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(value.shape, generator=generator, dtype=value.dtype)

    params = {n: v.detach() + (draw(v, nudge) if n.startswith("adapter.") else 0) for n, v in learner.params.items()}
    params |= {"head.weight": draw(torch.zeros(3, 16).double(), 0.5), "head.bias": draw(torch.zeros(3).double(), 0.5)}
    return learner.with_params({name: value.requires_grad_() for name, value in params.items()})


def adapter_names(learner: Learner) -> list[str]:
    return [name for name in learner.params if name.startswith("adapter.")]


def inner_layer(name: str) -> bool:
    """Whether (IA)^3 scales a layer's input: the last of its feed-forward part."""
    return name.endswith((".mlp.c_proj", ".down_proj", "0.output.dense", "1.output.dense", "ffn.lin2"))


# --- names ------------------------------------------------------------------------------------------------------------------

LAYERS = {
    "bert": [
        *(f"attention.self.{part}" for part in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")],
    "distilbert": [f"attention.{part}_lin" for part in ("q", "k", "v", "out")] + ["ffn.lin1", "ffn.lin2"],
    "modernbert": ["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"],
}
PREFIXES = {"bert": "encoder.layer", "gpt2": "h", "llama": "layers", "distilbert": "transformer.layer", "modernbert": "layers"}


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_names_do_not_depend_on_the_wrapping(kind, family):
    plain, learner = new_learner(backbone_of(family)), adapted(kind, family)

    base = [name for name in learner.params if not name.startswith("adapter.")]
    assert set(base) == set(plain.params)
    layers = [f"adapter.{PREFIXES[family]}.{index}.{layer}" for index in (0, 1) for layer in LAYERS[family]]
    ends = {"lora": (".lora_A.weight", ".lora_B.weight"), "ia3": (".ia3_l",)}
    expected = ["adapter.prompt.weight"] if kind == "prompt" else [layer + end for layer in layers for end in ends[kind]]
    assert sorted(adapter_names(learner)) == sorted(expected)
    assert all(torch.equal(learner.params[name], value) for name, value in plain.params.items() if "head" not in name)
    assert {value.dtype for value in learner.params.values()} == {torch.float64}


@pytest.mark.parametrize("family", ["roberta", "albert"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_families_take_adapters(kind, family):
    learner, batch = adapted(kind, family), random_batch(0, (2, 2))
    batch = replace(batch, input_ids=batch.input_ids.clamp_min(3))
    grads = gradient_of(learner.loss(learner.start(3), batch), learner.params)

    assert all(grads[name].any() for name in adapter_names(learner))


def test_shapes():
    lora, ia3, prompt = (adapted(kind).params for kind in KINDS)

    layer = "adapter.encoder.layer.1."
    assert lora[f"{layer}intermediate.dense.lora_A.weight"].shape == (3, 16)
    assert lora[f"{layer}intermediate.dense.lora_B.weight"].shape == (24, 3)
    assert ia3[f"{layer}intermediate.dense.ia3_l"].shape == (24, 1)
    assert ia3[f"{layer}output.dense.ia3_l"].shape == (1, 24)
    assert prompt["adapter.prompt.weight"].shape == (4, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_given_backbone_stays_as_it_is_and_shares_its_weights(kind):
    backbone = backbone_of()
    before, modules = snapshot(backbone.parameters()), [type(module) for module in backbone.model.modules()]

    added = add_adapter(backbone, AdapterSpec(kind))

    assert same_bits(before, backbone.parameters())
    assert [type(module) for module in backbone.model.modules()] == modules
    assert all(value.requires_grad for value in backbone.parameters().values())
    assert all(added.parameters()[name] is value for name, value in backbone.parameters().items())
    assert backbone.adapter is None
    assert added.adapter.spec.kind == kind
    assert add_adapter(backbone, AdapterSpec("none")) is backbone


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_is_decided_by_its_seed_alone(kind):
    starts = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        starts.append(add_adapter(backbone_of(), AdapterSpec(kind), seed).parameters())
        assert torch.equal(before, torch.get_rng_state())

    assert same_bits(starts[0], starts[1])
    assert same_bits(starts[0], starts[2]) == (kind == "ia3")  # which starts at ones


# --- what they compute ------------------------------------------------------------------------------------------------------


def states_of(learner: Learner, batch) -> torch.Tensor:
    return learner.backbone.states(learner.params, batch.input_ids, batch.mask)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_an_adapter_equals_merged_weights_by_hand(kind, family):
    learner, plain, batch = adapted(kind, family, alpha=5), new_learner(backbone_of(family)), random_batch(0, (3, 3))
    assert learner.backbone.adapter.scaling == 5 / 3
    merged = dict(plain.params)
    for name in list(merged):
        layer = name.removeprefix("backbone.").rpartition(".")[0]
        if kind == "lora" and f"adapter.{layer}.lora_A.weight" in learner.params and name.endswith("weight"):
            a, b = (learner.params[f"adapter.{layer}.lora_{part}.weight"] for part in "AB")
            delta = 5 / 3 * b @ a
            merged[name] = merged[name] + (delta.T if family == "gpt2" else delta)
        elif kind == "ia3" and f"adapter.{layer}.ia3_l" in learner.params:
            scale = learner.params[f"adapter.{layer}.ia3_l"].flatten()
            if name.endswith("weight"):
                on_rows = inner_layer(layer) == (family == "gpt2")
                merged[name] = merged[name] * (scale[:, None] if on_rows else scale)
            elif not inner_layer(layer):
                merged[name] = merged[name] * scale

    expected = states_of(plain.with_params(merged), batch)

    torch.testing.assert_close(states_of(learner, batch), expected, rtol=1e-10, atol=1e-11)
    vectors = learner.backbone.pool(expected, batch.mask)  # what a learner works with, by the packed pass where there is one
    torch.testing.assert_close(learner.features(learner.params, batch), vectors, rtol=1e-10, atol=1e-11)
    assert not torch.allclose(expected, states_of(plain, batch), atol=0.01)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "roberta"])
def test_a_prompt_stands_before_the_words_and_pooling_does_not_see_it(family, pooling):
    learner, batch = adapted("prompt", family, pooling), random_batch(0, (4, 3))
    batch = replace(batch, input_ids=batch.input_ids.clamp_min(3))
    model = learner.backbone.model
    alone = []
    for ids, mask in zip(batch.input_ids, batch.mask, strict=True):
        words = model.get_input_embeddings()(ids[mask.bool()])
        inputs = torch.cat([learner.params["adapter.prompt.weight"], words])[None]
        states = model(inputs_embeds=inputs).last_hidden_state[0, 4:]
        alone.append({"mean": states.mean(0), "cls": states[0], "max": states.amax(0), "last": states[-1]}[pooling])

    torch.testing.assert_close(learner.features(learner.params, batch), torch.stack(alone), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_pefts_own_forward_is_ours(kind, family):
    learner, batch = adapted(kind, family), random_batch(0, (3, 3))
    layers = [name.removeprefix("adapter.").rpartition(".lora_A")[0] for name in adapter_names(learner) if "lora_A" in name]
    layers += [name.removeprefix("adapter.").removesuffix(".ia3_l") for name in adapter_names(learner) if "ia3_l" in name]
    turned = {"fan_in_fan_out": family == "gpt2", "target_modules": layers, "task_type": "FEATURE_EXTRACTION"}
    config = {
        "lora": lambda: LoraConfig(r=3, lora_alpha=16, **turned),
        "ia3": lambda: IA3Config(**turned, feedforward_modules=[layer for layer in layers if inner_layer(layer)]),
        "prompt": lambda: PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4),
    }[kind]()
    theirs = get_peft_model(backbone_of(family).model, config, autocast_adapter_dtype=False).double()
    mine = {re.sub(r"^adapter\.", "", name): value for name, value in learner.params.items()}
    copied = 0
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            short = name.replace("base_model.model.", "").replace(".default", "")
            if kind == "prompt" and name.startswith("prompt_encoder."):
                short = "prompt.weight"
            if short in mine:
                parameter.copy_(mine[short])
                copied += 1
    assert copied == len(adapter_names(learner))

    with torch.no_grad():
        states = theirs.eval()(input_ids=batch.input_ids, attention_mask=batch.mask).last_hidden_state
    states = states[:, 4:] if kind == "prompt" else states

    real = batch.mask.bool()
    torch.testing.assert_close(states_of(learner, batch)[real], states[real], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("spec", [AdapterSpec("ia3"), AdapterSpec("lora", init_std=0)], ids=lambda spec: spec.kind)
def test_neutral_starts_change_nothing(spec):
    backbone, batch = backbone_of(), random_batch(0, (3, 3))

    plain, added = new_learner(backbone), new_learner(add_adapter(backbone, spec))

    assert torch.equal(states_of(added, batch), states_of(plain, batch))


def test_the_start_of_lora_has_its_spread():
    a, b = AdapterSpec("lora", rank=16), AdapterSpec("lora", rank=16, init_std=0.5)
    for spec in (a, b):
        params = add_adapter(backbone_of(), spec).parameters()
        values = torch.cat([value.flatten() for name, value in params.items() if "lora_B" in name])
        assert float(values.detach().std()) == pytest.approx(spec.init_std, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_can_be_switched(kind):
    learner, batch = adapted(kind), random_batch(0, (3, 3))
    results = []
    for twice in (True, False, True):
        learner.backbone.use_attention(twice)
        assert learner.backbone.model.config._attn_implementation == ("eager" if twice else "sdpa")
        results.append(learner.features(learner.params, batch).detach())

    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
    assert torch.equal(results[0], results[2])


def test_dropout_follows_the_learner():
    learner, batch = adapted("lora", dropout=0.5), random_batch(0, (2, 2))
    assert torch.equal(*(learner.features(learner.params, batch) for _ in range(2)))

    loud = replace(learner, dropout=True)
    assert not torch.equal(*(loud.features(loud.params, batch) for _ in range(2)))
    assert torch.equal(*(learner.features(learner.params, batch) for _ in range(2)))


def test_targets_by_their_endings():
    learner = adapted("lora", targets=("query", "attention.output.dense"))

    assert {name.split(".", 4)[4].rpartition(".lora")[0] for name in adapter_names(learner)} == {
        "attention.self.query",
        "attention.output.dense",
    }
    assert len(adapter_names(learner)) == 2 * 2 * 2


def test_a_prompt_takes_positions_from_the_text():
    backbone = backbone_of()
    assert backbone.max_length == 24
    assert add_adapter(backbone, AdapterSpec("prompt", tokens=4)).max_length == 20
    assert add_adapter(backbone, AdapterSpec("lora")).max_length == 24
    short = replace(backbone, spec=BackboneSpec("random", max_length=15))
    assert add_adapter(short, AdapterSpec("prompt", tokens=4)).max_length == 15
    assert add_adapter(backbone_of("roberta"), AdapterSpec("prompt", tokens=4)).max_length == 24 - 2 - 4


# --- meta-gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("family", "fast"), [("bert", True), ("bert", False), ("gpt2", True), ("llama", True)])
@pytest.mark.parametrize("adapts", [*KINDS, "lora+bias"])
def test_the_meta_gradient_through_an_adapter_is_the_derivative_of_the_meta_loss(adapts, family, fast):
    learner, episode = adapted(adapts.split("+")[0], family, nudge=0.1, alpha=3), random_episode(counts=(1, 2, 3))
    learner = replace(learner, fast=fast)
    algorithm = MAML(**STEEP, adapts=adapts)
    loss, _ = algorithm.meta_loss(learner, [episode])
    gradient = gradient_of(loss, learner.params)

    error = finite_difference_error(
        lambda params: algorithm.meta_loss(learner.with_params(params), [episode])[0], learner.params, gradient
    )
    own = finite_difference_error(
        lambda params: algorithm.meta_loss(learner.with_params(params), [episode])[0],
        learner.params,
        {name: gradient[name] for name in adapter_names(learner)},
    )

    print(f"finite-difference errors {error:.1e} {own:.1e}")
    assert max(error, own) < TOLERANCE
    moved = algorithm.adapt(learner, episode.support)
    assert {name for name in moved if not name.endswith(".bias")} == {*adapter_names(learner), "head.weight"}


def test_a_learns_only_where_b_is_not_zero():
    episode = random_episode()
    norms = {}
    for init_std in (0.0, 0.02):
        learner = adapted("lora", nudge=0, init_std=init_std)
        loss, _ = ProtoNet().meta_loss(learner, [episode])
        gradient = gradient_of(loss, learner.params)
        norms[init_std] = [float(gradient[name].norm()) for name in adapter_names(learner) if "lora_A" in name]
        assert all(gradient[name].any() for name in adapter_names(learner) if "lora_B" in name)

    assert not any(norms[0.0])
    assert all(norms[0.02])


# --- meta-training ----------------------------------------------------------------------------------------------------------


@needs_tiny
@pytest.mark.parametrize("algorithm", [ProtoNet(), MAML(**STEEP, adapts="lora")], ids=["protonet", "maml"])
def test_what_is_not_trained_stays_bit_for_bit(algorithm):
    learner = new_learner(add_adapter(tiny_learner().backbone, AdapterSpec("lora", rank=2)))
    before = snapshot(learner.params)
    episodes, _ = law_episodes()

    after = meta_train(learner, algorithm, episodes, [], TrainingConfig(steps=2, lr=1e-2, trains="lora")).learner.params

    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed >= {name for name in before if ".lora_" in name}
    assert changed <= {name for name in before if ".lora_" in name or name.startswith("head.")}


# --- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"kind": "loar"},
            "adapter.kind is 'loar'. Did you mean 'lora'? Expected one of auto, none, lora, ia3, prompt.",
        ),
        ({"rank": 0}, "adapter.rank is 0. At least 1 is expected."),
        ({"tokens": 0}, "adapter.tokens is 0. At least 1 is expected."),
        ({"alpha": 0.0}, "adapter.alpha is 0.0. A number above 0 is expected."),
        ({"alpha": float("nan")}, "adapter.alpha is nan. A number above 0 is expected."),
        ({"init_std": -1.0}, "adapter.init_std is -1.0. At least 0 is expected."),
        ({"dropout": 1.0}, "adapter.dropout is 1.0. A share of at least 0 and below 1 is expected."),
        ({"targets": ()}, "adapter.targets is empty. Endings of layers' names are expected, or null for all layers."),
    ],
)
def test_wrong_specifications(values, sentence):
    assert refusal(lambda: AdapterSpec(**values), ConfigError) == sentence


def test_auto_is_what_the_selectors_name():
    auto = AdapterSpec(rank=2)

    assert auto.named_by("all", "lora").kind == auto.named_by("head+lora", "all").kind == "lora"
    assert auto.named_by("ia3+bias", "ia3") == AdapterSpec("ia3", rank=2)
    assert auto.named_by("re:lora", "").kind == auto.named_by().kind == "none"
    assert AdapterSpec("prompt").named_by("lora").kind == "prompt"
    assert refusal(lambda: auto.named_by("lora", "ia3"), ConfigError) == (
        "The selectors name the adapters lora and ia3. One kind of adapter at a time is expected."
    )
    assert refusal(lambda: add_adapter(backbone_of(), auto), ConfigError) == (
        "adapter.kind is 'auto', and no selector names an adapter here. Expected none, lora, ia3, prompt."
    )


def test_a_second_adapter():
    once = add_adapter(backbone_of(), AdapterSpec("ia3"))

    assert refusal(lambda: add_adapter(once, AdapterSpec("lora")), ConfigError) == (
        "The backbone already has an adapter (ia3). One is expected at most. Load it anew."
    )


def test_unknown_targets():
    sentence = refusal(lambda: add_adapter(backbone_of(), AdapterSpec("lora", targets=("key", "qery"))), ConfigError)

    assert sentence == (
        "adapter.targets has 'qery', and no linear layer of the backbone ends so. Did you mean 'query'? Layers end in: query, "
        "self.query, attention.self.query, key, self.key, attention.self.key, value, self.value, attention.self.value, dense, "
        "output.dense, attention.output.dense, intermediate.dense."
    )


def test_a_backbone_without_linear_blocks():
    backbone = backbone_of()
    del backbone.model.encoder

    assert refusal(lambda: add_adapter(backbone, AdapterSpec("ia3")), ConfigError) == (
        "The backbone has no linear layers in numbered blocks. Name some in adapter.targets. It has: none."
    )


def test_a_prompt_that_leaves_no_room():
    assert refusal(lambda: add_adapter(backbone_of(), AdapterSpec("prompt", tokens=22)), ConfigError) == (
        "adapter.tokens is 22, which leaves 2 positions of the backbone to the text. At least 3 are expected. "
        "Set a smaller adapter.tokens."
    )
