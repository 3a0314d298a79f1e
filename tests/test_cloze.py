"""Tasks of hidden words from texts without labels."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import refusal

from kshot.errors import DataError
from kshot.tasks import EpisodeSampler, EpisodeSpec, load_tasks
from kshot.tasks.cloze import Cloze, cloze_records
from kshot.tasks.label_names import label_texts

ANIMALS = ("heron", "badger", "otter", "weasel")


def texts(each: int = 14) -> list[str]:
    pairs = [(hour, number) for hour in range(each) for number in range(len(ANIMALS))]
    return [f"the {ANIMALS[number]} sleeps by the river at {hour}:{number}0" for hour, number in pairs]


def test_a_chosen_word_is_hidden_wherever_it_is_and_is_the_label():
    records = [record for _, record in cloze_records(lambda: iter(texts()), Cloze(most_share=0.26))]
    assert len(records) == 56
    assert Counter(record["label"] for record in records) == dict.fromkeys("0123", 14)
    assert all("[MASK]" in record["text"] and not any(animal in record["text"] for animal in ANIMALS) for record in records)
    assert label_texts(("0", "1", "2", "3")) == ()  # no name gives the word away


def test_words_are_drawn_by_the_seed_and_no_text_is_used_twice():
    def drawn(seed: int):
        return list(cloze_records(lambda: iter(texts()), Cloze(words=2, most_share=0.26, seed=seed)))

    assert drawn(0) == drawn(0)
    assert len({number for number, _ in drawn(0)}) == len(drawn(0)) == 28


def test_files_of_plain_texts_make_a_task(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("\n".join(texts()), encoding="utf-8")
    (task,) = load_tasks(f"cloze:{tmp_path / 'notes'}")
    assert task.name == "notes"
    assert set(task.labels) >= {"0", "1", "2"}
    episode = EpisodeSampler([task], EpisodeSpec(3, 1, 2))[0]
    assert all("[MASK]" in text for text in episode.support.texts)
    assert load_tasks(f"cloze:{tmp_path / 'notes'}")[0].corpus.fingerprint == task.corpus.fingerprint


@pytest.mark.parametrize("source", ["cloze:nowhere", "cloze:{}"])
def test_what_makes_no_task_is_refused(tmp_path, source):
    (tmp_path / "few.txt").write_text("one text\nanother one\n")
    said = refusal(lambda: load_tasks(source.format(tmp_path / "few.txt")), DataError)
    assert (
        "No such file or folder" if "nowhere" in source else "To make tasks of hidden words, at least two are needed."
    ) in said
