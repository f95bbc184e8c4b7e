"""`lenet_mnist` on MNIST, in the recipe of TensorFlow's MNIST tutorials: 30,000 steps of plain SGD.

    jaxcnn train --config=mnist_lenet_tutorial --workdir=runs/mnist_tutorial --config.data.dir=DIR

DIR holds TFDS data sets (or set TFDS_DATA_DIR). As there, 5,000 of the training images are for validation, the L2 penalty is
on the dense layers alone, and the moving average of the parameters is evaluated. `mnist_lenet` needs a twelfth of the steps.
Result: 99.20 % test, seed 0 (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(steps=30_000),
        batch_size=100,
        model=dict(name='lenet_mnist', bias_init=0.1, bias_init_layers='dense'),
        data=dict(name='mnist', normalize='none', val_fraction=1 / 12),
        optim=dict(optimizer='sgd', learning_rate=0.01,
                   schedule=dict(name='exponential', decay_rate=0.99, every=dict(epochs=1), staircase=True),
                   l2=1e-4, decay_mask='Dense_.*kernel', ema_decay=0.99),
        eval=dict(every=dict(steps=1000)),
        checkpoint=dict(metric='val_ema_accuracy'),
    )
