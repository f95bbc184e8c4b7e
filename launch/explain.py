"""Explain what a trained network sees; see `jaxcnn/cli/explain.py`."""

from jaxcnn.cli.explain import main

if __name__ == '__main__':
    main()
