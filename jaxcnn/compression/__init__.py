"""Smaller and faster networks: pruning, quantisation and distillation."""
