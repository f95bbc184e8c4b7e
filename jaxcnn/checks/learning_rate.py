"""Checks of the two settings that are tuned most: the learning rate and the batch size."""

import dataclasses
import math

import jax
import numpy as np

from jaxcnn import config as cfg
from jaxcnn.analysis import figures
from jaxcnn.checks.base import FAILED, INFORMATION, WARNING, Findings, Verdict
from jaxcnn.checks.context import Context, train_steps
from jaxcnn.checks.figures import smoothed
from jaxcnn.training.state import Weights

LOWEST, HIGHEST = 1e-5, 10.0  # learning rates of the sweep
WARM_UP_FACTOR = 3.0  # how far above the limit a learning rate may be if there is a warm-up
NUM_BATCHES = 20  # of which gradients are measured
BATCH_RATIO = 8


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The loss of a run whose learning rate grows exponentially (Smith 2017, "Cyclical learning rates for training neural
    networks").

    Attributes:
      rates: the learning rate of each step.
      losses: the training loss at each step, before its update.
      smooth: the smoothed losses.
      suggestion: the learning rate at which the loss falls fastest, or None if it does not fall.
      limit: the learning rate from which on the loss rises again, or infinity.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    suggestion: float | None
    limit: float


def evaluate_sweep(rates: np.ndarray, losses: np.ndarray, chance_loss: float = math.inf) -> Sweep:
    """Find the suggestion and the limit of a sweep; see `Sweep`.

    Args:
      rates: the learning rate of each step.
      losses: the loss of each step.
      chance_loss: the loss of outputs that say nothing, to which a network returns that a large learning rate has destroyed.
    """
    finite = np.flatnonzero(~np.isfinite(losses))
    end = int(finite[0]) if len(finite) else len(losses)
    if end < 2:
        return Sweep(rates, losses, losses, None, float(rates[0]))
    start_losses = losses[:min(10, end)]
    start = float(start_losses.mean())
    clipped = np.where(np.isfinite(losses), np.minimum(losses, 10 * abs(start) + 10), 10 * abs(start) + 10)
    smooth = smoothed(clipped)
    lowest = int(smooth[:end].argmin())
    fall = start - float(smooth[lowest])
    if fall < max(0.05 * abs(start), 3 * float(start_losses.std(ddof=1)) / math.sqrt(len(start_losses))):
        risen = np.flatnonzero(smooth > 1.5 * start + 0.1)
        return Sweep(rates, losses, smooth, None, float(rates[risen[0]]) if len(risen) else math.inf)
    slopes = np.gradient(smooth, np.log(rates))[:lowest + 1]
    suggestion = float(rates[int(slopes.argmin())])
    base = min(start, chance_loss)
    rise = 0.5 * (base - float(smooth[lowest]))
    if rise <= 0.025 * abs(base):  # the network has learnt nothing but to give outputs without large errors
        return Sweep(rates, losses, smooth, None, math.inf)
    risen = np.flatnonzero(smooth[lowest:] > smooth[lowest] + rise)
    limit = float(rates[lowest + int(risen[0])]) if len(risen) else math.inf
    return Sweep(rates, losses, smooth, suggestion, limit)


def check_lr_range(context: Context) -> Verdict:
    """Train with a learning rate that grows exponentially, and compare that of the config with the curve of the loss."""
    findings = Findings()
    rate = context.config.optim.learning_rate
    num_steps, highest = context.steps, max(HIGHEST, 3 * rate)
    schedule = cfg.Choice('exponential', {'decay_rate': highest / LOWEST, 'every': {'steps': num_steps}})
    with context.variant(context.shortened(num_steps, learning_rate=LOWEST, schedule=schedule, warmup=None)) as setup:
        _, scalars = train_steps(setup, context.initial_state(setup), 0, num_steps)
    sweep = evaluate_sweep(scalars['learning_rate'].astype(float), scalars['loss'].astype(float),
                           context.chance_loss)
    with figures.warn_on_error(path := context.figure_path('lr_range')):
        draw_sweep(sweep, rate, path)
    if sweep.suggestion is None:
        findings.add(INFORMATION, '', 'see overfit and learns: something else keeps the '
                     'network from learning, or --steps is too small')
    if rate > sweep.limit:
        is_possible = bool(context.config.optim.warmup) and rate < WARM_UP_FACTOR * sweep.limit
        findings.add(WARNING if is_possible else FAILED,
                     f'config.optim.learning_rate={rate:g} is {rate / sweep.limit:.1f} times that',
                     'choose one between that at which the loss falls fastest and half of that from which it rises')
    elif sweep.suggestion and rate < sweep.suggestion / 100:
        findings.add(WARNING, f'config.optim.learning_rate={rate:g} is far below that',
                     'try the learning rate at which the loss falls fastest')
    falls = 'falls at no learning rate' if sweep.suggestion is None else (
        f'falls fastest at learning rate {sweep.suggestion:.2g}')
    rises = f'rises from {sweep.limit:.2g} on' if math.isfinite(sweep.limit) else f'does not rise up to {highest:g}'
    measured = f'the loss {falls} and {rises}'
    if not findings.statuses:
        measured += f'; config.optim.learning_rate={rate:g} is below that'
    return findings.verdict(measured, [
        f'The training loss of a run of {num_steps} steps, in which the learning rate grows from {LOWEST:g} to {highest:g}. '
        'The suggestion is where the loss falls fastest; it suits a schedule that begins with it. Longer training and a '
        'warm-up may take somewhat larger ones.'], ['lr_range'])


def draw_sweep(sweep: Sweep, rate: float, path: str) -> None:
    """Draw the curve of a sweep with the suggestion, the limit and the learning rate of the config."""
    with figures.open_figure(path, 7, 4, layout='constrained', math_text=True) as figure:
        axis = figure.subplots()
        top = np.nanmax(sweep.losses[:10]) * 2
        axis.plot(sweep.rates, np.clip(sweep.losses, None, top), color='0.7', linewidth=1, label='loss of each step')
        axis.plot(sweep.rates, np.clip(sweep.smooth, None, top), linewidth=1.8, label='mean of 7 steps')
        axis.axvline(rate, color='black', linewidth=1.2, label=f'config: {rate:.3g}')
        if sweep.suggestion is not None:
            axis.axvline(sweep.suggestion, color='C1', linestyle='--', label=f'falls fastest: {sweep.suggestion:.2g}')
        if math.isfinite(sweep.limit):
            axis.axvline(sweep.limit, color='C4', linestyle=':', linewidth=1.8, label=f'rises again: {sweep.limit:.2g}')
        axis.set(xscale='log', xlabel='learning rate', ylabel='training loss')
        axis.grid(alpha=0.3)
        axis.legend()


# ---- batch size


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """The simple noise scale of gradients, with the quantities that it is computed from.

    Attributes:
      squared_norm: unbiased estimate of the squared norm of the gradient of all data.
      variance: unbiased estimate of the trace of the covariance of single examples' gradients.
    """

    squared_norm: float
    variance: float

    @property
    def images(self) -> float:
        """The noise scale in images: the batch size at which noise and gradient are equally large; infinite if the gradient
        cannot be told from 0."""
        return self.variance / self.squared_norm if self.squared_norm > 0 else math.inf


def noise_scale(small_batch: int, small_norms: np.ndarray, big_batch: int, big_norms: np.ndarray) -> NoiseScale:
    """Estimate the noise scale from gradients at two batch sizes.

    Reference: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1.

    Args:
      small_batch, big_batch: the batch sizes.
      small_norms, big_norms: norms of the gradients of several batches of each size.
    """
    small, big = float(np.square(small_norms).mean()), float(np.square(big_norms).mean())
    squared_norm = (big_batch * big - small_batch * small) / (big_batch - small_batch)
    variance = (small - big) / (1 / small_batch - 1 / big_batch)
    return NoiseScale(squared_norm, variance)


def _gradient_norms(context: Context, batch_size: int, weights: Weights) -> np.ndarray:
    """Return the norms of the gradients of `NUM_BATCHES` batches, from steps with learning rate 0."""
    config = context.shortened(NUM_BATCHES, learning_rate=0.0, schedule=cfg.Choice('constant'), warmup=None, accumulate=1)
    with context.variant(dataclasses.replace(config, batch_size=batch_size)) as setup:
        params, stats = setup.backend.replicate((weights.params, weights.batch_stats))
        state = dataclasses.replace(context.initial_state(setup), params=params, batch_stats=stats)
        _, scalars = train_steps(setup, state, 0, NUM_BATCHES)
    return scalars['grad_norm']


def check_batch_size(context: Context) -> Verdict:
    """Measure the noise scale of the gradient at the start and in the middle of a short run."""
    findings = Findings()
    big = context.config.batch_size
    small = max(2, big // BATCH_RATIO)
    if small >= big:
        return findings.verdict(f'a batch of {big} is too small to measure the noise of gradients', status=INFORMATION)
    run, scales = context.short_run, []
    for weights in (run.weights[0], run.weights[run.middle]):
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(weights.params)):
            findings.add(WARNING, 'parameters are not finite in a short run', 'see learns and lr_range')
            break
        norms = {size: _gradient_norms(context, size, weights) for size in (small, big)}
        scales.append(noise_scale(small, norms[small], big, norms[big]))
    num_train = context.setup.timeline.num_train

    def describe(images: float) -> str:
        if not (math.isfinite(images) and images > 0):
            return 'not measurable'
        return f'{images:,.0f} images' if images <= num_train else f'more than the {num_train:,} training images'
    texts = [describe(scale.images) for scale in scales]
    final = scales[-1].images if scales else math.inf
    advice = ''
    if 0 < final < big / 10:
        advice = 'a smaller batch would learn about as much in each step'
    elif 10 * big < final <= num_train:
        advice = 'a larger batch, with a larger learning rate, would need fewer steps'
    if advice:
        findings.add(INFORMATION, '', advice)
    moments = ['at the start', f'after {run.middle} steps']
    measured = ', '.join(f'{text} {moment}' for text, moment in zip(texts, moments[:len(texts)], strict=True))
    return findings.verdict(f'the gradient noise scale is {measured}, and the batch size is {big}', [
        'The simple noise scale of McCandlish et al. (2018): the number of images whose mean gradient has as much noise as '
        'signal. Far below it, doubling the batch nearly halves the number of steps; far above it, it hardly changes them. '
        'It grows in the course of training.', '', '| | squared norm of the gradient | variance of an image\'s gradient | '
        'noise scale |', '|---|---|---|---|',
        *(f'| {moment} | {scale.squared_norm:.3g} | {scale.variance:.3g} | {text} |'
          for moment, scale, text in zip(moments, scales, texts, strict=False))], status=INFORMATION)
