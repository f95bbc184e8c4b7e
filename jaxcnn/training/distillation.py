"""Distillation of trained networks, the teachers, into the network of a run: a term of the loss (`config.distillation`)."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.data.augment import geometry
from jaxcnn.data.normalize import Normalization
from jaxcnn.errors import UserError, name_field, unknown
from jaxcnn.experiment import Experiment
from jaxcnn.losses import divergence, log_probabilities
from jaxcnn.metrics import Measurement
from jaxcnn.run import load_run
from jaxcnn.training import state, weight_sources
from jaxcnn.training.loss_terms import Forward, LossTerm
from jaxcnn.training.workdir import read_config

_FIELD = 'config.distillation'
Maps = Mapping[str, Any]  # feature maps by name


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network.

    Attributes:
      workdir: folder of its run.
      step: step of its checkpoint.
      experiment: the objects of its run.
      variables: its `params` and `batch_stats`, as host arrays.
      checksum: SHA-256 checksum of the variables.
    """

    workdir: str
    step: int
    experiment: Experiment
    variables: dict[str, Any]
    checksum: str

    def outputs(self, variables: Any, pixels: jax.Array, features: bool = False) -> tuple[jax.Array, Maps]:
        """Return the logits for images (N, H, W, C) in [0, 1], and if `features` is true the feature maps.

        The images are resized to the size of those that the teacher was trained on, and normalised as these.
        """
        height, width, _ = self.experiment.image_shape
        if pixels.shape[1:3] != (height, width):
            pixels = jax.vmap(lambda image: geometry.resize(height, width)(jax.random.key(0), image))(pixels)
        images = self.experiment.preprocessor.normalize(pixels)
        if not features:
            logits: Any = self.experiment.network.apply(variables, images, train=False)
            return logits, {}
        logits, maps = self.experiment.network.apply(variables, images, train=False, features=True)
        return logits, maps


def load_teachers(config: cfg.DistillationConfig, student: Experiment, folder: str) -> tuple[Teacher, ...]:
    """Return the teachers that a config names.

    Args:
      config: the fields of the config.
      student: the objects of the run that learns from them.
      folder: workdir of that run.

    Raises:
      UserError: a teacher does not exist, or its task, classes or channels are others than those of the run.
    """
    teachers = []
    for i, workdir in enumerate(config.teachers):
        field = f'{_FIELD}.teachers[{i}]'
        with name_field(field):
            run = load_run(os.path.expanduser(workdir))
            if os.path.realpath(run.workdir) == os.path.realpath(folder):
                raise UserError('is the workdir of this run', hint='name the workdir of a run that has ended')
            _check_teacher(run.experiment, student, workdir)
        with name_field(f'{_FIELD}.checkpoint'):
            step = run.find_step(config.checkpoint)
        with name_field(field):
            variables = state.variables(run.load_weights(step))[run.experiment.best.ema]
        teachers.append(Teacher(workdir, step, run.experiment, variables, weight_sources.checksum(variables)))
    return tuple(teachers)


def _check_teacher(teacher: Experiment, student: Experiment, workdir: str) -> None:
    """Raise a UserError if the outputs of a teacher cannot be compared with those of the run."""
    if teacher.task.name != student.task.name:
        raise UserError(f'the run in {workdir!r} has the task {teacher.task.name!r}, and this run {student.task.name!r}')
    names, expected = list(teacher.task.class_names), list(student.task.class_names)
    if names != expected:
        if sorted(names) == sorted(expected):
            difference = 'has the same classes in another order'
        else:
            unknown_names = [name for name in names if name not in expected]
            missing = [name for name in expected if name not in names]
            details = [f'{group[0]!r} is in {where} alone' for group, where in (
                (unknown_names, 'the teacher'), (missing, 'this run')) if group]
            difference = f'has {len(names)} classes, and this run {len(expected)}: {", ".join(details)}'
        raise UserError(f'the run in {workdir!r} {difference}', hint='a teacher needs the classes of this run')
    channels, expected_channels = teacher.image_shape[2], student.image_shape[2]
    if channels != expected_channels:
        raise UserError(f'the run in {workdir!r} takes images of {channels} channels, and this run {expected_channels}')


def with_checksums(config: cfg.Config, folder: str, terms: Sequence[LossTerm]) -> cfg.Config:
    """Return the config with the checksums of the teachers, as `config.json` records them.

    Args:
      config: config of the run.
      folder: workdir of the run.
      terms: terms of its loss.

    Raises:
      UserError: a teacher has another checksum than the one that the config or, for a run that is resumed, its `config.json`
        demands.
    """
    if config.distillation is None:
        return config
    expected = config.distillation.checksums
    if os.path.exists(os.path.join(folder, 'config.json')) and (recorded := read_config(folder).distillation):
        expected = recorded.checksums
    teachers = next(term for term in terms if isinstance(term, Distillation)).teachers
    for teacher, checksum in zip(teachers, expected, strict=False):
        if checksum != teacher.checksum:
            raise UserError(f'checkpoint {teacher.step} of {teacher.workdir!r} has the checksum {teacher.checksum}, '
                            f'expected {checksum}', field=f'{_FIELD}.teachers', hint='the teacher has changed since')
    checksums = tuple(teacher.checksum for teacher in teachers)
    return dataclasses.replace(config, distillation=dataclasses.replace(config.distillation, checksums=checksums))


def mean_log_probabilities(logits: Sequence[jax.Array], weights: Sequence[float], targets: str) -> jax.Array:
    """Return the logarithm of the weighted mean of the probabilities of several networks; see `log_probabilities`.

    Args:
      logits: (N, classes) of each network.
      weights: the weight of each network; their sum is 1.
      targets: the kind of targets.
    """
    if len(logits) == 1:
        return log_probabilities(logits[0], targets)
    terms = jnp.stack([log_probabilities(z, targets) + np.log(weight) for z, weight in zip(logits, weights, strict=True)])
    return jax.nn.logsumexp(terms, 0)


def _resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Return maps (N, H, W, C) resized to a size."""
    shape = (len(x), *size, x.shape[-1])
    return x if x.shape == shape else jax.image.resize(x, shape, 'linear', antialias=True)


def feature_loss(student: jax.Array, teacher: jax.Array, regressor: Mapping[str, jax.Array] | None) -> jax.Array:
    """Return half the mean squared difference of feature maps (Romero et al. 2015).

    Args:
      student, teacher: (N, H, W, C), float32; sizes and channels may differ.
      regressor: `kernel` (C of the student, C of the teacher) and `bias` of a 1x1 convolution that is applied to the maps of
        the student; None if both have the same channels.
    """
    height, width = np.minimum(student.shape[1:3], teacher.shape[1:3])
    student, teacher = (_resize(x, (height, width)) for x in (student, teacher))
    if regressor is not None:
        student = student @ regressor['kernel'] + regressor['bias']
    return ((student - teacher) ** 2).mean() / 2


def attention_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return half the squared distance of attention maps of length 1, averaged over images (Zagoruyko & Komodakis 2017).

    An attention map is the sum of the squares of a feature map over its channels.

    Args:
      student, teacher: (N, H, W, C), float32; sizes and channels may differ.
    """
    height, width = np.minimum(student.shape[1:3], teacher.shape[1:3])

    def attention(x: jax.Array) -> jax.Array:
        maps = _resize((x ** 2).sum(-1, keepdims=True), (height, width)).reshape(len(x), -1)
        return maps / jnp.sqrt(jnp.maximum((maps ** 2).sum(-1, keepdims=True), 1e-24))
    return ((attention(student) - attention(teacher)) ** 2).sum(-1).mean() / 2


def _map_channels(experiment: Experiment, name: str, field: str) -> int:
    """Return the number of channels of the feature map of a name, which a field of the config names.

    Raises:
      UserError: the network has no such feature map.
    """
    images = jax.ShapeDtypeStruct((1, *experiment.image_shape), jnp.float32)
    (_, maps), _ = jax.eval_shape(
        lambda key, x: experiment.network.init_with_output(key, x, features=True), jax.random.key(0), images)
    if name not in maps:
        raise unknown(f'feature map of {experiment.config.model.name}', name, maps, field)
    if maps[name].ndim != 4:
        raise UserError(f'{name!r} has no height and width', field=field)
    return int(maps[name].shape[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation(LossTerm):
    """The divergence from the probabilities of teachers, and the distance from their feature maps.

    Attributes:
      config: the fields of the config.
      teachers: the teachers.
      hints_alone: number of steps in which the hints alone are trained.
      channels: number of channels of the student's and the teacher's map of each hint.
    """

    name = 'distillation'

    config: cfg.DistillationConfig
    teachers: tuple[Teacher, ...]
    hints_alone: int
    channels: tuple[tuple[int, int], ...]

    @classmethod
    def load(cls, config: cfg.DistillationConfig, student: Experiment, folder: str) -> 'Distillation':
        """Return the term of a config; see `load_teachers`.

        Raises:
          UserError: a teacher cannot be used, or there is no feature map of a name.
        """
        teachers = load_teachers(config, student, folder)
        channels = []
        for i, hint in enumerate(config.hints):
            field = f'{_FIELD}.hints[{i}]'
            channels.append((_map_channels(student, hint.student_map, f'{field}.student_map'),
                             _map_channels(teachers[hint.teacher].experiment, hint.teacher_map, f'{field}.teacher_map')))
        steps = student.timeline.steps(config.hints_alone) if config.hints_alone else 0
        return cls(config, teachers, steps, tuple(channels))

    @property
    def maps(self) -> tuple[str, ...]:
        """See `LossTerm`."""
        return tuple(hint.student_map for hint in self.config.hints)

    @property
    def arrays(self) -> Any:
        """The variables of the teachers."""
        return tuple(teacher.variables for teacher in self.teachers)

    def init(self, key: jax.Array) -> Any:
        """Return the 1x1 convolutions of those hints whose maps have different numbers of channels."""
        params = {}
        for i, (hint, (student, teacher)) in enumerate(zip(self.config.hints, self.channels, strict=True)):
            if hint.method == 'features' and student != teacher:
                kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(key, i), (student, teacher))
                params[f'hint{i}'] = {'kernel': kernel, 'bias': jnp.zeros(teacher)}
        return params

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the teachers, whose sum is 1."""
        weights = self.config.weights or (1.0,) * len(self.teachers)
        return tuple(weight / sum(weights) for weight in weights)

    def logits(self, logits: Sequence[jax.Array], targets: str) -> jax.Array:
        """Return logits (N, classes) of the mean of the teachers' probabilities, from the logits of each teacher."""
        log_p = mean_log_probabilities(logits, self.weights, targets)
        return log_p if targets == 'label' else log_p[..., 0] - log_p[..., 1]

    def together(self, student: Experiment) -> Experiment:
        """Return an experiment whose network is the mean of the teachers and takes images in [0, 1]; its variables are
        `arrays`. It is for evaluation only.

        Args:
          student: the objects of the run that learns from the teachers.
        """
        preprocessor = dataclasses.replace(student.preprocessor, normalize=Normalization(), tta=None)
        network: Any = _Mean(self, student.task.kind.name)
        return dataclasses.replace(student, network=network, preprocessor=preprocessor)

    def summary(self, values: Mapping[Measurement, float]) -> dict[str, Any]:
        """Return what the summary of a run says about its teachers.

        Args:
          values: metrics of their mean by their measurements.
        """
        rows = [{'workdir': teacher.workdir, 'model': teacher.experiment.config.model.name, 'checkpoint': teacher.step,
                 'params': sum(x.size for x in jax.tree.leaves(teacher.variables['params'])), 'weight': weight}
                for teacher, weight in zip(self.teachers, self.weights, strict=True)]
        return {'runs': rows, **{measurement.name: value for measurement, value in values.items()}}

    def _hint_loss(self, maps: Maps, teacher_maps: Sequence[Maps], params: Any) -> jax.Array:
        """Return the weighted sum of the losses of the hints."""
        total = jnp.zeros(())
        for i, hint in enumerate(self.config.hints):
            student = maps[hint.student_map].astype(jnp.float32)
            teacher = teacher_maps[hint.teacher][hint.teacher_map].astype(jnp.float32)
            if hint.method == 'attention':
                total += hint.weight * attention_loss(student, teacher)
            else:
                total += hint.weight * feature_loss(student, teacher, (params or {}).get(f'hint{i}'))
        return total

    def __call__(self, loss: jax.Array, forward: Forward, params: Any, arrays: Any,
                 batch_stats: Any) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """See `LossTerm`. The scalars are the terms of the loss and, for the teachers, what the task logs (accuracy)."""
        config, kind = self.config, forward.task.kind.name
        of_hints = {hint.teacher for hint in config.hints}
        results = [teacher.outputs(variables, forward.pixels, features=i in of_hints)
                   for i, (teacher, variables) in enumerate(zip(self.teachers, arrays, strict=True))]
        logits, maps = zip(*results, strict=True)
        log_p = mean_log_probabilities([z.astype(jnp.float32) / config.temperature for z in logits], self.weights, kind)
        log_q = log_probabilities(forward.outputs.astype(jnp.float32) / config.temperature, kind)
        term = config.temperature ** 2 * divergence(log_p, log_q).mean()
        scalars = {'target_loss': loss, 'distillation_loss': term}
        if config.alpha:
            loss = (1 - config.alpha) * loss + config.alpha * term
        if config.hints:
            hint_loss = scalars['hint_loss'] = self._hint_loss(forward.maps, maps, params)
            loss = hint_loss + jnp.where(forward.step < self.hints_alone, 0, loss)
        of_teachers = forward.task.train_scalars(self.logits(logits, kind), forward.targets)
        scalars.update({f'teacher_{name}': value for name, value in of_teachers.items()})
        return loss, scalars, batch_stats


@dataclasses.dataclass(frozen=True, eq=False)
class _Mean:
    """The mean of teachers in place of a network."""

    term: Distillation
    targets: str

    def apply(self, variables: Sequence[Any], pixels: jax.Array, train: bool) -> jax.Array:
        """Return logits for images in [0, 1]."""
        logits = [teacher.outputs(of_teacher, pixels)[0]
                  for teacher, of_teacher in zip(self.term.teachers, variables, strict=True)]
        return self.term.logits(logits, self.targets)
