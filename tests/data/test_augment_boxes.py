"""Boxes are moved with the pixels of their image: the box of a white rectangle stays the box of its white pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import config, tasks
from jaxcnn.config import DataConfig
from jaxcnn.data import augment
from jaxcnn.data.augment import Geometric, affine, geometry, move_boxes, policies
from jaxcnn.data.normalize import Normalization
from jaxcnn.errors import UserError
from jaxcnn.preprocessing import Preprocessor
from jaxcnn.tasks.base import Task

HEIGHT, WIDTH = 60, 80
BOX = np.array([24, 16, 48, 36], np.float32)
# by op, its call and the distance in pixels by which the moved box may differ
CALLS = {
    'affine': ('affine(10, 0.2, (0.7, 1.3), 10)', 1.5), 'alternating_flip': ('alternating_flip', 0),
    'center_crop': ('center_crop(40, 50)', 0), 'flip_lr': ('flip_lr', 0), 'flip_ud': ('flip_ud', 0),
    'large_scale_jitter': ('large_scale_jitter((0.4, 2.0), 0)', 1), 'pad': ('pad(7)', 0),
    'pad_crop': ('pad_crop(20)', 0), 'random_crop': ('random_crop(32, 40)', 0),
    'random_resized_crop': ('random_resized_crop(48, (0.4, 1.0), width=64)', 1),
    'resize': ('resize(50, 70)', 1), 'rotate': ('rotate(90)', 1.5), 'scale': ('scale((0.5, 1.5))', 1),
    'shorter_side': ('shorter_side(30)', 1),
    'scale_jitter': ('scale_jitter(48, (48, 90))', 1), 'shear': ('shear(15)', 1.5), 'translate': ('translate(0.4)', 1),
}
POLICIES = {'auto_augment', 'rand_augment', 'trivial_augment'}
KEYS = jax.random.split(jax.random.key(0), 24)


class BoxMixer:
    """The methods of a task that move boxes."""

    def __init__(self, min_visible=0.0):
        self.min_visible = min_visible

    def move(self, targets, matrix, size):
        return move_boxes(targets, matrix, size, self.min_visible)


def example(box=BOX, **others):
    """Return the image of a white rectangle, and its box among padding."""
    x0, y0, x1, y1 = map(int, box)
    image = np.zeros((HEIGHT, WIDTH, 1), np.float32)
    image[y0:y1, x0:x1] = 1
    return {'image': image, 'boxes': np.stack([box, 0 * box]), 'classes': np.array([3, 0]), 'valid': np.array([True, False]),
            'difficult': np.zeros(2, bool), **others}


def apply_to_example(text, example, mixer, keys=KEYS):
    """Return the examples that a pipeline makes of an example with each key, as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(lambda: apply_in_trace(text, example, mixer, keys))())


def apply_in_trace(text, example, mixer, keys):
    batch = {name: jnp.stack([jnp.asarray(value)] * len(keys)) for name, value in example.items()}
    return augment.parse_pipeline(text).batch(keys, batch, mixer, lambda x: x, None)


def bounding_box(image):
    rows, columns = np.nonzero(image[..., 0] > 0.5)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.fixture(scope='module')
def augmented():
    """The examples that each op makes of the white rectangle."""
    def apply_all():
        return {name: apply_in_trace(text, example(), BoxMixer(), KEYS) for name, (text, _) in CALLS.items()}
    return jax.tree.map(np.asarray, jax.jit(apply_all)())


def test_every_geometric_op_is_tested(augmented):
    texts = {name: CALLS.get(name, ('fgsm(0.1)',))[0] for name in augment.names()} | {
        'auto_augment': 'auto_augment("imagenet")', 'rand_augment': 'rand_augment', 'trivial_augment': 'trivial_augment'}
    moving = {name for name, text in texts.items() if isinstance(augment.parse_pipeline(text).ops[0], Geometric)}
    assert moving == {*CALLS, *POLICIES} - {'alternating_flip'}
    factories = {name: augment.AUGMENTATIONS.get(name).factory for name in augment.names()}
    modules = {affine.__name__, geometry.__name__}
    assert {name for name, factory in factories.items() if factory.__module__ in modules} == set(CALLS)


@pytest.mark.parametrize('name', CALLS)
def test_the_box_moves_with_the_pixels(augmented, name):
    results, tolerance = augmented[name], CALLS[name][1]
    visible = results['valid'][:, 0]
    assert visible.any()
    for image, boxes, is_visible in zip(results['image'], results['boxes'], visible, strict=True):
        if is_visible and (image > 0.5).any():
            assert np.abs(boxes[0] - bounding_box(image)).max() <= tolerance
        elif not is_visible:
            assert not (image > 0.5).any()
    assert len(np.unique(results['boxes'][:, 0], axis=0)) > 1 or name in ('pad', 'center_crop', 'resize', 'shorter_side')
    np.testing.assert_array_equal(results['classes'][:, 0], np.where(visible, 3, 0))
    for target in ('boxes', 'classes', 'valid', 'difficult', 'visible'):  # padding, and boxes out of the image
        assert not results[target][:, 1].any()
        assert not results[target][~visible].any()


def check_enclosing_boxes(results, tolerance):
    """Check that boxes enclose the white pixels of images, tightly unless an edge of the image cuts them off.

    A box that is turned or sheared and then cut off is larger than what is visible.
    """
    for image, boxes, valid in zip(results['image'], results['boxes'], results['valid'], strict=True):
        if valid[0]:
            excess = np.array([1, 1, -1, -1]) * (bounding_box(image) - boxes[0])  # positive where the box is larger
            is_cut = (boxes[0] == 0) | (boxes[0] == [WIDTH, HEIGHT, WIDTH, HEIGHT])
            assert excess.min() >= -tolerance
            assert excess.max() <= tolerance or is_cut.any()


def test_policies_move_boxes_by_the_maps_that_they_draw():
    space = policies.AugmentationSpace(31, shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)
    sample = policies.op_sampler(1, space, None)
    keys = jax.random.split(jax.random.key(1), 60)
    drawn, _ = jax.vmap(lambda key: sample(jax.random.fold_in(key, 0), (HEIGHT, WIDTH)))(keys)
    geometric = [policies.OPS.index(name) for name in ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')]
    moves = np.isin(np.asarray(drawn)[:, 0], geometric)
    assert set(geometric) <= {*np.asarray(drawn)[:, 0]}
    results = apply_to_example('trivial_augment', example(), BoxMixer(), keys)
    check_enclosing_boxes({name: values[moves] for name, values in results.items()}, 1.5)
    np.testing.assert_allclose(results['boxes'][~moves, 0], [BOX] * int((~moves).sum()), atol=1e-4)


def test_the_maps_of_the_ops_of_a_policy_are_composed_in_order(monkeypatch):
    """A translation along x and a rotation do not commute."""
    monkeypatch.setitem(policies.POLICIES, 'cifar10', ((('translate_x', 1.0, 4), ('rotate', 1.0, 9)),))
    results = apply_to_example('auto_augment("cifar10")', example(), BoxMixer())
    check_enclosing_boxes(results, 1.5)
    assert len(np.unique(np.round(results['boxes'][:, 0], 1), axis=0)) == 4, 'both amounts are positive or negative'
    assert (results['boxes'][:, 0] > 0).all(), 'no edge cuts the boxes off'


def test_flips_are_exact():
    """Also for boxes that are not at whole pixels."""
    boxes = np.array([[0.1, 2.7, 33.3, 59.99], [79.9, 0.3, 80, 60]], np.float32)
    targets = {**example(), 'boxes': boxes, 'valid': np.array([True, True])}
    for name, sides in (('flip_lr', [WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]]),
                        ('flip_ud', [boxes[:, 0], HEIGHT - boxes[:, 3], boxes[:, 2], HEIGHT - boxes[:, 1]])):
        results = apply_to_example(f'{name}(1)', targets, BoxMixer(1.0), KEYS[:1])
        np.testing.assert_array_equal(results['boxes'][0], np.stack(sides, -1))
        assert results['valid'].all()
        assert not results['difficult'].any()


def test_a_box_that_is_hardly_visible_becomes_difficult():
    """Of four boxes, the crop leaves all, a half, a fifth and nothing; the first is difficult already."""
    boxes = np.array([[30, 20, 40, 30], [15, 20, 25, 30], [58, 20, 68, 30], [0, 20, 20, 30]], np.float32)
    classes, difficult = np.array([1, 2, 3, 4]), np.array([True, False, False, False])
    targets = {**example(), 'boxes': boxes, 'classes': classes, 'valid': np.ones(4, bool), 'difficult': difficult,
               'proposals': boxes, 'proposal_valid': np.array([True, True, True, True]), 'original_size': np.array([9, 9])}
    results = apply_to_example('center_crop(40)', targets, BoxMixer(0.25), KEYS[:1])
    results = {name: values[0] for name, values in results.items()}
    moved = np.array([[10, 10, 20, 20], [0, 10, 5, 20], [38, 10, 40, 20], [0, 0, 0, 0]])
    np.testing.assert_array_equal(results['valid'], [True, True, True, False])
    np.testing.assert_array_equal(results['boxes'], moved)
    np.testing.assert_array_equal(results['classes'], [1, 2, 3, 0])
    np.testing.assert_array_equal(results['difficult'], [True, False, True, False])
    np.testing.assert_array_equal(results['proposals'], moved)
    np.testing.assert_array_equal(results['proposal_valid'], [True, True, True, False])
    np.testing.assert_array_equal(results['original_size'], [9, 9])


def test_what_is_visible_of_a_box_is_counted_from_the_start_of_the_pipeline():
    """The first crop leaves the columns from 10 to 70, and the second one, after the flip, those from 20 to 60.

    Each crop leaves at least a third of each box.
    """
    boxes = np.array([[0, 10, 25, 20], [0, 20, 30, 40], [12, 0, 28, 60]], np.float32)
    targets = {**example(), 'boxes': boxes, 'classes': np.arange(3), 'valid': np.ones(3, bool),
               'difficult': np.zeros(3, bool)}
    text = f'center_crop({HEIGHT}, 60)|flip_lr(1)|center_crop({HEIGHT}, 40)|resize(30, 80)'
    results = apply_to_example(text, targets, BoxMixer(0.25), KEYS[:1])
    np.testing.assert_allclose(results['boxes'][0], [[70, 5, 80, 10], [60, 10, 80, 20], [64, 0, 80, 30]], rtol=1e-5)
    np.testing.assert_allclose(results['visible'][0], [5 / 25, 10 / 30, 8 / 16], rtol=1e-5)
    np.testing.assert_array_equal(results['difficult'][0], [True, False, False])


def test_rounding_does_not_make_a_complete_box_incomplete():
    boxes = np.array([[0, 0, WIDTH, HEIGHT], [WIDTH - 7, HEIGHT - 7, WIDTH, HEIGHT]], np.float32)
    results = apply_to_example('resize(37, 53)', {**example(), 'boxes': boxes, 'valid': np.ones(2, bool)}, BoxMixer(1.0))
    assert results['valid'].all()
    assert not results['difficult'].any()
    np.testing.assert_allclose(results['boxes'][0, 0], [0, 0, 53, 37], rtol=1e-6)


def test_evaluation_moves_targets_as_images():
    data_config = DataConfig(eval_augment='pad(3)|resize(100, 120)|center_crop(80, 90)')
    preprocessor = Preprocessor.from_config(data_config, [0.5], [0.5], lambda ops, pixels: [])
    batch = {name: jnp.asarray(value)[None] for name, value in example().items()}
    batch['image'] = jnp.uint8(255 * batch['image'])
    moved = jax.jit(lambda batch: preprocessor.move_targets(batch, BoxMixer()))({**batch, 'mask': jnp.ones(1)})
    np.testing.assert_array_equal(moved['image'], batch['image'])
    np.testing.assert_array_equal(moved['mask'], 1)
    assert np.abs(moved['boxes'][0, 0] - bounding_box(np.asarray(preprocessor.pixels(batch['image'])[0]))).max() < 1
    matrix = preprocessor.eval_matrix((HEIGHT, WIDTH, 1))
    corners = np.array([[*BOX[:2], 1], [*BOX[2:], 1]]) @ matrix.T
    np.testing.assert_allclose(corners.ravel(), moved['boxes'][0, 0], rtol=1e-5)
    boxes = np.asarray(moved['boxes'][0])
    np.testing.assert_allclose(preprocessor.map_boxes_back(boxes[:1], (HEIGHT, WIDTH, 1)), [BOX], rtol=1e-4)
    without = Preprocessor(None, Normalization())
    assert without.move_targets(batch, BoxMixer()) is batch
    np.testing.assert_array_equal(without.eval_matrix((HEIGHT, WIDTH, 1)), np.eye(2, 3))
    assert without.map_boxes_back(boxes, (HEIGHT, WIDTH, 1)) is boxes


def test_training_images_are_resized_after_normalisation_and_their_boxes_move():
    """Antialiased bilinear resizing by two weights four pixels by 1, 3, 3 and 1, without those outside the image."""
    batch = {name: jnp.asarray(value)[None] for name, value in example().items()}
    batch['image'] = jax.random.randint(KEYS[0], (1, HEIGHT, WIDTH, 1), 0, 256).astype(jnp.uint8)
    preprocessor = Preprocessor(None, Normalization.from_mean_std((0.5,), (0.25,)), train_size=HEIGHT // 2)
    resized = jax.jit(lambda batch: preprocessor.train(batch, KEYS[0], mixer=BoxMixer()))(batch)

    def halving(side):
        weights = np.zeros((side // 2, side + 2))
        for i in range(side // 2):
            weights[i, 2 * i:2 * i + 4] = 1, 3, 3, 1
        return weights[:, 1:-1] / weights[:, 1:-1].sum(1, keepdims=True)
    normalized = (np.asarray(batch['image'])[0, :, :, 0] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(resized['image'][0, :, :, 0], halving(HEIGHT) @ normalized @ halving(WIDTH).T, atol=1e-5)
    np.testing.assert_array_equal(resized['boxes'][0, 0], BOX / 2)


def test_targets_of_other_kinds_stay_as_they_are():
    targets = {'label': jnp.arange(len(KEYS))}
    images = jnp.zeros((len(KEYS), HEIGHT, WIDTH, 1))
    pipeline = augment.parse_pipeline('flip_lr|random_crop(20)|alternating_flip')

    class Labels:
        move = Task.move
    results = jax.jit(lambda batch: pipeline.batch(KEYS, batch, Labels(), lambda x: x, None))({'image': images, **targets})
    assert results['image'].shape == (len(KEYS), 20, 20, 1)
    np.testing.assert_array_equal(results['label'], targets['label'])


@pytest.mark.parametrize(('text', 'line'), [
    ('resize(8, 0)', 'resize.width: expected a whole number of at least 1, got 0'),
    ('random_crop(20, 90)', r'random_crop\(20, 90\): images of 60 x 80 are smaller than 20 x 90')])
def test_sizes_that_cannot_be(text, line):
    with pytest.raises(UserError, match=line):
        augment.parse_pipeline(text)(KEYS[0], jnp.asarray(example()['image']))


def detection(**arguments):
    parsed = config.parse({'task': dict(name='detection', **arguments), 'loss': 'detection'})
    return tasks.create(parsed, ['a', 'b'], [1, 1], 2)


@pytest.mark.parametrize(('arguments', 'is_difficult'), [({}, False), ({'min_visible': 0.35}, True)])
def test_detection_moves_boxes(arguments, is_difficult):
    """Of the box, 30 % are left."""
    box = np.array([4, 20, 14, 30], np.float32)
    results = apply_to_example('center_crop(40, 58)', example(box), detection(**arguments), KEYS[:1])
    np.testing.assert_array_equal(results['boxes'][0], [[0, 10, 3, 20], [0] * 4])
    np.testing.assert_array_equal(results['difficult'][0], [is_difficult, False])
    with pytest.raises(UserError, match=r'config\.task\.min_visible: expected a number from 0 to 1, got 25'):
        detection(min_visible=25)


def test_detections_are_mapped_back_to_the_images_before_eval_augment():
    preprocessor = Preprocessor.from_config(DataConfig(eval_augment='resize(30, 40)|pad(6)'), [0.5], [0.5], lambda *_: [])
    boxes = np.array([[[6, 6, 46, 36], [16, 11, 26, 16], [0, 0, 5, 52]]], np.float32)  # the last one is in the padding
    predictions = {'boxes': boxes, 'scores': np.ones((1, 3)), 'valid': np.array([[True, True, True]])}
    results = detection().map_back(predictions, lambda boxes: preprocessor.map_boxes_back(boxes, (HEIGHT, WIDTH, 3)))
    np.testing.assert_allclose(results['boxes'][0, :2], [[0, 0, 80, 60], [20, 10, 40, 20]], atol=1e-4)
    np.testing.assert_array_equal(results['valid'], [[True, True, False]])
    np.testing.assert_array_equal(results['scores'], predictions['scores'])
