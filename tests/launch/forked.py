"""Runs a command in a process that is forked from one with the libraries imported, for speed: most of a command that only
tells what is wrong is their import."""

import logging
import os
import resource
import runpy
import sys

LIBRARIES = ['jaxcnn.analysis.figures', 'jaxcnn.run', 'jaxcnn.training']
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def skip_figures() -> None:
    """Let runs draw no figures, which take seconds of each."""
    from jaxcnn.analysis import figures
    from jaxcnn.training.setup import Setup
    Setup.draw_first_batch = lambda *_: None
    for name in ('curves', 'confusion_matrix'):
        setattr(figures, name, lambda *_, **__: None)


def main(argv: list[str], environment: dict[str, str], file_limit: int, outputs: list[str]) -> None:
    """Becomes `python argv...`, but for figures of runs and what happens at an interpreter's end.

    Args:
      argv: the script and its arguments.
      environment: all of it; what Python and JAX read as they start is that of the process forked from.
      file_limit: bytes that a file may have: writing more fails, as on a full disk; 0: any.
      outputs: files for standard output and error.
    """
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    logging.root.handlers.clear()  # a library's, that a command imports after it has set its own
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(argv[0]))
    skip_figures()
    runpy.run_path(argv[0], run_name='__main__')
