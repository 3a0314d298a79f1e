"""Words and character n-grams of texts, as sparse vectors: what a text says by its very words, which mean pooling washes out.

Terms are hashed, so that an adapted task holds numbers and no words, and weighted as usual (tf-idf, Spärck Jones 1972): the
logarithm of a term's count, times its inverse document frequency in the support set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from torch import Tensor

_BUCKETS = 1 << 20  # of each kind of term
_WORDS: dict[str, Any] = {"token_pattern": r"(?u)\b\w+\b", "ngram_range": (1, 2)}
_CHARACTERS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (2, 4)}


def vocabulary(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the terms (c,) of a support set's texts, as buckets, and their inverse document frequencies (c,)."""
    counts = _counts(texts)
    frequency = np.asarray((counts > 0).sum(0)).ravel()
    terms = np.flatnonzero(frequency)
    idf = np.log((1 + len(texts)) / (1 + frequency[terms])) + 1
    return torch.from_numpy(terms), torch.from_numpy(idf)


def term_vectors(texts: Sequence[str], terms: Tensor, idf: Tensor) -> csr_matrix:
    """Return the vectors (B, c) of texts, words and characters each of unit length and of the same weight.

    Terms that are not in the vocabulary count for nothing.
    """
    kept = terms.cpu().numpy()
    counts = _counts(texts)[:, kept].multiply(idf.cpu().numpy()).tocsr()
    words = int(np.searchsorted(kept, _BUCKETS))
    return hstack([_unit(counts[:, :words]), _unit(counts[:, words:])]).tocsr() / np.sqrt(2)


def _counts(texts: Sequence[str]) -> csr_matrix:
    from sklearn.feature_extraction.text import HashingVectorizer

    shared = {"n_features": _BUCKETS, "norm": None, "alternate_sign": False, "dtype": np.float64}
    counts = hstack([HashingVectorizer(**kind, **shared).transform(texts) for kind in (_WORDS, _CHARACTERS)]).tocsr()
    counts.data = 1 + np.log(counts.data)
    return counts


def _unit(rows: csr_matrix) -> csr_matrix:
    from sklearn.preprocessing import normalize

    return normalize(rows)
