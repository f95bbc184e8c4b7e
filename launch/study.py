"""Train the arms of a study and compare them; see `jaxcnn/cli/study.py`."""

from jaxcnn.cli.study import main

if __name__ == '__main__':
    main()
