"""Check whether the training of a config is sound; see `jaxcnn/cli/check.py`."""

from jaxcnn.cli.check import main

if __name__ == '__main__':
    main()
