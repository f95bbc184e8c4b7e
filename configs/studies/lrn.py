"""What does local response normalisation bring? On AlexNet and on VGG-A.

    jaxcnn study --study=lrn --workdir=runs/lrn --config.data.dir=DIR
    jaxcnn study --study=lrn:quick --workdir=runs/lrn_quick

DIR holds `tiny-imagenet-200`, whose images are enlarged to 227 pixels. Krizhevsky et al. 2012 report 1.4 points less top-1
error with it; Simonyan & Zisserman 2014 find 29.6 % error for A and 29.7 % for A-LRN. The quick form has an eighth of the
features on handwritten digits, and needs no data.
Result of the quick form: AlexNet 97.49 % without and 97.68 % with, VGG-A 95.26 and 94.52 % (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.models.vgg import STAGES
from jaxcnn.studies import make_study


def arms(**vgg_fields):
    vgg = {f'model.{field}': value for field, value in vgg_fields.items()}
    return {'AlexNet': {'model.lrn': False}, 'AlexNet with LRN': {}, 'VGG-A': {'model.name': 'vgg11', **vgg},
            'VGG-A with LRN': {'model.name': 'vgg11_lrn', **vgg}}


def get_study():
    base = make(
        duration=dict(epochs=60), batch_size=128, model=dict(name='alexnet'),
        data=dict(name='tiny_imagenet', image_size=227, augment='random_resized_crop(227, (0.35, 1.0))|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, schedule='cosine', l2=5e-4, clip_norm=5.0,
                   warmup=dict(epochs=1)))
    return make_study(base, arms(), seeds=3, title='Local response normalisation on Tiny-ImageNet-200')


def get_quick_study():
    base = make(
        duration=dict(epochs=12), batch_size=64,
        model=dict(name='alexnet', widths=(12, 32, 48, 48, 32), stem=((5, 1, 2), (5, 1, 2)), hidden=256, window=3),
        data=dict(name='digits', image_size=32), eval=dict(every=dict(epochs=3)),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, schedule='cosine', l2=5e-4, clip_norm=5.0))
    narrow = tuple(tuple(width // 8 for width in stage) for stage in STAGES[11])
    return make_study(base, arms(stages=narrow, hidden=256), seeds=3, title='Local response normalisation on digits')
