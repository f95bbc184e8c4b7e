"""Checks of the loss before training: its value, and that it stays put without updates."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.checks.base import FAILED, INFORMATION, WARNING, Findings, Verdict
from jaxcnn.checks.context import Context, train_steps
from jaxcnn.data.targets import LABELS
from jaxcnn.optim import path_name
from jaxcnn.training.state import variables

NUM_STEPS = 10  # with learning rate 0
HIGH, LOW = 2.0, 0.9  # times the expected loss
NUM_IMAGES = 128


def check_first_loss(context: Context) -> Verdict:
    """Compare the loss of the first step with that of outputs that say nothing, and look at the outputs themselves.

    Outputs that are all 0 give each class the same probability: the cross-entropy is then the logarithm of the number of
    classes, and the binary cross-entropy log 2.
    """
    setup, findings = context.setup, Findings()
    experiment, task = setup.experiment, setup.experiment.task
    examples = context.train_examples(setup.timeline.phases[0].batch_size)
    targets = {name: value for name, value in examples.items() if name != 'image'}
    zeros = jnp.zeros((len(examples['image']), task.num_classes))
    expected = float(task.loss(zeros, targets))
    network = experiment.network

    @jax.jit
    def apply(weights: Any, images: jax.Array) -> jax.Array:
        outputs, _ = network.apply(weights, images, train=True, mutable=['batch_stats'],
                                   rngs={'dropout': jax.random.key(0)})
        return (outputs[0] if isinstance(outputs, tuple) else outputs).astype(jnp.float32)
    outputs = np.asarray(apply(variables(context.host_state)[False], examples['image'][:NUM_IMAGES]))
    _, scalars = train_steps(setup, context.initial_state(setup), 0, 1)
    loss = float(scalars['loss'][0])
    auxiliary = getattr(network, 'aux_weight', 0)
    _check_outputs(outputs, findings, task.kind is LABELS)
    if not math.isfinite(loss):
        findings.add(FAILED, 'it is not finite', 'check the network, its initialisation, the loss and the data')
    elif context.config.init is not None:
        findings.add(INFORMATION, 'the weights come from elsewhere, so that another value is right')
    elif auxiliary:
        findings.add(INFORMATION, f'it contains the losses of auxiliary classifiers with the weight {auxiliary:g}')
    elif loss > HIGH * expected:
        findings.add(WARNING, f'the outputs have a deviation of {outputs.std():.1f}, and should have one of about 1',
                     'make the initial outputs smaller, for example by another config.model.kernel_init; the first steps '
                     'are spent on that')
    elif loss < LOW * expected:
        findings.add(WARNING, 'a network without training cannot know this',
                     'check whether the labels can be read off the images, or whether the loss is scaled')
    if task.kind is LABELS:
        meaning = f'outputs of 0 have {expected:.3f}'
    else:
        is_log = math.isclose(expected, math.log(task.num_classes), rel_tol=1e-4)
        meaning = f'{"log " + str(task.num_classes) if is_log else "equal probabilities"} is {expected:.3f}'
    return findings.verdict(f'the first loss is {loss:.3f}, and {meaning}')


def _check_outputs(outputs: np.ndarray, findings: Findings, multilabel: bool) -> None:
    """Look for an activation after the last layer of a network, whose outputs (N, classes) should be logits."""
    lowest, highest = outputs.min(), outputs.max()
    if outputs.shape[1] > 1 and lowest >= 0 and np.allclose(outputs.sum(1), 1, atol=1e-3):
        findings.add(FAILED, 'the outputs of each image are positive and add up to 1',
                     'remove the softmax at the end of the network: the loss applies it to the outputs')
    elif lowest >= 0 and highest <= 1 and outputs.std() > 0:
        findings.add(FAILED if multilabel else WARNING, f'all outputs lie between {lowest:.2f} and {highest:.2f}',
                     'remove the sigmoid at the end of the network, if it has one: the loss applies it to the outputs')
    elif lowest == 0 and outputs.std() > 0:
        findings.add(WARNING, 'no output is negative, and some are 0',
                     'remove the activation after the last layer, if there is one: outputs must be able to be negative')
    elif outputs.std() == 0:
        findings.add(WARNING, f'all outputs are {lowest:g}', 'check that the outputs depend on the images')


def check_zero_lr(context: Context) -> Verdict:
    """Train with learning rate 0: no parameter may change, and the loss must stay put."""
    findings = Findings()
    num_steps = min(NUM_STEPS, context.steps)
    # look-ahead would change the last bits of parameters that do not move
    config = context.shortened(num_steps, learning_rate=0.0, schedule=cfg.Choice('constant'), warmup=None, lookahead=None)
    with context.variant(config) as setup:
        state = context.initial_state(setup)
        before = setup.backend.fetch(state.params)
        state, scalars = train_steps(setup, state, 0, num_steps)
        after = setup.backend.fetch(state.params)
    groups = setup.experiment.optimizer.groups
    leaves = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after),
                 jax.tree.leaves(groups.indices(before)), strict=True)
    # kernels of groups with normalize are scaled to a fixed norm at any learning rate
    names = [path_name(path) for (path, x), y, group in leaves if not np.array_equal(x, y, equal_nan=True)
             and not (group >= 0 and groups.groups[group].normalize and x.ndim > 1)]
    losses = scalars['loss']
    if names:
        findings.add(FAILED, f'{len(names)} parameters change, such as {names[0]}',
                     'check the optimizer: its updates are not proportional to the learning rate')
    if not np.isfinite(losses).all():
        findings.add(FAILED, 'the loss is not finite', 'check the network, its initialisation, the loss and the data')
    elif num_steps >= 6:
        first, last = losses[:num_steps // 2], losses[num_steps // 2:]
        error = math.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last))
        # seven standard errors, as these are estimated from a few losses, and a difference that is visible
        if abs(last.mean() - first.mean()) > max(7 * error, 0.05 * abs(first.mean())):
            findings.add(WARNING, f'its mean goes from {first.mean():.3f} to {last.mean():.3f}',
                         'check what changes from step to step: the order of the data, BatchNorm statistics, the loss')
    return findings.verdict(f'in {num_steps} steps with learning rate 0, the loss is {losses.mean():.3f}, with deviation '
                            f'{losses.std():.3f} between batches')
