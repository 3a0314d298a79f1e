"""Episodes are exact in shape, hold no text twice, and are the same however and wherever they are drawn."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import labelled, refusal, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.errors import ConfigError, DataError
from kshot.tasks import (
    Episode,
    EpisodeSampler,
    EpisodeSpec,
    Examples,
    Task,
    load_episodes,
    load_tasks,
    save_episodes,
)
from kshot.tasks.corpus import normalise

DISTINCT = 12  # usable texts a label in the data with duplicates


def one_task(folder: Path, rows: list[dict[str, Any]], name: str = "intents") -> Task:
    (task,) = load_tasks(write_jsonl(folder / f"{name}.jsonl", rows))
    return task


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    """Three tasks of 4, 7 and 10 labels; label ``i`` of a task has ``15 + 10 i`` texts."""
    folder = tmp_path_factory.mktemp("tasks")
    for count in (4, 7, 10):
        rows = [row for i in range(count) for row in labelled([f"{count}-{i}"], 15 + 10 * i)]
        write_jsonl(folder / f"task-{count}.jsonl", rows)
    return load_tasks(folder)


@pytest.fixture(scope="module")
def repetitive(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Six labels with 12 texts of their own, each written four times, and 6 texts that three labels share."""
    rows = []
    for i in range(6):
        for text in labelled([f"label-{i}"], DISTINCT):
            rows += [{**text, "text": written(text["text"])} for written in (str, str.upper, str.title, "  {}".format)]
        rows += [{"text": f"shared number {(i + n) % 6}", "label": f"label-{i}"} for n in range(3) for _ in range(5)]
    return one_task(tmp_path_factory.mktemp("repetitive"), rows)


def shots(episode: Episode) -> list[int]:
    counts = Counter(episode.support.labels)
    return [counts[label] for label in range(episode.ways)]


def check(episode: Episode, task: Task) -> None:
    """Assert what holds for every episode, whatever its shape."""
    assert len(set(episode.labels)) == episode.ways
    assert episode.task == task.name and episode.corpus == task.corpus.fingerprint
    both = episode.support.rows + episode.query.rows
    assert len(set(both)) == len(both)
    texts = [normalise(text) for text in episode.support.texts + episode.query.texts]
    assert len(set(texts)) == len(texts)
    for examples in (episode.support, episode.query):
        assert examples.texts == tuple(task.corpus.texts(examples.rows))
        assert set(examples.labels) == set(range(episode.ways))
        for row, label in zip(examples.rows, examples.labels, strict=True):
            assert row in task.rows(task.labels.index(episode.labels[label]))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**40), index=st.integers(0, 2**40))
def test_n_ways_k_shots_are_exact(tasks: list[Task], data: st.DataObject, seed: int, index: int) -> None:
    ways, shot = data.draw(st.integers(2, 10)), data.draw(st.integers(1, 14))
    queries = data.draw(st.integers(1, 15 - shot))
    sampler = EpisodeSampler(tasks, EpisodeSpec(ways, shot, queries), seed)
    episode = sampler[index]
    check(episode, next(task for task in tasks if task.name == episode.task))
    assert shots(episode) == [shot] * ways
    assert Counter(episode.query.labels) == dict.fromkeys(range(ways), queries)
    assert episode == sampler[index] == EpisodeSampler(tasks, sampler.spec, seed)[index]
    assert (episode.seed, episode.index) == (seed, index)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**40), imbalance=st.booleans())
def test_ranges_are_respected(tasks: list[Task], data: st.DataObject, seed: int, imbalance: bool) -> None:
    ways = sorted((data.draw(st.integers(2, 4)), data.draw(st.integers(2, 12))))
    low = data.draw(st.integers(1, 9))
    span = (low, low + data.draw(st.integers(1, 30)))
    queries = data.draw(st.integers(1, 6))
    sampler = EpisodeSampler(tasks, EpisodeSpec((ways[0], ways[1]), span, queries, imbalance), seed)
    for episode in sampler[:5]:
        task = next(task for task in tasks if task.name == episode.task)
        check(episode, task)
        assert ways[0] <= episode.ways <= min(ways[1], len(task.labels))
        assert span[0] <= min(shots(episode)) and max(shots(episode)) <= span[1]
        assert imbalance or len(set(shots(episode))) == 1
        (asked,) = set(Counter(episode.query.labels).values())
        assert 1 <= asked <= queries and (imbalance or asked == queries)


def test_ranges_are_used_to_both_ends(tasks: list[Task]) -> None:
    episodes = EpisodeSampler(tasks, EpisodeSpec((2, 4), (1, 3), 2), seed=0)[:200]
    assert {episode.ways for episode in episodes} == {2, 3, 4}
    assert {shots(episode)[0] for episode in episodes} == {1, 2, 3}
    assert {episode.task for episode in episodes} == {"task-4", "task-7", "task-10"}
    labels = {label for episode in episodes for label in episode.labels}
    assert labels == {label for task in tasks for label in task.labels}


def test_natural_imbalance_gives_bigger_labels_more_shots(tasks: list[Task]) -> None:
    ten = tasks[[task.name for task in tasks].index("task-10")]
    taken: dict[str, list[int]] = {}
    uneven = 0
    for episode in EpisodeSampler([ten], EpisodeSpec(10, (2, 20), 5, imbalance=True), seed=1)[:300]:
        uneven += len(set(shots(episode))) > 1
        for label, count in zip(episode.labels, shots(episode), strict=True):
            taken.setdefault(label, []).append(count)
    assert uneven > 290
    means = {label: sum(counts) / len(counts) for label, counts in taken.items()}
    by_size = sorted(ten.labels, key=ten.counts().__getitem__)
    assert means[by_size[-1]] > 2.5 * means[by_size[0]]
    assert sorted(by_size, key=means.__getitem__)[-4:] == by_size[-4:]
    assert min(map(min, taken.values())) == 2 and max(map(max, taken.values())) == 20


def test_the_smallest_label_keeps_a_query(tmp_path: Path) -> None:
    task = one_task(tmp_path, labelled(["big"], 100) + labelled(["small"], 4))
    for episode in EpisodeSampler([task], EpisodeSpec(2, (3, 50), 10, imbalance=True))[:50]:
        check(episode, task)
        assert shots(episode)[episode.labels.index("small")] == 3
        assert Counter(episode.query.labels) == {0: 1, 1: 1}


# Texts that occur more than once


def test_no_text_occurs_twice_where_the_data_repeats_them(repetitive: Task) -> None:
    for episode in EpisodeSampler([repetitive], EpisodeSpec(6, 5, DISTINCT - 5), seed=3)[:30]:
        check(episode, repetitive)
        assert shots(episode) == [5] * 6 and len(episode.query) == 6 * (DISTINCT - 5)
        assert not any("shared" in normalise(text) for text in episode.support.texts + episode.query.texts)
    for episode in EpisodeSampler([repetitive], EpisodeSpec((2, 6), (1, 40), 2, imbalance=True), seed=3)[:30]:
        check(episode, repetitive)
    most = max(shots(episode)[0] for episode in EpisodeSampler([repetitive], EpisodeSpec(2, (1, 40), 2))[:50])
    assert most == DISTINCT - 2


def test_repeated_texts_count_once(repetitive: Task) -> None:
    assert set(repetitive.counts().values()) == {DISTINCT * 4 + 15}
    sentence = refusal(lambda: EpisodeSampler([repetitive], EpisodeSpec(2, 5, DISTINCT - 4)), DataError)
    assert f"has labels with too few examples: 'label-0' has {DISTINCT}, 'label-1' has {DISTINCT}" in sentence
    assert f"5 shots and 8 queries need {DISTINCT + 1} different texts a label, each under no other label." in sentence


def test_a_rare_text_is_found_among_many_repeats(tmp_path: Path) -> None:
    rows = [{"text": "the same again", "label": label} for label in "ab" for _ in range(2_000)]
    rows = [{**row, "text": f"{row['text']} {row['label']}"} for row in rows] + labelled("ab", 2)
    task = one_task(tmp_path, rows)
    for episode in EpisodeSampler([task], EpisodeSpec(2, 2, 1))[:10]:
        check(episode, task)
        assert len(episode.support) == 4 and len(episode.query) == 2
    for episode in EpisodeSampler([task], EpisodeSpec(2, 1, 1))[:10]:
        assert len(episode.support) == len(episode.query) == 2


# The same episodes, whoever draws them


def first(batch: list[Episode]) -> Episode:
    return batch[0]


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_data_loader_gives_the_same_episodes(tasks: list[Task], workers: int, start: str | None) -> None:
    sampler = EpisodeSampler(tasks, EpisodeSpec((2, 5), (1, 5), 3), seed=5, length=9)
    expected = [sampler[index] for index in range(9)]
    assert list(sampler) == expected and sampler[2:7:2] == expected[2:7:2] and sampler[-1] == expected[-1]
    assert len(sampler) == 9
    loader = torch.utils.data.DataLoader(sampler, num_workers=workers, collate_fn=first, multiprocessing_context=start)
    assert list(loader) == expected


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(12)))
def test_any_order_of_drawing_gives_the_same_episodes(tasks: list[Task], order: list[int]) -> None:
    spec = EpisodeSpec((2, 5), (1, 5), 3, imbalance=True)
    shared = EpisodeSampler(tasks, spec, seed=5)
    drawn = {index: shared[index] for index in order}
    for worker in range(3):
        own = EpisodeSampler(tasks, spec, seed=5)
        assert all(own[index] == drawn[index] for index in range(worker, 12, 3))


def test_seeds_and_indices_differ(tasks: list[Task]) -> None:
    spec = EpisodeSpec(3, 2, 2)
    texts = {EpisodeSampler(tasks, spec, seed)[index].support.texts for seed in range(20) for index in range(20)}
    assert len(texts) == 400


def test_a_pickled_task_carries_no_rows(tasks: list[Task]) -> None:
    tasks[0].corpus.text(0)
    assert len(pickle.dumps(tasks[0])) < 5_000
    assert pickle.loads(pickle.dumps(tasks[0])).corpus.text(3) == tasks[0].corpus.text(3)


# Dumps


def test_dumped_episodes_are_reloaded_equal(tasks: list[Task], tmp_path: Path) -> None:
    episodes = EpisodeSampler(tasks, EpisodeSpec((2, 5), (1, 5), 3), seed=5)[:20]
    episodes.append(Episode("elsewhere", "", ("好", "b"), Examples(("a\u2028b\n", "\x85"), (0, 1)), Examples(("x",), (0,))))
    save_episodes(tmp_path / "deep" / "episodes.jsonl", episodes)
    assert load_episodes(tmp_path / "deep" / "episodes.jsonl") == episodes
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["episodes.jsonl"]


def test_a_damaged_or_newer_dump_names_its_line(tasks: list[Task], tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    save_episodes(path, EpisodeSampler(tasks, EpisodeSpec(2, 1, 1))[:3])
    lines = path.read_bytes().splitlines()
    value = json.loads(lines[1])
    damaged = [
        lines[1][:60],
        b"[]",
        b'{"schema": 1}',
        b"",
        lines[1].replace(b"number", b"\xff\xfe", 1),
        json.dumps({**value, "support": None}).encode(),
        json.dumps({**value, "schema": "one"}).encode(),
    ]
    for line in damaged:
        path.write_bytes(b"\n".join([lines[0], line, lines[2]]))
        sentence = refusal(lambda: load_episodes(path), DataError)
        assert sentence.startswith(f"{path}, line 2: not an episode (") and "Dump the episodes again." in sentence
    path.write_bytes(b"\n".join([lines[0], json.dumps({**value, "schema": 2, "more": 1}).encode()]))
    sentence = refusal(lambda: load_episodes(path), DataError)
    assert sentence == f"{path}, line 2: an episode of a newer schema. Upgrade kshot."
    assert f"No such file of episodes: '{tmp_path}'." in refusal(lambda: load_episodes(tmp_path), DataError)


# Refusals


def test_too_many_ways_name_the_most_that_there_are(tasks: list[Task]) -> None:
    sentence = refusal(lambda: EpisodeSampler(tasks, EpisodeSpec(11)), DataError)
    assert sentence == "Episodes of 11 ways were asked, and the largest of 3 task(s) has 10 labels. Use at most 10 ways."
    assert len(EpisodeSampler(tasks, EpisodeSpec(8)).tasks) == 1
    assert "Give tasks with at least two labels." in refusal(lambda: EpisodeSampler([], EpisodeSpec(2)), DataError)


def test_too_few_examples_name_the_label_the_number_and_the_need(tmp_path: Path) -> None:
    task = one_task(tmp_path, labelled(["many"], 20) + labelled(["few"], 7) + labelled(["fewer"], 6))
    sentence = refusal(lambda: EpisodeSampler([task], EpisodeSpec(2, (3, 9), 5)), DataError)
    assert "The task 'intents' has labels with too few examples: 'few' has 7, 'fewer' has 6." in sentence
    assert "3 shots and 5 queries need 8 different texts a label" in sentence
    assert "Add examples, remove these labels, or ask for fewer shots or queries." in sentence
    assert len(EpisodeSampler([task], EpisodeSpec(2, (1, 9), 5))[0].support) == 2  # no label has more than one shot to spare
    sentence = refusal(lambda: EpisodeSampler([task], EpisodeSpec(2, (6, 9), 5, imbalance=True)), DataError)
    assert "'fewer' has 6. 6 shots and 1 queries need 7" in sentence


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({"ways": 1}, "ways is 1. A number or a range (low, high) from 2 up is expected."),
        ({"ways": (5, 3)}, "ways is (5, 3)."),
        ({"ways": (2, 3, 4)}, "ways is (2, 3, 4)."),
        ({"shots": 0}, "shots is 0. A number or a range (low, high) from 1 up is expected."),
        ({"shots": (0, 5)}, "shots is (0, 5)."),
        ({"queries": 0}, "queries is 0. At least 1 is expected."),
        ({"shots": 5, "imbalance": True}, "imbalance is asked with shots 5. A range of shots is expected"),
    ],
)
def test_impossible_shapes_are_refused(shape: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(lambda: EpisodeSpec(**shape), ConfigError)


def test_a_negative_seed_is_refused(tasks: list[Task]) -> None:
    assert "The seed of episodes is -1." in refusal(lambda: EpisodeSampler(tasks, EpisodeSpec(2), seed=-1), ConfigError)


def test_a_shape_is_told_in_words() -> None:
    assert str(EpisodeSpec((2, 5), 1, 3)) == "2-5-way 1-shot, 3 queries a label"


# Memory


MEASURE = """
import sys
from pathlib import Path
from kshot.tasks import EpisodeSampler, EpisodeSpec, load_tasks

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024  # MB

EpisodeSampler(load_tasks("bundled:en/law"), EpisodeSpec())[0]  # what the libraries themselves take
before = anonymous()
(task,) = load_tasks(sys.argv[1])
sampler = EpisodeSampler([task], EpisodeSpec(ways=10, shots=5, queries=5))
assert sum(len(episode.support) for episode in sampler[:100]) == 5_000
print(len(task), anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the process's memory is read from /proc")
def test_a_big_corpus_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    path, padding = tmp_path / "big.tsv", "lorem ipsum dolor sit amet " * 20
    with path.open("w", encoding="utf-8") as stream:
        stream.write("text\tlabel\n")
        stream.writelines(f"{index} {padding}\tlabel {index % 50}\n" for index in range(200_000))
    (task,) = load_tasks(path)
    assert (task.corpus.folder / "rows.arrow").stat().st_size > 100e6
    output = subprocess.run([sys.executable, "-c", MEASURE, str(path)], check=True, capture_output=True, text=True).stdout
    rows, grown = output.split()
    assert int(rows) == 200_000
    assert float(grown) < 30
