"""Training: `train(config, workdir) -> summary`."""

from jaxcnn.training.callbacks import Callback
from jaxcnn.training.loop import train
from jaxcnn.training.state import TrainState

__all__ = ['Callback', 'TrainState', 'train']
