"""How does a vision transformer without pretraining compare? T2T-ViT-14 on Tiny-ImageNet-200.

    jaxcnn study --study=t2t_vit --workdir=runs/t2t --config.data.dir=DIR
    jaxcnn study --study=t2t_vit:quick --workdir=runs/t2t_quick

DIR holds `tiny-imagenet-200`. The quick form has a small T2T-ViT and ResNet-20 on handwritten digits, and needs no data.
Result of the quick form: T2T-ViT 92.85 %, ResNet-20 98.61 % (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def get_study():
    base = make(
        duration=dict(epochs=100), batch_size=128,
        model=dict(name='t2t_vit_14', splits=((7, 2, 3), (3, 2, 1), (3, 2, 1))),  # 64 tokens of an image of 64 pixels
        loss=dict(name='cross_entropy', label_smoothing=0.1),
        data=dict(name='tiny_imagenet', augment='pad_crop(8)|flip_lr'),
        optim=dict(optimizer='adam', learning_rate=5e-4, schedule='cosine', warmup=dict(epochs=10), weight_decay=0.05))
    best = {'data.augment': 'random_resized_crop(64, (0.35, 1.0))|flip_lr|trivial_augment|mixup(0.8)|random_erasing(0.25)',
            'optim.ema_decay': 0.9998, 'eval.tta': 'flip', 'optim.clip_norm': 1.0}
    return make_study(base, {'T2T-ViT-14': {}, 'T2T-ViT-14, best recipe': best}, seeds=1,
                      title='T2T-ViT-14 on Tiny-ImageNet-200', published={'T2T-ViT-14': 0.4163})


def get_quick_study():
    base = make(
        duration=dict(epochs=20), batch_size=64,
        model=dict(name='t2t_vit_14', depth=4, embed=64, heads=2, splits=((3, 2, 1), (3, 2, 1), (3, 1, 1))),
        data=dict(name='digits', image_size=32, augment='pad_crop(3)'),
        optim=dict(optimizer='adam', learning_rate=1e-3, schedule='cosine', warmup=dict(epochs=2), weight_decay=0.05),
        eval=dict(every=dict(epochs=4)))
    resnet = {'model': {'name': 'resnet20_cifar', 'width': 8}, 'optim.weight_decay': 0.0, 'optim.l2': 1e-4,
              'optim.optimizer': {'name': 'sgd', 'momentum': 0.9}, 'optim.learning_rate': 0.05}
    return make_study(base, {'T2T-ViT': {}, 'ResNet-20': resnet}, seeds=3, title='A small T2T-ViT and ResNet-20 on digits')
