"""What does BatchNorm bring with sigmoid, tanh and ReLU, at three learning rates? On MNIST.

    jaxcnn study --study=batchnorm_activations --workdir=runs/batchnorm --config.data.dir=DIR
    jaxcnn study --study=batchnorm_activations:quick --workdir=runs/batchnorm_quick --config.data.dir=DIR

DIR holds TFDS data sets (or set TFDS_DATA_DIR). The quick form has 2,000 training images.
Result of the quick form: at the best rates 96.56 % with BatchNorm (ReLU) and 92.72 % without (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study, product

NORMS = {'without': {}, 'BatchNorm': {'model.batch_norm': True}}


def study(title, **fields):
    base = make(model=dict(name='lenet5', kernel_init='lecun_normal'),
                optim=dict(optimizer=dict(name='sgd'), schedule='constant'), **fields)
    activations = {name: {'model.activation': name} for name in ('sigmoid', 'tanh', 'relu')}
    rates = {f'rate {rate}': {'optim.learning_rate': rate} for rate in (0.01, 0.1, 1.0)}
    return make_study(base, product(NORMS, activations, rates), seeds=3, title=title, columns=('train_loss',))


def get_study():
    return study('BatchNorm, activations and learning rates on MNIST', duration=dict(epochs=10), batch_size=60,
                 data=dict(name='mnist'))


def get_quick_study():
    return study('BatchNorm, activations and learning rates on 2,000 images of MNIST', duration=dict(epochs=5),
                 batch_size=60, data=dict(name='mnist', per_class=200))
