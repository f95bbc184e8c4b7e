"""Figures are written and show what they are given; the report holds the numbers of the summary."""

import os
import re
import subprocess
import sys
import warnings
from html import unescape

import numpy as np
import pytest
from markdown_it import MarkdownIt  # of Rich, which Flax needs
from matplotlib import font_manager
from matplotlib.axes import Axes
from PIL import Image

from jaxcnn import config, experiment, metrics, tasks
from jaxcnn.analysis import figures, report

ROWS = [{'epoch': e / 4, 'step': 10 * e, 'train_loss': 2.0 / (e + 1), 'train_accuracy': 1 - 0.8 / (e + 1),
         'learning_rate': 0.1 * (1 - e / 8), **({'val_loss': 2.1 / (e + 1), 'val_accuracy': 0.9} if e % 4 == 0 else {})}
        for e in range(1, 9)]
CONFUSION = np.array([[5, 1, 0], [0, 3, 4], [2, 0, 8]])
NAMES = ['cat', 'dog', 'owl']


def pixels(path):
    """Of a PNG that decodes."""
    with Image.open(path) as image:
        assert image.format == 'PNG'
        return np.asarray(image.convert('RGB'))


def colours(path):
    return len(np.unique(pixels(path).reshape(-1, 3), axis=0))


# ---- figures


def draw_curves(rows, path):
    known = metrics.of_targets('label')
    measurements = metrics.measurements(known.values(), ['val', 'test'], ema=True, tta=False)
    figures.curves(rows, [known['loss'], known['accuracy']], list(measurements.values()), path)


def test_curves_are_a_picture_of_the_rows(tmp_path):
    one, other = str(tmp_path / 'one.png'), str(tmp_path / 'other.png')
    draw_curves(ROWS, one)
    draw_curves([{**row, 'train_loss': row['train_loss'] ** 2} for row in ROWS], other)
    height, width, _ = pixels(one).shape
    assert 300 < height < 800
    assert 1000 < width < 2400
    assert colours(one) > 50
    assert pixels(other).shape == pixels(one).shape
    changed = (pixels(other) != pixels(one)).any((0, 2)).nonzero()[0]
    assert len(changed) > 0
    assert changed.max() < width / 3  # of the three, the loss alone


def test_curves_of_no_rows_are_empty_axes(tmp_path):
    draw_curves([], str(tmp_path / 'curves.png'))
    assert pixels(tmp_path / 'curves.png').min() < 255


def test_curves_of_a_single_interval_are_points_and_a_sentence(tmp_path, monkeypatch):
    lines, texts = [], []
    monkeypatch.setattr('matplotlib.axes.Axes.plot', lambda self, *args, plot=Axes.plot, **settings: (
        lines.extend(drawn := plot(self, *args, **settings)), drawn)[1])
    monkeypatch.setattr('matplotlib.axes.Axes.text', lambda self, x, y, text, write=Axes.text, **settings: (
        texts.append(text), write(self, x, y, text, **settings))[1])
    draw_curves(ROWS[:1], str(tmp_path / 'one.png'))
    assert [line.get_label() for line in lines] == ['train', 'train']  # loss and accuracy
    assert {line.get_marker() for line in lines} == {'o'}
    assert texts == ['The learning rate was logged once:\n0.0875 at epoch 0.25.']
    draw_curves(ROWS, str(tmp_path / 'more.png'))
    assert [line.get_label() for line in lines[2:]] == ['train', 'val', 'train', 'val', 'learning rate']
    assert len(texts) == 1


@pytest.mark.parametrize('count', [2, 21, 41])
def test_a_confusion_matrix_of_any_size_is_a_picture(tmp_path, count):
    names = [f'class {n}' for n in range(count)]
    rng = np.random.default_rng(0)
    pictures = []
    for n, confusion in enumerate((np.diag(rng.integers(1, 9, count)), np.zeros((count, count), int))):
        figures.confusion_matrix(confusion, names, str(tmp_path / f'{n}.png'))
        pictures.append(pixels(tmp_path / f'{n}.png'))
        assert 400 < min(pictures[-1].shape[:2]) <= max(pictures[-1].shape[:2]) < 1800
    assert pictures[0].shape == pictures[1].shape
    assert 0.002 < (pictures[0] != pictures[1]).any(-1).mean() < 0.5  # the diagonal, not the whole


def test_of_many_classes_the_most_confused_are_drawn_by_name(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr('matplotlib.axes.Axes.set_yticks', lambda self, ticks, labels: shown.append(labels))
    monkeypatch.setattr('matplotlib.axes.Axes.imshow', lambda self, shares, imshow=Axes.imshow, **settings: (
        shown.append(shares), imshow(self, shares, **settings))[1])
    confusion = np.diag(np.full(300, 4))
    for n in range(250, 289):  # a chain of 40 classes, each taken for the next
        confusion[n, n + 1] = 1 + n % 3
    confusion[3, 7] = 1  # fewer than others, but of the same count as some
    figures.confusion_matrix(confusion, [f'class {n}' for n in range(300)], str(tmp_path / 'many.png'))
    shares, labels = shown
    assert len(labels) == len(shares) == figures.MOST_CLASSES
    assert set(labels) <= {'class 3', 'class 7', *(f'class {n}' for n in range(250, 290))}
    assert {f'class {n}' for n in range(250, 290) if n % 3 == 2 or n % 3 == 0} <= set(labels)
    row, column = labels.index('class 251'), labels.index('class 252')
    assert shares[row, column] == 3 / 7  # of all images of the label, with those that are not drawn


@pytest.mark.parametrize(('channels', 'side', 'factor'), [(1, 32, 3), (3, 32, 3), (1, 28, 4), (3, 120, 1)])
def test_a_grid_holds_each_image_in_whole_pixels(tmp_path, channels, side, factor):
    images = np.random.default_rng(0).uniform(-0.2, 1.2, (5, side, side, channels)).astype(np.float32)
    path = str(tmp_path / 'grid.png')
    figures.image_grid(images, ['a', 'b', 'c', 'd', 'e'], path, columns=3)
    sheet, cell = pixels(path), side * factor
    assert sheet.shape == (2 * (cell + 20) + 6, 3 * (cell + 6) + 6, 3)
    expected = np.rint(np.clip(images, 0, 1) * 255).repeat(factor, 1).repeat(factor, 2)
    for n, tile in enumerate(expected):
        y, x = 6 + n // 3 * (cell + 20) + 14, 6 + n % 3 * (cell + 6)
        np.testing.assert_array_equal(sheet[y:y + cell, x:x + cell], np.broadcast_to(tile, (cell, cell, 3)))
    assert (sheet[-cell:, -cell:] == 255).all()  # the sixth place is empty


def test_titles_of_a_grid_are_drawn_and_one_too_few_is_an_error(tmp_path):
    images = np.zeros((2, 32, 32, 1))
    sheets = []
    for n, titles in enumerate((['1', '2'], ['1', '3'])):
        figures.image_grid(images, titles, str(tmp_path / f'{n}.png'))
        sheets.append(pixels(tmp_path / f'{n}.png'))
    assert (sheets[0] != sheets[1]).any()
    with pytest.raises(ValueError, match='zip'):
        figures.image_grid(images, ['1'], str(tmp_path / 'x.png'))


def test_rows_of_a_grid_have_headings_and_images_their_own_sizes(tmp_path):
    images = [np.full((side, side, 3), 0.5) for side in (96, 50, 96, 20)]
    figures.image_grid(images, ['a', 'b\nc', '', ''], path := str(tmp_path / 'a.png'), columns=2, headings=['', 'second'])
    sheet = pixels(path)
    row, above = 12 + 26 + 96 + 6, 12
    assert sheet.shape == (2 * row + 6, 2 * 102 + 6, 3)
    for n, side in enumerate((96, 50, 96, 20)):
        y, x = 6 + n // 2 * row + above + 26, 6 + n % 2 * 102
        assert (sheet[y:y + side, x:x + side] == 128).all()
        assert (sheet[y + side:y + 96, x:x + 96] == 255).all()
    assert (sheet[6:6 + above] == 255).all()
    assert (sheet[6 + row:6 + row + above] < 128).any()


ODD_NAMES = ['ö', '$$', r'x_$\frac$', 'a|b', '<b>', 'new\nline', 'esc\x1b[31m', 'long ' * 30]


def test_class_names_are_drawn_as_they_are_written(tmp_path):
    confusion, paths = np.eye(8, dtype=int), [str(tmp_path / f'{n}.png') for n in range(4)]
    figures.confusion_matrix(confusion, ODD_NAMES, paths[0])
    figures.confusion_matrix(confusion, ['o', *ODD_NAMES[1:]], paths[1])
    figures.image_grid(np.zeros((8, 32, 32, 1)), ODD_NAMES, paths[2])
    figures.image_grid(np.zeros((8, 32, 32, 1)), ['o', *ODD_NAMES[1:]], paths[3])
    for odd, plain in (paths[:2], paths[2:]):
        assert max(pixels(odd).shape) < 1500
        assert 0 < (pixels(odd) != pixels(plain)).any(-1).sum() < 60  # the dots alone


def test_figures_have_their_own_settings_whatever_the_users_are(tmp_path):
    paths = [str(tmp_path / f'{n}.png') for n in range(2)]
    figures.confusion_matrix(CONFUSION, NAMES, paths[0])
    (tmp_path / 'matplotlibrc').write_text('text.usetex: True\naxes.facecolor: red\nsavefig.dpi: 30\n')
    code = ('import os, numpy as np; from jaxcnn.analysis import figures; '
            f'figures.confusion_matrix(np.array({CONFUSION.tolist()}), {NAMES}, {paths[1]!r}); '
            'import matplotlib; print(os.environ["MPLBACKEND"], matplotlib.rcParams["text.usetex"])')
    environment = {**os.environ, 'MPLBACKEND': 'no_such_backend', 'MATPLOTLIBRC': str(tmp_path), 'LC_ALL': 'C',
                   'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['no_such_backend', 'True']  # what the user has set is left as it is
    np.testing.assert_array_equal(pixels(paths[1]), pixels(paths[0]))


@pytest.fixture
def own_fonts(monkeypatch):
    """The fonts that come with matplotlib, whatever the machine has."""
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, 'ttflist', [entry for entry in manager.ttflist if 'mpl-data' in entry.fname])
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [])
    figures._more_fonts.cache_clear()
    yield
    figures._more_fonts.cache_clear()


def test_characters_that_no_font_has_are_told_in_one_line(own_fonts, tmp_path, caplog):
    with warnings.catch_warnings(record=True) as raw:
        warnings.simplefilter('always')
        for n in range(2):
            figures.confusion_matrix(np.eye(2), ['日本', 'ö'], str(tmp_path / f'{n}.png'))
    assert not [str(w.message) for w in raw if 'Glyph' in str(w.message)]
    line, = [record.getMessage() for record in caplog.records]
    assert '日本,' in line
    assert 'ö' not in line


def test_characters_that_the_first_font_lacks_are_taken_from_one_that_has_them(own_fonts, tmp_path, monkeypatch, caplog):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    pen = TTGlyphPen(None)
    for move, point in ((pen.moveTo, (0, 0)), (pen.lineTo, (0, 800)), (pen.lineTo, (800, 800)), (pen.lineTo, (800, 0))):
        move(point)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(['.notdef', 'square'])
    font.setupCharacterMap({ord(c): 'square' for c in '日本'})
    font.setupGlyf({'.notdef': TTGlyphPen(None).glyph(), 'square': pen.glyph()})
    font.setupHorizontalMetrics({'.notdef': (1000, 0), 'square': (1000, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({'familyName': 'Squares', 'styleName': 'Regular'})
    font.setupOS2()
    font.setupPost()
    font.save(path := str(tmp_path / 'squares.ttf'))
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [path])  # one that matplotlib has not listed yet
    figures.image_grid(np.ones((1, 32, 32, 1)), ['日本'], str(tmp_path / 'grid.png'), columns=1)
    assert not caplog.records
    title = pixels(tmp_path / 'grid.png')[6:20]
    assert (title < 50).all(-1).sum() > 60  # two squares of 8 pixels a side, filled


def test_the_title_of_a_mixed_label_names_its_parts():
    task = tasks.create(config.parse({}), ['ant', 'bee', 'cow'], [1, 1, 1], 3)
    assert task.title({'label': np.array(1)}) == 'bee'
    assert task.title({'label': np.array([0.25, 0.75, 0.0])}) == 'bee 0.75\nant 0.25'


# ---- the report

SUMMARY = {
    'name': 'first try', 'model': 'lenet5', 'dataset': 'digits', 'seed': 17, 'steps': 12345, 'epochs': 39.996,
    'params': 61706, 'train_loss': 0.12344, 'val_accuracy': 0.98765, 'val_loss': 0.04321, 'test_accuracy': 0.97531,
    'test_top5': 0.99991, 'test_loss': 1234.56789, 'best_step': 11000, 'images_per_second': 54321.6,
    'train_seconds': 54.321, 'wall_seconds': 98.76, 'peak_host_bytes': 5_678_000_000, 'peak_device_bytes': None,
    'device': 'H100', 'num_devices': 3, 'versions': {'jax': '0.10.2'},
}


@pytest.fixture
def write(tmp_path):
    """Writes a report with its figures and gives its text: `write(fields of the config, **of the summary)`."""
    tmp_path.joinpath('figures').mkdir()
    tmp_path.joinpath('figures', 'first_batch.png').touch()  # which the loop draws when the run begins

    def write(fields=None, confusion=CONFUSION, part='test', broken=None, names=NAMES, **summary):
        info = {'class_names': names, 'class_counts': [40, 50, 60, 0, 0, 0][:len(names)], 'broken': broken or {},
                'sizes': {'train': 150}, 'image_shape': (32, 32, 1), 'mean': (0.0,), 'std': (1.0,)}
        built = experiment.build(config.parse(fields or {}), info, None)
        report.write_report(str(tmp_path), built, {**SUMMARY, **summary}, ROWS, part,
                            tasks.Accumulated({'confusion': confusion}, {}))
        return (tmp_path / 'report.md').read_text()
    return write


@pytest.fixture
def written(write, monkeypatch):
    """The same without the figures, which take their time."""
    for name in ('curves', 'confusion_matrix'):
        monkeypatch.setattr(figures, name, lambda *_: None)
    return write


def cells(text, first):
    """The cells after the one named `first`, of the only table row that begins with it."""
    row, = [line for line in text.splitlines() if line.startswith(f'| {first} |')]
    return [cell.strip() for cell in row.strip('|').split('|')][1:]


def test_the_report_holds_the_numbers_of_the_summary(written):
    text = written()
    assert text.startswith('# lenet5 on digits\n\nName of the run: first try.\n')
    assert ('lenet5 (61,706 parameters) on digits, seed 17: 12,345 steps, 40.00 epochs, on 3 x H100.') in text
    assert 'the best of the evaluated checkpoints by `val_accuracy`, step 11000' in text
    for name, value in {'test accuracy': '97.53 %', 'test loss': '1,234.5679',
                        'validation accuracy': '98.77 %', 'validation loss': '0.0432',
                        'training loss, last interval': '0.1234', 'images/s in training': '54,322',
                        'wall time': '98.8 s, of which training steps 54.3 s',
                        'most memory held': '5.68 GB of the host'}.items():
        assert cells(text, name) == [value]
    assert '{"jax": "0.10.2"}' in text
    assert 'digits, seed 17: 1 step, 40.00 epochs, on' in written({'duration': {'epochs': 40}}, steps=1, epochs=40.01)
    assert ': 9 steps, 42.01 epochs, on' in written({'duration': {'epochs': 40}}, steps=9, epochs=42.01)
    text = written(peak_device_bytes=1_250_000_000)
    assert cells(text, 'most memory held') == ['5.68 GB of the host, 1.25 GB of the device']


def test_the_report_holds_each_class_and_the_most_frequent_mistakes(written):
    text = written()
    # cat: 5 right of 7 predicted and 6 there; F1 = 2*5 / (7 + 6)
    assert cells(text, 'cat') == ['71.43 %', '83.33 %', '0.7692', '6', '40']
    assert cells(text, 'dog') == ['75.00 %', '42.86 %', '0.5455', '7', '50']
    assert cells(text, 'owl') == ['66.67 %', '80.00 %', '0.7273', '10', '60']
    assert 'Most frequent mistakes: dog taken for owl (4), owl taken for cat (2), cat taken for dog (1).' in text
    assert 'Most frequent mistakes: none.' in written(confusion=np.diag([3, 4, 5]))


def test_names_are_shown_in_the_report_as_they_are_written(written):
    names = ['a|b', '<b>`x`', '_$new\nline*\x1b[31m[a](b)&amp;\\|']
    html = MarkdownIt('commonmark').enable('table').render(written(names=names, name='#1 <i> _x_'))
    text = [unescape(part) for part in re.split('<[^>]*>', html)]
    for name in names:
        name = name.replace('\n', '\\n').replace('\x1b', '\\x1b')
        assert name in text  # a whole cell
        assert any(f'{name} taken for' in part for part in text)
    assert 'Name of the run: #1 <i> _x_.' in text


def test_what_was_not_measured_is_said(written):
    text = written({'data': {'val_fraction': 0.0}}, val_accuracy=None, val_loss=None, train_loss=None,
                   images_per_second=None)
    for name in ('validation accuracy', 'validation loss', 'training loss, last interval', 'images/s in training'):
        assert cells(text, name) == ['not measured']
    assert 'None' not in text
    assert 'Figures are of the last checkpoint, step 11000.' in text
    assert cells(text, 'test accuracy') == ['97.53 %']


def test_broken_images_and_a_missing_test_part_are_told(written):
    assert 'could not be read' not in written()
    text = written(part='val', broken={'train': 3, 'val': 0, 'test': 1}, test_accuracy=None)
    assert 'Images that could not be read, and were left out: 3 of train, 1 of test.' in text
    assert '## Validation part, by class' in text
    assert cells(text, 'class')[3] == 'validation images'


def test_moving_averages_are_told_where_there_are_any(written):
    assert 'ema' not in written()
    text = written({'optim': {'ema_decay': 0.9}}, names=list('abcdef'), confusion=np.eye(6, dtype=int), val_ema_accuracy=0.5,
                   test_ema_loss=0.25, test_ema_top5=0.75)
    assert cells(text, 'validation ema accuracy') == ['50.00 %']
    assert cells(text, 'test ema loss') == ['0.2500']
    assert cells(text, 'test ema top-5') == ['75.00 %']


def test_the_report_is_headed_by_what_was_trained(written):
    assert written(name='').startswith('# lenet5 on digits\n\nlenet5 (')
    assert written({'data': {'name': 'folder', 'dir': '/data/my_pets/'}}).startswith('# lenet5 on my_pets (folder)\n')


def test_top_5_is_told_of_more_than_five_classes_alone(written):
    measures = {'test_ema_top5': 0.5, 'test_ema_accuracy': 0.25}
    text = written({'optim': {'ema_decay': 0.9}}, **measures)
    assert 'top' not in text
    assert cells(text, 'test ema accuracy') == ['25.00 %']
    text = written({'optim': {'ema_decay': 0.9}}, names=list('abcdef'), confusion=np.eye(6, dtype=int), **measures)
    assert cells(text, 'test top-5') == ['99.99 %']
    assert cells(text, 'test ema top-5') == ['50.00 %']


def test_classes_are_sorted_by_recall_and_those_without_images_come_last(written):
    text = written(confusion=np.array([[9, 1, 0], [0, 0, 0], [3, 0, 5]]))
    rows = [line.split(' | ')[0] for line in text.splitlines() if line.startswith(('| cat', '| dog', '| owl'))]
    assert rows == ['| owl', '| cat', '| dog']


def test_the_report_lists_the_fields_that_were_changed_and_no_others(written):
    text = written({'seed': 17, 'optim': {'learning_rate': 0.02, 'warmup': {'epochs': 2}},
                    'data': {'augment': 'flip_lr'}})
    block = text.split('## Config')[1].split('```')[1].strip().splitlines()
    assert sorted(block) == ["config.data.augment = 'flip_lr'", 'config.optim.learning_rate = 0.02',
                             "config.optim.warmup = {'epochs': 2}", 'config.seed = 17']


def test_the_figures_that_the_report_shows_are_there(write, tmp_path):
    text = write()
    for name in ('curves', 'confusion_matrix'):
        assert f'](figures/{name}.png)' in text
        assert colours(tmp_path / 'figures' / f'{name}.png') > 20
    assert '](figures/first_batch.png)' in text


def test_a_figure_that_cannot_be_drawn_is_a_warning(write, monkeypatch, caplog):
    def fail(*_):
        raise ValueError('of a\nfigure')
    monkeypatch.setattr(figures, 'curves', fail)
    text = write()
    assert 'figures/curves.png' not in text
    assert '## Curves\n\nThis figure could not be drawn.\n' in text
    assert '](figures/confusion_matrix.png)' in text
    line, = [record.getMessage() for record in caplog.records]
    assert line.endswith('curves.png could not be drawn: ValueError: of a figure')
