"""Evaluate a checkpoint of a run on a split of its data, or, with --watch, each new checkpoint during training."""

import argparse
import json
import os
import time
from typing import TYPE_CHECKING

from jaxcnn import cli
from jaxcnn.errors import UserError, counted

if TYPE_CHECKING:
    from jaxcnn.run import Run, SplitEvaluator


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    from jaxcnn.run import load_run
    if args.interval <= 0:
        raise UserError(f'--interval: expected seconds above 0, got {args.interval}')
    if args.watch:
        wait_for_run(args.workdir)
    loaded_run = load_run(args.workdir)
    evaluator = make_evaluator(loaded_run, args)
    if args.watch:
        return watch(loaded_run, evaluator, args)
    evaluate(loaded_run, evaluator, loaded_run.find_step(args.checkpoint), args)
    return 0


def wait_for_run(workdir: str) -> None:
    """Return when a run has begun in the workdir."""
    path = os.path.join(workdir, 'data.json')
    if not os.path.exists(path):
        cli.log.info('waiting for a run to begin in %s', workdir)
        while not os.path.exists(path):
            time.sleep(1)


def make_evaluator(run: 'Run', args: argparse.Namespace) -> 'SplitEvaluator':
    """Return the evaluator of the split. Errors in the folder of the data name the flag `--data_dir`."""
    try:
        return run.evaluator(args.split, args.data_dir)
    except UserError as e:
        if e.field in ('config.data.name', 'config.data.dir'):
            if args.data_dir:
                e.field = '--data_dir'
            else:
                e.add_hint('--data_dir names another folder')
        raise


def evaluate(run: 'Run', evaluator: 'SplitEvaluator', step: int, args: argparse.Namespace) -> None:
    """Print a line with the metrics of a checkpoint, and one for each of moving average and test-time augmentation."""
    num_images, values = evaluator(run.load_weights(step))
    for ema, tta in sorted({(m.ema, m.tta) for m in values}):
        by_metric = {m.metric: value for m, value in values.items() if (m.ema, m.tta) == (ema, tta)}
        if args.json:
            print(json.dumps({'step': step, 'split': args.split, 'ema': ema, 'tta': tta, 'count': num_images,
                              **{metric.name: value for metric, value in by_metric.items()}}), flush=True)
            continue
        subject = f'checkpoint {step}, {args.split}{", moving average" * ema}{f", {run.config.eval.tta}" if tta else ""}'
        text = '  '.join(f'{m.title} {m.format(by_metric[m])}' for m in run.experiment.displayed_metrics())
        print(f'{subject}: {text}  ({counted(num_images, "image")})', flush=True)


def watch(run: 'Run', evaluator: 'SplitEvaluator', args: argparse.Namespace) -> int:
    """Evaluate each new checkpoint until the run is complete; return the exit code."""
    from jaxcnn.training.workdir import has_ended, read_json
    cli.log.info('evaluating new checkpoints every %g s until the run is complete', args.interval)
    evaluated_step, summary_path = -1, os.path.join(args.workdir, 'summary.json')

    def is_complete() -> bool:
        return evaluated_step >= 0 and os.path.exists(summary_path) and read_json(summary_path)['steps'] == evaluated_step

    while not is_complete():
        ended = has_ended(args.workdir)  # asked before the checkpoints are listed, as the run may write one before it ends
        step = max(run.steps(), default=-1)
        if step > evaluated_step:
            try:
                evaluate(run, evaluator, step, args)
            except UserError:
                if step == max(run.steps(), default=-1):
                    raise
                continue  # the run has removed or replaced the checkpoint meanwhile
            evaluated_step = step
        elif ended and not is_complete():
            cli.log.warning('the run in %s has ended before it was complete, %s', args.workdir,
                            f'after checkpoint {evaluated_step}' if evaluated_step >= 0 else 'without a checkpoint')
            return 1
        else:
            time.sleep(args.interval)
    return 0


def main() -> None:
    """Run the command with the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--split', default='test', help='train, val or test (default: test)')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--watch', action='store_true', help='evaluate each new checkpoint until the run is complete')
    parser.add_argument('--interval', type=float, default=10,
                        help='seconds between two searches for new checkpoints (default: 10)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    parser.add_argument('--json', action='store_true', help='print one JSON object a line')
    cli.main(parser, run)
