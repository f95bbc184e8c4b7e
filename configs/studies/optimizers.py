"""Which optimizer with which schedule? Eight optimizers, four schedules, each with and without warm-up.

    jaxcnn study --study=optimizers --workdir=runs/optimizers --config.data.dir=DIR
    jaxcnn study --study=optimizers:quick --workdir=runs/optimizers_quick --jobs=2

DIR holds TFDS data sets (or set TFDS_DATA_DIR). Each optimizer has one learning rate, a usual one for it, so the study
compares recipes and not what each could reach; a search (jaxcnn.studies.search) tunes one. The full form trains
`shallow_cnn` on CIFAR-10, the quick one LeNet-5 on handwritten digits, and needs no data.
Result of the quick form: best Muon with cosine 98.79 %, momentum with cosine 98.33 %, SGD with cosine 97.31 %, Adam 97.03
% (docs/results.md).
"""

from jaxcnn.studies import make_study, product

OPTIMIZERS = {
    'SGD': {'optim.optimizer': {'name': 'sgd'}, 'optim.learning_rate': 0.1},
    'momentum': {'optim.optimizer': {'name': 'sgd', 'momentum': 0.9}, 'optim.learning_rate': 0.03},
    'AdaGrad': {'optim.optimizer': {'name': 'adagrad'}, 'optim.learning_rate': 0.03},
    'RMSProp': {'optim.optimizer': {'name': 'rmsprop'}, 'optim.learning_rate': 1e-3},
    'Adam': {'optim.optimizer': {'name': 'adam'}, 'optim.learning_rate': 1e-3},
    'AdamW': {'optim.optimizer': {'name': 'adam'}, 'optim.learning_rate': 1e-3, 'optim.weight_decay': 0.05},
    'Adam, then SGD': {'optim.optimizer': {'name': 'adam'}, 'optim.learning_rate': 1e-3,
                       'optim.switch': [{'at': {'fraction': 0.5}, 'optimizer': {'name': 'sgd', 'momentum': 0.9},
                                         'learning_rate': 0.01}]},
    'Muon': {'optim.optimizer': {'name': 'muon'}, 'optim.learning_rate': 0.02},
}
SCHEDULES = {
    'constant': {'optim.schedule': {'name': 'constant'}},
    'step': {'optim.schedule': {'name': 'step'}},
    'exponential': {'optim.schedule': {'name': 'exponential', 'decay_rate': 0.8, 'every': {'fraction': 0.05}}},
    'cosine': {'optim.schedule': {'name': 'cosine'}},
}
WARMUPS = {'no warm-up': {'optim.warmup': None}, 'warm-up': {'optim.warmup': {'fraction': 0.05}}}
ARMS = product(OPTIMIZERS, SCHEDULES, WARMUPS)
BASELINE = 'momentum, cosine, no warm-up'


def get_study():
    common = {'optim.l2': 0.0, 'optim.clip_norm': 0.0}
    return make_study('cifar10_shallow', ARMS, seeds=3, common=common, baseline=BASELINE,
                      title='Optimizers and schedules on CIFAR-10')


def get_quick_study():
    common = {'duration': {'epochs': 10}, 'eval.every': {'epochs': 5}, 'model.dropout': 0.0}
    return make_study('digits_lenet5', ARMS, seeds=3, common=common, baseline=BASELINE,
                      title='Optimizers and schedules of LeNet-5 on digits')
