"""Vocabulary trimming: a backbone without the word vectors of tokens that its texts do not have.

A multilingual encoder is mostly word vectors (82 % of multilingual-e5-small). A domain uses a few of them, and the others cost
memory, disk and the time of an optimiser's step. Texts made of kept tokens pass through a trimmed backbone unchanged.

References:
    Abdaoui, Pradel, Sigel 2020, "Load What You Need: Smaller Versions of Multilingual BERT", arXiv:2010.05609.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kshot.errors import BackboneError
from kshot.models.backbones import Backbone

_MARKS = ("▁", "##", "Ġ", "</w>")  # of word starts, word insides and word ends
_KNOWN = ("Unigram", "WordPiece", "BPE")
_AT_ONCE = 1_024


def trimmed(backbone: Backbone, texts: Sequence[str]) -> Backbone:
    """Return the backbone with the tokens of some texts alone.

    Single characters, special tokens and what merges of kept tokens pass through are kept too, so that a text with other words
    falls into smaller pieces and not into unknown ones. Every text that consists of kept tokens is cut into the same tokens as
    before and has the same vector: a unigram model's best cut, a word piece model's longest match and a BPE model's merges stay
    what they were where nothing else is there to choose.

    Raises:
        BackboneError: a tokenizer of an unknown kind, or one without a tokenizer.json.
    """
    content = _content(backbone)
    pieces = _pieces(content)
    wanted = {token for start in range(0, len(texts), _AT_ONCE) for ids in _cut(backbone, texts, start) for token in ids}
    wanted |= {entry["id"] for entry in content["added_tokens"]} | set(backbone.tokenizer.all_special_ids)
    if "roberta" in backbone.model.config.model_type:  # which counts positions from the padding's id
        wanted |= set(range(backbone.model.config.pad_token_id + 1))
    wanted |= {index for piece, index in pieces.items() if len(_bare(piece)) <= 1}
    if content["model"]["type"] == "BPE":
        wanted |= _merged_from(content["model"]["merges"], pieces, wanted)
    rows = sorted(index for index in wanted if index < backbone.model.config.vocab_size)
    position = {old: new for new, old in enumerate(rows)}
    _renumber(content, position)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _reloaded(backbone, content, Path(folder))
        model = _narrowed(backbone, rows, position)
    return replace(backbone, model=model, tokenizer=tokenizer)


def _cut(backbone: Backbone, texts: Sequence[str], start: int) -> list[list[int]]:
    return backbone.tokenize(list(texts[start : start + _AT_ONCE]))


def _content(backbone: Backbone) -> Any:
    fast = getattr(backbone.tokenizer, "backend_tokenizer", None)
    content = None if fast is None else json.loads(fast.to_str())
    kind = None if content is None else content["model"].get("type")
    if kind not in _KNOWN:
        raise BackboneError(
            f"The vocabulary of '{backbone.spec.name}' cannot be trimmed: its tokenizer is of the kind {kind or 'slow'}.",
            f"A tokenizer.json of one of these kinds is expected: {', '.join(_KNOWN)}.",
        )
    return content


def _pieces(content: Any) -> dict[str, int]:
    """Return the id of each piece of the vocabulary."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {piece: index for index, (piece, _) in enumerate(vocabulary)}


def _bare(piece: str) -> str:
    for mark in _MARKS:
        piece = piece.removeprefix(mark).removesuffix(mark) if piece != mark else piece
    return piece


def _merged_from(merges: Iterable[Any], pieces: dict[str, int], wanted: Iterable[int]) -> set[int]:
    """Return the parts that tokens of a BPE vocabulary may be merged from, and the parts of those."""
    parts: dict[str, list[tuple[str, str]]] = {}
    for pair in merges:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        parts.setdefault(left + right, []).append((left, right))
    names = {index: piece for piece, index in pieces.items()}
    found: set[int] = set()
    todo = [names[index] for index in wanted if index in names]
    while todo:
        for pair in parts.get(todo.pop(), ()):
            new = [part for part in pair if pieces[part] not in found]
            found |= {pieces[part] for part in new}
            todo += new
    return found


def _renumber(content: Any, position: dict[int, int]) -> None:
    """Leave the kept pieces in a tokenizer's description, under their new ids."""
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: position[index] for piece, index in model["vocab"].items() if index in position}
    else:
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in position]
        model["unk_id"] = None if model["unk_id"] is None else position[model["unk_id"]]
    if model["type"] == "BPE":
        kept = model["vocab"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= kept.keys()]
    content["added_tokens"] = [{**entry, "id": position[entry["id"]]} for entry in content["added_tokens"]]
    if content["post_processor"] is not None:
        _renumber_special(content["post_processor"], position)


def _renumber_special(processor: Any, position: dict[int, int]) -> None:
    """Renumber the special tokens that a post-processor adds."""
    for name in ("sep", "cls"):
        if name in processor:
            processor[name] = [processor[name][0], position[processor[name][1]]]
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [position[index] for index in entry["ids"]]
    for inner in processor.get("processors", ()):
        _renumber_special(inner, position)


def _reloaded(backbone: Backbone, content: Any, folder: Path) -> Any:
    from transformers import AutoTokenizer

    backbone.model.config.save_pretrained(folder)  # which tells the tokenizer's kind
    backbone.tokenizer.save_pretrained(folder)
    for other in folder.glob("vocab*"):
        other.unlink()
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def _narrowed(backbone: Backbone, rows: list[int], position: dict[int, int]) -> Any:
    """Return a model with some rows of the word vectors; the other weights are shared with the given one."""
    table = backbone.model.get_input_embeddings()
    weight = table.weight.detach()[torch.tensor(rows)].clone()
    memo: dict[int, Any] = {id(table.weight): nn.Parameter(weight)}
    memo |= {
        id(value): value for value in (*backbone.model.parameters(), *backbone.model.buffers()) if value is not table.weight
    }
    model = copy.deepcopy(backbone.model, memo)
    model.get_input_embeddings().num_embeddings = len(rows)
    model.config.vocab_size = len(rows)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"):
        old = getattr(model.config, name, None)
        if isinstance(old, int) and old in position:
            setattr(model.config, name, position[old])
    return model
