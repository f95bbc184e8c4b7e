"""What does depth bring? ResNet-18, 34 and 50 with the stem for small images on Tiny-ImageNet-200, 100 epochs.

    jaxcnn study --study=depth --workdir=runs/depth --config.data.dir=DIR
    jaxcnn study --study=depth:quick --workdir=runs/depth_quick --config.data.dir=TFDS_DIR

DIR holds `tiny-imagenet-200`. The quick form compares ResNet-8, 14 and 20 for CIFAR on 5,000 images of CIFAR-10.
Result of the quick form: 55.14, 58.05 and 56.37 % with 8, 14 and 20 layers (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def get_study():
    return make_study(
        'tiny_imagenet_resnet50',
        {'ResNet-18': {'model.name': 'resnet18', 'model.stem': 'small'},
         'ResNet-34': {'model.name': 'resnet34', 'model.stem': 'small'}, 'ResNet-50': {},
         'ResNet-50, best recipe': 'tiny_imagenet_resnet50_best'},
        seeds=1, title='Depth on Tiny-ImageNet-200',
        published={'ResNet-18': 0.5509, 'ResNet-34': 0.5603, 'ResNet-50': 0.5897})


def get_quick_study():
    base = make(
        duration=dict(epochs=12), batch_size=128, model=dict(name='resnet20_cifar'),
        data=dict(name='cifar10', per_class=500, augment='pad_crop(4)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.1, schedule='cosine', l2=1e-4,
                   warmup=dict(epochs=1)),
        eval=dict(every=dict(epochs=3)))
    return make_study(base, {f'ResNet-{6 * n + 2}': {'model.blocks': (n, n, n)} for n in (1, 2, 3)}, seeds=3,
                      title='Depth on 5,000 images of CIFAR-10')
