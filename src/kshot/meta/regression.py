"""A linear head by logistic regression on the text vectors of a support set, and on the texts' own words where they help.

How much the words count, and how strongly the head is held back, are chosen for each support set by leaving out one text after
another from ridge regressions: the words get the share of the least squared error, and the head is held back as strongly as
goes without clearly more texts labelled wrongly (the one-standard-error rule), since few examples tell penalties apart badly
and a weak one is where they mislead. In the same way a task is given back to the encoder as it was before meta-training, where
that suits it better: what is learned on other tasks need not help on every one. Leaving out has a closed form: with K the
n x n products of the examples' features (a constant among them) and Y their one-hot labels::

    C = (K + lambda I)^-1        y_i - (prediction of i without i) = [C Y]_i / C_ii

Topics are told by their meaning, and there the words get no share; where single words decide (the verb of a learning
objective), they get most of it. Names of labels are learned from, and not left out: no query is like them.

References:
    Tian, Wang, Krishnan, Tenenbaum, Isola 2020, "Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?",
    arXiv:2003.11539 (logistic regression on vectors of unit length).
    Allen 1974, "The relationship between variable selection and data augmentation and a method for prediction",
    Technometrics 16 (the closed form, PRESS).
    Breiman, Friedman, Olshen, Stone 1984, "Classification and Regression Trees", section 3.4.3 (the one-standard-error rule).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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

REGRESSION = "regression."  # what the names of all that the head adapts begin with
WEIGHT, BIAS = "regression.weight", "regression.bias"
UNTOUCHED = "regression.untouched"  # there where the head sees the vectors of the encoder before meta-training
_LEXICAL, _TERMS, _IDF = "regression.lexical", "regression.terms", "regression.idf"
_STEPS = 1000
_SHARES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the words, against 1 of the vectors
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_USUAL_RIDGE = 0.3  # where a class has one example, and leaving it out leaves none
_STRENGTH = 3.0  # of the data against the penalty |W|^2 / 2, times the ridge: that of the logistic regression which is alike
_MOST = 600  # examples to choose on

Matrix = npt.NDArray[np.float64]
Features = tuple[int, float]
"""Which encoder's vectors, and the share of the words."""


def regression(z: Tensor, support: Batch, weights: Tensor, lexical: bool = True, untouched: Tensor | None = None) -> Adapted:
    """Return a head that minimises the penalised cross-entropy of the support set, by L-BFGS.

    Args:
        z: the support set's vectors (B, H), of unit length.
        support: its labels, and its texts where the words may count; every class has an example.
        weights: how much each example counts (B,).
        lexical: whether the words may count.
        untouched: vectors (B, H) of another encoder, that before meta-training, which the head is of where they are better
            by the least squared error.
    """
    labels, w = (value.detach().cpu().double().numpy() for value in (support.labels, weights))
    y = labels.astype(np.int64)
    encoders = [value.detach().cpu().double().numpy() for value in (z, untouched) if value is not None]
    if np.bincount(y).min() == 1:  # one left out would leave its class none
        return _tensors(dict(zip((WEIGHT, BIAS), _fitted(encoders[0], y, w, _STRENGTH / _USUAL_RIDGE), strict=True)), z)
    products = {(number, 0.0): x @ x.T for number, x in enumerate(encoders)}
    if lexical and support.texts:
        terms, idf = vocabulary(support.texts)
        t = term_vectors(support.texts, terms, idf)
        overlap = (t @ t.T).toarray()
        products = {(n, share): (k + share * overlap) / (1 + share) for (n, _), k in products.items() for share in _SHARES}
    (number, share), ridge = _chosen(products, y, support)
    x, strength, mark = encoders[number], _STRENGTH / ridge, {UNTOUCHED: torch.ones(())} if number else {}
    if not share:
        return _tensors(dict(zip((WEIGHT, BIAS), _fitted(x, y, w, strength), strict=True)), z) | mark
    # the same regression in the n coordinates that the examples span: there are more terms than examples
    values, vectors = np.linalg.eigh(products[number, share])
    kept = values > 1e-9 * values.max()
    root = np.sqrt(values[kept])
    weight, bias = _fitted(vectors[:, kept] * root, y, w, strength)
    dual = weight @ (vectors[:, kept] / root).T / (1 + share)
    head = {WEIGHT: dual @ x, BIAS: bias, _LEXICAL: share * (t.T @ dual.T).T}
    return _tensors(head, z) | {_TERMS: terms, _IDF: idf} | mark


def class_scores(z: Tensor, query: Batch, adapted: Adapted) -> Tensor:
    """Return the head's class scores (B, N) of vectors (B, H) and their texts."""
    scores = F.linear(z, adapted[WEIGHT], adapted[BIAS])
    if _LEXICAL not in adapted:
        return scores
    assert query.texts
    t = term_vectors(query.texts, adapted[_TERMS], adapted[_IDF])
    return scores + torch.from_numpy(t @ adapted[_LEXICAL].cpu().double().numpy().T).to(scores)


def _chosen(products: dict[Features, Matrix], y: npt.NDArray[np.int64], support: Batch) -> tuple[Features, float]:
    """Return the features, of those that there are products for, and the ridge."""
    some = np.flatnonzero(y < max(2, support.ways * _MOST // len(y)))  # of a task with many labels, some tell as well
    texts = int((some < len(y) - support.names).sum())
    errors = {one: left_out_errors(k[np.ix_(some, some)], y[some], texts, _RIDGES) for one, k in products.items()}
    best = min(errors, key=lambda one: min(squared for _, squared in errors[one]))
    fewest = min(wrong for wrong, _ in errors[best])
    most = fewest + (fewest * (1 - fewest / texts)) ** 0.5
    return best, max(ridge for ridge, (wrong, _) in zip(_RIDGES, errors[best], strict=True) if wrong <= most)


def left_out_errors(
    products: Matrix, labels: npt.NDArray[np.int64], texts: int, ridges: Sequence[float]
) -> list[tuple[int, float]]:
    """Return how many texts ridge regressions label wrongly, each text left out once, and their mean squared error.

    Args:
        products: inner products of the examples (n, n), each about 1 with itself.
        labels: their classes (n,).
        texts: how many of the first are left out in turn; those behind them never are.
        ridges: the penalties, a result for each.
    """
    y, constant = np.eye(labels.max() + 1)[labels], 1.0
    values, vectors = np.linalg.eigh(products + constant)
    rotated, errors = vectors.T @ y, list[tuple[int, float]]()
    for ridge in ridges:
        scaled = vectors / (values + ridge)
        residuals = ((scaled @ rotated) / (scaled * vectors).sum(1, keepdims=True))[:texts]
        wrong = (y[:texts] - residuals).argmax(1) != labels[:texts]
        errors.append((int(wrong.sum()), float(np.mean(residuals**2))))
    return errors


def _fitted(x: Matrix, y: npt.NDArray[np.int64], w: Matrix, strength: float) -> tuple[Matrix, Matrix]:
    from sklearn.linear_model import LogisticRegression

    with _pools().limit(limits=1), warnings.catch_warnings():  # so few examples: threads would only wait for each other
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")  # as it is at one shot
        fitted: Any = LogisticRegression(C=strength, max_iter=_STEPS).fit(x, y, w)
    if len(fitted.classes_) > 2:
        return fitted.coef_, fitted.intercept_
    return np.concatenate([0 * fitted.coef_, fitted.coef_]), np.concatenate([0 * fitted.intercept_, fitted.intercept_])


@cache
def _pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # looks through all loaded libraries, which takes longer than most regressions


def _tensors(head: dict[str, Matrix], like: Tensor) -> Adapted:
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(like) for name, value in head.items()}
