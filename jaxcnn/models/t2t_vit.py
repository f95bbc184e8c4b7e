"""T2T-ViT (Yuan et al. 2021, "Tokens-to-token ViT: training vision transformers from scratch on ImageNet")."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError, unknown
from jaxcnn.models.layers import Maps, Models, Network

TOKENS = ('performer', 'transformer')


class T2TViT(Network):
    """Soft splits, overlapping patches each of which becomes a token, with a token transformer between one and the next;
    then a vision transformer: class token, sinusoids for positions, blocks of attention and of a two-layer perceptron with
    LayerNorm before each, and the dense layer on the class token.

    As the authors' code. T2T-ViT-14 at 1,000 classes and 3 channels has 21,465,806 trained parameters with performers and
    21,465,422 with transformers, whose queries, keys and values have no bias (the paper: 21.5 M for both):

    - token transformers, of 7 * 7 * 3 = 147 features 41,318 and of 3 * 3 * 64 = 576 features 124,544: LayerNorm 2 D,
      keys, queries and values 192 D + 192, projection 64 * 64 + 64, LayerNorm 128, perceptron 2 (64 * 64 + 64);
    - projection to tokens 576 * 384 + 384 = 221,568, class token 384;
    - 14 blocks of 1,478,016: two LayerNorms 1,536, attention 384 * 1,152 + 384 * 384 + 384, perceptron 2 * 384 * 1,152 +
      1,152 + 384;
    - LayerNorm 768, classes 385,000.

    The authors' count of all that a checkpoint holds is larger by what is not trained: 197 * 384 of the positions and 2 *
    32 * 64 of the performers' projections, 21,545,550. Here both are constants.

    Images of any size: positions are computed for as many tokens as there are. 224 pixels give 56, 28 and then 14 x 14
    tokens. For 64 pixels `splits=((7, 2, 3), (3, 2, 1), (3, 2, 1))` gives 32, 16 and then 8 x 8, and as many
    parameters.

    Padding is symmetric. Features of a patch are in the order (row, column, channel); PyTorch's unfold has the channel
    first. Keys, queries and values come from one dense layer, in this order in performers, else as queries, keys, values.

    Attributes:
      tokens: the token transformers' attention: `performer`, in time linear in the tokens, or `transformer`.
      depth: blocks.
      embed: features of a token in them.
      heads: of their attention.
      mlp_ratio: hidden features of their perceptrons, over `embed`.
      token_dim: features of a token in the token transformers, which have one head.
      splits: size, stride and padding of each soft split.
      scale: of queries times keys in the blocks; 0: one over the square root of a head's features. (The authors' published
        weights want `embed ** -0.5`.)
      drop_path: probability of leaving out what a block adds for an image (stochastic depth) in the last block; it
        rises linearly from 0 in the first.
      token_dropout: dropout in performers. `dropout` is that after the positions and in the blocks, as the authors'.
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
        for name, least in (('depth', 1), ('embed', 1), ('heads', 1), ('token_dim', 2)):
            if getattr(self, name) < least:
                raise UserError(f'{name} must be at least {least}, got {getattr(self, name)!r}')
        if self.embed % self.heads:
            raise UserError(f'{self.heads} heads do not divide {self.embed} features')
        if int(self.embed * self.mlp_ratio) < 1:
            raise UserError(f'mlp_ratio must leave at least one of {self.embed} features, got {self.mlp_ratio!r}')
        if self.scale < 0:
            raise UserError(f'scale must be at least 0, got {self.scale!r}')
        for name in ('drop_path', 'token_dropout'):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f'{name} must be in [0, 1), got {getattr(self, name)!r}')
        if not self.splits or not all(
                isinstance(split, tuple) and len(split) == 3 and all(isinstance(n, int) for n in split)
                and min(split[:2]) > 0 and 0 <= split[2] < split[0] for split in self.splits):
            raise UserError('splits must be (size, stride, padding) each, size and stride positive, padding less than size, '
                            f'got {self.splits}')

    def min_image_size(self) -> int:
        """See `Network.min_image_size`."""
        side = 1
        for size, stride, padding in reversed(self.splits):
            side = max((side - 1) * stride + size - 2 * padding, 1)
        return side

    def forward(self, x: jax.Array, train: bool, maps: Maps) -> jax.Array:
        """See `Network.forward`; maps `tokens1` and on, what each soft split but the last becomes, `tokens`, the embedded
        ones, and `block1` and on, without the class token."""
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
        first = self.param('class_token', nn.initializers.normal(0.02), (1, 1, self.embed), jnp.dtype(self.param_dtype))
        x = jnp.concatenate([jnp.broadcast_to(first, (n, 1, self.embed)).astype(x.dtype), x], 1)
        x = self.drop(x + jnp.asarray(positions(x.shape[1], self.embed), x.dtype), train)
        for i in range(self.depth):
            x = self.block(type(self).transformer, x, train, self.drop_path * i / max(self.depth - 1, 1))
            maps[f'block{i + 1}'] = x[:, 1:].reshape(n, h, w, -1)
        return self.dense(self.num_classes)(self._layer_norm(x)[:, 0])

    def transformer(self, x: jax.Array, train: bool, drop_path: float) -> jax.Array:
        """A block of the vision transformer."""
        def path(y: jax.Array) -> jax.Array:
            return x + nn.Dropout(drop_path, broadcast_dims=(1, 2), deterministic=not train)(y)
        n, count, _ = x.shape
        heads = (n, count, self.heads, self.embed // self.heads)
        q, k, v = jnp.split(self.dense(3 * self.embed, use_bias=False)(self._layer_norm(x)), 3, -1)
        y = jax.nn.dot_product_attention(q.reshape(heads), k.reshape(heads), v.reshape(heads), scale=self.scale or None)
        x = path(self.drop(self.dense(self.embed)(y.reshape(x.shape)), train))
        y = self.drop(_gelu(self.dense(int(self.embed * self.mlp_ratio))(self._layer_norm(x))), train)
        return path(self.drop(self.dense(self.embed)(y), train))

    def token_transformer(self, x: jax.Array, train: bool, index: int) -> jax.Array:
        """A token transformer. Its features are fewer after it, and its values stand in for its input in the sum."""
        performer, dim = self.tokens == 'performer', self.token_dim
        drop = nn.Dropout(self.token_dropout if performer else 0.0, deterministic=not train)
        parts = jnp.split(self.dense(3 * dim, use_bias=performer)(self._layer_norm(x)), 3, -1)
        if performer:
            k, q, v = parts
            y = _performer(q, k, v, directions(index, dim))
        else:  # scaled by the features of the input, as the authors have it
            q, k, v = parts
            y = jax.nn.dot_product_attention(*(part[:, :, None] for part in parts), scale=x.shape[-1] ** -0.5)[:, :, 0]
        x = v + drop(self.dense(dim)(y))
        y = _gelu(self.dense(dim)(self._layer_norm(x)))
        return x + drop(self.dense(dim)(y))

    def _layer_norm(self, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(1e-5, dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype),
                            use_fast_variance=False)(x)  # E[x^2] - E[x]^2 fails where the mean is many deviations


def unfold(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Overlapping patches of (N, H, W, C): (N, H', W', size * size * C), of features (row, column, channel)."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    h, w = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
    x = jnp.stack([x[:, i:i + h:stride] for i in range(size)], 3)  # (N, H', W, size, C)
    x = jnp.stack([x[:, :, i:i + w:stride] for i in range(size)], 4)
    return x.reshape(*x.shape[:3], -1)


@functools.cache
def positions(count: int, features: int) -> np.ndarray:
    """Sinusoids (count, features) of wavelengths 2 pi to 20,000 pi: sines at even features, cosines at odd ones."""
    angle = np.arange(count)[:, None] / 10000 ** (np.arange(features) // 2 * 2 / features)
    return np.where(np.arange(features) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)


@functools.cache
def directions(index: int, dim: int) -> np.ndarray:
    """The random directions (dim // 2, dim) of the performer of this index, always the same: orthogonal, and each as long
    as the root of their number."""
    count = dim // 2
    q, r = np.linalg.qr(np.random.default_rng(index).normal(size=(dim, count)))
    return (math.sqrt(count) * (q * np.sign(np.diag(r))).T).astype(np.float32)


def _performer(q: jax.Array, k: jax.Array, v: jax.Array, w: np.ndarray) -> jax.Array:
    """Attention by positive random features (Choromanski et al. 2020, "Rethinking attention with performers"): the kernel
    exp(q k) as a product of features of q and of k; in float32."""
    def lifted(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return jnp.exp(x @ w.T - (x * x).sum(-1, keepdims=True) / 2) / math.sqrt(len(w))
    q, k = lifted(q), lifted(k)
    total = jnp.einsum('ntm,nm->nt', q, k.sum(1))[..., None]
    y = jnp.einsum('ntm,nmd->ntd', q, jnp.einsum('ntm,ntd->nmd', k, v.astype(jnp.float32)))
    return (y / (total + 1e-8)).astype(v.dtype)


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


MODELS: Models = {'t2t_vit_14': (T2TViT, {})}
