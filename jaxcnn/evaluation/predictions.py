"""Predictions of a classifier for the images of one split, which protocols, ensembles and calibration produce and take."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn.analysis.batches import compute_in_batches
from jaxcnn.data import Dataset
from jaxcnn.data.targets import LABEL
from jaxcnn.errors import UserError
from jaxcnn.evaluation.data import load_data
from jaxcnn.run import Run


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a classifier for the images of one split.

    Attributes:
      names: (N,) the path of each image, relative to the folder of the data set, or `test image 3` if it has no file.
        Protocols that change the images may have several versions of them: N counts all images in the first version, then
        all in the second, and so on.
      labels: (N,) int32, the true classes.
      log_probabilities: (N, classes) float32, the logarithms of the predicted probabilities. They also serve as logits,
        because adding a constant to the logits of an image does not change its probabilities.
      class_names: the names of the classes.
      versions: what each version of the images is, such as `fog, severity 3`; a single one needs no text.
    """

    names: Sequence[str]
    labels: np.ndarray
    log_probabilities: np.ndarray
    class_names: Sequence[str]
    versions: Sequence[str] = ('',)

    @property
    def num_images(self) -> int:
        """The number of images, without their further versions."""
        return len(self.labels) // len(self.versions)

    @property
    def probabilities(self) -> np.ndarray:
        """The predicted probabilities, (N, classes) float32."""
        return np.exp(self.log_probabilities)

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image, (N,); -1, which is no label, for an image with a probability of NaN."""
        is_nan = np.isnan(self.log_probabilities).any(-1)
        return np.where(is_nan, -1, self.log_probabilities.argmax(-1))

    @property
    def correct(self) -> np.ndarray:
        """Whether the most probable class is the true one, (N,) bool."""
        return self.predicted == self.labels

    @property
    def correct_by_image(self) -> np.ndarray:
        """The fraction of the versions of each image that are classified correctly, (num_images,)."""
        return np.asarray(self.correct.reshape(len(self.versions), -1).mean(0))


def predict_split(run: Run, split: str, data_dir: str = '', *, tta: bool = False) -> Predictions:
    """Return a run's predictions for all images of a split, as its evaluation in training computes them.

    Args:
      run: a classification run.
      split: name of the split.
      data_dir: another `config.data.dir` than in training; see `data.load_data`.
      tta: whether to use the run's test-time augmentation.

    Raises:
      UserError: The run does not predict one class for each image, there is no such split, or `load_data` raises one.
    """
    check_is_classifier(run)
    return predict_dataset(run, load_data(run, data_dir), split, tta=tta)


def predict_dataset(run: Run, dataset: Dataset, split: str, *, tta: bool = False) -> Predictions:
    """Return a run's predictions for all images of a split of a data set with the run's classes; see `predict_split`."""
    if split not in dataset.splits:
        raise UserError(f'no split {split!r}; there are: {", ".join(dataset.splits)}', field='--split')
    examples = dataset.splits[split]
    network, preprocessor = run.experiment.network, run.experiment.preprocessor

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        outputs = preprocessor.outputs(lambda x: network.apply(variables, x, train=False), images, tta)
        return jax.nn.log_softmax(outputs)
    log_probabilities = compute_in_batches(predict, run.variables, len(examples), examples.take,
                                           run.config.eval.batch_size)
    names = [dataset.image_name(split, position) for position in range(len(examples))]
    return Predictions(names, examples.targets['label'].astype(np.int32), log_probabilities, dataset.class_names)


def check_is_classifier(run: Run) -> None:
    """Raise a UserError if a run does not predict one class for each image."""
    if run.experiment.task.kind is not LABEL:
        raise UserError(f'needs runs with one class for each image, but the task of {run.workdir!r} is '
                        f'{run.experiment.task.name!r}')
