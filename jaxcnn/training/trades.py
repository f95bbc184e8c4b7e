"""Adversarial training by TRADES (Zhang et al. 2019), a term of the loss (`config.trades`)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn import config as cfg
from jaxcnn.data.augment import adversarial
from jaxcnn.loss_scaling import scale_image_gradients
from jaxcnn.losses import divergence, log_probabilities
from jaxcnn.training.loss_terms import Forward, LossTerm


@dataclasses.dataclass(frozen=True)
class Trades(LossTerm):
    """The divergence of the outputs for adversarial images from those for the images.

    Attributes:
      config: the fields of the config.
    """

    name = 'trades'

    config: cfg.TradesConfig

    def adversarial_images(self, forward: Forward) -> jax.Array:
        """Return images (N, H, W, C) in [0, 1] within `eps` of those of the pass, whose outputs diverge from theirs."""
        kind, config = forward.task.kind.name, self.config
        clean = log_probabilities(forward.evaluate(forward.pixels), kind)

        def gradient(images: jax.Array, _: Any) -> jax.Array:
            def divergences(x: jax.Array) -> jax.Array:
                outputs = scale_image_gradients(forward.evaluate(x), forward.network)
                return divergence(clean, log_probabilities(outputs, kind)).sum()
            return jax.grad(divergences)(images)
        noise = jax.vmap(functools.partial(jax.random.normal, shape=forward.pixels.shape[1:]))(forward.targets['key'])
        start = jnp.clip(forward.pixels + config.start * noise, 0, 1)
        return adversarial.projected_ascent(forward.pixels, start, forward.targets, gradient, config.eps, config.step,
                                            config.iterations, config.norm)

    def __call__(self, loss: jax.Array, forward: Forward, params: Any, arrays: Any,
                 batch_stats: Any) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """See `LossTerm`. The scalars are the divergence, the loss of the images, and what the task logs, such as accuracy,
        for the adversarial images."""
        kind = forward.task.kind.name
        outputs, batch_stats = forward.run(self.adversarial_images(forward), batch_stats)
        term = divergence(log_probabilities(forward.outputs, kind), log_probabilities(outputs, kind)).mean()
        scalars = {f'adversarial_{name}': value for name, value in forward.task.train_scalars(
            outputs, forward.targets).items()}
        return loss + self.config.beta * term, {'clean_loss': loss, 'divergence': term, **scalars}, batch_stats
