"""Evaluates checkpoints of a run on a split of its data; with --watch, each new one while training goes on."""

import argparse
import json
import os
import time

from jaxcnn import cli


def run(args: argparse.Namespace) -> int:
    from jaxcnn.errors import UserError, counted
    from jaxcnn.run import load_run
    from jaxcnn.train import workdir
    if args.interval <= 0:
        raise UserError(f'--interval: expected seconds above 0, got {args.interval}')
    begun = os.path.join(args.workdir, 'data.json')
    if args.watch and not os.path.exists(begun):
        cli.log.info('waiting for a run to begin in %s', args.workdir)
        while not os.path.exists(begun):
            time.sleep(1)
    trained = load_run(args.workdir)
    try:
        evaluator = trained.evaluator(args.split, args.data_dir)
    except UserError as e:
        if e.field in ('config.data.name', 'config.data.dir'):
            if args.data_dir:
                e.field = '--data_dir'
            else:
                e.add_hint('evaluate.py --data_dir names another folder')
        raise

    def show(step: int) -> None:
        count, measured = evaluator(trained.load_weights(step))
        for ema, tta in sorted({(m.ema, m.tta) for m in measured}):
            values = {m.metric: value for m, value in measured.items() if (m.ema, m.tta) == (ema, tta)}
            if args.json:
                print(json.dumps({'step': step, 'split': args.split, 'ema': ema, 'tta': tta, 'count': count,
                                  **{metric.name: value for metric, value in values.items()}}), flush=True)
                continue
            loss, *others = [f'{metric.title} {metric.format(value)}' for metric, value in values.items()
                             if trained.experiment.informs(metric)]
            print(f'checkpoint {step}, {args.split}{", moving average" * ema}'
                  f'{f", {trained.config.eval.tta}" if tta else ""}: {"  ".join([*others, loss])}  '
                  f'({counted(count, "image")})', flush=True)

    if not args.watch:
        show(trained.find_step(args.checkpoint))
        return 0
    cli.log.info('looking for a newer checkpoint every %g s until the run is complete', args.interval)
    seen, summary = -1, os.path.join(args.workdir, 'summary.json')

    def complete() -> bool:
        return seen >= 0 and os.path.exists(summary) and workdir.read_json(summary)['steps'] == seen

    while not complete():
        ended = workdir.has_ended(args.workdir)  # before the look at its checkpoints, of which it may have written one more
        step = max(trained.steps(), default=-1)
        if step > seen:
            try:
                show(step)
            except UserError:  # the run may have removed or replaced it meanwhile
                if step == max(trained.steps(), default=-1):
                    raise
                continue
            seen = step
        elif ended and not complete():
            cli.log.warning('the run in %s has ended before it was complete, %s', args.workdir,
                            f'after checkpoint {seen}' if seen >= 0 else 'without a checkpoint')
            return 1
        else:
            time.sleep(args.interval)
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--split', default='test', help='train, val or test (default: test)')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    parser.add_argument('--watch', action='store_true', help='look for a newer checkpoint until the run is complete')
    parser.add_argument('--interval', type=float, default=10, help='seconds between two looks (default: 10)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training')
    parser.add_argument('--json', action='store_true', help='one JSON object a line')
    cli.main(parser, run)
