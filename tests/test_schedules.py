"""Schedules against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import schedules
from jaxcnn.config import Choice, Duration, parse
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline

PEAK = 0.4


def timeline(steps=20, num_train=100, **fields):
    return Timeline(parse({'duration': {'steps': steps}, 'batch_size': 10, **fields}), num_train)


def constant(n, steps):
    return PEAK


def exponential(n, steps):
    return PEAK * 0.5 ** (n / 4)


def exponential_staircase(n, steps):
    return PEAK * 0.5 ** (n // 4)


def step_at_6_and_10_of_the_run(n, steps):
    at = n + 20 - steps  # steps of the run: the warm-up comes first
    return PEAK * (0.2 if at >= 6 else 1) * (0.2 if at >= 10 else 1)


def cosine(n, steps):
    return PEAK * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * n / steps)))


def cosine_to_zero(n, steps):
    return PEAK * 0.5 * (1 + math.cos(math.pi * n / steps))


def polynomial(n, steps):
    return PEAK * 0.05 + (PEAK - PEAK * 0.05) * (1 - n / steps) ** 2


def linear(n, steps):
    return PEAK * (1 - n / steps)


def one_cycle(n, steps):
    """Cosine from PEAK / 10 to PEAK by a quarter of the steps, then to PEAK / 1000 at the end."""
    def between(a, b, t):
        return b + (a - b) * 0.5 * (1 + math.cos(math.pi * t))
    rise = int(0.25 * steps)
    return between(PEAK / 10, PEAK, n / rise) if n < rise else between(PEAK, PEAK / 1000, (n - rise) / (steps - rise))


def triangle(n, steps):
    return PEAK * float(np.interp(n, [0, int(0.3 * steps), steps], [0.2, 1, 0.1]))


SCHEDULES = [
    (constant, {'name': 'constant'}),
    (exponential, {'name': 'exponential', 'decay_rate': 0.5, 'every': {'steps': 4}}),
    (exponential_staircase, {'name': 'exponential', 'decay_rate': 0.5, 'every': {'steps': 4}, 'staircase': True}),
    (exponential, {'name': 'exponential', 'decay_rate': 0.5, 'every': {'epochs': 0.4}}),
    (exponential, {'name': 'exponential', 'decay_rate': 0.5, 'every': {'fraction': 0.2}}),
    (step_at_6_and_10_of_the_run, {'name': 'step', 'at': [{'steps': 6}, {'epochs': 1}], 'factor': 0.2}),
    (step_at_6_and_10_of_the_run, {'name': 'step', 'at': [{'fraction': 0.5}, {'fraction': 0.3}], 'factor': 0.2}),
    (cosine, {'name': 'cosine', 'end_factor': 0.1}),
    (cosine_to_zero, {'name': 'cosine'}),
    (polynomial, {'name': 'polynomial', 'power': 2, 'end_factor': 0.05}),
    (linear, {'name': 'polynomial'}),
    (one_cycle, {'name': 'one_cycle', 'pct_start': 0.25, 'div_factor': 10, 'final_div_factor': 100}),
    (triangle, {'name': 'triangle', 'peak': 0.3, 'start_factor': 0.2, 'end_factor': 0.1}),
    (constant, {'name': 'plateau'}),
]


@pytest.mark.parametrize('warmup', [0, 1, 5], ids='warmup {}'.format)
@pytest.mark.parametrize(('form', 'choice'), SCHEDULES, ids=lambda x: x['name'] if isinstance(x, dict) else x.__name__)
def test_a_schedule_is_its_closed_form_after_the_warm_up(form, choice, warmup):
    t = timeline(20)
    choice = Choice(choice['name'], {k: v for k, v in choice.items() if k != 'name'})
    schedule = schedules.make_schedule(choice, PEAK, Duration('steps', warmup) if warmup else None, t, 0, 20)
    expected = [PEAK * (n + 1) / warmup for n in range(warmup)] + [form(n, 20 - warmup) for n in range(20 - warmup)]
    np.testing.assert_allclose([schedule(n) for n in range(20)], expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.arange(20)), expected, rtol=2e-5, atol=1e-7)


def test_every_schedule_is_in_that_test():
    assert {choice['name'] for _, choice in SCHEDULES} == set(schedules.names())


def test_a_warm_up_that_is_rounded_up_to_the_only_step_has_the_peak_rate():
    for steps, warmup in ((1, Duration('epochs', 0.1)), (1, Duration('steps', 1))):
        assert schedules.make_schedule(Choice('cosine'), PEAK, warmup, timeline(steps), 0, steps)(0) == pytest.approx(PEAK)
    with pytest.raises(UserError, match='the stage is over after 2'):
        schedules.make_schedule(Choice('cosine'), PEAK, Duration('steps', 2), timeline(2), 0, 2)


def test_a_later_stage_has_its_schedule_over_itself_alone():
    t = timeline(20)
    schedule = schedules.make_schedule(Choice('cosine'), PEAK, Duration('steps', 2), t, 8, 20)
    np.testing.assert_allclose([schedule(n) for n in range(12)],
                               [PEAK / 2, PEAK] + [cosine_to_zero(n, 10) for n in range(10)], rtol=2e-5)
    choice = Choice('step', {'at': [{'steps': 5}, {'steps': 11}], 'factor': 0.5})
    steps = schedules.make_schedule(choice, PEAK, None, t, 8, 20)
    np.testing.assert_allclose([steps(n) for n in (0, 2, 3)], [PEAK / 2, PEAK / 2, PEAK / 4], rtol=1e-6)


def test_a_warm_up_in_epochs_is_in_steps_of_the_batch():
    schedule = schedules.make_schedule(Choice('constant'), PEAK, Duration('epochs', 0.4), timeline(20), 0, 20)
    np.testing.assert_allclose([schedule(n) for n in range(6)], PEAK * np.array([.25, .5, .75, 1, 1, 1]), rtol=1e-6)


def test_a_stage_after_the_batch_size_grew_counts_its_own_epochs():
    config = parse(dict(duration=dict(epochs=40), batch_size=100, batch_schedule=[(dict(epochs=20), 400)]))
    t = Timeline(config, 4000)  # 40 steps an epoch, then 10
    warm = schedules.make_schedule(Choice('constant'), PEAK, Duration('epochs', 1), t, 800, 1000)
    np.testing.assert_allclose([warm(n) for n in (0, 8, 9, 10)], PEAK * np.array([.1, .9, 1, 1]), rtol=1e-5)
    halves = Choice('exponential', {'decay_rate': 0.5, 'every': {'epochs': 2}, 'staircase': True})
    for start, end, steps in ((0, 800, 80), (800, 1000, 20)):
        schedule = schedules.make_schedule(halves, PEAK, None, t, start, end)
        found = [schedule(n) for n in (steps - 1, steps, 2 * steps)]
        np.testing.assert_allclose(found, PEAK * np.array([1, .5, .25]), rtol=1e-5)
    with pytest.raises(UserError, match=r"exponential: every: .*'epochs': 2.* batch size .*in steps"):
        schedules.make_schedule(halves, PEAK, None, t, 0, 1000)
    by_steps = Choice('exponential', {'decay_rate': 0.5, 'every': {'steps': 80}})
    np.testing.assert_allclose(schedules.make_schedule(by_steps, PEAK, None, t, 0, 1000)(160), PEAK / 4, rtol=1e-5)
