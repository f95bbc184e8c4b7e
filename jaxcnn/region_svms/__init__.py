"""The second stage of R-CNN and SPP-Net: linear SVMs and a regression of boxes on the features of regions."""
