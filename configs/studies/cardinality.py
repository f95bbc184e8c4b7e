"""What does cardinality bring? ResNeXt-50 32x4d against ResNet-50 on Tiny-ImageNet-200, 100 epochs.

    jaxcnn study --study=cardinality --workdir=runs/cardinality --config.data.dir=DIR
    jaxcnn study --study=cardinality:quick --workdir=runs/cardinality_quick --config.data.dir=TFDS_DIR

DIR holds `tiny-imagenet-200`. The quick form has 14 layers of two cardinalities and about as many parameters, on 3,000
images of CIFAR-10.
Result of the quick form: 46.80 % with one group, 46.29 % with eight (docs/results.md).
"""

from jaxcnn.config import load, make, override, parse
from jaxcnn.studies import make_study


def get_study():
    resnext = {'model.name': 'resnext50_32x4d', 'model.stem': 'small', 'optim.learning_rate': 0.1, 'batch_size': 128}
    best = parse(override(load('tiny_imagenet_resnet50_best'), {**resnext, 'model.zero_init': True}))
    return make_study(
        'tiny_imagenet_resnet50',
        {'ResNet-50': {}, 'ResNeXt-50 32x4d': resnext, 'ResNeXt-50 32x4d, best recipe': best},
        seeds=1, title='Cardinality on Tiny-ImageNet-200', published={'ResNet-50': 0.5897, 'ResNeXt-50 32x4d': 0.5929})


def get_quick_study():
    base = make(
        duration=dict(epochs=10), batch_size=64,
        model=dict(name='resnet50', blocks=(1, 1, 1), width=16, stem='small'),
        data=dict(name='cifar10', per_class=300, augment='pad_crop(4)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.1, schedule='cosine', l2=1e-4,
                   warmup=dict(epochs=1)),
        eval=dict(every=dict(epochs=5)))
    return make_study(base, {'1 x 16': {}, '8 x 4': {'model.groups': 8, 'model.group_width': 4}}, seeds=3,
                      title='Cardinality of 11 layers on 3,000 images of CIFAR-10')
