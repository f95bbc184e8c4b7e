"""How much accuracy does sparsity cost? Magnitude, movement and random pruning, at once and gradually, and lottery tickets.

    jaxcnn study --study=pruning --workdir=runs/pruning --config.data.dir=DIR
    jaxcnn study --study=pruning:quick --workdir=runs/pruning_quick

DIR holds TFDS's `cifar10`. Zhu & Gupta 2017 prune gradually while training, Han et al. 2015 at once and fine-tune, Sanh et
al. 2020 by movement while fine-tuning. Frankle & Carbin 2019 and Frankle et al. 2019 train the weights that remain again,
from their first values or those of an early step, against other initial values. The quick form has LeNet-5 on handwritten
digits, and needs no data.
Result of the quick form, two seeds: 93.3 % gradually, 47.9 % at once, 97.9 % dense (docs/compression.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study

HALF = dict(begin=dict(fraction=0.5), end=dict(fraction=0.5))
AT_ONCE = dict(begin=dict(steps=0), end=dict(steps=0))


def arms(sparsity, early_step, learning_rate):
    """Arms at a sparsity; tickets are rewound to a step, and dense weights are fine-tuned with a learning rate."""
    gradual = dict(sparsity=sparsity, begin=dict(fraction=0.25), end=dict(fraction=0.75))
    tuned = {'init': dict(run='arm:dense'), 'optim.learning_rate': learning_rate}
    rewound = dict(run='arm:dense', checkpoint=str(early_step))
    ticket = dict(masks='arm:dense', sparsity=sparsity)
    remaining = 1 - sparsity
    return {
        'dense': {'checkpoint.at': (dict(steps=early_step),)},
        'magnitude': {'pruning': gradual},
        'magnitude in each layer': {'pruning': dict(gradual, scope='layer')},
        'movement': {'pruning': dict(gradual, method='movement')},
        'random': {'pruning': dict(gradual, method='random')},
        'magnitude at once': {'pruning': dict(sparsity=sparsity, **HALF)},
        'dense, tuned by magnitude': {**tuned, 'pruning': dict(gradual, begin=dict(steps=0))},
        'dense, tuned by movement': {**tuned, 'pruning': dict(gradual, begin=dict(steps=0), method='movement')},
        'dense, tuned at once': {**tuned, 'pruning': dict(sparsity=sparsity, **AT_ONCE)},
        'ticket, early weights': {'pruning': ticket, 'init': rewound},
        'ticket, first weights': {'pruning': ticket},
        'ticket, other weights': {'pruning': dict(ticket, reinitialize=True)},
        'ticket, round 1 of 3': {'pruning': dict(ticket, sparsity=1 - remaining ** (1 / 3)), 'init': rewound},
        'ticket, round 2 of 3': {'pruning': dict(masks='arm:ticket, round 1 of 3', sparsity=1 - remaining ** (2 / 3)),
                                 'init': rewound},
        'ticket, round 3 of 3': {'pruning': dict(masks='arm:ticket, round 2 of 3', sparsity=sparsity), 'init': rewound},
    }


def get_study():
    return make_study('cifar10_resnet18', arms(0.98, early_step=200, learning_rate=0.02), seeds=3, columns=('sparsity',),
                      title='ResNet-18 on CIFAR-10 with 2 % of its weights')


def get_quick_study():
    base = make(
        duration=dict(epochs=20), batch_size=64, model=dict(name='lenet5', activation='relu', pool='max', dropout=0.2),
        data=dict(name='digits', image_size=32, augment='pad_crop(3)'), eval=dict(every=dict(epochs=4)),
        optim=dict(optimizer='adam', learning_rate=2e-3, schedule='cosine', warmup=dict(epochs=1)),
        parallel=dict(steps_per_dispatch=25))
    return make_study(base, arms(0.97, early_step=40, learning_rate=1e-3), seeds=3, columns=('sparsity',),
                      title='LeNet-5 on digits with 3 % of its weights')
