"""Extractive question answering: which part of a text answers a question.

Every token of the text is scored as the first and as the last of the answer, by a head of two vectors that meta-training
learns; a task is a domain. Long texts are read in overlapping windows.

References:
    Rajpurkar, Zhang, Lopyrev, Liang 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", arXiv:1606.05250 (the
    form of the data, exact match and F1).
    Devlin, Chang, Lee, Toutanova 2019, "BERT", arXiv:1810.04805, section 4.2 (first and last token).
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot.errors import DataError, listing
from kshot.models.batch import Batch
from kshot.models.kinds.spanned import SpannedLearner
from kshot.models.kinds.words import Windows, is_ideograph, windows
from kshot.models.spans import Spans
from kshot.tasks import EpisodeSpec, Examples, Sampler, Task
from kshot.tasks.domains import DomainSampler
from kshot.tasks.readers import READERS, Record, Records, column_names
from kshot.tasks.schema import EmptyFieldError, ReadOptions, Roles, Row, Schema, WrongRowError, text_of

SEPARATOR = "\x1e"  # between the question and the text, as they are kept
_LONGEST = 40  # tokens of an answer
_ROLES = {
    "question": ("question", "query"),
    "context": ("context", "passage", "text", "document"),
    "answers": ("answers", "answer"),
}
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _read_json(path: Path) -> Records:
    """Yield records of a JSON file: rows as usual, or SQuAD's own form."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        value = None  # the usual reader says what is wrong
    listed = value.get("data") if isinstance(value, dict) else None
    if not isinstance(listed, list) or not all(isinstance(part, dict) and "paragraphs" in part for part in listed):
        yield from READERS[".json"](path)
        return
    yield from enumerate(_questions(listed), 1)


def _questions(articles: Sequence[Record]) -> Iterator[Record]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                about = {"title": article.get("title", ""), "context": paragraph["context"]}
                yield about | {"question": asked["question"], "answers": asked.get("answers", [])}


class QASchema(Schema):
    """A question, a text, and the parts of it that answer the question; SQuAD's JSON, or a record for each question."""

    kind = "qa"
    least_labels = 0
    annotated = True
    readers = {".json": _read_json}  # noqa: RUF012

    def columns(self, where: str, sample: Sequence[Record], options: ReadOptions, label: str | None) -> Roles:
        names = column_names(sample)
        found: Roles = {"task": options.task_column}
        for role, known in _ROLES.items():
            given = {"context": options.text_column, "answers": options.label_column}.get(role)
            found[role] = given or next((name for name in known if name in names), None)
            if found[role] not in names:
                raise DataError(
                    f"{where}: no column of the {role} found.",
                    f"The columns are: {listing(names)}; expected are 'question', 'context' and 'answers' "
                    '([{"text": "...", "answer_start": 0}]), or SQuAD\'s own JSON.',
                )
        return found

    def row(self, record: Record, found: Roles, label: str | None) -> Row:
        question, context = (text_of(record, found[role], role) for role in ("question", "context"))
        answers = _answers(context, record.get(str(found["answers"])), str(found["answers"]))
        return Row(question.replace(SEPARATOR, " ") + SEPARATOR + context, annotation=json.dumps(answers, ensure_ascii=False))

    def asked(self, value: Any) -> str:
        if not isinstance(value, Mapping):
            raise WrongRowError('one text, and {"question", "context"} is expected')
        known = {role: next((name for name in names if name in value), names[0]) for role, names in _ROLES.items()}
        question, context = (text_of(dict(value), known[role], role) for role in ("question", "context"))
        return question.replace(SEPARATOR, " ") + SEPARATOR + context

    def example(self, value: Any, label: Any) -> Row:
        text = self.asked(value)
        answers = _answers(text.partition(SEPARATOR)[2], label, "answers")
        return Row(text, annotation=json.dumps(answers, ensure_ascii=False))

    def shown(self, text: str) -> str:
        return text.replace(SEPARATOR, " | ")

    def episodes(self, tasks: Sequence[Task], spec: EpisodeSpec, seed: int = 0) -> Sampler:
        return DomainSampler(tasks, spec, seed)

    def described(self, spec: EpisodeSpec) -> str:
        return f"{spec.shots} questions, {spec.queries} queries"


def _answers(context: str, given: Any, column: str) -> list[tuple[int, str]]:
    """Return where answers are and what they say: given as a string, or several, as SQuAD or as the hub has them."""
    if isinstance(given, Mapping) and isinstance(given.get("text"), list):  # the hub's form
        given = [{"text": t, "answer_start": s} for t, s in zip(given["text"], given.get("answer_start", []), strict=False)]
    listed = given if isinstance(given, list) else [] if given is None else [given]
    if not listed:
        raise EmptyFieldError("answer", column)
    found = []
    for answer in listed:
        text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, Mapping) else (answer, None)
        if not isinstance(text, str) or not text.strip():
            raise EmptyFieldError("answer", column)
        if not isinstance(start, int) or context[start : start + len(text)] != text:
            start = context.find(text)
        if start < 0:
            raise WrongRowError(f"the answer {text[:60]!r} is not in the context")
        found.append((start, text))
    return found


class QALearner(SpannedLearner):
    """A learner of answers' first and last tokens. Its units are the tokens of the texts."""

    kind = "qa"
    metric = "answer F1"
    labelled = False
    heads = 2

    def annotated(self, examples: Examples, labels: Sequence[str]) -> Batch:
        return self._placed_tokens(examples)[0]

    def units_of(self, text: str) -> int:
        return self._placed_tokens(Examples((text,)))[0].sizes[0]

    def batch(self, examples: Examples, labels: Sequence[str], corpus: str = "") -> Batch:
        batch, found, spans = self._placed_tokens(examples)
        return replace(batch, input_ids=found.input_ids, mask=found.mask, spans=spans).to(self.device)

    def _placed_tokens(self, examples: Examples) -> tuple[Batch, Windows, Spans]:
        """Return the examples without tokens, their windows, and a span for each token of their texts.

        A token that several windows have is taken from the one in which there is most to see on both sides of it.
        """
        pairs = [text.partition(SEPARATOR)[::2] for text in examples.texts]
        found = windows(self.backbone, [question for question, _ in pairs], [context for _, context in pairs], cut="second")
        best = list[dict[tuple[int, int], tuple[int, int, int]]]({} for _ in pairs)
        for row, (sample, offsets, sides) in enumerate(zip(found.samples, found.offsets, found.sides, strict=True)):
            own = [at for at, side in enumerate(sides) if side == 1 and offsets[at][1] > offsets[at][0]]
            for at in own:
                around = (min(at - own[0], own[-1] - at), row, at)
                best[sample][offsets[at]] = max(best[sample].get(offsets[at], (-1, 0, 0)), around)
        places = [sorted(tokens) for tokens in best]
        taken = [(tokens[place][1], tokens[place][2]) for tokens, listed in zip(best, places, strict=True) for place in listed]
        rows, offsets_in_rows = torch.tensor(taken, dtype=torch.long).view(-1, 2).unbind(1)
        spans = Spans(rows, offsets_in_rows, torch.arange(len(taken)), len(taken))
        answers = [json.loads(text) for text in examples.annotations] or [[] for _ in pairs]
        wanted = torch.zeros(len(taken), 2)
        targets, at = list[tuple[str, list[tuple[int, int]], list[str]]](), 0
        for (_, context), listed, given in zip(pairs, places, answers, strict=True):
            if given:
                start, end = given[0][0], given[0][0] + len(given[0][1])
                inside = [number for number, (a, b) in enumerate(listed) if a < end and b > start]
                if inside:
                    wanted[at + inside[0], 0] = wanted[at + inside[-1], 1] = 1.0
            targets.append((context, listed, [text for _, text in given]))
            at += len(listed)
        sizes = tuple(map(len, places))
        return Batch(wanted, 0, sizes=sizes, targets=tuple(targets)), found, spans

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the first and the last token of an answer, each among its text's tokens."""
        count, device = len(batch.sizes), logits.device
        text = torch.arange(count, device=device).repeat_interleave(torch.tensor(batch.sizes, device=device))
        top = logits.new_full((count, 2), -torch.inf).scatter_reduce(
            0, text.unsqueeze(1).expand(-1, 2), logits.detach(), "amax"
        )
        sums = logits.new_zeros(count, 2).index_add(0, text, (logits - top[text]).exp())
        wanted = batch.labels.to(logits)
        log_p = ((logits - top[text]) * wanted).sum() - (sums.log()[text] * wanted).sum()
        return -log_p / wanted.sum().clamp_min(1)

    def score(self, logits: Tensor, batch: Batch) -> float:
        """Return the mean F1 of answers' words, by character where a language has no blanks."""
        answers = self.answers_of(logits, batch)
        return sum(answer_f1(found, given) for (found, _), (_, _, given) in zip(answers, batch.targets, strict=True)) / len(
            answers
        )

    def exact(self, logits: Tensor, batch: Batch) -> float:
        """Return the share of answers that are one of those given, up to case, articles and signs."""
        found = self.answers_of(logits, batch)
        pairs = zip(found, batch.targets, strict=True)
        return sum(_words(text) in map(_words, given) for (text, _), (_, _, given) in pairs) / len(found)

    def answers_of(self, logits: Tensor, batch: Batch) -> list[tuple[str, int]]:
        """Return the likeliest answer of each example, and the character at which it begins."""
        found = []
        for scores, (context, places, _) in zip(
            torch.split(logits.detach().cpu(), list(batch.sizes)), batch.targets, strict=True
        ):
            if not places:
                found.append(("", 0))
                continue
            pairs = scores[:, :1] + scores[:, 1]
            pairs = pairs.masked_fill(torch.ones_like(pairs).triu().tril(_LONGEST - 1) == 0, -torch.inf)
            first, last = divmod(int(pairs.argmax()), len(places))
            found.append((context[places[first][0] : places[last][1]], places[first][0]))
        return found


def answer_f1(found: str, given: Sequence[str]) -> float:
    """Return the F1 of an answer's words against the best of those given.

    Example:
        >>> answer_f1("the red house", ["a house", "red"])
        0.6666666666666666
    """
    best = 0.0
    for text in given:
        ours, theirs = Counter(_words(found)), Counter(_words(text))
        shared = (ours & theirs).total()
        best = max(best, 2 * shared / (ours.total() + theirs.total()) if shared else float(ours == theirs))
    return best


def _words(text: str) -> list[str]:
    """Return a text's words in small letters without articles and signs; ideographs are words of their own."""
    plain = "".join(f" {c} " if is_ideograph(c) else c for c in text.lower() if c not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()
