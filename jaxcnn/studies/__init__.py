"""Studies: comparisons of several configs over seeds, and searches over configs."""

from jaxcnn.studies.definition import Arm, Study, grid, make_study, product
from jaxcnn.studies.space import Search, choice, integer, log_uniform, search, uniform

__all__ = ['Arm', 'Search', 'Study', 'choice', 'grid', 'integer', 'log_uniform', 'make_study', 'product', 'search',
           'uniform']
