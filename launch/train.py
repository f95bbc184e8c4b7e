"""Train the network of a config; see `jaxcnn/cli/train.py`."""

from jaxcnn.cli.train import main

if __name__ == '__main__':
    main()
