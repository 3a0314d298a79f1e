"""Text vectors of whole corpora under a backbone that stays as it is: encoded once, cached on disk by fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kshot.files import atomic_folder, cache_folder
from kshot.models.select import ADAPTER, BACKBONE
from kshot.models.tokens import TokenStore

if TYPE_CHECKING:
    from kshot.models.learner import Learner

_CHUNK = 2_048
_VERSION = 1
_FILE = "vectors.npy"


class VectorStore:
    """The text vectors (n, H) of a corpus's rows, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._vectors = np.load(folder / _FILE, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._vectors)

    def rows(self, rows: Sequence[int]) -> Tensor:
        """Return the vectors (len(rows), H) of some rows."""
        return torch.from_numpy(self._vectors[list(rows)])


def vector_store(corpus: str, tokens: TokenStore, learner: Learner) -> VectorStore:
    """Open the vectors of a corpus, given by its fingerprint, encoding it first where that was not done before."""
    folder = cache_folder() / "vectors" / f"{corpus[:32]}-{backbone_fingerprint(learner)}"
    if not (folder / _FILE).exists():
        with atomic_folder(folder, keep_existing=True) as temporary:
            shape = (len(tokens), learner.backbone.hidden_size)
            dtype = torch.empty(0, dtype=next(iter(learner.params.values())).dtype).numpy().dtype
            target = np.lib.format.open_memmap(temporary / _FILE, mode="w+", dtype=dtype, shape=shape)
            for start in range(0, len(tokens), _CHUNK):
                rows = range(start, min(start + _CHUNK, len(tokens)))
                target[rows.start : rows.stop] = learner.embed(tokens.rows(rows)).cpu().numpy()
            target.flush()
    return VectorStore(folder)


def backbone_fingerprint(learner: Learner) -> str:
    """Return what identifies the vector of a text: weights, tokens, pooling and precision."""
    spec = learner.backbone.spec
    settings = (_VERSION, spec.pooling, spec.prefix, learner.backbone.max_length, learner.precision)
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for name, value in sorted(learner.params.items()):
        if name.startswith((BACKBONE, ADAPTER)):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
