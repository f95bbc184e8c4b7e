"""The schema of a run: every field with its default, its unit and what it does; checking.

A config file's `get_config()` returns `make(...)`: an `ml_collections.ConfigDict` with every field, so that it
can be printed, changed and passed on. `parse` turns it into the typed, frozen `Config` that the rest of the
library reads, and is the only place where a config's shape is checked.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import logging
import math
import os
import stat
import tempfile
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_collections

from jaxcnn.errors import UserError, unknown

UNITS = ('steps', 'epochs', 'fraction')
log = logging.getLogger('jaxcnn')


def is_writable(folder: str) -> bool:
    """Whether a folder, `~/...` included, can be written, or made where it is missing."""
    path = os.path.expanduser(folder)
    if path.startswith('~'):  # this user has no home folder
        return False
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return os.path.isdir(path or '.') and os.access(path or '.', os.W_OK | os.X_OK)


def cache_folder(given: str = '') -> str:
    """Where what can be made again is kept: as given, else `$JAXCNN_CACHE`, else `~/.cache/jaxcnn`, or, where that cannot be
    written, a temporary folder, which is logged once.

    Raises:
      UserError: the given folder begins with `~` and this user has no home folder, or no temporary folder can be written.
    """
    if chosen := given or os.environ.get('JAXCNN_CACHE', ''):
        path = os.path.expanduser(chosen)
        if path.startswith('~'):
            where = 'config.data.cache_dir' if given else '$JAXCNN_CACHE'
            raise UserError(f'{where}: {chosen!r}: there is no such home folder; give the whole path')
        return path
    return os.path.expanduser('~/.cache/jaxcnn') if is_writable('~/.cache/jaxcnn') else _temporary_cache_folder()


@functools.cache
def _temporary_cache_folder() -> str:
    try:
        path = os.path.join(tempfile.gettempdir(), f'jaxcnn-{os.getuid()}')
        with contextlib.suppress(OSError):
            os.mkdir(path, 0o700)
        status = os.lstat(path)
        # compiled programs are run as they are: nobody else may write there
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            path = tempfile.mkdtemp(prefix='jaxcnn-')
    except OSError as e:
        raise UserError(f'no folder for caches can be written ({e}): set $JAXCNN_CACHE to one that can') from e
    log.warning('~/.cache/jaxcnn cannot be written: caches are kept in %s; $JAXCNN_CACHE names another folder', path)
    return path


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
    label_smoothing: float = _field(0.0, 'probability spread evenly over all classes', least=0, most=0.999)


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
    views: str = _field('none', 'at the end, and in evaluate and predict, also the mean logits of several views of each '
                        'image: flip, flip_shift(1)')


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
    metric: str = _field('val_accuracy', 'what `best` means; the higher the better, a loss the lower',
                         choices=('val_accuracy', 'val_top5', 'val_loss',
                                  'val_ema_accuracy', 'val_ema_top5', 'val_ema_loss'))
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


def _is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) is types.UnionType and type(None) in typing.get_args(kind)


def _strip_optional(kind: Any) -> Any:
    return next(k for k in typing.get_args(kind) if k is not type(None)) if _is_optional(kind) else kind


def _fields(schema: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    hints = typing.get_type_hints(schema)
    return {f.name: (hints[f.name], f) for f in dataclasses.fields(schema)}


def _wrong(path: str, expected: str, value: Any) -> UserError:
    return UserError(f'{path}: expected {expected}, got {value!r}')


def _plain(value: Any) -> Any:
    """ConfigDicts and tuples inside out to plain dicts and lists."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def build_duration(value: Any, path: str, zero: bool = False) -> Duration:
    """A duration as configs write it, `{'epochs': 30}`, at `path`; `zero`: it may be 0.

    Raises:
      UserError: it is none, or not above 0.
    """
    if isinstance(value, Duration):
        value = {value.unit: value.value}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise _wrong(path, 'a duration in one unit, as in dict(epochs=30)', value)
    (unit, amount), = value.items()
    if unit not in UNITS:
        raise UserError(f'{path}: {unknown("unit of duration", unit, UNITS)}')
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise _wrong(f'{path}.{unit}', 'a number', amount)
    if not (0 < amount < 1e15 or (zero and amount == 0)):
        limit = ' and below 1e15' if 0 < amount < math.inf else ''
        raise UserError(f'{path}.{unit}: a duration must be positive{limit}, got {amount!r}')
    if unit == 'steps' and amount != int(amount):
        raise _wrong(f'{path}.steps', 'a whole number', amount)
    return Duration(unit, amount)


def _build(kind: Any, value: Any, path: str, meta: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
    if _is_optional(kind):
        if value is None:
            return None
        kind = _strip_optional(kind)
    if kind is Duration:
        return build_duration(value, path, meta.get('least') == 0)
    if kind is Choice:
        if isinstance(value, Choice):
            return value
        if isinstance(value, str):
            value = {'name': value}
        if not isinstance(value, Mapping) or not isinstance(value.get('name'), str):
            raise _wrong(path, "a name with arguments, as in dict(name='...')", value)
        return Choice(value['name'], {k: v for k, v in value.items() if k != 'name'})
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            hint = f'; {path}.name={value} names it' if isinstance(value, str) and 'name' in _fields(kind) else ''
            raise UserError(f'{_wrong(path, "a group of fields", value)}{hint}')
        known = _fields(kind)
        for name in value:
            if name not in known:
                raise unknown('field', f'{path}.{name}', [f'{path}.{k}' for k in known])
        return kind(**{k: _build(known[k][0], v, f'{path}.{k}', known[k][1].metadata) for k, v in value.items()})
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(path, 'a sequence', value)
        inner = typing.get_args(kind)
        if inner[-1] is Ellipsis:
            return tuple(_build(inner[0], v, f'{path}[{i}]') for i, v in enumerate(value))
        if len(value) != len(inner):
            raise _wrong(path, f'{len(inner)} entries', value)
        return tuple(_build(k, v, f'{path}[{i}]') for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    names = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a string'}
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise _wrong(path, f'one of {", ".join(meta["choices"])}' if meta.get('choices') else names[kind], value)
    if meta.get('choices') and value not in meta['choices']:
        raise UserError(f'{path}: {unknown("value", value, meta["choices"])}')
    if meta.get('least') is not None and not value >= meta['least']:
        raise _wrong(path, f'at least {meta["least"]}', value)
    if meta.get('above') is not None and not value > meta['above']:
        raise _wrong(path, f'a finite number above {meta["above"]}', value)
    if meta.get('most') is not None and not value <= meta['most']:
        raise _wrong(path, f'at most {meta["most"]}', value)
    if kind is float and not abs(value) < 1e300:
        raise _wrong(path, 'a finite number', value)
    return float(value) if kind is float else value


def parse(fields: Mapping[str, Any] | ml_collections.ConfigDict | Config) -> Config:
    """The typed config of `fields`; what is left out has its default.

    Raises:
      UserError: an unknown field, a wrong type or a value out of range; the line names field and value.
    """
    if isinstance(fields, Config):
        return fields
    config = _build(Config, _plain(fields), 'config')
    if config.checkpoint.metric.startswith('val_ema') and not config.optim.ema_decay:
        raise UserError(f'config.checkpoint.metric: {config.checkpoint.metric!r} needs config.optim.ema_decay above 0')
    if config.checkpoint.patience and config.data.val_fraction == 0:
        raise UserError('config.checkpoint.patience: stopping early needs a validation part: '
                        'config.data.val_fraction above 0')
    return config


def to_dict(value: Any) -> Any:
    """Plain dicts, lists and scalars, as they go into `config.json`; `parse` reads them back."""
    if isinstance(value, Duration):
        return {value.unit: value.value}
    if isinstance(value, Choice):
        return {'name': value.name, **_plain(value.args)}
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def make(**fields: Any) -> ml_collections.ConfigDict:
    """The ConfigDict of a config file: the named fields, every other at its default."""
    return ml_collections.ConfigDict(to_dict(parse(fields)))


def differences(old: Config, new: Config, all_fields: bool = False) -> list[str]:
    """Fields that differ and that could change the result, or all that differ: each as 'config.a.b: old -> new'."""
    found = []

    def walk(a: Any, b: Any, path: str) -> None:
        if dataclasses.is_dataclass(a) and type(a) is type(b) and not isinstance(a, (Duration, Choice)):
            for f in dataclasses.fields(a):
                if all_fields or f.metadata.get('result', True):
                    walk(getattr(a, f.name), getattr(b, f.name), f'{path}.{f.name}')
        elif isinstance(a, Choice) and isinstance(b, Choice) and a.name == b.name:
            for name in sorted({*a.args, *b.args}):
                old, new = (repr(_plain(c.args[name])) if name in c.args else 'its default' for c in (a, b))
                if old != new:
                    found.append(f'{path}.{name}: {old} -> {new}')
        elif to_dict(a) != to_dict(b):
            found.append(f'{path}: {to_dict(a)!r} -> {to_dict(b)!r}')

    walk(old, new, 'config')
    return found


class _Dicts(ast.NodeTransformer):
    """`dict(a=1)`, as config files have it, as the literal `{'a': 1}`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        named = [(ast.Constant(k.arg), k.value) for k in node.keywords if k.arg]
        if isinstance(node.func, ast.Name) and node.func.id == 'dict' and len(named) == len(node.keywords) and not node.args:
            return ast.Dict([key for key, _ in named], [value for _, value in named])
        return node


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(_Dicts().visit(ast.parse(text.strip(), mode='eval')))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def override(fields: Mapping[str, Any] | ml_collections.ConfigDict, assignments: Sequence[str]) -> dict[str, Any]:
    """`fields` with assignments of the command line, `'a.b=VALUE'`, carried out; VALUE is a Python literal.

    A duration is replaced whole by its new unit (`duration.epochs=3`); another `name` of an optimizer, schedule
    or model drops the arguments of the one before.

    Raises:
      UserError: the assignment names no field of the config, or is none.
    """
    tree = to_dict(parse(fields))
    for assignment in assignments:
        path, equals, text = assignment.partition('=')
        if not equals:
            raise UserError(f'--config.{assignment}: expected --config.{path}=VALUE')
        schema: type = Config
        node, at, parts = tree, 'config', path.split('.')
        while True:
            known = _fields(schema)
            if parts[0] not in known:
                raise unknown('field', f'{at}.{parts[0]}', [f'{at}.{k}' for k in known])
            kind = _strip_optional(known[parts[0]][0])
            key, at, rest = parts[0], f'{at}.{parts[0]}', parts[1:]
            if rest and kind is Duration and len(rest) == 1:
                node[key] = {rest[0]: _literal(text)}
            elif rest and kind is Choice and len(rest) == 1:
                same = node[key] is not None and node[key]['name'] == text
                if rest[0] == 'name' and not same:
                    node[key] = {'name': text}
                elif rest[0] != 'name':
                    node[key] = {**(node[key] or {}), rest[0]: _literal(text)}
            elif rest and dataclasses.is_dataclass(kind) and kind not in (Duration, Choice):
                assert isinstance(kind, type)
                if node[key] is None:
                    node[key] = to_dict(kind())
                elif not isinstance(node[key], dict):
                    raise _wrong(at, 'a group of fields', node[key])
                node, schema, parts = node[key], kind, rest
                continue
            elif rest:
                raise UserError(f'{at}: has no field {".".join(rest)!r}')
            elif kind is Choice and not text.startswith(('{', 'dict(')):
                node[key] = {'name': text}
            elif kind is str:
                node[key] = text
            else:
                node[key] = _plain(_literal(text))
            break
    return to_dict(parse(tree))


def load(path: str | os.PathLike, assignments: Sequence[str] = ()) -> Config:
    """The config of a file with `get_config()`, after the assignments of the command line.

    Raises:
      UserError: the file is missing or not a config, or see `parse` and `override`.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or '.'
        near = [os.path.normpath(os.path.join(f, n)) for f in {folder, 'configs'} if os.path.isdir(f)
                for n in os.listdir(f) if n.endswith('.py')]
        raise unknown('config file', path, near)
    spec = importlib.util.spec_from_file_location('jaxcnn_user_config', path)
    if spec is None or spec.loader is None:
        raise UserError(f'{path}: a config is a Python file with get_config()')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise UserError('has no get_config()')
        fields = module.get_config()
    except UserError as e:
        raise UserError(f'{path}: {e}') from e
    except Exception as e:
        raise UserError(f'{path}: {type(e).__name__}: {" ".join(str(e).split())}') from e
    stem = os.path.splitext(os.path.basename(path))[0]
    tree = override(fields, assignments)
    return parse({**tree, 'name': tree['name'] or stem})


def parse_call(text: str, where: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """'name(1, b=2)' or 'name' as (name, args, kwargs); arguments are literals, nothing is evaluated as code."""
    error = UserError(f'{where}: {text.strip()!r} is not a name, or name(value, key=value, ...) with numbers, tuples, or '
                      'strings in quotes')
    try:
        node = ast.parse(text.strip(), mode='eval').body
        if isinstance(node, ast.Name):
            return node.id, (), {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            return (node.func.id, tuple(ast.literal_eval(a) for a in node.args),
                    {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise error from None
    raise error


def parse_calls(text: str, where: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """As `parse_call`, of several with `|` between them."""
    try:
        return [parse_call(part, where) for part in text.split('|')]
    except UserError as e:
        raise UserError(f"{e}; between several stands '|'") from None


def bind(function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments as keywords of `function`; a UserError names the one that does not fit and the known ones."""
    signature = inspect.signature(function)
    for name in kwargs:
        if name not in signature.parameters:
            raise unknown(f'argument of {where}', name, signature.parameters)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as e:
        raise UserError(f'{where}: {e}; it takes ({", ".join(map(str, signature.parameters))})') from e
