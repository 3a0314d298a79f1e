"""Labels' names as support examples: read, encoded, weighed, measured and handed on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import loaded
from tiny import finite_difference_error, gradient_of, law_episodes, learner_for, random_batch, tiny_learner

from kshot.deploy import adapt
from kshot.evaluation.baselines import new_baselines
from kshot.meta import Algorithm, ProtoNet
from kshot.meta.matching import Matching
from kshot.meta.metric import NAMES
from kshot.meta.relation import Relation
from kshot.meta.ridge import R2D2
from kshot.models import Batch, EncodedEpisode
from kshot.models.features import encode_once
from kshot.tasks import Examples
from kshot.tasks.episodes import load_episodes, save_episodes
from kshot.tasks.label_names import label_texts
from kshot.training import load_run
from kshot.training.run import save_run

METRIC = [ProtoNet(), ProtoNet("euclidean"), ProtoNet("mahalanobis"), Matching(), Relation(hidden=5), R2D2()]


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (["card_arrival", "cooking/recipe", "top-up"], ("card arrival", "cooking recipe", "top up")),
        (["AddToPlaylist", "BookRestaurant"], ("Add To Playlist", "Book Restaurant")),
        (["comp.sys.ibm.pc.hardware", "rec.autos"], ("comp sys ibm pc hardware", "rec autos")),
        (["退款", "物流"], ("退款", "物流")),
        (["好", "坏"], ("好", "坏")),
        (["  two  words ", "one"], ("two words", "one")),
        (["class_01", "class_02"], ()),
        (["0", "1", "2"], ()),
        (["A", "B", "C"], ()),
        (["intent 1", "refund"], ("intent 1", "refund")),
        (["...", "refund", "delivery"], ()),
    ],
)
def test_names_are_read_and_those_that_say_nothing_are_left(labels, texts):
    assert label_texts(labels) == texts


def test_an_episode_with_its_names_holds_each_once_at_the_end(tmp_path):
    _, (episode, *_) = law_episodes()

    named = episode.named()

    count = len(episode.labels)
    assert named.support.names == count
    assert named.support.texts[:-count] == episode.support.texts
    assert named.support.labels[-count:] == tuple(range(count))
    assert named.support.rows == episode.support.rows
    assert named.query == episode.query
    save_episodes(tmp_path / "dump.jsonl", [named])
    assert load_episodes(tmp_path / "dump.jsonl") == [named]


def test_an_episode_whose_names_say_nothing_stays_as_it_is():
    _, (episode, *_) = law_episodes()
    numbered = replace(episode, labels=tuple(str(index) for index in range(len(episode.labels))))

    assert numbered.named() == numbered


def test_every_way_of_encoding_gives_the_same_vectors():
    sampler, episodes = law_episodes()
    plain = replace(tiny_learner(), names=True)
    stored = plain.with_stores([sampler.tasks[0].corpus])
    frozen = stored.with_vectors(10**6)

    for episode, once in zip(episodes, encode_once(plain, episodes), strict=True):
        expected = once.support.features
        for learner in (plain, stored, frozen):
            support = learner.encode(episode).support
            assert support.names == once.support.names == len(episode.labels)
            assert support.labels.tolist() == once.support.labels.tolist()
            found = learner.features(learner.params, support).detach()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def named_episode() -> EncodedEpisode:
    """An unbalanced episode whose support set ends with a name a class."""
    texts, names = random_batch(2, (1, 3, 2)), random_batch(4, (1, 1, 1))
    order = names.labels.argsort()
    width = max(texts.input_ids.shape[1], names.input_ids.shape[1])
    ids, mask = (
        torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
        for parts in ((texts.input_ids, names.input_ids[order]), (texts.mask, names.mask[order]))
    )
    labels = torch.cat([texts.labels, torch.arange(3)])
    return EncodedEpisode(Batch(labels, 3, ids, mask, names=3), random_batch(3, (2, 2, 2)))


def weighing(algorithm: Algorithm, weight: float):
    learner = replace(learner_for(algorithm), names=True)
    own = algorithm.meta_parameters(learner) | {NAMES: torch.tensor(math.log(weight), dtype=torch.float64)}
    return learner.with_params(learner.params | {name: value.detach().requires_grad_() for name, value in own.items()})


def logits(algorithm: Algorithm, learner, episode: EncodedEpisode) -> np.ndarray:
    return algorithm.logits(learner, algorithm.adapt(learner, episode.support), episode.query).detach().numpy()


@pytest.mark.parametrize("algorithm", METRIC, ids=str)
def test_a_name_of_weight_two_is_a_name_given_twice(algorithm):
    episode = named_episode()
    support = episode.support
    again = [*range(len(support)), *range(len(support) - 3, len(support))]
    twice = Batch(support.labels[again], 3, support.input_ids[again], support.mask[again])

    found = logits(algorithm, weighing(algorithm, 2.0), episode)

    np.testing.assert_allclose(
        found, logits(algorithm, weighing(algorithm, 5.0), EncodedEpisode(twice, episode.query)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("algorithm", METRIC, ids=str)
def test_a_name_of_almost_no_weight_is_as_none(algorithm):
    episode = named_episode()
    support = episode.support
    without = Batch(support.labels[:-3], 3, support.input_ids[:-3], support.mask[:-3])

    found = logits(algorithm, weighing(algorithm, 1e-12), episode)

    np.testing.assert_allclose(
        found, logits(algorithm, weighing(algorithm, 1.0), EncodedEpisode(without, episode.query)), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("algorithm", METRIC, ids=str)
def test_the_weight_of_names_is_meta_learned(algorithm):
    learner, episode = weighing(algorithm, 0.7), named_episode()
    found = gradient_of(algorithm.meta_loss(learner, [episode])[0], {NAMES: learner.params[NAMES]})

    error = finite_difference_error(
        lambda params: algorithm.meta_loss(learner.with_params(learner.params | params), [episode])[0], learner.params, found
    )

    assert float(found[NAMES].abs()) > 1e-6
    assert error < 1e-8


def test_without_names_there_is_no_weight():
    assert NAMES not in ProtoNet().meta_parameters(tiny_learner())
    assert float(ProtoNet().meta_parameters(replace(tiny_learner(), names=True))[NAMES]) == 0.0


@pytest.mark.parametrize("algorithm", ["protonet", "maml", "anil"])
def test_adapting_uses_names_and_gives_none_as_a_reason(algorithm):
    texts, labels = ["where is it", "it never came", "give me my money"], ["parcel late", "parcel late", "refund"]
    run = loaded(algorithm)
    without = replace(run, learner=replace(run.learner, names=False))

    task = adapt(run, texts, labels)

    assert len(task.vectors) == 3
    probe = ["late parcel"]
    assert task.predict(probe)[0].probabilities != adapt(without, texts, labels).predict(probe)[0].probabilities
    assert [reason.text in texts for reason in task.predict(probe, nearest=9)[0].reasons] == [True] * 3


def test_a_run_remembers_whether_it_uses_names(tmp_path: Path):
    run = loaded()
    without = replace(run, learner=replace(run.learner, names=False))
    saved = save_run(run, tmp_path / "run")

    assert load_run(tmp_path / "run").learner.names
    assert saved.fingerprint != save_run(without, tmp_path / "other").fingerprint
    card = json.loads((tmp_path / "run" / "kshot.json").read_text())
    del card["label_names"]
    (tmp_path / "run" / "kshot.json").write_text(json.dumps(card))
    assert not load_run(tmp_path / "run").learner.names  # as runs were before names


@pytest.mark.parametrize("name", ["prototype", "logistic", "head", "tfidf", "full"])
def test_a_baseline_with_names_has_them_as_examples(name):
    (method,) = new_baselines([f"{name}+names"], tiny_learner())

    assert method.names
    assert method.name.endswith("with label names")


def test_names_are_examples_without_a_row():
    examples = Examples(("a", "b"), (0, 1), (7, 9)).named(["left side", "right side"])

    assert examples == Examples(("a", "b", "left side", "right side"), (0, 1, 0, 1), (7, 9), 2)
