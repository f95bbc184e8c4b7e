"""Predict the classes of image files with a trained network; see `jaxcnn/cli/predict.py`."""

from jaxcnn.cli.predict import main

if __name__ == '__main__':
    main()
