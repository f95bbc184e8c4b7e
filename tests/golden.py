"""Two short runs that cover the training core, and a command that compares what two commits make of them, bit by bit.

    python tests/golden.py OLD_COMMIT [NEW_COMMIT]

The command trains both runs by each commit (`NEW_COMMIT` defaults to the working tree) on this machine, and compares
parameters, optimizer state, BatchNorm statistics, averages and metrics. Stored results would not do, because bits differ
between processors.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

DEVICES = 4  # virtual devices of the second run
UNCOMPARED = ('images_per_second', 'train_seconds', 'wall_seconds', 'peak_host_bytes', 'peak_device_bytes', 'versions')


def digits_run(folder: str) -> dict[str, Any]:
    """Return a config with dropout, an average of parameters, a plateau and a growing batch."""
    return dict(
        duration=dict(steps=24), batch_size=32, batch_schedule=((dict(steps=12), 48),), seed=1,
        model=dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16, dropout=0.2),
        data=dict(name='digits', image_size=16, augment='pad_crop(2)|cutout(4)'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.05, ema_decay=0.9, l2=1e-4, clip_norm=1.0,
                   schedule=dict(name='plateau', factor=0.5, patience=1), warmup=dict(steps=4)),
        eval=dict(every=dict(steps=4), batch_size=128), log_every=dict(steps=4), parallel=dict(devices=1))


def small_set_run(folder: str) -> dict[str, Any]:
    """Return a config of 64 images under pmap with BatchNorm, mixup, groups, look-ahead and Muon; writes the images.

    Args:
      folder: where the images are written.
    """
    from jaxcnn import config
    # commits before tasks had the label smoothing among the fields of the optimisation
    is_earlier = not hasattr(config.Config(), 'loss')
    smoothed = {} if is_earlier else dict(loss=dict(name='cross_entropy', label_smoothing=0.1))
    earlier = dict(label_smoothing=0.1) if is_earlier else {}
    path = os.path.join(folder, 'images.npz')
    rng = np.random.default_rng(0)
    labels = {'train': np.arange(64) % 4, 'val': np.arange(16) % 4}
    arrays = {f'{split}_labels': y for split, y in labels.items()}
    for split, y in labels.items():
        noise = rng.integers(0, 160, (len(y), 16, 16, 3))
        arrays[f'{split}_images'] = (noise + 30 * y[:, None, None, None]).astype(np.uint8)
    np.savez(path, **arrays)
    return dict(
        duration=dict(epochs=6), batch_size=16, seed=2,
        model=dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16, dropout=0.0),
        data=dict(name='arrays', dir=path, augment='flip_lr|mixup(0.4)'),
        **smoothed,
        optim=dict(optimizer='muon', learning_rate=0.01, weight_decay=1e-3, **earlier,
                   groups=(dict(match='bias', rate=2.0), dict(match='Dense_0/kernel', until=dict(epochs=3))),
                   lookahead=dict(every=4)),
        eval=dict(every=dict(epochs=2), batch_size=16), log_every=dict(steps=4), checkpoint=dict(metric='val_loss'),
        parallel=dict(backend='pmap', devices=DEVICES, bn_sync=False, steps_per_dispatch=2))


RUNS = {'digits': digits_run, 'small_set': small_set_run}


def train_runs(folder: str, names: Iterable[str] = RUNS) -> dict[str, str]:
    """Train runs in `folder`, and return their workdirs by name."""
    try:
        from jaxcnn.training import train
    except ImportError:  # an earlier commit
        from jaxcnn.train import train_and_evaluate as train
    os.makedirs(folder, exist_ok=True)
    workdirs = {name: os.path.join(folder, name) for name in names}
    for name, workdir in workdirs.items():
        train(RUNS[name](folder), workdir)
    return workdirs


def read_state(workdir: str, step: int | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint, or of the last one, by name, without any code of the package."""
    import jax
    import orbax.checkpoint as ocp
    folder = os.path.join(workdir, 'checkpoints')
    step = max(int(name) for name in os.listdir(folder) if name.isdecimal()) if step is None else step
    with contextlib.closing(ocp.StandardCheckpointer()) as reader:
        state = reader.restore(os.path.abspath(os.path.join(folder, str(step), 'state')))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def read(workdir: str) -> dict[str, Any]:
    """Return the arrays of the last checkpoint and the metrics of a run by name."""
    values: dict[str, Any] = dict(read_state(workdir))
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as f:
        for number, line in enumerate(f):
            values |= {f'metrics[{number}].{name}': value for name, value in json.loads(line).items()}
    with open(os.path.join(workdir, 'summary.json'), encoding='utf-8') as f:
        values |= {f'summary.{name}': value for name, value in json.load(f).items()}
    return {name: value for name, value in values.items() if not name.endswith(UNCOMPARED)}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one line for each value of the old run that the new one does not have, or has with other bits."""
    lines = []
    for name in old:
        if name not in new:
            lines.append(f'{name}: missing')
        elif not np.array_equal(old[name], new[name]):
            lines.append(f'{name}: {old[name]!r:.80} -> {new[name]!r:.80}')
    return lines


@contextlib.contextmanager
def _tree(commit: str) -> Iterator[str]:
    """Yield a folder with the files of a commit; of an empty name, the working tree."""
    root = subprocess.check_output(['git', 'rev-parse', '--show-toplevel'], text=True).strip()
    if not commit:
        yield root
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(['git', '-C', root, 'archive', commit], check=True, capture_output=True)
        subprocess.run(['tar', '-x', '-C', folder], check=True, input=archive.stdout)
        yield folder


def main() -> int:
    """Compare two commits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('old')
    parser.add_argument('new', nargs='?', default='')
    parser.add_argument('--train', help=argparse.SUPPRESS)  # the child's flag: train here, by the package on the path
    args = parser.parse_args()
    if args.train:
        train_runs(args.train)
        return 0
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for label, commit in (('old', args.old), ('new', args.new)):
            with _tree(commit) as tree:
                flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={DEVICES}'
                environment = {**os.environ, 'PYTHONPATH': tree, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
                command = [sys.executable, os.path.abspath(__file__), label, '--train', os.path.join(folder, label)]
                subprocess.run(command, check=True, env=environment)
            results.append({name: read(os.path.join(folder, label, name)) for name in RUNS})
    old, new = results
    lines = [f'{name}: {line}' for name in old for line in differences(old[name], new[name])]
    print('\n'.join(lines) or f'equal: {sum(map(len, new.values()))} values of {len(new)} runs')
    return int(bool(lines))


if __name__ == '__main__':
    sys.exit(main())
