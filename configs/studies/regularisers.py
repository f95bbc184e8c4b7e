"""What does each regulariser bring, alone and together?

    jaxcnn study --study=regularisers --workdir=runs/regularisers --config.data.dir=DIR
    jaxcnn study --study=regularisers:quick --workdir=runs/regularisers_quick --config.data.dir=DIR

DIR holds TFDS data sets (or set TFDS_DATA_DIR). The network has six convolutions and two dense layers. The quick form has
2,000 training images of CIFAR-10 and a quarter of the features. Published for label smoothing on ImageNet: +0.2 points
(Szegedy et al. 2015).
Result of the quick form: none 43.96 %, BatchNorm 49.94 %, crops and flips 47.57 %, cutmix 47.44 % (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def layers(width, norm='', dropout=''):
    stages = [f'conv({factor * width})|{norm}relu|conv({factor * width})|{norm}relu|max_pool(2)' for factor in (1, 2, 4)]
    return '|'.join([*stages, f'flatten|dense({4 * width})|relu', f'{dropout}dense'])


def study(width, seeds, title, patience, **fields):
    base = make(model=dict(name='sequential', layers=layers(width)), batch_size=128,
                optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.03, schedule='cosine',
                           warmup=dict(fraction=0.05)), **fields)
    crop, norm, dropout = 'pad_crop(4)|flip_lr', {'model.layers': layers(width, norm='norm|')}, 'dropout(0.5)|'
    return make_study(base, {
        'none': {},
        'dropout': {'model.layers': layers(width, dropout=dropout)},
        'BatchNorm': norm,
        'L2': {'optim.l2': 1e-3},
        'label smoothing': {'loss': {'name': 'cross_entropy', 'label_smoothing': 0.1}},
        'early stopping': {'checkpoint.patience': patience},
        'crops and flips': {'data.augment': crop},
        'mixup': {'data.augment': 'mixup(0.4)'},
        'cutmix': {'data.augment': 'cutmix(1.0, 0.5)'},
        'random erasing': {'data.augment': 'random_erasing(0.5)'},
        'AutoAugment': {'data.augment': f'{crop}|auto_augment("cifar10")'},
        'together': {'model.layers': layers(width, 'norm|', dropout), 'optim.l2': 5e-4,
                     'loss': {'name': 'cross_entropy', 'label_smoothing': 0.1},
                     'data.augment': f'{crop}|auto_augment("cifar10")|mixup(0.2)|random_erasing(0.25)'},
    }, seeds=seeds, title=title, columns=('test_loss', 'train_accuracy'))


def get_study():
    return study(64, 3, 'Regularisers on CIFAR-10', 10, duration=dict(epochs=60), data=dict(name='cifar10'))


def get_quick_study():
    return study(16, 3, 'Regularisers on 2,000 images of CIFAR-10', 4, duration=dict(epochs=30),
                 data=dict(name='cifar10', per_class=200), eval=dict(every=dict(epochs=2)))
