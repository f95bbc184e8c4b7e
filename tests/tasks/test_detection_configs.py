"""Configs of detection that cannot work are refused in one line, before data is read."""

import sys

import pytest

from jaxcnn import config, experiment
from jaxcnn.errors import UserError


def settings(**fields):
    base = dict(task='detection', loss='detection', duration=dict(steps=4), batch_size=4,
                model=dict(name='faster_rcnn'), data=dict(name='voc', dir='missing'),
                optim=dict(optimizer='sgd', learning_rate=0.1), eval={}, checkpoint={})
    for name, value in fields.items():
        base[name] = {**base[name], **value} if isinstance(base[name], dict) else value
    return config.parse(base)


@pytest.mark.parametrize(('fields', 'line'), [
    (dict(model=dict(name='resnet18')), r"model: resnet18 returns logits, but config\.task='detection' takes .*fcos"),
    (dict(task='classification', loss='cross_entropy', data=dict(name='digits')),
     r"model: faster_rcnn returns detections, but config\.task='classification' takes logits; see docs/networks\.md"),
    (dict(data=dict(name='digits')), r"data\.name: 'digits' does not have boxes .*; these have: coco, .* voc"),
    (dict(loss='cross_entropy'), "loss: the loss 'cross_entropy' does not fit the task 'detection'; these do: detection"),
    (dict(loss=dict(name='detection', box=2.0)), "loss: unknown argument of loss detection 'box'; nearest: boxes"),
    (dict(loss=dict(name='detection', rpn_boxes=2), model=dict(name='fcos')),
     "loss: unknown term of the loss of fcos 'rpn_boxes'; nearest: boxes"),
    (dict(loss=dict(name='detection', boxes=2), model=dict(trained='rpn')),
     "loss: unknown term of the loss of faster_rcnn 'boxes'; nearest: rpn_boxes"),
    (dict(data=dict(augment='flip_lr|mixup(0.2)')), r"data\.augment: '.*' mixes images or attacks the network"),
    (dict(data=dict(augment='fgsm(0.2)')), r"data\.augment: '.*' mixes images or attacks the network"),
    (dict(data=dict(augment='mosaic')), r"data\.augment: unknown augmentation 'mosaic'"),
    (dict(data=dict(balance='sampling')), r"data\.balance: 'sampling' needs one class for each image"),
    (dict(data=dict(per_class=3)), r'data\.per_class: 3 needs one class for each image'),
    (dict(eval=dict(tta='flip')), r"eval\.tta: 'flip': test-time augmentation of detections is not supported"),
    (dict(optim=dict(schedule='plateau')), r"optim\.schedule: unknown metric of plateau for detection 'loss'; known: "),
    (dict(checkpoint=dict(metric='val_loss')), r"checkpoint\.metric: unknown metric 'val_loss'; known: val_map50, "),
    (dict(task=dict(name='detection', threshold=2)), r'task\.threshold: expected a number from 0 to 1, got 2'),
    (dict(model=dict(backbone='resnet19')), "model: backbone: unknown model 'resnet19'; nearest: resnet18"),
    (dict(model=dict(backbone='resnet18(wdth=2)')), "model: backbone: unknown field of model resnet18 'wdth'; nearest"),
    (dict(model=dict(backbone='resnet18(')), r"model: backbone: .*'resnet18\(' is not a name, or name\(value"),
    (dict(model=dict(backbone='fcos')), "model: backbone: expected a classifier, got the detector 'fcos'"),
    (dict(model=dict(backbone='lenet5')), 'model: backbone: the network LeNet5 cannot be the backbone of a detector'),
    (dict(model=dict(backbone='alexnet')),
     "model: backbone: 'alexnet' has no feature map of stride 32, which a feature pyramid needs; its strides are 4, 8, 16;"),
    (dict(model=dict(name='fcos', backbone='vgg16')), "model: backbone: 'vgg16' has no feature map of stride 32"),
    (dict(model=dict(anchor_sizes=(32, 64))), r'model: anchor_sizes must be 5 numbers, .* got \(32, 64\)'),
    (dict(model=dict(anchor_sizes=(0, 8, 8, 8, 8))), 'model: anchor_sizes must be numbers above 0, got'),
    (dict(model=dict(anchor_ratios=())), 'model: anchor_ratios must have at least one number'),
    (dict(model=dict(pre_nms=(1.5, 3))), 'model: pre_nms must be integers above 0, got'),
    (dict(model=dict(strides=(4, 16))), 'model: strides must be numbers such as 4, 8, 16, each twice the one before'),
    (dict(model=dict(name='fast_rcnn')), r'data\.proposals: fast_rcnn classifies object proposals, and there are none;'),
    (dict(data=dict(proposals='sliding_windows')),
     r"data\.proposals: faster_rcnn does not take the proposals 'sliding_windows'; leave it ''"),
])
def test_a_config_that_cannot_work_is_refused(fields, line):
    with pytest.raises(UserError, match=rf'^config\.{line}') as error:
        experiment.check(settings(**fields))
    assert '\n' not in str(error.value)


def test_the_package_for_metrics_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    with pytest.raises(UserError, match=r"pip install 'jaxcnn\[detection\]'"):
        experiment.check(settings())
