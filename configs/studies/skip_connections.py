"""What do skip connections bring? ResNet-50 with and without on Tiny-ImageNet-200, 100 epochs.

    jaxcnn study --study=skip_connections --workdir=runs/skip --config.data.dir=DIR
    jaxcnn study --study=skip_connections:quick --workdir=runs/skip_quick

DIR holds `tiny-imagenet-200`. The quick form compares 38 layers on handwritten digits, and needs no data.
Result of the quick form: 97.12 % with, 78.27 % without (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study

WITH, WITHOUT = 'with skip connections', 'without'


def get_study():
    return make_study('tiny_imagenet_resnet50', {WITH: {}, WITHOUT: {'model.shortcut': 'none'}}, seeds=1,
                      title='Skip connections of ResNet-50 on Tiny-ImageNet-200', published={WITH: 0.5897, WITHOUT: 0.5403})


def get_quick_study():
    base = make(
        duration=dict(epochs=8), batch_size=64, model=dict(name='resnet20_cifar', blocks=(6, 6, 6), width=8),
        data=dict(name='digits', image_size=16),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.05, schedule='cosine', l2=1e-4,
                   warmup=dict(epochs=1)),
        eval=dict(every=dict(epochs=2)))
    return make_study(base, {WITH: {}, WITHOUT: {'model.shortcut': 'none'}}, seeds=3,
                      title='Skip connections of 38 layers on digits')
