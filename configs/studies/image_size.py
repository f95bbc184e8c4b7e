"""What do several sizes of training images bring? ZF-5 with a spatial pyramid at one size, two sizes and growing sizes.

    jaxcnn study --study=image_size --workdir=runs/image_size --config.data.dir=DIR
    jaxcnn study --study=image_size:quick --workdir=runs/image_size_quick --config.data.dir=TFDS_DIR

DIR holds `tiny-imagenet-200`. He et al. 2014 (SPP-Net, table 2) train ZF-5 on ImageNet at 224 pixels, and alternately at 180
and 224; their top-1 errors are 35.99 % without a pyramid, and 34.98 and 34.60 % with one at one and two sizes. Here images
have 64 pixels, and the other size, 52, is as much smaller. All runs are evaluated at the larger size. The quick form has
narrow networks and 32 and 24 pixels, on 2,000 images of CIFAR-10.
Result of the quick form: 42.8 % without a pyramid, and 42.5, 41.0 and 42.3 % at one, two and growing sizes
(docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def arms(large, middle, small):
    growing = (({'fraction': 0.0}, small), ({'fraction': 0.3}, middle), ({'fraction': 0.6}, large))
    return {'no pyramid': {'model.head': 'dense'}, 'one size': {}, 'two sizes': {'data.train_size': (middle, large)},
            'growing sizes': {'data.train_size': growing}}


def get_study():
    base = make(
        duration=dict(epochs=60), batch_size=128,
        model=dict(name='zfnet', stem=((7, 2, 3), (5, 1, 2)), head='spp', pyramid=(4, 2, 1), dropout=0.5),
        data=dict(name='tiny_imagenet', augment='pad_crop(8)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, schedule='cosine', l2=5e-4, clip_norm=5.0))
    return make_study(base, arms(64, 52, 40), seeds=3, title='Sizes of training images on Tiny-ImageNet-200',
                      baseline='one size')


def get_quick_study():
    base = make(
        duration=dict(epochs=20), batch_size=64,
        model=dict(name='zfnet', stem=((3, 1, 1), (3, 1, 1)), widths=(16, 32, 48, 48, 32), hidden=128, lrn=False, head='spp',
                   pyramid=(4, 2, 1), dropout=0.2),
        data=dict(name='cifar10', per_class=200, augment='pad_crop(4)|flip_lr'), eval=dict(every=dict(epochs=5)),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.02, schedule='cosine', l2=5e-4, clip_norm=5.0,
                   warmup=dict(epochs=1)))
    return make_study(base, arms(32, 24, 16), seeds=3, title='Sizes of training images on 2,000 images of CIFAR-10',
                      baseline='one size', columns=('train_loss',))
