"""T2T-ViT (Yuan et al. 2021, "Tokens-to-token ViT: training vision transformers from scratch on ImageNet")."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.network import Maps, Models, Network

TOKENS = ('performer', 'transformer')


class T2TViT(Network):
    """Soft splits with token transformers between them, and a vision transformer on the resulting tokens.

    A soft split turns each of the overlapping patches of an image into a token. The vision transformer has a class token,
    sinusoidal positions, blocks of attention and of a two-layer perceptron with LayerNorm before each, and a dense layer on
    the class token. All of it follows the authors' code.

    T2T-ViT-14 at 1,000 classes and 3 channels has 21,465,806 trained parameters with performers and 21,465,422 with
    transformers, whose queries, keys and values have no bias (the paper states 21.5 M for both):

    - The token transformers have 41,318 (D = 7 * 7 * 3 = 147 features) and 124,544 (D = 3 * 3 * 64 = 576): LayerNorm 2 D,
      keys, queries and values 192 D + 192, projection 64 * 64 + 64, LayerNorm 128, perceptron 2 (64 * 64 + 64).
    - The projection to tokens has 576 * 384 + 384 = 221,568, the class token 384.
    - Each of the 14 blocks has 1,478,016: two LayerNorms 1,536, attention 384 * 1,152 + 384 * 384 + 384, perceptron 2 * 384
      * 1,152 + 1,152 + 384.
    - The last LayerNorm has 768, the dense layer 385,000.

    The authors count everything that a checkpoint holds, 21,545,550, which includes 197 * 384 values of positions and 2 * 32
    * 64 of the performers' projections. These are not trained, and are constants here.

    Images may have any size, because positions are computed for as many tokens as there are. 224 pixels give 56 x 56, 28 x
    28 and finally 14 x 14 tokens. At 64 pixels `splits=((7, 2, 3), (3, 2, 1), (3, 2, 1))` gives 32 x 32, 16 x 16 and 8 x 8
    tokens with the same number of parameters.

    Padding is symmetric. The features of a patch are in the order (row, column, channel), whereas PyTorch's unfold has the
    channel first. One dense layer computes keys, queries and values in this order in performers, and queries, keys and
    values in transformers.

    Attributes:
      tokens: attention of the token transformers: `performer`, whose time is linear in the number of tokens, or
        `transformer`.
      depth: number of blocks.
      embed: features of a token in the blocks.
      heads: number of attention heads in the blocks.
      mlp_ratio: hidden features of the perceptrons in the blocks, divided by `embed`.
      token_dim: features of a token in the token transformers, which have one head.
      splits: (size, stride, padding) of each soft split.
      scale: factor of queries times keys in the blocks; 0 stands for one over the square root of a head's features. The
        authors' published weights need `embed ** -0.5`.
      drop_path: probability with which the last block's residual branches are dropped for an image (stochastic depth); it
        rises linearly from 0 in the first block.
      token_dropout: dropout in performers. `dropout` acts after the positions and in the blocks, as in the authors' code.
    """

    kernel_init: str = 'normal(0.02)'
    tokens: str = 'performer'
    depth: int = 14
    embed: int = 384
    heads: int = 6
    mlp_ratio: float = 3.0
    token_dim: int = 64
    splits: tuple[tuple[int, int, int], ...] = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
    scale: float = 0.0
    drop_path: float = 0.0
    token_dropout: float = 0.1

    def check(self) -> None:
        """See `Network.check`."""
        super().check()
        if self.tokens not in TOKENS:
            raise unknown('tokens', self.tokens, TOKENS)
        for name, minimum in (('depth', 1), ('embed', 1), ('heads', 1), ('token_dim', 2)):
            if getattr(self, name) < minimum:
                raise UserError(f'{name} must be at least {minimum}, got {getattr(self, name)!r}')
        if self.embed % self.heads:
            raise UserError(f'{self.heads} heads do not divide {self.embed} features')
        if int(self.embed * self.mlp_ratio) < 1:
            raise UserError(f'mlp_ratio must be large enough to leave one of {self.embed} features, got {self.mlp_ratio!r}')
        if self.scale < 0:
            raise UserError(f'scale must be at least 0, got {self.scale!r}')
        for name in ('drop_path', 'token_dropout'):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f'{name} must be in [0, 1), got {getattr(self, name)!r}')
        if not self.splits or not all(map(_valid_split, self.splits)):
            raise UserError('splits must be tuples (size, stride, padding) with size and stride positive and padding less '
                            f'than size, got {self.splits}')

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        side = 1
        for size, stride, padding in reversed(self.splits):
            side = max((side - 1) * stride + size - 2 * padding, 1)
        return side

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`.

        The feature maps are `tokens1` and so on, the output of each token transformer; `tokens`, the embedded tokens; and
        `block1` and so on, the output of each block without the class token.
        """
        x = x.astype(self.dtype)
        for i, split in enumerate(self.splits):
            x = unfold(x, *split)
            n, h, w, _ = x.shape
            x = x.reshape(n, h * w, -1)
            if i < len(self.splits) - 1:
                x = self.block(type(self).token_transformer, x, train, i)
                x = maps[f'tokens{i + 1}'] = x.reshape(n, h, w, -1)
        x = self.dense(self.embed)(x)
        maps['tokens'] = x.reshape(n, h, w, -1)
        class_token = self.param('class_token', nn.initializers.normal(0.02), (1, 1, self.embed),
                                 jnp.dtype(self.param_dtype))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (n, 1, self.embed)).astype(x.dtype), x], 1)
        x = self.drop(x + jnp.asarray(positions(x.shape[1], self.embed), x.dtype), train)
        for i in range(self.depth):
            drop_path = self.drop_path * i / max(self.depth - 1, 1)
            x = self.block(type(self).transformer, x, train, drop_path)
            maps[f'block{i + 1}'] = x[:, 1:].reshape(n, h, w, -1)
        return self.dense(self.num_classes)(self._layer_norm(x)[:, 0])

    def transformer(self, x: jax.Array, train: bool, drop_path: float) -> jax.Array:
        """Apply a block of the vision transformer."""
        def add(x: jax.Array, residual: jax.Array) -> jax.Array:
            return x + nn.Dropout(drop_path, broadcast_dims=(1, 2), deterministic=not train)(residual)
        n, tokens, _ = x.shape
        by_head = (n, tokens, self.heads, self.embed // self.heads)
        q, k, v = jnp.split(self.dense(3 * self.embed, use_bias=False)(self._layer_norm(x)), 3, -1)
        y = jax.nn.dot_product_attention(q.reshape(by_head), k.reshape(by_head), v.reshape(by_head),
                                         scale=self.scale or None)
        x = add(x, self.drop(self.dense(self.embed)(y.reshape(x.shape)), train))
        y = self.drop(_gelu(self.dense(int(self.embed * self.mlp_ratio))(self._layer_norm(x))), train)
        return add(x, self.drop(self.dense(self.embed)(y), train))

    def token_transformer(self, x: jax.Array, train: bool, index: int) -> jax.Array:
        """Apply a token transformer.

        It reduces the features to `token_dim`, so that the first sum is of the attention's output and the values, not of its
        input.
        """
        performer, dim = self.tokens == 'performer', self.token_dim
        drop = nn.Dropout(self.token_dropout if performer else 0.0, deterministic=not train)
        projections = jnp.split(self.dense(3 * dim, use_bias=performer)(self._layer_norm(x)), 3, -1)
        if performer:
            k, q, v = projections
            y = _performer_attention(q, k, v, random_directions(index, dim))
        else:  # the authors scale by the number of input features
            q, k, v = projections
            y = jax.nn.dot_product_attention(q[:, :, None], k[:, :, None], v[:, :, None], scale=x.shape[-1] ** -0.5)[:, :, 0]
        x = v + drop(self.dense(dim)(y))
        y = _gelu(self.dense(dim)(self._layer_norm(x)))
        return x + drop(self.dense(dim)(y))

    def _layer_norm(self, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(1e-5, dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype),
                            use_fast_variance=False)(x)  # E[x^2] - E[x]^2 cancels where the mean is many deviations


def _valid_split(split: Any) -> bool:
    if not isinstance(split, tuple) or len(split) != 3 or not all(isinstance(n, int) for n in split):
        return False
    size, stride, padding = split
    return size > 0 and stride > 0 and 0 <= padding < size


def unfold(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Return the overlapping patches of (N, H, W, C) as (N, H', W', size * size * C), ordered by row, column and channel."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    h, w = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
    x = jnp.stack([x[:, i:i + h:stride] for i in range(size)], 3)  # (N, H', W, size, C)
    x = jnp.stack([x[:, :, i:i + w:stride] for i in range(size)], 4)
    return x.reshape(*x.shape[:3], -1)


@functools.cache
def positions(count: int, features: int) -> np.ndarray:
    """Return sinusoids (count, features) of wavelengths 2 pi to 20,000 pi: sines at even features, cosines at odd ones."""
    angle = np.arange(count)[:, None] / 10000 ** (np.arange(features) // 2 * 2 / features)
    return np.where(np.arange(features) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)


@functools.cache
def random_directions(index: int, dim: int) -> np.ndarray:
    """Return the fixed random directions (dim // 2, dim) of the performer with an index.

    They are orthogonal, and their length is the square root of their number.
    """
    count = dim // 2
    q, r = np.linalg.qr(np.random.default_rng(index).normal(size=(dim, count)))
    return (math.sqrt(count) * (q * np.sign(np.diag(r))).T).astype(np.float32)


def _performer_attention(q: jax.Array, k: jax.Array, v: jax.Array, w: np.ndarray) -> jax.Array:
    """Compute attention by positive random features (Choromanski et al. 2020, "Rethinking attention with performers").

    The kernel exp(q k) is approximated by a product of features of q and of k, in float32.
    """
    def random_features(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return jnp.exp(x @ w.T - (x * x).sum(-1, keepdims=True) / 2) / math.sqrt(len(w))
    q, k = random_features(q), random_features(k)
    normalizer = jnp.einsum('ntm,nm->nt', q, k.sum(1))[..., None]
    y = jnp.einsum('ntm,nmd->ntd', q, jnp.einsum('ntm,ntd->nmd', k, v.astype(jnp.float32)))
    return (y / (normalizer + 1e-8)).astype(v.dtype)


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


MODELS: Models = {'t2t_vit_14': (T2TViT, {})}
