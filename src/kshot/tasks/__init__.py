"""What is to be learned: readers, tasks, suites with their splits, and the episodes drawn from them."""

from kshot.tasks.corpus import Corpus
from kshot.tasks.episodes import Episode, EpisodeSampler, EpisodeSpec, Examples, Sampler, load_episodes, save_episodes
from kshot.tasks.schema import ReadOptions, Schema
from kshot.tasks.sources import load_tasks
from kshot.tasks.suite import SplitSpec, TaskSuite, split_tasks
from kshot.tasks.task import Task

__all__ = [
    "Corpus",
    "Episode",
    "EpisodeSampler",
    "EpisodeSpec",
    "Examples",
    "ReadOptions",
    "Sampler",
    "Schema",
    "SplitSpec",
    "Task",
    "TaskSuite",
    "load_episodes",
    "load_tasks",
    "save_episodes",
    "split_tasks",
]
