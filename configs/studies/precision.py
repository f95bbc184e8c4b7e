"""What do 16 bits cost? Training in float32, bfloat16 and float16, with and without a scaled loss.

    jaxcnn study --study=precision --workdir=runs/precision --config.data.dir=DIR
    jaxcnn study --study=precision:quick --workdir=runs/precision_quick

DIR holds TFDS data sets (or set TFDS_DATA_DIR). Micikevicius et al. 2018 ("Mixed precision training"): float16 with a scaled
loss is as accurate as float32. The quick form trains LeNet-5 on handwritten digits, and needs no data.
Result of the quick form, seed 0: float32 98.05 %, bfloat16 97.77 %, float16 98.33 % (docs/compression.md).
"""

from jaxcnn.studies import make_study

DYNAMIC = {'name': 'dynamic', 'every': 200}
ARMS = {
    'float32': {}, 'bfloat16': {'model.dtype': 'bfloat16'},
    'bfloat16, also gradients': {'model.dtype': 'bfloat16', 'optim.gradient_dtype': 'bfloat16'},
    'bfloat16, also parameters': {'model.dtype': 'bfloat16', 'model.param_dtype': 'bfloat16'},
    'float16, dynamic scale': {'model.dtype': 'float16', 'optim.loss_scale': DYNAMIC},
    'float16, scale 1024': {'model.dtype': 'float16', 'optim.loss_scale': {'name': 'static', 'scale': 1024}},
    'float16, not scaled': {'model.dtype': 'float16', 'optim.loss_scale': {'name': 'none'}}}


def get_study():
    return make_study('cifar10_shallow', ARMS, seeds=3, title='Precision on CIFAR-10')


def get_quick_study():
    return make_study('digits_lenet5', ARMS, seeds=3, common={'duration': {'epochs': 20}}, columns=('train_loss',),
                      title='Precision on digits')
