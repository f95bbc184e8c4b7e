"""The definition of a study: a base config, the arms that change it, and the seeds with which each arm is trained.

A study file defines `get_study()`, which returns a study:

    make_study(base='digits_lenet5', arms={'tanh': {'model.activation': 'tanh'}, 'relu': {}}, seeds=3)
"""

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import ml_collections

from jaxcnn import config as cfg
from jaxcnn import experiment
from jaxcnn.errors import UserError, name_field, unknown
from jaxcnn.studies.columns import find_column, main_metric, protocol_measurement
from jaxcnn.studies.space import Search, Values
from jaxcnn.training.workdir import STUDY

Overrides = Mapping[str, Any]
Base: TypeAlias = str | os.PathLike | Mapping[str, Any] | ml_collections.ConfigDict | cfg.Config
Protocols = Mapping[str, str | Mapping[str, str]]
ARM_PREFIX = 'arm:'  # precedes the name of an arm in a field of `RUN_FIELDS`
SEEDS_PREFIX = 'seeds:'  # precedes the name of an arm, all of whose runs are meant, in `distillation.teachers`
SINGLE_RUN_FIELDS = ('init.run', 'pruning.masks')  # fields of a config that name the workdir of another run
RUN_FIELDS = (*SINGLE_RUN_FIELDS, 'distillation.teachers')
_RESERVED = {'figures', 'slurm', STUDY, 'study.csv', 'study.md', 'study.html', 'optuna.log'}  # names in the workdir


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the configs that a study compares.

    Attributes:
      name: name in the table.
      config: the config, with the first seed of the study.
      published: published value of the compared measurement, or None.
      changes: paths of the fields that the arm changes in the base config.
      protocols: names and texts of the protocols by which its runs are evaluated.
      split: the split of that evaluation; empty without protocols.
    """

    name: str
    config: cfg.Config
    published: float | None = None
    changes: frozenset[str] = frozenset()
    protocols: tuple[tuple[str, str], ...] = ()
    split: str = ''

    @property
    def folder(self) -> str:
        """Name of the arm's folder in the workdir of the study."""
        return re.sub(r'[^\w.+=-]+', '_', self.name).strip('_')

    def _runs(self, field: str) -> tuple[str, ...]:
        """Return the workdirs and arms that a field of `RUN_FIELDS` names."""
        group, _, name = field.partition('.')
        value = getattr(getattr(self.config, group), name, ())
        return value if isinstance(value, tuple) else (value,)

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """Names of the arms whose runs this arm uses, by the field of `RUN_FIELDS` that names them."""
        names = {field: tuple(run.removeprefix(ARM_PREFIX).removeprefix(SEEDS_PREFIX) for run in self._runs(field)
                              if run.startswith((ARM_PREFIX, SEEDS_PREFIX))) for field in RUN_FIELDS}
        return {field: arms for field, arms in names.items() if arms}

    def source_folders(self, seed: int, seeds: Sequence[int],
                       folder: Callable[[str, int], str]) -> dict[str, tuple[str, ...]]:
        """Return the workdirs that the fields in `sources` name for a run of this arm, in a tuple even if it is only one.

        Args:
          seed: seed of the run.
          seeds: all seeds of the study.
          folder: returns the workdir of the run of an arm with a seed.
        """
        def folders(run: str) -> list[str]:
            if run.startswith(SEEDS_PREFIX):
                return [folder(run.removeprefix(SEEDS_PREFIX), other) for other in seeds]
            return [folder(run.removeprefix(ARM_PREFIX), seed)] if run.startswith(ARM_PREFIX) else [run]
        return {field: tuple(path for run in self._runs(field) for path in folders(run)) for field in self.sources}


@dataclasses.dataclass(frozen=True)
class Study:
    """A study; see `make_study`.

    Attributes:
      title: heading of the report.
      text: Markdown that introduces the report.
      arms: the arms. A search has a single one, which holds the base config.
      seeds: seeds of each arm.
      compare: name of the compared measurement.
      columns: names of further measurements in the table.
      baseline: name of the arm with which the others are compared; empty for a search.
      search: the search, or None if the arms are given.
    """

    title: str
    text: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    compare: str
    columns: tuple[str, ...]
    baseline: str
    search: Search | None = None

    @property
    def measurements(self) -> tuple[str, ...]:
        """Names of all measurements in the table; the first one is compared."""
        return self.compare, *self.columns


def value_text(value: object) -> str:
    """Format the value of a field: a choice as `sgd(momentum=0.9)`, a duration as `3 epochs`, and of a group of fields those
    that are set."""
    if not isinstance(value, Mapping):
        return str(value)
    fields = dict(value)
    if 'name' not in fields:
        if len(fields) == 1:
            return ', '.join(f'{argument} {key}' for key, argument in fields.items())
        return ', '.join(f'{key}={argument}' for key, argument in fields.items() if argument not in ('', None, (), []))
    name = str(fields.pop('name'))
    return f'{name}({", ".join(f"{key}={argument}" for key, argument in fields.items())})' if fields else name


def product(*factors: Mapping[str, Overrides]) -> dict[str, Overrides]:
    """Combine each arm of a mapping with each arm of the others.

    The names are joined by commas, as in `{'adam, cosine': {...}, ...}`.

    Raises:
      UserError: A mapping is empty, or two arms have the same name.
    """
    for number, factor in enumerate(factors):
        if not factor:
            raise UserError(f'mapping {number + 1} of the product has no arms')
    arms: dict[str, Overrides] = {}
    for names in itertools.product(*factors):
        arm = ', '.join(names)
        if arm in arms:
            raise UserError(f'two arms of the product have the name {arm!r}')
        arms[arm] = {path: value for factor, name in zip(factors, names, strict=True)
                     for path, value in factor[name].items()}
    return arms


def grid(fields: Mapping[str, Sequence[Any]]) -> dict[str, Overrides]:
    """Return an arm for each combination of the values of some fields.

    Args:
      fields: values by the path of their field, as in `{'optim.learning_rate': [0.01, 0.1], 'batch_size': [64, 128]}`.

    Raises:
      UserError: There are no fields, a field has no values, or two of its values are equal.
    """
    if not fields:
        raise UserError('a grid needs at least one field')
    for path, values in fields.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(f'a grid needs a list of at least one value, got {values!r}', field=path)
    short = {path: path.rpartition('.')[2] for path in fields}
    if len({*short.values()}) < len(short):
        short = {path: path for path in fields}
    factors = []
    for path, values in fields.items():
        names = [f'{short[path]}={value_text(value)}' for value in values]
        if len({*names}) < len(names):
            raise UserError(f'the values of a grid must differ, got {values!r}', field=path)
        factors.append({name: {path: value} for name, value in zip(names, values, strict=True)})
    return product(*factors)


def make_study(base: Base, arms: Mapping[str, Overrides | Base] | Search, *, seeds: int = 3, compare: str | None = None,
               common: Overrides | None = None, columns: Sequence[str] = (), baseline: str | None = None,
               published: Mapping[str, float] | None = None, protocols: Protocols | None = None, title: str = '',
               text: str = '') -> Study:
    """Define a study.

    Args:
      base: the config that the arms change: its name, its path, or a config that is already built.
      arms: the arms by name. Each is a mapping from the paths of the fields that it changes to their values, or another
        config that replaces `base`. The value `arm:NAME` of `init.run` starts an arm from the weights of an earlier arm with
        the same seed, that of `pruning.masks` takes its masks, and as one of `distillation.teachers` it is the run of that
        arm; `seeds:NAME` means its runs with all seeds. Alternatively a search, see `search`.
      seeds: number of seeds of each arm, counted from the seed of the base config.
      compare: the compared measurement: one in the summary of a run, such as `test_accuracy`, or
        `epochs_to('train_accuracy', 0.75)`, the number of epochs until a logged value reaches a target, or
        `by_protocol('test_accuracy', NAME)`. The default is the first metric of the task on the test split, or for a search
        on the validation split.
      common: fields that are changed in all arms, for example in the quick form of a study.
      columns: further measurements in the table.
      baseline: name of the arm with which the others are compared; by default the first one.
      published: published values of the compared measurement, by the name of the arm.
      protocols: protocols by which runs are evaluated after their training, on the split of the compared measurement, see
        `robustness.protocols.parse`. Each has a name, and is a string or, if it differs between arms, a mapping from arms to
        strings, in which arms may be missing. Each is a column with the accuracy, unless `compare` or `columns` names it.
      title: heading of the report; by default the name of the study file.
      text: Markdown that introduces the report, such as the question of the study and the published answer.

    Raises:
      UserError: A field, an arm or a measurement does not exist, or a config is invalid.
    """
    common = common or {}
    base_config = _load_base(base, common)
    space = arms if isinstance(arms, Search) else None
    overrides = {'base': {}} if isinstance(arms, Search) else arms
    if not isinstance(overrides, Mapping) or not overrides:
        raise UserError(f'a study needs a mapping of at least one arm, got {overrides!r}', field='arms',
                        hint='for example {"tanh": {"model.activation": "tanh"}}')
    if isinstance(columns, str):
        raise UserError(f'expected a list of measurements, got {columns!r}', field='columns')
    published = published or {}
    if space and (published or baseline):
        raise UserError('a search has no arms with published values, and no baseline', field='arms')
    for what, names in (('published', published), ('baseline', [baseline] if baseline else [])):
        for name in names:
            if name not in overrides:
                raise unknown('arm', str(name), overrides, field=what)
    built = tuple(_make_arm(name, base_config, fields, common, published.get(name)) for name, fields in overrides.items())
    _check_folders(built)
    for i, arm in enumerate(built):
        for field, sources in arm.sources.items():
            for source in sources:
                if source not in (earlier := [other.name for other in built[:i]]):
                    raise unknown('earlier arm', source, earlier, field=f'arm {arm.name!r}: config.{field}')
    compare = compare or _default_measurement(built[0].config, bool(space))
    if protocols:
        if space:
            raise UserError('a search compares by the validation split in training only', field='protocols')
        with name_field('compare'):
            split = find_column(compare, built[0].config).split
        built = tuple(dataclasses.replace(arm, split=split) for arm in _with_protocols(built, protocols))
        columns = [*columns, *_missing_columns(protocols, split, [compare, *columns], built[0].config)]
    study = Study(title, text, built, tuple(range(base_config.seed, base_config.seed + _check_seeds(seeds))), compare,
                  tuple(columns), '' if space else baseline or built[0].name, space)
    _check_measurements(study)
    if space:
        _check_space(space, base_config)
    return study


@contextlib.contextmanager
def _name_arm(name: str) -> Iterator[None]:
    """Prefix the name of the arm to a UserError that is raised in the block."""
    try:
        yield
    except UserError as e:
        raise UserError(str(e), field=f'arm {name!r}') from e


def _load_base(base: Base, common: Overrides) -> cfg.Config:
    config = cfg.load(base) if isinstance(base, (str, os.PathLike)) else cfg.parse(base)
    return cfg.parse(cfg.override(config, common))


def _make_arm(name: str, base: cfg.Config, overrides: Overrides | Base, common: Overrides, published: float | None) -> Arm:
    if not isinstance(name, str) or not Arm(name, base).folder:
        raise UserError(f'the name of an arm must contain a letter or a digit, got {name!r}', field='arms')
    with _name_arm(name):
        if isinstance(overrides, (str, os.PathLike, ml_collections.ConfigDict, cfg.Config)):
            fields = cfg.to_dict(dataclasses.replace(_load_base(overrides, common), seed=base.seed))
            changes = frozenset[str]()
        elif isinstance(overrides, Mapping):
            fields, changes = cfg.override(base, overrides), frozenset(overrides)
        else:
            raise UserError(f'expected the fields that it changes, such as {{"optim.learning_rate": 0.1}}, or a config, got '
                            f'{overrides!r}')
        if 'seed' in changes:
            raise UserError('config.seed is set by the seeds of the study')
        return Arm(name, experiment.check(cfg.parse({**fields, 'name': name})), published, changes)


def _with_protocols(arms: Sequence[Arm], protocols: Protocols) -> tuple[Arm, ...]:
    """Return the arms with their protocols.

    Raises:
      UserError: A protocol is not one, or belongs to an arm that does not exist.
    """
    from jaxcnn.robustness.protocols import parse
    if not isinstance(protocols, Mapping):
        raise UserError(f'expected a mapping from names to protocols, got {protocols!r}', field='protocols')
    names = [arm.name for arm in arms]
    by_arm: dict[str, dict[str, str]] = {name: {} for name in names}
    for protocol, value in protocols.items():
        for name, text in (value.items() if isinstance(value, Mapping) else ((name, value) for name in names)):
            if name not in by_arm:
                raise unknown('arm', str(name), names, field=f'protocols: {protocol!r}')
            with name_field(f'protocols: {protocol!r}'):
                if not isinstance(text, str):
                    raise UserError(f"expected a protocol such as 'dense', got {text!r}")
                parse(text)
            by_arm[name][protocol] = text.strip()
    return tuple(dataclasses.replace(arm, protocols=tuple(by_arm[arm.name].items())) for arm in arms)


def _missing_columns(protocols: Protocols, split: str, names: Sequence[str], config: cfg.Config) -> list[str]:
    """Return the column with the main metric for each protocol that no named column shows."""
    shown = {find_column(name, config).protocol for name in names}
    metric = f'{split}_{main_metric(config).name}'
    return [protocol_measurement(metric, protocol) for protocol in protocols if protocol not in shown]


def _check_folders(arms: Sequence[Arm]) -> None:
    """Raise a UserError if two arms have the same folder, or if the folder of an arm has a reserved name."""
    names: dict[str, str] = {}
    for arm in arms:
        if arm.folder.startswith('.') or arm.folder.casefold() in _RESERVED:
            raise UserError(f'{arm.name!r} cannot be the name of an arm, because its folder would be {arm.folder!r}',
                            field='arms')
        other = names.setdefault(arm.folder.casefold(), arm.name)
        if other != arm.name:
            raise UserError(f'{other!r} and {arm.name!r} would have the same folder, {arm.folder!r}', field='arms',
                            hint='rename one of them')


def _check_measurements(study: Study) -> None:
    """Raise a UserError if an arm lacks a measurement, or if a search compares by another split than validation."""
    for arm in study.arms:
        for field, names in (('compare', [study.compare]), ('columns', study.columns)):
            for name in names:
                with _name_arm(arm.name), name_field(field):
                    protocol = find_column(name, arm.config).protocol
                    if protocol and protocol not in (known := {name for arm in study.arms for name, _ in arm.protocols}):
                        raise unknown('protocol', protocol, known)
    if study.search and find_column(study.compare, study.arms[0].config).split != 'val':
        raise UserError(f'a search must compare by a measurement of the validation split, got {study.compare!r}',
                        field='compare', hint=f'nearest: {_default_measurement(study.arms[0].config, True)}')


def _default_measurement(config: cfg.Config, is_search: bool) -> str:
    return f'{"val" if is_search else "test"}_{main_metric(config).name}'


def _check_space(space: Search, base: cfg.Config) -> None:
    """Raise a UserError if a field of the space does not exist or rejects one of its values."""
    for path, values in space.space.items():
        tried = values.values if isinstance(values, Values) else [int(v) if values.integer else v
                                                                  for v in (values.low, values.high)]
        for value in tried:
            with _name_arm(f'{path}={value}'):
                experiment.check(cfg.parse(cfg.override(base, {path: value})))


def load_study(path: str, assignments: Sequence[str] = (), seeds: int | None = None) -> Study:
    """Return the study that a study file defines.

    Args:
      path: path of the file, or the name of a study that comes with jaxcnn, such as `activations`. The suffix `:quick`
        selects the quick form, which `get_quick_study()` returns.
      assignments: fields to set in all arms, as `'a.b=VALUE'`.
      seeds: number of seeds that replaces the one in the file; None keeps it.

    Raises:
      UserError: The file does not exist or defines no study, or the study is invalid.
    """
    file, colon, form = path.rpartition(':')
    if not colon or os.sep in form:  # a path may contain colons
        file, colon, form = path, '', ''
    file = cfg.find_config_file(file, 'study')
    study = cfg.call_in_file(file, f'get_{form}_study' if colon else 'get_study')
    if not isinstance(study, Study):
        raise UserError(f'its study is a {type(study).__name__}, not what make_study() returns', field=file)
    name = os.path.splitext(os.path.basename(file))[0]
    name = f'{name} ({form})' if colon else name
    if seeds is not None:
        first = study.seeds[0]
        study = dataclasses.replace(study, seeds=tuple(range(first, first + _check_seeds(seeds))))
    return _change_all_arms(dataclasses.replace(study, title=study.title or name), assignments)


def _change_all_arms(study: Study, assignments: Sequence[str]) -> Study:
    """Return the study with some fields set in all arms.

    Raises:
      UserError: An arm, the search or the seeds of the study set the same field, or a config is invalid.
    """
    if not assignments:
        return study
    for path in (assignment.partition('=')[0] for assignment in assignments):
        owners: dict[str, Iterable[str]] = {f'arm {arm.name!r}': arm.changes for arm in study.arms}
        owners |= {'the search': study.search.space if study.search else (), 'the seeds': ('seed',)}
        for owner, fields in owners.items():
            if any(f'{path}.'.startswith(f'{field}.') or f'{field}.'.startswith(f'{path}.') for field in fields):
                raise UserError(f'is set by {owner} of the study', field=f'--config.{path}')
    arms = []
    for arm in study.arms:
        with _name_arm(arm.name):
            config = experiment.check(cfg.parse(cfg.override(arm.config, assignments)))
        arms.append(dataclasses.replace(arm, config=config))
    study = dataclasses.replace(study, arms=tuple(arms))
    _check_measurements(study)
    if study.search:
        _check_space(study.search, study.arms[0].config)
    return study


def _check_seeds(seeds: int) -> int:
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise UserError(f'expected at least 1, got {seeds!r}', field='seeds')
    return seeds
