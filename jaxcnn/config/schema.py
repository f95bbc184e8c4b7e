"""The schema of a run: every field with its default, its unit and what it does."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNITS = ('steps', 'epochs', 'fraction')
# for the message to a user of an old name
RENAMED_FIELDS = {'config.eval.views': 'config.eval.tta', 'config.optim.label_smoothing': 'config.loss.label_smoothing'}


@dataclass(frozen=True)
class Duration:
    """A length or a moment of a run: `steps` (updates), `epochs` (passes over the training part), or
    `fraction` (of the whole run). Written `dict(epochs=30)`."""

    unit: str
    value: float


@dataclass(frozen=True)
class Choice:
    """One of a registry, with its arguments. Written `dict(name='sgd', momentum=0.9)`, or just `'sgd'`."""

    name: str
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


def _field(default: Any, doc: str, *, least: float | None = None, above: float | None = None,
           most: float | None = None, choices: Sequence[str] = (), result: bool = True) -> Any:
    """A schema field. `result=False`: the field cannot change the trained parameters or the metrics, so a
    run may be resumed with another value."""
    meta = dict(doc=doc, least=least, above=above, most=most, choices=choices, result=result)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    name: str = _field('digits', 'a data set or a layout of files (see jaxcnn.data.names()), or any prepared TFDS set')
    dir: str = _field('', 'of a layout: the folder or file; else the folder of prepared TFDS data sets, empty: '
                      '$TFDS_DATA_DIR, else ~/tensorflow_datasets', result=False)
    cache_dir: str = _field('', 'folder for decoded uint8 images; empty: $JAXCNN_CACHE, else ~/.cache/jaxcnn',
                            result=False)
    val_fraction: float | None = _field(None, 'part of the training images kept apart for validation, stratified; None: '
                                        "the data's own validation part, where it has none 0.1 (tiny_imagenet: 0.2)",
                                        least=0, most=0.9)
    split_seed: int = _field(0, 'seed of that cut; apart from `seed`, so that runs share their validation part', least=0)
    image_size: int = _field(0, 'pixels; images are resized to this square on the host; 0: as they are', least=0)
    resize: str = _field('crop', "what becomes of what is not square, a person's own pictures included. crop: its central "
                         'square is taken; squash: all of it, out of shape', choices=('crop', 'squash'))
    per_class: int = _field(0, 'for quick looks: so many training images of each class; 0: all', least=0)
    balance: str = _field('none', 'of skewed classes. sampling: an epoch has as many images of each, again and again '
                          'where there are too few; loss: images weigh in inverse proportion to their class, 1 on average',
                          choices=('none', 'sampling', 'loss'))
    skip_broken: bool = _field(False, 'leave images out that cannot be read, and log and count them; False: they stop a run')
    augment: str = _field('', "training pipeline of registered ops, as in 'pad_crop(4)|flip_lr|cutout(8)'")
    eval_augment: str = _field('', "the same for evaluation, of ops that draw nothing, as in 'resize(64)|center_crop(56)'; "
                               'both must make images of one size')
    normalize: str = _field('standardize', 'what the network sees: standardize, per channel with the statistics of the '
                            "training part, standardize_pixels, gcn, zca or several, as in 'gcn|zca(0.1)'; none: [0, 1]")
    placement: str = _field('auto', 'device: the split lives on the accelerator; host: Grain feeds it; auto: by size',
                            choices=('auto', 'device', 'host'), result=False)
    workers: int = _field(0, 'Grain worker processes of the host placement; 0: threads only', least=0, result=False)


@dataclass(frozen=True)
class SwitchConfig:
    """A later stage of the optimisation; what is left out but the warm-up stays as in the stage before,
    begun afresh."""

    at: Duration = _field(Duration('fraction', 0.5), 'when this stage begins')
    optimizer: Choice | None = _field(None, 'the optimizer from then on')
    learning_rate: float | None = _field(None, 'its peak learning rate', above=0)
    schedule: Choice | None = _field(None, 'its schedule, over this stage alone')
    warmup: Duration | None = _field(None, 'its warm-up')


@dataclass(frozen=True)
class GroupConfig:
    """Parameters that are updated in a way of their own."""

    match: str = _field('', "regular expression searched in 'path/of/parameter'; the first group that finds it has it")
    rate: float = _field(1.0, 'times the learning rate, but not times decay and, of SGD, L2; 0: they stay as they begin',
                         least=0)
    until: Duration | None = _field(None, 'from then on they stay as they are')
    optimizer: Choice | None = _field(None, 'another optimizer for them, throughout the run')
    normalize: bool = _field(False, 'kernels are scaled to a norm of sqrt(features) before each step, so that it turns them '
                             'as far however long they have grown: where a normalisation follows them')


@dataclass(frozen=True)
class LookaheadConfig:
    """Slow parameters, which follow the ones that are trained, and set them back (Zhang et al. 2019)."""

    every: int = _field(5, 'steps from one to the next', least=1)
    slow_step_size: float = _field(0.5, 'part of the way to the trained ones that the slow ones go', above=0, most=1)
    ramp: float = _field(0.0, 'they go all of the way at first: 1 - (1 - slow_step_size) * (done part of the run)^ramp; 0: '
                         'slow_step_size throughout', least=0)


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated."""

    optimizer: Choice = _field(Choice('sgd', {'momentum': 0.9}), 'see jaxcnn.optim.optimizer_names(), with its arguments')
    learning_rate: float = _field(0.1, 'peak learning rate', above=0)
    schedule: Choice = _field(Choice('cosine'), 'see jaxcnn.schedules.names(), with its arguments')
    warmup: Duration | None = _field(None, 'linear warm-up before the schedule: the n-th of w steps has n/w of the peak')
    switch: tuple[SwitchConfig, ...] = _field((), 'later stages: another optimizer, rate or schedule from a moment on')
    weight_decay: float = _field(0.0, 'decoupled weight decay (AdamW, SGDW): times the learning rate, '
                                 'beside what the optimizer does, so outside the trust ratio of lamb and lars', least=0)
    l2: float = _field(0.0, "L2 penalty's gradient, added to the loss's (what PyTorch's SGD calls weight_decay)", least=0)
    decay_mask: str = _field(r'kernel$', "regular expression searched in 'path/of/parameter'; decay and L2 act on "
                             'what it finds')
    clip_norm: float = _field(0.0, 'largest global norm of the gradient; 0: unlimited', least=0)
    accumulate: int = _field(1, 'micro-batches that a batch is worked through in, gradients averaged', least=1)
    ema_decay: float = _field(0.0, 'exponential moving average of parameters and BatchNorm statistics, with decay '
                              'min(ema_decay, (1+n)/(10+n)); 0: none', least=0, most=0.999999)
    groups: tuple[GroupConfig, ...] = _field((), 'parameters with a rate or optimizer of their own, or that are not trained')
    lookahead: LookaheadConfig | None = _field(None, 'slow parameters and BatchNorm statistics, which a run of full length '
                                               'ends with; what `until` and `freeze_bn` stop, its next step moves still')


@dataclass(frozen=True)
class ParallelConfig:
    """How a step is spread over devices."""

    backend: str = _field('sharded', 'sharded: jax.jit over a mesh; pmap: jax.pmap', choices=('sharded', 'pmap'))
    devices: int = _field(0, 'how many of the local devices to use; 0: all', least=0)
    bn_sync: bool = _field(True, 'BatchNorm statistics over the whole batch; False: over each device\'s part')
    steps_per_dispatch: int = _field(1, 'training steps in one compiled call, whose end a signal waits for', least=1)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation while training."""

    every: Duration = _field(Duration('epochs', 1), 'interval')
    batch_size: int = _field(256, 'images per evaluation step', least=1, result=False)
    tta: str = _field('none', 'test-time augmentation at the end of a run, in evaluate and in predict, in addition to the '
                      'image alone: flip or flip_shift(1)')


@dataclass(frozen=True)
class WhitenConfig:
    """A convolution of the image that begins with whitening filters, computed from training images."""

    match: str = _field('', "regular expression that finds one kernel in 'path/of/parameter'; config.optim.groups can keep "
                        'it as it begins')
    epsilon: float = _field(5e-4, "added to the eigenvalues of the patches' covariance", above=0)
    images: int = _field(5000, 'how many it is computed from, drawn by the seed', least=1)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run, and by which measure."""

    every: Duration | None = _field(None, 'interval; None: after every evaluation', result=False)
    keep: int = _field(2, 'how many of the newest are kept, besides the best', least=1, result=False)
    metric: str | None = _field(None, 'which checkpoint is the best: by `val_` and a metric of the task, as val_accuracy, '
                                'or `val_ema_` and one, as val_ema_loss; None: by the first metric of the task')
    patience: int = _field(0, 'stop early after this many evaluations without a better one; 0: never', least=0)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = _field('', "the run's name in reports; empty: the config file's", result=False)
    seed: int = _field(0, 'of initialisation, shuffling, augmentation and dropout', least=0, most=2**32 - 1)
    duration: Duration = _field(Duration('epochs', 10), 'length of the run')
    batch_size: int = _field(128, 'images per update, over all devices', least=1)
    batch_schedule: tuple[tuple[Duration, int], ...] = _field(
        (), 'other batch sizes from given moments on, as in ((dict(epochs=5), 256), (dict(epochs=8), 512))')
    task: Choice = _field(Choice('classification'), 'what the outputs of the network mean; see jaxcnn.tasks.names()')
    loss: Choice = _field(Choice('cross_entropy'), 'what is minimised; see jaxcnn.losses.names(), with its arguments')
    model: Choice = _field(Choice('lenet5'), 'see jaxcnn.models.names(), with its fields')
    whiten: WhitenConfig | None = _field(None, 'whitening filters as the first convolution')
    data: DataConfig = _field(DataConfig, 'the data')
    optim: OptimConfig = _field(OptimConfig, 'the optimisation')
    freeze_bn: Duration | None = _field(None, 'from then on BatchNorm uses its running statistics and leaves them alone; '
                                        'dict(steps=0): from the beginning', least=0)
    parallel: ParallelConfig = _field(ParallelConfig, 'the devices')
    eval: EvalConfig = _field(EvalConfig, 'the evaluation')
    checkpoint: CheckpointConfig = _field(CheckpointConfig, 'the checkpoints')
    log_every: Duration = _field(Duration('steps', 50), 'interval of logged training metrics; each epoch has at least one')
