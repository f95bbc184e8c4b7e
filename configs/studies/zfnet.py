"""Which layers of ZFNet matter? Its ablations, its first layer against AlexNet's, and frozen features with a new classifier.

    jaxcnn study --study=zfnet --workdir=runs/zfnet --config.data.dir=DIR
    jaxcnn study --study=zfnet:quick --workdir=runs/zfnet_quick

DIR holds `tiny-imagenet-200`, whose images are enlarged to 224 pixels. On ImageNet, Zeiler & Fergus 2013 find top-1 errors
of 40.5 % for AlexNet, 44.8 % without two dense layers, 41.8 % without two middle convolutions, 71.1 % without both, and 38.4
% for ZFNet. The quick form has an eighth of the features on handwritten digits, and needs no data.
Result of the quick form: 94.24 %, without dense layers 97.40, convolutions 91.36, both 95.91 % (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def arms(widths, first_layer):
    without_dense, without_convolutions = {'model.hidden_layers': 0}, {'model.widths': (*widths[:2], widths[-1])}
    frozen = {'init': {'run': 'arm:ZFNet', 'exclude': 'Dense_2'},
              'optim.groups': [{'match': 'Conv|Dense_[01]', 'rate': 0.0}]}
    return {'ZFNet': {}, 'without two dense layers': without_dense,
            'without two convolutions': without_convolutions,
            'without both': {**without_dense, **without_convolutions},
            "AlexNet's first layer": {'model.stem': first_layer},
            'frozen features, new softmax': frozen}


def get_study():
    base = make(
        duration=dict(epochs=60), batch_size=128, model=dict(name='zfnet'),
        data=dict(name='tiny_imagenet', image_size=224, augment='random_resized_crop(224, (0.35, 1.0))|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, schedule='cosine', l2=5e-4, clip_norm=5.0,
                   warmup=dict(epochs=1)))
    return make_study(base, arms((96, 256, 384, 384, 256), ((11, 4, 0), (5, 1, 2))), seeds=3,
                      title="ZFNet's ablations on Tiny-ImageNet-200")


def get_quick_study():
    widths = (12, 32, 48, 48, 32)
    base = make(
        duration=dict(epochs=12), batch_size=64, model=dict(name='zfnet', widths=widths, hidden=256, window=2),
        data=dict(name='digits', image_size=64), eval=dict(every=dict(epochs=3)),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, schedule='cosine', l2=5e-4, clip_norm=5.0))
    return make_study(base, arms(widths, ((11, 4, 0), (5, 1, 2))), seeds=3, title="ZFNet's ablations on digits")
