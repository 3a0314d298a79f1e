"""Tiny random decoders with a tokenizer of their own, and Llama without its steps in single precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

WORDS = ("a", "loan", "agreement", "how", "do", "i", "appeal", "the", "tenant", "pays")


@pytest.fixture
def double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Llama's norms and softmax in float64; it computes them in float32, which finite differences would see."""
    softmax = torch.nn.functional.softmax

    def norm(self: LlamaRMSNorm, states: torch.Tensor) -> torch.Tensor:
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda values, dim, dtype=None: softmax(values, dim))


def save_decoder(folder: Path, kind: str) -> Path:
    """Write a ``llama`` (starts texts with a token, knows no padding) or a ``gpt2`` (adds no token) with ten words."""
    torch.manual_seed(0)
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    shape = {"vocab_size": len(vocabulary), "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        model = LlamaForCausalLM(LlamaConfig(**shape, **size, num_key_value_heads=1, max_position_embeddings=24))
    else:
        model = GPT2LMHeadModel(GPT2Config(**shape, n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return folder
