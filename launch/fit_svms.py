"""Fit the SVMs and box regressions of R-CNN and SPP-Net; see `jaxcnn/cli/fit_svms.py`."""

from jaxcnn.cli.fit_svms import main

if __name__ == '__main__':
    main()
