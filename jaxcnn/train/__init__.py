"""Training: `train_and_evaluate(config, workdir) -> summary`."""

from jaxcnn.train.callbacks import Callback
from jaxcnn.train.loop import train_and_evaluate
from jaxcnn.train.state import TrainState

__all__ = ['Callback', 'TrainState', 'train_and_evaluate']
