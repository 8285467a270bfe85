"""Which task a configuration asks for."""

from __future__ import annotations

from train.config import RunConfig
from train.tasks.task import Task


def build_task(config: RunConfig) -> Task:
    """Open a run's task: its data prepared, its model not yet built.

    With a second task in `TaskConfig`, this becomes a match over `config.task` that ends in assert_never.
    """
    from train.tasks.language_model import LanguageModel

    return LanguageModel(config.task, optim=config.optim, seed=config.seed)
