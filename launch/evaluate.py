"""Evaluate a checkpoint of a run on a split of its data; see `jaxcnn/cli/evaluate.py`."""

from jaxcnn.cli.evaluate import main

if __name__ == '__main__':
    main()
