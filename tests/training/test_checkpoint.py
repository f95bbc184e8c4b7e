"""Checkpoints: what is read is what was saved, bit by bit, or is not read at all."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import metrics, sealed
from jaxcnn.errors import UserError
from jaxcnn.training.checkpoint import Checkpoints, fingerprint
from jaxcnn.training.state import TrainState, Weights

PROGRESS = {'evaluated_step': 3, 'best_value': 0.5, 'evaluations_since_best': 3, 'interval_steps': 3,
            'interval_sums': {'loss': 1.25}, 'wall_seconds': 3.5}


def make_state(seed, ema=True, size=300):
    rng = np.random.default_rng(seed)
    params = {'dense': {'kernel': rng.normal(size=(size, 7)).astype(np.float32),
                        'bias': rng.normal(size=7).astype(jnp.bfloat16)}}
    return TrainState(step=np.int32(seed), params=params, batch_stats={'norm': {'mean': rng.normal(size=3)}},
                      opt_state=(({'count': np.int32(seed), 'seen': rng.integers(0, 9, 5, np.uint8)}, ()),),
                      ema=jax.tree.map(lambda x: -x, params) if ema else None)


TEMPLATE = jax.tree.map(np.zeros_like, make_state(0))


MEASUREMENTS = metrics.measurements(metrics.of_targets('label').values(), ['val'], ema=False, tta=False)
ACCURACY = MEASUREMENTS['val_accuracy']


def open_checkpoints(folder, best=ACCURACY, permanent_steps=(), **fields):
    return Checkpoints(str(folder), cfg.CheckpointConfig(**fields), best, permanent_steps=permanent_steps)


def save(checkpoints, step, value=None, metric='val_accuracy', state=None):
    checkpoints.save(step, make_state(step) if state is None else state, PROGRESS,
                     None if value is None else {metric: value})
    checkpoints.wait()


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).shape == np.asarray(b).shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """A folder with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp('two')
    checkpoints = open_checkpoints(folder)
    save(checkpoints, 1, 0.25)
    save(checkpoints, 2, 0.75)
    checkpoints.close()
    return folder


@pytest.fixture
def copy_of_two(two, tmp_path):
    shutil.copytree(two, tmp_path / 'copy')
    return tmp_path / 'copy'


def files(step):
    return sorted(p for p in step.rglob('*') if p.is_file())


# round trip


@pytest.mark.parametrize('ema', [True, False])
def test_what_is_read_is_what_was_saved_bit_by_bit(tmp_path, ema):
    state = make_state(7, ema)
    state.params['dense']['kernel'][0, :5] = [np.nan, np.inf, -np.inf, -0.0, 1e-45]
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 7, 0.5, state=state)
    found, progress = checkpoints.read(7, jax.tree.map(np.zeros_like, state))
    assert_same_bits(found, state)
    assert {k: v for k, v in progress.items() if k != 'fingerprint'} == PROGRESS
    assert checkpoints.metrics(7)['val_accuracy'] == 0.5
    checkpoints.close()


def test_another_process_reads_while_one_writes(two, tmp_path):
    reader = Checkpoints(str(two), cfg.CheckpointConfig(), ACCURACY, read_only=True)
    assert reader.steps() == [1, 2]
    assert_same_bits(reader.read(2, TEMPLATE)[0], make_state(2))
    reader.close()
    writer = open_checkpoints(tmp_path)
    save(writer, 1)
    reader = Checkpoints(str(tmp_path), cfg.CheckpointConfig(), ACCURACY, read_only=True)
    save(writer, 2)
    assert reader.steps() == [1, 2]
    reader.close()
    writer.close()


def test_a_reader_outlives_checkpoints_that_go_while_it_looks(tmp_path):
    """Each reader, opened or open, sees the newest or that it is gone; never an error of the file system."""
    writer, reader, seen = open_checkpoints(tmp_path, keep=1), None, set()
    done = threading.Event()

    def write():
        for step in range(1, 25):
            writer.save(step, make_state(step), PROGRESS, None)
        writer.wait()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        reader = Checkpoints(str(tmp_path), cfg.CheckpointConfig(), ACCURACY, read_only=True)
        for step in reader.steps()[-1:]:
            try:
                assert_same_bits(reader.read(step, TEMPLATE)[0], make_state(step))
                seen.add(step)
            except ValueError:
                assert reader.steps()[-1] > step  # a newer one took its place
        reader.close()
    thread.join()
    writer.close()
    assert len(seen) > 5


@pytest.mark.parametrize(('change', 'message'), [
    (lambda s: s.replace(step=np.int64(0)), r'another optimisation: step is \(\) int32 in the checkpoint and \(\) int64'),
    (lambda s: s.replace(ema=None), r'another optimisation: ema/dense/bias is \(7,\) bfloat16 in .* missing in the run'),
    (lambda s: s.replace(params={'dense': {'kernel': np.zeros((7, 300), np.float32), 'bias': s.params['dense']['bias']}}),
     r'another network: params/dense/kernel is \(300, 7\) float32 in the checkpoint and \(7, 300\) float32 in the run'),
    (lambda s: s.replace(params={'other': s.params['dense']}), r'another network: params/other/bias is missing in the'),
    (lambda s: s.replace(opt_state=()), r'another optimisation: opt_state/0/0/count is \(\) int32 in .* missing')],
    ids=['type', 'missing part', 'shape', 'name', 'optimizer'])
def test_a_state_of_another_structure_is_refused_with_the_first_array_that_differs(two, change, message):
    checkpoints = Checkpoints(str(two), cfg.CheckpointConfig(), ACCURACY, read_only=True)
    with pytest.raises(UserError, match=f'^checkpoint 2 in .* is of {message}'):
        checkpoints.read(2, change(TEMPLATE))
    with pytest.raises(UserError, match=message):  # unlike a damaged checkpoint, it is not skipped
        next(checkpoints.undamaged(change(TEMPLATE)))
    checkpoints.close()


# damage


def test_any_flipped_byte_is_detected_or_harmless(copy_of_two):
    """A folder opened anew gives checkpoint 2 as it was saved, or passes it over and gives checkpoint 1."""
    expected = {step: fingerprint(make_state(step)) for step in (1, 2)}
    rng, wrong, taken = np.random.default_rng(0), [], {1: 0, 2: 0}
    for path in files(copy_of_two / 'checkpoints' / '2'):
        content = path.read_bytes()
        places = {0, len(content) - 1, *rng.integers(0, len(content), 2 if len(content) < 4000 else 8).tolist()}
        for at in sorted(places):
            damaged = bytearray(content)
            damaged[at] ^= 1
            path.write_bytes(damaged)
            try:
                checkpoints = Checkpoints(str(copy_of_two), cfg.CheckpointConfig(), ACCURACY, read_only=True)
                step, state, progress = next(checkpoints.undamaged(TEMPLATE))
                checkpoints.close()
            except Exception as e:
                wrong.append((path.name, at, repr(e)[:80]))
                continue
            taken[step] += 1
            if fingerprint(state) != expected[step] or {k: progress.get(k) for k in PROGRESS} != PROGRESS:
                wrong.append((path.name, at))
        path.write_bytes(content)
    assert taken[1] > 15
    assert taken[2] > 5
    assert not wrong


def test_no_flipped_digit_of_the_progress_goes_unnoticed(copy_of_two):
    checkpoints = open_checkpoints(copy_of_two)
    _, expected = checkpoints.read(2, TEMPLATE)
    path = copy_of_two / 'checkpoints' / '2' / 'progress' / 'metadata'
    content, wrong = path.read_bytes(), []
    for at in [i for i, byte in enumerate(content) if chr(byte).isdigit()][:12]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
        try:
            _, progress = checkpoints.read(2, TEMPLATE)
        except ValueError:
            continue
        if progress != expected:
            wrong.append(progress)
    checkpoints.close()
    assert not wrong


def flip(path):  # a stretch, since a single byte may lie where compression does not look at it
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 4, len(content) // 4 + 64):
        content[at] ^= 1
    path.write_bytes(content)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])


def largest(step):
    return max((step / 'state').rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0)


@pytest.mark.parametrize('damage', [
    lambda step: flip(largest(step)), lambda step: cut(largest(step)), lambda step: largest(step).unlink(),
    lambda step: cut(step / 'progress' / 'metadata'), lambda step: (step / 'progress' / 'metadata').unlink(),
    lambda step: cut(step / 'state' / 'manifest.ocdbt'), lambda step: cut(step / 'state' / '_METADATA'),
    lambda step: shutil.rmtree(step / 'state')],
    ids=['flipped', 'cut', 'missing', 'progress cut', 'progress missing', 'manifest cut', 'metadata cut', 'no state'])
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_the_log_says_so(copy_of_two, damage, caplog):
    damage(copy_of_two / 'checkpoints' / '2')
    checkpoints = open_checkpoints(copy_of_two)
    with caplog.at_level(logging.WARNING, 'jaxcnn'):
        step, state, progress = next(checkpoints.undamaged(TEMPLATE))
    checkpoints.close()
    assert step == 1
    assert_same_bits(state, make_state(1))
    assert progress['best_value'] == 0.5
    lines = [r.getMessage() for r in caplog.records if r.name == 'jaxcnn']
    assert len(lines) == 1
    assert lines[0].startswith('checkpoint 2 is damaged and not used: ')


def test_undamaged_the_newest_is_taken_and_nothing_is_logged(two, caplog):
    checkpoints = Checkpoints(str(two), cfg.CheckpointConfig(), ACCURACY, read_only=True)
    assert [step for step, _, _ in checkpoints.undamaged(TEMPLATE)] == [2, 1]
    checkpoints.close()
    assert not [r for r in caplog.records if r.name == 'jaxcnn']


def test_where_all_are_damaged_none_is_taken(copy_of_two):
    for step in (1, 2):
        flip(largest(copy_of_two / 'checkpoints' / str(step)))
    checkpoints = open_checkpoints(copy_of_two)
    assert list(checkpoints.undamaged(TEMPLATE)) == []
    checkpoints.close()


def test_a_half_written_checkpoint_is_no_checkpoint(copy_of_two):
    folder = copy_of_two / 'checkpoints'
    (folder / '2').rename(folder / '2.orbax-checkpoint-tmp')  # as a crash before the last rename leaves it
    checkpoints = open_checkpoints(copy_of_two)
    assert checkpoints.steps() == [1]
    save(checkpoints, 2, 0.75)
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ['1', '2']


def test_a_damaged_checkpoint_can_be_deleted_and_written_again(copy_of_two):
    cut(largest(copy_of_two / 'checkpoints' / '2'))
    checkpoints = open_checkpoints(copy_of_two)
    checkpoints.discard(2)
    assert checkpoints.steps() == [1]
    save(checkpoints, 2, 0.75)
    assert_same_bits(checkpoints.read(2, TEMPLATE)[0], make_state(2))
    checkpoints.close()


# which are kept, and which is best


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = open_checkpoints(tmp_path, keep=2)
    kept = []
    for step, accuracy in enumerate([0.3, 0.9, 0.5, 0.8, 0.2], 1):
        save(checkpoints, step, accuracy)
        kept.append(checkpoints.steps())
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]
    assert checkpoints.best_step() == 2
    checkpoints.close()
    again = open_checkpoints(tmp_path, keep=1)
    save(again, 6)  # never evaluated: no candidate
    assert again.steps() == [2, 6]
    save(again, 7, 0.95)
    assert again.steps() == [7]
    again.close()


def test_checkpoints_of_certain_steps_are_never_removed(tmp_path):
    for steps in (range(1, 4), range(4, 8)):  # a run and its continuation
        checkpoints = open_checkpoints(tmp_path, permanent_steps=[1, 3, 5, 64], keep=1)
        for step in steps:
            save(checkpoints, step, 0.9 if step == 2 else 0.1)
        checkpoints.close()
    assert checkpoints.steps() == [1, 2, 3, 5, 7]


@pytest.mark.parametrize(('metric', 'values', 'best'), [
    ('val_accuracy', [0.3, 0.9, 0.5], 2), ('val_loss', [0.3, 0.9, 0.5], 1), ('val_accuracy', [0.9, 0.9, 0.5], 2),
    ('val_loss', [0.3, 0.5, 0.3], 3), ('val_accuracy', [None, 0.1, None], 2), ('val_loss', [None, None, None], None),
    ('val_loss', [float('nan'), 0.5, float('nan')], 2)])
def test_best_is_the_highest_accuracy_or_the_lowest_loss_the_later_of_equals(tmp_path, metric, values, best):
    checkpoints = open_checkpoints(tmp_path, MEASUREMENTS[metric], keep=3)
    for step, value in enumerate(values, 1):
        save(checkpoints, step, value, metric)
    assert checkpoints.best_step() == best
    checkpoints.close()


def test_a_checkpoint_whose_metrics_are_damaged_is_not_the_best(copy_of_two):
    cut(copy_of_two / 'checkpoints' / '2' / 'progress' / 'metadata')
    checkpoints = open_checkpoints(copy_of_two)
    assert checkpoints.best_step() == 1
    assert next(checkpoints.undamaged(TEMPLATE))[0] == 1
    checkpoints.close()


# the fingerprint


def test_any_changed_bit_changes_the_fingerprint():
    state, seen = make_state(1, size=3), set()
    seen.add(fingerprint(state))
    count = 1
    for i, leaf in enumerate(jax.tree.leaves(state)):
        for bit in range(8 * np.asarray(leaf).nbytes):
            content = bytearray(np.asarray(leaf).tobytes())
            content[bit // 8] ^= 1 << bit % 8
            leaves = jax.tree.leaves(state)
            leaves[i] = np.frombuffer(bytes(content), np.asarray(leaf).dtype).reshape(np.shape(leaf))
            seen.add(fingerprint(jax.tree.unflatten(jax.tree.structure(state), leaves)))
            count += 1
    assert len(seen) == count > 1000
    assert fingerprint(make_state(1, size=3)) in seen


@pytest.mark.parametrize(('a', 'b'), [
    (np.zeros(4, np.float32), np.zeros(4, np.int32)), (np.zeros((2, 3)), np.zeros((3, 2))),
    (np.zeros(8, np.uint8), np.zeros(1, np.uint64)), (np.zeros(2, jnp.bfloat16), np.zeros(2, np.float16))])
def test_the_fingerprint_tells_types_and_shapes(a, b):
    assert fingerprint([a]) != fingerprint([b])
    assert fingerprint([a]) == fingerprint([a.copy()])


def test_the_fingerprint_does_not_depend_on_the_memory_layout():
    array = np.random.default_rng(0).normal(size=(5, 4))
    assert fingerprint([np.asfortranarray(array)]) == fingerprint([array])
    assert fingerprint([np.repeat(array, 2, axis=0)[::2]]) == fingerprint([array])


# a full disk


FULL_DISK = '''
import logging, resource, sys
import jax
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_checkpoint import TEMPLATE, make_state, open_checkpoints, save
from jaxcnn.errors import UserError

logging.getLogger('absl').setLevel(logging.CRITICAL)
checkpoints = open_checkpoints(sys.argv[1])
save(checkpoints, 1, 0.5)
save(checkpoints, 2, 0.4)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # writing more fails, as on a full disk
for step in eval(sys.argv[3]):
    try:
        save(checkpoints, step, 0.9)
    except UserError as e:
        print('refused:', e)
    else:
        print('written')
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
try:
    checkpoints.close()
except Exception as e:
    print('close:', type(e).__name__, e)
'''


def run_on_a_full_disk(folder, steps):
    done = subprocess.run([sys.executable, '-c', FULL_DISK, str(folder), os.path.dirname(__file__), repr(steps)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize('steps', [(3, 4), (2,)], ids=['later ones', 'the newest anew'])
def test_a_save_that_fails_is_reported_and_keeps_the_checkpoints_before(tmp_path, steps):
    lines = run_on_a_full_disk(tmp_path, steps)
    assert len(lines) == len(steps)
    for line in lines:
        assert line.startswith('refused: could not write a checkpoint to')
        assert str(tmp_path) in line
    checkpoints = open_checkpoints(tmp_path)
    states_by_step = {step: state for step, state, _ in checkpoints.undamaged(TEMPLATE)}
    assert sorted(states_by_step) == [1, 2]
    for step, state in states_by_step.items():
        assert_same_bits(state, make_state(step))
    assert checkpoints.best_step() == 1
    save(checkpoints, 3, 0.9)  # with room again, it goes on
    assert checkpoints.steps()[-1] == 3
    checkpoints.close()


# parts of a state


@pytest.mark.parametrize('ema', [False, True])
def test_weights_are_read_without_the_optimizers_state(tmp_path, ema):
    state = make_state(3, ema)
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 3, state=state)
    checkpoints.wait()
    for path in (tmp_path / 'checkpoints' / '3' / 'state').rglob('*opt_state*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    template = Weights(*(jax.tree.map(np.zeros_like, part) for part in (state.params, state.batch_stats, state.ema)))
    weights = checkpoints.read_weights(3, template)
    assert_same_bits(weights, Weights(state.params, state.batch_stats, state.ema))
    with pytest.raises(UserError, match=r'checkpoint 3 in .* is of another network: params/dense/bias is \(7,\) bfloat16'):
        checkpoints.read_weights(3, template.replace(params={'dense': {'bias': np.zeros(8)}}))
    checkpoints.close()


def test_a_checkpoint_of_a_state_that_lacked_a_field_is_read(copy_of_two):
    path = copy_of_two / 'checkpoints' / '2' / 'progress' / 'metadata'
    content = sealed.unseal(json.loads(path.read_text()))
    del content['fingerprints']['pruning']
    path.write_text(json.dumps(sealed.seal(content)))
    state, _ = open_checkpoints(copy_of_two).read(2, TEMPLATE)
    assert_same_bits(state, make_state(2))
