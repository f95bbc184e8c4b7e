"""Draws what augmentation makes of pictures: a row for each op of a pipeline; see `jaxcnn/cli/augment.py`."""

from jaxcnn.cli.augment import main

if __name__ == '__main__':
    main()
