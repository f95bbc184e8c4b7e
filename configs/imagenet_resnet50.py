"""ResNet-50 on ImageNet in a folder for each class, by the recipe of its paper (He et al. 2015, section 3.4).

    jaxcnn train --config=imagenet_resnet50 --workdir=runs/imagenet_resnet50 --config.data.dir=DIR

DIR holds `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`. Each image is scaled to a shorter side from 256 to 480 pixels, and
224 x 224 pixels are cropped at random. The mean image is subtracted; to compute it, the run begins with a pass over all
images. The rate is divided by 10 when the validation error stops falling. The run has the paper's 600,000 steps, about 120
epochs. The paper's top-1 errors on the validation images are 22.85 % with ten crops and 20.74 % with several scales.
Result: not yet measured (needs ImageNet).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(steps=600_000),
        batch_size=256,
        model='resnet50',
        data=dict(name='folder', image_size='original', augment='scale_jitter(224, (256, 480))|flip_lr|channel_shift',
                  eval_augment='shorter_side(256)|center_crop(224)', normalize='pixel_mean'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.1, l2=1e-4,
                   schedule=dict(name='plateau', metric='accuracy', factor=0.1, patience=5)),
    )
