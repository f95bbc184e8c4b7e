"""The function that is exported: from uint8 images to the probabilities of the classes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import export as jax_export

from jaxcnn import config as cfg
from jaxcnn.errors import UserError
from jaxcnn.models import Network
from jaxcnn.ops.pool import as_reduce_window
from jaxcnn.run import Run

DTYPES = {'float32': np.dtype(np.float32), 'float16': np.dtype(np.float16), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
INPUT, OUTPUT = 'images', 'probabilities'
BATCH = 'batch'


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The preprocessing, the network and the probabilities of a run, with convolutions that are XLA's own.

    It computes in float32, and test-time augmentation is part of it, as of `Run.predict`.

    Attributes:
      run: the run.
      network: its network.
      variables: `params` and `batch_stats` on the host, those with floating-point numbers in `weight_dtype`.
      weight_dtype: the type of the stored weights.
    """

    run: Run
    network: Network
    variables: Any
    weight_dtype: np.dtype

    @classmethod
    def of_run(cls, run: Run, weight_dtype: str = 'float32') -> 'Program':
        """Return the program of a run, with the weights of `Run.variables`.

        Raises:
          UserError: The run is of a task whose network does not return logits, or trains with rounded activations; or
            weights are too large for float16.
        """
        task = run.experiment.task
        if task.outputs != 'logits':
            raise UserError(f'runs of config.task={task.name!r} cannot be exported', field='--workdir',
                            hint='export is for classification and multilabel')
        if run.config.quantization is not None:
            # a difference in the last digit rounds an activation to another integer, so no two runtimes agree
            raise UserError('runs of config.quantization cannot be exported', field='--workdir',
                            hint='jaxcnn quantize makes an int8 network of them')
        dtype = DTYPES[weight_dtype]

        def store(array: Any) -> np.ndarray:
            array = np.asarray(array)
            if not jnp.issubdtype(array.dtype, jnp.floating):
                return array
            with np.errstate(over='ignore'):
                stored = array.astype(dtype)
            if not np.isfinite(stored.astype(np.float32)).all():
                raise UserError(f'{weight_dtype} cannot represent all weights of the run', field='--dtype',
                                hint='choose float32 or bfloat16')
            return stored
        network = run.experiment.network.clone(conv_implementation='xla', dtype='float32', param_dtype='float32')
        return cls(run, network, jax.tree.map(store, run.variables), dtype)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        height, width, channels = self.run.info['image_shape']
        return height, width, channels

    @property
    def class_names(self) -> list[str]:
        """The names of the classes."""
        return list(self.run.info['class_names'])

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run without the folders of this machine."""
        config = cfg.to_dict(self.run.config)
        config['data'].update(dir='', cache_dir='')
        return config

    def float32_variables(self) -> Any:
        """Return the variables with floating-point numbers in float32, rounded as they are stored."""
        return jax.tree.map(lambda x: x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, self.variables)

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return the probabilities (N, classes) of images, uint8 (N, H, W, C)."""
        variables = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, variables)
        with as_reduce_window():
            outputs = self.run.experiment.preprocessor.outputs(
                lambda x: self.network.apply(variables, x, train=False), images)
        return self.run.experiment.task.predict(outputs)

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self.__call__)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return what the exported program has to return for images, computed by JAX."""
        return np.asarray(self._compiled(self.variables, images))

    def bound(self, images: jax.Array) -> dict[str, jax.Array]:
        """Return the probabilities by the name of the output, with the weights as constants."""
        return {OUTPUT: self(jax.tree.map(jnp.asarray, self.variables), images)}

    def image_spec(self) -> jax.ShapeDtypeStruct:
        """Return the shape and the type of a batch of any size."""
        batch, = jax_export.symbolic_shape(BATCH)
        return jax.ShapeDtypeStruct((batch, *self.image_shape), np.uint8)
