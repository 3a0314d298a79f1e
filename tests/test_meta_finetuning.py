"""Fine-tuning at adaptation: what it moves, what it leaves, and what it is good for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import loaded
from tiny import law_episodes, random_batch, random_learner, same_bits, snapshot, tiny_learner

from kshot.deploy import adapt, load_adapted
from kshot.errors import ConfigError
from kshot.meta import ProtoNet
from kshot.meta.finetuning import _EACH, _MOST_TEXTS, _drawn, fine_tuned
from kshot.models import Batch

FEW = ProtoNet(finetune_steps=4, finetune_lr=1e-3, finetune_shots=1)


def named(batch: Batch) -> Batch:
    """The batch with its first texts of each class once more as names."""
    rows = [*range(len(batch)), *(int((batch.labels == label).nonzero()[0]) for label in range(batch.ways))]
    return Batch(batch.labels[rows], batch.ways, batch.input_ids[rows], batch.mask[rows], names=batch.ways)


def test_it_lowers_the_loss_that_it_descends_on():
    learner, support = random_learner(), random_batch(3, (4, 5, 3))

    moved = fine_tuned(learner, support, FEW.left_out_loss, 10, 1e-3)

    after = learner.with_params(learner.params | moved)
    assert FEW.left_out_loss(after, support) < 0.9 * FEW.left_out_loss(learner, support)


def test_word_vectors_and_the_head_stay_and_the_learner_is_as_before():
    learner, support = random_learner(), random_batch(3, (4, 5, 3))
    before = snapshot(learner.params)

    moved = fine_tuned(learner, support, FEW.left_out_loss, 2, 1e-3)

    assert same_bits(snapshot(learner.params), before)
    assert learner.backbone.word_vectors[0] not in moved
    assert all(name.startswith("backbone.") for name in moved)
    changed = [name for name, value in moved.items() if not torch.equal(value, learner.params[name])]
    assert len(changed) > len(moved) / 2


def test_the_same_examples_give_the_same_task():
    learner, support = random_learner(), random_batch(3, (4, 5, 3))

    assert same_bits(FEW.adapt(learner, support), FEW.adapt(learner, support))


def test_with_few_examples_and_with_vectors_it_is_plain():
    learner, support = random_learner(), random_batch(3, (2, 2, 2))
    plain = ProtoNet().adapt(learner, support)

    assert same_bits(replace(FEW, finetune_shots=3).adapt(learner, support), plain)
    assert same_bits(FEW.adapt(learner, learner.featurised(support)), plain)
    assert FEW.adapt(learner, support).keys() > plain.keys()


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_meta_training_is_without_it(leave_one_out):
    learner = tiny_learner()
    sampler, _ = law_episodes()
    episodes = [learner.encode(sampler[index]) for index in range(2)]
    with_it, without = (ProtoNet(leave_one_out=leave_one_out, finetune_steps=steps) for steps in (5, 0))

    assert torch.equal(with_it.meta_loss(learner, episodes)[0], without.meta_loss(learner, episodes)[0])


def test_a_drawn_batch_has_few_texts_of_each_label_and_the_names_of_these():
    support = named(random_batch(5, (9, 1, 3, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20)))

    for seed in range(20):
        batch = _drawn(support, torch.Generator().manual_seed(seed))
        texts = len(batch) - batch.names
        assert batch.names == batch.ways < support.ways
        assert texts <= _MOST_TEXTS
        assert batch.labels[texts:].tolist() == list(range(batch.ways))
        assert set(batch.labels[:texts].tolist()) == set(range(batch.ways))
        assert max(batch.labels[:texts].bincount().tolist()) <= _EACH


def test_a_drawn_batch_keeps_texts_with_their_labels():
    support = named(random_batch(5, (3, 2, 4)))
    known = {(tuple(ids[mask.bool()].tolist()), int(label)) for ids, mask, label in _rows(support)}

    batch = _drawn(support, torch.Generator().manual_seed(1))

    assert batch.ways == 3  # all fit, in another order
    renumbered = {
        int(new): next(old for text, old in known if text == tuple(ids[mask.bool()].tolist()))
        for ids, mask, new in list(_rows(batch))[-3:]
    }
    assert sorted(renumbered.values()) == [0, 1, 2]
    for ids, mask, label in _rows(batch):
        assert (tuple(ids[mask.bool()].tolist()), renumbered[int(label)]) in known


def _rows(batch: Batch):
    return zip(batch.input_ids, batch.mask, batch.labels, strict=True)


def test_a_fine_tuned_task_is_saved_and_loaded(tmp_path):
    run = replace(loaded(), algorithm=FEW)
    texts = ["where is it", "it never came", "give me my money", "i want it back"]
    labels = ["parcel late", "parcel late", "refund", "refund"]

    task = adapt(run, texts, labels)
    task.save(tmp_path / "task")

    again = load_adapted(tmp_path / "task", run)
    assert again.predict(texts) == task.predict(texts)
    assert task.predict(texts)[0].probabilities != adapt(loaded(), texts, labels).predict(texts)[0].probabilities


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"finetune_steps": -1}, "algorithm.finetune_steps is -1. At least 0 is expected."),
        ({"finetune_lr": 0.0}, "algorithm.finetune_lr is 0.0. A number above 0 is expected."),
        ({"finetune_steps": 3, "metric": "euclidean"}, "algorithm.finetune_steps is asked with the metric 'euclidean'."),
        ({"leave_one_out": True, "metric": "mahalanobis"}, "algorithm.leave_one_out is asked with the metric 'mahalanobis'."),
    ],
)
def test_wrong_settings_are_refused(options, sentence):
    with pytest.raises(ConfigError) as error:
        ProtoNet(**options)

    assert str(error.value).startswith(sentence)
