"""The Square attack, a random search that sees the outputs of the network alone (Andriushchenko et al. 2020)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment import adversarial
from jaxcnn.robustness.threat import Logits, Threat

# the share of the pixels that a square covers is halved after each of these queries of 10,000
HALVINGS = 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000


def square_sides(queries: int, share: float, height: int, width: int, smallest: int = 1, odd: bool = False) -> np.ndarray:
    """Return the side of the square in pixels at each query: (queries,).

    Args:
      queries: number of queries, to which the schedule for 10,000 queries is scaled.
      share: share of the pixels in the first square.
      height, width: size of the images.
      smallest: the smallest side.
      odd: whether sides are odd.
    """
    scaled = (np.arange(queries) / queries * 10000).astype(int)
    shares = share / 2.0 ** np.searchsorted(HALVINGS, scaled, side='left')
    sides = np.maximum(np.round(np.sqrt(shares * height * width)).astype(int), smallest)
    if odd:
        sides += sides % 2 == 0
    largest = min(height, width)
    return np.minimum(sides, largest - (odd and largest % 2 == 0))


def _pyramid(height: int, width: int) -> np.ndarray:
    """Return a rectangle (height, width) of norm 1 that is largest at its centre (algorithm 4, with all terms positive)."""
    result = np.zeros((height, width))
    row, column = height // 2, width // 2
    for k in range(max(row, column) + 1):
        rows = slice(max(row - k, 0), min(row + k + 1, height))
        columns = slice(max(column - k, 0), min(column + k + 1, width))
        result[rows, columns] += 1 / (k + 1) ** 2
    return result / np.sqrt((result ** 2).sum())


def two_pyramids(side: int) -> np.ndarray:
    """Return a square (side, side) of norm 1, whose upper half is positive and whose lower half is negative."""
    half = side // 2
    result = np.concatenate([_pyramid(half, side) if half else np.zeros((0, side)), -_pyramid(side - half, side)])
    return result / np.sqrt((result ** 2).sum())


def make_square(threat: Threat, queries: int, share: float) -> Callable[..., jax.Array]:
    """Return the attack `(logits, keys, images, labels, targets, eps) -> images`, which needs no gradient.

    Args:
      threat: what the attack may do and aims at.
      queries: number of times that the network is applied to an image.
      share: share of the pixels in the first square.
    """
    def apply(logits: Logits, keys: jax.Array, images: jax.Array, labels: jax.Array, targets: jax.Array,
              eps: jax.Array) -> jax.Array:
        _, height, width, _ = images.shape
        start, propose = (_linf_search if threat.norm == 'linf' else _l2_search)(queries, share, height, width)

        def evaluate(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            outputs = logits(x)
            margin = threat.margin(outputs, labels, targets)
            return margin, -threat.cross_entropy(outputs, labels, targets) if threat.targeted else margin

        def iterate(state: tuple) -> tuple:
            query, best, margin, loss = state
            query_keys = jax.vmap(lambda key: jax.random.fold_in(key, query))(keys)
            changes = jax.vmap(propose, (0, 0, 0, None, None))(query_keys, images, best, query, eps)
            x = jnp.clip(images + changes, 0, 1)
            new_margin, new_loss = evaluate(x)
            is_better = (margin >= 0) & ((new_loss < loss) | (new_margin < 0))  # a successful image stays as it is
            return (query + 1, jnp.where(is_better[:, None, None, None], x, best),
                    jnp.where(is_better, new_margin, margin), jnp.where(is_better, new_loss, loss))

        first = jnp.clip(images + jax.vmap(start, (0, 0, None))(keys, images, eps), 0, 1)
        state = (jnp.ones((), jnp.int32), first, *evaluate(first))
        return jax.lax.while_loop(lambda s: (s[0] < queries) & (s[2] >= 0).any(), iterate, state)[1]
    return apply


def _random_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.rademacher(key, shape, jnp.float32)


def _random_corner(key: jax.Array, side: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Return the row and the column of the upper left pixel of a square within the image."""
    u = jax.random.uniform(key, (2,))
    row, column = ((u[i] * (size - side + 1)).astype(jnp.int32) for i, size in enumerate((height, width)))
    return row, column


def _window(corner: tuple[jax.Array, jax.Array], side: jax.Array, height: int, width: int) -> jax.Array:
    """Return which pixels are in a square: (H, W, 1) bool."""
    rows, columns = jnp.arange(height) - corner[0], jnp.arange(width) - corner[1]
    return (((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side)))[..., None]


def _linf_search(queries: int, share: float, height: int, width: int) -> tuple[Callable, Callable]:
    """Return the first change of an image, and the change at a query, with all values at `-eps` or `eps` (algorithm 2)."""
    sides = jnp.asarray(square_sides(queries, share, height, width))

    def start(key: jax.Array, image: jax.Array, eps: jax.Array) -> jax.Array:
        return jnp.broadcast_to(eps * _random_signs(key, (1, *image.shape[1:])), image.shape)  # vertical stripes

    def propose(key: jax.Array, image: jax.Array, best: jax.Array, query: jax.Array, eps: jax.Array) -> jax.Array:
        corner_key, sign_key = jax.random.split(key)
        side = sides[query]
        window = _window(_random_corner(corner_key, side, height, width), side, height, width)
        change = best - image + jnp.where(window, 2 * eps * _random_signs(sign_key, image.shape[-1:]), 0)
        return adversarial.project(change[None], eps, 'linf')[0]
    return start, propose


def _l2_search(queries: int, share: float, height: int, width: int) -> tuple[Callable, Callable]:
    """Return the first change of an image, and the change at a query, which moves mass between two squares (algorithm 3)."""
    sides = square_sides(queries, share, height, width, smallest=min(3, height, width), odd=True)
    distinct, numbers = np.unique(sides, return_inverse=True)
    table = np.zeros((2, len(distinct), height, width, 1), np.float32)  # each pattern as it is, and turned
    for number, side in enumerate(distinct):
        table[0, number, :side, :side, 0] = two_pyramids(int(side))
        table[1, number, :side, :side, 0] = two_pyramids(int(side)).T
    patterns, side_numbers, distinct_sides = jnp.asarray(table), jnp.asarray(numbers), jnp.asarray(distinct)
    tile = max(min(height, width) // 5, 1)

    def start(key: jax.Array, image: jax.Array, eps: jax.Array) -> jax.Array:
        rows, columns = height // tile, width // tile
        turn_key, sign_key = jax.random.split(key)
        pattern = jnp.asarray(two_pyramids(tile), jnp.float32)
        turned = jax.random.bernoulli(turn_key, shape=(rows, columns, 1, 1))
        signs = _random_signs(sign_key, (rows, columns, 1, 1, image.shape[-1]))
        tiles = jnp.where(turned, pattern.T, pattern)[..., None] * signs
        change = tiles.swapaxes(1, 2).reshape(rows * tile, columns * tile, -1)
        top, left = (height - rows * tile) // 2, (width - columns * tile) // 2
        change = jnp.pad(change, ((top, height - rows * tile - top), (left, width - columns * tile - left), (0, 0)))
        return eps * change / jnp.maximum(jnp.sqrt((change ** 2).sum()), 1e-12)

    def propose(key: jax.Array, image: jax.Array, best: jax.Array, query: jax.Array, eps: jax.Array) -> jax.Array:
        to_key, from_key, sign_key, turn_key = jax.random.split(key, 4)
        number = side_numbers[query]
        side, change = distinct_sides[number], best - image
        corner = _random_corner(to_key, side, height, width)
        window = _window(corner, side, height, width)
        emptied = _window(_random_corner(from_key, side, height, width), side, height, width)

        def norms(x: jax.Array) -> jax.Array:
            return jnp.sqrt((x ** 2).sum((0, 1)))  # of each channel

        unused = jnp.maximum(eps ** 2 - (change ** 2).sum(), 0) / image.shape[-1]
        available = jnp.sqrt(unused + norms(jnp.where(window | emptied, change, 0)) ** 2)
        pattern = patterns[jax.random.bernoulli(turn_key).astype(jnp.int32), number]
        current = jnp.where(window, change, 0)
        added = jnp.roll(jnp.roll(pattern, corner[0], 0), corner[1], 1) * _random_signs(sign_key, image.shape[-1:])
        added += current / jnp.maximum(norms(current), 1e-12)
        change = jnp.where(window, added / jnp.maximum(norms(added), 1e-12) * available, jnp.where(emptied, 0, change))
        return eps * change / jnp.maximum(jnp.sqrt((change ** 2).sum()), 1e-12)
    return start, propose
