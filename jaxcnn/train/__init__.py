"""Training: `train_and_evaluate(config, workdir) -> summary`."""

from jaxcnn.train.loop import train_and_evaluate
from jaxcnn.train.state import TrainState

__all__ = ['TrainState', 'train_and_evaluate']
