"""ResNet-18 with the small stem on CIFAR-10, 30 epochs: Muon (Jordan et al. 2024), cutout, six views of a test image.

    jaxcnn train --config=cifar10_resnet18 --workdir=runs/resnet18 --config.data.dir=DIR

DIR holds TFDS data sets (or set TFDS_DATA_DIR). On a GPU add `--config.model.dtype=bfloat16`; on two CPU cores an epoch
took 20 minutes, so try `--config.duration.epochs=3`. All 50,000 images are trained on, and the test images are looked at
once, at the end. Aim: 95.5 %, not yet measured. In 3 epochs, 62 minutes on two CPU cores: 87.63 % by six views, 86.59 % by
one (docs/results.md).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=30),
        batch_size=512,
        model=dict(name='resnet18', stem='small'),
        loss=dict(name='cross_entropy', label_smoothing=0.1),
        data=dict(name='cifar10', augment='alternating_flip|pad_crop(4, "reflect")|cutout(8)', val_fraction=0.0),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9, nesterov=True), learning_rate=0.1,
                   schedule=dict(name='triangle', peak=0.2, start_factor=0.2, end_factor=0.0),
                   weight_decay=0.04,
                   groups=(dict(match='Conv.*kernel', optimizer='muon', rate=0.4),)),
        eval=dict(every=dict(fraction=1.0), tta='flip_shift(1)'),
        checkpoint=dict(every=dict(fraction=0.1)),
        log_every=dict(steps=20),
    )
