"""The checks of `jaxcnn check` on a detector."""

import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn.checks import INFORMATION, OK, run_checks
from jaxcnn.checks.training import Memorisation
from jaxcnn.data.sources import InMemoryExamples, Source
from jaxcnn.data.targets import BOXES


def test_images_are_memorised_when_the_loss_has_fallen_far():
    """Where training measures accuracies, they decide."""
    losses = np.linspace(4, 1, 40)
    assert Memorisation(losses, None).num_steps is None
    assert Memorisation(losses, None).remaining_mistakes == '37 % of the first loss remain'
    assert Memorisation(np.linspace(4, 0.5, 40), None).num_steps == 40
    assert Memorisation(np.full(40, np.nan), None).num_steps is None
    assert Memorisation(losses, np.array([0.5, 1, 0.5, 1, 1])).num_steps == 3


@pytest.mark.slow
def test_a_detector_is_checked_by_its_loss_and_its_layers(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 64, 64, 3), np.uint8)
    corners = rng.integers(0, 32, (16, 1, 2))
    targets = {'boxes': np.concatenate([corners, corners + 30], 2), 'classes': rng.integers(0, 2, (16, 1))}
    examples = InMemoryExamples(images, targets)
    source = Source.from_examples('noise', 'noise', {'train': examples, 'test': examples}, ['a', 'b'], BOXES)
    config = cfg.parse(dict(
        task='detection', loss='detection', duration=dict(steps=30), batch_size=8,
        model=dict(name='fast_rcnn', backbone='vgg11(stages=((8,), (8,), (16,), (16,)), hidden=32, dropout=0.0)',
                   roi_pool='align', roi_batch=8, roi_low=0.0),
        data=dict(name='in_memory', val_fraction=0.0, max_boxes=1,
                  proposals='sliding_windows((16, 32), stride=1.0, max_proposals=20)'),
        optim=dict(optimizer='adam', learning_rate=1e-3), parallel=dict(devices=1)))
    names = 'batch', 'first_loss', 'gradients', 'overfit', 'learns', 'signal', 'augmentation', 'lr_range'
    verdicts = run_checks(config, str(tmp_path), names, 30, source)
    for name in ('first_loss', 'learns', 'augmentation'):
        assert verdicts[name].status == INFORMATION
        assert verdicts[name].measured == 'this check is for networks that return logits, not detections'
    assert {verdicts[name].status for name in ('batch', 'gradients', 'overfit')} == {OK}, verdicts
    assert 'memorised after' in verdicts['overfit'].measured
    assert 'the check ended with' not in verdicts['signal'].measured + verdicts['lr_range'].measured
    config = cfg.parse({**cfg.to_dict(config), 'model': dict(
        name='faster_rcnn', backbone='resnet18(width=8, blocks=(1, 1, 1, 1))', strides=(8, 16), fpn_features=8,
        head_features=8, roi_batch=8, rpn_batch=16, pre_nms=(32, 16), post_nms=(16, 8)),
        'data': {**cfg.to_dict(config)['data'], 'proposals': ''}})
    verdict, = run_checks(config, str(tmp_path), ['gradients'], 30, source).values()
    assert (verdict.status, 'the proposals depend on the parameters' in verdict.measured) == (INFORMATION, True)
