"""Evaluation protocols: the views of each, against plain loops in NumPy and against PyTorch."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import jaxcnn
from jaxcnn import config, data, experiment
from jaxcnn.cli import evaluate
from jaxcnn.errors import UserError
from jaxcnn.evaluation import protocols, sampling, views
from jaxcnn.run import load_run

SIZE, CLASSES = 12, ['a', 'b', 'c']
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class ListedExamples:
    """Examples whose images differ in size."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {'image': self.images[index], 'label': index % len(CLASSES)}


def make_images(count, seed=0):
    """Smooth images of two sizes, so that views at other positions differ."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 3, 3, 3), np.uint8)
    sizes = [(23, 31), (29, 19)]
    return [np.asarray(Image.fromarray(x).resize(sizes[i % 2], Image.Resampling.BICUBIC)) for i, x in enumerate(small)]


def build(images, image_size=SIZE, classes=CLASSES, mean=MEAN, std=STD, **fields):
    """An experiment and its data, whose splits train and test have the same images; val is split off from train."""
    source = data.Source('images', {'source': [image.tolist() for image in images]},
                         {split: lambda: ListedExamples(images) for split in ('train', 'test')}, lambda: classes)
    data_fields = {'image_size': image_size, 'val_fraction': 0.5, 'augment': '', **fields.pop('data', {})}
    parsed = config.parse({'eval': {'batch_size': 3}, 'data': data_fields, **fields})
    dataset = data.load(parsed.data, source=source)
    info = {**dataset.info(), 'mean': mean, 'std': std}
    fitted = [{'mean': np.zeros((image_size, image_size, 3)), 'std': np.ones((image_size, image_size, 3))}]
    return experiment.build(parsed, info, lambda *_: fitted), dataset


class Halves(jaxcnn.Network):
    """A dense layer on the means of the left and of the right half, which sees position, size and mirroring."""

    def forward(self, x, train, maps):
        half = x.shape[2] // 2
        means = [part.mean((1, 2)) for part in (x[:, :, :half], x[:, :, half:])]
        return self.dense(self.num_classes)(jax.numpy.concatenate(means, 1))


@pytest.fixture
def halves(new_registrations):
    """The experiment of `Halves` and its data, variables, and its probabilities of one view in NumPy."""
    jaxcnn.register_model(Halves, name='halves')
    built, dataset = build(make_images(6), model='halves')
    rng = np.random.default_rng(1)
    kernel, bias = 4 * rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)

    def probabilities(view):
        x = (view / 255 - MEAN) / STD
        half = x.shape[1] // 2
        scores = np.exp(np.concatenate([x[:, :half].mean((0, 1)), x[:, half:].mean((0, 1))]) @ kernel + bias)
        return scores / scores.sum()
    return built, dataset, {'params': {'Dense_0': {'kernel': kernel, 'bias': bias}}}, probabilities


def resized(image, shorter):
    height, width = image.shape[:2]
    factor = shorter / min(height, width)
    return np.asarray(Image.fromarray(image).resize((int(width * factor + 1e-9), int(height * factor + 1e-9)),
                                                    Image.Resampling.BILINEAR))


def with_mirror_images(crops):
    return [x for crop in crops for x in (crop, crop[:, ::-1])]


def loop_over_center(image):
    x = resized(image, 14)
    top, left = (round((side - SIZE) / 2) for side in x.shape[:2])
    return [x[top:top + SIZE, left:left + SIZE]]


def loop_over_grid(image, scales, count):
    crops = []
    for shorter in scales:
        x = resized(image, shorter)
        for i, j in itertools.product(range(count), repeat=2):
            top, left = ((side - SIZE) * k // (count - 1) for side, k in zip(x.shape[:2], (i, j), strict=True))
            crops.append(x[top:top + SIZE, left:left + SIZE])
    return with_mirror_images(crops)


def loop_over_scales(image, scales):
    return with_mirror_images([resized(image, shorter) for shorter in scales])


@pytest.mark.parametrize(('text', 'loops'), [
    ('center', [loop_over_center]),
    ('multi_crop(scales=(14, 17), grid=3)', [lambda image: loop_over_grid(image, (14, 17), 3)]),
    ('multi_scale', [lambda image: loop_over_scales(image, (14, 21, 27))]),
    ('multi_crop(16, 2) + dense((18, 25), flip=False)', [
        lambda image: loop_over_grid(image, (16,), 2), lambda image: [resized(image, 18), resized(image, 25)]])])
def test_a_protocol_is_a_mean_over_views_of_the_original_images(halves, text, loops, monkeypatch):
    monkeypatch.setattr(views, 'PENDING_BYTES', 4000)  # three views of the largest size
    built, dataset, variables, probabilities = halves
    predictions = protocols.parse(text).predict(built, variables, dataset, 'val')
    expected = []
    for i in dataset.splits['val'].index:  # half of the training images
        image = dataset.source.splits['train']()[i]['image']
        expected.append(np.mean([np.mean([*map(probabilities, loop(image))], 0) for loop in loops], 0))
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-4)
    assert predictions.labels.tolist() == [i % 3 for i in dataset.splits['val'].index]
    assert np.ptp(expected, 0).max() > 0.05


def test_protocols_share_their_views_and_log_their_progress(halves, monkeypatch, caplog):
    built, dataset, variables, _ = halves
    monkeypatch.setattr(views, '_PROGRESS_INTERVAL', 0)
    evaluated = []
    evaluate_views = protocols._evaluate_views
    monkeypatch.setattr(protocols, '_evaluate_views', lambda part, *args: (
        evaluated.append(part.describe(built)), evaluate_views(part, *args))[1])
    known = {}
    with caplog.at_level('INFO'):
        both, crops, image = (protocols.parse(text).predict(built, variables, dataset, 'test', known).probabilities
                              for text in ('multi_crop(16, 2) + dense((18, 25))', 'multi_crop(16, 2)', 'dense((18, 25))'))
    assert evaluated == ['multi_crop(scales=16, grid=2)', 'dense(scales=(18, 25))']
    np.testing.assert_allclose(both, (crops + image) / 2, rtol=1e-5)
    lines = [line for line in caplog.messages if line.startswith('dense(scales=(18, 25)): ')]
    assert lines[0].endswith(' left')
    assert ': 1 of 6 images, ' in lines[0]
    assert lines[-1].endswith(': 6 of 6 images, about 0:00 left')


def test_ten_crop_and_dense_are_those_of_pytorch():
    reference = np.load(pathlib.Path(__file__).with_name('pytorch_reference.npz'))
    images = [reference[f'image_{i}'] for i in range(3)]
    built, dataset = build(images, 16, ['a', 'b', 'c', 'd'], reference['mean'], reference['std'], data={'val_fraction': 0},
                           model={'name': 'vgg11', 'stages': ((4,), (6,)), 'hidden': 8})
    params = traverse_util.unflatten_dict({name: reference[name] for name in reference.files if '/' in name}, sep='/')
    for name in ('ten_crop', 'dense'):
        predictions = protocols.parse(f'{name}(22)').predict(built, {'params': params}, dataset, 'test')
        np.testing.assert_allclose(predictions.probabilities, reference[name], rtol=2e-5)


def test_samples_are_drawn_for_each_image_whatever_the_batch_size(halves):
    built, dataset, variables, probabilities = halves
    stored = dataset.splits['test'].take(np.arange(6))
    plain, mirrored = (np.array([probabilities(image) for image in images]) for images in (stored, stored[:, :, ::-1]))
    protocol = sampling.parse('flip_lr', 5)
    result = protocol.predict(built, variables, dataset, 'test').probabilities
    flips = 5 * (result - plain)[:, 0] / (mirrored - plain)[:, 0]
    np.testing.assert_allclose(result, plain + (mirrored - plain) * np.round(flips)[:, None] / 5, rtol=1e-4)
    assert len({*np.round(flips)} & {0, 1, 2, 3, 4, 5}) > 1
    one_batch, _ = build(make_images(6), model='halves', eval={'batch_size': 64})
    np.testing.assert_allclose(protocol.predict(one_batch, variables, dataset, 'test').probabilities, result, rtol=1e-5)
    alternating = sampling.parse('alternating_flip', 2).predict(built, variables, dataset, 'test').probabilities
    np.testing.assert_allclose(alternating, (plain + mirrored) / 2, rtol=1e-4)


@pytest.mark.parametrize(('text', 'fields', 'message'), [
    ('dens', {}, "unknown protocol 'dens'; nearest: dense"),
    ('ten_crop(short=3)', {}, "argument of protocol ten_crop 'short'; nearest: shorter"),
    ('dense(())', {}, r'dense.scales: expected a whole number of at least 1, got \(\)'),
    ('multi_scale(multiple=0)', {}, 'multi_scale.multiple: expected a whole number of at least 1, got 0'),
    ('center+', {}, "'' is not a name.*several are separated by '\\+'"),
    ('center(1.5)', {}, 'center.shorter: expected a whole number'),
    ('multi_crop(scales=(14, 10))', {}, r'multi_crop\(scales=\(14, 10\), grid=5\): .* 10 pixels .* smaller than the crops, '
     '12 x 12.* smallest scale is 12'),
    ('dense(5)', {'model': {'name': 'vgg11', 'stages': ((4,), (4,))}}, r'dense\(scales=5\): VGG needs .* at least 12 x 12'),
    ('dense', {'model': {'name': 'sequential', 'layers': 'flatten|dense'}},
     'network sequential takes images of 12 x 12 pixels only, .* dense layers'),
    ('dense', {'data': {'normalize': 'standardize_pixels'}, 'model': 'nin_cifar'},
     "normalisation 'standardize_pixels' takes images of 12 x 12 pixels only")])
def test_protocols_that_do_not_fit_are_refused_in_one_line(text, fields, message):
    def predict():
        built, dataset = build(make_images(6), **fields)
        images = jax.numpy.zeros((1, *built.image_shape))
        variables = jax.eval_shape(built.network.init, jax.random.key(0), images)
        protocols.parse(text).predict(built, variables, dataset, 'test')
    with pytest.raises(UserError, match=message) as error:
        predict()
    assert str(error.value).startswith('--protocol')


@pytest.mark.parametrize(('text', 'message'), [
    ('mixup(0.2)', "'mixup.*' mixes images or attacks the network"),
    ('flip', "unknown augmentation 'flip'; nearest: flip_ud, flip_lr"),
    ('random_crop(9)|flip_lr', 'makes images of 9 x 9 pixels, but the network takes 12 x 12')])
def test_augmentations_that_do_not_fit_are_refused_in_one_line(halves, text, message):
    built, dataset, variables, _ = halves
    with pytest.raises(UserError, match=f'--tta: .*{message}'):
        sampling.parse(text).predict(built, variables, dataset, 'test')


def test_the_command_evaluates_by_protocols(digits_runs, capsys):
    def run_command(*arguments):
        assert evaluate.run(evaluate.make_parser().parse_args([f'--workdir={digits_runs[0]}', *arguments])) == 0
        return capsys.readouterr().out

    predictions = protocols.predict_split(load_run(digits_runs[0]), 'test', protocols.parse('ten_crop'))
    values = json.loads(run_command('--protocol=ten_crop', '--json'))
    assert values['protocol'] == 'ten_crop(shorter=9)'
    assert values['accuracy'] == pytest.approx(predictions.correct.mean())
    loss = -predictions.log_probabilities[np.arange(45), predictions.labels].mean()
    assert values['loss'] == pytest.approx(loss, rel=1e-5)
    assert ', 3 x pad_crop(1): accuracy' in run_command('--tta=pad_crop(1)', '--samples=3')
    details = json.loads(run_command('--protocol=ten_crop', '--calibration', '--json'))
    assert details['accuracy'] == values['accuracy']
    assert details['title'].endswith(', ten_crop(shorter=9)')
    for flags, message in ((['--samples=3'], '--samples: needs --tta'), (['--tta=flip_lr', '--protocol=dense'], 'combined'),
                           (['--protocol=dense'], 'takes images of 8 x 8 pixels only')):
        with pytest.raises(UserError, match=message):
            run_command(*flags)
