"""Does VGG-19 train without BatchNorm? On Tiny-ImageNet-200, 200 epochs with Adam.

    jaxcnn study --study=vgg19_batchnorm --workdir=runs/vgg19 --config.data.dir=DIR
    jaxcnn study --study=vgg19_batchnorm:quick --workdir=runs/vgg19_quick

DIR holds `tiny-imagenet-200`. The quick form trains the 19 layers with an eighth of the features on handwritten digits, and
needs no data.
Result of the quick form: 97.86 % with, 10.12 % without (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study

WITHOUT, WITH = 'VGG-19', 'VGG-19 with BatchNorm'
ARMS = {WITH: {'model.batch_norm': True}, WITHOUT: {}}


def get_study():
    base = make(
        duration=dict(epochs=200), batch_size=256, model=dict(name='vgg19', kernel_init='torch_uniform'),
        data=dict(name='tiny_imagenet', augment='pad_crop(8)|flip_lr'),
        optim=dict(optimizer='adam', learning_rate=5e-4, schedule='cosine'))
    best = {**ARMS[WITH], 'loss.label_smoothing': 0.1, 'optim.optimizer': {'name': 'sgd', 'momentum': 0.9, 'nesterov': True},
            'optim.learning_rate': 0.05, 'optim.l2': 5e-4, 'optim.warmup': {'epochs': 5}, 'optim.ema_decay': 0.999,
            'optim.clip_norm': 5.0, 'model.kernel_init': 'he_normal', 'eval.tta': 'flip',
            'data.augment': 'random_resized_crop(64, (0.3, 1.0))|flip_lr|trivial_augment|mixup(0.2)'}
    return make_study(base, {**ARMS, 'VGG-19 with BatchNorm, best recipe': best}, seeds=1,
                      title='VGG-19 on Tiny-ImageNet-200 with and without BatchNorm',
                      published={WITH: 0.5279, WITHOUT: 0.005})


def get_quick_study():
    base = make(
        duration=dict(epochs=12), batch_size=64,
        model=dict(name='vgg19', kernel_init='torch_uniform', hidden=128,
                   stages=((8, 8), (16, 16), (32, 32, 32, 32), (64, 64, 64, 64), (64, 64, 64, 64))),
        data=dict(name='digits', image_size=32), optim=dict(optimizer='adam', learning_rate=5e-4, schedule='cosine'),
        eval=dict(every=dict(epochs=2)))
    return make_study(base, ARMS, seeds=3, title='VGG-19 with an eighth of the features, with and without BatchNorm')
