"""Tests of the command that lists and clears the caches."""

import pytest

from jaxcnn.config import DataConfig
from jaxcnn.data import sources
from jaxcnn.data.cache import open_cache

pytestmark = pytest.mark.launch


def test_caches_are_listed_and_cleared_except_those_in_use(tmp_path, command):
    config = DataConfig('digits', cache_dir=str(tmp_path))
    _, splits = open_cache(sources.find(config), config)
    open_cache(sources.find(config), DataConfig('digits', cache_dir=str(tmp_path), image_size=16))
    for name in ('xla/jit_run-1-cache', 'onednn/conv-1.so', 'xla/notes', 'notes/jit_run-1-cache'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(5000))
    files_before = sorted(tmp_path.rglob('*'))
    code, lines, err = command('cache', f'--cache_dir={tmp_path}')
    assert (code, err) == (0, [])
    assert len(lines) == 5
    assert '125 kB' in lines[0] + lines[1]  # 1797 images of 8x8, labels, and what describes them
    assert sum('images of scikit-learn' in line for line in lines) == 2
    assert '5 kB  xla: compiled programs' in lines[2]
    assert sorted(tmp_path.rglob('*')) == files_before

    code, lines, err = command('cache', f'--cache_dir={tmp_path}', '--clear')
    assert (code, err) == (0, [])
    folder = splits['train'][0].path.split('/')[-2]
    assert ['in use' in line for line in lines] == [folder in line for line in lines]
    assert f'in {tmp_path}, of which' in lines[-1]
    remaining = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*') if p.is_file()}
    assert {'xla/notes', 'notes/jit_run-1-cache', f'{folder}/meta.json'} <= remaining
    assert all(name.startswith((folder, 'xla/notes', 'notes/')) for name in remaining)
    assert splits['train'][0][:].shape == (1438, 8, 8, 1)
