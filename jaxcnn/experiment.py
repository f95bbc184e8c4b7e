"""Experiments: the objects that a config describes.

`build` is the only place that turns a config into objects; training, evaluation and prediction all use it. It writes no file
and compiles nothing.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn import loss_scaling, metrics, models, optim, plugins, registry, schedules, tasks
from jaxcnn.data import augment, normalize, sources, tta
from jaxcnn.data.augment import adversarial
from jaxcnn.data.targets import LABEL
from jaxcnn.errors import UserError, name_field, unknown
from jaxcnn.interop import pretrained
from jaxcnn.loss_scaling import LossScaling
from jaxcnn.models import Network
from jaxcnn.models.quantized_layers import Quantizer
from jaxcnn.optim import Optimizer
from jaxcnn.preprocessing import Fit, Preprocessor, resized_sides
from jaxcnn.tasks import Task
from jaxcnn.timeline import Timeline


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The objects that a config describes, for a data set.

    Attributes:
      config: the config of the run.
      info: properties of the data; see `Dataset.info`.
      task: the task, which defines the meaning of the network's outputs.
      network: the network; each phase clones it with its BatchNorm settings.
      preprocessor: the preprocessing of images.
      optimizer: the optimizers of all stages.
      loss_scaling: how the loss is scaled, or None.
      timeline: the steps of the run.
      image_shape: height, width and channels of the network's input.
      best: the measurement that selects the best checkpoint.
    """

    config: cfg.Config
    info: Mapping[str, Any]
    task: Task
    network: Network
    preprocessor: Preprocessor
    optimizer: Optimizer
    loss_scaling: LossScaling | None
    timeline: Timeline
    image_shape: tuple[int, int, int]
    best: metrics.Measurement

    def train_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return the shape of the network's input in training; `image_size` is that of `timeline.Phase`."""
        height, width, channels = self.image_shape
        return *resized_sides((height, width), image_size), channels

    def measurements(self, tta: bool) -> dict[str, metrics.Measurement]:
        """Return the measurements of the validation and test splits by name, with `tta` also by test-time augmentation."""
        return metrics.measurements(self.task.metrics.values(), ('val', 'test'), bool(self.config.optim.ema_decay), tta)

    def informs(self, metric: metrics.Metric) -> bool:
        """Return whether a metric is informative for the number of classes; top-5 accuracy of five classes is always 1."""
        return self.task.num_classes >= metric.min_classes

    def displayed_metrics(self) -> list[metrics.Metric]:
        """Return the metrics that are shown to the user, in order; see `metrics.displayed`."""
        return metrics.displayed(self.task.metrics.values(), self.task.num_classes)


def check(config: cfg.Config) -> cfg.Config:
    """Import the plugins of a config, and check the names and arguments in it, before any work is done.

    Returns:
      The config with the versions and checksums of its plugins, and with the installed plugins that it uses.

    Raises:
      UserError: A plugin cannot be imported, or a name or an argument is unknown.
    """
    loaded = plugins.load([cfg.Plugin(plugin.source) for plugin in config.plugins])  # whatever a run recorded of them
    config = dataclasses.replace(config, plugins=loaded)
    with registry.record_used_modules() as used_modules:
        _check_names(config)
    return dataclasses.replace(config, plugins=plugins.with_installed(config.plugins, used_modules))


def _check_names(config: cfg.Config) -> None:
    tasks.check(config)
    kind = tasks.find(config.task).kind
    sources.find_factory(config.data, kind)
    kind.check(config.data)
    for field, reason in (('num_classes', 'it is the number of classes of the data set'),
                          ('bn_axis', 'config.parallel says over which devices'), ('bn_frozen', 'see config.freeze_bn'),
                          ('quantizer', 'see config.quantization')):
        if field in config.model.args:
            raise UserError(f'cannot be set; {reason}', field=f'config.model.{field}')
    with name_field('config.model'):
        network = models.create(config.model.name, **config.model.args)
    tasks.find(config.task).check_network(config, network)
    _check_quantization(config, network)
    if config.semi_supervised and kind is not LABEL:
        raise UserError(f'the task {config.task.name!r} has no pseudo-labels', field='config.semi_supervised',
                        hint="leave it out; it is for task='classification'")
    for field in ('distillation', 'trades'):
        if getattr(config, field) and tasks.find(config.task).outputs != 'logits':
            raise UserError(f'the task {config.task.name!r} has no probabilities of classes to compare',
                            field=f'config.{field}', hint="leave it out; it is for task='classification' and 'multilabel'")
    if sizes := _train_sizes(config):
        check_train_sizes(network, [(size, size, 3) for size in sizes])
    cfg.check_init(config.init)
    cfg.check_pruning(config.pruning, config.init)
    cfg.check_distillation(config.distillation)
    if config.init and config.init.pretrained:
        with name_field('config.init.pretrained'):
            pretrained.find(config.init.pretrained)
    with name_field('config.data.augment'):
        _, pipeline = augment.split_pipeline(config.data, train=True)
    if config.trades:
        adversarial.check_eps(config.trades.eps, config.trades.norm, 'config.trades.eps')
        if pipeline is not None and pipeline.has_attack:
            raise UserError(f'TRADES attacks the images itself, but so does config.data.augment={config.data.augment!r}',
                            field='config.trades', hint='leave out one of them')
    with name_field('config.data.eval_augment'):
        augment.split_pipeline(config.data, train=False)
    with name_field('config.data.normalize'):
        normalize.parse(config.data.normalize)
    with name_field('config.eval.tta'):
        tta.parse(config.eval.tta)
    optim.check(config.optim)
    if network.param_dtype == 'float16':
        optim.check_float16(config.optim)
    loss_scaling.make(config.optim, network)
    if config.data.val_fraction == 0 and config.checkpoint.metric is not None:
        raise UserError(f'{config.checkpoint.metric!r} needs a validation split', field='config.checkpoint.metric',
                        hint='set config.data.val_fraction above 0, or leave config.checkpoint.metric out, which uses the '
                        'last checkpoint')
    choices = [config.optim.schedule, *(s.schedule for s in config.optim.switch)]
    known_metrics = tasks.find(config.task).known_metrics()
    for metric in filter(None, (schedules.plateau_metric(choice) for choice in choices if choice)):
        if config.data.val_fraction == 0:
            raise UserError('plateau follows a validation metric: set config.data.val_fraction',
                            field='config.optim.schedule')
        if metric not in known_metrics:
            raise unknown(f'metric of plateau for {config.task.name}', metric, known_metrics, 'config.optim.schedule')


def _check_quantization(config: cfg.Config, network: Network) -> None:
    """Raise a UserError if `config.quantization` does not fit the other fields."""
    if config.quantization is None:
        return
    if network.outputs != 'logits':
        raise UserError(f'{config.model.name} returns {network.outputs}, and only networks that return logits are quantised',
                        field='config.quantization', hint='leave it out')
    for field in ('dtype', 'param_dtype'):
        if getattr(network, field) != 'float32':
            raise UserError(f'needs float32, because {getattr(network, field)} cannot represent the rounded values',
                            field=f'config.model.{field}', hint='leave it out, or config.quantization')
    try:
        re.compile(config.quantization.float_layers)
    except re.error as e:
        raise UserError(f'{config.quantization.float_layers!r} is no regular expression: {e}',
                        field='config.quantization.float_layers') from e


def _train_sizes(config: cfg.Config) -> list[int]:
    """Return the sizes to which training images are resized."""
    sizes = [entry if isinstance(entry, int) else entry[1] for entry in config.data.train_size]
    return [size for size in sizes if size]


def build(config: cfg.Config, info: Mapping[str, Any], fit: Fit) -> Experiment:
    """Return the experiment of a config.

    Args:
      config: the config of the run.
      info: properties of the data; see `Dataset.info`.
      fit: fits normalisers to the training images, or reads what they were fitted to.

    Raises:
      UserError: Fields contradict each other or do not fit the data.
    """
    timeline = Timeline(config, info['sizes']['train'])
    optimizer = optim.make_optimizer(config.optim, timeline)
    task = tasks.create(config, info['class_names'], info['class_counts'], info['sizes']['train'])
    network = models.create(config.model.name, **task.model_fields, **config.model.args)
    if config.quantization:
        fields = dataclasses.asdict(config.quantization)
        network = network.clone(quantizer=Quantizer(**fields))
    preprocessor = Preprocessor.from_config(config.data, info['mean'], info['std'], fit, tta.parse(config.eval.tta))
    image_shape = preprocessor.shape(tuple(info['image_shape']))
    with name_field('config.model'):
        network.check_image(image_shape)
    scaling = loss_scaling.make(config.optim, network)
    return Experiment(config, info, task, network, preprocessor, optimizer, scaling, timeline, image_shape,
                      tasks.best_measurement(config, task))


def check_train_sizes(network: Network, shapes: Iterable[tuple[int, int, int]]) -> None:
    """Check that a network accepts images of all shapes, with the same parameters.

    Args:
      network: the network.
      shapes: shapes (H, W, C) of images.

    Raises:
      UserError: It does not.
    """
    network = network.clone(conv_implementation='xla')  # faster to trace

    def parameter_shapes(shape: tuple[int, int, int]) -> Any:
        images = jax.ShapeDtypeStruct((1, *shape), np.float32)
        return jax.tree.map(lambda x: x.shape, jax.eval_shape(network.init, jax.random.key(0), images)['params'])

    first, *others = dict.fromkeys(shapes)
    for shape in (first, *others):
        with name_field('config.data.train_size'):
            network.check_image(shape)
    expected = parameter_shapes(first) if others else None
    for shape in others:
        if parameter_shapes(shape) != expected:
            raise UserError(f'{type(network).__name__} has other parameters for images of {shape[0]} x {shape[1]} than of '
                            f'{first[0]} x {first[1]} pixels', field='config.data.train_size',
                            hint="take a network that ends in a mean, such as resnet18, or a head for all sizes, such as "
                            "dict(name='zfnet', head='spp')")
