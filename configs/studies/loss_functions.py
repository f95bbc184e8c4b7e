"""Cross-entropy against squared error on a classifier.

    jaxcnn study --study=loss_functions --workdir=runs/losses --config.data.dir=DIR
    jaxcnn study --study=loss_functions:quick --workdir=runs/losses_quick

DIR holds TFDS data sets (or set TFDS_DATA_DIR). Hui & Belkin 2021 find squared error as good. The quick form trains LeNet-5
on handwritten digits, and needs no data.
Result of the quick form: cross-entropy 98.33 %, squared error 98.79 and 98.61 % (docs/results.md).
"""

from jaxcnn.studies import make_study

ARMS = {'cross-entropy': {}, 'squared error': {'loss': {'name': 'mse'}},
        'squared error of probabilities': {'loss': {'name': 'mse', 'softmax': True}}}


def get_study():
    return make_study('cifar10_shallow', ARMS, seeds=3, common={'loss': {'name': 'cross_entropy'}},
                      title='Cross-entropy and squared error on CIFAR-10')


def get_quick_study():
    return make_study('digits_lenet5', ARMS, seeds=3, common={'duration': {'epochs': 20}},
                      columns=("epochs_to('val_accuracy', 0.95)",), title='Cross-entropy and squared error on digits')
