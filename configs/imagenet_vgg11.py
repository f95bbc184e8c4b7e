"""VGG-11, the net A of the paper of VGG, on ImageNet in a folder for each class (Simonyan & Zisserman 2014, section 3.1).

    jaxcnn train --config=imagenet_vgg11 --workdir=runs/imagenet_vgg11 --config.data.dir=DIR

DIR holds `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`. Images are scaled to a shorter side of 256 pixels, 224 x 224 are
cropped at random, and the mean of each channel is subtracted. In contrast to the paper, kernels are drawn as He et al. 2015
do, for which pixels are also divided by one standard deviation. The rate is divided by 10 when the validation error stops
falling. `imagenet_vgg16` starts from this run.
Result: not yet measured (needs ImageNet).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=74),
        batch_size=256,
        model=dict(name='vgg11', dropout=0.5),
        data=dict(name='folder', image_size='original', augment='scale_jitter(224, (256, 256))|flip_lr|channel_shift',
                  eval_augment='shorter_side(256)|center_crop(224)',
                  normalize='standardize((0.485, 0.458, 0.408), 0.225)'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, l2=5e-4,
                   schedule=dict(name='plateau', metric='accuracy', factor=0.1, patience=5)),
    )
