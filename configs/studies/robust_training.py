"""What does a network gain and lose by training on attacked images? FGSM, PGD and TRADES against ordinary training.

    jaxcnn study --study=robust_training --workdir=runs/robust --config.data.dir=DIR
    jaxcnn study --study=robust_training:quick --workdir=runs/robust_quick

DIR holds TFDS data sets (or set TFDS_DATA_DIR). `PGD` is the accuracy under 20 steps of PGD, `auto` that under the ensemble
of parameter-free attacks, and `corrupted` the mean over the 15 kinds of corruption, on 1,000 test images. Zhang et al. 2019
report 84.92 % on clean images and 56.61 % under 20 steps of PGD for TRADES, with the larger WRN-34-10. The quick form is
LeNet-5 on handwritten digits, which needs no data; there FGSM and PGD start from the ordinary run, as PGD does not learn
otherwise.
Result of the quick form: under `auto` with eps 0.1, 6.78 % for the ordinary training, 44.94 % for FGSM, 53.30 % for PGD and
45.96 % for TRADES (docs/results.md). The full form is not yet measured.
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def arms(operations, eps, step, iterations, common):
    """Return the arms; `operations` are the augmentation before the attack, and `common` fields of FGSM and PGD."""
    return {
        'ordinary': {},
        'FGSM from a random start': {'data.augment': f'{operations}|fgsm({eps}, random_start=True)', **common},
        'PGD': {'data.augment': f'{operations}|pgd({eps}, {step}, {iterations})', **common},
        'TRADES': {'trades': {'eps': eps, 'step': step, 'iterations': iterations}},
    }


def protocols(eps, images, iterations, queries):
    """Return the protocols of robustness for changes of a size."""
    return {'PGD': f"attacked('pgd(iterations=20)', {eps}, images={images})",
            'auto': f"attacked('auto(iterations={iterations}, queries={queries})', {eps}, images={images})",
            'corrupted': f'corrupted(images={images})'}


def get_study():
    base = make(batch_size=128, model=dict(name='resnet18', stem='small'), duration=dict(epochs=30),
                data=dict(name='cifar10', augment='pad_crop(4)|flip_lr'),
                optim=dict(optimizer=dict(name='sgd', momentum=0.9, nesterov=True), learning_rate=0.1, l2=5e-4))
    return make_study(base, arms('pad_crop(4)|flip_lr', 0.031373, 0.007843, 10, {}), seeds=3,
                      protocols=protocols("'8/255'", 1000, 100, 5000), title='Robust training on CIFAR-10')


def get_quick_study():
    base = 'digits_lenet5'
    return make_study(base, arms('pad_crop(3)', 0.1, 0.03, 5, {'init': {'run': 'arm:ordinary'}}), seeds=3,
                      common={'duration.epochs': 15}, protocols=protocols(0.1, 0, 20, 200),
                      title='Robust training on digits')
