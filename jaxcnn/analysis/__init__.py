"""Analysis of networks and runs: figures, reports, complexity, memory and receptive fields."""
