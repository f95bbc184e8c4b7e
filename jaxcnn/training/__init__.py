"""Training: `train(config, workdir) -> summary`.

Names are imported when they are first used, because the entry point needs `jaxcnn.run`, which imports other modules of this
package.
"""

from typing import TYPE_CHECKING

from jaxcnn.lazy import lazy_attributes

if TYPE_CHECKING:
    from jaxcnn.training.callbacks import Callback
    from jaxcnn.training.entry_point import train
    from jaxcnn.training.state import TrainState

__all__ = ['Callback', 'TrainState', 'train']
__getattr__ = lazy_attributes(__name__, {'Callback': 'callbacks', 'TrainState': 'state', 'train': 'entry_point'})
