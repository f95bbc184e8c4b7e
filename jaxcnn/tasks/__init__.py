"""Tasks: what the outputs of a network mean."""

from jaxcnn.tasks import classification, detection, multilabel
from jaxcnn.tasks.base import Accumulated, Section, Task
from jaxcnn.tasks.registry import best_measurement, check, create, find, names, register

__all__ = ['Accumulated', 'Section', 'Task', 'best_measurement', 'check', 'classification', 'create', 'detection', 'find',
           'multilabel', 'names', 'register']
