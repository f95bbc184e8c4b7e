"""Train the network of a config, or resume the run in the workdir."""

import argparse
import dataclasses
import glob
import os
import statistics

from jaxcnn import cli, config, memory, metrics
from jaxcnn.errors import Diverged, UserError
from jaxcnn.metrics import Measurement, Metric


def metrics_of(settings: config.Config) -> dict[str, Metric]:
    """Return the metrics of the config's task by name."""
    from jaxcnn import tasks
    return tasks.find(settings.task).known_metrics()


def log_summary(summary: dict, settings: config.Config, workdir: str) -> None:
    """Log the final metrics of a run, and the paths of its report and figures."""
    main_metric, *other_metrics = metrics.displayed(metrics_of(settings).values(), summary['num_classes'])
    split, split_name = 'test', 'test'
    if summary[Measurement('test', main_metric).name] is None:
        split, split_name = 'val', 'validation'

    def text(metric: Metric, tta: bool = False) -> str:
        return f'{metric.title} {metric.format(summary[Measurement(split, metric, tta=tta).name])}'
    cli.log.info('%s %s  (%s; checkpoint %d)%s', split_name, text(main_metric), ', '.join(map(text, other_metrics)),
                 summary['best_step'], '' if split == 'test' else '; there is no labelled test split')
    if Measurement(split, main_metric, tta=True).name in summary:
        cli.log.info('%s %s with test-time augmentation', split_name, text(main_metric, tta=True))
    cli.log.info('report: %s\nfigures: %s', os.path.join(workdir, 'report.md'), os.path.join(workdir, 'figures'))


def read_summaries(settings: config.Config, workdir: str) -> dict[int, dict]:
    """Return the summaries of all complete runs with this config by seed, including those of earlier commands.

    Runs whose plugins or initial weights differ from those of the first seed of this command are skipped.
    """
    from jaxcnn.training.workdir import read_config, read_json

    def checksums(run_config: config.Config) -> tuple[list[str], str]:
        return [plugin.sha256 for plugin in run_config.plugins], run_config.init.checksum if run_config.init else ''
    first_folder = os.path.join(workdir, f'seed{settings.seed}')
    first = read_config(first_folder) if os.path.exists(os.path.join(first_folder, 'config.json')) else settings
    summaries = {}
    for path in glob.glob(os.path.join(glob.escape(workdir), 'seed*', 'summary.json')):
        folder = os.path.dirname(path)
        seed = os.path.basename(folder).removeprefix('seed')
        if not seed.isdecimal():
            continue
        try:
            recorded = read_config(folder)
            is_equal = not config.differences(dataclasses.replace(settings, seed=int(seed)), recorded)
            if is_equal and checksums(recorded) == checksums(first):
                summaries[int(seed)] = read_json(path)
        except UserError as e:
            cli.log.warning('skipped: %s', e)
    return dict(sorted(summaries.items()))


def report_seeds(summaries: dict[int, dict], settings: config.Config, workdir: str) -> None:
    """Log the mean, standard deviation, minimum and maximum of each metric over seeds, and write them to `seeds.json`."""
    import jax

    from jaxcnn.training.workdir import write_json
    statistics_by_name = {}
    for name in metrics.measurements(metrics_of(settings).values(), ('test', 'val'), ema=True, tta=True):
        values = [summary[name] for summary in summaries.values() if summary.get(name) is not None]
        if len(values) > 1:
            statistics_by_name[name] = {'mean': statistics.mean(values), 'std': statistics.stdev(values),
                                        'min': min(values), 'max': max(values), 'values': values}
    if jax.process_index() == 0:
        path = os.path.join(workdir, 'seeds.json')
        try:
            write_json(path, {'seeds': list(summaries), **statistics_by_name})
        except OSError as e:
            raise UserError(f'{path}: cannot be written: {e.strerror}') from e
    for name, row in statistics_by_name.items():
        cli.log.info('%s of %d seeds: mean %.4f, standard deviation %.4f, minimum %.4f, maximum %.4f', name, len(summaries),
                     row['mean'], row['std'], row['min'], row['max'])


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    settings = config.load(args.config, args.overrides)
    if args.seeds < 1:
        raise UserError(f'--seeds: expected at least 1, got {args.seeds}')
    config.load(args.config, [*args.overrides, f'seed={settings.seed + args.seeds - 1}'])  # checks the last seed
    from jaxcnn.training import train
    from jaxcnn.training.signals import Interrupted
    diverged = []
    for seed in range(settings.seed, settings.seed + args.seeds):
        workdir = os.path.join(args.workdir, f'seed{seed}') if args.seeds > 1 else args.workdir
        try:
            summary = train(dataclasses.replace(settings, seed=seed), workdir, extend=args.extend, end_process=True)
        except Interrupted as e:
            cli.log.warning('%s', e)
            return 128 + e.signum
        except Diverged as e:
            if args.seeds == 1:
                raise
            cli.log.error('seed %d: %s', seed, e)
            diverged.append(seed)
        else:
            log_summary(summary, settings, workdir)
        memory.release()
    if args.seeds > 1:
        report_seeds(read_summaries(settings, args.workdir), settings, args.workdir)
    if diverged:
        raise Diverged(f'{len(diverged)} of {args.seeds} seeds diverged: {", ".join(map(str, diverged))}')
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Any field of the config can be set: --config.optim.learning_rate=0.05 '
        '--config.duration.epochs=3 (jaxcnn/config/schema.py lists all fields).')
    parser.add_argument('--config', required=True, help='a config file, or the name of a config that comes with jaxcnn '
                        '(jaxcnn configs lists them)')
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--seeds', type=int, default=1, metavar='N',
                        help='train N runs, with config.seed and the seeds after it, in folders seed0, seed1, ... of the '
                        'workdir, and show the statistics of all runs there with this config')
    parser.add_argument('--extend', action='store_true',
                        help='continue a finished run with a longer config.duration or more stages in config.optim.switch, '
                        'if the result equals that of a run with this config from the start')
    cli.add_distributed_flags(parser)
    cli.main(parser, run)
