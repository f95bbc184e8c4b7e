"""List the caches of decoded images and compiled programs with their sizes; see `jaxcnn/cli/cache.py`."""

from jaxcnn.cli.cache import main

if __name__ == '__main__':
    main()
