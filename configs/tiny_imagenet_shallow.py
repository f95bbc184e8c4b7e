"""`shallow_cnn` on Tiny-ImageNet, from its own folders, 20 epochs.

    jaxcnn train --config=tiny_imagenet_shallow --workdir=runs/tiny --config.data.dir=DIR

DIR holds `tiny-imagenet-200`, as it is unpacked from the official archive. Result: 20 epochs
not yet measured; two, on 20,000 of the images, 5.58 % test, seed 0, 2 CPU cores (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=20),
        batch_size=128,
        model=dict(name='shallow_cnn', dropout=0.2, kernel_init='lecun_normal'),
        loss=dict(name='cross_entropy', label_smoothing=0.1),
        data=dict(name='tiny_imagenet', augment='random_resized_crop(64, (0.3, 1.0))|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9, nesterov=True), learning_rate=0.05, warmup=dict(epochs=1),
                   l2=5e-4, clip_norm=5.0),
    )
