"""The checks of `jaxcnn check` on sound configs and on seeded mistakes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxcnn
from jaxcnn import config as cfg
from jaxcnn import models
from jaxcnn.checks import CHECKS, FAILED, INFORMATION, OK, WARNING, execution, run_checks
from jaxcnn.checks.augmentation import swapped_fraction
from jaxcnn.checks.context import Context
from jaxcnn.checks.data import shared_images_status
from jaxcnn.checks.gradients import compare_gradients
from jaxcnn.checks.learning_rate import evaluate_sweep, noise_scale
from jaxcnn.checks.signal import layer_signals
from jaxcnn.cli.check import CHECK_NAMES
from jaxcnn.data import Source
from jaxcnn.errors import UserError
from jaxcnn.models.sequential import Sequential
from jaxcnn.training.setup import Setup

LAYERS = 'conv(8, 3)|relu|max_pool(2)|flatten|dense(32)|relu|dense'
MODEL = dict(name='sequential', layers=LAYERS, kernel_init='lecun_normal')
ADAM = dict(optimizer='adam', learning_rate=5e-3, schedule='cosine')
FIELDS = dict(duration=dict(steps=300), batch_size=32, parallel=dict(devices=1, steps_per_dispatch=20))


@pytest.fixture
def check(small, tmp_path, monkeypatch):
    """A function that returns the verdicts of checks for the digits and a small network, with other fields of the config.

    The verdict of a single check is returned as it is.
    """
    def run(names, source=None, steps=60, **fields):
        settings = {**FIELDS, **fields, 'model': {**MODEL, **fields.get('model', {})}}
        settings['data'] = {'augment': 'pad_crop(1)', 'image_size': 0, **fields.get('data', {})}
        settings['optim'] = {**ADAM, **fields.get('optim', {})}
        verdicts = run_checks(cfg.parse(small(**settings)), str(tmp_path), names.split(), steps, source)
        return verdicts if len(verdicts) > 1 else verdicts[names]
    return run


def digits(order=None, extra=0):
    """The digits as a source: `order` permutes the training labels, and `extra` training images are also test images."""
    data = load_digits()
    images, labels = (16 * data.images).clip(0, 255).astype(np.uint8), data.target
    train_labels = labels[:1400] if order is None else labels[:1400][order]
    test = images[1400:], labels[1400:]
    val = images[1260:1400], train_labels[1260:]
    if extra:
        test = tuple(np.concatenate([part, first[:extra]]) for part, first in zip(test, (images, labels), strict=True))
    return Source.from_arrays((images[:1260], train_labels[:1260]), val, test)


SOUND = ('batch', 'data', 'first_loss', 'zero_lr', 'gradients', 'overfit', 'learns', 'signal', 'augmentation', 'lr_range')


@pytest.mark.slow
def test_a_sound_config_has_no_false_alarm(check, tmp_path):
    verdicts = check(' '.join(SOUND))
    assert {name: verdict.status for name, verdict in verdicts.items()} == dict.fromkeys(SOUND, OK), verdicts
    page = (tmp_path / 'check.html').read_text()
    assert page.count('<img src="data:image/png;base64,') == 7
    assert all(f'{name}: ok' in page for name in SOUND)


# ---- seeded mistakes


def test_images_that_are_normalised_twice(check):
    verdict = check('batch', data=dict(normalize='standardize(0.3, 0.37)|standardize(0.3, 0.37)'))
    assert verdict.status == FAILED
    assert 'normalised once' in verdict.advice


@pytest.mark.slow
@pytest.mark.usefixtures('new_registrations')
def test_a_network_that_normalises_images_again(check):
    @jaxcnn.register_model
    class Divides(Sequential):
        def forward(self, x, train, maps):
            return super().forward(x / 255, train, maps)
    verdict = check('batch', model=dict(name='Divides'))
    assert verdict.status == FAILED
    assert 'the first layer is fed mean -0.00, deviation 0.00' in verdict.measured


@pytest.mark.slow
def test_pixels_from_0_to_1_that_are_stored_as_integers(check):
    data = load_digits()
    images = (data.images > 8).astype(np.uint8)
    verdict = check('batch', Source.from_arrays((images[:500], data.target[:500]), test=(images[500:], data.target[500:])))
    assert verdict.status == FAILED
    assert 'no pixel is above 1 of 255' in verdict.measured


def test_shuffled_labels(check):
    verdict = check('learns', digits(np.random.default_rng(0).permutation(1400)))
    assert verdict.status == FAILED
    assert 'labels belong to their images' in verdict.advice


def test_a_learning_rate_that_is_100_times_too_high(check):
    rate = {'learning_rate': 100 * ADAM['learning_rate']}
    verdict = check('lr_range', optim=rate)
    assert verdict.status == FAILED
    assert 'config.optim.learning_rate=0.5 is' in verdict.measured


def test_relus_that_are_dead(check):
    verdict = check('signal', model=dict(bias_init=-10.0), steps=20)
    assert verdict.status == FAILED
    assert '100 % of the units of Conv_0 are dead' in verdict.measured


@pytest.mark.slow
def test_frozen_layers_are_named(check):
    verdict = check('signal', optim=dict(groups=[dict(match='Conv_0', rate=0.0)]), steps=20)
    assert verdict.status == INFORMATION
    assert 'as config.optim.groups says: Conv_0/bias, Conv_0/kernel' in verdict.measured


@pytest.mark.slow
@pytest.mark.usefixtures('new_registrations')
def test_a_layer_without_a_gradient(small, tmp_path):
    @jaxcnn.register_model
    class Stops(jaxcnn.Network):
        def forward(self, x, train, maps):
            x = jax.lax.stop_gradient(jax.nn.tanh(self.conv(8, 3)(x)))
            return self.dense(self.num_classes)(x.reshape(len(x), -1))
    settings = cfg.parse(small(**FIELDS, model='Stops', optim=ADAM, data=dict(image_size=0, augment='')))
    verdicts = run_checks(settings, str(tmp_path), ['signal', 'gradients'], steps=20)
    assert '2 parameters do not move: Conv_0/bias, Conv_0/kernel' in verdicts['signal'].measured
    assert {verdict.status for verdict in verdicts.values()} == {FAILED}


@pytest.mark.usefixtures('new_registrations')
def test_a_softmax_inside_the_network(check):
    @jaxcnn.register_model
    class Softmax(Sequential):
        def forward(self, x, train, maps):
            return jax.nn.softmax(super().forward(x, train, maps))
    verdict = check('first_loss', model=dict(name='Softmax'))
    assert verdict.status == FAILED
    assert 'remove the softmax' in verdict.advice


def test_training_images_among_the_test_images(check):
    verdict = check('data', digits(extra=1))
    assert verdict.status == WARNING
    assert '1 of 398 test images are also training images' in verdict.measured
    assert verdict.figures == ['classes', 'duplicates_test']
    assert shared_images_status(20, 417) == FAILED


def test_augmentation_that_turns_digits_upside_down(check):
    verdict = check('augmentation', data=dict(augment='pad_crop(1)|flip_ud'), steps=80)
    assert verdict.status == WARNING
    assert 'flip_ud makes images look like those of other classes' in verdict.measured
    assert 'pad_crop(1) makes' not in verdict.measured  # which costs as much accuracy


# ---- further mistakes, and the parts


def test_training_examples_are_those_of_the_run(small, tmp_path):
    """mixup mixes each image with the one before it in the batch, which may be the last one."""
    config = cfg.parse(small(**FIELDS, model=dict(name='sequential', layers='flatten|dense'),
                             data=dict(augment='mixup(1.0)', image_size=0)))
    with Context(config, str(tmp_path)) as context:
        examples, setup = context.train_examples(40), context.setup
        batches = [setup.augmented_batch(step, 32, context.initial_state(setup)) for step in (0, 1)]
    for name, values in examples.items():
        np.testing.assert_array_equal(values, np.concatenate([batch[name] for batch in batches])[:40])


@pytest.mark.slow
def test_outputs_that_are_all_equal_have_the_expected_loss_and_a_warning(check):
    verdict = check('first_loss', model=dict(kernel_init='constant(0.0)'))
    assert verdict.measured.startswith('the first loss is 2.303, and log 10 is 2.303')
    assert verdict.status == WARNING


def test_the_first_loss_of_several_labels_is_compared_with_log_2(check):
    data = load_digits()
    source = Source.from_arrays((data.images.astype(np.uint8) * 15, np.eye(10, dtype=np.uint8)[data.target]))
    verdict = check('first_loss', source, task='multilabel', loss='bce', data=dict(val_fraction=0.1))
    assert verdict.status == OK
    assert f'outputs of 0 have {math.log(2):.3f}' in verdict.measured


@pytest.mark.usefixtures('new_registrations')
def test_an_optimizer_that_ignores_the_learning_rate(check):
    import optax

    @jaxcnn.register_optimizer
    def restless(learning_rate):
        return optax.sgd(0.1)
    assert check('zero_lr', optim=dict(optimizer='restless')).status == FAILED


def test_kernels_that_are_normalised_may_change_with_learning_rate_0(check):
    groups = [dict(match='Conv.*kernel', normalize=True)]
    verdict = check('zero_lr', optim=dict(groups=groups, lookahead=dict(every=2)))
    assert verdict.status == OK, verdict


def test_a_gradient_that_is_wrong_is_found_and_a_right_one_is_not():
    @jax.custom_vjp
    def square(x):
        return x ** 2
    square.defvjp(lambda x: (x ** 2, x), lambda x, g: (1.9 * x * g,))
    with jax.enable_x64(True):
        params = {'right': jnp.arange(1.0, 4.0), 'wrong': jnp.arange(1.0, 4.0)}
        comparisons = compare_gradients(lambda p: (p['right'] ** 2).sum() + square(p['wrong']).sum(), params, count=4)
    errors = {c.name[:5]: c.error for c in comparisons}
    assert errors['right'] < 1e-8
    assert errors['wrong'] == pytest.approx(0.05)


def test_the_noise_scale_is_that_of_gaussian_gradients():
    """Gradients with mean g and covariance s^2 in d dimensions have the noise scale d s^2 / |g|^2."""
    rng, dimensions, deviation = np.random.default_rng(0), 200, 2.0
    mean = rng.normal(size=dimensions)

    def norms(batch):
        return np.linalg.norm(mean + deviation / math.sqrt(batch) * rng.normal(size=(4000, dimensions)), axis=1)
    scale = noise_scale(4, norms(4), 32, norms(32))
    assert scale.images == pytest.approx(dimensions * deviation ** 2 / (mean @ mean), rel=0.02)


def test_the_curve_of_a_sweep_gives_its_steepest_fall_and_its_rise():
    rates = np.geomspace(1e-5, 10, 121)
    position = np.log10(rates)  # falls around 1e-3, is lowest from 1e-2 to 1e-1, rises around 1
    losses = 2 - 1.5 / (1 + np.exp(-8 * (position + 3))) + 5 / (1 + np.exp(-8 * position))
    sweep = evaluate_sweep(rates, losses)
    assert sweep.suggestion == pytest.approx(1e-3, rel=0.3)
    assert 0.4 < sweep.limit < 1
    losses[80:] = np.nan
    assert evaluate_sweep(rates, losses).limit <= rates[80]
    flat = evaluate_sweep(rates, np.full(121, 2.3) + 0.01 * np.random.default_rng(0).normal(size=121))
    assert (flat.suggestion, flat.limit) == (None, math.inf)


def test_statistics_of_layers_are_those_of_a_network_that_is_computed_by_hand():
    """A dense layer of two units, of which one is dead behind the ReLU, and one of the logits."""
    network = models.create('sequential', 2, layers='flatten|dense(2)|relu|dense')
    images = np.random.default_rng(0).normal(size=(8, 2, 2, 1)).astype(np.float32)
    first = {'kernel': jnp.ones((4, 2)), 'bias': jnp.array([100.0, -100.0])}
    params = {'Dense_0': first, 'Dense_1': {'kernel': jnp.eye(2), 'bias': jnp.zeros(2)}}
    from jaxcnn import tasks
    task = tasks.create(cfg.parse({}), ['a', 'b'], [4, 4], 8)
    signals = layer_signals(network, {'params': params}, {'image': jnp.asarray(images), 'label': jnp.arange(8) % 2}, task)
    outputs = images.reshape(8, 4).sum(1)[:, None] + np.array([100, -100])
    assert list(signals) == ['Dense_0', 'Dense_1']
    assert signals['Dense_0'].mean == pytest.approx(outputs.mean(), abs=1e-4)
    assert signals['Dense_0'].std == pytest.approx(outputs.std(), rel=1e-5)
    assert (signals['Dense_0'].dead, signals['Dense_1'].dead) == (0.5, 0)
    # the logits are (100, 0), up to a few, so that images of class 1 have the gradient (1, -1), and others 0
    assert signals['Dense_1'].gradient == pytest.approx(math.sqrt(0.5), rel=1e-4)

    network = models.create('sequential', 2, layers='conv(2, 1)|norm|relu|flatten|dense')
    variables = jax.jit(network.init)(jax.random.key(0), images)
    examples = {'image': jnp.asarray(images), 'label': jnp.arange(8) % 2}
    assert list(layer_signals(network, variables, examples, task)) == ['Conv_0', 'BatchNorm_0', 'Dense_0']


@pytest.mark.slow
@pytest.mark.usefixtures('new_registrations')
def test_random_numbers_without_a_key_are_found(check):
    @jaxcnn.register_augmentation
    def careless():
        offset = float(np.random.default_rng().uniform(0, 0.1))
        return lambda key, image: image + offset
    verdict = check('determinism', data=dict(augment='careless'))
    assert verdict.status == FAILED
    assert check('determinism').status == OK


@pytest.mark.slow
def test_batch_size_and_throughput_are_information(check, monkeypatch):
    monkeypatch.setattr(execution, 'ROUND_SECONDS', 0.01)
    verdicts = check('batch_size throughput', steps=20)
    assert verdicts['batch_size'].status == INFORMATION
    assert 'the batch size is 32' in verdicts['batch_size'].measured
    assert verdicts['throughput'].status in (INFORMATION, WARNING)
    assert 'images/s' in verdicts['throughput'].measured


def test_throughput_times_the_first_batch_size_of_a_batch_schedule(check, monkeypatch):
    sizes, inputs = set(), Setup.inputs

    def record_sizes(setup, step, count):
        arguments = inputs(setup, step, count)
        sizes.add(arguments[0]['image'].shape[1])
        return arguments

    def call_until_the_second_batch_size(step_with_data, *others):
        for _ in range(6):
            step_with_data()
        return 1.0, 1.0, 1.0
    monkeypatch.setattr(Setup, 'inputs', record_sizes)
    monkeypatch.setattr(execution, '_seconds', call_until_the_second_batch_size)
    verdict = check('throughput', data=dict(placement='host'), duration=dict(steps=20), batch_schedule=[(dict(steps=5), 64)],
                    parallel=dict(devices=1, steps_per_dispatch=10))
    assert verdict.status == INFORMATION, verdict
    assert sizes == {32}
    # 32 images in each call of 1 s
    assert verdict.measured.startswith('32 images/s; a step takes 1,000 ms with its data and 1,000 ms alone'), verdict


def test_classes_that_are_swapped_count_and_mistakes_at_random_do_not():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1000)
    swapped = np.where(labels == 2, 5, np.where(labels == 5, 2, labels))
    assert swapped_fraction(labels, swapped, 10) == (labels != swapped).mean()
    is_wrong = rng.random(1000) < 0.6
    assert abs(swapped_fraction(labels, np.where(is_wrong, rng.integers(0, 10, 1000), labels), 10)) < 0.02


def test_a_schedule_that_needs_more_steps_is_no_failure(check):
    schedule = dict(name='triangle', peak=0.05)
    verdicts = check('zero_lr learns', steps=12, optim=dict(schedule=schedule))
    assert (verdicts['zero_lr'].status, verdicts['learns'].status) == (OK, INFORMATION), verdicts
    assert 'cannot be shortened to 12 steps: config.optim.schedule: schedule triangle' in verdicts['learns'].measured
    assert verdicts['learns'].advice == 'raise --steps'


def test_an_error_in_a_check_is_its_verdict(check, monkeypatch):
    def fails(context):
        raise UserError('something is wrong')
    monkeypatch.setitem(CHECKS, 'data', dataclasses.replace(CHECKS['data'], run=fails))
    verdict = check('data')
    assert (verdict.status, verdict.measured) == (FAILED, 'something is wrong')


def test_the_help_of_the_command_lists_all_checks():
    assert tuple(CHECKS) == CHECK_NAMES


def test_an_unknown_check_names_the_nearest(check):
    with pytest.raises(UserError, match=r"unknown check 'overfitt'; nearest: overfit"):
        run_checks(cfg.parse({}), '/nonexistent', ['overfitt'])
