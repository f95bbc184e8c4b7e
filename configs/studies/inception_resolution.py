"""Does Inception v3 need 299 pixels? Its stem adapted to 151 and to 79 pixels, at the same cost.

    jaxcnn study --study=inception_resolution --workdir=runs/resolution --config.data.dir=DIR
    jaxcnn study --study=inception_resolution:quick --workdir=runs/resolution_quick

DIR holds TFDS's `imagenet2012`. Szegedy et al. 2015 (section 8) find top-1 accuracies of 76.6, 76.4 and 75.2 % at 299, 151
and 79 pixels. The quick form has an eighth of the features and fewer blocks on handwritten digits, at 107, 55 and 31 pixels,
and needs no data.
Result of the quick form: 97.40, 97.31 and 96.66 % at 107, 55 and 31 pixels (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study

STEMS = ({}, {'model.stem_stride': 1}, {'model.stem_stride': 1, 'model.stem_pool': False})


def get_study():
    base = make(
        duration=dict(epochs=100), batch_size=256, model=dict(name='inception_v3'),
        loss=dict(name='cross_entropy', label_smoothing=0.1), data=dict(name='imagenet2012'),
        optim=dict(optimizer=dict(name='rmsprop', decay=0.9, eps=1.0), learning_rate=0.045, clip_norm=2.0, ema_decay=0.9999,
                   schedule=dict(name='exponential', decay_rate=0.94, every=dict(epochs=2), staircase=True)))
    arms = {f'{size} pixels': {**stem, 'data.image_size': size, 'data.augment': f'random_resized_crop({size})|flip_lr'}
            for size, stem in zip((299, 151, 79), STEMS, strict=True)}
    return make_study(base, arms, seeds=1, title='Inception v3 at lower resolutions',
                      published={'299 pixels': 0.766, '151 pixels': 0.764, '79 pixels': 0.752})


def get_quick_study():
    base = make(
        duration=dict(epochs=8), batch_size=64, model=dict(name='inception_v3', multiplier=0.125, blocks=(1, 1, 1)),
        data=dict(name='digits'), eval=dict(every=dict(epochs=4)),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.05, schedule='cosine', l2=1e-4,
                   warmup=dict(epochs=1)))
    arms = {f'{size} pixels': {**stem, 'data.image_size': size} for size, stem in zip((107, 55, 31), STEMS, strict=True)}
    return make_study(base, arms, seeds=3, title='A narrow Inception v3 on digits at lower resolutions')
