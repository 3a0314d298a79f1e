"""A linear head by logistic regression on the text vectors of a support set, and on the texts' own words where they help.

How much the words count is chosen for each support set, by its leave-one-out error under ridge regression, which has a closed
form: with K the n x n products of the examples' features (a constant among them) and Y their one-hot labels::

    C = (K + lambda I)^-1        y_i - (prediction of i without i) = [C Y]_i / C_ii

Topics are told by their meaning, and there the words get no share; where single words decide (the verb of a learning
objective), they get most of it.

References:
    Tian, Wang, Krishnan, Tenenbaum, Isola 2020, "Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?",
    arXiv:2003.11539 (logistic regression on vectors of unit length).
    Allen 1974, "The relationship between variable selection and data augmentation and a method for prediction",
    Technometrics 16 (the closed form, PRESS).
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.meta.algorithm import Adapted
from kshot.meta.lexical import term_vectors, vocabulary
from kshot.models.batch import Batch

WEIGHT, BIAS = "regression.weight", "regression.bias"
_LEXICAL, _TERMS, _IDF = "regression.lexical", "regression.terms", "regression.idf"
_STRENGTH = 10.0  # of the data against the penalty |W|^2 / 2, for features of unit length
_STEPS = 1000
_SHARES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the words, against 1 of the vectors
_RIDGES = (0.1, 0.3, 1.0)
_MOST = 600  # examples to choose the share on

Matrix = npt.NDArray[np.float64]


def regression(z: Tensor, support: Batch, weights: Tensor, lexical: bool = True) -> Adapted:
    """Return a head that minimises the penalised cross-entropy of the support set, by L-BFGS.

    Args:
        z: the support set's vectors (B, H), of unit length.
        support: its labels, and its texts where the words may count; every class has an example.
        weights: how much each example counts (B,).
        lexical: whether the words may count.
    """
    x, labels, w = (value.detach().cpu().double().numpy() for value in (z, support.labels, weights))
    y = labels.astype(np.int64)
    share = 0.0
    if lexical and support.texts and np.bincount(y).min() > 1:  # one left out leaves its class an example
        terms, idf = vocabulary(support.texts)
        t = term_vectors(support.texts, terms, idf)
        nearness, overlap = x @ x.T, (t @ t.T).toarray()
        some = np.flatnonzero(y < max(2, support.ways * _MOST // len(y)))  # of a task with many labels, some tell as well
        part = np.ix_(some, some)
        share = min(_SHARES, key=lambda share: left_out_error(_mixed(nearness, overlap, share)[part], y[some]))
    if not share:
        return _tensors(dict(zip((WEIGHT, BIAS), _fitted(x, y, w), strict=True)), z)
    # the same regression in the n coordinates that the examples span: there are more terms than examples
    values, vectors = np.linalg.eigh(_mixed(nearness, overlap, share))
    kept = values > 1e-9 * values.max()
    root = np.sqrt(values[kept])
    weight, bias = _fitted(vectors[:, kept] * root, y, w)
    dual = weight @ (vectors[:, kept] / root).T / (1 + share)
    head = {WEIGHT: dual @ x, BIAS: bias, _LEXICAL: share * (t.T @ dual.T).T}
    return _tensors(head, z) | {_TERMS: terms, _IDF: idf}


def class_scores(z: Tensor, query: Batch, adapted: Adapted) -> Tensor:
    """Return the head's class scores (B, N) of vectors (B, H) and their texts."""
    scores = F.linear(z, adapted[WEIGHT], adapted[BIAS])
    if _LEXICAL not in adapted:
        return scores
    assert query.texts
    t = term_vectors(query.texts, adapted[_TERMS], adapted[_IDF])
    return scores + torch.from_numpy(t @ adapted[_LEXICAL].cpu().double().numpy().T).to(scores)


def left_out_error(products: Matrix, labels: npt.NDArray[np.int64]) -> float:
    """Return the mean squared error of ridge regressions of the labels, each example left out once, at the best penalty.

    Args:
        products: inner products of the examples (n, n), each about 1 with itself.
        labels: their classes (n,).
    """
    y, constant = np.eye(labels.max() + 1)[labels], 1.0
    errors = []
    for ridge in _RIDGES:
        inverse = np.linalg.inv(products + constant + ridge * np.eye(len(y)))
        errors.append(float(np.mean((inverse @ y / np.diag(inverse)[:, None]) ** 2)))
    return min(errors)


def _mixed(vectors: Matrix, words: Matrix, share: float) -> Matrix:
    return (vectors + share * words) / (1 + share)


def _fitted(x: Matrix, y: npt.NDArray[np.int64], w: Matrix) -> tuple[Matrix, Matrix]:
    from sklearn.linear_model import LogisticRegression

    with _pools().limit(limits=1), warnings.catch_warnings():  # so few examples: threads would only wait for each other
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")  # as it is at one shot
        fitted: Any = LogisticRegression(C=_STRENGTH, max_iter=_STEPS).fit(x, y, w)
    if len(fitted.classes_) > 2:
        return fitted.coef_, fitted.intercept_
    return np.concatenate([0 * fitted.coef_, fitted.coef_]), np.concatenate([0 * fitted.intercept_, fitted.intercept_])


@cache
def _pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # looks through all loaded libraries, which takes longer than most regressions


def _tensors(head: dict[str, Matrix], like: Tensor) -> Adapted:
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(like) for name, value in head.items()}
