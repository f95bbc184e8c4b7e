"""A `.safetensors` file of the variables of a network, under torchvision's or timm's names where these are known."""

import json

import jax
import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.export.program import Program
from jaxcnn.files import open_replacement
from jaxcnn.interop import weights

FILE = 'model.safetensors'


def write(program: Program, path: str) -> None:
    """Write the variables of a program, with the config, the names of the classes and the normalisation as metadata."""
    from safetensors.numpy import save
    arrays, source = weights.to_named_arrays(program.network, program.variables)
    info = program.run.info
    normalization = {'ops': program.run.config.data.normalize, 'mean': info['mean'], 'std': info['std'],
                     'image_shape': program.image_shape}
    metadata = {'format': 'pt' if source else 'jaxcnn', 'class_names': json.dumps(program.class_names),
                'config': json.dumps(program.config), 'normalization': json.dumps(normalization)}
    with open_replacement(path, 'wb') as f:
        f.write(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))


def check(program: Program, path: str) -> list[str]:
    """Read a file as `config.init.safetensors` does, and return sentences on its names and on what was read.

    Raises:
      UserError: An array differs.
    """
    _, source = weights.to_named_arrays(program.network, program.variables)
    variables = weights.load_variables(program.network, weights.read_safetensors(path), program.run.experiment.image_shape)
    expected = program.float32_variables()
    equal = jax.tree.map(lambda a, b: np.array_equal(a, b), variables, {'batch_stats': {}, **expected})
    if not all(jax.tree.leaves(equal)):
        raise UserError('the arrays that were read back differ', field='--format')
    names = (f'The names and layouts are those of {source}.' if source else
             'The names are those of the parameters in jaxcnn, such as `params/Conv_0/kernel`, in its layouts.')
    return [names, f'{len(jax.tree.leaves(variables))} arrays were read back as by config.init.safetensors, and are equal']
