"""The check of an export: its program runs in an empty process, which cannot import jaxcnn, on images of the run's data."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from jaxcnn.data import Dataset
from jaxcnn.errors import UserError
from jaxcnn.export.program import Program

NUM_IMAGES = 32
TOLERANCE = 1e-4  # of probabilities
_ABSENT = {'onnx': ('jaxcnn', 'jax', 'jaxlib', 'flax', 'onnx'), 'stablehlo': ('jaxcnn', 'flax', 'optax', 'orbax'),
           'tensorflow': ('jaxcnn', 'jax', 'jaxlib', 'flax')}
_PROCESS = '''
import json, sys
absent, folder, work = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.modules.update(dict.fromkeys(absent))  # an import of one of them raises an ImportError
sys.path.insert(0, folder)
import numpy as np
import predict
images = np.load(f'{work}/images.npy')
np.savez(f'{work}/results.npz', batch=predict.predict(images), single=predict.predict(images[:1]),
         picture=predict.load(f'{work}/picture.png'), pictured=predict.predict(predict.load(f'{work}/picture.png')[None]))
assert not any(sys.modules.get(name) for name in absent)
'''


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
      count: number of images.
      split: the split that they are from.
      difference: the largest difference to the probabilities that JAX computes in this process.
      run_difference: the largest difference to those of `Run.predict`, which computes as the run was trained.
      agreement: number of images for which `Run.predict` predicts the same class.
    """

    count: int
    split: str
    difference: float
    run_difference: float
    agreement: int

    def describe(self) -> str:
        """Return one line."""
        return (f'{self.count} images of the {self.split} split in an empty process: equal to {self.difference:.1e} to JAX, '
                f'to {self.run_difference:.1e} to the run, with the same class for {self.agreement} of {self.count}')


def real_images(dataset: Dataset) -> tuple[str, np.ndarray]:
    """Return images of the test split, or, without one, of another, and the name of the split."""
    split = next(name for name in ('test', 'val', *dataset.splits) if name in dataset.splits)
    examples = dataset.splits[split]
    positions = np.linspace(0, len(examples) - 1, min(NUM_IMAGES, len(examples))).astype(int)
    return split, np.asarray(examples.take(positions))


def check(program: Program, folder: str, runtime: str, dataset: Dataset) -> CheckResult:
    """Run the program in a folder in an empty process, and compare what it returns.

    Single images and a batch are compared, and a picture of another size, which the script reads and resizes.

    Args:
      program: what was exported.
      folder: the exported files, with the script.
      runtime: the format, whose runtime the process imports.
      dataset: the data of the run.

    Raises:
      UserError: The process fails, or its results differ.
    """
    from PIL import Image
    split, images = real_images(dataset)
    with tempfile.TemporaryDirectory() as work:
        np.save(os.path.join(work, 'images.npy'), images)
        height, width = images.shape[1:3]
        squeezed = np.ascontiguousarray(images[0, ..., 0] if images.shape[-1] == 1 else images[0])
        picture = os.path.join(work, 'picture.png')
        Image.fromarray(squeezed).resize((2 * width + 3, 2 * height - 1)).save(picture)
        process = subprocess.run([sys.executable, '-c', _PROCESS, json.dumps(_ABSENT[runtime]), folder, work],
                                 capture_output=True, text=True, errors='replace')
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or [f'exit code {process.returncode}'])[-1]
            raise UserError(f'the exported program fails in an empty process: {reason}', field='--format')
        with np.load(os.path.join(work, 'results.npz')) as results:
            batch, single, read, pictured = (results[name] for name in ('batch', 'single', 'picture', 'pictured'))
        expected_picture = program.run.load_picture(picture)[0]
    if not np.array_equal(read, expected_picture):
        raise UserError('predict.py of the export reads a picture differently from the run', field='--format')
    expected = program.predict(np.concatenate([images, expected_picture[None]]))
    difference = max(float(np.abs(a - b).max()) for a, b in (
        (batch, expected[:-1]), (single, expected[:1]), (pictured, expected[-1:])))
    if not difference <= TOLERANCE:
        raise UserError(f'the exported program gives other probabilities: they differ by {difference:.1e}, more than '
                        f'{TOLERANCE:.0e}', field='--format')
    of_run = program.run.predict(images)
    return CheckResult(len(images), split, difference, float(np.abs(batch - of_run).max()),
                       int((batch.argmax(-1) == of_run.argmax(-1)).sum()))
