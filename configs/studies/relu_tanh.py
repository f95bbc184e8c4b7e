"""How much faster does a network with ReLU learn than one with tanh? Epochs to 25 % training error on CIFAR-10.

    jaxcnn study --study=relu_tanh --workdir=runs/relu_tanh --config.data.dir=DIR
    jaxcnn study --study=relu_tanh:quick --workdir=runs/relu_tanh_quick --config.data.dir=DIR

DIR holds TFDS data sets (or set TFDS_DATA_DIR). Krizhevsky et al. 2012 (figure 1): a network of four convolutions without
regularisation needs about 5 epochs with ReLU and 35 with tanh, each with the learning rate at which it is fastest. Here each
activation has its usual initialiser and three learning rates. The quick form has 2,000 images.
Result of the quick form: not reproduced; at its best rate ReLU needs 20 epochs and tanh 10 (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study, product

EPOCHS = "epochs_to('train_accuracy', 0.75)"


def study(seeds, **fields):
    layers = ('conv(32, 5)|relu|max_pool(3, 2)|conv(32, 5)|relu|max_pool(3, 2)|conv(64, 5)|relu|max_pool(3, 2)|'
              'conv(64, 3)|relu|flatten|dense')
    base = make(
        batch_size=128, model=dict(name='sequential', layers=layers),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), schedule='constant'), **fields)
    activations = {name: {'model.layers': layers.replace('relu', name), 'model.kernel_init': initialiser}
                   for name, initialiser in (('relu', 'he_normal'), ('tanh', 'lecun_normal'))}
    rates = {f'rate {rate}': {'optim.learning_rate': rate} for rate in (0.003, 0.01, 0.03)}
    return make_study(base, product(activations, rates), seeds=seeds, compare=EPOCHS, columns=('test_accuracy',),
                      title='Epochs to 25 % training error with ReLU and tanh', baseline='relu, rate 0.01')


def get_study():
    return study(3, duration=dict(epochs=40), data=dict(name='cifar10'), log_every=dict(epochs=0.25))


def get_quick_study():
    return study(3, duration=dict(epochs=30), data=dict(name='cifar10', per_class=200), log_every=dict(epochs=1),
                 eval=dict(every=dict(epochs=10)))
