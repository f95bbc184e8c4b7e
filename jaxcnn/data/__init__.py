"""Data sets: sources -> uint8 images -> batches; augmentation and normalisation as pure JAX functions."""

from jaxcnn.data import arrays, box_layouts, coco, huggingface, layouts, table_layouts, webdataset
from jaxcnn.data.dataset import Dataset, load
from jaxcnn.data.sources import Source, names
from jaxcnn.data.split import Split

__all__ = ['Dataset', 'Source', 'Split', 'arrays', 'box_layouts', 'coco', 'huggingface', 'layouts', 'load', 'names',
           'table_layouts', 'webdataset']
