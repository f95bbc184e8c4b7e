"""Compare finished runs; see `jaxcnn/cli/compare.py`."""

from jaxcnn.cli.compare import main

if __name__ == '__main__':
    main()
