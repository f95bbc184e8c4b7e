"""`shallow_cnn` on CIFAR-10, 30 epochs.

    jaxcnn train --config=cifar10_shallow --workdir=runs/cifar10 --config.data.dir=DIR

DIR holds TFDS data sets (or set TFDS_DATA_DIR). Result: 88.31 % test, seed 0, 2 CPU cores,
jax 0.10.2 (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=30),
        batch_size=128,
        model=dict(name='shallow_cnn', dropout=0.2, kernel_init='lecun_normal'),
        loss=dict(name='cross_entropy', label_smoothing=0.1),
        data=dict(name='cifar10', augment='pad_crop(4)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9, nesterov=True), learning_rate=0.05, schedule='cosine',
                   warmup=dict(fraction=0.05), l2=5e-4, clip_norm=5.0),
    )
