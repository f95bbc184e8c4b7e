"""jaxcnn: config-driven training of convolutional networks in JAX and Flax.

    import jaxcnn

    config = jaxcnn.make_config(model='lenet5', data=dict(name='digits', image_size=32), duration=dict(epochs=5))
    summary = jaxcnn.train(config, 'runs/a')
    run = jaxcnn.load_run('runs/a')
    probabilities = run.predict(images)

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from jaxcnn.lazy import lazy_attributes
from jaxcnn.version import __version__ as __version__

if TYPE_CHECKING:
    from jaxcnn.compression.quantized_run import load_quantized
    from jaxcnn.config import make as make_config
    from jaxcnn.data.augment import register as register_augmentation
    from jaxcnn.data.sources import Source as Dataset
    from jaxcnn.data.sources import register as register_dataset
    from jaxcnn.errors import UserError
    from jaxcnn.losses import register as register_loss
    from jaxcnn.metrics import example_metric, split_metric
    from jaxcnn.models import Network
    from jaxcnn.models import create as create_model
    from jaxcnn.models import register as register_model
    from jaxcnn.optim import register as register_optimizer
    from jaxcnn.run import Run, load_run
    from jaxcnn.schedules import register as register_schedule
    from jaxcnn.tasks import Task
    from jaxcnn.tasks import register as register_task
    from jaxcnn.training import Callback, train

__all__ = [
    'Callback', 'Dataset', 'Network', 'Run', 'Task', 'UserError', 'create_model', 'example_metric', 'load_quantized',
    'load_run', 'make_config', 'register_augmentation', 'register_dataset', 'register_loss', 'register_model',
    'register_optimizer', 'register_schedule', 'register_task', 'split_metric', 'train',
]
__getattr__ = lazy_attributes(__name__, {
    'Callback': 'training', 'Dataset': 'data.sources:Source', 'Network': 'models', 'Run': 'run', 'Task': 'tasks',
    'UserError': 'errors', 'create_model': 'models:create', 'example_metric': 'metrics',
    'load_quantized': 'compression.quantized_run', 'load_run': 'run', 'make_config': 'config:make',
    'register_augmentation': 'data.augment:register', 'register_dataset': 'data.sources:register',
    'register_loss': 'losses:register', 'register_model': 'models:register', 'register_optimizer': 'optim:register',
    'register_schedule': 'schedules:register', 'register_task': 'tasks:register', 'split_metric': 'metrics',
    'train': 'training',
})


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
