"""Measure how robust a run is; see `jaxcnn/cli/robustness.py`."""

from jaxcnn.cli.robustness import main

if __name__ == '__main__':
    main()
