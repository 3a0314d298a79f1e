"""What is computed: the sizes, the task tensors, and the model that plain autograd and every peer share."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

LORA: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": ["query", "key", "value", "dense"],
    "bias": "none",
}
HEAD_SCALE = 0.25  # of the head's start: with unit-length features, large enough that the second derivatives are felt
ADAPTER_SCALE = 0.02


@dataclass(frozen=True)
class Workload:
    """One meta-step.

    Args:
        kind: ``maml2``, ``fomaml``, ``anil``, ``lora2`` or ``protonet``.
        tasks: tasks of the step; its loss is their mean.
        ways: classes a task.
        shots: support texts a class.
        queries: query texts a class.
        length: tokens of the longest text, to which the others are padded.
        steps: inner steps of gradient descent.
        rate: their learning rate, for the encoder and the head alike.
        seed: of the task tensors and of the head's start.
    """

    kind: str
    tasks: int = 1
    ways: int = 5
    shots: int = 5
    queries: int = 5
    length: int = 32
    steps: int = 5
    rate: float = 1e-2
    seed: int = 0

    @property
    def twice(self) -> bool:
        """Whether the encoder is differentiated twice."""
        return self.kind in ("maml2", "lora2")


WORKLOADS = {
    "maml2": Workload("maml2", tasks=4),
    "fomaml": Workload("fomaml"),
    "anil": Workload("anil", tasks=4),
    "lora2": Workload("lora2"),
    "protonet": Workload("protonet", ways=20),
}


@dataclass(frozen=True)
class Texts:
    """Labelled texts.

    Args:
        tokens: token ids and their mask (B, 2, L), one tensor because some libraries pass a model a single one.
        labels: class indices (B,).
    """

    tokens: Tensor
    labels: Tensor

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of every text."""
        lengths: list[int] = self.tokens[:, 1].sum(1).tolist()
        return lengths


Task = tuple[Texts, Texts]
"""Support and query texts."""


def make_tasks(workload: Workload, vocabulary: int = 30_522, full: bool = False) -> list[Task]:
    """Return the tasks: random token ids, lengths lognormal (median 17 of 32 tokens, sigma 0.45), at least 5.

    Args:
        full: give every text the full length, so that nothing is padded.
    """
    generator = torch.Generator().manual_seed(workload.seed)

    def texts(per_class: int) -> Texts:
        count, longest = workload.ways * per_class, workload.length
        spread = torch.exp(0.45 * torch.randn(count, generator=generator))
        lengths = (spread * longest * 17 / 32).round().long().clamp(min(5, longest), longest)
        lengths[0] = longest  # so that padding to the longest means the same for all
        mask = (torch.arange(longest) < (torch.full_like(lengths, longest) if full else lengths).unsqueeze(1)).long()
        ids = torch.randint(min(1_000, vocabulary // 2), vocabulary, (count, longest), generator=generator) * mask
        return Texts(torch.stack([ids, mask], 1), torch.arange(count) % workload.ways)

    return [(texts(workload.shots), texts(workload.queries)) for _ in range(workload.tasks)]


class TextClassifier(nn.Module):
    """A Hugging Face encoder, the mean over its token states at unit length, and a linear head."""

    def __init__(self, encoder: Any, ways: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, ways)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Return text vectors (B, H) of token ids and mask (B, 2, L)."""
        return text_vectors(self.encoder, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return class scores (B, N)."""
        return self.head(F.normalize(self.vectors(tokens), dim=-1))


def text_vectors(encoder: Any, tokens: Tensor) -> Tensor:
    """Return the mean over the tokens of each text (B, H)."""
    ids, mask = tokens.unbind(1)
    states: Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def new_model(workload: Workload, attention: str) -> TextClassifier:
    """Return the model of a workload at its seeded start, in evaluation mode.

    Args:
        attention: transformers' implementation, ``eager`` or ``sdpa``.
    """
    from transformers import BertModel
    from transformers.utils import logging

    from kshot.models.backbones import locate

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    encoder: Any = BertModel.from_pretrained(
        locate("minilm"), add_pooling_layer=False, attn_implementation=attention, dtype=torch.float32
    )
    return finish_model(encoder, workload)


def finish_model(encoder: Any, workload: Workload) -> TextClassifier:
    """Return the classifier of an encoder, with adapters where the workload has them, at its start."""
    if workload.kind == "lora2":
        from peft import LoraConfig, get_peft_model

        config, encoder = encoder.config, get_peft_model(encoder, LoraConfig(**LORA))
        encoder.config = config
    model = TextClassifier(encoder, workload.ways)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (value := start_value(name, parameter.shape, workload)) is not None:
                parameter.copy_(value)
    if workload.kind == "protonet":
        model.head.requires_grad_(False)
    return model.eval()


def start_value(name: str, shape: Sequence[int], workload: Workload) -> Tensor | None:
    """Return where a parameter of the head or of an adapter starts, the same for all contenders; None for the encoder's own.

    LoRA's B does not start at zero, or A would have no gradient.
    """
    name = canonical(name)
    if name == "head.bias":
        return torch.zeros(shape)
    if name == "head.weight" or ".lora_" in name:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {workload.seed}".encode()))
        return torch.randn(shape, generator=generator) * (HEAD_SCALE if name == "head.weight" else ADAPTER_SCALE)
    return None


def canonical(name: str) -> str:
    """Return a parameter's name as all contenders would call it: kshot and PEFT put words of their own before and in it."""
    for word in ("backbone.", "adapter.", "encoder."):
        if name.startswith(word):
            name = "body." + name.removeprefix(word)
            break
    return name.replace("base_model.model.", "").replace(".default.", ".")


class Attention:
    """How a plain model attends: fused where one derivative is enough, else the faster of the two forms that have a second.

    Args:
        workload: for which it is chosen.
        second: ``eager`` (transformers' own) or ``math`` (PyTorch's unfused scaled-dot-product attention).
    """

    def __init__(self, workload: Workload, second: str):
        self.name = second if workload.twice else "sdpa"

    @property
    def implementation(self) -> str:
        """transformers' name of it."""
        return "eager" if self.name == "eager" else "sdpa"

    def active(self) -> ExitStack:
        """Return a context in which a forward pass uses it."""
        stack = ExitStack()
        if self.name == "math":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack
