"""The configuration: what wins, what is refused and with which sentence, and that nothing is lost on the way."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from conftest import refusal

from kshot.api import replace_config
from kshot.config import Config, EpisodeOptions, load_config, parse_assignments
from kshot.errors import ConfigError
from kshot.flags import config_from
from kshot.meta import ALGORITHMS
from kshot.tasks import EpisodeSpec, load_tasks

RECIPES = Path(__file__).parent.parent / "recipes"
SECTIONS = [item.name for item in fields(Config) if is_dataclass(get_type_hints(Config)[item.name])]


def written(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def from_file(folder: Path, text: str) -> Config:
    return load_config(written(folder, text))


# --- what wins --------------------------------------------------------------------------------------------------------------


def test_flags_win_over_the_file_and_set_over_flags(tmp_path):
    file = written(tmp_path, "training: {steps: 1, lr: 0.1, seed: 1}\nbackbone: {name: tiny}")
    options = {"config_file": file, "training__lr": "0.2", "training__seed": "2", "assignments": ("training.seed=3",)}
    config = config_from(options)
    assert (config.training.steps, config.training.lr, config.training.seed) == (1, 0.2, 3)
    assert config.backbone.name == "tiny"


def test_a_flag_that_is_not_given_leaves_the_files_value(tmp_path):
    file = written(tmp_path, "tasks: [a]\nread: {mixed_labels: true}")
    config = config_from({"config_file": file, "tasks": (), "mixed_labels": False, "training__lr": None})
    assert config.tasks == ("a",)
    assert config.read.mixed_labels


def test_what_is_not_said_has_its_default(tmp_path):
    assert from_file(tmp_path, "") == from_file(tmp_path, "# nothing but a comment\n") == Config()
    assert from_file(tmp_path, "training: {steps: 7}") == replace(Config(), training=replace(Config().training, steps=7))


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("episodes__ways", "20", 20),
        ("episodes__ways", "5-20", (5, 20)),
        ("episodes__shots", "1-10", (1, 10)),
    ],
)
def test_ranges_of_flags(flag, text, value):
    assert getattr(config_from({flag: text}).episodes, flag.removeprefix("episodes__")) == value


def test_lists_of_flags():
    config = config_from({"evaluation__shots": "1, 5", "evaluation__baselines": "none", "split__ratios": "0.8,0,0.2"})
    assert config.evaluation.shots == (1, 5)
    assert config.evaluation.baselines == ()
    assert config.split.ratios == (0.8, 0, 0.2)


# --- values -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "+1e-4"])
def test_a_number_is_a_number(text, tmp_path):
    assert from_file(tmp_path, f"training: {{lr: {text}}}").training.lr == 1e-4
    assert parse_assignments([f"training.lr={text}"]) == {"training.lr": 1e-4}


def test_off_is_a_word_and_true_is_not(tmp_path):
    """Plain YAML 1.1 takes both for truth values."""
    assert from_file(tmp_path, "training: {dropout: off}").training.dropout == "off"
    assert load_config(None, parse_assignments(["training.dropout=on", "read.mixed_labels=true"])).read.mixed_labels is True


def test_assignments_are_yaml():
    given = ["a=[1, 2]", "b=", "c=x=y", "d=null", "e='5'", "f=[1", " g = 3"]
    assert parse_assignments(given) == {"a": [1, 2], "b": None, "c": "x=y", "d": None, "e": "5", "f": "[1", "g": 3}


@pytest.mark.parametrize("assignment", ["training.lr", "=3", " =3"])
def test_an_assignment_without_key_or_value(assignment):
    assert "key=value" in refusal(lambda: parse_assignments([assignment]), ConfigError)


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("trainning", "training"),
        ("devise", "device"),
        ("training.step", "steps"),
        ("backbone.maxlength", "max_length"),
        ("read.textcolumn", "text_column"),
        ("split.ratio", "ratios"),
        ("episodes.shot", "shots"),
        ("validation.way", "ways"),
        ("evaluation.baseline", "baselines"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(key, meant):
    said = refusal(lambda: load_config(None, {key: {} if "." not in key else 1}), ConfigError)
    assert f"unknown key '{key}'" in said
    assert f"Did you mean '{meant}'?" in said


def test_an_unknown_key_of_a_file_is_told_with_the_file(tmp_path):
    said = refusal(lambda: from_file(tmp_path, "training: {stepps: 3}"), ConfigError)
    assert said.startswith(f"{tmp_path / 'my.yaml'}: unknown key 'training.stepps'. Did you mean 'steps'?")


def test_an_unknown_hyperparameter_and_algorithm():
    config = load_config(None, {"algorithm.name": "anil", "algorithm.inner_step": 3})
    assert "Did you mean 'inner_steps'?" in refusal(config.new_algorithm, ConfigError)
    said = refusal(load_config(None, {"algorithm.name": "protonett"}).new_algorithm, ConfigError)
    assert "Did you mean 'protonet'?" in said
    assert all(name in said for name in ALGORITHMS)


@pytest.mark.parametrize("name", [5, ["maml"], None, True])
def test_an_algorithm_that_is_no_name(name):
    assert refusal(load_config(None, {"algorithm.name": name}).new_algorithm, ConfigError).startswith("algorithm.name is ")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.steps", "many", "a whole number"),
        ("training.steps", 1.5, "a whole number"),
        ("training.lr", "fast", "a number"),
        ("training.tasks_per_step", "x", "a whole number or nothing (null)"),
        ("read.text_column", [1], "a text or nothing (null)"),
        ("read.mixed_labels", "perhaps", "true or false"),
        ("backbone.name", 3, "a text"),
        ("split.ratios", [1, 2], "[a number, a number, a number]"),
        ("evaluation.shots", 5, "a list of a whole number"),
        ("evaluation.shots", [1, "x"], "a list of a whole number"),
        ("episodes.ways", [1, 2, 3], "a whole number or [a whole number, a whole number] or nothing (null)"),
        ("tasks", "one.csv", "a list of a text"),
        ("algorithm", "maml", "a section"),
    ],
)
def test_a_value_of_the_wrong_type(key, value, expected):
    said = refusal(lambda: load_config(None, {key: value}), ConfigError)
    shown = "x" if key == "evaluation.shots" and value == [1, "x"] else value
    assert said == f"{key} is {shown!r}. Expected {expected}."


def test_several_wrong_values_are_told_at_once():
    said = refusal(lambda: load_config(None, {"training.steps": "x", "training.lr": "y"}), ConfigError)
    assert "training.steps is 'x'" in said
    assert "training.lr is 'y'" in said


@pytest.mark.parametrize("value", ["3", "[1]", "text", ""])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_of_the_wrong_shape(section, value, tmp_path):
    said = refusal(lambda: from_file(tmp_path, f"{section}: {value}"), ConfigError)
    assert f"'{section}' is " in said
    assert "Expected a section with " in said


def test_a_key_below_a_value():
    said = refusal(lambda: load_config(None, {"device": "cpu", "device.x": 1}), ConfigError)
    assert said == "'device.x' cannot be set: 'device' is a value, not a section."
    assert "training.lr is {'x': 1}" in refusal(lambda: load_config(None, {"training.lr.x": 1}), ConfigError)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("training:\n  steps: 3\n lr: 4\n", 3),
        ("a: [1,\n", 2),
        ("\tx: 1\n", 1),
        ("tasks: !!python/object:os.system []\n", 1),
        ("a: 'never closed\n", 2),
    ],
)
def test_broken_yaml_is_told_with_its_line(text, line, tmp_path):
    assert f"my.yaml, line {line}: not readable as YAML" in refusal(lambda: from_file(tmp_path, text), ConfigError)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "5\n"])
def test_a_file_without_sections(text, tmp_path):
    assert "Expected sections: tasks, kind, read, split" in refusal(lambda: from_file(tmp_path, text), ConfigError)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_bytes(b"training: {steps: \xff}")
    assert f"{path}: not readable as YAML" in refusal(lambda: load_config(path), ConfigError)


def test_no_such_file(tmp_path):
    written(tmp_path, "")
    said = refusal(lambda: load_config(tmp_path / "mi.yaml"), ConfigError)
    assert said == f"No such configuration file: '{tmp_path / 'mi.yaml'}'. Did you mean 'my.yaml'?"
    assert "No such configuration file" in refusal(lambda: load_config(tmp_path / "no" / "such.yaml"), ConfigError)
    assert "not readable" in refusal(lambda: load_config(tmp_path), ConfigError)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.pooling", "average"),
        ("training.schedule", "linaer"),
        ("training.steps", 0),
        ("training.lr", float("nan")),
        ("evaluation.shots", []),
        ("evaluation.shots", [5, 5]),
        ("evaluation.baselines", ["head", "head"]),
        ("evaluation.episodes", 1),
        ("evaluation.slow_episodes", -5),
        ("split.ratios", [0, 1, 1]),
        ("validation.ways", 1),
    ],
)
def test_a_value_that_makes_no_sense(key, value):
    assert key.rpartition(".")[2] in refusal(lambda: load_config(None, {key: value}), ConfigError)


# --- recipes, defaults, round trip ------------------------------------------------------------------------------------------


# recipes that are called after what they are for
OF_JOBS = {"intents": "protonet", "tagging": "protonet", "relation": "protonet", "qa": "fomaml", "lora": "fomaml"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_builds_its_algorithm(path):
    config = load_config(path)
    name, options, algorithm = config.new_algorithm()
    assert name == OF_JOBS.get(path.stem, path.stem)
    assert all(getattr(algorithm, key) == value for key, value in options.items())
    assert str(path.relative_to(RECIPES.parent)) in path.read_text(encoding="utf-8")  # it shows how it is called


def test_there_are_recipes():
    assert {path.stem for path in RECIPES.glob("*.yaml")} - set(OF_JOBS) <= set(ALGORITHMS)
    assert len(list(RECIPES.glob("*.yaml"))) >= 4


@pytest.mark.parametrize("path", [None, *sorted(RECIPES.glob("*.yaml"))], ids=lambda path: path.stem if path else "defaults")
def test_plain_and_back_is_the_same(path):
    config = load_config(path, {"tasks": ["a", "b"], "episodes.ways": [3, 9], "evaluation.baselines": ["tfidf"]})
    assert replace_config(Config(), {"device": "cpu"}) == Config()
    assert replace_config(config, {"device": "cpu"}) == config
    assert load_config(None, config.plain()) == config
    changed = replace_config(config, {"training.lr": 1, "algorithm.name": config.algorithm["name"]})
    assert changed == replace(config, training=replace(config.training, lr=1.0))


def test_the_episodes_shape_fits_the_algorithm_and_the_tasks():
    law, *_ = load_tasks("bundled:en/law")
    assert EpisodeOptions().spec("protonet", [law]) == EpisodeSpec(len(law.labels), 5, 5)
    assert EpisodeOptions().spec("maml", [law]).ways == 5
    assert EpisodeOptions(ways=(2, 3), shots=1).spec("protonet", [law]) == EpisodeSpec((2, 3), 1, 5)
    assert EpisodeOptions().spec("maml", [law.with_labels({law.labels[0]})]).ways == 2  # too few labels is told of the data
