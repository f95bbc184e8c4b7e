"""Which activation with which initialiser? Six activations by four initialisers.

    jaxcnn study --study=activations --workdir=runs/activations --config.data.dir=DIR
    jaxcnn study --study=activations:quick --workdir=runs/activations_quick --jobs=2

DIR holds TFDS data sets (or set TFDS_DATA_DIR). The network has ten convolutions and no normalisation, so that its
activations and gradients depend on the initialiser. The quick form is on handwritten digits, and needs no data.
Result of the quick form: with he_normal ELU 94.61 %, tanh 91.36 %, ReLU 83.66 %; the other initialisers are worse for
each of them (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study, product


def layers(activation, width):
    convolutions = [f'conv({width})|{activation}'] * 10
    convolutions[2] += '|max_pool(2)'
    convolutions[5] += '|max_pool(2)'
    return '|'.join([*convolutions, 'global_avg_pool|dense'])


def study(width, seeds, title, **fields):
    base = make(model=dict(name='sequential', layers=layers('relu', width)),
                optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, schedule='cosine',
                           warmup=dict(fraction=0.1), clip_norm=1.0), **fields)
    activations = {name: {'model.layers': layers(name, width)}
                   for name in ('relu', 'leaky_relu', 'elu', 'swish', 'tanh', 'sigmoid')}
    initialisers = {name: {'model.kernel_init': name}
                    for name in ('he_normal', 'xavier_uniform', 'lecun_normal', 'normal(0.01)')}
    return make_study(base, product(activations, initialisers), seeds=seeds, title=title, columns=('train_loss',))


def get_study():
    return study(64, 3, 'Activations and initialisers on CIFAR-10', duration=dict(epochs=20), batch_size=128,
                 data=dict(name='cifar10', augment='pad_crop(4)|flip_lr'))


def get_quick_study():
    return study(16, 3, 'Activations and initialisers of ten layers on digits', duration=dict(epochs=15), batch_size=64,
                 data=dict(name='digits', image_size=16), eval=dict(every=dict(epochs=3)))
