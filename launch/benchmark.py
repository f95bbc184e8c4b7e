"""Measure speed, as ratios within one run on one machine; see `jaxcnn/cli/benchmark.py`."""

from jaxcnn.cli.benchmark import main

if __name__ == '__main__':
    main()
