"""Token ids of whole corpora: tokenised once, cached on disk by fingerprint, memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kshot.files import atomic_folder, cache_folder
from kshot.models.backbones import Backbone
from kshot.tasks import Corpus

_CHUNK = 8_192
_VERSION = 1


class TokenStore:
    """The token ids of every row of a corpus under one tokenizer, on disk: flat ids and row offsets."""

    def __init__(self, folder: Path) -> None:
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def rows(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the token ids of some rows."""
        return [self._ids[self._offsets[row] : self._offsets[row + 1]].tolist() for row in rows]


def token_store(corpus: Corpus, backbone: Backbone) -> TokenStore:
    """Open the corpus's token ids, tokenising it first where that was not done before."""
    folder = cache_folder() / "tokens" / f"{corpus.fingerprint[:32]}-{tokenizer_fingerprint(backbone)}"
    if not (folder / "offsets.npy").exists():
        with atomic_folder(folder, keep_existing=True) as temporary:
            _write(temporary, corpus, backbone)
    return TokenStore(folder)


def tokenizer_fingerprint(backbone: Backbone) -> str:
    """Return what identifies the token ids of a text: vocabulary, rules, prefix and cut."""
    tokenizer = backbone.tokenizer
    rules = tokenizer.get_vocab()
    if tokenizer.is_fast:  # truncation and padding are left over from the last call; each call of ours sets its own
        rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    parts = [str(_VERSION), json.dumps(rules, sort_keys=True), backbone.spec.prefix or "", str(backbone.max_length)]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _write(folder: Path, corpus: Corpus, backbone: Backbone) -> None:
    offsets = np.zeros(len(corpus) + 1, np.int64)
    raw = folder / "ids.raw"
    with raw.open("wb") as stream:
        for start in range(0, len(corpus), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(corpus)))
            tokens = backbone.tokenize(corpus.texts(rows))
            offsets[start + 1 : start + 1 + len(tokens)] = [len(ids) for ids in tokens]
            np.concatenate([np.array(ids, np.int32) for ids in tokens]).tofile(stream)
    np.cumsum(offsets, out=offsets)
    target = np.lib.format.open_memmap(folder / "ids.npy", mode="w+", dtype=np.int32, shape=(int(offsets[-1]),))
    source = np.memmap(raw, np.int32, mode="r") if offsets[-1] else np.array([], np.int32)
    for start in range(0, len(target), 1 << 22):
        target[start : start + (1 << 22)] = source[start : start + (1 << 22)]
    target.flush()
    raw.unlink()
    np.save(folder / "offsets.npy", offsets)
