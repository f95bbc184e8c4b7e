"""What a run and a trained network can be asked: figures and reports."""
