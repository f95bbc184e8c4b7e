"""Show what is in a data set before training; see `jaxcnn/cli/data.py`."""

from jaxcnn.cli.data import main

if __name__ == '__main__':
    main()
