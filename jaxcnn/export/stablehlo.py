"""StableHLO by `jax.export`: a file that JAX alone runs, on a CPU or a GPU."""

import jax
from jax import export as jax_export

from jaxcnn.export.program import Program
from jaxcnn.files import open_replacement

FILE = 'model.stablehlo'
PLATFORMS = ('cpu', 'cuda')


def write(program: Program, path: str) -> None:
    """Write a program, with its weights, as a serialised `jax.export.Exported`."""
    exported = jax_export.export(jax.jit(program.bound), platforms=PLATFORMS)(program.image_spec())
    with open_replacement(path, 'wb') as f:
        f.write(exported.serialize())
