"""Searches over configs with Optuna, whose journal is a file in the workdir of the study."""

import contextlib
import dataclasses
import functools
import json
import os
import warnings
from typing import Any

from jaxcnn import config as cfg
from jaxcnn import experiment
from jaxcnn.analysis import figures
from jaxcnn.analysis.markdown import figure
from jaxcnn.errors import UserError
from jaxcnn.studies.columns import Column
from jaxcnn.studies.definition import Arm, Study
from jaxcnn.studies.jobs import Job, Queue
from jaxcnn.studies.results import ArmResult, RunResult, ranked, write_failure
from jaxcnn.studies.run import StudyRun
from jaxcnn.studies.space import Range, Search, Values
from jaxcnn.training.workdir import read_config, read_metrics, write_json

JOURNAL = 'optuna.log'


def import_optuna() -> Any:
    """Import Optuna and silence its log messages below warnings.

    Raises:
      UserError: Optuna is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("a search needs Optuna: pip install 'jaxcnn[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_journal(study: Study, folder: str, column: Column) -> Any:
    """Return the Optuna study of a search, which is created in the workdir if it does not exist."""
    optuna = import_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    path = os.path.join(folder, JOURNAL)
    storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    assert study.search is not None
    pruner = {'none': optuna.pruners.NopPruner, 'median': optuna.pruners.MedianPruner,
              'hyperband': optuna.pruners.HyperbandPruner}[study.search.pruner]()
    return optuna.create_study(storage=storage, pruner=pruner, study_name='search', load_if_exists=True,
                               direction='maximize' if column.better == 'max' else 'minimize')


def _make_sampler(search: Search, number: int) -> Any:
    """Return the sampler of a trial, seeded by its number so that a continued search makes the same choices."""
    samplers, seed = import_optuna().samplers, search.seed * 1_000_003 + number
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Optuna warns about experimental arguments
        if search.sampler == 'qmc':
            return samplers.QMCSampler(seed=search.seed, scramble=True, warn_independent_sampling=False)
        if search.sampler == 'random':
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(seed=seed, constant_liar=True)


def trial_folder(number: int) -> str:
    """Return the name of a trial, which is also the name of its folder."""
    return f'trial{number}'


@dataclasses.dataclass
class _Trial:
    """A running trial: its Optuna object, its arm, the seeds that remain to be trained, and the values of the others."""

    trial: Any
    arm: Arm
    seeds: list[int]
    values: list[float]


class SearchQueue(Queue):
    """The runs of a search, one for each trial and seed.

    Args:
      study: the study.
      folder: workdir of the study.
      column: the measurement by which trials are compared.
    """

    def __init__(self, study: Study, folder: str, column: Column):
        assert study.search is not None
        self._study, self._folder, self._column, self._search = study, folder, column, study.search
        self._optuna = import_optuna()
        self._journal = open_journal(study, folder, column)
        self._trials: dict[str, _Trial] = {}
        running = self._optuna.trial.TrialState.RUNNING
        for frozen in self._journal.get_trials(states=[running]):  # continue a stopped study
            self._begin(self._optuna.trial.Trial(self._journal, frozen._trial_id))

    def _begin(self, trial: Any) -> None:
        """Sample the values of a trial, unless the journal already has them, and write its config."""
        overrides = {path: _suggest(trial, path, values) for path, values in self._search.space.items()}
        name = trial_folder(trial.number)
        folder = os.path.join(self._folder, name)
        try:
            config = experiment.check(cfg.parse({**cfg.override(self._study.arms[0].config, overrides), 'name': name}))
        except UserError as e:
            write_failure(os.path.join(folder, f'seed{self._study.seeds[0]}'), 'failed', str(e))
            self._journal.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            return
        os.makedirs(folder, exist_ok=True)
        write_json(os.path.join(folder, 'config.json'), cfg.to_dict(config))
        self._trials[name] = _Trial(trial, Arm(name, config), list(self._study.seeds), [])

    def next(self) -> Job | None:
        """Return the next run of a running trial, or the first run of a new trial if there is none."""
        while True:
            for state in self._trials.values():
                while state.seeds:
                    job = Job(state.arm, state.seeds.pop(0), self._folder)
                    result = job.result()
                    if result.status in ('unfinished', 'failed'):
                        return job
                    self.done(job, result)  # the study was stopped after this run
            number = len(self._journal.trials)
            if number >= self._search.trials:
                return None
            self._journal.sampler = _make_sampler(self._search, number)
            self._begin(self._journal.ask())

    def should_prune(self, job: Job) -> bool:
        """Report the logged values of a running trial to the pruner, and return whether to stop the trial."""
        if self._search.pruner == 'none' or len(self._study.seeds) > 1:
            return False
        trial = self._trials[job.arm.name].trial
        values = [row[self._column.name] for row in read_metrics(job.folder) if self._column.name in row]
        reported = len(self._journal.get_trials(deepcopy=False)[trial.number].intermediate_values)
        for number, value in enumerate(values[reported:], reported + 1):
            trial.report(value, number)
        return bool(len(values) > reported and trial.should_prune())

    def done(self, job: Job, result: RunResult) -> None:
        """Report the mean over seeds to Optuna when the last seed of a trial has ended."""
        state, states = self._trials[job.arm.name], self._optuna.trial.TrialState
        if result.status == 'unfinished':  # a stopped run, which the next command continues
            return
        value = self._column.value(result.summary, result.rows) if result.status == 'finished' else None
        if value is None:
            self._journal.tell(state.trial, state=states.PRUNED if result.status == 'pruned' else states.FAIL)
        else:
            state.values.append(value)
            if len(state.values) < len(self._study.seeds):
                return
            self._journal.tell(state.trial, sum(state.values) / len(state.values))
        del self._trials[job.arm.name]


def _suggest(trial: Any, path: str, values: Range | Values) -> Any:
    if isinstance(values, Values):
        by_text = {str(value): value for value in values.values}  # Optuna stores only strings and numbers
        return by_text[trial.suggest_categorical(path, list(by_text))]
    if values.integer:
        return trial.suggest_int(path, int(values.low), int(values.high))
    return trial.suggest_float(path, values.low, values.high, log=values.log)


class SearchRun(StudyRun):
    """The search of a study in a workdir; see `StudyRun`."""

    @property
    def _search(self) -> Search:
        assert self.study.search is not None
        return self.study.search

    @property
    def search_fields(self) -> dict[str, Any]:
        """The settings of the search that must not change when it is continued: all but the number of trials."""
        search, base = self._search, dataclasses.replace(self.study.arms[0].config, seed=0)
        changed_fields = {change.field: cfg.to_dict(change.new) for change in cfg.differences(cfg.Config(), base)}
        fields = {'sampler': search.sampler, 'pruner': search.pruner, 'sampler seed': search.seed,
                  'compare': self.study.compare, 'seeds': self.study.seeds,
                  **{path: cfg.to_dict(values) for path, values in search.space.items()}, **changed_fields}
        return dict(json.loads(json.dumps(fields)))  # as JSON reads it back

    def write_arms(self) -> None:
        """Write nothing: the config of a trial is written when it begins."""

    @functools.cached_property
    def queue(self) -> Queue:
        """The runs that remain to be trained."""
        return SearchQueue(self.study, self.folder, self.columns[0])

    @property
    def num_runs(self) -> int:
        """Total number of runs."""
        return self._search.trials * len(self.study.seeds)

    def jobs(self) -> list[Job]:
        """Raise a UserError, because the later runs of a search depend on the results of earlier ones."""
        raise UserError('the runs of a search are not known in advance', field='--executor=print')

    def arm_results(self) -> list[ArmResult]:
        """Return the results of the trials that have begun, from the best to the worst."""
        arms, column = [], self.columns[0]
        for frozen in open_journal(self.study, self.folder, column).get_trials(deepcopy=False):
            name = trial_folder(frozen.number)
            config = self.study.arms[0].config
            with contextlib.suppress(UserError):  # a trial with an invalid config has no config file
                config = read_config(os.path.join(self.folder, name))
            arms.append(ArmResult(name, config, [Job(Arm(name, config), seed, self.folder).result()
                                                 for seed in self.study.seeds]))
        return ranked(arms, column)

    def report_sections(self) -> list[str]:
        """Draw the figures of the search, and return the sections about it as lines of Markdown."""
        column = self.columns[0]
        optuna, journal = import_optuna(), open_journal(self.study, self.folder, column)
        complete = journal.get_trials(states=[optuna.trial.TrialState.COMPLETE])
        if len(complete) < 2:
            return []
        lines = ['## Best values', '', *(f'- `{path}`: {value}' for path, value in journal.best_params.items()), '']
        figure_folder = os.path.join(self.folder, 'figures')
        os.makedirs(figure_folder, exist_ok=True)
        names = {'search_importance': 'plot_param_importances', 'search_parallel': 'plot_parallel_coordinate',
                 'search_history': 'plot_optimization_history'}
        for name, function in names.items():
            with figures.warn_on_error(path := os.path.join(figure_folder, f'{name}.png')):
                _draw(function, journal, column, path)
        return [*lines, '## Importance of the fields', '', 'The share of the variance between trials that each field '
                'explains (functional ANOVA, Hutter et al. 2014). With few trials it is only a rough estimate.', '',
                figure(figure_folder, 'search_importance'), '', '## Trials', '', figure(figure_folder, 'search_parallel'),
                '', figure(figure_folder, 'search_history'), '']


def _draw(function: str, journal: Any, column: Column, path: str) -> None:
    import matplotlib
    import matplotlib.pyplot as plt
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Optuna warns that these functions are experimental
        plt.switch_backend('agg')
        plots = import_optuna().visualization.matplotlib
        result = getattr(plots, function)(journal) if function == 'plot_param_importances' else getattr(plots, function)(
            journal, target_name=column.title)
        figure = result.get_figure() if hasattr(result, 'get_figure') else result.ravel()[0].get_figure()
        figure.savefig(path, bbox_inches='tight', dpi=110)
        plt.close(figure)
