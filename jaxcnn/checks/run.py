"""The checks in their order, and the page with their verdicts."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from jaxcnn import config as cfg
from jaxcnn import experiment
from jaxcnn.analysis.markdown import escape, figure, to_html
from jaxcnn.checks.augmentation import check_augmentation
from jaxcnn.checks.base import FAILED, INFORMATION, OK, Check, Verdict
from jaxcnn.checks.context import Context, TooShort
from jaxcnn.checks.data import check_batch, check_data
from jaxcnn.checks.execution import check_determinism, check_throughput
from jaxcnn.checks.gradients import check_gradients
from jaxcnn.checks.learning_rate import check_batch_size, check_lr_range
from jaxcnn.checks.loss import check_first_loss, check_zero_lr
from jaxcnn.checks.signal import check_signal
from jaxcnn.checks.training import check_learns, check_overfit
from jaxcnn.data import Source
from jaxcnn.data.sources import IN_MEMORY
from jaxcnn.errors import UserError, counted, describe_exception, from_os_error, name_file, unknown

CHECKS: dict[str, Check] = {check.name: check for check in (
    Check('batch', 'What is the network fed?', check_batch),
    Check('data', 'Are the classes balanced, and the splits disjoint?', check_data),
    Check('first_loss', 'Is the loss before training that of a network that knows nothing?', check_first_loss,
          outputs='logits'),
    Check('zero_lr', 'Does the loss stay put with learning rate 0?', check_zero_lr),
    Check('gradients', 'Are the gradients right?', check_gradients),
    Check('overfit', 'Can the network memorise a few images?', check_overfit),
    Check('learns', 'Does a short training help on images that the network has not seen?', check_learns,
          outputs='logits'),
    Check('signal', 'Do activations, gradients and updates have a sensible size in every layer?', check_signal),
    Check('augmentation', 'Does augmentation leave images in their class?', check_augmentation, outputs='logits'),
    Check('lr_range', 'Which learning rates are possible?', check_lr_range),
    Check('batch_size', 'Which batch size does the noise of the gradient call for?', check_batch_size),
    Check('determinism', 'Do two starts give the same bits?', check_determinism),
    Check('throughput', 'Is the data or the step the limit, and how fast is it?', check_throughput),
)}
MIN_STEPS = 10


def run_checks(config: cfg.Config, folder: str, names: Sequence[str] = (), steps: int = 100, source: Source | None = None,
               on_verdict: Callable[[Check, Verdict], None] = lambda check, verdict: None) -> dict[str, Verdict]:
    """Carry out checks, and write their figures and the page `check.html` into a folder.

    Args:
      config: the config.
      folder: the folder, which is created if it is missing.
      names: names in `CHECKS`; none stands for all.
      steps: number of steps of short trainings.
      source: the data; None: what the config names.
      on_verdict: called after each check.

    Returns:
      The verdicts by the names of the checks, in the order of `CHECKS`.

    Raises:
      UserError: a name is unknown, or the config, the data or the folder cannot be used.
    """
    for name in names:
        if name not in CHECKS:
            raise unknown('check', name, CHECKS)
    if steps < MIN_STEPS:
        raise UserError(f'expected at least {MIN_STEPS}, got {steps}', field='--steps')
    if source is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=IN_MEMORY, dir=''))
    config = experiment.check(config)
    verdicts = {}
    try:
        figure_folder = os.path.join(folder, 'figures')
        os.makedirs(figure_folder, exist_ok=True)
        with Context(config, figure_folder, steps, source) as context:
            for check in CHECKS.values():
                if not names or check.name in names:
                    verdicts[check.name] = _run(check, context)
                    on_verdict(check, verdicts[check.name])
        write_page(config, folder, verdicts)
    except OSError as e:
        raise from_os_error(e, folder) from e
    return verdicts


def _run(check: Check, context: Context) -> Verdict:
    """Carry out a check; an error in it is the verdict, so that the other checks are carried out, too."""
    outputs = context.setup.experiment.task.outputs
    if check.outputs not in ('', outputs):
        return Verdict(INFORMATION, f'this check is for networks that return {check.outputs}, not {outputs}')
    try:
        return check.run(context)
    except TooShort as e:
        return Verdict(INFORMATION, str(e), 'raise --steps')
    except UserError as e:
        return Verdict(FAILED, str(e))
    except OSError:
        raise
    except Exception as e:
        return Verdict(FAILED, f'the check ended with {describe_exception(e)[:300]}',
                       'jaxcnn train may end with the same error; correct it first')


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def line(check: Check, verdict: Verdict) -> str:
    """Return the verdict of a check on one line."""
    advice = f'. {_capitalized(verdict.advice)}' if verdict.advice else ''
    return f'{check.name:13} {verdict.status:12} {verdict.measured}{advice}'


def summary(verdicts: Mapping[str, Verdict]) -> str:
    """Return the number of checks of each status."""
    statuses = [verdict.status for verdict in verdicts.values()]
    counts = [(status, statuses.count(status)) for status in dict.fromkeys([FAILED, 'warning', 'information', OK])]
    return f'{counted(len(verdicts), "check")}: ' + ', '.join(f'{count} {status}' for status, count in counts if count)


def write_page(config: cfg.Config, folder: str, verdicts: Mapping[str, Verdict]) -> None:
    """Write `check.html`, which contains the figures, into a folder."""
    title = f'Checks of {config.name or config.model.name}'
    lines = [f'# {escape(title)}', '', f'{config.model.name} on {escape(config.data.name)}. {summary(verdicts)}.', '',
             '| check | verdict | measured | what to do |', '|---|---|---|---|']
    for name, verdict in verdicts.items():
        lines.append(f'| {escape(name)} | {"**" if verdict.status == FAILED else ""}{verdict.status}'
                     f'{"**" if verdict.status == FAILED else ""} | {escape(verdict.measured)} | {escape(verdict.advice)} |')
    for name, verdict in verdicts.items():
        lines += ['', f'## {escape(name)}: {verdict.status}', '', f'*{CHECKS[name].question}*', '',
                  f'{escape(_capitalized(verdict.measured))}.', '']
        if verdict.advice:
            lines += [f'**What to do:** {escape(verdict.advice)}.', '']
        lines += [*verdict.lines, '']
        for figure_name in verdict.figures:
            lines += [figure(os.path.join(folder, 'figures'), figure_name), '']
    path = os.path.join(folder, 'check.html')
    with name_file(path), open(path, 'w', encoding='utf-8') as file:
        file.write(to_html('\n'.join(lines), title, folder))
