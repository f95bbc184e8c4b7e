"""The function `train`: it checks the arguments, claims the workdir, and runs the training loop in it."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from jaxcnn import config as cfg
from jaxcnn import experiment
from jaxcnn.cache_folder import cache_folder
from jaxcnn.data import Source
from jaxcnn.data.sources import IN_MEMORY
from jaxcnn.errors import UserError, from_os_error
from jaxcnn.training import channel_pruning, initialize, parallel, signals
from jaxcnn.training.callbacks import Callback
from jaxcnn.training.loop import TrainingRun
from jaxcnn.training.workdir import claim

# in the error of a collective operation that another process did not finish
_LOST_PROCESS = ('Gloo', 'NCCL', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')


def train(config: cfg.Config | ml_collections.ConfigDict | Mapping[str, Any], workdir: str, *,
          data: Source | None = None, callbacks: Sequence[Callback] = (), extend: bool = False, end_process: bool = False,
          initial_variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train a network and evaluate it, or resume the run in the workdir.

    Args:
      config: config of the run.
      workdir: folder of the run, which is created if it is missing.
      data: the data, instead of what `config.data` names; see `Source.from_arrays`.
      callbacks: callbacks that the run calls; see `Callback`.
      extend: whether the run in the workdir may be continued with a longer `config.duration` and with further stages in
        `config.optim.switch`. It then equals a run that was started with them.
      end_process: whether a signal may end the process, as in a command; see `signals.stop_on_signals`.
      initial_variables: variables of the network to start from, `{'params': ..., 'batch_stats': ...}`; see `config.init`.

    Returns:
      The summary, as in `summary.json`. It contains the metrics of the best checkpoint by `config.checkpoint.metric`.
      Accuracies are in [0, 1], and metrics that were not measured are None.

    Raises:
      UserError: the config, the data or the workdir cannot be used. `Diverged` is raised if the loss or a parameter is not
        finite.
      Interrupted: SIGTERM, SIGINT or SIGHUP came, and the state after the steps under way is saved.
    """
    parsed = initialize.with_variables(cfg.parse(config), initial_variables)
    if data is not None:
        if not isinstance(data, Source):
            raise UserError(f'expected a jaxcnn.Dataset, got {type(data).__name__}', field='data',
                            hint='jaxcnn.Dataset.from_arrays(train=(images, labels), test=(images, labels)) makes one')
        parsed = dataclasses.replace(parsed, data=dataclasses.replace(parsed.data, name=IN_MEMORY, dir=''))
    config = parallel.run_on_all_processes(lambda: channel_pruning.with_layer_widths(experiment.check(parsed), workdir))
    with signals.stop_on_signals(end_process) as stop, contextlib.ExitStack() as resources:
        parallel.run_on_all_processes(lambda: resources.enter_context(claim(workdir, config, extend)))
        try:
            with parallel.run_on_all_processes(
                    lambda: TrainingRun(config, workdir, stop, data, callbacks, initial_variables)) as run:
                run.train()
                summary = run.finish()
                signum = int(parallel.process_allgather(stop.signum).max())
                if summary is None or signum:  # a further run, such as that of the next seed, must not start
                    raise signals.Interrupted(signum, run.step)
                return summary
        except OSError as e:
            raise from_os_error(e, workdir, cache_folder(config.data.cache_dir)) from e
        except jax.errors.JaxRuntimeError as e:
            if 'RESOURCE_EXHAUSTED' in str(e):
                raise UserError('the device has not enough memory', hint='a smaller config.batch_size, a larger '
                                'config.optim.accumulate or config.data.placement=host may help') from e
            if jax.process_count() > 1 and any(word in str(e) for word in _LOST_PROCESS):
                raise UserError(f'the connection to another process of the run is lost: {" ".join(str(e).split())[:200]}',
                                hint='its output says why; the same commands continue the run') from e
            raise
