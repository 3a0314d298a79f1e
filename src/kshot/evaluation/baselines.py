"""What users would pick instead, on the same backbone and the same examples."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch.nn import functional as F

from kshot.errors import ConfigError, MissingExtraError, listing, nearest
from kshot.evaluation.methods import Labels, Method, Predict, as_labels
from kshot.meta import ProtoNet
from kshot.models import Batch, Learner
from kshot.models.backbones import locate
from kshot.models.kinds import KINDS
from kshot.tasks import Episode

_THEIR_POOLING = {"last": "lasttoken"}
_NAMED = "+names"
_SCALE = 20.0  # of unit-length text vectors before a linear head


class FrozenPrototype(Method):
    """The nearest class mean by cosine, of pretrained text vectors: no training at all."""

    name = "frozen prototype"

    def __init__(self, pretrained: Learner) -> None:
        self.encoder = pretrained

    def fit(self, episode: Episode, support: Batch) -> Predict:
        assert self.encoder is not None
        learner, protonet = self.encoder, ProtoNet(metric="cosine")
        prototypes = protonet.adapt(learner, support)
        return lambda episode, query: as_labels(protonet.logits(learner, prototypes, query).argmax(-1))


class LogisticRegression(Method):
    """scikit-learn's logistic regression on pretrained text vectors of unit length."""

    name = "logistic regression"

    def __init__(self, pretrained: Learner) -> None:
        self.encoder = pretrained

    def fit(self, episode: Episode, support: Batch) -> Predict:
        from sklearn.linear_model import LogisticRegression as Regression
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # so few texts: threads would only wait for each other
            model = Regression(C=10.0, max_iter=1000).fit(_unit(support).numpy(), support.labels.numpy())
        return lambda episode, query: as_labels(model.predict(_unit(query).numpy()))


class HeadOnly(Method):
    """A linear head trained by AdamW on pretrained text vectors that stay as they are."""

    name = "head-only fine-tuning"

    def __init__(self, pretrained: Learner, steps: int = 100, lr: float = 1e-2) -> None:
        self.encoder, self._steps, self._lr = pretrained, steps, lr

    def fit(self, episode: Episode, support: Batch) -> Predict:
        z = _unit(support)
        weight = torch.zeros(support.ways, z.shape[1], requires_grad=True)
        bias = torch.zeros(support.ways, requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=self._lr)
        for _ in range(self._steps):
            optimizer.zero_grad()
            F.cross_entropy(_SCALE * F.linear(z, weight, bias), support.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return lambda episode, query: as_labels(F.linear(_unit(query), weight, bias).argmax(-1))


class FullFineTuning(Method):
    """All weights of the pretrained encoder and a new linear head, by AdamW on the support set."""

    name = "full fine-tuning"
    slow = True

    def __init__(self, pretrained: Learner, steps: int = 20, lr: float = 5e-5, head_lr: float = 1e-2) -> None:
        self.tokenizer, self._steps, self._lr, self._head_lr = pretrained, steps, lr, head_lr

    def fit(self, episode: Episode, support: Batch) -> Predict:
        assert self.tokenizer is not None
        learner = self.tokenizer
        params = {n: v.detach().clone().requires_grad_() for n, v in learner.start(support.ways).items()}
        groups = [
            {"params": [v for n, v in params.items() if n.startswith("head.")], "lr": self._head_lr},
            {"params": [v for n, v in params.items() if not n.startswith("head.")], "lr": self._lr},
        ]
        optimizer = torch.optim.AdamW(groups)
        for _ in range(self._steps):
            optimizer.zero_grad()
            F.cross_entropy(_SCALE * learner.logits(params, support), support.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        @torch.no_grad()
        def predict(episode: Episode, query: Batch) -> Labels:
            return as_labels(learner.logits(params, query).argmax(-1))

        return predict


class TfIdf(Method):
    """Logistic regression on TF-IDF of words and character trigrams: no language model at all."""

    name = "TF-IDF regression"
    whole_texts = True

    def fit(self, episode: Episode, support: Batch) -> Predict:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression as Regression
        from sklearn.pipeline import make_pipeline, make_union
        from threadpoolctl import threadpool_limits

        words, characters = TfidfVectorizer(sublinear_tf=True), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4))
        # the character part alone serves texts without spaces, and the word part drops out where it finds no word
        parts = make_union(characters) if not _has_words(episode) else make_union(words, characters)
        model = make_pipeline(parts, Regression(C=10.0, max_iter=1000))
        with threadpool_limits(1):
            model.fit(episode.support.texts, episode.support.labels)
        return lambda episode, query: as_labels(model.predict(episode.query.texts))


class SetFit(Method):
    """SetFit (Tunstall et al. 2022, arXiv:2209.11055) with its own defaults, from the same pretrained encoder."""

    name = "SetFit"
    slow = True
    whole_texts = True

    def __init__(self, pretrained: Learner) -> None:
        try:
            import setfit  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("setfit", "setfit", "for the baseline 'setfit'") from error
        self._pretrained = pretrained

    def fit(self, episode: Episode, support: Batch) -> Predict:
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer
        from setfit import SetFitModel, Trainer, TrainingArguments
        from sklearn.linear_model import LogisticRegression as Regression

        spec = self._pretrained.backbone.spec
        body = Transformer(locate(spec.name), max_seq_length=spec.max_length)
        encoder = SentenceTransformer(
            modules=[body, Pooling(body.get_embedding_dimension(), _THEIR_POOLING.get(spec.pooling, spec.pooling))]
        )
        model: Any = SetFitModel(model_body=encoder, model_head=Regression())
        examples = Dataset.from_dict({"text": list(episode.support.texts), "label": list(episode.support.labels)})
        # it prints its losses, and would leave checkpoints in the working folder
        with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(folder, batch_size=16, show_progress_bar=False, report_to="none", save_strategy="no")
            Trainer(model=model, args=arguments, train_dataset=examples).train()
        return lambda episode, query: as_labels(model.predict(list(episode.query.texts)))


BASELINES: dict[str, Callable[[Learner], Method]] = {
    "prototype": FrozenPrototype,
    "logistic": LogisticRegression,
    "head": HeadOnly,
    "tfidf": lambda pretrained: TfIdf(),
    "full": FullFineTuning,
    "setfit": SetFit,
}


def new_baselines(names: Sequence[str], pretrained: Learner, warnings: list[str] | None = None) -> list[Method]:
    """Return the baselines of those names; with ``+names`` behind it, a baseline that has the labels' names as examples.

    Those that label whole texts, or take names, are left out for a kind where that means nothing, and a warning tells it.

    Raises:
        ConfigError: an unknown name.
        MissingExtraError: SetFit is asked and not installed.
    """
    methods, kind = [_baseline(name, pretrained) for name in names], pretrained.kind
    if KINDS[kind].names:
        return methods
    left = [method.name for method in methods if method.whole_texts or method.names]
    if left and warnings is not None:
        warnings.append(f"Not measured, since they label whole texts and this is {kind}: {listing(left)}.")
    return [method for method in methods if method.name not in left]


def _baseline(name: str, pretrained: Learner) -> Method:
    kind = name.removesuffix(_NAMED)
    if kind not in BASELINES:
        raise ConfigError(
            f"No baseline '{kind}'.{nearest(kind, BASELINES)}", f"There are: {listing(BASELINES)}, each also with {_NAMED}."
        )
    method = BASELINES[kind](pretrained)
    if name != kind:
        method.names, method.name = True, f"{method.name} with label names"
    return method


def _unit(batch: Batch) -> torch.Tensor:
    assert batch.features is not None
    return F.normalize(batch.features, dim=-1).cpu()


def _has_words(episode: Episode) -> bool:
    return any(len(word) > 1 and word.isalnum() for text in episode.support.texts for word in text.split())
