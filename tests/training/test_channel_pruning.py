"""The choice of channels that are removed from a run, and runs that start without them."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn.analysis import channels, complexity
from jaxcnn.compression.narrowed_run import remove_channels, write_report
from jaxcnn.compression.pruned_run import prune_run
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.training import channel_pruning, train
from jaxcnn.training.initial_masks import read_pruning
from jaxcnn.training.workdir import read_config

MODEL = dict(name='sequential',
             layers='conv(6)|norm|relu|max_pool(2)|conv(8,groups=2)|norm|relu|flatten|dense(9)|relu|dense')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """The workdir of a run of a few steps, without pictures."""
    folder = str(tmp_path_factory.mktemp('source'))
    with pytest.MonkeyPatch.context() as patch:
        for name in ('jaxcnn.training.setup.Setup.draw_first_batch', 'jaxcnn.training.loop.write_results'):
            patch.setattr(name, lambda *_, **__: None)
        train(fields(), folder)
    return folder


def fields(**changes):
    return cfg.parse({'duration': {'steps': 6}, 'model': MODEL, 'data': {'name': 'digits', 'per_class': 20},
                      'optim': {'learning_rate': 0.05}, 'parallel': {'devices': 1}, **changes})


def scores_of(run, method, **changes):
    """Return the units of a run's network, and their scores."""
    config = cfg.ChannelsConfig(method, **changes)
    coupling = channels.couple(run.experiment.network, run.variables, run.experiment.image_shape)
    return coupling, channel_pruning.SCORES[method](run, run.variables, coupling, config, '')


def test_scores_equal_their_definitions(source):
    run = load_run(source)
    params = jax.tree.map(np.array, run.variables['params'])
    coupling, scale = scores_of(run, 'bn_scale')
    first, grouped, dense = (coupling.features[f'params/{layer}/kernel'] for layer in ('Conv_0', 'Conv_1', 'Dense_0'))
    # the channels at the same position of both groups of a grouped convolution, and of its input, are one unit
    assert first.tolist() == [*first[:3]] * 2
    assert grouped.tolist() == [*grouped[:4]] * 2
    np.testing.assert_allclose(scale[first[:3]], np.abs(params['BatchNorm_0']['scale']).reshape(2, 3).mean(0), rtol=1e-6)
    assert np.isnan(scale[dense]).all()

    _, l1 = scores_of(run, 'l1')
    norms = np.abs(params['Dense_0']['kernel']).sum(0)
    np.testing.assert_allclose(l1[dense], norms / norms.mean(), rtol=1e-6)
    norms = np.abs(params['Conv_0']['kernel']).sum((0, 1, 2))
    np.testing.assert_allclose(l1[first[:3]], (norms / norms.mean()).reshape(2, 3).mean(0), rtol=1e-6)

    # the change of the loss if the outputs of a unit are multiplied by a factor, to first order
    _, taylor = scores_of(run, 'taylor', images=64)
    train_split = run.load_dataset().splits['train']
    positions = np.random.default_rng(run.config.seed).permutation(len(train_split))[:64]
    images, labels = train_split.take(positions), train_split.targets['label'][positions]

    @jax.jit
    def loss(params):
        logits = run.experiment.network.apply({**run.variables, 'params': params}, run.experiment.preprocessor(images))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()
    for layer, leaves, units in (('BatchNorm_0', ('scale', 'bias'), first), ('Dense_0', ('kernel', 'bias'), dense)):
        names = np.unique(units)
        index = np.searchsorted(names, units)

        def scaled_loss(factors, layer=layer, leaves=leaves, index=index):
            scaled = {leaf: value * factors[index] if leaf in leaves else value
                      for leaf, value in params[layer].items()}
            return loss({**params, layer: scaled})
        squares = jax.grad(scaled_loss)(jnp.ones(len(names))) ** 2
        np.testing.assert_allclose(taylor[names], squares / squares.mean(), rtol=1e-3)


def test_a_run_starts_without_channels_and_goes_on(source, tmp_path, monkeypatch):
    for name in ('jaxcnn.training.setup.Setup.draw_first_batch', 'jaxcnn.training.loop.write_results'):
        monkeypatch.setattr(name, lambda *_, **__: None)
    run, folder = load_run(source), str(tmp_path / 'narrow')
    still = dict(optim={'learning_rate': 1e-12}, freeze_bn={'steps': 0}, duration={'steps': 1})
    config = fields(init={'run': source, 'channels': {'method': 'l1', 'target': 0.6}}, **still)
    train(config, folder)
    narrow = load_run(folder)
    widths = narrow.config.model.args['layer_widths']
    assert set(widths) == {'Conv_0', 'Conv_1', 'Dense_0'}

    # the cost is at most the target, and above it with one more unit
    before, after = (complexity.cost(r.experiment.network, (8, 8, 1), optimizers=()).multiply_adds for r in (run, narrow))
    coupling, scores = scores_of(run, 'l1')
    removed = channel_pruning.select(coupling, run.variables, scores, config.init.channels)
    assert coupling.multiply_adds(removed) == after <= 0.6 * before
    last = np.flatnonzero(removed)[np.argmax(scores[removed])]
    removed[last] = False
    assert coupling.multiply_adds(removed) > 0.6 * before

    # its weights are those of the run
    removed[last] = True
    expected = coupling.narrow(run.variables, removed)
    for name, value in narrow.variables['params']['Conv_1'].items():
        np.testing.assert_allclose(value, expected['params']['Conv_1'][name], rtol=0, atol=1e-11)
    assert train(config, folder)['best_step'] == 1  # nothing is left to do, and the widths are read from config.json

    # a further run has its features, with its weights or without
    train(fields(init={'run': folder, 'weights': False}, **still), str(tmp_path / 'scratch'))
    assert read_config(str(tmp_path / 'scratch')).model.args['layer_widths'] == widths
    scratch = load_run(str(tmp_path / 'scratch')).variables['params']['Conv_1']['kernel']
    assert scratch.shape == expected['params']['Conv_1']['kernel'].shape
    assert not np.allclose(scratch, expected['params']['Conv_1']['kernel'])


def test_the_command_writes_a_run_of_the_narrower_network(source, tmp_path, monkeypatch):
    monkeypatch.setattr('jaxcnn.compression.narrowed_run._SECONDS', 0.0)
    run, folder = load_run(source), str(tmp_path / 'narrow')
    dataset = run.load_dataset()
    result = remove_channels(run, folder, cfg.ChannelsConfig('l1', 'parameters', 0.4), 'best', dataset, 'test', batch_size=2)
    narrow = load_run(folder)
    assert narrow.evaluate('test')['test_accuracy'] == pytest.approx(result.after.values['accuracy'])
    # the statistics are means over batches of the narrower network's activations
    split, experiment = dataset.splits['train'], narrow.experiment
    positions = np.random.default_rng(run.config.seed).permutation(len(split))[:1024]
    conv = narrow.variables['params']['Conv_0']
    x = experiment.preprocessor(split.take(positions[:len(positions) // 64 * 64]))
    maps = jax.lax.conv_general_dilated(x, conv['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    batches = (maps + conv.get('bias', 0)).reshape(-1, 64 * x.shape[1] * x.shape[2], maps.shape[-1])
    for name, expected in (('mean', batches.mean((0, 1))), ('var', batches.var(1).mean(0))):
        np.testing.assert_allclose(narrow.variables['batch_stats']['BatchNorm_0'][name], expected, rtol=1e-4, atol=1e-5)
    assert result.after.parameters == sum(x.size for x in jax.tree.leaves(narrow.variables['params']))
    assert 0.3 * result.before.parameters < result.after.parameters <= 0.4 * result.before.parameters
    assert result.after.features == {**narrow.config.model.args['layer_widths'], 'Dense_1': 10}
    assert all(network.images_per_second > 0 for network in (result.before, result.after))
    page = write_report(result)
    assert os.path.exists(os.path.join(folder, 'figures', 'channels.png'))
    with open(page, encoding='utf-8') as file:
        assert f'{result.after.multiply_adds:,}' in file.read()


def test_masks_of_pruned_weights_lose_the_same_channels(source, tmp_path):
    dense, dataset = load_run(source), load_run(source).load_dataset()
    prune_run(dense, str(tmp_path / 'sparse'), [0.5], cfg.PruningConfig(exclude='none'), 'best', dataset, 'test')
    sparse, folder = load_run(str(tmp_path / 'sparse')), str(tmp_path / 'narrow')
    remove_channels(sparse, folder, cfg.ChannelsConfig('l1', 'parameters', 0.4), 'best', dataset, 'test', bn_images=0)
    narrow = load_run(folder)
    masks = read_pruning(narrow, narrow.find_step('best'))['masks']
    for layer, mask in masks.items():
        np.testing.assert_array_equal(narrow.variables['params'][layer]['kernel'] != 0, mask['kernel'])
    summary = train(narrow.config, str(tmp_path / 'tuned'))
    assert summary['sparsity'] == pytest.approx(1 - np.mean(np.concatenate([x.ravel() for x in jax.tree.leaves(masks)])))


def test_blocks_leave_multiples(source):
    run = load_run(source)
    coupling, scores = scores_of(run, 'l1')
    config = cfg.ChannelsConfig('l1', target=0.5, multiple_of=4, min_remaining=0.5)
    widths = coupling.widths(channel_pruning.select(coupling, run.variables, scores, config))
    assert widths == {'Conv_0': 4, 'Conv_1': 4, 'Dense_0': 8}


@pytest.mark.parametrize(('init', 'model', 'message'), [
    (dict(channels=dict(target=0.01)), MODEL, 'config.init.channels: 0.01 of the multiply-adds cannot be reached: 0.182'),
    (dict(channels=dict(method='bn_scale', quantity='parameters')), dict(name='lenet5'),
     'config.init.channels: narrows the network sequential'),
    (dict(channels={}, run='', pretrained='efficientnet_lite0'), MODEL,
     'config.init.channels: .* but channels are removed from config.init.run only'),
    (dict(weights=False, include='Conv'), MODEL, 'config.init.include: selects weights')])
def test_mistakes(source, tmp_path, init, model, message):
    with pytest.raises(UserError, match=message):
        train(fields(init={'run': source, **init}, model=model), str(tmp_path / 'run'))


def test_a_run_trained_with_quantisation_is_refused(source, monkeypatch):
    run = load_run(source)
    run.config = dataclasses.replace(run.config, quantization=cfg.QuantizationConfig())
    monkeypatch.setattr(channel_pruning, 'load_run', lambda _: run)
    with pytest.raises(UserError, match=r'trained with config\.quantization'):
        channel_pruning.narrow_run(source, run.find_step('best'), False, cfg.ChannelsConfig('l1', target=0.99))
