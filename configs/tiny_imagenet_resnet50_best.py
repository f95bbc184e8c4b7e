"""ResNet-50 with the stem for small images on Tiny-ImageNet-200, 100 epochs with a stronger recipe.

    jaxcnn train --config=tiny_imagenet_resnet50_best --workdir=runs/tiny_resnet50_best --config.data.dir=DIR

DIR holds `tiny-imagenet-200`, as it is unpacked from the official archive. The same network, data and number of epochs as in
`tiny_imagenet_resnet50`, with label smoothing, stronger augmentation, mixup, Nesterov momentum, an average of the parameters
and test-time augmentation. Aim: 64 %, five points above the published accuracy. Result: not yet measured.
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=100),
        batch_size=256,
        model=dict(name='resnet50', stem='small', zero_init=True),
        loss=dict(name='cross_entropy', label_smoothing=0.1),
        data=dict(name='tiny_imagenet', augment='random_resized_crop(64, (0.35, 1.0))|flip_lr|trivial_augment|mixup(0.2)'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9, nesterov=True), learning_rate=0.2, schedule='cosine', l2=1e-4,
                   warmup=dict(epochs=5), ema_decay=0.999),
        eval=dict(tta='flip'),
        checkpoint=dict(metric='val_ema_accuracy'),
    )
