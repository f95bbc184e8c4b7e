"""The folder that `jaxcnn export` writes."""

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

from jaxcnn.errors import UserError, name_file, unknown
from jaxcnn.export import FORMATS, card, check, onnx_file, safetensors_file, script, stablehlo, tensorflow
from jaxcnn.export.program import DTYPES, Program
from jaxcnn.files import check_output
from jaxcnn.run import Run

log = logging.getLogger('jaxcnn')


class _Format(NamedTuple):
    """A format.

    Attributes:
      file: name of the file, or of the folder, in the export.
      write: writes a program to a path.
      packages: what has to be installed.
      install: how it is installed.
    """

    file: str
    write: Callable[[Program, str], None]
    packages: tuple[str, ...]
    install: str


_FORMATS = {
    'stablehlo': _Format(stablehlo.FILE, stablehlo.write, (), ''),
    'onnx': _Format(onnx_file.FILE, onnx_file.write, ('onnx', 'onnxruntime'), "pip install 'jaxcnn[onnx]'"),
    'safetensors': _Format(safetensors_file.FILE, safetensors_file.write, ('safetensors',),
                           "pip install 'jaxcnn[safetensors]'"),
    'tensorflow': _Format(tensorflow.FILE, tensorflow.write, ('tensorflow',), 'pip install tensorflow-cpu'),
}
assert tuple(_FORMATS) == FORMATS


def check_request(format_name: str, output: str, dtype: str) -> None:
    """Check what was asked for, before any work is done.

    Raises:
      UserError: The format or the type is unknown, a library is missing, or the folder is not new or empty.
    """
    if format_name not in FORMATS:
        raise unknown('format', format_name, FORMATS, '--format')
    if dtype not in DTYPES:
        raise unknown('type', dtype, DTYPES, '--dtype')
    for package in _FORMATS[format_name].packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f'{format_name!r} needs {package}, which is not installed', field='--format',
                            hint=_FORMATS[format_name].install)
    if not output:
        raise UserError('names no folder', field='--output')
    check_output(output)


def export_run(run: Run, format_name: str, output: str, dtype: str = 'float32', data_dir: str = '') -> list[str]:
    """Write a run into a folder that other programs use, and check it on images of the run's data.

    The folder has its name when it is complete and the check has passed.

    Args:
      run: the run; `Run.variables` are exported.
      format_name: one of `FORMATS`.
      output: the folder, which must be new or empty.
      dtype: type of the stored weights: `float32`, `float16` or `bfloat16`. The program computes in float32.
      data_dir: another `config.data.dir` than in training.

    Returns:
      Lines that describe the export.

    Raises:
      UserError: See `check_request`; the run cannot be exported, its data is missing, or the check fails.
    """
    check_request(format_name, output, dtype)
    chosen_format = _FORMATS[format_name]
    program = Program.of_run(run, dtype)
    dataset = run.load_dataset(data_dir)
    target = os.path.realpath(output)
    partial = f'{target}.partial'
    with name_file(output):
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
    try:
        path = os.path.join(partial, chosen_format.file)
        with name_file(path):
            chosen_format.write(program, path)
            _write_json(os.path.join(partial, 'classes.json'), {'class_names': program.class_names})
        if format_name == 'safetensors':
            notes = safetensors_file.check(program, path)
            result = None
        else:
            notes = []
            with open(os.path.join(partial, 'predict.py'), 'w', encoding='utf-8') as f:
                f.write(script.write(program, format_name))
            result = check.check(program, partial, format_name, dataset)
            shutil.rmtree(os.path.join(partial, '__pycache__'), ignore_errors=True)
        step = run.find_step(run.checkpoint)
        text = card.write_card(program, partial, format_name, step, result, notes)
        with open(os.path.join(partial, 'README.md'), 'w', encoding='utf-8') as f:
            f.write(text)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(os.path.getsize(os.path.join(parent, name)) for parent, _, names in os.walk(target) for name in names)
    return [f'{output.rstrip("/")}: {chosen_format.file} and its model card, {size:,} bytes',
            f'check: {result.describe()}' if result else f'check: {notes[-1]}']


def _write_json(path: str, value: object) -> None:
    with open(path, 'w', encoding='utf-8') as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write('\n')
