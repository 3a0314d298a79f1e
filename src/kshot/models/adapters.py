"""Parameter-efficient adapters from PEFT: LoRA, (IA)^3 and soft prompts, under names that do not depend on PEFT's wrapping."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kshot.errors import ConfigError, listing, nearest
from kshot.models.select import ADAPTER, ADAPTERS, BACKBONE, parts

if TYPE_CHECKING:
    from kshot.models.backbones import Backbone

KINDS = ("auto", "none", *ADAPTERS)
_SHORTEST = 3  # tokens of a text that a prompt must leave room for


@dataclass(frozen=True)
class AdapterSpec:
    """Which small set of weights is put into a backbone.

    Args:
        kind: ``lora`` (Hu et al. 2021, arXiv:2106.09685), ``ia3`` (Liu et al. 2022, arXiv:2205.05638), ``prompt`` (Lester
            et al. 2021, arXiv:2104.08691), ``none``, or ``auto``: what ``algorithm.adapts`` or ``training.trains`` names.
        rank: r of LoRA.
        alpha: LoRA's output is scaled by alpha / r.
        dropout: on LoRA's input, where the learner's dropout is on.
        targets: endings of the names of the linear layers that LoRA and (IA)^3 adapt; None for all of the numbered blocks.
        init_std: the spread of LoRA's B at the start. With PEFT's B = 0 the loss does not depend on A, which gets no gradient.
        tokens: of a prompt. They take positions from the text.
    """

    kind: str = "auto"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    init_std: float = 0.02
    tokens: int = 10

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"adapter.kind is '{self.kind}'.{nearest(self.kind, KINDS)}", f"Expected one of {listing(KINDS)}."
            )
        for name in ("rank", "tokens"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"adapter.{name} is {getattr(self, name)}.", "At least 1 is expected.")
        if not self.alpha > 0:
            raise ConfigError(f"adapter.alpha is {self.alpha}.", "A number above 0 is expected.")
        if not self.init_std >= 0:
            raise ConfigError(f"adapter.init_std is {self.init_std}.", "At least 0 is expected.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout is {self.dropout}.", "A share of at least 0 and below 1 is expected.")
        if self.targets is not None and not self.targets:
            raise ConfigError("adapter.targets is empty.", "Endings of layers' names are expected, or null for all layers.")

    def named_by(self, *selectors: str) -> AdapterSpec:
        """Return the specification with ``auto`` replaced by the kind that one of these selectors names, or by ``none``.

        Raises:
            ConfigError: the selectors name several kinds.
        """
        if self.kind != "auto":
            return self
        kinds = list(dict.fromkeys(part for selector in selectors for part in parts(selector) if part in ADAPTERS))
        if len(kinds) > 1:
            raise ConfigError(
                f"The selectors name the adapters {' and '.join(kinds)}.", "One kind of adapter at a time is expected."
            )
        return replace(self, kind=kinds[0] if kinds else "none")


@dataclass(frozen=True)
class Adapter:
    """The adapter of a backbone.

    Args:
        spec: how it was made.
        module: what evaluates the adapted backbone: the model itself, or the model behind a prompt.
        names: the names that ``module`` gives its parameters, by kshot's: ``backbone.*`` as Hugging Face names the plain
            model's, ``adapter.<layer>.lora_A.weight`` (r, in), ``adapter.<layer>.lora_B.weight`` (out, r),
            ``adapter.<layer>.ia3_l`` (out, 1) or (1, in), and ``adapter.prompt.weight`` (tokens, width).
    """

    spec: AdapterSpec
    module: nn.Module
    names: Mapping[str, str]

    @property
    def scaling(self) -> float:
        """What the product B A x is multiplied by in LoRA: alpha / r."""
        return self.spec.alpha / self.spec.rank

    @property
    def tokens(self) -> int:
        """The number of positions that a prompt takes."""
        return self.spec.tokens if self.spec.kind == "prompt" else 0


class Prompted(nn.Module):
    """A model behind a soft prompt, whose states are those of the text's tokens alone."""

    def __init__(self, model: Any, prompt: nn.Module, tokens: int) -> None:
        super().__init__()
        self.model, self.prompt, self._tokens = model, prompt, tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Any:
        """Return the model's output for ids (B, L) and mask (B, L), with token states (B, L, H)."""
        words = self.model.get_input_embeddings()(input_ids)
        prompt = self.prompt(torch.arange(self._tokens, device=input_ids.device)).expand(len(input_ids), -1, -1)
        mask = torch.cat([attention_mask.new_ones(len(input_ids), self._tokens), attention_mask], 1)
        output = self.model(inputs_embeds=torch.cat([prompt, words], 1), attention_mask=mask, **more)
        output.last_hidden_state = output.last_hidden_state[:, self._tokens :]
        return output


def add_adapter(backbone: Backbone, spec: AdapterSpec, seed: int = 0) -> Backbone:
    """Return the backbone with an adapter; the given one stays as it is, and both share the pretrained weights.

    Args:
        spec: ``none`` returns the backbone itself; ``auto`` must have been replaced (`AdapterSpec.named_by`).
        seed: of the adapter's start; nothing else decides it, and no other random numbers are drawn.

    Raises:
        ConfigError: the backbone has an adapter, has no such layers, or has no room for the prompt.
    """
    if spec.kind == "none":
        return backbone
    if spec.kind == "auto":
        raise ConfigError("adapter.kind is 'auto', and no selector names an adapter here.", f"Expected {listing(KINDS[1:])}.")
    if backbone.adapter is not None:
        raise ConfigError(
            f"The backbone already has an adapter ({backbone.adapter.spec.kind}).", "One is expected at most.", "Load it anew."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        adapted = _with_prompt(backbone, spec) if spec.kind == "prompt" else _injected(backbone, spec)
    if adapted.max_length < _SHORTEST:
        raise ConfigError(
            f"adapter.tokens is {spec.tokens}, which leaves {adapted.max_length} positions of the backbone to the text.",
            f"At least {_SHORTEST} are expected.",
            "Set a smaller adapter.tokens.",
        )
    return adapted


def _with_prompt(backbone: Backbone, spec: AdapterSpec) -> Backbone:
    from peft import PromptEmbedding, PromptTuningConfig

    words = backbone.model.get_input_embeddings()
    config = PromptTuningConfig(
        task_type="FEATURE_EXTRACTION",
        prompt_tuning_init="SAMPLE_VOCAB",
        num_virtual_tokens=spec.tokens,
        token_dim=words.embedding_dim,
        num_transformer_submodules=1,
    )
    prompt = PromptEmbedding(config, words)  # type: ignore[no-untyped-call]
    module = Prompted(backbone.model, prompt.to(words.weight), spec.tokens)
    names = {BACKBONE + name: f"model.{name}" for name, _ in backbone.model.named_parameters()}
    return replace(backbone, adapter=Adapter(spec, module, names | {f"{ADAPTER}prompt.weight": "prompt.embedding.weight"}))


def _injected(backbone: Backbone, spec: AdapterSpec) -> Backbone:
    from peft import IA3Config, LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    weights = list(backbone.model.parameters())
    model = deepcopy(backbone.model, {id(weight): weight for weight in weights})  # other modules around the same weights
    layers = _layers(model, spec)
    options: dict[str, Any] = {
        "target_modules": list(layers),
        "fan_in_fan_out": all(isinstance(layer, Conv1D) for layer in layers.values()),
    }
    if spec.kind == "lora":
        options |= {"r": spec.rank, "lora_alpha": spec.alpha, "lora_dropout": spec.dropout}
        inject_adapter_in_model(LoraConfig(**options), model)
    else:
        inner = [name for name, layer in layers.items() if _takes_inner(layer, backbone.hidden_size)]
        inject_adapter_in_model(IA3Config(**options, feedforward_modules=inner), model)
    for weight in weights:
        weight.requires_grad_()  # PEFT froze them, and they are the given backbone's too
    names = {_kshot_name(name): name for name, _ in model.named_parameters()}
    if spec.kind == "lora" and spec.init_std:
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=spec.init_std)
    return replace(backbone, model=model, adapter=Adapter(spec, model, names))


def _kshot_name(name: str) -> str:
    """Return kshot's name of a parameter that PEFT has named."""
    if match := re.fullmatch(r"(.+)\.(?:(lora_[AB])\.default(\.weight)|(ia3_l)\.default)", name):
        return ADAPTER + ".".join((match[1], f"{match[2]}{match[3]}" if match[2] else match[4]))
    return BACKBONE + name.replace(".base_layer.", ".")


def _layers(model: nn.Module, spec: AdapterSpec) -> dict[str, Any]:
    """Return the linear layers that an adapter is put into, by name."""
    from transformers.pytorch_utils import Conv1D

    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if spec.targets is None:
        layers = {name: module for name, module in linear.items() if re.search(r"\.\d+\.", f".{name}")}
        if not layers:
            raise ConfigError(
                "The backbone has no linear layers in numbered blocks.",
                mend=f"Name some in adapter.targets. It has: {listing(linear) or 'none'}.",
            )
        return layers
    for target in spec.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            endings = list(dict.fromkeys(ending for name in linear for ending in _endings(name)))
            raise ConfigError(
                f"adapter.targets has '{target}', and no linear layer of the backbone ends so.{nearest(target, endings)}",
                f"Layers end in: {listing(endings, 20)}.",
            )
    return {n: module for n, module in linear.items() if any(f".{n}".endswith(f".{target}") for target in spec.targets)}


def _endings(name: str) -> list[str]:
    """Return the endings of a layer's name after its last number, the shortest first."""
    words = re.split(r"(?:^|\.)\d+\.", name)[-1].split(".")
    return [".".join(words[-count:]) for count in range(1, len(words) + 1)]


def _takes_inner(layer: Any, width: int) -> bool:
    """Tell whether a layer brings the feed-forward part's inner states back, whose input (IA)^3 scales, not its output."""
    if isinstance(layer, nn.Linear):
        return layer.in_features != width and layer.out_features == width
    return bool(layer.weight.shape[0] != width and layer.nf == width)
