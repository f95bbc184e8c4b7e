"""A comparison of object proposals: methods of `config.data.proposals`, and proposals that are handed in as arrays.

It measures the recall of each method on images of a data set, and writes a table, curves, and a sheet of images.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxcnn import data
from jaxcnn.analysis import figures
from jaxcnn.analysis.markdown import escape
from jaxcnn.analysis.proposal_recall import ProposalRecall, draw_best_proposals, draw_recall, proposal_recall
from jaxcnn.config import DataConfig
from jaxcnn.data import proposals
from jaxcnn.data.targets import BOXES
from jaxcnn.errors import UserError, counted, name_file, unknown
from jaxcnn.run import Run

METHODS = ('selective_search(mode="fast")', 'selective_search(mode="quality")', 'selective_search(mode="single")',
           *(f'selective_search(mode="single", strategy="{strategy}")' for strategy in proposals.STRATEGIES),
           'sliding_windows')
SHEET_IMAGES, SHEET_METHODS = 3, 4
_SAVED_BATCH = 256  # images in memory at a time
_PROGRESS_INTERVAL = 10  # seconds between lines of progress
log = logging.getLogger('jaxcnn')


class ProposalSet(NamedTuple):
    """The proposals of a method for N images.

    Attributes:
      name: the method in the table and the figures.
      proposals: (N, P, 4) in pixels of the images, best first if they are ranked.
      proposal_valid: (N, P), false for padding.
      seconds: mean time of an image in seconds of one CPU core; NaN if it was not measured.
    """

    name: str
    proposals: np.ndarray
    proposal_valid: np.ndarray
    seconds: float = float('nan')


class Images(NamedTuple):
    """Images with the boxes of their objects.

    Attributes:
      pixels: uint8 (N, H, W, C).
      targets: as in `data.targets.ObjectBoxes`.
      titles: the name of each image.
      description: the data set and the split, for the report.
    """

    pixels: np.ndarray
    targets: dict[str, np.ndarray]
    titles: Sequence[str]
    description: str


def load_images(config: DataConfig, split: str, count: int = 0) -> Images:
    """Return images of a split, evenly spaced over it.

    Args:
      config: names the data set; its field `proposals` has no effect.
      split: `train`, `val` or `test`.
      count: the number of images; 0: all.

    Raises:
      UserError: there is no such split, or there is no object in the images.
    """
    dataset = data.load(dataclasses.replace(config, proposals=''), BOXES)
    if split not in dataset.splits:
        raise unknown('split', split, dataset.splits, '--split')
    source = dataset.splits[split]
    positions = np.arange(len(source))
    if 0 < count < len(source):
        positions = np.linspace(0, len(source) - 1, count).round().astype(int)
    targets = source.take_targets(positions)
    if not (targets['valid'] & ~targets['difficult']).any():
        raise UserError(f'no object in {counted(len(positions), "image")} of the {split} split counts', field='--split')
    titles = [os.path.basename(dataset.image_name(split, int(position))) for position in positions]
    return Images(source.take(positions), targets, titles, f'{dataset.name}, {split} split')


def compute(text: str, images: np.ndarray) -> ProposalSet:
    """Return the proposals of a method for images, and log the progress.

    Args:
      text: a call as in `config.data.proposals`.
      images: uint8 (N, H, W, C).
    """
    import joblib
    method = proposals.find(text)

    def encode(image: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        start = time.thread_time()
        arrays = method.encode(image)
        return arrays, time.thread_time() - start
    results: list[tuple[dict[str, np.ndarray], float]] = []
    next_progress = time.monotonic() + _PROGRESS_INTERVAL
    cores = len(os.sched_getaffinity(0))
    for result in joblib.Parallel(cores, backend='threading', return_as='generator')(
            joblib.delayed(encode)(image) for image in images):
        results.append(result)
        if time.monotonic() >= next_progress:
            log.info('%s: %d of %d images', text, len(results), len(images))
            next_progress = time.monotonic() + _PROGRESS_INTERVAL
    return ProposalSet(text, np.stack([arrays['proposals'] for arrays, _ in results]),
                       np.stack([arrays['proposal_valid'] for arrays, _ in results]),
                       float(np.mean([seconds for _, seconds in results])))


def of_run(run: Run, images: np.ndarray, batch_size: int = 4) -> ProposalSet:
    """Return the proposals of a run's detector for images, uint8 (N, H, W, C); see `Run.proposals`."""
    batches = []
    run.proposals(images[np.arange(batch_size) % len(images)])  # so that compilation is not measured
    start = time.monotonic()
    next_progress = start + _PROGRESS_INTERVAL
    for i in range(0, len(images), batch_size):
        rows = np.arange(i, i + batch_size) % len(images)  # batches of one size, so that the network is compiled once
        batches.append(run.proposals(images[rows]))
        if time.monotonic() >= next_progress:
            log.info('%s: %d of %d images', run.workdir, min(i + batch_size, len(images)), len(images))
            next_progress = time.monotonic() + _PROGRESS_INTERVAL
    seconds = (time.monotonic() - start) / len(images) * len(os.sched_getaffinity(0))
    proposals, valid = (np.concatenate([batch[name] for batch in batches])[:len(images)]
                        for name in ('proposals', 'proposal_valid'))
    return ProposalSet(f'{run.config.model.name} in {run.workdir}', proposals, valid, seconds)


def save_proposals(run: Run, path: str) -> int:
    """Write the proposals of a run's detector for all images of its data set, and return the number of images.

    Args:
      run: the run.
      path: the file, for the method `saved`.
    """
    keys: list[str] = []
    boxes, valid = [], []
    for split in run.load_dataset().splits.values():
        for start in range(0, len(split), _SAVED_BATCH):
            images = split.take(np.arange(start, min(start + _SAVED_BATCH, len(split))))
            proposal_set = of_run(run, images)
            keys += map(proposals.image_key, images)
            boxes.append(proposal_set.proposals)
            valid.append(proposal_set.proposal_valid)
    proposals.save(path, keys, np.concatenate(boxes), np.concatenate(valid))
    return len(keys)


def table_rows(sets: Sequence[ProposalSet], recalls: Sequence[ProposalRecall]) -> list[list[str]]:
    """Return the cells of the table as text: the headings, and then a row for each method."""
    rows = [['method', 'proposals an image', 'CPU seconds an image', 'recall at 0.5', 'recall at 0.7', 'average recall']]
    for proposal_set, result in zip(sets, recalls, strict=True):
        seconds = '' if np.isnan(proposal_set.seconds) else f'{proposal_set.seconds:.3f}'
        rows.append([proposal_set.name, f'{result.mean_counts[-1]:.0f}', seconds,
                     *(f'{value[-1]:.3f}' for value in (result.recall(0.5), result.recall(0.7), result.average_recall()))])
    return rows


def write_report(images: Images, sets: Sequence[ProposalSet], folder: str) -> list[list[str]]:
    """Write `proposals.md`, `proposals.png` and `best_proposals.png` into a folder, and return the cells of the table.

    Args:
      images: the images.
      sets: the proposals of each method for these images; their names differ.
      folder: the folder, which is created if it is missing.
    """
    recalls = [proposal_recall(s.proposals, s.proposal_valid, images.targets) for s in sets]
    rows = table_rows(sets, recalls)
    os.makedirs(folder, exist_ok=True)
    with figures.warn_on_error(path := os.path.join(folder, 'proposals.png')):
        draw_recall(path, {s.name: result for s, result in zip(sets, recalls, strict=True)})
    order = sorted(range(len(sets)), key=lambda i: -recalls[i].average_recall()[-1])
    drawn = [sets[i] for i in sorted(order[:SHEET_METHODS])]
    positions = np.flatnonzero(images.targets['valid'].any(1))[:SHEET_IMAGES]
    with figures.warn_on_error(path := os.path.join(folder, 'best_proposals.png')):
        draw_best_proposals(path, images.pixels[positions], {name: v[positions] for name, v in images.targets.items()},
                            {s.name: (s.proposals[positions], s.proposal_valid[positions]) for s in drawn},
                            [images.titles[i] for i in positions])
    objects = counted(len(recalls[0].best_ious), 'object')
    height, width = images.pixels.shape[1:3]
    lines = [f'# Object proposals: {escape(images.description)}', '',
             f'{counted(len(images.pixels), "image")} of {width} x {height} pixels with {objects}, without difficult ones. '
             'The recall at an IoU is the fraction of objects that have a proposal with this IoU or more. The average '
             'recall is its mean over IoUs from 0.5 to 1.', '', *_markdown_table(rows), '',
             '![recall of object proposals](proposals.png)', '', 'The best proposal of each object'
             + (f', for the {len(drawn)} methods with the highest average recall:' if len(drawn) < len(sets) else ':'), '',
             '![the best proposal of each object](best_proposals.png)', '']
    path = os.path.join(folder, 'proposals.md')
    with name_file(path), open(path, 'w', encoding='utf-8') as file:
        file.write('\n'.join(lines))
    return rows


def _markdown_table(rows: Iterable[Sequence[str]]) -> list[str]:
    head, *body = ([escape(cell) for cell in row] for row in rows)
    return [f'| {" | ".join(row)} |' for row in (head, ['---', *['---:'] * (len(head) - 1)], *body)]


def compare_methods(config: DataConfig, methods: Sequence[str], split: str, count: int, folder: str,
                    runs: Sequence[Run] = ()) -> list[list[str]]:
    """Compute the proposals of several methods for images of a data set, and write the report.

    Args:
      config: names the data set.
      methods: calls as in `config.data.proposals`.
      split: `train`, `val` or `test`.
      count: the number of images, evenly spaced over the split; 0: all.
      folder: the folder of the report.
      runs: runs of detectors that make proposals themselves.

    Returns:
      The cells of the table.

    Raises:
      UserError: a method is unknown, or see `load_images`.
    """
    for text in methods:
        proposals.find(text).versions()
    images = load_images(config, split, count)
    sets = [compute(text, images.pixels) for text in dict.fromkeys(methods)]
    return write_report(images, [*sets, *(of_run(run, images.pixels) for run in runs)], folder)
