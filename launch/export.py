"""Write a run into a folder for other programs; see `jaxcnn/cli/export.py`."""

from jaxcnn.cli.export import main

if __name__ == '__main__':
    main()
