"""Draw augmented pictures; see `jaxcnn/cli/augment.py`."""

from jaxcnn.cli.augment import main

if __name__ == '__main__':
    main()
