"""Runs a command in a process that is forked from one with the libraries imported, for speed.

A command that only reports an error spends most of its time on these imports.
"""

import logging
import os
import resource
import runpy
import sys

LIBRARIES = ['jaxcnn.analysis.figures', 'jaxcnn.run', 'jaxcnn.training']
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def skip_figures() -> None:
    """Keep runs from drawing figures, which takes seconds."""
    from jaxcnn.analysis import box_figures, detection_figures, figures, mistakes
    from jaxcnn.training.setup import Setup
    Setup.draw_first_batch = lambda *_: None
    for name in ('curves', 'confusion_matrix'):
        setattr(figures, name, lambda *_, **__: None)
    for name in ('precision_recall', 'error_kinds'):
        setattr(detection_figures, name, lambda *_, **__: None)
    mistakes.draw_sheet = box_figures.draw_detections = lambda *_, **__: None


def main(argv: list[str], environment: dict[str, str], file_limit: int, outputs: list[str],
         folder: str = ROOT) -> None:
    """Run a script as `python` would, without the figures of runs and without the end of the interpreter.

    Args:
      argv: the script and its arguments.
      environment: the whole environment. What Python and JAX read when they start, they read in the parent process.
      file_limit: the largest size of a file in bytes; writing more fails, as on a full disk. 0: no limit.
      outputs: files for standard output and error, which are appended to.
      folder: the working directory.
    """
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    logging.root.handlers.clear()  # a library that the parent has imported set them; a command sets its own before it
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(argv[0]))
    skip_figures()
    runpy.run_path(argv[0], run_name='__main__')


if __name__ == '__main__':  # python tests/launch/forked.py launch/train.py ...: as `python` would, but without figures
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    skip_figures()
    runpy.run_path(sys.argv[0], run_name='__main__')
