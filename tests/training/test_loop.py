"""Complete small runs in this process."""

import glob
import json
import os
import shutil
import signal

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import data, experiment, metrics, models
from jaxcnn.analysis import report
from jaxcnn.data.feed import TrainFeed
from jaxcnn.errors import UserError
from jaxcnn.optim import Optimizer, make_optimizer, path_mask
from jaxcnn.run import load_run
from jaxcnn.timeline import Timeline
from jaxcnn.training import dispatch, parallel, train
from jaxcnn.training.checkpoint import Checkpoints
from jaxcnn.training.evaluate import Evaluator
from jaxcnn.training.loop import TrainingRun
from jaxcnn.training.run_progress import RunProgress
from jaxcnn.training.setup import Setup
from jaxcnn.training.signals import Interrupted, StopRequest
from jaxcnn.training.step import gather, image_keys, step_keys
from jaxcnn.training.workdir import read_metrics

pytestmark = pytest.mark.usefixtures('no_pictures')
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SUMMARY = {'name', 'model', 'dataset', 'seed', 'steps', 'epochs', 'params', 'train_loss', 'val_accuracy', 'test_accuracy',
           'test_top5', 'test_loss', 'best_step', 'images_per_second', 'train_seconds', 'wall_seconds',
           'peak_host_bytes', 'device', 'num_devices', 'versions'}


@pytest.mark.parametrize('path', sorted(glob.glob(os.path.join(ROOT, 'configs', '*.py'))))
def test_each_config_of_the_repository_is_valid(path):
    config = cfg.load(path)
    experiment.check(config)
    network = models.create(config.model.name, 10, **config.model.args)
    image = jnp.zeros((1, *network.published_for()[0]))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), image))['params']
    jax.eval_shape(make_optimizer(config.optim, Timeline(config, 50_000)).init, params)  # checks groups and masks
    if config.whiten:
        path_mask(config.whiten.match, '')(params)


@pytest.fixture(scope='module')
def shared_folder(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')


def test_a_run_writes_its_summary_report_metrics_and_checkpoints(small, shared_folder, monkeypatch):
    monkeypatch.undo()
    folder = str(shared_folder / 'run')
    fields = dict(duration=dict(steps=60), log_every=dict(steps=7), eval={'every': dict(steps=20)}, data={'augment': ''},
                  optim={'ema_decay': 0.9, 'schedule': 'cosine', 'learning_rate': 0.1, 'warmup': dict(steps=10)})
    summary = train(small(**fields), folder)
    assert set(summary) >= SUMMARY
    assert None not in [summary[k] for k in SUMMARY]
    assert summary['test_accuracy'] > 0.3, 'better than chance'
    assert 1 << 27 < summary['peak_host_bytes'] < 1 << 36
    with open(os.path.join(folder, 'summary.json')) as f:
        assert json.load(f) == summary
    for name in ('config.json', 'data.json', 'report.md', 'figures/curves.png', 'figures/confusion_matrix.png',
                 'figures/first_batch.png'):
        assert os.path.getsize(os.path.join(folder, name)) > 0, name
    assert any(n.startswith('events.out.tfevents') for n in os.listdir(folder))

    rows = read_metrics(folder)
    logged = {r['step']: r for r in rows if 'train_loss' in r}
    assert list(logged) == [*range(7, 60, 7), 60]
    evaluated = {r['step']: r for r in rows if 'val_loss' in r}
    assert list(evaluated) == [20, 40, 60]
    assert {'val_accuracy', 'val_top5', 'val_ema_loss', 'val_ema_accuracy', 'val_ema_top5'} <= set(evaluated[20])
    assert logged[7]['learning_rate'] == pytest.approx(0.07)  # of the 7th step
    step = 48  # of the 49th; 39 after the warm-up, of 50
    assert logged[49]['learning_rate'] == pytest.approx(0.05 * (1 + np.cos(np.pi * (step - 10) / 50)), rel=1e-4)

    trained = load_run(folder)
    best = max(evaluated, key=lambda s: (evaluated[s]['val_accuracy'], s))
    assert summary['best_step'] == best == trained.find_step('best')
    assert summary['val_accuracy'] == pytest.approx(evaluated[best]['val_accuracy'])
    count, measured = trained.evaluator('test')(trained.load_weights(best))
    values = {m.name: value for m, value in measured.items()}
    assert count == 359
    assert values['test_accuracy'] == pytest.approx(summary['test_accuracy'])
    assert values['test_ema_accuracy'] == pytest.approx(summary['test_ema_accuracy'])


def test_statistics_are_those_of_the_training_split(small, shared_folder):
    run = TrainingRun(cfg.parse(small()), str(shared_folder), StopRequest())
    train = run.setup.dataset.splits['train']
    pixels = train.take(np.arange(len(train))) / 255
    np.testing.assert_allclose(run.setup.dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(run.setup.dataset.std, pixels.std((0, 1, 2)), rtol=1e-9)
    inputs = np.asarray(run.setup.experiment.preprocessor(train.take(np.arange(len(train)))))
    assert abs(inputs.mean()) < 1e-3
    assert abs(inputs.std() - 1) < 1e-3


def test_fitted_normalisation_is_stored_with_the_run(small, tmp_path):
    folder, path = str(tmp_path), tmp_path / 'normalize.npz'
    config = small(duration=dict(steps=10), data={
        'normalize': 'gcn(2)|zca(0.01)', 'image_size': 18, 'eval_augment': 'center_crop(16)', 'augment': 'random_crop(16)'})
    run = TrainingRun(cfg.parse(config), folder, StopRequest())
    train_split = run.setup.dataset.splits['train']
    images = train_split.take(np.arange(len(train_split)))
    inputs = np.asarray(run.setup.experiment.preprocessor(images)).reshape(len(images), 256)
    eigenvalues = np.linalg.eigvalsh(np.cov(inputs, rowvar=False))
    np.testing.assert_allclose(eigenvalues[-10:], 1, atol=0.05)  # components of little variance are smaller
    assert eigenvalues[-1] < 1.01
    fitted = path.read_bytes()
    summary = train(config, folder)
    assert path.read_bytes() == fitted
    trained = load_run(folder)
    _, measured = trained.evaluator('test')(trained.load_weights(trained.find_step('best')))
    assert {m.name: value for m, value in measured.items()}['test_loss'] == pytest.approx(summary['test_loss'], rel=1e-6)
    path.unlink()
    with pytest.raises(UserError, match=r'normalize\.npz: cannot read the fitted normalisation'):
        load_run(folder)


def test_an_error_of_the_data_saves_the_state_and_the_run_continues_from_it(small, tmp_path, monkeypatch):
    config = small(data={'placement': 'host'})
    batch = TrainFeed.batch

    def fail_at_step_7(self, step, count):
        if step == 7:
            raise UserError('a worker process was killed')
        return batch(self, step, count)
    with monkeypatch.context() as patch:
        patch.setattr(TrainFeed, 'batch', fail_at_step_7)
        with pytest.raises(UserError, match='a worker process was killed'):
            train(config, str(tmp_path / 'failed'))
    assert load_run(str(tmp_path / 'failed')).steps() == [7]
    train(config, str(tmp_path / 'failed'))
    train(config, str(tmp_path / 'uninterrupted'))
    states = [{part: array.tobytes() for part, array in golden.read_state(str(tmp_path / name), 20).items()}
              for name in ('failed', 'uninterrupted')]
    assert states[0] == states[1]


def test_normalisation_of_a_failed_start_is_fitted_again(small, tmp_path):
    wrong = small(data={'normalize': 'gcn(5)|standardize'}, optim={'groups': [dict(match='nowhere', rate=2.0)]})
    with pytest.raises(UserError, match='nowhere'):
        train(wrong, str(tmp_path))
    failed = (tmp_path / 'normalize.npz').read_bytes()
    (tmp_path / 'new').mkdir()
    for folder in (tmp_path, tmp_path / 'new'):
        TrainingRun(cfg.parse(small(data={'normalize': 'gcn(1)|standardize'})), str(folder), StopRequest())
    assert failed != (tmp_path / 'normalize.npz').read_bytes() == (tmp_path / 'new' / 'normalize.npz').read_bytes()


def test_logs_do_not_depend_on_the_steps_per_dispatch(small, tmp_path):
    fields = dict(data={'val_fraction': 0.0, 'augment': 'alternating_flip'}, eval={'every': dict(fraction=1.0)},
                  log_every=dict(steps=7))
    summaries, rows = [], []
    for steps_per_dispatch, placement in ((1, 'device'), (8, 'host'), (64, 'device')):  # of 20 steps
        folder, fields['data']['placement'] = str(tmp_path / f'{steps_per_dispatch}{placement}'), placement
        summaries.append(train(small(**fields, parallel={'steps_per_dispatch': steps_per_dispatch}), folder))
        rows.append([{k: v for k, v in row.items() if k != 'images_per_second'} for row in read_metrics(folder)])
    assert [row['step'] for row in rows[0]] == [7, 14, 20, 20]
    for summary, run_rows in zip(summaries, rows, strict=True):
        assert summary['test_loss'] == pytest.approx(summaries[0]['test_loss'], rel=1e-4)
        assert summary['images_per_second'] * summary['train_seconds'] == pytest.approx(20 * 32)  # every step is timed
        assert summary['train_seconds'] < summary['wall_seconds']
        for row, expected in zip(run_rows, rows[0], strict=True):
            assert row == pytest.approx(expected, rel=1e-4)


def test_figure_of_the_first_batch_shows_the_augmented_images(small, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.undo()
    monkeypatch.setattr('jaxcnn.analysis.figures.image_grid', lambda images, *_: drawn.setdefault('images', images))
    os.mkdir(tmp_path / 'figures')
    config = cfg.parse(small(data={'augment': 'alternating_flip|pad_crop(2)|mixup(1)', 'normalize': 'none'}))
    run = TrainingRun(config, str(tmp_path), StopRequest())
    with run:
        batch = gather(run.setup.feed.positions(0), run.setup.resident_data['examples'])
        key = jax.random.key(0)
        examples = run.setup.experiment.preprocessor.train(
            {name: batch[name] for name in ('image', 'label')}, step_keys(key, 0)[0], mixer=run.setup.experiment.task,
            passes=(image_keys(key, batch['position']), np.zeros(32, np.int32)))
        np.testing.assert_allclose(drawn['images'][:32], examples['image'], atol=1e-6)


def test_metrics_with_test_time_augmentation_are_added_to_those_without(small, tmp_path):
    folder = str(tmp_path)
    summary = train(small(data={'augment': ''}, eval={'tta': 'flip_shift'}, optim={'ema_decay': 0.9}), folder)
    trained = load_run(folder)
    state = trained.load_weights(trained.find_step('best'))
    count, measured = trained.evaluator('test')(state)
    assert count == 359
    assert {m.name for m in measured} == {f'test_{prefix}{name}' for prefix in ('', 'ema_', 'tta_', 'ema_tta_')
                                          for name in ('loss', 'accuracy', 'top5')}
    for m, value in measured.items():
        assert summary[m.name] == pytest.approx(value, rel=1e-6)
    assert abs(summary['test_tta_loss'] - summary['test_loss']) > 1e-4
    test = data.load(trained.config.data).splits['test']
    correct = trained.predict(test.take(np.arange(len(test)))).argmax(1) == test.targets['label']
    assert correct.mean() == pytest.approx(summary['test_tta_accuracy'])
    with pytest.raises(UserError, match=r'images must be uint8 \(N, 16, 16, 1\), got .*\(255 \* images\)'):
        trained.predict(test.take(np.arange(3)) / 255)
    assert trained.predict(test.take(np.arange(0))).shape == (0, 10)
    assert not any('tta' in name for row in read_metrics(folder) for name in row)


def test_a_run_stops_early_and_is_not_continued(small, tmp_path):
    config = small(duration=dict(steps=200), data={'augment': ''}, eval={'every': dict(steps=5)}, checkpoint={'patience': 2},
                   optim={'learning_rate': 1e-12, 'optimizer': 'sgd'}, freeze_bn=dict(steps=1))
    summary = train(config, str(tmp_path))
    assert summary['steps'] == 15  # the first evaluation is the best, and two more are not better
    assert train(config, str(tmp_path))['steps'] == 15


def test_evaluations_since_the_best_one_are_counted():
    progress = RunProgress()
    for value, count in ((0.5, 0), (0.5, 1), (0.6, 0), (0.1, 1), (0.2, 2)):
        progress.observe(value, metrics.of_targets('label')['accuracy'])
        assert progress.evaluations_since_best == count
    progress = RunProgress()
    for value, count in ((0.5, 0), (0.6, 1), (0.4, 0)):
        progress.observe(value, metrics.LOSS)
        assert progress.evaluations_since_best == count


def test_without_a_validation_split_the_last_checkpoint_is_the_best(small, tmp_path):
    summary = train(small(data={'val_fraction': 0.0}), str(tmp_path))
    assert summary['val_accuracy'] is None
    assert summary['best_step'] == 20 == load_run(str(tmp_path)).find_step('best')
    assert [r['step'] for r in read_metrics(str(tmp_path)) if 'test_loss' in r] == [10, 20]
    assert 'not measured' in (tmp_path / 'report.md').read_text()


def test_a_bfloat16_run_keeps_float32_parameters_and_statistics(small, tmp_path):
    model = dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16, dropout=0.0, dtype='bfloat16')
    train(small(model=model, duration=dict(steps=2), data={'augment': ''}), str(tmp_path))
    state = load_run(str(tmp_path)).load_weights(2)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {np.dtype(np.float32)}


def test_the_moving_average_of_bfloat16_parameters_is_in_float32(small, tmp_path):
    model = dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16, dropout=0.0, param_dtype='bfloat16')
    config = small(model=model, duration=dict(steps=2), data={'augment': ''}, optim={'ema_decay': 0.999})
    summary = train(config, str(tmp_path))
    state = load_run(str(tmp_path)).load_weights(2)
    assert np.dtype(jnp.bfloat16) in {leaf.dtype for leaf in jax.tree.leaves(state.params)}  # all but those of BatchNorm
    assert {leaf.dtype for leaf in jax.tree.leaves(state.ema)} == {np.dtype(np.float32)}
    assert np.isfinite(summary['test_ema_loss'])


def test_batch_size_image_size_optimizer_and_batch_norm_change_at_their_steps(small, tmp_path):
    config = cfg.parse(small(
        duration=dict(steps=24), batch_schedule=[(dict(steps=10), 64)], freeze_bn=dict(steps=20), log_every=dict(steps=1),
        data={'augment': '', 'train_size': [(dict(steps=10), 20)]},
        optim={'optimizer': 'adam', 'learning_rate': 1e-3, 'schedule': 'constant',
               'switch': [dict(at=dict(steps=20), optimizer='sgd', learning_rate=0.5)]}))
    run = TrainingRun(config, str(tmp_path), StopRequest())
    os.mkdir(tmp_path / 'figures')
    with run:
        stats = {}
        while run.step < 24:
            run.advance(cfg.Duration('steps', 1000))
            stats[run.step] = jax.tree.leaves(run.setup.backend.fetch(run.state.batch_stats))
        run.drain()
        assert [run.setup.augmented_batch(step, 2, run.state)['image'].shape for step in (9, 10)] == [
            (2, 16, 16, 1), (2, 20, 20, 1)]
    rows = {r['step']: r for r in read_metrics(str(tmp_path)) if 'train_loss' in r}
    assert rows[20]['learning_rate'] == pytest.approx(1e-3)
    assert rows[21]['learning_rate'] == pytest.approx(0.5)
    images = len(run.setup.dataset.splits['train'])
    assert rows[10]['epoch'] == pytest.approx(10 * 32 / images)
    assert rows[11]['epoch'] == pytest.approx((10 * 32 + 64) / images)
    assert all(np.any(a != b) for a, b in zip(stats[20], stats[19], strict=True))
    assert all(np.all(a == b) for a, b in zip(stats[24], stats[20], strict=True))


def test_alternating_sizes_share_their_programs(small, tmp_path):
    setup = Setup(cfg.parse(small(duration=dict(epochs=9), data={'train_size': (16, 20)})), str(tmp_path))
    phases = setup.timeline.phases
    assert [phase.image_size for phase in phases] == [16, 20] * 4 + [16]
    assert len({setup.program(phase) for phase in phases}) == 2


@pytest.mark.parametrize(('sizes', 'line'), [
    ((16, 40), 'ShallowCNN has other parameters for images of 40 x 40 than of 16 x 16 pixels; take a network that'),
    ((20, 12), 'ShallowCNN needs images of at least 16 x 16 pixels, got 12 x 12')])
def test_sizes_for_which_a_network_has_other_parameters_are_refused_before_the_data_is_loaded(small, sizes, line):
    config = cfg.parse(small(model='shallow_cnn', data={'train_size': sizes}))
    with pytest.raises(UserError, match=rf'^config\.data\.train_size: {line}') as error:
        experiment.check(config)
    assert '\n' not in str(error.value)


def test_a_size_for_which_a_network_has_other_parameters_than_for_evaluation_is_refused(small, tmp_path):
    model = dict(name='vgg11', stages=((4,), (4,)), hidden=4)
    setup = Setup(cfg.parse(small(model=model, data={'train_size': (32,)})), str(tmp_path))
    with pytest.raises(UserError, match=r'^config\.data\.train_size: VGG has other .* images of 32 x 32 than of 16 x 16'):
        setup.check_train_sizes()


@pytest.mark.parametrize('backend', ['sharded', 'pmap'])
def test_evaluation_on_eight_devices_counts_every_image_once(small, tmp_path, backend):
    results = {}
    for devices, batch_size in ((1, 359), (1, 100), (8, 100)):
        config = cfg.parse(small(parallel={'devices': devices, 'backend': backend}, eval={'batch_size': batch_size}))
        run = TrainingRun(config, str(tmp_path), StopRequest())
        state = run.setup.backend.init(run.setup.init_fn(), 0)
        values, accumulated = run.evaluate(state, 'test')
        confusion = accumulated[False].sums['confusion']
        assert confusion.sum() == 359
        np.testing.assert_array_equal(confusion.sum(1), run.setup.dataset.class_counts('test'))
        results[devices, batch_size] = {m.name: value for m, value in values.items()}
    first, *others = results.values()
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


def test_evaluation_can_be_stopped_while_the_device_computes(small, tmp_path):
    completed, completed_at_calls = [], []

    class Sums:
        def __init__(self, number):
            self.number = number

        def block_until_ready(self):
            completed.append(self.number)

    class Backend(parallel.Sharded):
        def compile_eval(self, fn):
            return lambda *_: (Sums(len(completed_at_calls)), {})

    def should_stop():
        completed_at_calls.append(list(completed))
        return len(completed_at_calls) == 5

    setup = Setup(cfg.parse(small(eval={'batch_size': 32})), str(tmp_path))
    evaluator = Evaluator(setup.experiment, setup.dataset, Backend(jax.devices()[:1]), setup.on_device)
    assert evaluator(None, 'test', should_stop) is None
    assert completed_at_calls == [[], [], [1], [1, 2], [1, 2, 3]]


def test_a_signal_while_the_report_is_written_is_raised_after_it(small, tmp_path, monkeypatch):
    write = report.write_report

    def write_after_signal(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        write(*arguments)

    monkeypatch.setattr(report, 'write_report', write_after_signal)
    with pytest.raises(Interrupted) as error:
        train(small(), str(tmp_path))
    assert error.value.signum == signal.SIGINT
    assert (tmp_path / 'report.md').exists()
    monkeypatch.undo()
    assert train(small(), str(tmp_path))['steps'] == 20


def test_a_signal_that_comes_while_the_processes_agree_is_not_lost(small, tmp_path, monkeypatch):
    stop = StopRequest()
    run = TrainingRun(cfg.parse(small()), str(tmp_path), stop)
    gathered = []

    def process_allgather(value):
        gathered.append(value)
        stop.signum = signal.SIGTERM  # comes while this process waits for the others
        return np.array([value, 0])

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(parallel, 'process_allgather', process_allgather)
    assert [run.should_stop() for _ in range(20)] == [False] * 19 + [True]
    assert gathered == [0, signal.SIGTERM]
    assert stop.acknowledged


@pytest.mark.parametrize(('backend', 'metric'), [
    ('sharded', 'accuracy'), pytest.param('pmap', 'loss', marks=pytest.mark.slow)])
def test_a_plateau_lowers_the_learning_rate_of_a_run(small, tmp_path, monkeypatch, backend, metric):
    observed, observe = [], Optimizer.observe

    def record(self, state, stage, value):
        observed.append(value)
        return observe(self, state, stage, value)
    monkeypatch.setattr(Optimizer, 'observe', record)
    train(small(freeze_bn=dict(steps=1), data={'augment': ''}, eval={'every': dict(steps=5)}, parallel={'backend': backend},
                optim={'optimizer': 'sgd', 'learning_rate': 1e-9,
                       'schedule': dict(name='plateau', patience=1, factor=0.5, metric=metric)}), str(tmp_path))
    rates = [row['learning_rate'] for row in read_metrics(str(tmp_path)) if 'learning_rate' in row]
    assert rates[0] == pytest.approx(1e-9)
    assert rates[-1] < 0.6e-9
    logged = [row[f'val_{metric}'] for row in read_metrics(str(tmp_path)) if f'val_{metric}' in row]
    assert observed == pytest.approx([1 - value if metric == 'accuracy' else value for value in logged])


def test_summary_has_the_metrics_of_the_average_if_it_selects_the_best_checkpoint(small, tmp_path):
    summary = train(small(data={'augment': ''}, eval={'tta': 'flip_shift'}, optim={'ema_decay': 0.9},
                          checkpoint={'metric': 'val_ema_accuracy'}), str(tmp_path))
    trained = load_run(str(tmp_path))
    state = trained.load_weights(trained.find_step('best'))
    _, measured = trained.evaluator('test')(state)
    values = {m.name: value for m, value in measured.items()}
    for prefix in ('', 'tta_'):
        assert summary[f'test_{prefix}accuracy'] == pytest.approx(values[f'test_ema_{prefix}accuracy'])
        assert summary[f'test_{prefix}loss'] == pytest.approx(values[f'test_ema_{prefix}loss'], rel=1e-5)
        assert values[f'test_ema_{prefix}loss'] != pytest.approx(values[f'test_{prefix}loss'], rel=1e-3)
    images = np.zeros((2, *trained.info['image_shape']), np.uint8)
    predictions = trained.predict(images)
    trained.weights = state.replace(params=jax.tree.map(np.zeros_like, state.params))
    np.testing.assert_array_equal(trained.predict(images), predictions)


def test_a_run_of_which_no_checkpoint_can_be_read_is_an_error_and_is_not_changed(small, tmp_path):
    settings = small(eval={'every': dict(steps=10)})
    train(settings, str(tmp_path))
    rows = read_metrics(str(tmp_path))
    for path in glob.glob(str(tmp_path / 'checkpoints' / '*' / 'state' / '**'), recursive=True):
        if os.path.isfile(path):
            os.remove(path)
    names = sorted(os.listdir(tmp_path / 'checkpoints'))
    with pytest.raises(UserError, match=r'none of the checkpoints in .*, 10, 20, can be read'):
        train(settings, str(tmp_path))
    assert sorted(os.listdir(tmp_path / 'checkpoints')) == names
    assert read_metrics(str(tmp_path)) == rows


def test_fewer_dispatches_wait_if_they_need_much_memory(small, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, 'MAX_WAITING_BYTES', 1)
    os.mkdir(tmp_path / 'figures')
    with TrainingRun(cfg.parse(small(log_every=dict(steps=20))), str(tmp_path), StopRequest()) as run:
        for _ in range(8):
            run.advance(cfg.Duration('steps', 1000))
            assert all(x.is_ready() for x in jax.tree.leaves(run.state))
        assert run.dispatches.max_waiting == 0
        run.drain()
        assert len(run.dispatches) == 0


def test_all_processes_discard_the_same_damaged_checkpoints(small, tmp_path, monkeypatch):
    train(small(), str(tmp_path))
    newest = tmp_path / 'checkpoints' / '20'
    (newest / 'progress' / 'metadata').write_text('{')
    run, discarded = TrainingRun(cfg.parse(small()), str(tmp_path), StopRequest()), []

    def process_allgather(value):
        shutil.rmtree(newest, ignore_errors=True)  # the first process has moved it already
        return np.array([value])

    monkeypatch.setattr(parallel, 'process_allgather', process_allgather)
    monkeypatch.setattr(Checkpoints, 'discard', lambda self, step: discarded.append(step))
    with run:
        pass
    assert (run.step, discarded) == (10, [20])


@pytest.mark.parametrize(('fields', 'line'), [
    (dict(model=dict(name='lenet6')), 'unknown model .lenet6.; nearest: lenet5'),
    (dict(optim={'optimizer': 'sdg'}), 'unknown optimizer .sdg.; nearest: sgd'),
    (dict(optim={'schedule': 'cosin'}), 'unknown schedule .cosin.; nearest: cosine'),
    (dict(optim={'schedule': 'plateau'}, data={'val_fraction': 0.0}), 'plateau follows a validation metric'),
    (dict(data={'augment': 'flip_rl'}), 'unknown augmentation .flip_rl.; nearest: flip_lr'),
    (dict(data={'name': 'digit'}), 'unknown data set .digit.; nearest: digits'),
    (dict(eval={'tta': 'flop'}), 'unknown test-time augmentation .flop.; nearest: flip'),
])
def test_unknown_names_are_errors_before_there_is_a_workdir(small, tmp_path, fields, line):
    with pytest.raises(UserError, match=line):
        train(small(**fields), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
