"""At which scales should a network be trained and evaluated? VGG's nets A and D, with the evaluation protocols of its paper.

    jaxcnn study --study=vgg_scales --workdir=runs/vgg_scales --config.data.dir=DIR
    jaxcnn study --study=vgg_scales:quick --workdir=runs/vgg_scales_quick --config.data.dir=TFDS_DIR

DIR holds `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG` of ImageNet, and all figures are those of `val`, as in the paper. Net D
is trained with a shorter side S of 256 pixels, 384 pixels, and drawn between 256 and 512, each from the one before it, and
the first from net A. Each is evaluated at Q = S, or 384 for the drawn S, by the crop of the centre and on the image as a
whole (`dense`); and at three scales Q on the image as a whole (`multi-scale`), by 150 crops, and by both.

Simonyan & Zisserman 2015 give accuracies of 73.0, 73.2 and 74.4 % for `dense`, and 73.4, 73.5 and 75.2 % for `multi-scale`
(tables 3 and 4); for the drawn S, 75.4 % by 150 crops and 75.6 % by both (table 5). The quick form has narrow
networks of three stages for crops of 32 pixels, and S = 36, 56 and [36, 72], on CIFAR-10.
Result of the quick form, seed 0, by 54 crops and several scales: 48.3 % for S = 36, 44.2 % for S = 56 and 44.9 % for the
drawn S; by `dense` 44.9, 39.2 and 37.5 %. At this size, images are enlarged, and a larger S does not help.
"""

from jaxcnn.config import make
from jaxcnn.models.vgg import STAGES
from jaxcnn.studies import make_study

# layers of net A in net D: the first four convolutions and the dense ones
FROM_A = {'run': 'arm:A', 'include': r'^(Conv_[0245]|Dense_[012])/',
          'rename': ((r'^Conv_2/', 'Conv_1/'), (r'^Conv_4/', 'Conv_2/'), (r'^Conv_5/', 'Conv_3/'))}
PUBLISHED = {'D, S = 256': 0.730, 'D, S = 384': 0.732, 'D, S in [256, 512]': 0.744}


def arms(size, small, large, largest, rest, deep, slow):
    """Return the arms.

    Args:
      size: side of the crops.
      small, large, largest: the lengths of the shorter side that are 256, 384 and 512 in the paper.
      rest: the augmentation after the crop.
      deep: fields of net D.
      slow: fields of trainings that start from another one of net D.
    """
    def data(low, high, evaluated):
        return {'data.augment': f'scale_jitter({size}, ({low}, {high}))|{rest}',
                'data.eval_augment': f'shorter_side({evaluated})|center_crop({size})'}
    return {
        'A': data(small, small, small),
        'D, S = 256': {**data(small, small, small), **deep, 'init': FROM_A},
        'D, S = 384': {**data(large, large, large), **deep, **slow, 'init': {'run': 'arm:D, S = 256'}},
        'D, S in [256, 512]': {**data(small, largest, large), **deep, **slow, 'init': {'run': 'arm:D, S = 384'}}}


def protocols(small, large, largest, step, grid):
    """Return the protocols: one scale Q for each arm, and three, which differ by `step` for a fixed S."""
    single = {'A': small, 'D, S = 256': small, 'D, S = 384': large, 'D, S in [256, 512]': large}
    several = {arm: (scale - step, scale, scale + step) for arm, scale in single.items()}
    several['D, S in [256, 512]'] = (small, large, largest)
    dense = {arm: f'dense({scales})' for arm, scales in several.items()}
    crops = {arm: f'multi_crop({scales}, grid={grid})' for arm, scales in several.items()}
    return {'centre': {arm: f'center({scale})' for arm, scale in single.items()},
            'dense': {arm: f'dense({scale})' for arm, scale in single.items()},
            'multi-scale': dense, 'multi-crop': crops,
            'multi-crop + multi-scale': {arm: f'{crops[arm]} + {dense[arm]}' for arm in single}}


def get_study():
    return make_study(
        'imagenet_vgg11',
        arms(224, 256, 384, 512, 'flip_lr|channel_shift', {'model.name': 'vgg16'}, {'optim.learning_rate': 0.001}), seeds=1,
        title="VGG's scales on ImageNet", baseline='D, S = 256', protocols=protocols(256, 384, 512, 32, 5),
        compare="by_protocol('val_accuracy', 'dense')", published=PUBLISHED)


def get_quick_study():
    def narrow(depth):
        return tuple(tuple(width // 8 for width in stage) for stage in STAGES[depth][:3])
    base = make(
        duration=dict(epochs=12), batch_size=64, model=dict(name='vgg11', stages=narrow(11), hidden=128, dropout=0.2),
        data=dict(name='cifar10', image_size='original', per_class=300, val_fraction=0.02, placement='stream'),
        eval=dict(every=dict(epochs=3)), checkpoint=dict(metric='val_accuracy'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.02, schedule='cosine', l2=5e-4, clip_norm=5.0,
                   warmup=dict(epochs=1)))
    slow = {'optim.learning_rate': 0.005, 'duration.epochs': 6}
    return make_study(base, arms(32, 36, 56, 72, 'flip_lr', {'model.stages': narrow(16)}, slow), seeds=1,
                      title="VGG's scales at a seventh of the size, on 3,000 images of CIFAR-10", baseline='D, S = 256',
                      protocols=protocols(36, 56, 72, 4, 3), compare="by_protocol('val_accuracy', 'dense')")
