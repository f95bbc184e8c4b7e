"""The registry of tasks, and the task of a config."""

import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from jaxcnn import config as cfg
from jaxcnn import losses, metrics
from jaxcnn.config import bind
from jaxcnn.errors import UserError, unknown
from jaxcnn.registry import Registry
from jaxcnn.tasks.base import MAX_LISTED, Task

T = TypeVar('T', bound=type[Task])
_TASKS: Registry[type[Task]] = Registry('task')


def register(task: T) -> T:
    """Make a task known to `config.task` under its name, as a decorator of its class."""
    _TASKS.add(task.name, task)
    return task


def names() -> list[str]:
    """Return the names of the registered tasks."""
    return _TASKS.names()


def find(choice: cfg.Choice) -> type[Task]:
    """Return the class of a config's task.

    Raises:
      UserError: The task is unknown, or does not take an argument.
    """
    task = _TASKS.get(choice.name, 'config.task')
    inherited = inspect.signature(Task).parameters
    task_arguments = {name: p for name, p in inspect.signature(task).parameters.items() if name not in inherited}
    for name in choice.args:
        if name not in task_arguments:
            raise unknown(f'argument of task {choice.name}', name, task_arguments, field='config.task')
    return task


def create(config: cfg.Config, class_names: Sequence[str], class_counts: Sequence[int], num_images: int) -> Task:
    """Return the task of a config.

    Args:
      config: the config of the run.
      class_names: names of the classes of the data set.
      class_counts: number of training images that show each class.
      num_images: number of training images.

    Raises:
      UserError: The task or the loss is unknown, or the loss does not fit the task.
    """
    task = find(config.task)
    loss, eval_loss = losses.make(config.loss, task.kind.name, task.name)
    weights = None
    if config.data.balance == 'loss':
        weights = tuple(task.weights_of_classes(np.asarray(class_counts), num_images).tolist())
    fields: dict[str, Any] = dict(class_names=class_names, loss_function=loss, eval_loss_function=eval_loss,
                                  class_weights=weights, metrics=task.known_metrics())
    return task(**bind(task, (), {**fields, **config.task.args}, f'task {task.name}'))


def check(config: cfg.Config) -> None:
    """Raise a UserError if the task, the loss or the metric of a config is unknown or they do not fit; no data is needed."""
    task = create(config, ['first', 'second'], [1, 1], 2)
    task.check_config(config)
    best_measurement(config, task)


def best_measurement(config: cfg.Config, task: Task) -> metrics.Measurement:
    """Return the measurement that selects the best checkpoint of a run.

    Raises:
      UserError: `config.checkpoint.metric` is not the name of a metric of the validation split.
    """
    known = metrics.measurements(task.metrics.values(), ['val'], ema=True, tta=False)
    name = config.checkpoint.metric
    if name is None:
        return metrics.Measurement('val', task.main_metric)
    if name not in known:
        error = unknown('metric', name, known, field='config.checkpoint.metric')
        selectable = [m.name for m in known.values() if config.optim.ema_decay or not m.ema]
        if len(selectable) <= MAX_LISTED:
            error.hint = f'known: {", ".join(selectable)}'
        raise error
    if known[name].ema and not config.optim.ema_decay:
        raise UserError(f'{name!r} needs config.optim.ema_decay above 0', field='config.checkpoint.metric')
    return known[name]
