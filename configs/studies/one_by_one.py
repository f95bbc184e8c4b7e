"""What do 1x1 convolutions and global average pooling bring? VGG-C against VGG-D, and the heads of Network in Network.

    jaxcnn study --study=one_by_one --workdir=runs/one_by_one --config.data.dir=DIR
    jaxcnn study --study=one_by_one:quick --workdir=runs/one_by_one_quick

DIR holds TFDS data sets (or set TFDS_DATA_DIR). On ImageNet, Simonyan & Zisserman 2014 find 28.1 % error for C, whose third
convolutions are 1x1, and 27.0 % for D, where they are 3x3. On CIFAR-10, Lin et al. 2013 find 10.41 % for global average
pooling, 10.88 % for a dense layer with dropout and 11.59 % without. The quick form has narrow networks on handwritten
digits, and needs no data.
Result of the quick form: C 95.73 %, D 96.38 %; global average pooling 64.16 %, dense 97.86 % (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.models.vgg import STAGES
from jaxcnn.studies import make_study


def arms(vgg_fields, nin_fields):
    vgg = {f'model.{field}': value for field, value in vgg_fields.items()}
    nin = {'model.name': 'nin_cifar', **{f'model.{field}': value for field, value in nin_fields.items()}}
    dense = {**nin, 'model.head': 'dense'}
    return {'VGG-C, 1x1': {'model.name': 'vgg16_c', **vgg}, 'VGG-D, 3x3': {'model.name': 'vgg16', **vgg},
            'NIN, global average pooling': nin, 'NIN, dense': dense,
            'NIN, dense with dropout': {**dense, 'model.head_dropout': 0.5}}


def get_study():
    base = make(
        duration=dict(epochs=100), batch_size=128, model=dict(name='vgg16'),
        data=dict(name='cifar10', augment='pad_crop(4)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.02, schedule='cosine', l2=5e-4, clip_norm=5.0,
                   warmup=dict(epochs=2)))
    return make_study(base, arms({}, {}), seeds=3, title='1x1 convolutions and global average pooling on CIFAR-10')


def get_quick_study():
    base = make(
        duration=dict(epochs=15), batch_size=64, model=dict(name='vgg16'),
        data=dict(name='digits', image_size=32), eval=dict(every=dict(epochs=3)),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.02, schedule='cosine', l2=5e-4, clip_norm=5.0,
                   warmup=dict(epochs=1)))
    vgg = {'stages': tuple(tuple(width // 8 for width in stage) for stage in STAGES[16]), 'hidden': 128}
    nin = {'stages': ((24, 20, 12), (24, 24, 24), (24, 24)), 'dropout': 0.2}
    return make_study(base, arms(vgg, nin), seeds=3, title='1x1 convolutions and global average pooling on digits')
