"""ResNet-50 with the stem for small images on Tiny-ImageNet-200, 100 epochs: the recipe of the studies depth,
skip_connections and cardinality.

    jaxcnn train --config=tiny_imagenet_resnet50 --workdir=runs/tiny_resnet50 --config.data.dir=DIR

DIR holds `tiny-imagenet-200`, as it is unpacked from the official archive. The published accuracy is 58.97 %.
Result: not yet measured.
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=100),
        batch_size=256,
        model=dict(name='resnet50', stem='small'),
        data=dict(name='tiny_imagenet', augment='pad_crop(8)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.2, schedule='cosine', l2=1e-4,
                   warmup=dict(epochs=2)),
    )
