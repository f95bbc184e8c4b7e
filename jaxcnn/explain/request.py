"""What a view needs: a run, images of it, and a folder for figures."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn import data
from jaxcnn.analysis.attribution import map_parts
from jaxcnn.analysis.mistakes import confident_mistakes
from jaxcnn.errors import UserError, as_text, unknown
from jaxcnn.explain.split_predictions import SplitPredictions, predict
from jaxcnn.run import Run
from jaxcnn.tasks import Section

__all__ = ['Examples', 'Request', 'Section']


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images with their names.

    Attributes:
      images: uint8 (N, H, W, C), of the run's size.
      names: name of each image: its file, or its split and number.
      labels: (N,) class of each image, -1 where it is unknown.
    """

    images: np.ndarray
    names: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
      run: the run.
      paths: picture files; empty for images of a split.
      split: the split whose images are used without `paths`.
      count: number of these images.
      only_mistakes: whether these images are the most confident mistakes, instead of drawn by the seed.
      class_name: name or number of the class whose score is explained; empty for the predicted class of each image.
      data_dir: another `config.data.dir` than in training.
      seed: seed of all random numbers, such as the choice of images.
    """

    run: Run
    paths: Sequence[str] = ()
    split: str = 'test'
    count: int = 8
    only_mistakes: bool = False
    class_name: str = ''
    data_dir: str = ''
    seed: int = 0

    @property
    def folder(self) -> str:
        """The folder of figures and sections in the run's workdir."""
        return os.path.join(self.run.workdir, 'explain')

    def figure_path(self, name: str) -> str:
        """Return the path of the figure with a name."""
        return os.path.join(self.folder, f'{name}.png')

    @functools.cached_property
    def dataset(self) -> data.Dataset:
        """The run's data."""
        return self.run.load_dataset(self.data_dir)

    def check_no_pictures(self, view: str) -> None:
        """Raise a UserError if there are picture files, for a view that cannot use them."""
        if self.paths:
            raise UserError(f'the view {view} takes no picture files', field='IMAGE', hint='leave them out')

    @functools.cached_property
    def examples(self) -> Examples:
        """The images: those of `paths`, or `count` images of the split.

        Raises:
          UserError: An image cannot be read, there is no such split, or mistakes are asked for and there are none.
        """
        if self.paths:
            images = [self.run.load_picture(path)[0] for path in self.paths]
            return Examples(np.stack(images), [as_text(os.path.basename(path)) for path in self.paths],
                            np.full(len(images), -1))
        splits = self.dataset.splits
        if self.split not in splits:
            raise UserError(f'no split {self.split!r}; there are: {", ".join(splits)}', field='--split')
        split = splits[self.split]
        positions = np.random.default_rng(self.seed).permutation(len(split))[:self.count]
        if self.only_mistakes:
            positions = self._confident_mistakes()
        labels = split.take_targets(positions).get('label', np.full(len(positions), -1))
        return Examples(split.take(positions), [self.dataset.image_name(self.split, i) for i in positions], labels)

    def predictions(self, split: str, count: int | None = None) -> SplitPredictions:
        """Return the images of a split with their predictions; `count` of them, drawn by the seed, or all.

        They are the same object for the same arguments, so that several views share the predictions.
        """
        key = split, count
        if key not in self._predictions:
            self._predictions[key] = SplitPredictions(self.run, self.dataset, split, count, self.seed)
        return self._predictions[key]

    @functools.cached_property
    def _predictions(self) -> dict[tuple[str, int | None], SplitPredictions]:
        return {}

    def _confident_mistakes(self) -> np.ndarray:
        """Return the positions of the most confident mistakes in the split."""
        predictions = self.predictions(self.split)
        if not predictions.has_label:
            raise UserError(f'expects a task with one class for each image, not {self.run.experiment.task.name!r}',
                            field='--mistakes')
        probabilities = predictions.probabilities
        positions = confident_mistakes(probabilities.argmax(1), probabilities.max(1), predictions.labels, self.count).indices
        if not len(positions):
            raise UserError(f'all predictions for the {self.split} split are right', field='--mistakes')
        return positions

    @functools.cached_property
    def inputs(self) -> jax.Array:
        """The images as the network takes them: float32 (N, H, W, C), normalised."""
        return jax.jit(self.run.experiment.preprocessor.__call__)(self.examples.images)

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """The images before normalisation, for figures: (N, H, W, C), in [0, 1]."""
        return np.asarray(jax.jit(self.run.experiment.preprocessor.pixels)(self.examples.images))

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """The probability of each class for each image, without test-time augmentation: (N, classes)."""
        def predict_parts(variables: Any, x: jax.Array) -> Any:
            return map_parts(functools.partial(predict, self.run, variables), x)
        return np.asarray(jax.jit(predict_parts)(self.run.variables, self.inputs))

    @functools.cached_property
    def classes(self) -> np.ndarray:
        """The class of each image whose score is explained: (N,).

        Raises:
          UserError: There is no class `class_name`.
        """
        if not self.class_name:
            return self.probabilities.argmax(-1)
        return np.full(len(self.examples), self.class_number(self.class_name))

    def class_number(self, name: str, field: str | None = '--class') -> int:
        """Return the number of the class with a name or a number.

        Raises:
          UserError: There is no such class.
        """
        names = [str(known) for known in self.run.info['class_names']]
        if name in names:
            return names.index(name)
        if name.isascii() and name.isdigit() and int(name) < len(names):
            return int(name)
        raise unknown('class', name, names, field=field)

    def title(self, i: int) -> str:
        """Return a title of image i: its name, its label if it is known, and the explained class with its probability."""
        names, examples = self.run.info['class_names'], self.examples
        label = examples.labels[i]
        shown = f'{names[self.classes[i]]}: {100 * self.probabilities[i, self.classes[i]]:.1f} %'
        return '\n'.join([examples.names[i], *([f'label: {names[label]}'] if label >= 0 else []), shown])
