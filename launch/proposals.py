"""Compare object proposals; see `jaxcnn/cli/proposals.py`."""

from jaxcnn.cli.proposals import main

if __name__ == '__main__':
    main()
