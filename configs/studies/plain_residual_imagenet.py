"""Plain against residual networks of 18 and 34 layers with shortcuts A, B and C, on Tiny-ImageNet-200.

    jaxcnn study --study=plain_residual_imagenet --workdir=runs/plain_residual --config.data.dir=DIR
    jaxcnn study --study=plain_residual_imagenet:quick --workdir=runs/plain_residual_quick

DIR holds `tiny-imagenet-200`. On ImageNet, He et al. 2015 give top-1 errors of 27.94 and 28.54 % for the plain networks of
18 and 34 layers, 27.88 % for ResNet-18, and 25.03, 24.52 and 24.19 % for ResNet-34 with shortcuts A, B and C. The
quick form has an eighth of the features on handwritten digits, and needs no data.
Result of the quick form: plain 97.77 and 91.92 %, residual 97.86 and 98.24 % with 18 and 34 layers (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study

ARMS = {
    'plain-18': {'model.name': 'resnet18', 'model.shortcut': 'none'},
    'plain-34': {'model.name': 'resnet34', 'model.shortcut': 'none'},
    'ResNet-18 A': {'model.name': 'resnet18', 'model.shortcut': 'A'},
    **{f'ResNet-34 {option}': {'model.name': 'resnet34', 'model.shortcut': option} for option in 'ABC'},
}


def get_study():
    arms = {name: {**fields, 'model.stem': 'small'} for name, fields in ARMS.items()}
    return make_study('tiny_imagenet_resnet50', arms, seeds=3, title='Plain and residual networks on Tiny-ImageNet-200')


def get_quick_study():
    base = make(
        duration=dict(epochs=8), batch_size=64, model=dict(name='resnet18'),
        data=dict(name='digits', image_size=32), eval=dict(every=dict(epochs=2)),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.05, schedule='cosine', l2=1e-4,
                   warmup=dict(epochs=1)))
    arms = {name: {**fields, 'model.width': 8, 'model.stem': 'small'} for name, fields in ARMS.items()}
    return make_study(base, arms, seeds=3, title='Plain and residual networks of 18 and 34 layers on digits',
                      columns=('train_loss',))
