"""Streamed images: crops of image files, and trainings that decode images whenever they are used."""

import functools
import itertools
import os

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcnn import data
from jaxcnn.config import DataConfig, parse
from jaxcnn.data import augment, feed, picture, stream
from jaxcnn.data.crops import Crop
from jaxcnn.errors import UserError
from jaxcnn.timeline import Timeline

SIZES = ((40, 60), (70, 50), (48, 48), (36, 90))  # height and width


def smooth_image(height, width, seed):
    """Return a smooth image, uint8 (height, width, 3), which resizing and JPEG change little."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of two classes with images of different sizes, among them a turned one and a PNG file."""
    root = tmp_path_factory.mktemp('images')
    for split, class_name in itertools.product(('train', 'test'), ('a', 'b')):
        os.makedirs(root / split / class_name)
        for i, (height, width) in enumerate(SIZES):
            image = Image.fromarray(smooth_image(height, width, seed=10 * i + (class_name == 'b')))
            exif = Image.Exif()
            exif[0x0112] = 6 if i == 1 else 1
            path = root / split / class_name / f'{i}.{"png" if i == 2 else "jpg"}'
            image.save(path, quality=95, **({} if i == 2 else {'exif': exif}))
    return root


def load(folder, tmp_path, **fields):
    settings = dict(dir=str(folder), cache_dir=str(tmp_path / 'cache'), val_fraction=0.0)
    return data.load(DataConfig(**{'name': 'folder', **settings, **fields}))


def crop_of(text, height, width, rng=None, shorter=None):
    config = DataConfig(augment=text, image_size={'shorter': shorter} if shorter else 'original')
    return augment.split_pipeline(config, train=True)[0].draw(rng or np.random.default_rng(0), height, width)


def test_shorter_side_and_center_crop_equal_resizing_all_of_the_image_first():
    image = smooth_image(75, 100, 0)
    resized = np.asarray(Image.fromarray(image).resize((64, 48), Image.Resampling.BILINEAR))
    for crop in (crop_of('shorter_side(48)|center_crop(40)', 75, 100), crop_of('center_crop(40)', 75, 100, shorter=48)):
        np.testing.assert_array_equal(crop.apply(image, 75, 100), resized[4:44, 12:52])
    assert Crop.full(75, 101).resize_shorter(48).size == (48, 64)  # 64.64, rounded down as in torchvision


def test_random_resized_crop_uses_no_pixel_outside_its_rectangle():
    rng, areas, ratios = np.random.default_rng(1), [], []
    for _ in range(300):
        crop = crop_of('random_resized_crop(20, (0.2, 0.6))', 75, 100, rng)
        top, left, height, width = map(round, crop[:4])
        assert crop[:4] == (top, left, height, width)
        assert 0 <= top <= 75 - height
        assert 0 <= left <= 100 - width
        areas.append(height * width / 7500)
        ratios.append(width / height)
        image = np.full((75, 100, 3), 255, np.uint8)
        image[top:top + height, left:left + width] = 7
        assert (crop.apply(image, 75, 100) == 7).all()
    assert 0.19 < min(areas) < 0.22
    assert 0.55 < max(areas) < 0.61
    assert abs(np.mean(areas) - 0.4) < 0.02
    assert 0.73 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.36


def test_scale_jitter_draws_every_length_and_position():
    rng = np.random.default_rng(2)
    crops = [crop_of('scale_jitter(30, (30, 33))', 60, 80, rng) for _ in range(200)]
    assert {round(30 * 60 / crop.height) for crop in crops} == {30, 31, 32, 33}
    assert all(0 <= crop.top < 60.001 - crop.height and 0 <= crop.left < 80.001 - crop.width for crop in crops)
    assert min(crop.left for crop in crops) < 2
    assert max(crop.left + crop.width for crop in crops) > 78


def test_a_scaled_jpeg_file_gives_nearly_the_crop_of_the_full_image(tmp_path):
    image = smooth_image(240, 320, 3)
    for orientation in (1, 6):  # 6: the stored image is turned by 90 degrees
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(image).save(tmp_path / 'x.jpg', quality=95, exif=exif)
        content = (tmp_path / 'x.jpg').read_bytes()

        def draw(height, width):
            return Crop.full(height, width).cut(100, 30, 120, 200, limit=True).resize(30, 50)
        exact, scaled = (picture.decode_crop(content, 'RGB', draw, is_exact) for is_exact in (True, False))
        assert not np.array_equal(exact, scaled)
        differences = np.abs(exact.astype(int) - scaled)
        assert differences.mean() < 2
        assert differences.max() <= 12
        assert np.ptp(exact) > 30


def test_a_stream_of_one_size_has_the_bits_of_the_cache(folder, tmp_path):
    for size in (24, (20, 28)):
        decoded, streamed = (load(folder, tmp_path, image_size=size, placement=name) for name in ('host', 'stream'))
        assert streamed.splits['train'].is_streamed
        assert not decoded.splits['train'].is_streamed
        assert decoded.mean == streamed.mean
        assert decoded.std == streamed.std
        for name, split in decoded.splits.items():
            positions = np.arange(len(split))
            np.testing.assert_array_equal(streamed.splits[name].take(positions), split.take(positions))
            np.testing.assert_array_equal(streamed.splits[name].targets['label'], split.targets['label'])
        streamed.check_same(decoded.info(), 'run')  # a run can be resumed with the other placement


@pytest.mark.parametrize('workers', [0, pytest.param(3, marks=pytest.mark.slow)])
def test_batches_depend_on_seed_epoch_and_image_alone(folder, tmp_path, workers):
    fields = dict(image_size='original', augment='random_resized_crop(16)', eval_augment='resize(16)')
    dataset = load(folder, tmp_path, **fields)
    timeline = Timeline(parse({'batch_size': 3, 'duration': {'steps': 8}}), len(dataset.splits['train']))
    make_feed = functools.partial(feed.TrainFeed, dataset.splits['train'], timeline=timeline, on_device=False)
    images = {}
    first = make_feed(seed=5)
    for step in range(8):
        batch = first.batch(step, 1)
        for row in zip(batch['epoch'][0], batch['position'][0], batch['image'][0], strict=True):
            images[row[:2]] = row[2]
    assert len({image.tobytes() for image in images.values()}) == len(images) == 24
    repeated = dataset.splits['train'].take_for_training(np.zeros(2, int), 5, np.arange(2))  # as in balanced epochs
    assert repeated[0].tobytes() != repeated[1].tobytes()
    resumed = make_feed(seed=5, workers=workers)
    batch = resumed.batch(4, 2)
    for row in zip(batch['epoch'].ravel(), batch['position'].ravel(), batch['image'].reshape(-1, 16, 16, 3), strict=True):
        np.testing.assert_array_equal(row[2], images[row[:2]])
    first.close()
    resumed.close()


def test_evaluation_has_every_image_once_and_in_order(folder, tmp_path):
    split = load(folder, tmp_path, image_size={'shorter': 20}, augment='random_crop(16)',
                 eval_augment='center_crop(16)').splits['test']
    batches = [*feed.eval_batches(split, 3, on_device=False)]
    images = np.concatenate([batch['image'] for batch in batches])[:len(split)]
    np.testing.assert_array_equal(images, split.take(np.arange(len(split))))
    assert np.concatenate([batch['mask'] for batch in batches]).sum() == len(split) == 8
    assert images.shape[1:] == (16, 16, 3)


@pytest.mark.parametrize(('fields', 'message'), [
    (dict(image_size='original', augment='flip_lr', eval_augment='resize(8)'),
     r"config\.data\.augment: must begin with operations that bring images to one size.*random_resized_crop"),
    (dict(image_size={'shorter': 30}, augment='random_crop(16)', eval_augment='shorter_side(20)'),
     r"config\.data\.eval_augment: must begin with .*'shorter_side\(20\)'; these do: center_crop, resize"),
    (dict(image_size='original', augment='random_crop(45)', eval_augment='center_crop(45)'),
     r'a/0\.jpg: its 40 x 60 pixels are smaller than the crop, 45 x 45; shorter_side'),
    (dict(image_size={'shorter': 40}, augment='random_crop(48)', eval_augment='center_crop(40)'),
     r"config\.data\.augment: 'random_crop\(48\)' crops more than there is of images with .*'shorter': 40"),
    (dict(image_size='original', augment='resize(8)', eval_augment='resize(8)', placement='device'),
     r"config\.data\.placement: 'device' stores images of one size"),
    (dict(placement='stream', image_size=0), r'a/1\.jpg: has the shape .*, but the first image .*original'),
])
def test_mistakes(folder, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        load(folder, tmp_path, **fields)


def test_auto_streams_what_would_be_too_large_for_the_cache(folder, tmp_path, monkeypatch):
    num_bytes = 16 * 24 * 24 * 3  # of both splits
    for threshold, is_streamed in ((num_bytes, False), (num_bytes - 1, True)):
        monkeypatch.setattr(stream, 'STREAM_THRESHOLD', threshold)
        dataset = load(folder, tmp_path / str(threshold), image_size=24)
        assert dataset.splits['train'].is_streamed == is_streamed
        assert feed.fits_on_device(dataset.splits.values()) != is_streamed


def test_images_in_memory_cannot_be_streamed(tmp_path):
    with pytest.raises(UserError, match=r'config\.data\.placement: .*scikit-learn cannot be streamed'):
        load('', tmp_path, name='digits', placement='stream')


def test_skip_broken_leaves_out_truncated_and_small_files(folder, tmp_path):
    copy = tmp_path / 'copy'
    for path in folder.rglob('*.*'):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        target.write_bytes(content[:len(content) // 2] if path.match('train/a/0.jpg') else content)
    fields = dict(image_size='original', augment='random_crop(40)', eval_augment='center_crop(40)')
    dataset = load(copy, tmp_path, skip_broken=True, **fields)
    assert dataset.broken == {'train': 3, 'test': 2}  # 36 x 90 pixels are too small
    assert len(dataset.splits['train']) == 5
    dataset = load(copy, tmp_path, skip_broken=True, **{**fields, 'eval_augment': 'resize(40)'})
    assert dataset.broken == {'train': 3, 'test': 0}  # evaluation can use them
    with pytest.raises(UserError, match=r'a/0\.jpg: .*truncated.*skip_broken=True checks all images'):
        load(copy, tmp_path, image_size='original', augment='resize(8)', eval_augment='resize(8)')


@pytest.mark.parametrize('size', [0, 64, (48, 64), {'shorter': 256}, 'original'])
def test_image_size_survives_the_json_file_of_a_run(size):
    from jaxcnn.config import to_dict
    config = parse({'data': {'image_size': size}})
    assert parse(to_dict(config)) == config
    assert config.data.image_size == size


@pytest.mark.parametrize('size', [-1, True, (64,), (0, 3), {'longer': 3}, {'shorter': 0}, 'big', 2.5])
def test_wrong_image_size(size):
    with pytest.raises(UserError, match=r'config\.data\.image_size: expected a number of pixels, \(height, width\), dict'):
        parse({'data': {'image_size': size}})


def test_the_rest_of_the_pipeline_runs_on_crops():
    config = DataConfig(image_size='original', augment='random_resized_crop(16)|flip_lr(1.0)')
    crops, rest = augment.split_pipeline(config, train=True)
    assert crops.size == (16, 16)
    assert (len(rest.ops), rest.text) == (1, 'flip_lr(1.0)')
    image = np.arange(16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)
    np.testing.assert_array_equal(rest(jax.random.key(0), image), image[:, ::-1])
