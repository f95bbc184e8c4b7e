"""Trains the network of a config, or goes on with the run that the workdir holds."""

import argparse
import dataclasses
import glob
import os
import statistics

from jaxcnn import cli, config, memory, metrics
from jaxcnn.errors import Diverged, UserError
from jaxcnn.metrics import Measurement, Metric


def task_metrics(settings: config.Config) -> dict[str, Metric]:
    from jaxcnn import tasks
    return metrics.of_targets(tasks.find(settings.task).kind.name)


def tell(summary: dict, settings: config.Config, folder: str) -> None:
    loss, *others = [m for m in task_metrics(settings).values() if summary['num_classes'] >= m.min_classes]
    split = 'test' if summary[Measurement('test', loss).name] is not None else 'val'

    def text(metric: Metric, tta: bool = False) -> str:
        return f'{metric.title} {metric.format(summary[Measurement(split, metric, tta=tta).name])}'
    part = {'test': 'test', 'val': 'validation'}[split]
    more = ', '.join(map(text, [loss, *others[1:]]))
    cli.log.info('%s %s  (%s; checkpoint %d)%s', part, text(others[0]), more, summary['best_step'],
                 '' if split == 'test' else '; there is no labelled test part')
    if Measurement(split, others[0], tta=True).name in summary:
        cli.log.info('%s %s with test-time augmentation', part, text(others[0], tta=True))
    cli.log.info('report: %s\nfigures: %s', os.path.join(folder, 'report.md'), os.path.join(folder, 'figures'))


def of_all_seeds(settings: config.Config, folder: str) -> dict[int, dict]:
    """The summaries of the seeds that came to their end, those of earlier commands with this config, too."""
    from jaxcnn.train import workdir
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), 'seed*', 'summary.json')):
        seed = os.path.basename(os.path.dirname(path)).removeprefix('seed')
        if not seed.isdecimal():
            continue
        try:
            of_seed = dataclasses.replace(settings, seed=int(seed))
            if not config.differences(of_seed, workdir.read_config(os.path.dirname(path))):
                found[int(seed)] = workdir.read_json(path)
        except UserError as e:
            cli.log.warning('left out: %s', e)
    return dict(sorted(found.items()))


def tell_seeds(summaries: dict[int, dict], settings: config.Config, folder: str) -> None:
    """Mean, standard deviation and extremes over seeds; also into `seeds.json`."""
    import jax

    from jaxcnn.train import workdir
    found = {}
    for name in metrics.measurements(task_metrics(settings).values(), ('test', 'val'), ema=True, tta=True):
        values = [s[name] for s in summaries.values() if s.get(name) is not None]
        if len(values) > 1:
            found[name] = {'mean': statistics.mean(values), 'std': statistics.stdev(values), 'least': min(values),
                           'most': max(values), 'values': values}
    if jax.process_index() == 0:
        path = os.path.join(folder, 'seeds.json')
        try:
            workdir.write_json(path, {'seeds': list(summaries), **found})
        except OSError as e:
            raise UserError(f'{path}: cannot be written: {e.strerror}') from e
    for name, f in found.items():
        cli.log.info('%s of %d seeds: mean %.4f, standard deviation %.4f, least %.4f, most %.4f', name, len(summaries),
                     f['mean'], f['std'], f['least'], f['most'])


def run(args: argparse.Namespace) -> int:
    settings = config.load(args.config, args.overrides)
    if args.seeds < 1:
        raise UserError(f'--seeds: expected at least 1, got {args.seeds}')
    config.load(args.config, [*args.overrides, f'seed={settings.seed + args.seeds - 1}'])  # the last one is a seed, too
    from jaxcnn.train import train_and_evaluate
    from jaxcnn.train.signals import Interrupted
    diverged = []
    for seed in range(settings.seed, settings.seed + args.seeds):
        folder = os.path.join(args.workdir, f'seed{seed}') if args.seeds > 1 else args.workdir
        try:
            summary = train_and_evaluate(dataclasses.replace(settings, seed=seed), folder, extends=args.extend,
                                         end_process=True)
        except Interrupted as e:
            cli.log.warning('%s', e)
            return 128 + e.signum
        except Diverged as e:
            if args.seeds == 1:
                raise
            cli.log.error('seed %d: %s', seed, e)
            diverged.append(seed)
        else:
            tell(summary, settings, folder)
        memory.release()
    if args.seeds > 1:
        tell_seeds(of_all_seeds(settings, args.workdir), settings, args.workdir)
    if diverged:
        raise Diverged(f'{len(diverged)} of {args.seeds} seeds diverged: {", ".join(map(str, diverged))}')
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Any field of the config can be set: --config.optim.learning_rate=0.05 '
        '--config.duration.epochs=3 (jaxcnn/config/schema.py lists them).')
    parser.add_argument('--config', required=True, help='configs/NAME.py')
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--seeds', type=int, default=1, metavar='N',
                        help='N runs, of config.seed and the seeds after it, in folders of the workdir; and the mean of all '
                        'that are there by this config')
    parser.add_argument('--extend', action='store_true',
                        help='go on with a run of a shorter config.duration, or of fewer stages in config.optim.switch, '
                        'where the result is that of a run that was started so')
    cli.add_distributed_flags(parser)
    cli.main(parser, run)
