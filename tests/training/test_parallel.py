"""The same global batch gives the same parameters however it is spread over devices."""

import jax
import numpy as np
import pytest

from jaxcnn import config
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline
from jaxcnn.training import parallel
from jaxcnn.training.entry_point import train
from jaxcnn.training.loop import TrainingRun
from jaxcnn.training.signals import StopRequest

pytestmark = pytest.mark.usefixtures('no_pictures')


def trained_state(settings, folder, steps=4):
    """The host state after `steps`; in more of them a rectifier's input near zero may be rounded to its other side, and from
    then on runs differ by a thousandth."""
    folder.joinpath('figures').mkdir(parents=True)
    run = TrainingRun(config.parse(settings), str(folder), StopRequest())
    with run:
        while run.step < steps:
            run.advance(config.Duration('steps', 1000))
        state = run.setup.backend.fetch(run.state)
    return state


def relative_difference(a, b):
    flat_a, flat_b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(
        (s.params, s.batch_stats, s.ema, s.slow))]) for s in (a, b))
    return np.linalg.norm(flat_a - flat_b) / np.linalg.norm(flat_b)


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    cache = {}

    def get(small, **fields):
        key = str(fields)
        if key not in cache:
            cache[key] = trained_state(small(**fields), tmp_path_factory.mktemp('reference'))
        return cache[key]
    return get


OPTIONS = dict(
    whiten=dict(match='Conv_0/kernel'), eval={'tta': 'flip_shift'}, parallel={'steps_per_dispatch': 2},
    data={'augment': 'alternating_flip|pad_crop(1, "reflect")', 'per_class': 10}, optim={
        'accumulate': 2, 'ema_decay': 0.9, 'clip_norm': 1.0,
        'lookahead': dict(every=2, ramp=1.0), 'l2': 1e-3, 'decay_mask': '', 'groups': (
            dict(match='Conv_0', rate=0.0), dict(match='bias', rate=8.0, until=dict(steps=3)),
            dict(match='Dense_./kernel', optimizer='muon', rate=0.1, normalize=True))})


HOST = {'data': {'placement': 'host'}}
SIZES = {'data': {'augment': 'pad_crop(2)', 'train_size': ((dict(steps=2), 20), (dict(steps=3), 16))},
         'parallel': {'steps_per_dispatch': 2}}
# attacks by the gradient's sign would amplify rounding
MIXED = {'data': {'augment': 'mixup(0.2)|cutmix(1)|pgd(0.2, 0.1, 1, "l2")'}}
ATTACKED = {'data': {'augment': 'mixup(0.2)|cutmix(1)|fgsm(0.2, "l2")|pgd(0.2, 0.1, 2, "l2")'}}
PLAIN = {'data': {'augment': ''}}  # less to compile


@pytest.mark.parametrize(('backend', 'fields'), [
    pytest.param(backend, fields, id=f'{backend}-{name}', marks=[pytest.mark.slow] * is_slow)
    for backend, fields, name, is_slow in (
        # the same batches are computed with the placement on the host, and more is compared with the options
        ('sharded', {}, 'plain', True), ('sharded', OPTIONS, 'options', False), ('sharded', HOST, 'host', False),
        ('sharded', MIXED, 'mixed and attacked', False), ('sharded', ATTACKED, 'attacked twice', True),
        ('pmap', {}, 'plain', True), ('pmap', OPTIONS, 'options', False), ('pmap', HOST, 'host', True),
        ('pmap', SIZES, 'sizes', True),
        ('pmap', ATTACKED, 'attacked twice', True))])
def test_eight_devices_train_as_one_does(small, tmp_path, reference, backend, fields):
    one = reference(small, **{k: v for k, v in fields.items() if v != {'placement': 'host'}})
    fields = {**fields, 'parallel': {**fields.get('parallel', {}), 'backend': backend, 'devices': 8}}
    eight = trained_state(small(**fields), tmp_path)
    assert relative_difference(eight, one) < 1e-5
    assert eight.step == one.step == 4


@pytest.mark.parametrize('fields', [
    {'optim': {'accumulate': 2}}, {'data': {'balance': 'loss'}}, {'data': {'balance': 'sampling'}},
    {'whiten': {'match': 'Conv_0/kernel'}}, {'freeze_bn': {'steps': 2}}, *(
        pytest.param(fields, marks=pytest.mark.slow) for fields in (  # the golden runs would notice these
            {'loss': {'name': 'cross_entropy', 'label_smoothing': 0.1}}, {'optim': {'lookahead': {'every': 2}}},
            {'optim': {'clip_norm': 0.1}}, {'optim': {'l2': 0.1}}))], ids=str)
def test_what_a_config_says_reaches_the_step(small, tmp_path, reference, fields):
    fields = {**fields, 'data': {**PLAIN['data'], **fields.get('data', {})}}
    state = trained_state(small(**fields), tmp_path).replace(slow=None)
    assert relative_difference(state, reference(small, **PLAIN)) > 1e-4


def test_statistics_that_are_frozen_from_the_beginning_do_not_move(small, tmp_path):
    stats = trained_state(small(freeze_bn=dict(steps=0), **PLAIN), tmp_path, steps=2).batch_stats
    for layer in stats.values():
        assert not layer['mean'].any()
        assert np.all(layer['var'] == 1)


TINY = dict(model=dict(name='resnet20_cifar', width=4), data={'image_size': 4, 'augment': ''}, log_every=dict(steps=1))


@pytest.mark.parametrize(('fields', 'line'), [
    (dict(batch_size=1), r'config\.batch_size: a batch of 1, config\.optim\.accumulate=1 and images of 4 x 4 pixels leave '
     r'BatchNorm_\d+ one value .* at least 2, a larger config\.data\.image_size, or config\.freeze_bn'),
    (dict(batch_size=8, optim={'accumulate': 8}), r'\.batch_size: a batch of 8, config\.optim\.accumulate=8 .* least 16'),
    (dict(batch_schedule=[(dict(steps=2), 1)]), r'config\.batch_schedule: a batch of 1, '),
    (dict(batch_size=4, parallel={'devices': 4, 'bn_sync': False}), r'a batch of 4 on 4 devices with .*bn_sync=False, '),
    (dict(batch_size=4, parallel={'devices': 4, 'bn_sync': False, 'backend': 'pmap'}), r'a batch of 4 on 4 devices')])
def test_statistics_of_one_value_are_refused_before_training(small, tmp_path, fields, line):
    with pytest.raises(UserError, match=line) as error:
        train(small(**{**TINY, **fields}), str(tmp_path))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'config.json').exists()


@pytest.mark.parametrize('fields', [
    dict(batch_size=2), dict(batch_size=4, parallel={'devices': 4}), dict(batch_size=1, freeze_bn=dict(steps=0)),
    dict(batch_size=1, data={'image_size': 8, 'augment': ''})], ids=str)
def test_statistics_of_two_values_and_frozen_ones_are_not_refused(small, tmp_path, fields):
    TrainingRun(config.parse(small(**{**TINY, **fields})), str(tmp_path), StopRequest()).setup.check_batch_norm()


def test_the_average_is_one(small, tmp_path):
    state = trained_state(small(optim={'ema_decay': 0.9}, **PLAIN), tmp_path)
    assert relative_difference(state.replace(params=state.ema[0], ema=None), state.replace(ema=None)) > 1e-4


def test_the_comparison_can_fail(small, tmp_path, reference):
    other = trained_state(small(seed=1, **PLAIN), tmp_path)
    assert relative_difference(other, reference(small, **PLAIN)) > 1e-2


def test_several_steps_in_one_dispatch_change_nothing(small, tmp_path, reference):
    many = trained_state(small(parallel={'devices': 1, 'steps_per_dispatch': 2}), tmp_path)
    assert relative_difference(many, reference(small)) < 1e-5


def test_per_device_statistics_are_alike_in_both_back_ends_and_differ_from_synchronised_ones(small, tmp_path, reference):
    sharded, pmap = (trained_state(small(parallel={'backend': b, 'devices': 4, 'bn_sync': False}, **PLAIN), tmp_path / b)
                     for b in ('sharded', 'pmap'))
    assert relative_difference(sharded, pmap) < 1e-5
    assert relative_difference(sharded, reference(small, **PLAIN)) > 1e-3


def test_sharded_dropout_is_that_of_one_device(small, tmp_path):
    model = dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16, dropout=0.5)
    one, four = (trained_state(small(model=model, parallel={'devices': n}, **PLAIN), tmp_path / str(n), steps=5)
                 for n in (1, 4))
    assert relative_difference(four, one) < 1e-5


def test_placements_and_workers_give_the_same_bits(small, tmp_path):
    common = dict(augment='alternating_flip|pad_crop(2)|cutmix(1)', normalize='gcn|zca', balance='sampling',
                  per_class=8)  # more than one epoch
    ways = [dict(placement='device'), dict(placement='host', workers=2)]
    first, *others = [trained_state(small(data={**common, **way}), tmp_path / str(i)) for i, way in enumerate(ways)]
    for other in others:
        for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_batch_that_does_not_divide_is_reported_with_the_nearest_sizes(small):
    timeline = Timeline(config.parse(small(batch_size=100)), 1000)
    with pytest.raises(UserError, match=r'config.batch_size: 100 .* 8 devices .* nearest: 96 or 112'):
        parallel.check_batch_sizes(timeline, 2, 8)


def test_more_devices_than_there_are(small):
    with pytest.raises(UserError, match=r'config.parallel.devices: 9 of 8'):
        parallel.make_backend(config.parse(small(parallel={'devices': 9})).parallel)
