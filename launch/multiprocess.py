"""Starts several processes of one command on this machine; see `jaxcnn/cli/multiprocess.py`."""

import sys

from jaxcnn.cli.multiprocess import main

if __name__ == '__main__':
    sys.exit(main())
