"""Can a growing batch replace a falling learning rate? And large batches, then small ones with frozen BatchNorm.

    jaxcnn study --study=batch_growth --workdir=runs/batch_growth --config.data.dir=DIR
    jaxcnn study --study=batch_growth:quick --workdir=runs/batch_growth_quick --config.data.dir=DIR

DIR holds TFDS data sets (or set TFDS_DATA_DIR). Smith et al. 2018 ("Don't decay the learning rate, increase the batch
size"): the same accuracy with fewer updates. The quick form has 2,000 training images and narrow layers.
Result of the quick form: falling rate 44.06 %, growing batch 42.88 %, large then small 40.39 % (docs/results.md).
"""

from jaxcnn.studies import make_study


def study(batch_size, seeds, title, **common):
    moments = [{'fraction': 0.4}, {'fraction': 0.7}, {'fraction': 0.9}]
    step = {'optim.schedule': {'name': 'step', 'at': moments, 'factor': 0.2}}
    growth = {'optim.schedule': {'name': 'constant'}, 'batch_schedule': [
        (moment, batch_size * 5 ** (i + 1)) for i, moment in enumerate(moments)]}
    half_growth = {'optim.schedule': {'name': 'step', 'at': moments[1:], 'factor': 0.2},
                   'batch_schedule': [(moments[0], batch_size * 5)]}
    large_then_small = {'optim.schedule': {'name': 'step', 'at': moments, 'factor': 0.2}, 'batch_size': batch_size * 8,
                        'batch_schedule': [({'fraction': 0.7}, batch_size)], 'freeze_bn': {'fraction': 0.7}}
    return make_study('cifar10_shallow', {
        'falling rate': step, 'growing batch': growth, 'first grows, then falls': half_growth,
        'large, then small with frozen BatchNorm': large_then_small,
    }, seeds=seeds, title=title, common={'batch_size': batch_size, 'optim.learning_rate': 0.05, 'optim.warmup': None,
                                      **common})


def get_study():
    return study(128, 3, 'Growing batches against falling learning rates on CIFAR-10', **{'duration': {'epochs': 60}})


def get_quick_study():
    return study(16, 3, 'Growing batches against falling learning rates on 2,000 images of CIFAR-10', **{
        'duration': {'epochs': 12}, 'data.per_class': 200, 'model.widths': (16, 32, 64, 64), 'model.hidden': 64,
        'optim.learning_rate': 0.01, 'eval.every': {'fraction': 0.25}})
