"""Does a deep network train better from a shallower one? VGG-19 from VGG-11's layers, in two ways, against from scratch.

    jaxcnn study --study=growing --workdir=runs/growing --config.data.dir=DIR
    jaxcnn study --study=growing:quick --workdir=runs/growing_quick

DIR holds `tiny-imagenet-200`. Simonyan & Zisserman 2014 start the deeper networks from the first four convolutions and the
dense layers of VGG-11; the other layers are drawn. In the second way all layers are taken, and the new ones begin as
identities, so that VGG-19 begins with the outputs of VGG-11. The quick form has an eighth of the features on handwritten
digits, and needs no data.
Result of the quick form: 54.97 % from scratch, 95.73 and 98.14 % from VGG-11 (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.models.vgg import STAGES
from jaxcnn.studies import make_study

# VGG-11's first four convolutions are the first of stages 1 and 2 and the two of stage 3; dense layers have equal names
RENAMED = ((r'^Conv_2/', 'Conv_1/'), (r'^Conv_4/', 'Conv_2/'), (r'^Conv_5/', 'Conv_3/'))
FURTHER = ((r'^Conv_8/', 'Conv_4/'), (r'^Conv_9/', 'Conv_5/'), (r'^Conv_12/', 'Conv_6/'), (r'^Conv_13/', 'Conv_7/'))
PAPER = r'^(Conv_[0245]|Dense_[012])/'
ALL = r'^(Conv_([024589]|12|13)|Dense_[012])/'


def arms(stages):
    deep = {'model.stages': stages}
    return {
        'VGG-11': {}, 'VGG-19 from scratch': deep,
        'VGG-19 from VGG-11': {**deep, 'init': {'run': 'arm:VGG-11', 'include': PAPER, 'rename': RENAMED}},
        'VGG-19 from VGG-11 and identities': {
            **deep, 'init': {'run': 'arm:VGG-11', 'include': ALL, 'rename': RENAMED + FURTHER},
            'model.kernel_init': 'dirac'},
    }


def get_study():
    base = make(
        duration=dict(epochs=100), batch_size=256, model=dict(name='vgg11'),
        data=dict(name='tiny_imagenet', augment='pad_crop(8)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.01, schedule='cosine', l2=5e-4))
    return make_study(base, arms(STAGES[19]), seeds=3, title='VGG-19 from VGG-11 on Tiny-ImageNet-200',
                      baseline='VGG-19 from scratch')


def get_quick_study():
    def narrow(depth):
        return tuple(tuple(width // 8 for width in stage) for stage in STAGES[depth])
    base = make(
        duration=dict(epochs=12), batch_size=64, model=dict(name='vgg11', stages=narrow(11), hidden=128),
        data=dict(name='digits', image_size=32), eval=dict(every=dict(epochs=2)),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.02, schedule='cosine', l2=5e-4, clip_norm=5.0))
    return make_study(base, arms(narrow(19)), seeds=3, title='VGG-19 from VGG-11 with an eighth of the features on digits',
                      baseline='VGG-19 from scratch', columns=('train_loss',))
