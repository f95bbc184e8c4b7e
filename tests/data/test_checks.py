"""Checks of arrays that users pass: what they refuse, and that the conversion in the error is right."""

import re

import numpy as np
import pytest

import jaxcnn.data.decode
from jaxcnn.data import Split
from jaxcnn.data.checks import check_class_names, check_images, check_labels
from jaxcnn.errors import UserError

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), np.uint8)
GREY = COLOUR[..., :1]
COLOUR[0, 0, 0], COLOUR[0, 0, 1] = 0, 255  # the full range, by which the scale of the values is recognised

CONVERTIBLE = {  # arrays and the result of their conversion
    'in [0, 1]': (COLOUR / 255, COLOUR),
    'in [-1, 1]': (COLOUR / 127.5 - 1, COLOUR),
    'float in [0, 255]': (COLOUR.astype(np.float32), COLOUR),
    '16 bits': (COLOUR.astype(np.uint16) * 257, COLOUR),
    'int64': (COLOUR.astype(np.int64), COLOUR),
    'bool': (COLOUR > 99, 255 * np.uint8(COLOUR > 99)),
    'NCHW': (COLOUR.transpose(0, 3, 1, 2), COLOUR),
    'HWCN': (COLOUR.transpose(1, 2, 3, 0), COLOUR),
    "PyTorch's": (np.float32(COLOUR.transpose(0, 3, 1, 2) / 255), COLOUR),
    'RGBA': (np.concatenate([COLOUR, GREY], -1), COLOUR),
}
CONVERTIBLE_TO_SHAPE = {  # arrays, the shape of the expected images and the result of the conversion
    'grey': (GREY, COLOUR.shape, GREY.repeat(3, -1)),
    'grey without channels, in [0, 1]': (GREY[..., 0] / 255, COLOUR.shape, GREY.repeat(3, -1)),
    'colour': (GREY.repeat(3, -1), GREY.shape, GREY),
    'one image': (COLOUR[0], COLOUR.shape, COLOUR[:1]),
    'one image CHW': (COLOUR[0].transpose(2, 0, 1), COLOUR.shape, COLOUR[:1]),
    'one grey image': (GREY[0], GREY.shape, GREY[:1]),
    'one grey image without channels': (GREY[0, ..., 0], GREY.shape, GREY[:1]),
    'rows of grey pixels': (GREY.reshape(6, 80), GREY.shape, GREY),
    'size': (np.full((6, 20, 21, 3), 7, np.uint8), COLOUR.shape, np.full(COLOUR.shape, 7, np.uint8)),
}


def convert(message, x):
    """Apply the conversion in the message to `x`."""
    code = re.search(r'; convert with (.*)$', message).group(1)
    return eval(code, {'x': x, 'np': np, 'jaxcnn': jaxcnn})


@pytest.mark.parametrize(('x', 'shape', 'expected'), [
    *((x, shape, expected) for x, expected in CONVERTIBLE.values() for shape in (None, COLOUR.shape)),
    *CONVERTIBLE_TO_SHAPE.values()])
def test_the_error_for_wrong_images_contains_a_conversion(x, shape, expected):
    with pytest.raises(UserError, match=r'^x must be uint8 .* got ') as error:
        check_images('x', x, shape and shape[1:])
    result = convert(str(error.value), x)
    np.testing.assert_array_equal(result, expected)
    check_images('x', result, shape and shape[1:])


@pytest.mark.parametrize('x', [COLOUR / 60 - 2, np.full_like(COLOUR, np.nan, float), COLOUR.astype(int) * 300, 'a.png',
                               np.array([None]), [COLOUR[0], COLOUR[1, 1:]], COLOUR[0, 0], np.zeros((4, 5, 6, 7), np.uint8)])
@pytest.mark.parametrize('shape', [None, (8, 10, 3)])
def test_the_error_for_arrays_that_cannot_be_images_contains_no_conversion(x, shape):
    with pytest.raises(UserError, match=r'^x ') as error:
        check_images('x', x, shape)
    assert 'convert' not in str(error.value)
    assert '\n' not in str(error.value)


def test_a_split_refuses_wrong_images():
    with pytest.raises(UserError, match=r'images must be uint8 .*convert with \(255 \* images\)\.round\(\)'):
        Split(COLOUR / 255, np.arange(6), {'label': np.zeros(6, np.int32)})
    assert Split(GREY[..., 0], np.arange(6), {'label': np.zeros(6, np.int32)}).images.shape == GREY.shape


def test_correct_images_are_returned_unchanged():
    for x, shape in ((COLOUR, None), (GREY, None), (COLOUR, (8, 10, 3)), (COLOUR[:0], (8, 10, 3))):
        assert check_images('x', x, shape) is x
    for shape in (None, (8, 10, 1)):
        np.testing.assert_array_equal(check_images('x', GREY[..., 0], shape), GREY)
    np.testing.assert_array_equal(check_images('x', [*COLOUR], (8, 10, 3)), COLOUR)


LABELS = np.array([2, 0, 1, 1])


@pytest.mark.parametrize(('y', 'expected'), [
    (LABELS.astype(float), LABELS), (np.eye(3)[LABELS], LABELS), (LABELS == 1, LABELS == 1),
    (np.array(['dog', 'ant', 'cat', 'cat']), LABELS), (np.array([2.5, 0.5, 1, 1]), LABELS)])
def test_the_error_for_wrong_labels_contains_a_conversion(y, expected):
    with pytest.raises(UserError, match=r'y must be 4 integers, .*, got ') as error:
        check_labels('y', y, 4)
    code = re.search(r'; .* with (?:y = )?([^ ]*(?: y\))?)', str(error.value)).group(1)
    result = eval(code, {'y': y, 'np': np, 'class_names': np.unique(y)})
    np.testing.assert_array_equal(result, expected)
    check_labels('y', result, 4)


@pytest.mark.parametrize(('names', 'line'), [
    (np.array('cat'), r'one name for each class, got an array of shape \(\)'),
    (np.array([b'caf\xe9', b'b']), r"bytes in UTF-8, got b'caf\\xe9'"),
    (np.array(['a', 'b', 'a']), "classes 0 and 2 are both called 'a'")])
def test_wrong_class_names_are_refused(names, line):
    with pytest.raises(UserError, match=line):
        check_class_names(names)


def test_class_names_may_be_numbers():
    assert check_class_names(np.array([3, 5])) == ['3', '5']
