"""VGG-16, the net D of the paper of VGG, with scale jitter on ImageNet, from the layers of VGG-11.

    jaxcnn train --config=imagenet_vgg11 --workdir=runs/imagenet_vgg11 --config.data.dir=DIR
    jaxcnn train --config=imagenet_vgg16 --workdir=runs/imagenet_vgg16 --config.data.dir=DIR

DIR is that of `imagenet_vgg11`. The first four convolutions and the three dense layers start from the first run. The names
also fit VGG-13 and VGG-19: `--config.model.name=vgg19`. Each image is scaled to a shorter side S from 256 to 512 pixels.
A fixed S is

    --config.data.augment="scale_jitter(224, (256, 256))|flip_lr|channel_shift"

The paper starts S = 384 from S = 256, and the jitter from S = 384, with all layers and a rate of 0.001:
`--config.init="dict(run='runs/vgg16_384')" --config.optim.learning_rate=0.001`. Its top-1 errors by dense evaluation at one
scale are 27.0, 26.8 and 25.6 % for S = 256, S = 384 and the jitter.
Result: not yet measured (needs ImageNet).
"""

from jaxcnn.config import make


def get_config():
    return make(
        duration=dict(epochs=74),
        batch_size=256,
        model=dict(name='vgg16', dropout=0.5),
        init=dict(run='runs/imagenet_vgg11', include=r'^(Conv_[0245]|Dense_[012])/',
                  rename=((r'^Conv_2/', 'Conv_1/'), (r'^Conv_4/', 'Conv_2/'), (r'^Conv_5/', 'Conv_3/'))),
        data=dict(name='folder', image_size='original', augment='scale_jitter(224, (256, 512))|flip_lr|channel_shift',
                  eval_augment='shorter_side(384)|center_crop(224)',
                  normalize='standardize((0.485, 0.458, 0.408), 0.225)'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, l2=5e-4,
                   schedule=dict(name='plateau', metric='accuracy', factor=0.1, patience=5)),
    )
