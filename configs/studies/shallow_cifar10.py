"""How long should a shallow CNN be trained on CIFAR-10? 30 against 160 epochs.

    jaxcnn study --study=shallow_cifar10 --workdir=runs/shallow --config.data.dir=DIR
    jaxcnn study --study=shallow_cifar10:quick --workdir=runs/shallow_quick --config.data.dir=DIR

DIR holds TFDS data sets (or set TFDS_DATA_DIR). The quick form has 2,000 training images, and 3 against 16 epochs.
Result of the quick form: 37.50 % after 3 epochs, 52.83 % after 16 (docs/results.md).
"""

from jaxcnn.studies import make_study


def get_study():
    return make_study(
        base='cifar10_shallow', seeds=3, title='A shallow CNN on CIFAR-10: 30 against 160 epochs',
        arms={'30 epochs': {}, '160 epochs': {'duration': {'epochs': 160}},
              '30 epochs, best recipe': 'cifar10_shallow_best'},
        published={'30 epochs': 0.8709, '160 epochs': 0.8963})


def get_quick_study():
    return make_study(
        base='cifar10_shallow', seeds=3, title='A shallow CNN on 2,000 images of CIFAR-10: 3 against 16 epochs',
        arms={'3 epochs': {'duration': {'epochs': 3}}, '16 epochs': {'duration': {'epochs': 16}}},
        common={'data.per_class': 200, 'eval.every': {'fraction': 0.25}, 'model.widths': (32, 64, 128, 128)})
