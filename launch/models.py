"""Show the cost of networks: parameters; see `jaxcnn/cli/models.py`."""

from jaxcnn.cli.models import main

if __name__ == '__main__':
    main()
