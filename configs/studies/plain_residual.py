"""Do deeper plain networks train worse, and residual ones better? He et al. 2015 on CIFAR-10, 20 to 110 layers.

    jaxcnn study --study=plain_residual --workdir=runs/plain_residual --config.data.dir=DIR
    jaxcnn study --study=plain_residual:quick --workdir=runs/plain_residual_quick

DIR holds TFDS data sets (or set TFDS_DATA_DIR). The full form has the paper's recipe: 64,000 steps of 128 images, learning
rate 0.1 divided by 10 after 32,000 and 48,000 steps. The paper gives errors of 8.75, 7.51, 6.97 and 6.43 % for residual
networks of 20, 32, 56 and 110 layers, and shows those of plain ones in a figure. The quick form has 20 and 56 layers with
half the features on handwritten digits, and needs no data.
Result of the quick form: plain 96.38 and 41.04 %, residual 97.96 and 97.12 % with 20 and 56 layers (docs/results.md).
"""

from jaxcnn.config import make
from jaxcnn.studies import make_study


def arms(depths):
    plain = {f'plain, {depth} layers': {'model.blocks': (depth // 6,) * 3, 'model.shortcut': 'none'} for depth in depths}
    residual = {f'residual, {depth} layers': {'model.blocks': (depth // 6,) * 3} for depth in depths}
    return {**plain, **residual}


def get_study():
    base = make(
        duration=dict(steps=64_000), batch_size=128, model=dict(name='resnet20_cifar'),
        data=dict(name='cifar10', augment='pad_crop(4)|flip_lr'),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.1, l2=1e-4, decay_mask='',
                   schedule=dict(name='step', at=(dict(steps=32_000), dict(steps=48_000)), factor=0.1)))
    depth_arms = arms((20, 32, 56, 110))
    for kind in ('plain', 'residual'):  # the paper's warm-up of 110 layers
        depth_arms[f'{kind}, 110 layers'] = {**depth_arms[f'{kind}, 110 layers'], 'optim.warmup': {'steps': 400}}
    shortcuts = {f'residual, 56 layers, shortcuts {option}': {'model.blocks': (9, 9, 9), 'model.shortcut': option}
                 for option in 'BC'}
    errors = {20: 0.0875, 32: 0.0751, 56: 0.0697, 110: 0.0643}
    return make_study(base, {**depth_arms, **shortcuts}, seeds=5, title='Plain and residual networks on CIFAR-10',
                      published={f'residual, {depth} layers': 1 - error for depth, error in errors.items()})


def get_quick_study():
    base = make(
        duration=dict(epochs=8), batch_size=64, model=dict(name='resnet20_cifar', width=8),
        data=dict(name='digits', image_size=16), eval=dict(every=dict(epochs=2)),
        optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.05, schedule='cosine', l2=1e-4,
                   warmup=dict(epochs=1)))
    return make_study(base, arms((20, 56)), seeds=3, title='Plain and residual networks on digits',
                      columns=('train_loss', 'train_accuracy'))
