"""Evaluate a checkpoint of a run on a split of its data, or, with --watch, each new checkpoint during training. Ensembles,
calibration, reports and comparisons of runs are for classification runs."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxcnn import cli
from jaxcnn.errors import UserError, counted, name_field

if TYPE_CHECKING:
    from jaxcnn.data import Dataset
    from jaxcnn.evaluation.predictions import Predictions
    from jaxcnn.evaluation.protocols import Protocol
    from jaxcnn.metrics import Measurement
    from jaxcnn.run import Evaluate, Run

DETAIL_FLAGS = 'ensemble', 'calibration', 'report', 'compare'  # each asks for the predictions for all images


def run(args: argparse.Namespace) -> int:
    """Run the command with its parsed arguments, and return its exit code."""
    check_flags(args)
    if any(getattr(args, name) for name in DETAIL_FLAGS):
        return evaluate_in_detail(args)
    if args.watch:
        wait_for_run(args.workdir)
    loaded_run = cli.load_run(args.workdir, 'best' if args.watch else args.checkpoint, quantized=True)
    if args.svms:
        from jaxcnn.region_svms.detector import with_svms
        with name_field('--svms'):
            loaded_run = with_svms(loaded_run, args.svms)
    protocols = parse_protocols(args)
    known: dict | None = None if args.watch else {}  # protocols share what they have in common
    evaluators = [make_evaluator(loaded_run, args, protocol, known) for protocol in protocols]
    if args.watch:
        return watch(loaded_run, evaluators[0], args, protocols[0])
    step = loaded_run.find_step(args.checkpoint)
    for i, (evaluator, protocol) in enumerate(zip(evaluators, protocols, strict=True)):
        values = evaluate(loaded_run, evaluator, step, args, protocol)
        if args.save and protocol:
            save(args, step, args.protocol[i], protocol.describe(loaded_run.experiment), values)
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Raise a UserError if flags are wrong, or do not fit each other."""
    if args.interval <= 0:
        raise UserError(f'--interval: expected seconds above 0, got {args.interval}')
    details = [f'--{name}' for name in DETAIL_FLAGS if getattr(args, name)]
    if args.weights and not args.ensemble:
        raise UserError('--weights: needs --ensemble')
    if not (args.workdir or args.ensemble):
        raise UserError('the following arguments are required: --workdir')
    if args.watch and details:
        raise UserError(f'--watch cannot be combined with {details[0]}')
    others = [*details, *(f'--{name}' for name in ('watch', 'data_name', 'protocol', 'tta') if getattr(args, name))]
    if args.svms and others:
        raise UserError(f'--svms cannot be combined with {others[0]}')
    if len(args.protocol) > 1 and (details or args.watch):
        raise UserError(f'{[*details, "--watch"][0]} takes a single --protocol')
    if args.save:
        if not args.protocol:
            raise UserError('--save: needs --protocol')
        for name in ('data_dir', 'watch', *DETAIL_FLAGS):
            if getattr(args, name):
                raise UserError(f'--save cannot be combined with --{name}')


def wait_for_run(workdir: str) -> None:
    """Return when a run has begun in the workdir."""
    path = os.path.join(workdir, 'data.json')
    if not os.path.exists(path):
        cli.log.info('waiting for a run to begin in %s', workdir)
        while not os.path.exists(path):
            time.sleep(1)


def make_evaluator(run: 'Run', args: argparse.Namespace, protocol: 'Protocol | None',
                   known: dict | None) -> 'Evaluate':
    """Return the evaluator of the split by a protocol, if one is asked for. The name of the split is stored in the
    arguments."""
    from jaxcnn.evaluation.predictions import check_is_classifier
    from jaxcnn.evaluation.protocols import ProtocolEvaluator
    from jaxcnn.run import SplitEvaluator
    if protocol:
        with name_field('--protocol' if args.protocol else '--tta'):
            check_is_classifier(run)
    if args.svms:
        args.split = args.split or 'test'
        with name_data_flag(args.data_dir):
            return run.evaluator(args.split, args.data_dir)
    dataset = load_data(run, args.data_dir, args.data_name)
    args.split = choose_split(args.split, dataset)
    if protocol:
        return ProtocolEvaluator(run.experiment, dataset, args.split, protocol, known)
    return SplitEvaluator(run.experiment, dataset, args.split)


def parse_protocols(args: argparse.Namespace) -> 'Sequence[Protocol | None]':
    """Return the protocols that `--protocol` or `--tta` describe, or None for the evaluation without one."""
    from jaxcnn.evaluation import sampling
    from jaxcnn.robustness import protocols
    if args.samples is not None and not args.tta:
        raise UserError('--samples: needs --tta')
    if args.protocol and args.tta:
        raise UserError('--protocol cannot be combined with --tta')
    if args.tta:
        return [sampling.parse(args.tta, 10 if args.samples is None else args.samples)]
    return [protocols.parse(text) for text in args.protocol] if args.protocol else [None]


@functools.cache
def load_data(run: 'Run', data_dir: str, data_name: str) -> 'Dataset':
    """Return the data that a run is evaluated on, as `evaluation.data.load_data` does."""
    from jaxcnn.evaluation import data
    with name_data_flag(data_dir, data_name):
        return data.load_data(run, data_dir, data_name)


@contextlib.contextmanager
def name_data_flag(data_dir: str, data_name: str = '') -> Iterator[None]:
    """Name the flag of the folder or the layout of the data in errors about them that are raised in the block."""
    try:
        yield
    except UserError as e:
        if e.field in ('config.data.name', 'config.data.dir'):
            if data_name and e.field == 'config.data.name':
                e.field = '--data_name'
            elif data_dir:
                e.field = '--data_dir'
            else:
                e.add_hint('--data_dir names another folder')
        raise


def choose_split(name: str, dataset: 'Dataset') -> str:
    """Return the split called `name`, or, without a name, `test` or the only split of a folder without splits.

    Raises:
      UserError: There is no such split.
    """
    name = name or ('test' if len(dataset.splits) > 1 else next(iter(dataset.splits)))
    if name not in dataset.splits:
        raise UserError(f'no split {name!r}; there are: {", ".join(dataset.splits)}')
    return name


def evaluate(run: 'Run', evaluator: 'Evaluate', step: int, args: argparse.Namespace,
             protocol: 'Protocol | None') -> 'dict[Measurement, float]':
    """Print a line with the metrics of a checkpoint, and one for each of moving average and test-time augmentation; return
    the metrics."""
    num_images, values = evaluator(run.load_weights(step))
    protocol_text = protocol.describe(run.experiment) if protocol else ''
    for ema, tta in sorted({(m.ema, m.tta) for m in values}):
        by_metric = {m.metric: value for m, value in values.items() if (m.ema, m.tta) == (ema, tta)}
        if args.json:
            print(json.dumps({'step': step, 'split': args.split, 'ema': ema, 'tta': tta, 'count': num_images,
                              **({'svms': args.svms} if args.svms else {}),
                              **({'protocol': protocol_text} if protocol else {}),
                              **{metric.name: value for metric, value in by_metric.items()}}), flush=True)
            continue
        subject = ', '.join([f'checkpoint {step}', args.split, *([f'SVMs on {args.svms}'] if args.svms else []),
                             *['moving average'] * ema, *[protocol_text] * bool(protocol), *[run.config.eval.tta] * tta])
        text = '  '.join(f'{m.title} {m.format(by_metric[m])}' for m in run.experiment.displayed_metrics())
        print(f'{subject}: {text}  ({counted(num_images, "image")})', flush=True)
    return values


def save(args: argparse.Namespace, step: int, protocol: str, views: str, values: 'dict[Measurement, float]') -> None:
    """Record the metrics by a protocol. They are those of the weights by which the best checkpoint is selected, so their
    names have no `ema`, as in `summary.json`."""
    from jaxcnn.training import protocol_results
    by_name = {f'{args.split}_{m.metric.name}': value for m, value in values.items()}
    protocol_results.save(args.workdir, protocol.strip(), step, views, by_name)


def evaluate_in_detail(args: argparse.Namespace) -> int:
    """Evaluate a run or an ensemble by its predictions for all images, and return the exit code."""
    from jaxcnn.evaluation import report, result
    from jaxcnn.evaluation.ensemble import Ensemble
    from jaxcnn.robustness.protocols import ChangedImages
    protocol = parse_protocols(args)[0]
    if args.ensemble and isinstance(protocol, ChangedImages):
        raise UserError('attacks and corruptions are of single runs', field='--protocol', hint='leave --ensemble out')
    ensemble = Ensemble(cli.load_ensemble(args), args.weights, args.ensemble_mean)
    other = cli.load_run(args.compare, flag='--compare') if args.compare else None
    if args.report:
        report.make_folder(args.report)
    first = ensemble.runs[0]
    split = choose_split(args.split, load_data(first, args.data_dir, args.data_name))
    if split == 'val' and not args.data_dir and (args.calibration or args.report):
        cli.log.info('the temperature is fitted to the images on which it is evaluated; --split=test evaluates it on others')
    evaluated = result.evaluate(
        ensemble, split, functools.partial(predict, args, args.data_dir), other=other,
        predict_validation=functools.partial(predict, args, '') if args.calibration or args.report else None)
    if protocol:
        evaluated = dataclasses.replace(evaluated, title=f'{evaluated.title}, {protocol.describe(first.experiment)}')
    if args.json:
        print(json.dumps(evaluated.values()), flush=True)
    else:
        print('\n'.join(evaluated.lines()), flush=True)
    if args.report:
        page = report.write_report(evaluated, args.report, first.experiment.task, first.info['class_counts'])
        cli.log.info('report: %s\npredictions: %s', page, os.path.join(args.report, 'predictions.csv'))
    return 0


def predict(args: argparse.Namespace, data_dir: str, run: 'Run', split: str) -> 'Predictions':
    """Return a run's predictions for a split of the data in `data_dir`, or of its own data if that is empty."""
    from jaxcnn.evaluation.predictions import predict_dataset
    dataset = load_data(run, data_dir, args.data_name if data_dir else '')
    if protocol := parse_protocols(args)[0]:
        return protocol.predict(run.experiment, run.variables, dataset, split)
    return predict_dataset(run, dataset, split)


def watch(run: 'Run', evaluator: 'Evaluate', args: argparse.Namespace, protocol: 'Protocol | None') -> int:
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
                evaluate(run, evaluator, step, args, protocol)
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


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--workdir', default='', help='folder of the run')
    parser.add_argument('--split', default='', help='train, val or test (default: test)')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step (default: best)')
    cli.add_svms_flag(parser)
    parser.add_argument('--watch', action='store_true', help='evaluate each new checkpoint until the run is complete')
    parser.add_argument('--interval', type=float, default=10,
                        help='seconds between two searches for new checkpoints (default: 10)')
    parser.add_argument('--data_dir', default='', help='another config.data.dir than in training: the same data, or other '
                        'labelled data, whose classes are matched with those of the run by their names')
    parser.add_argument('--data_name', default='', metavar='NAME',
                        help='the data set or layout in --data_dir, such as folder (default: that of the run)')
    parser.add_argument('--protocol', action='append', default=[], metavar='VIEWS',
                        help='average over views of the original images: center, ten_crop, multi_crop, dense, multi_scale, '
                        "with arguments as in 'multi_crop(scales=(256, 384), grid=3) + dense'; or change the images, as in "
                        "attacked('pgd', '8/255') or corrupted('noise', severities=3); may be repeated")
    parser.add_argument('--save', action='store_true', help='record the metrics by each --protocol in protocols.json in '
                        'the workdir, from which jaxcnn compare and studies read them')
    parser.add_argument('--tta', default='', metavar='PIPELINE',
                        help="average over random augmentations, such as 'random_resized_crop(64)|flip_lr'")
    parser.add_argument('--samples', type=int, help='number of samples of --tta for each image (default: 10)')
    parser.add_argument('--json', action='store_true', help='print one JSON object a line')
    group = parser.add_argument_group('classification runs')
    group.add_argument('--ensemble', nargs='+', default=[], metavar='DIR',
                       help='folders of runs whose predictions are averaged, with those of --workdir if it is set')
    group.add_argument('--ensemble_mean', default='probabilities', choices=('probabilities', 'logits'),
                       help='what is averaged (default: probabilities)')
    group.add_argument('--weights', nargs='+', type=float, metavar='WEIGHT',
                       help='a weight for each run, that of --workdir first (default: equal weights)')
    group.add_argument('--calibration', action='store_true', help='fit a temperature to the validation split, and print the '
                       'calibration without and with it')
    group.add_argument('--compare', default='', metavar='DIR',
                       help="another run on the same images, whose best checkpoint is compared by McNemar's test")
    group.add_argument('--report', default='', metavar='FOLDER', help='write a page with results by class, confusion and '
                       'calibration, and a table with the prediction for each image, into this folder')
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with its arguments, by default those of the process."""
    cli.main(make_parser(), run, arguments)
