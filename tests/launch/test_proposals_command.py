"""Tests of the command `jaxcnn proposals`."""

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.launch
# windows of 4x4 without overlap; of two objects one is a window, and one overlaps two windows by a half (IoU 1/3)
WINDOWS = 'sliding_windows(scales=(4,), ratios=(1,), stride=1, max_proposals=20)'


@pytest.fixture(scope='module')
def boxes_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('boxes')
    rows = ['split,filename,class,xmin,ymin,xmax,ymax']
    for split in ('train', 'val'):
        (folder / split).mkdir()
        Image.fromarray(np.random.default_rng(len(split)).integers(0, 255, (12, 16, 3), np.uint8)).save(
            folder / split / 'a.png')
        rows += [f'{split},{split}/a.png,bee,4,4,8,8', f'{split},{split}/a.png,ant,2,8,6,12']
    (folder / 'boxes.csv').write_text('\n'.join(rows))
    fields = f'name="csv", dir="{folder / "boxes.csv"}", cache_dir="{folder / "cache"}"'
    (folder / 'boxes.py').write_text(
        f'from jaxcnn.config import make\n\ndef get_config():\n    return make(data=dict({fields}))\n')
    return folder


def test_methods_are_compared(command, boxes_folder, tmp_path):
    code, out, err = command('proposals', f'--config={boxes_folder / "boxes.py"}', WINDOWS, f'--out={tmp_path / "out"}')
    assert code == 0, err
    assert out[1].split()[-5:-4] == ['12']
    assert out[1].split()[-3:] == ['0.500', '0.500', '0.500']
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'proposals.md', 'proposals.png', 'best_proposals.png'}
    text = (tmp_path / 'out' / 'proposals.md').read_text()
    assert '1 image of 16 x 12 pixels with 2 objects' in text
    assert '| 0.500 | 0.500 | 0.500 |' in text


@pytest.mark.parametrize(('arguments', 'line'), [
    (['selective_serch'], "config.data.proposals: unknown proposal method 'selective_serch'; nearest: selective_search"),
    ([WINDOWS, '--split=test'], "--split: unknown split 'test'; known: train, val"),
    ([WINDOWS, '--config.data.name=digits'], "config.data.name: 'digits' does not have boxes around the objects"),
])
def test_mistakes_are_one_line(command, boxes_folder, tmp_path, arguments, line):
    code, _, err = command('proposals', f'--config={boxes_folder / "boxes.py"}', f'--out={tmp_path}', *arguments)
    assert code == 2
    assert line in err[-1]
