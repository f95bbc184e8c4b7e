"""Prune a finished run; see `jaxcnn/cli/prune.py`."""

from jaxcnn.cli.prune import main

if __name__ == '__main__':
    main()
