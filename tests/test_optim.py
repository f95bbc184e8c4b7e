"""Optimizers against their published updates, in plain NumPy."""

import contextlib
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import optim, schedules
from jaxcnn.config import parse
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline


def make(steps=20, **fields):
    config = parse({'duration': {'steps': steps}, 'batch_size': 10, 'optim': {'schedule': 'constant', **fields}})
    return optim.make_optimizer(config.optim, Timeline(config, 100))


@pytest.mark.parametrize(('fields', 'line'), [
    ({'schedule': 'cosin'}, r"unknown schedule 'cosin'; nearest: cosine"),
    ({'schedule': {'name': 'cosine', 'end_facter': 0.1}},
     r"unknown argument of schedule cosine 'end_facter'; nearest: end_factor"),
    ({'schedule': {'name': 'constant', 'lr': 0.1}}, r"unknown argument of schedule constant 'lr'; known: none"),
    ({'schedule': {'name': 'exponential', 'every': {'epoch': 3}}},
     r"schedule exponential: every: .*'epoch'; nearest: epochs"),
    ({'schedule': {'name': 'exponential', 'every': 3}}, r'schedule exponential: every: expected a duration'),
    ({'schedule': {'name': 'step', 'at': 3}}, r'schedule step: at must be a sequence of durations, got 3'),
    ({'schedule': {'name': 'step', 'at': [{'steps': -1}]}}, r'schedule step: at\[0\]\.steps: .*positive'),
    ({'schedule': {'name': 'step', 'at': [{'steps': 10}, {'epochs': 1}]}}, r'schedule step: two of .* fall on one step'),
    ({'schedule': {'name': 'exponential', 'staircase': 'false'}}, r"staircase: expected True or False, got 'false'"),
    ({'schedule': {'name': 'exponential', 'decay_rate': -0.5}}, r'exponential: decay_rate must be above 0, got -0\.5'),
    ({'schedule': {'name': 'polynomial', 'power': -1}}, r'polynomial: power must be above 0, got -1'),
    ({'schedule': {'name': 'one_cycle', 'pct_start': 30}}, r'one_cycle: pct_start must be between 0 and 1, got 30'),
    ({'schedule': {'name': 'one_cycle', 'pct_start': 0.05, 'reach_end': True}}, r'pct_start must leave .* 0\.05 of 20'),
    ({'schedule': {'name': 'cosine', 'end_factor': -1}}, r'optim\.schedule: cosine .* a learning rate of -.* at step'),
    ({'schedule': {'name': 'triangle', 'start_factor': -1}}, r'optim\.schedule: triangle .* rate of -0\.1 at step 0'),
    ({'switch': [{'at': {'steps': 15}, 'warmup': {'steps': 5}}]}, r'config\.optim\.switch\[0\]\.warmup: .* over after 5'),
    ({'switch': [{'at': {'steps': 15}, 'schedule': {'name': 'cosine', 'end_factor': -1}}]},
     r'config\.optim\.switch\[0\]\.schedule: cosine'),
    ({'optimizer': {'name': 'sgd', 'nesterov': 'false'}}, r"optimizer\.nesterov: expected True or False, got 'false'"),
    ({'groups': [{'match': 'bias', 'optimizer': {'name': 'muon', 'weight_decay': 0.1}}]},
     r'config\.optim\.groups\[0\]\.optimizer\.weight_decay: cannot be set; set config\.optim\.weight_decay'),
    ({'optimizer': 'noisy_sgd'}, r"unknown optimizer 'noisy_sgd'"),
    ({'warmup': {'steps': 20}}, r"config\.optim\.warmup: \{'steps': 20\} is 20 steps, and the stage is over after 20"),
    ({'schedule': {'name': 'plateau', 'factor': 2.0}}, r'config\.optim\.schedule: plateau with .*2\.0'),
    ({'optimizer': 'adamm'}, r"unknown optimizer 'adamm'; nearest: adam"),
    ({'optimizer': {'name': 'sgd', 'momentun': 0.9}}, r"unknown argument of optimizer sgd 'momentun'; nearest: momentum"),
    ({'optimizer': {'name': 'adamw', 'weight_decay': 0.1}},
     r'config\.optim\.optimizer\.weight_decay: cannot be set; set config\.optim\.weight_decay and decay_mask instead'),
    ({'optimizer': {'name': 'adamw', 'mask': None}},
     r'config\.optim\.optimizer\.mask: cannot be set; set config\.optim\.weight_decay'),
    ({'optimizer': {'name': 'sgd', 'learning_rate': 0.1}},
     r'config\.optim\.optimizer\.learning_rate: cannot be set; set config\.optim\.learning_rate instead'),
    ({'l2': 0.1, 'decay_mask': '('}, r"config\.optim\.decay_mask: '\(' is no regular expression"),
    ({'schedule': {'name': 'triangle', 'peak': 0.01}}, r'schedule triangle: peak must leave steps .* got 0\.01 of 20 steps'),
    ({'groups': [{'match': '*'}]}, r"config\.optim\.groups\[0\]\.match: '\*' is no regular expression"),
    ({'groups': [{'rate': 2.0}]}, r'config\.optim\.groups\[0\]\.match: expected a regular expression'),
    ({'groups': [{'match': 'bias', 'rate': -1.0}]}, r'config\.optim\.groups\[0\]\.rate: expected at least 0, got -1'),
    ({'groups': [{'match': 'bias', 'optimizer': 'mouon'}]},
     r"unknown optimizer 'mouon'; nearest: muon"),
    ({'lookahead': {'slow_step_size': 0}}, r'config\.optim\.lookahead\.slow_step_size: expected a finite number above 0'),
    ({'optimizer': {'name': 'muon', 'muon_weight_dimension_numbers': 1}},
     r"unknown argument of optimizer muon 'muon_weight_dimension_numbers'"),
])
def test_what_makes_no_optimizer_is_reported_in_one_line(fields, line):
    with pytest.raises(UserError, match=line) as error:
        make(**fields)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('decay', ['l2', 'weight_decay'])
def test_a_mask_that_is_found_in_no_parameter_is_reported(decay):
    optimizer = make(**{decay: 0.1}, decay_mask='kernle')
    with pytest.raises(UserError, match=r"config\.optim\.decay_mask: 'kernle' matches no parameter; nearest: .*kernel"):
        optimizer.init({'Dense_0': {'kernel': jnp.ones(2), 'bias': jnp.ones(2)}})


# ---- optimizers

START = {'dense': {'kernel': np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), 'bias': np.array([0.1, -0.3], np.float32)},
         'bn': {'scale': np.array([1.0, 1.5], np.float32)}}


def gradients(steps):
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), START) for _ in range(steps)]


def trained(optimizer, grads, params=START, stage=0, state=None):
    """Parameters after each gradient, through one jitted update; and the last state."""
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, stage, jnp.float32(1)))
    state = optimizer.init(params) if state is None else state
    after = []
    for g in grads:
        updates, state = update(g, state, params)
        params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
        after.append(params)
    return after, state


def by_hand(rule, grads, params=START):
    """Parameters after each gradient, where `rule(n, p, g, memory)` gives the n-th (from 1) new value of an array."""
    leaves, tree = jax.tree.flatten(jax.tree.map(np.float64, params))
    memories = [{} for _ in leaves]
    after = []
    for n, g in enumerate(grads, 1):
        leaves = [rule(n, p, np.float64(x), m) for p, x, m in zip(leaves, jax.tree.leaves(g), memories, strict=True)]
        after.append(jax.tree.unflatten(tree, leaves))
    return after


def sgd(n, p, g, m):
    return p - 0.1 * g


def momentum(n, p, g, m):
    m['v'] = 0.9 * m.get('v', 0) + g
    return p - 0.1 * m['v']


def nesterov(n, p, g, m):
    m['v'] = 0.9 * m.get('v', 0) + g
    return p - 0.1 * (g + 0.9 * m['v'])


def adagrad(n, p, g, m):  # Duchi et al. 2011; optax begins the sum at 0.1
    m['s'] = m.get('s', 0.1) + g ** 2
    return p - 0.1 * g / np.sqrt(m['s'] + 1e-7)


def rmsprop(n, p, g, m):  # Tieleman & Hinton 2012
    m['s'] = 0.8 * m.get('s', 0) + 0.2 * g ** 2
    return p - 0.1 * g / np.sqrt(m['s'] + 1e-8)


def adam(n, p, g, m, b1=0.8, b2=0.95, eps=1e-8):  # Kingma & Ba 2015, algorithm 1
    m['m'] = b1 * m.get('m', 0) + (1 - b1) * g
    m['v'] = b2 * m.get('v', 0) + (1 - b2) * g ** 2
    return p - 0.1 * (m['m'] / (1 - b1 ** n)) / (np.sqrt(m['v'] / (1 - b2 ** n)) + eps)


def nadam(n, p, g, m, b1=0.8, b2=0.95, eps=1e-8):  # Dozat 2016, with a constant momentum
    m['m'] = b1 * m.get('m', 0) + (1 - b1) * g
    m['v'] = b2 * m.get('v', 0) + (1 - b2) * g ** 2
    ahead = b1 * m['m'] / (1 - b1 ** (n + 1)) + (1 - b1) * g / (1 - b1 ** n)
    return p - 0.1 * ahead / (np.sqrt(m['v'] / (1 - b2 ** n)) + eps)


ADAM = {'name': 'adam', 'b1': 0.8, 'b2': 0.95}


@pytest.mark.parametrize(('rule', 'choice'), [
    (sgd, 'sgd'), (momentum, {'name': 'sgd', 'momentum': 0.9}),
    (nesterov, {'name': 'sgd', 'momentum': 0.9, 'nesterov': True}), (adagrad, 'adagrad'),
    (rmsprop, {'name': 'rmsprop', 'decay': 0.8}), (adam, ADAM), (adam, {**ADAM, 'name': 'adamw'}),
    (nadam, {**ADAM, 'name': 'nadam'}), (nadam, {**ADAM, 'name': 'nadamw'}),
], ids=['sgd', 'momentum', 'nesterov', 'adagrad', 'rmsprop', 'adam', 'adamw without decay', 'nadam', 'nadamw without decay'])
def test_an_optimizer_is_its_published_update(rule, choice):
    grads = gradients(5)
    after, _ = trained(make(optimizer=choice, learning_rate=0.1), grads)
    chex.assert_trees_all_close(after, by_hand(rule, grads), rtol=2e-5, atol=1e-6)


DTYPES = ['float32', 'bfloat16']


def small_params(dtype):
    return {'kernel': jnp.full((4, 3), 0.5, dtype), 'bias': jnp.full(3, 0.1, dtype)}


def scan_steps(name, params):
    """Parameters and losses of three steps. A state that changes its structure or its types fails in the scan."""
    optimizer = make(optimizer=name, learning_rate=0.01)

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: sum(jnp.sum((x - 0.3) ** 2) for x in jax.tree.leaves(p)))(params)
        updates, state = optimizer.update(grads, state, params, 0, loss)
        return (optax.apply_updates(params, updates), state), loss

    try:
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=3)
    except Exception as e:
        e.add_note(f'optimizer {name}')
        raise
    return params, losses


@pytest.fixture(scope='module')
def results_of_all_optimizers():
    """Parameters and losses by name and dtype, from one compiled program, which takes less time than one for each."""
    starts = {dtype: small_params(dtype) for dtype in DTYPES}
    return jax.jit(lambda starts: {(name, dtype): scan_steps(name, starts[dtype])
                                   for name in optim.optimizer_names() for dtype in DTYPES})(starts)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', optim.optimizer_names())
def test_every_optimizer_takes_finite_steps_that_keep_shapes_and_types(name, dtype, results_of_all_optimizers):
    params, losses = results_of_all_optimizers[name, dtype]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, small_params(dtype))
    chex.assert_tree_all_finite((params, losses))
    assert losses[2] < losses[0] or dtype == 'bfloat16'  # which holds no small steps


def test_every_optimizer_of_optax_is_offered_or_excluded_by_name():
    """Whatever kind of object it is: a function, a partial, compiled."""
    public = set()
    for module in (optax, optax.contrib):
        for name, make in vars(module).items():
            if name.startswith(('_', 'scale_by')) or isinstance(make, type):
                continue
            with contextlib.suppress(TypeError, ValueError):  # no callable, or one without a signature
                if {'learning_rate', 'max_learning_rate'} & {*inspect.signature(make).parameters}:
                    public.add(name)
    assert {'adam', 'nadam', 'nadamw', 'muon', 'polyak_sgd'} <= public
    assert public - optim.EXCLUDED - {'schedule_free'} == {*optim.optimizer_names()}  # schedule_free wraps an optimizer


@pytest.mark.parametrize('name', ['lbfgs', 'sophia', 'dpsgd', 'schedule_free_sgd', 'schedule_free_adamw', 'apply_updates',
                                  'scale_by_learning_rate', 'noisy_sgd'])
def test_what_needs_more_than_gradients_is_not_offered(name):
    assert name not in optim.optimizer_names()


# ---- decay, L2, clipping


def kernels_only(rule_of_kernel, rule_of_others, grads):
    """by_hand with one rule for the kernel and another for bias and scale."""
    def rule(n, p, g, m):
        return (rule_of_kernel if p.ndim == 2 else rule_of_others)(n, p, g, m)
    return by_hand(rule, grads)


def test_l2_is_added_to_the_gradient_of_kernels_and_passes_through_the_optimizer():
    grads = gradients(4)
    for choice, rule in (({'name': 'sgd', 'momentum': 0.9}, momentum), (ADAM, adam)):
        after, _ = trained(make(optimizer=choice, learning_rate=0.1, l2=0.3), grads)
        expected = kernels_only(lambda n, p, g, m, rule=rule: rule(n, p, g + 0.3 * p, m), rule, grads)
        chex.assert_trees_all_close(after, expected, rtol=2e-5, atol=1e-6)


def test_l1_adds_the_sign_of_the_parameters_that_its_mask_matches():
    grads = gradients(4)
    after, _ = trained(make(optimizer='sgd', learning_rate=0.1, l1=0.3, l1_mask='kernel$'), grads)
    expected = kernels_only(lambda n, p, g, m: sgd(n, p, g + 0.3 * np.sign(p), m), sgd, grads)
    chex.assert_trees_all_close(after, expected, rtol=2e-5, atol=1e-6)


def test_decoupled_decay_takes_the_scheduled_rate_of_kernels_beside_the_optimizer():
    grads = gradients(4)
    for choice, rule in (({'name': 'sgd', 'momentum': 0.9}, momentum), (ADAM, adam)):
        after, _ = trained(make(optimizer=choice, learning_rate=0.1, weight_decay=0.3), grads)
        expected = kernels_only(lambda n, p, g, m, rule=rule: rule(n, p, g, m) - 0.1 * 0.3 * p, rule, grads)
        chex.assert_trees_all_close(after, expected, rtol=2e-5, atol=1e-6)


def test_decay_follows_the_schedule():
    zeros = [jax.tree.map(np.zeros_like, START)] * 4
    after, _ = trained(make(steps=4, learning_rate=0.2, weight_decay=0.5, schedule={'name': 'polynomial'},
                            optimizer='sgd'), zeros)
    expected = START['dense']['kernel'] * np.cumprod([1 - 0.5 * 0.2 * r for r in (1, 0.75, 0.5, 0.25)])[:, None, None]
    np.testing.assert_allclose(np.stack([p['dense']['kernel'] for p in after]), expected, rtol=1e-6)
    chex.assert_trees_all_equal(after[-1]['dense']['bias'], START['dense']['bias'])
    chex.assert_trees_all_equal(after[-1]['bn'], START['bn'])


def test_decay_of_adamw_is_that_of_optax():
    grads = gradients(4)
    after, _ = trained(make(optimizer='adamw', learning_rate=0.1, weight_decay=0.3, decay_mask=''), grads)
    theirs = optax.adamw(0.1, weight_decay=0.3)
    params, state, update = START, theirs.init(START), jax.jit(theirs.update)
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(after[-1], params, rtol=1e-5)


def test_the_mask_is_searched_in_the_path():
    tree = {'Conv_0': {'kernel': 1, 'bias': 2}, 'BatchNorm_0': {'scale': 3, 'bias': 4}, 'kernel_like': {'x': 5}}

    def found(pattern):
        return optim.path_mask(pattern, 'config.optim.decay_mask')(tree)

    default = parse({}).optim.decay_mask
    assert found(default) == {'Conv_0': {'kernel': True, 'bias': False}, 'BatchNorm_0': {'scale': False, 'bias': False},
                              'kernel_like': {'x': False}}
    assert found('^Conv_0/') == {'Conv_0': {'kernel': True, 'bias': True}, 'BatchNorm_0': {'scale': False, 'bias': False},
                                 'kernel_like': {'x': False}}
    assert jax.tree.leaves(found('')) == [True] * 5
    assert jax.tree.leaves(found(r'Norm_\d+/(scale|bias)$')).count(True) == 2


# ---- groups


def test_a_group_has_its_rate_and_decays_as_the_others_do():
    grads = gradients(4)
    groups = ({'match': '^dense/bias', 'rate': 4.0}, {'match': 'dense', 'rate': 0.5})  # the first that finds it
    after, _ = trained(make(optimizer={'name': 'sgd', 'momentum': 0.9}, learning_rate=0.1, decay_mask='', l2=0.3,
                            weight_decay=0.2, groups=groups), grads)
    leaves, tree = jax.tree.flatten_with_path(START)
    rates = [4.0 if 'bias' in str(path) else 0.5 if 'dense' in str(path) else 1.0 for path, _ in leaves]
    params, speeds, expected = [np.float64(p) for _, p in leaves], [0.0] * len(leaves), []
    for g in grads:
        for i, (x, rate) in enumerate(zip(jax.tree.leaves(g), rates, strict=True)):
            speeds[i] = 0.9 * speeds[i] + x + 0.3 / rate * params[i]
            params[i] = params[i] - 0.1 * rate * speeds[i] - 0.1 * 0.2 * params[i]
        expected.append(tree.unflatten(params))
    chex.assert_trees_all_close(after, expected, rtol=2e-5, atol=1e-6)


def test_groups_stay_as_they_begin_or_from_a_moment_on():
    grads = gradients(6)
    groups = ({'match': 'kernel', 'rate': 0.0}, {'match': 'bias', 'until': {'steps': 3}})
    optimizer = make(optimizer={'name': 'sgd', 'momentum': 0.9}, learning_rate=0.1, weight_decay=0.1, l2=0.1, decay_mask='',
                     groups=groups)
    after, _ = trained(optimizer, grads)
    for step, params in enumerate(after, 1):
        np.testing.assert_array_equal(params['dense']['kernel'], START['dense']['kernel'])
        moved = params['dense']['bias'] != (after[step - 2] if step > 1 else START)['dense']['bias']
        assert moved.all() == moved.any() == (step <= 3)
        assert np.all(params['bn']['scale'] != (after[step - 2] if step > 1 else START)['bn']['scale'])
    for step in (2, 3):
        zeroed = optimizer.groups.mask_gradients(grads[0], step)
        assert not zeroed['dense']['kernel'].any()
        np.testing.assert_array_equal(zeroed['dense']['bias'], grads[0]['dense']['bias'] * (step < 3))
        np.testing.assert_array_equal(zeroed['bn']['scale'], grads[0]['bn']['scale'])


def test_a_group_in_a_later_stage_stays_until_a_moment_of_the_run():
    optimizer = make(learning_rate=0.1, optimizer='sgd', groups=({'match': 'bias', 'until': {'steps': 12}},),
                     switch=({'at': {'steps': 10}},))
    after, _ = trained(optimizer, gradients(4), stage=1)
    moved = [np.any(b['dense']['bias'] != a['dense']['bias']) for a, b in zip([START, *after], after, strict=False)]
    assert moved == [True, True, False, False]


def test_a_group_has_its_own_optimizer():
    grads = gradients(4)
    after, _ = trained(make(optimizer='sgd', learning_rate=0.1, groups=({'match': 'kernel', 'optimizer': ADAM},)), grads)
    chex.assert_trees_all_close(after, kernels_only(adam, sgd, grads), rtol=2e-5, atol=1e-6)


def test_a_group_that_is_no_parameter_is_reported():
    with pytest.raises(UserError, match=r"groups\[0\]\.match: 'kernle' matches no parameter; nearest: .*kernel"):
        make(groups=({'match': 'kernle'},)).init(START)


def test_muon_makes_each_kernel_a_product_of_its_features_and_the_rest_is_adams():
    """Jordan 2024: momentum, made nearly orthogonal by five Newton-Schulz iterations."""
    rng = np.random.default_rng(0)
    params = {'kernel': rng.normal(size=(3, 3, 4, 8)).astype(np.float32), 'bias': np.ones(3, np.float32),
              'class_token': np.ones((1, 1, 4), np.float32)}
    grads = [jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params) for _ in range(3)]
    after, _ = trained(make(optimizer={'name': 'muon', 'beta': 0.6, 'adam_b1': 0.8, 'adam_b2': 0.95}, learning_rate=0.1),
                       grads, params)
    kernel, speed = np.float64(params['kernel']), 0.0
    for n, (g, found) in enumerate(zip(grads, after, strict=True), 1):
        speed = 0.6 * speed + 0.4 * g['kernel']
        ahead = 0.6 * speed / (1 - 0.6 ** (n + 1)) + 0.4 * g['kernel'] / (1 - 0.6 ** n)
        x = ahead.reshape(36, 8).T.astype(np.float64)
        x /= np.linalg.norm(x)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        assert np.linalg.svd(x, compute_uv=False).min() > 0.5
        kernel = kernel - 0.1 * x.T.reshape(3, 3, 4, 8)
        np.testing.assert_allclose(found['kernel'], kernel, rtol=1e-3, atol=1e-4)
    for name in ('bias', 'class_token'):
        moved = np.abs(after[0][name] - params[name])  # by Adam's first step, as far for each number
        np.testing.assert_allclose(moved, moved.max(), rtol=1e-3)
        assert moved.max() > 0.01


def test_a_groups_kernels_are_normalised_before_each_step():
    grads = gradients(3)
    fields = dict(optimizer='sgd', learning_rate=0.1, groups=({'match': 'dense', 'rate': 3.0, 'normalize': True},))
    after, _ = trained(make(**fields), grads)
    p = START
    for g, found in zip(grads, after, strict=True):
        kernel = p['dense']['kernel'] * 2 ** 0.5 / np.linalg.norm(p['dense']['kernel'])
        p = {'dense': {'kernel': kernel - 0.3 * g['dense']['kernel'], 'bias': p['dense']['bias'] - 0.3 * g['dense']['bias']},
             'bn': {'scale': p['bn']['scale'] - 0.1 * g['bn']['scale']}}
        chex.assert_trees_all_close(found, p, rtol=2e-5, atol=1e-6)
    with pytest.raises(UserError, match=r'config\.optim\.groups: normalize cannot be combined with the schedule plateau'):
        make(**{**fields, 'schedule': 'plateau'})


def test_gradients_are_clipped_by_their_global_norm_before_l2_is_added():
    grads = gradients(3)
    norms = [math.sqrt(sum(float((x ** 2).sum()) for x in jax.tree.leaves(g))) for g in grads]
    limit = sorted(norms)[1]  # clips one, leaves one, and one at the limit
    factors = [min(1, limit / norm) for norm in norms]
    clipped = [jax.tree.map(lambda x, f=f: x * f, g) for g, f in zip(grads, factors, strict=True)]
    after, _ = trained(make(optimizer='sgd', learning_rate=0.1, clip_norm=limit, l2=0.3), grads)
    expected = kernels_only(lambda n, p, g, m: sgd(n, p, g + 0.3 * p, m), sgd, clipped)
    chex.assert_trees_all_close(after, expected, rtol=2e-5, atol=1e-6)


# ---- stages


def test_a_later_stage_begins_afresh_and_leaves_the_state_of_the_other_alone():
    optimizer = make(steps=10, optimizer={'name': 'sgd', 'momentum': 0.9}, learning_rate=0.1,
                     switch=[{'at': {'steps': 3}, 'optimizer': ADAM}])
    grads = gradients(5)
    first, state = trained(optimizer, grads[:3])
    assert len(state) == 2
    chex.assert_trees_all_equal(state[1], optimizer.init(START)[1])
    second, later = trained(optimizer, grads[3:], params=first[-1], stage=1, state=state)
    chex.assert_trees_all_equal(later[0], state[0])
    chex.assert_trees_all_close(first, by_hand(momentum, grads[:3]), rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_close(second, by_hand(adam, grads[3:], params=first[-1]), rtol=2e-5, atol=1e-6)


def test_what_a_stage_leaves_out_stays_as_in_the_one_before_but_for_the_warm_up():
    optimizer = make(steps=20, learning_rate=0.1, schedule='cosine', warmup={'steps': 2},
                     switch=[{'at': {'steps': 8}, 'learning_rate': 0.01}, {'at': {'steps': 12}, 'schedule': 'constant'}])
    state = optimizer.init(START)

    def rates(stage, steps):
        return [float(optimizer.learning_rate(state, jnp.int32(s), stage)) for s in steps]

    def cosine_of(peak, n, steps):
        return peak * 0.5 * (1 + math.cos(math.pi * n / steps))

    np.testing.assert_allclose(rates(0, (0, 1, 2, 5)), [0.05, 0.1, 0.1, cosine_of(0.1, 3, 6)], rtol=1e-5)
    np.testing.assert_allclose(rates(1, (8, 10)), [0.01, cosine_of(0.01, 2, 4)], rtol=1e-5)
    np.testing.assert_allclose(rates(2, (12, 19)), [0.01, 0.01], rtol=1e-5)


def test_the_reported_rate_is_the_rate_applied():
    optimizer = make(steps=6, optimizer='sgd', learning_rate=0.1, schedule='cosine', warmup={'steps': 2})
    ones = [jax.tree.map(np.ones_like, START)] * 6
    after, state = trained(optimizer, ones)
    bias = np.array([START['dense']['bias'][0]] + [p['dense']['bias'][0] for p in after])
    reported = [float(optimizer.learning_rate(state, jnp.int32(n), 0)) for n in range(6)]
    np.testing.assert_allclose(-np.diff(bias), reported, rtol=1e-4, atol=1e-7)


# ---- plateau


def plateau(**fields):
    return make(optimizer='sgd', learning_rate=0.1, weight_decay=0.5,
                schedule={'name': 'plateau', 'factor': 0.5, 'patience': 2, 'rtol': 1e-4, **fields})


def rates_after(optimizer, losses):
    state, found = jax.tree.map(np.asarray, optimizer.init(START)), []
    for loss in losses:
        state = optimizer.observe(state, 0, loss)
        found.append(round(float(optimizer.learning_rate(state, jnp.int32(3), 0)), 6))
    return found


def test_a_plateau_lowers_the_rate_after_patience_evaluations_without_a_better_one():
    assert rates_after(plateau(), [1.0, 0.9, 0.9, 0.95, 0.8, 0.9, 0.9, 0.9, 0.9, 0.7]) == [
        0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125]


def test_a_plateau_waits_for_its_cooldown_and_stops_at_its_smallest_scale():
    assert rates_after(plateau(patience=1, cooldown=2), [1.0] + [2.0] * 5) == [0.1, 0.05, 0.05, 0.05, 0.025, 0.025]
    assert rates_after(plateau(patience=1, min_scale=0.3), [1.0] + [2.0] * 3) == [0.1, 0.05, 0.03, 0.03]


def test_a_plateau_scales_the_update_and_its_decay():
    optimizer = plateau(patience=1)
    grads = gradients(1)
    (before,), state = trained(optimizer, grads)
    for loss in (1.0, 2.0):
        state = optimizer.observe(state, 0, loss)
    (after,), _ = trained(optimizer, grads, state=state)
    chex.assert_trees_all_close(jax.tree.map(np.subtract, after, START),
                                jax.tree.map(lambda a, b: (a - b) / 2, before, START), rtol=1e-4, atol=1e-6)


def test_training_steps_do_not_move_a_plateau_and_only_a_plateau_observes():
    optimizer = plateau(patience=1)
    _, state = trained(optimizer, gradients(4))
    assert float(optimizer.learning_rate(state, jnp.int32(4), 0)) == pytest.approx(0.1)
    assert optimizer.observed_metric(0) == 'loss'
    assert plateau(metric='accuracy').observed_metric(0) == 'accuracy'
    other = make(optimizer='sgd', learning_rate=0.1)
    assert not other.observed_metric(0)
    state = other.init(START)
    assert other.observe(state, 0, 1.0) is state


# ---- registered optimizers and schedules, and what is not said


def test_a_registered_optimizer_is_named_as_the_others_are(new_registrations):
    @optim.register
    def sign(learning_rate, scale=1.0):
        return optax.chain(optax.stateless(lambda g, _: jax.tree.map(lambda x: scale * jnp.sign(x), g)),
                           optax.scale_by_learning_rate(learning_rate))
    grads = gradients(3)
    after, _ = trained(make(optimizer=dict(name='sign', scale=2.0), learning_rate=0.1), grads)
    chex.assert_trees_all_close(after, by_hand(lambda n, p, g, m: p - 0.2 * np.sign(g), grads), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="optimizer sign 'scael'; nearest: scale"):
        make(optimizer=dict(name='sign', scael=2.0))


@pytest.mark.parametrize('fields', [{}, {'groups': [dict(match='kernel', optimizer='mine')]}])
def test_a_registered_optimizer_must_return_an_optax_transformation(new_registrations, fields):
    @optim.register
    def mine(learning_rate):
        return lambda gradients: gradients
    field = r'groups\[0\]\.optimizer' if fields else 'optimizer'
    with pytest.raises(UserError, match=rf"^config\.optim\.{field}: the function of 'mine' returns function, and must "
                       r'return an optax\.GradientTransformation$'):
        optim.check(parse({'optim': fields or {'optimizer': 'mine'}}).optim)


@pytest.mark.parametrize(('schedule', 'line'), [
    (0.1, r"the function of 'mine' returns float, and must return an optax\.Schedule: a function from the step to the "),
    (lambda step: None, r"the schedule of 'mine' returns NoneType, and must return a number, the learning rate"),
    (lambda step: jnp.ones(3), r'returns an array of shape \(3,\), and must return a number'),
    (lambda step: 0.1 if step < 10 else 0.01, r"cannot be compiled: it uses the step as a Python number, .*; jnp\.where")])
def test_a_registered_schedule_must_return_a_function_from_steps_to_numbers(new_registrations, schedule, line):
    @schedules.register
    def mine(learning_rate, interval):
        return schedule
    with pytest.raises(UserError, match=rf'^config\.optim\.schedule: .*{line}') as error:
        make(schedule='mine')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('fields', 'warns'), [
    ({'optimizer': 'adamw'}, True), ({'optimizer': 'adamw', 'weight_decay': 0.1}, False), ({'optimizer': 'adam'}, False),
    ({'optimizer': 'adam', 'switch': [dict(optimizer='lion')]}, True)])
def test_an_optimizer_named_for_its_decay_without_any_is_reported(fields, warns, caplog):
    optim.check(parse({'optim': fields}).optim)
    assert ('without weight decay' in caplog.text) == warns
