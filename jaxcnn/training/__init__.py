"""Training: `train(config, workdir) -> summary`.

Names are imported when they are first used, because the loop needs `jaxcnn.run`, which imports other modules of this
package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcnn.training.callbacks import Callback
    from jaxcnn.training.loop import train
    from jaxcnn.training.state import TrainState

_MODULES = {'Callback': 'callbacks', 'TrainState': 'state', 'train': 'loop'}
__all__ = ['Callback', 'TrainState', 'train']


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    return value
