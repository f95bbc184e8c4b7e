"""Distillation: its terms against their definitions in NumPy, and runs that learn from other runs."""

import json
import shutil
from types import SimpleNamespace

import event_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn import experiment, tasks
from jaxcnn.errors import UserError
from jaxcnn.run import load_run
from jaxcnn.training import distillation
from jaxcnn.training.distillation import Distillation
from jaxcnn.training.entry_point import train
from jaxcnn.training.loss_terms import Forward

RNG = np.random.default_rng(0)
STUDENT, FIRST, SECOND = RNG.normal(0, 2, (3, 6, 4))  # logits


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def applied(logits, teacher_logits, task='classification', **fields):
    """Return the loss and the scalars of distillation for the logits of a student and of its teachers."""
    config = cfg.DistillationConfig(teachers=('teacher',) * len(teacher_logits), **fields)
    teachers = tuple(SimpleNamespace(outputs=lambda z, pixels, features: (z, {})) for _ in teacher_logits)
    task = tasks.create(cfg.parse({'task': task, 'loss': 'cross_entropy' if task == 'classification' else 'bce'}),
                        list('abcd'), [1] * 4, 4)
    targets = {'label': jnp.arange(6) % 4} if task.name == 'classification' else {'labels': jnp.eye(6, 4)}
    forward = Forward(None, None, task, jnp.int32(0), None, targets, logits, {}, {}, None)
    term = Distillation(config, teachers, 0, ())
    return term(task.loss(logits, targets), forward, None, tuple(map(jnp.asarray, teacher_logits)), {})[:2]


@pytest.mark.parametrize('task', ['classification', 'multilabel'])
def test_the_loss_is_that_of_hinton(task):
    """alpha T^2 KL(teachers || student) + (1 - alpha) loss, with the weighted mean of the teachers' probabilities at T."""
    temperature, alpha, weights = 3.0, 0.7, (3.0, 1.0)
    loss, scalars = applied(STUDENT, (FIRST, SECOND), task, temperature=temperature, alpha=alpha, weights=weights)
    if task == 'classification':
        p = 0.75 * softmax(FIRST / temperature) + 0.25 * softmax(SECOND / temperature)
        kl = (p * np.log(p / softmax(STUDENT / temperature))).sum(-1).mean()
        targets = -np.log(softmax(STUDENT)[np.arange(6), np.arange(6) % 4]).mean()
        right = (0.75 * softmax(FIRST) + 0.25 * softmax(SECOND)).argmax(-1) == np.arange(6) % 4
        np.testing.assert_allclose(scalars['teacher_accuracy'], right.mean(), rtol=1e-6)
    else:
        p, q = 0.75 * sigmoid(FIRST / temperature) + 0.25 * sigmoid(SECOND / temperature), sigmoid(STUDENT / temperature)
        kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
        targets = -np.where(np.eye(6, 4) > 0, np.log(sigmoid(STUDENT)), np.log(sigmoid(-STUDENT))).mean()
    np.testing.assert_allclose(scalars['distillation_loss'], temperature ** 2 * kl, rtol=1e-5)
    np.testing.assert_allclose(loss, alpha * temperature ** 2 * kl + (1 - alpha) * targets, rtol=1e-5)


def test_without_the_weight_of_the_teachers_the_loss_and_its_gradient_are_the_ordinary_ones():
    def loss(z):
        return applied(z, (FIRST,), alpha=0.0)[0]
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(STUDENT, jnp.float32))
    labels = jnp.arange(6) % 4
    expected, expected_gradient = jax.value_and_grad(
        lambda z: -jax.nn.log_softmax(z)[jnp.arange(6), labels].mean())(jnp.asarray(STUDENT, jnp.float32))
    assert value == expected
    np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.parametrize('temperature', [1.0, 4.0, 300.0])
def test_the_gradient_is_that_of_fixed_teachers_and_matches_logits_at_high_temperatures(temperature):
    """It is alpha T (q - p) / N (Hinton et al. 2015, equation 2), and tends to that of half the squared difference of the
    centred logits, divided by the number of classes (equation 4). The teacher gets no gradient."""
    def loss(z, teacher):
        return applied(z, (teacher,), temperature=temperature, alpha=1.0)[0]
    gradient = jax.grad(loss)(jnp.asarray(STUDENT, jnp.float32), FIRST)
    p, q = softmax(FIRST / temperature), softmax(STUDENT / temperature)
    np.testing.assert_allclose(gradient, temperature * (q - p) / 6, atol=2e-7 * temperature)
    if temperature == 300:
        difference = STUDENT - STUDENT.mean(-1, keepdims=True) - FIRST + FIRST.mean(-1, keepdims=True)
        np.testing.assert_allclose(gradient, difference / 4 / 6, rtol=0.05, atol=2e-3)


def test_hints_alone_are_the_loss_until_a_step():
    """And a hint is that of the teacher that it names."""
    hint = cfg.HintConfig(teacher_map='a', student_map='b', weight=3.0, teacher=1)
    config = cfg.DistillationConfig(teachers=('first', 'second'), hints=(hint,), hints_alone=cfg.Duration('steps', 2))
    maps = [{'a': jnp.full((6, 2, 2, 1), value)} for value in (5.0, 7.0)]
    teachers = tuple(SimpleNamespace(outputs=lambda z, pixels, features, i=i: (z, maps[i])) for i in range(2))
    task, targets = tasks.create(cfg.parse({}), list('abcd'), [1] * 4, 4), {'label': jnp.arange(6) % 4}
    values = {}
    for step in (1, 2):
        forward = Forward(None, None, task, jnp.int32(step), None, targets, STUDENT, {'b': jnp.ones((6, 2, 2, 1))}, {}, None)
        loss, scalars, _ = Distillation(config, teachers, 2, ((1, 1),))(
            jnp.float32(1.5), forward, None, (jnp.asarray(FIRST), jnp.asarray(SECOND)), {})
        np.testing.assert_allclose(scalars['hint_loss'], 3 * (7 - 1) ** 2 / 2)
        values[step] = loss
    np.testing.assert_allclose(values[1], 54)
    np.testing.assert_allclose(values[2], 54 + 0.1 * 1.5 + 0.9 * scalars['distillation_loss'], rtol=1e-6)


def resized(maps, size):
    """Resize (N, H, W, C) by the weights of a triangle filter, which is as wide as a pixel of the smaller map."""
    for axis in (1, 2):
        scale = maps.shape[axis] / size
        centres, positions = (np.arange(size) + 0.5) * scale, np.arange(maps.shape[axis]) + 0.5
        weights = np.maximum(0, 1 - np.abs(positions - centres[:, None]) / scale)
        weights /= weights.sum(1, keepdims=True)
        maps = np.moveaxis(np.tensordot(weights, maps, (1, axis)), 0, axis)
    return maps


def test_hints_are_those_of_fitnets_and_of_attention_transfer():
    """Maps of 4 x 4 and 2 channels against maps of 2 x 2 and 3 channels."""
    student, teacher = RNG.normal(0, 1, (5, 4, 4, 2)), RNG.normal(0, 1, (5, 2, 2, 3))
    regressor = {'kernel': RNG.normal(0, 1, (2, 3)), 'bias': RNG.normal(0, 1, 3)}
    expected = ((resized(student, 2) @ regressor['kernel'] + regressor['bias'] - teacher) ** 2).mean() / 2
    np.testing.assert_allclose(distillation.feature_loss(jnp.asarray(student), jnp.asarray(teacher), regressor), expected,
                               rtol=1e-5)
    total = 0
    for image in range(5):
        vectors = []
        for maps in (student, teacher):
            attention = resized((maps[image:image + 1] ** 2).sum(-1, keepdims=True), 2).ravel()
            vectors.append(attention / np.sqrt((attention ** 2).sum()))
        total += ((vectors[0] - vectors[1]) ** 2).sum() / 2
    np.testing.assert_allclose(distillation.attention_loss(jnp.asarray(student), jnp.asarray(teacher)), total / 5, rtol=1e-5)
    silent = jax.grad(lambda x: distillation.attention_loss(x, jnp.asarray(teacher)))(jnp.zeros((5, 4, 4, 2)))
    np.testing.assert_array_equal(silent, 0)


# ---- runs


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """The workdir of a run of one step, with more features than the students and larger images."""
    folder = tmp_path_factory.mktemp('teacher') / 'run'
    train(dict(duration=dict(steps=1), batch_size=32, data=dict(name='digits', image_size=10),
               eval=dict(every=dict(steps=1)),
               model=dict(name='sequential', layers='conv(4)|relu|max_pool(2)|conv(8)|relu|flatten|dense'),
               parallel=dict(devices=1)), str(folder))
    return str(folder)


HINTS = (dict(teacher_map='conv2', student_map='conv2'),
         dict(teacher_map='conv1', student_map='conv1', method='attention', weight=2.0))


def student_of(small, teacher, **fields):
    """The config of a student."""
    return small(**{'duration': dict(steps=4), 'data': dict(image_size=8, augment='flip_lr'),
                    'model': dict(name='sequential', layers='conv(4)|norm|relu|max_pool(2)|conv(4)|relu|flatten|dense'),
                    'eval': dict(every=dict(steps=2)), 'log_every': dict(steps=1),
                    'distillation': dict(teachers=(teacher,), hints=HINTS), **fields})


def saved_state(folder):
    run = load_run(str(folder))
    return run.checkpoints.read(4, state_template(run))[0]


def state_template(run):
    from jaxcnn.training.setup import Setup
    return Setup(run.config, run.workdir).template


def teacher_metrics(teacher, student):
    """The loss and the accuracy of a teacher on the test images of a student, which are resized and normalised for it."""
    split = student.load_dataset().splits['test']
    images, labels = split.take(np.arange(len(split))), split.targets['label']
    pixels = jax.image.resize(images / np.float32(255), (len(images), *teacher.info['image_shape']), 'linear')
    inputs = (pixels - np.array(teacher.info['mean'])) / np.array(teacher.info['std'])
    p = softmax(np.asarray(teacher.experiment.network.apply(teacher.variables, inputs.astype(np.float32)), np.float64))
    return -np.log(p[np.arange(len(p)), labels]).mean(), (p.argmax(-1) == labels).mean()


def test_a_resumed_student_has_the_same_bits_and_needs_the_same_teacher(small, teacher, tmp_path, no_pictures):
    """The state holds the regressor of the hint, which is trained."""
    folder = tmp_path / 'student'
    config = student_of(small, teacher)
    train(config, str(folder))
    expected = saved_state(folder)
    assert jax.tree.map(np.shape, expected.loss_terms) == {'distillation': {'hint0': {'kernel': (4, 8), 'bias': (8,)}}}
    assert np.abs(expected.loss_terms['distillation']['hint0']['bias']).max() > 0
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert {'train_target_loss', 'train_distillation_loss', 'train_hint_loss', 'train_teacher_accuracy'} <= set(rows[0])
    checksums = json.loads((folder / 'config.json').read_text())['distillation']['checksums']
    assert checksums == [distillation.weight_sources.checksum(load_run(teacher).variables)]

    expected_metrics = teacher_metrics(load_run(teacher), load_run(str(folder)))
    summary = json.loads((folder / 'summary.json').read_text())['teachers']
    np.testing.assert_allclose([summary['test_loss'], summary['test_accuracy']], expected_metrics, rtol=1e-5)
    report = (folder / 'report.md').read_text()
    assert f'| test accuracy | {100 * expected_metrics[1]:.2f} % |' in report
    assert '| training loss, including distillation, last interval |' in report

    shutil.rmtree(folder / 'checkpoints' / '4')
    train(config, str(folder))
    jax.tree.map(np.testing.assert_array_equal, saved_state(folder), expected)

    shutil.rmtree(folder / 'checkpoints' / '4')
    record = (folder / 'config.json').read_text()
    (folder / 'config.json').write_text(record.replace(checksums[0], 64 * '0'))  # as if it had begun with another teacher
    with pytest.raises(UserError, match=r'^config\.distillation\.teachers: checkpoint 1 of .* expected .*has changed'):
        train(config, str(folder))


@pytest.mark.slow
def test_histograms_are_of_the_gradients_of_the_whole_loss(small, teacher, tmp_path, no_pictures):
    train(student_of(small, teacher, duration=dict(steps=2), log_histograms=dict(steps=2)), str(tmp_path / 'student'))
    names = {value.tag for path in (tmp_path / 'student').glob('events.*') for event in event_files.read_events(path)
             for value in event.summary.value}
    assert {'gradients/loss_terms/distillation/hint0/kernel', 'params/Conv_0/kernel', 'activations/conv2'} <= names


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['sharded', 'pmap'])
@pytest.mark.parametrize('fields', [
    {'trades': dict(iterations=2, norm='l2', eps=0.2, step=0.1)},
    {'data': dict(image_size=8, augment='', placement='host'), 'optim': dict(accumulate=2),
     'pruning': dict(sparsity=0.5, end=dict(steps=2), every=dict(steps=1))}], ids=['trades', 'accumulate and prune'])
def test_four_devices_train_as_one_does(small, teacher, tmp_path, no_pictures, backend, fields):
    states = []
    for devices in (1, 4):
        config = student_of(small, teacher, **fields, parallel={'devices': devices, 'backend': backend})
        train(config, str(tmp_path / str(devices)))
        states.append(saved_state(tmp_path / str(devices)))
    one, four = (np.concatenate([np.ravel(x) for x in jax.tree.leaves((s.params, s.loss_terms))]) for s in states)
    assert np.linalg.norm(one - four) < 1e-5 * np.linalg.norm(one)


def other_channels(teacher, folder):
    """Change the record of a run to that of a run with images of 3 channels."""
    shutil.copytree(teacher, folder)
    info = json.loads((folder / 'data.json').read_text())
    info.update(image_shape=[10, 10, 3], mean=[0.5] * 3, std=[0.2] * 3)
    (folder / 'data.json').write_text(json.dumps(info))


def other_classes(teacher, folder):
    shutil.copytree(teacher, folder)
    info = json.loads((folder / 'data.json').read_text())
    info['class_names'] = [*info['class_names'][:9], 'ten']
    (folder / 'data.json').write_text(json.dumps(info))


def other_task(teacher, folder):
    shutil.copytree(teacher, folder)
    config = json.loads((folder / 'config.json').read_text())
    config.update(task={'name': 'multilabel'}, loss={'name': 'bce'})
    (folder / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize(('change', 'line'), [
    (None, r"workdir '.*other' does not exist$"),
    (other_channels, r"the run in '.*other' takes images of 3 channels, and this run 1$"),
    (other_classes, r"the run in '.*' has 10 classes, and this run 10: 'ten' is in the teacher alone, '9' is in"),
    (other_task, r"the run in '.*other' has the task 'multilabel', and this run 'classification'$")])
def test_an_unfit_teacher_gives_one_line(small, teacher, tmp_path, change, line):
    if change:
        change(teacher, tmp_path / 'other')
    config = student_of(small, teacher, distillation=dict(teachers=(teacher, str(tmp_path / 'other'))))
    with pytest.raises(UserError, match=r'^config\.distillation\.teachers\[1\]: ' + line) as error:
        train(config, str(tmp_path / 'student'))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'student' / 'config.json').exists()


@pytest.mark.parametrize(('fields', 'line'), [
    (dict(teachers=()), r'\.teachers: expected at least one workdir, got \[\]$'),
    (dict(weights=(1.0, 2.0)), r'\.weights: got 2 for 1 teachers$'),
    (dict(temperature=0.0), r'\.temperature: expected a finite number above 0'),
    (dict(hints_alone=dict(steps=1)), r'\.hints_alone: there are no hints'),
    (dict(hints=[dict(teacher_map='conv1', student_map='conv1', teacher=1)]), r'\.hints\[0\]\.teacher: got 1, but the last'),
    (dict(hints=[dict(teacher_map='conv1')]), r'\.hints\[0\]\.student_map: is missing'),
    (dict(hints=[dict(teacher_map='conv1', student_map='conv9')]), r"unknown feature map of sequential 'conv9'; nearest"),
    (dict(checkpoint='7'), r"\.checkpoint: no checkpoint '7'")], ids=str)
def test_wrong_fields_give_one_line(small, teacher, tmp_path, fields, line):
    with pytest.raises(UserError, match=r'config\.distillation.*' + line) as error:
        train(student_of(small, teacher, distillation={'teachers': (teacher,), **fields}), str(tmp_path / 'student'))
    assert '\n' not in str(error.value)


def test_a_task_without_classes_is_refused():
    with pytest.raises(UserError, match=r"config\.distillation: the task 'detection' has no probabilities"):
        experiment.check(cfg.parse(cfg.override(cfg.load('bccd_fcos'), {'distillation': dict(teachers=('runs/a',))})))
