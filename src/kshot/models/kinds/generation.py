"""Generation: a target text for a source (translation, summary, reply); and language modelling, where all is the target.

What is learned is the likelihood of the target's tokens; there are no labels and there is no head. So the algorithms that take
gradient steps on a support set serve, with all weights or an adapter's, and those that compare class vectors do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from kshot.errors import DataError, listing
from kshot.models.batch import Batch, pad
from kshot.models.learner import Learner
from kshot.models.spans import Spans
from kshot.tasks import Corpus, EpisodeSpec, Examples, Sampler, Task
from kshot.tasks.columns import TEXT_NAMES
from kshot.tasks.domains import DomainSampler
from kshot.tasks.readers import Record, column_names
from kshot.tasks.schema import EmptyFieldError, ReadOptions, Roles, Row, Schema, WrongRowError, text_of

_BETWEEN = "\n=>\n"  # source and target, for a decoder that reads one text
_SOURCES = ("source", "input", "src", "prompt", "instruction", "document", "article", "dialogue", "question", "text")
_TARGETS = ("target", "output", "tgt", "completion", "response", "summary", "answer", "reply", "translation")
_CHAT = ("messages", "conversations", "turns")


class GenerationSchema(Schema):
    """A source and a target text, or the turns of a chat, whose last one is the target."""

    kind = "seq2seq"
    least_labels = 0
    annotated = True

    def columns(self, where: str, sample: Sequence[Record], options: ReadOptions, label: str | None) -> Roles:
        names = column_names(sample)
        chat = next((name for name in _CHAT if name in names), None)
        if chat is not None and options.text_column is None:
            return {"chat": chat, "task": options.task_column}
        source = options.text_column or next((name for name in _SOURCES if name in names), None)
        target = options.label_column or next((name for name in _TARGETS if name in names and name != source), None)
        absent = [name for name in (source, target) if name is None or name not in names]
        if absent:
            raise DataError(
                f"{where}: no source and target found.",
                f"The columns are: {listing(names)}; expected are 'source' and 'target', or 'messages'.",
                "Name them with --text-column and --label-column.",
            )
        return {"source": source, "target": target, "task": options.task_column}

    def row(self, record: Record, found: Roles, label: str | None) -> Row:
        if "chat" in found:
            source, target = _turns(record.get(str(found["chat"])), str(found["chat"]))
            return Row(source, annotation=target)
        return Row(text_of(record, found["source"], "source"), annotation=text_of(record, found["target"], "target"))

    def asked(self, value: Any) -> str:
        if isinstance(value, Mapping):
            value = next((value[name] for name in _SOURCES if name in value), None)
        return super().asked(value)

    def example(self, value: Any, label: Any) -> Row:
        return replace(super().example(value, label), labels=(), annotation=label)

    def episodes(self, tasks: Sequence[Task], spec: EpisodeSpec, seed: int = 0) -> Sampler:
        return DomainSampler(tasks, spec, seed)

    def described(self, spec: EpisodeSpec) -> str:
        return f"{spec.shots} examples, {spec.queries} queries"


def _turns(turns: Any, column: str) -> tuple[str, str]:
    """Return what was said before the last turn, and that turn."""
    if not isinstance(turns, list) or len(turns) < 2:
        raise WrongRowError(f"'{column}' holds no list of two turns or more")
    said = []
    for turn in turns:
        text = turn.get("content", turn.get("value", turn.get("text"))) if isinstance(turn, dict) else turn
        if not isinstance(text, str) or not text.strip():
            raise EmptyFieldError("turn", column)
        who = turn.get("role", turn.get("from", turn.get("speaker"))) if isinstance(turn, dict) else None
        said.append((f"{who}: " if who else "", text))
    return "\n".join(who + text for who, text in said[:-1]), said[-1][1]


class LanguageSchema(GenerationSchema):
    """Plain texts: what is learned is how they go on."""

    kind = "lm"
    annotated = False

    def columns(self, where: str, sample: Sequence[Record], options: ReadOptions, label: str | None) -> Roles:
        names = column_names(sample)
        text = options.text_column or next((name for name in TEXT_NAMES if name in names), names[0] if names else None)
        if text not in names:
            raise DataError(f"{where}: no column '{text}' (--text-column).", f"The columns are: {listing(names)}.")
        return {"text": text, "task": options.task_column}

    def row(self, record: Record, found: Roles, label: str | None) -> Row:
        return Row(text_of(record, found["text"]))

    def asked(self, value: Any) -> str:
        return Schema.asked(self, value.get("text") if isinstance(value, Mapping) else value)

    def example(self, value: Any, label: Any = None) -> Row:
        return Row(self.asked(value))


@dataclass(frozen=True)
class Decoding:
    """How a target is made, token by token.

    Args:
        most_tokens, least_tokens: its length.
        beams: alternatives that are followed side by side; 1 takes the likeliest token each time.
        temperature: above 0 draws tokens at random, the more so the higher; 0 does not draw.
        top_p: draws among the likeliest tokens of so much probability.
        length_penalty: above 0 prefers longer targets among beams.
        seed: of the draws.
    """

    most_tokens: int = 64
    least_tokens: int = 0
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    length_penalty: float = 1.0
    seed: int = 0


class GenerativeLearner(Learner):
    """A causal decoder, or an encoder-decoder, with its own output layer."""

    kind = "seq2seq"
    metric = "token likelihood"
    parts = 0
    head = "lm"
    labelled = False
    whole_vocabulary = True

    def featurised(self, batch: Batch) -> Batch:
        return batch

    def lowered(self, batch: Batch, moving: Any) -> Batch:
        return batch

    def with_stores(self, corpora: Sequence[Corpus]) -> Self:
        return self

    def batch(self, examples: Examples, labels: Sequence[str], corpus: str = "") -> Batch:
        if self.backbone.model.config.is_encoder_decoder:
            return self._pairs(examples)
        rows, firsts = list[list[int]](), list[int]()
        for source, target in zip(examples.texts, examples.annotations or ("",) * len(examples), strict=True):
            for row, first in self._as_one(source, target if examples.annotations else None):
                rows.append(row)
                firsts.append(first)
        places = [(row, at) for row, first in enumerate(firsts) for at in range(first, len(rows[row]))]
        ids, mask = pad(rows, self.backbone.tokenizer.pad_token_id or 0)
        return self._predicting(examples, places, [rows[row][at] for row, at in places], shift=1, ids=ids, mask=mask)

    def _as_one(self, source: str, target: str | None) -> Iterator[tuple[list[int], int]]:
        """Yield an example as rows of tokens, with the first of each that is to be predicted; a long text in several rows."""
        tokenizer, most = self.backbone.tokenizer, self.backbone.max_length
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        start = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else (end or [0])[0]]
        if target is None:
            ids = self._plain(source) + end
            for at in range(0, len(ids), most - 1):
                yield start + ids[at : at + most - 1], 1
            return
        wanted = self._plain(target) + end
        if len(wanted) > most - 2:
            raise DataError(
                f"The target {target[:40]!r} has {len(wanted)} tokens, and the model takes {most} with its source.",
                mend="Shorten it, or raise --max-length as far as the model goes.",
            )
        prompt = (start + self._plain(source + _BETWEEN))[: most - len(wanted)]
        yield prompt + wanted, len(prompt)

    def _pairs(self, examples: Examples) -> Batch:
        tokenizer, most = self.backbone.tokenizer, self.backbone.max_length
        ids, mask = pad(self.backbone.tokenize(list(examples.texts)), tokenizer.pad_token_id or 0)
        targets = [[*self._plain(text)[: most - 1], tokenizer.eos_token_id] for text in examples.annotations]
        begin = self.backbone.model.config.decoder_start_token_id
        decoder_ids, _ = pad([[begin, *target[:-1]] for target in targets], tokenizer.pad_token_id or 0)
        places = [(row, at) for row, target in enumerate(targets) for at in range(len(target))]
        wanted = [targets[row][at] for row, at in places]
        return self._predicting(examples, places, wanted, shift=0, ids=ids, mask=mask, decoder_ids=decoder_ids)

    def _predicting(
        self,
        examples: Examples,
        places: Sequence[tuple[int, int]],
        wanted: Sequence[int],
        shift: int,
        ids: Tensor,
        mask: Tensor,
        decoder_ids: Tensor | None = None,
    ) -> Batch:
        """Return a batch whose units are tokens to be predicted, each from the state ``shift`` places before it."""
        rows, offsets = torch.tensor(places, dtype=torch.long).view(-1, 2).unbind(1)
        spans = Spans(rows, offsets - shift, torch.arange(len(places)), len(places))
        targets = examples.annotations or examples.texts
        labels = torch.tensor(wanted, dtype=torch.long)
        return Batch(labels, 0, ids, mask, spans=spans, targets=targets, decoder_ids=decoder_ids).to(self.device)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def logits(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the scores (T, V) of the vocabulary for each token that is to be predicted."""
        assert batch.spans is not None and batch.input_ids is not None and batch.mask is not None
        self.backbone.model.train(self.dropout)
        first = int(batch.spans.offsets.min()) if len(batch.spans.offsets) else 0
        scores = self.backbone.token_scores(params, batch.input_ids, batch.mask, first, batch.decoder_ids)
        return scores[batch.spans.rows, batch.spans.offsets - first]

    def score(self, logits: Tensor, batch: Batch) -> float:
        """Return the geometric mean of the tokens' probabilities, which is one over the perplexity."""
        return float(torch.exp(-self.loss_of(logits.detach(), batch)))

    @torch.no_grad()
    def generate(self, params: Mapping[str, Tensor], sources: Sequence[str], how: Decoding | None = None) -> list[str]:
        """Return a target for each source.

        Args:
            params: at which.
            sources: the texts.
            how: the decoding.
        """
        how, tokenizer, backbone = how or Decoding(), self.backbone.tokenizer, self.backbone
        if backbone.model.config.is_encoder_decoder:
            rows = backbone.tokenize(list(sources))
        else:
            most = max(2, backbone.max_length - how.most_tokens)
            begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            rows = [(begin + self._plain(source + _BETWEEN))[:most] for source in sources]
        width = max(map(len, rows), default=0)
        filler = tokenizer.pad_token_id or 0
        ids = torch.tensor([[filler] * (width - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        options: dict[str, Any] = {"max_new_tokens": how.most_tokens, "num_beams": how.beams, "do_sample": how.temperature > 0}
        if how.temperature:
            options |= {"temperature": how.temperature, "top_p": how.top_p}
        if how.beams > 1:
            options["length_penalty"] = how.length_penalty
        if how.least_tokens:
            options["min_new_tokens"] = how.least_tokens
        torch.manual_seed(how.seed)
        with _at(backbone.parameters(), params):
            backbone.model.eval()
            found = backbone.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=filler, **options)
        made = found if backbone.model.config.is_encoder_decoder else found[:, width:]
        return [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]


class LanguageLearner(GenerativeLearner):
    """A causal decoder of plain texts."""

    kind = "lm"

    def rows_of(self, texts: Sequence[str]) -> Batch:
        """Return texts end to end in full rows, each of whose tokens but the first is to be predicted: nothing is padded."""
        tokenizer, most = self.backbone.tokenizer, self.backbone.max_length
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = [token for text in texts for token in self._plain(text) + end]
        rows = [ids[start : start + most] for start in range(0, len(ids), most)]
        rows = rows[:-1] if len(rows) > 1 and len(rows[-1]) < most else rows
        places = [(row, at) for row, own in enumerate(rows) for at in range(1, len(own))]
        padded, mask = pad(rows, tokenizer.pad_token_id or 0)
        wanted = [rows[row][at] for row, at in places]
        return self._predicting(Examples(tuple(texts)), places, wanted, shift=1, ids=padded, mask=mask)


@contextmanager
def _at(own: Mapping[str, torch.nn.Parameter], params: Mapping[str, Tensor]) -> Iterator[None]:
    """Put parameters into a model for a while, without copying them."""
    before = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = params[name].detach()
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = before[name]
