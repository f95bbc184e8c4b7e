import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope='session')
def photo():
    """The function `photo(height, width, seed)`: an RGB image, uint8, with edges, gradients, a constant region and noise."""
    def draw(height=24, width=20, seed=0):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
        planes = [0.2 + 0.5 * x, 0.3 + 0.3 * np.sin(7 * y + 3 * x), 0.9 - 0.6 * y]
        image = np.stack(planes, -1) + 0.05 * rng.normal(size=(height, width, 3))
        image[height // 4:height // 2, width // 3:] = [0.8, 0.1, 0.3]
        return np.uint8(np.clip(image, 0.05, 0.95) * 255)
    return draw


@pytest.fixture(scope='session')
def apply_to_image():
    """The function `(keys, image, *ops)` that returns the results of each op for one float image and each key.

    All ops are compiled as one program.
    """
    def run(keys, image, *functions):
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: [f(key, jnp.asarray(image)) for f in functions]))(keys))
    return run
