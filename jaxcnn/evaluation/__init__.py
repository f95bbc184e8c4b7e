"""Evaluation of trained classifiers beyond one crop: protocols, ensembles, calibration and comparisons of runs."""
