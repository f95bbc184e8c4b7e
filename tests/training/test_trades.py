"""Adversarial training by TRADES."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import experiment, models, tasks
from jaxcnn.data.normalize import Normalization
from jaxcnn.errors import UserError
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.training.loss_terms import Forward
from jaxcnn.training.trades import Trades

KEYS = jax.random.split(jax.random.key(0), 5)
CONFIG = cfg.TradesConfig(beta=3.0, eps=0.1, step=0.04, iterations=4, start=0.01)


class Linear(models.Network):
    """Logits that are linear in the pixels."""

    def forward(self, x, train, maps):
        """Logits."""
        return self.dense(self.num_classes)(x.reshape(len(x), -1))


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def attacked(x, weights, bias, noise, config):
    """The adversarial image by Algorithm 1 of Zhang et al. (2019) for one image (D,), in plain NumPy.

    With the logits z = W x + b, the gradient of KL(p || softmax(z)) with respect to x is W^T (softmax(z) - p).
    """
    p = softmax(2 * (x - 0.5) @ weights + bias)
    y = np.clip(x + config.start * noise, 0, 1)
    for _ in range(config.iterations):
        gradient = 2 * weights @ (softmax(2 * (y - 0.5) @ weights + bias) - p)
        direction = np.sign(gradient) if config.norm == 'linf' else gradient / np.linalg.norm(gradient)
        change = y + config.step * direction - x
        if config.norm == 'linf':
            change = np.clip(change, -config.eps, config.eps)
        else:
            change *= min(1, config.eps / np.linalg.norm(change))
        y = np.clip(x + change, 0, 1)
    return y


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_trades_is_the_loop_of_its_paper(norm):
    """On a linear network, against a loop in NumPy over the images and the steps."""
    config = dataclasses.replace(CONFIG, norm=norm)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (5, 3, 2, 1)).astype(np.float32)
    weights, bias = rng.normal(0, 1, (6, 3)).astype(np.float32), rng.normal(0, 1, 3).astype(np.float32)
    variables = {'params': {'Dense_0': {'kernel': weights, 'bias': bias}}}
    network, preprocessor = Linear(num_classes=3), Preprocessor(None, Normalization.from_mean_std((0.5,), (0.5,)))
    parsed = cfg.parse({})
    task = tasks.create(parsed, ['a', 'b', 'c'], [1, 1, 1], 3)

    def run(pixels, batch_stats):
        return network.apply(variables, preprocessor.normalize(pixels)), batch_stats

    def term(images):
        outputs, _ = run(images, {})
        forward = Forward(network, preprocessor, task, np.int32(0), images, {'key': KEYS, 'label': np.arange(5) % 3},
                          outputs, {}, variables, run)
        loss, scalars, _ = Trades(config)(np.float32(1.5), forward, None, None, {})
        return loss, scalars, Trades(config).adversarial_images(forward)
    loss, scalars, adversarial = jax.jit(term)(images)
    flat, divergences, correct = images.reshape(5, -1).astype(np.float64), [], []
    for i, x in enumerate(flat):
        noise = np.asarray(jax.random.normal(KEYS[i], images.shape[1:])).ravel()
        y = attacked(x, weights, bias, noise, config)
        np.testing.assert_allclose(np.ravel(adversarial[i]), y, atol=1e-5)
        p, q = (softmax(2 * (image - 0.5) @ weights + bias) for image in (x, y))
        divergences.append((p * np.log(p / q)).sum())
        correct.append(q.argmax() == i % 3)
    np.testing.assert_allclose(scalars['divergence'], np.mean(divergences), rtol=1e-4)
    np.testing.assert_allclose(loss, 1.5 + 3 * np.mean(divergences), rtol=1e-5)
    assert scalars['adversarial_accuracy'] == np.float32(np.mean(correct))
    assert np.mean(divergences) > 0.01


def test_images_are_attacked_once():
    with pytest.raises(UserError, match=r"config\.trades: TRADES attacks the images itself, but so does config"):
        experiment.check(cfg.parse({'trades': {}, 'data': dict(name='digits', augment='flip_lr|fgsm(0.1)')}))


def test_a_task_without_classes_is_refused():
    with pytest.raises(UserError, match=r'config\.trades\.eps: expected at most 1 in the norm linf, .* got 2'):
        experiment.check(cfg.parse({'trades': {'eps': 2.0}}))
    with pytest.raises(UserError, match=r"config\.trades: the task 'detection' has no probabilities"):
        experiment.check(cfg.parse(cfg.override(cfg.load('bccd_fcos'), {'trades': {}})))
