"""Terms of the training loss that need more than a network's outputs for its images, such as those of other networks.

A term changes the loss of a micro-batch. It may run the network again on other images, or other networks, whose arrays the
step gets as arguments, and it may have parameters of its own, which are trained with those of the network.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax

from jaxcnn.models import Network
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.tasks import Task


@dataclasses.dataclass(frozen=True)
class Forward:
    """The forward pass of a micro-batch.

    Attributes:
      network: the network.
      preprocessor: preprocessing of its images.
      task: meaning of its outputs.
      step: number of the step.
      pixels: the augmented images before normalisation, in [0, 1], (N, H, W, C).
      targets: the targets of the images, and for each a random key, `key`.
      outputs: outputs of the network for the images, in training mode, without those of auxiliary classifiers.
      maps: its feature maps that terms of the loss name, (N, H', W', C') each.
      variables: `params` and `batch_stats` before the pass, through which no gradients flow.
      run: runs the network in training mode on other images: `(pixels, batch_stats) -> (outputs, new batch_stats)`.
    """

    network: Network
    preprocessor: Preprocessor
    task: Task
    step: jax.Array
    pixels: jax.Array
    targets: dict[str, jax.Array]
    outputs: Any
    maps: dict[str, jax.Array]
    variables: dict[str, Any]
    run: Callable[[jax.Array, Any], tuple[Any, Any]]

    def evaluate(self, pixels: jax.Array) -> Any:
        """Return the outputs of the network in evaluation mode for images in [0, 1], (N, H, W, C)."""
        return self.network.apply(self.variables, self.preprocessor.train_inputs(pixels), train=False)


def init_params(terms: 'Sequence[LossTerm]', key: jax.Array) -> dict[str, Any] | None:
    """Return the initial parameters of terms of the loss, by the name of the term, or None if they have none."""
    params = {term.name: term.init(jax.random.fold_in(key, i)) for i, term in enumerate(terms)}
    return {name: value for name, value in params.items() if value} or None


class LossTerm(abc.ABC):
    """A term of the loss.

    Attributes:
      name: name of its parameters in the state.
    """

    name: ClassVar[str]

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the network's feature maps that the term needs."""
        return ()

    @property
    def arrays(self) -> Any:
        """Arrays that `__call__` gets, such as the variables of other networks; they are not trained, and are not saved."""
        return {}

    def init(self, key: jax.Array) -> Any:
        """Return the initial values of the trained parameters; an empty dict if there are none."""
        return {}

    @abc.abstractmethod
    def __call__(self, loss: jax.Array, forward: Forward, params: Any, arrays: Any,
                 batch_stats: Any) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """Return the loss with this term, scalars that are logged, and the BatchNorm statistics.

        Args:
          loss: the loss so far, a mean over the images of the micro-batch.
          forward: the forward pass of the micro-batch.
          params: values of the parameters; None if there are none.
          arrays: see `arrays`; None if there are none.
          batch_stats: the network's BatchNorm statistics after the pass. A term that runs the network again returns those
            after its last pass; others return them unchanged.
        """
