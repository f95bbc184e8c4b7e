"""How many bits does a network need, and do learned steps help? Quantisation-aware training against float32.

    jaxcnn study --study=quantization --workdir=runs/quantization --config.data.dir=DIR
    jaxcnn study --study=quantization:quick --workdir=runs/quantization_quick --jobs=2

DIR holds TFDS data sets (or set TFDS_DATA_DIR). Weights and activations have 8, 4 or 2 bits, with the moving ranges of the
batches (`minmax`) or with learned steps (`lsq`, Esser et al. 2020). The first and the last layer stay in float32, as in the
paper. The quick form is on handwritten digits, and needs no data.
Result of the quick form, two seeds: float32 98.05 %; 8 bits 98.19 (minmax) and 98.33 % (lsq), 4 bits 97.91 and 97.49 %,
2 bits 96.24 and 97.08 % (docs/compression.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def study(base, float_layers, seeds, title):
    arms = {'float32': {}}
    for bits in (8, 4, 2):
        for method in ('minmax', 'lsq'):
            arms[f'{bits} bits, {method}'] = {
                'quantization.bits': bits, 'quantization.method': method, 'quantization.float_layers': float_layers}
    return make_study(base, arms, seeds=seeds, title=title, columns=('train_loss',))


def get_study():
    base = make(duration=dict(epochs=60), batch_size=128, model=dict(name='resnet20_cifar'),
                data=dict(name='cifar10', augment='pad_crop(4)|flip_lr'),
                optim=dict(optimizer=dict(name='sgd', momentum=0.9, nesterov=True), learning_rate=0.1, l2=1e-4,
                           schedule='cosine', warmup=dict(epochs=1)),
                eval=dict(every=dict(epochs=5)))
    return study(base, '^Conv_0$|^Dense_0$', 3, 'Bits of weights and activations on CIFAR-10')


def get_quick_study():
    base = make(duration=dict(epochs=8), batch_size=64,
                model=dict(name='lenet5', activation='relu', pool='max'),
                data=dict(name='digits', image_size=32, augment='pad_crop(2)'),
                optim=dict(optimizer='adam', learning_rate=2e-3, schedule='cosine', warmup=dict(epochs=1)),
                eval=dict(every=dict(epochs=8)))
    return study(base, '^Conv_0$|^Dense_2$', 2, 'Bits of weights and activations on digits')
