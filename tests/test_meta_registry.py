"""Algorithms by name: what is unknown or wrong is told in a sentence that says how to mend it."""

from __future__ import annotations

import pytest
from tiny import learner_for, one_thread, random_episode, random_learner  # noqa: F401

from kshot.errors import ConfigError
from kshot.meta import ALGORITHMS, CAVIA, MAML, Algorithm, ProtoNet, Reptile, new_algorithm

NAMES = "protonet, matching, relation, r2d2, maml, fomaml, maml++, metasgd, anil, boil, protomaml, imaml, cavia, reptile"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_options_of_an_algorithm_make_it_again(name):
    algorithm = new_algorithm(name)

    assert isinstance(algorithm, Algorithm)
    assert new_algorithm(name, ALGORITHMS[name].options()) == algorithm
    assert ALGORITHMS[name].options() == vars(algorithm)


def test_names_stand_for_presets_and_options_go_before_them():
    assert new_algorithm("anil") == MAML(adapts="head")
    assert new_algorithm("fomaml") == MAML(hypergradient="first-order")
    assert new_algorithm("fomaml", {"hypergradient": "graph", "inner_lr": 1}) == MAML(hypergradient="graph", inner_lr=1)
    assert new_algorithm("maml", {"adapt_steps": None}).adapt_steps is None


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "protonets",
            {},
            "No algorithm 'protonets'. Did you mean 'protonet'? There are: " + NAMES + ".",
        ),
        (
            "xyz",
            {},
            "No algorithm 'xyz'. There are: " + NAMES + ".",
        ),
        (
            "maml",
            {"inner_step": 3},
            "The algorithm 'maml' has no hyperparameter 'inner_step'. Did you mean 'inner_steps'? "
            "It has: inner_lr, head_lr, inner_steps, adapt_steps, adapts, optimizer, l2_to_start, head_start, ways, "
            "hypergradient, first_order_steps, cg_steps.",
        ),
        (
            "protonet",
            {"inner_lr": 1.0},
            "The algorithm 'protonet' has no hyperparameter 'inner_lr'. Did you mean 'finetune_lr'? It has: metric, scale, "
            "learn_scale, leave_one_out, head, regression_shots, regression_scale, lexical, go_back, finetune_steps, "
            "finetune_lr, finetune_shots.",
        ),
        ("maml", {"inner_steps": "3"}, "algorithm.inner_steps is '3'. Expected int, such as 5."),
        ("maml", {"inner_steps": 2.0}, "algorithm.inner_steps is 2.0. Expected int, such as 5."),
        ("maml", {"inner_steps": True}, "algorithm.inner_steps is True. Expected int, such as 5."),
        ("maml", {"inner_lr": "fast"}, "algorithm.inner_lr is 'fast'. Expected float or int, such as 0.01."),
        ("maml", {"inner_lr": None}, "algorithm.inner_lr is None. Expected float or int, such as 0.01."),
        ("maml", {"adapt_steps": 1.5}, "algorithm.adapt_steps is 1.5. Expected int or empty, such as None."),
        ("anil", {"adapts": 1}, "algorithm.adapts is 1. Expected str, such as 'head'."),
        (
            "maml",
            {"hypergradient": "first_order"},
            "algorithm.hypergradient is 'first_order'. Did you mean 'first-order'? "
            "Expected graph, checkpointed, implicit, first-order.",
        ),
        (
            "maml",
            {"hypergradient": "implicit"},
            "algorithm.hypergradient is 'implicit' with l2_to_start 0.0 and 5 step(s). The implicit gradient needs l2_to_start "
            "above 0, which ties the result to the start, and at least 1 step.",
        ),
        ("maml", {"optimizer": "adams"}, "algorithm.optimizer is 'adams'. Did you mean 'adam'? Expected sgd, momentum, adam."),
        (
            "maml",
            {"head_start": "prototype"},
            "algorithm.head_start is 'prototype'. Did you mean 'prototypes'? Expected shared, zero, learned, prototypes.",
        ),
        ("maml", {"ways": 1}, "algorithm.ways is 1. At least 2 is expected."),
        ("maml", {"first_order_steps": -1}, "algorithm.first_order_steps is -1. At least 0 is expected."),
        ("imaml", {"cg_steps": 0}, "algorithm.cg_steps is 0. At least 1 is expected."),
        ("imaml", {"l2_to_start": -1.0}, "algorithm.l2_to_start is -1.0. At least 0 is expected."),
        ("maml++", {"multi_step": 1.5}, "algorithm.multi_step is 1.5. A share between 0 and 1 is expected."),
        ("maml++", {"multi_step_steps": -1}, "algorithm.multi_step_steps is -1. At least 0 is expected."),
        (
            "maml++",
            {"hypergradient": "implicit", "l2_to_start": 1.0},
            "algorithm.hypergradient is 'implicit', and MAML++ counts the loss after every step. "
            "Expected graph, checkpointed or first-order.",
        ),
        ("cavia", {"context": 0}, "algorithm.context is 0. At least 1 is expected."),
        (
            "cavia",
            {"head_start": "shared"},
            "algorithm.head_start is 'shared', where all classes start alike, and CAVIA's head does not move. "
            "Expected prototypes or learned.",
        ),
        ("protonet", {"learn_scale": 1}, "algorithm.learn_scale is 1. Expected bool, such as True."),
        ("maml", {"inner_steps": -1}, "algorithm.inner_steps is -1. At least 0 is expected."),
        ("maml", {"adapt_steps": -1}, "algorithm.adapt_steps is -1. At least 0 is expected."),
        ("maml", {"inner_lr": -0.1}, "algorithm.inner_lr is -0.1. At least 0 is expected."),
        ("maml", {"head_lr": float("nan")}, "algorithm.head_lr is nan. At least 0 is expected."),
        ("reptile", {"adapt_steps": -2}, "algorithm.adapt_steps is -2. At least 0 is expected."),
        (
            "reptile",
            {"inner_steps": 0},
            "algorithm.inner_steps is 0. Reptile needs at least 1: without a step nothing is learned.",
        ),
        (
            "reptile",
            {"adapts": "head"},
            "algorithm.adapts is 'head', and the moves of the classes cancel in the start that they share. "
            "Reptile learns where the backbone moves: all, bias or top-K-layers.",
        ),
        (
            "protonet",
            {"metric": "cosin"},
            "algorithm.metric is 'cosin'. Did you mean 'cosine'? Expected cosine, euclidean, mahalanobis.",
        ),
        ("protonet", {"scale": 0}, "algorithm.scale is 0. A number above 0 is expected."),
    ],
)
def test_wrong_names_and_values(name, options, sentence):
    with pytest.raises(ConfigError) as error:
        new_algorithm(name, options)

    assert str(error.value) == sentence


@pytest.mark.parametrize("algorithm", [MAML(adapts="body"), Reptile(adapts="body"), MAML(adapts="re:attention")], ids=str)
def test_a_selector_without_the_head_is_refused(algorithm):
    with pytest.raises(ConfigError) as error:
        algorithm.adapt(random_learner(), random_episode().support)

    assert str(error.value) == (
        f"algorithm.adapts is '{algorithm.adapts}', which leaves the head where all classes start alike: "
        "no step tells them apart. A selector with the head is expected, such as all, head, bias or top-K-layers, "
        "or another algorithm.head_start (learned, prototypes)."
    )


def test_what_an_algorithm_needs_of_the_backbone():
    assert MAML().twice_differentiable
    assert MAML().moves_backbone
    assert not MAML(hypergradient="first-order").twice_differentiable
    assert not MAML(adapts="head").moves_backbone
    assert not MAML(adapts="head").twice_differentiable
    assert Reptile().moves_backbone
    assert not Reptile().twice_differentiable
    assert not ProtoNet().moves_backbone


def test_more_classes_than_a_learned_start_has_are_refused():
    algorithm = MAML(head_start="learned", ways=2)
    with pytest.raises(ConfigError) as error:
        algorithm.adapt(learner_for(algorithm), random_episode().support)

    assert str(error.value) == (
        "The head was meta-trained for at most 2 classes, and the task has 3. "
        "Meta-train with algorithm.ways=3, or with head_start shared or prototypes, which serve any number."
    )


def test_a_backbone_without_the_biases_that_cavia_conditions_is_refused():
    with pytest.raises(ConfigError) as error:
        CAVIA(conditions="film").meta_parameters(random_learner())

    assert str(error.value).startswith(
        "algorithm.conditions 'film' matches no parameter of this backbone. Its biases are backbone."
    )
