"""Quantise the network of a run; see `jaxcnn/cli/quantize.py`."""

from jaxcnn.cli.quantize import main

if __name__ == '__main__':
    main()
