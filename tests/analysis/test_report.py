"""The figures show their data, and the report contains the results of the summary."""

import base64
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
from jaxcnn.analysis import figures, mistakes, report
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.split import Split

ROWS = [{'epoch': e / 4, 'step': 10 * e, 'train_loss': 2.0 / (e + 1), 'train_accuracy': 1 - 0.8 / (e + 1),
         'learning_rate': 0.1 * (1 - e / 8), **({'val_loss': 2.1 / (e + 1), 'val_accuracy': 0.9} if e % 4 == 0 else {})}
        for e in range(1, 9)]
CONFUSION = np.array([[5, 1, 0], [0, 3, 4], [2, 0, 8]])
NAMES = ['cat', 'dog', 'owl']


def pixels(path):
    """Return the RGB pixels of a PNG."""
    with Image.open(path) as image:
        assert image.format == 'PNG'
        return np.asarray(image.convert('RGB'))


def count_colors(path):
    return len(np.unique(pixels(path).reshape(-1, 3), axis=0))


# ---- figures


def draw_curves(rows, path):
    task_metrics = metrics.of_targets('label')
    measurements = metrics.measurements(task_metrics.values(), ['val', 'test'], ema=True, tta=False)
    figures.curves(rows, [task_metrics['loss'], task_metrics['accuracy']], list(measurements.values()), path)


def test_curves_show_the_rows(tmp_path):
    paths = str(tmp_path / 'curves.png'), str(tmp_path / 'other_loss.png')
    draw_curves(ROWS, paths[0])
    draw_curves([{**row, 'train_loss': row['train_loss'] ** 2} for row in ROWS], paths[1])
    height, width, _ = pixels(paths[0]).shape
    assert 300 < height < 800
    assert 1000 < width < 2400
    assert count_colors(paths[0]) > 50
    assert pixels(paths[1]).shape == pixels(paths[0]).shape
    changed_columns = (pixels(paths[1]) != pixels(paths[0])).any((0, 2)).nonzero()[0]
    assert len(changed_columns) > 0
    assert changed_columns.max() < width / 3  # the loss is the first of three panels


def test_curves_without_rows_have_empty_axes(tmp_path):
    draw_curves([], str(tmp_path / 'curves.png'))
    assert pixels(tmp_path / 'curves.png').min() < 255


def test_curves_of_a_single_row_have_markers_and_a_text_for_the_learning_rate(tmp_path, monkeypatch):
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
def test_confusion_matrix_of_any_size_is_readable(tmp_path, count):
    names = [f'class {n}' for n in range(count)]
    rng = np.random.default_rng(0)
    drawn = []
    for n, confusion in enumerate((np.diag(rng.integers(1, 9, count)), np.zeros((count, count), int))):
        figures.confusion_matrix(confusion, names, str(tmp_path / f'{n}.png'))
        drawn.append(pixels(tmp_path / f'{n}.png'))
        assert 400 < min(drawn[-1].shape[:2]) <= max(drawn[-1].shape[:2]) < 1800
    assert drawn[0].shape == drawn[1].shape
    assert 0.002 < (drawn[0] != drawn[1]).any(-1).mean() < 0.5  # only the diagonal differs


def test_confusion_matrix_of_many_classes_shows_the_most_confused(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr('matplotlib.axes.Axes.set_yticks', lambda self, ticks, labels: drawn.append(labels))
    monkeypatch.setattr('matplotlib.axes.Axes.imshow', lambda self, fractions, imshow=Axes.imshow, **settings: (
        drawn.append(fractions), imshow(self, fractions, **settings))[1])
    confusion = np.diag(np.full(300, 4))
    for n in range(250, 289):  # a chain of 40 classes, each confused with the next
        confusion[n, n + 1] = 1 + n % 3
    confusion[3, 7] = 1  # as often as the least frequent mistakes of the chain
    figures.confusion_matrix(confusion, [f'class {n}' for n in range(300)], str(tmp_path / 'many.png'))
    fractions, labels = drawn
    assert len(labels) == len(fractions) == figures.MAX_CONFUSION_CLASSES
    assert set(labels) <= {'class 3', 'class 7', *(f'class {n}' for n in range(250, 290))}
    assert {f'class {n}' for n in range(250, 290) if n % 3 == 2 or n % 3 == 0} <= set(labels)
    row, column = labels.index('class 251'), labels.index('class 252')
    assert fractions[row, column] == 3 / 7  # of all images of the label


@pytest.mark.parametrize('num_classes', [3, 12, 40])
def test_precision_recall_legend_is_beside_the_axes(tmp_path, monkeypatch, num_classes):
    labels = np.random.default_rng(0).integers(0, 2, (30, num_classes))
    labels[:, 0] = 0  # no image
    drawn = []
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', lambda figure, *_, **__: drawn.append(figure))
    names = [f'a class with a long name {n}' for n in range(num_classes)]
    figures.precision_recall(0.5 * labels + 0.2, labels, names, str(tmp_path / 'curves.png'))
    figure, = drawn
    figure.draw_without_rendering()
    axis, = figure.axes
    legend = axis.get_legend()
    assert len(legend.get_texts()) == min(num_classes - 1, figures.MAX_CURVES)
    assert f'of {num_classes} classes' in axis.get_title()
    assert axis.get_window_extent().x1 < legend.get_window_extent().x0 < legend.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(('channels', 'side', 'factor'), [(1, 32, 3), (3, 32, 3), (1, 28, 4), (3, 120, 1)])
def test_image_grid_enlarges_images_by_whole_factors(tmp_path, channels, side, factor):
    images = np.random.default_rng(0).uniform(-0.2, 1.2, (5, side, side, channels)).astype(np.float32)
    path = str(tmp_path / 'grid.png')
    figures.image_grid(images, ['a', 'b', 'c', 'd', 'e'], path, columns=3)
    sheet, cell = pixels(path), side * factor
    assert sheet.shape == (2 * (cell + 20) + 6, 3 * (cell + 6) + 6, 3)
    expected = np.rint(np.clip(images, 0, 1) * 255).repeat(factor, 1).repeat(factor, 2)
    for n, tile in enumerate(expected):
        y, x = 6 + n // 3 * (cell + 20) + 14, 6 + n % 3 * (cell + 6)
        np.testing.assert_array_equal(sheet[y:y + cell, x:x + cell], np.broadcast_to(tile, (cell, cell, 3)))
    assert (sheet[-cell:, -cell:] == 255).all()  # the sixth cell is empty


def test_image_grid_draws_titles_and_requires_one_for_each_image(tmp_path):
    images = np.zeros((2, 32, 32, 1))
    sheets = []
    for n, titles in enumerate((['1', '2'], ['1', '3'])):
        figures.image_grid(images, titles, str(tmp_path / f'{n}.png'))
        sheets.append(pixels(tmp_path / f'{n}.png'))
    assert (sheets[0] != sheets[1]).any()
    with pytest.raises(ValueError, match='zip'):
        figures.image_grid(images, ['1'], str(tmp_path / 'x.png'))


def test_image_grid_with_headings_and_images_of_several_sizes(tmp_path):
    images = [np.full((side, side, 3), 0.5) for side in (96, 50, 96, 20)]
    figures.image_grid(images, ['a', 'b\nc', '', ''], path := str(tmp_path / 'a.png'), columns=2, headings=['', 'second'])
    sheet = pixels(path)
    row_height, heading_height = 12 + 26 + 96 + 6, 12
    assert sheet.shape == (2 * row_height + 6, 2 * 102 + 6, 3)
    for n, side in enumerate((96, 50, 96, 20)):
        y, x = 6 + n // 2 * row_height + heading_height + 26, 6 + n % 2 * 102
        assert (sheet[y:y + side, x:x + side] == 128).all()
        assert (sheet[y + side:y + 96, x:x + 96] == 255).all()
    assert (sheet[6:6 + heading_height] == 255).all()
    assert (sheet[6 + row_height:6 + row_height + heading_height] < 128).any()


ODD_NAMES = ['ö', '$$', r'x_$\frac$', 'a|b', '<b>', 'new\nline', 'esc\x1b[31m', 'long ' * 30]


def test_class_names_are_drawn_literally(tmp_path):
    confusion, paths = np.eye(8, dtype=int), [str(tmp_path / f'{n}.png') for n in range(4)]
    figures.confusion_matrix(confusion, ODD_NAMES, paths[0])
    figures.confusion_matrix(confusion, ['o', *ODD_NAMES[1:]], paths[1])
    figures.image_grid(np.zeros((8, 32, 32, 1)), ODD_NAMES, paths[2])
    figures.image_grid(np.zeros((8, 32, 32, 1)), ['o', *ODD_NAMES[1:]], paths[3])
    for umlaut, plain in (paths[:2], paths[2:]):
        assert max(pixels(umlaut).shape) < 1500
        assert 0 < (pixels(umlaut) != pixels(plain)).any(-1).sum() < 60  # only the dots differ


def test_figures_ignore_and_keep_the_settings_of_the_user(tmp_path):
    paths = [str(tmp_path / f'{n}.png') for n in range(2)]
    figures.confusion_matrix(CONFUSION, NAMES, paths[0])
    (tmp_path / 'matplotlibrc').write_text('text.usetex: True\naxes.facecolor: red\nsavefig.dpi: 30\n')
    code = ('import os, numpy as np; from jaxcnn.analysis import figures; '
            f'figures.confusion_matrix(np.array({CONFUSION.tolist()}), {NAMES}, {paths[1]!r}); '
            'import matplotlib; print(os.environ["MPLBACKEND"], matplotlib.rcParams["text.usetex"])')
    environment = {**os.environ, 'MPLBACKEND': 'no_such_backend', 'MATPLOTLIBRC': str(tmp_path), 'LC_ALL': 'C',
                   'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    process = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ['no_such_backend', 'True']  # the settings of the user are kept
    np.testing.assert_array_equal(pixels(paths[1]), pixels(paths[0]))


@pytest.fixture
def only_matplotlib_fonts(monkeypatch):
    """Hide all fonts of the machine except those that come with matplotlib."""
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, 'ttflist', [entry for entry in manager.ttflist if 'mpl-data' in entry.fname])
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [])
    figures.fallback_fonts.cache_clear()
    yield
    figures.fallback_fonts.cache_clear()


def test_characters_without_a_font_are_logged_in_one_line(only_matplotlib_fonts, tmp_path, caplog):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for n in range(2):
            figures.confusion_matrix(np.eye(2), ['日本', 'ö'], str(tmp_path / f'{n}.png'))
    assert not [str(w.message) for w in caught if 'Glyph' in str(w.message)]
    line, = [record.getMessage() for record in caplog.records]
    assert '日本:' in line
    assert 'ö' not in line


def test_missing_characters_are_drawn_with_a_fallback_font(
        only_matplotlib_fonts, tmp_path, monkeypatch, caplog):
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
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [path])  # installed since matplotlib listed the fonts
    figures.image_grid(np.ones((1, 32, 32, 1)), ['日本'], str(tmp_path / 'grid.png'), columns=1)
    assert not caplog.records
    title = pixels(tmp_path / 'grid.png')[6:20]
    assert (title < 50).all(-1).sum() > 60  # two filled squares of 8 pixels a side


def test_title_of_a_mixed_label_names_its_classes():
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
    """Return a function that writes a report with its figures, and returns its text.

    Its arguments are the fields of the config, the evaluation, the data, and changed values of the summary.
    """
    tmp_path.joinpath('figures').mkdir()
    tmp_path.joinpath('figures', 'first_batch.png').touch()  # drawn when the run begins

    def write(fields=None, confusion=CONFUSION, split='test', broken=None, wrong_boxes=None, names=NAMES, dataset=None,
              rows=None, **summary):
        info = {'class_names': names, 'class_counts': [40, 50, 60, 0, 0, 0][:len(names)], 'broken': broken or {},
                'wrong_boxes': wrong_boxes or {}, 'sizes': {'train': 150}, 'image_shape': (32, 32, 1), 'mean': (0.0,),
                'std': (1.0,)}
        built = experiment.build(config.parse(fields or {}), info, None)
        report.write_report(str(tmp_path), built, {**SUMMARY, **summary}, ROWS, split,
                            tasks.Accumulated({'confusion': confusion}, rows or {}), dataset)
        return (tmp_path / 'report.md').read_text()
    return write


@pytest.fixture
def write_text(write, monkeypatch):
    """`write` without the figures, for speed."""
    for name in ('curves', 'confusion_matrix'):
        monkeypatch.setattr(figures, name, lambda *_: None)
    return write


def cells(text, heading):
    """Return the further cells of the only table row whose first cell is `heading`."""
    row, = [line for line in text.splitlines() if line.startswith(f'| {heading} |')]
    return [cell.strip() for cell in row.strip('|').split('|')][1:]


def test_report_contains_the_summary(write_text):
    text = write_text()
    assert text.startswith('# lenet5 on digits\n\nName of the run: first try.\n')
    assert ('lenet5 (61,706 parameters) on digits, seed 17: 12,345 steps, 40.00 epochs, on 3 x H100.') in text
    assert 'the best of the evaluated checkpoints by `val_accuracy`, step 11000' in text
    for name, value in {'test accuracy': '97.53 %', 'test loss': '1,234.5679',
                        'validation accuracy': '98.77 %', 'validation loss': '0.0432',
                        'training loss, last interval': '0.1234', 'images/s in training': '54,322',
                        'wall time': '98.8 s, of which training steps 54.3 s',
                        'peak memory': '5.68 GB of the host'}.items():
        assert cells(text, name) == [value]
    assert '{"jax": "0.10.2"}' in text
    assert 'digits, seed 17: 1 step, 40.00 epochs, on' in write_text({'duration': {'epochs': 40}}, steps=1, epochs=40.01)
    assert ': 9 steps, 42.01 epochs, on' in write_text({'duration': {'epochs': 40}}, steps=9, epochs=42.01)
    text = write_text(peak_device_bytes=1_250_000_000)
    assert cells(text, 'peak memory') == ['5.68 GB of the host, 1.25 GB of the device']


def test_report_lists_the_classes_and_the_most_frequent_mistakes(write_text):
    text = write_text()
    # cat: 5 correct of 7 predictions and 6 images; F1 = 2*5 / (7 + 6)
    assert cells(text, 'cat') == ['71.43 %', '83.33 %', '0.7692', '6', '40']
    assert cells(text, 'dog') == ['75.00 %', '42.86 %', '0.5455', '7', '50']
    assert cells(text, 'owl') == ['66.67 %', '80.00 %', '0.7273', '10', '60']
    assert 'Most frequent mistakes: dog taken for owl (4), owl taken for cat (2), cat taken for dog (1).' in text
    assert 'Most frequent mistakes: none.' in write_text(confusion=np.diag([3, 4, 5]))


def test_report_shows_names_literally(write_text):
    names = ['a|b', '<b>`x`', '_$new\nline*\x1b[31m[a](b)&amp;\\|']
    html = MarkdownIt('commonmark').enable('table').render(write_text(names=names, name='#1 <i> _x_'))
    text = [unescape(part) for part in re.split('<[^>]*>', html)]
    for name in names:
        name = name.replace('\n', '\\n').replace('\x1b', '\\x1b')
        assert name in text  # a complete cell
        assert any(f'{name} taken for' in part for part in text)
    assert 'Name of the run: #1 <i> _x_.' in text


def test_report_states_missing_measurements(write_text):
    text = write_text({'data': {'val_fraction': 0.0}}, val_accuracy=None, val_loss=None, train_loss=None,
                   images_per_second=None)
    for name in ('validation accuracy', 'validation loss', 'training loss, last interval', 'images/s in training'):
        assert cells(text, name) == ['not measured']
    assert 'None' not in text
    assert 'Results are those of the last checkpoint, step 11000.' in text
    assert cells(text, 'test accuracy') == ['97.53 %']


def test_report_counts_skipped_images_and_shows_the_validation_split(write_text):
    assert 'could not be read' not in write_text()
    text = write_text(split='val', broken={'train': 3, 'val': 0, 'test': 1}, wrong_boxes={'train': 2, 'test': 0},
                      test_accuracy=None)
    assert 'Skipped images, which could not be read: 3 of train, 1 of test.' in text
    assert 'Boxes without an area or outside their image, which were left out or clipped: 2 of train.' in text
    assert '## Validation part, by class' in text
    assert cells(text, 'class')[3] == 'validation images'


def test_report_lists_moving_averages(write_text):
    assert 'ema' not in write_text()
    text = write_text({'optim': {'ema_decay': 0.9}}, names=list('abcdef'), confusion=np.eye(6, dtype=int),
                      val_ema_accuracy=0.5, test_ema_loss=0.25, test_ema_top5=0.75)
    assert cells(text, 'validation ema accuracy') == ['50.00 %']
    assert cells(text, 'test ema loss') == ['0.2500']
    assert cells(text, 'test ema top-5') == ['75.00 %']


def test_report_states_which_results_are_without_test_time_augmentation(write_text):
    assert 'augmentation' not in write_text().split('## Curves')[0]
    text = write_text({'eval': {'tta': 'flip_shift(1)'}}, test_tta_accuracy=0.75)
    assert ('step 11000; curves and results by class are without the test-time augmentation flip_shift(1), which '
            'predictions use.\n') in text
    assert cells(text, 'test tta accuracy') == ['75.00 %']


def test_report_heading_names_the_model_and_the_data(write_text):
    assert write_text(name='').startswith('# lenet5 on digits\n\nlenet5 (')
    assert write_text({'data': {'name': 'folder', 'dir': '/data/my_pets/'}}).startswith('# lenet5 on my_pets (folder)\n')


def test_report_lists_top5_for_more_than_five_classes(write_text):
    values = {'test_ema_top5': 0.5, 'test_ema_accuracy': 0.25}
    text = write_text({'optim': {'ema_decay': 0.9}}, **values)
    assert 'top' not in text
    assert cells(text, 'test ema accuracy') == ['25.00 %']
    text = write_text({'optim': {'ema_decay': 0.9}}, names=list('abcdef'), confusion=np.eye(6, dtype=int), **values)
    assert cells(text, 'test top-5') == ['99.99 %']
    assert cells(text, 'test ema top-5') == ['50.00 %']


def test_report_sorts_classes_by_recall_and_puts_those_without_images_last(write_text):
    text = write_text(confusion=np.array([[9, 1, 0], [0, 0, 0], [3, 0, 5]]))
    rows = [line.split(' | ')[0] for line in text.splitlines() if line.startswith(('| cat', '| dog', '| owl'))]
    assert rows == ['| owl', '| cat', '| dog']


def test_report_lists_only_changed_fields(write_text):
    text = write_text({'seed': 17, 'optim': {'learning_rate': 0.02, 'warmup': {'epochs': 2}},
                    'data': {'augment': 'flip_lr'}})
    block = text.split('## Config')[1].split('```')[1].strip().splitlines()
    assert sorted(block) == ["config.data.augment = 'flip_lr'", 'config.optim.learning_rate = 0.02',
                             "config.optim.warmup = {'epochs': 2}", 'config.seed = 17']


def test_report_shows_the_most_confident_mistakes_with_their_images_and_files(write_text, tmp_path, monkeypatch):
    assert 'confident' not in write_text()
    sheets = []
    monkeypatch.setattr(mistakes, 'draw_sheet', lambda images, titles, path: sheets.append((images, titles)))
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    split = Split(images, np.array([5, 3, 1]), {'label': np.array([0, 1, 2])})
    rows = {'predicted': np.array([2, 0, 2]), 'confidence': np.array([0.75, 0.99, 0.5])}
    paths = {'test': [f'test/{n}.jpg' for n in range(6)]}
    for given_paths, names in ((paths, ['test/3.jpg', 'test/5.jpg']), ({}, ['test image 1', 'test image 0'])):
        dataset = Dataset('x', NAMES, {'train': split, 'test': split}, (0.0,), (1.0,), None, paths=given_paths)
        text = write_text(dataset=dataset, rows=rows)
        assert cells(text, names[0]) == ['cat (99.00 %)', 'dog']
        assert cells(text, names[1]) == ['owl (75.00 %)', 'cat']
        drawn, titles = sheets.pop()
        assert drawn[:, 0, 0, 0].tolist() == [3, 5]
        assert titles[0] == f'cat (99.00 %)\nlabel: dog\n{os.path.basename(names[0])}'


def test_report_shows_existing_figures(write, tmp_path):
    text = write()
    for name in ('curves', 'confusion_matrix'):
        assert f'](figures/{name}.png)' in text
        assert count_colors(tmp_path / 'figures' / f'{name}.png') > 20
    assert '](figures/first_batch.png)' in text


def test_html_report_holds_its_figures_and_shows_what_the_markdown_does(write, tmp_path):
    write()
    page = (tmp_path / 'report.html').read_text()
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert sources
    assert all(source.startswith('data:image/png;base64,') for source in sources)
    assert base64.b64decode(sources[0].split(',')[1]) == (tmp_path / 'figures' / 'curves.png').read_bytes()
    rows = [line for line in (tmp_path / 'report.md').read_text().splitlines() if line.startswith('| test accuracy')]
    assert f'<td>{rows[0].split("|")[2].strip()}</td>' in page


def test_errors_in_figures_are_warnings(write, monkeypatch, caplog):
    def fail(*_):
        raise ValueError('of a\nfigure')
    monkeypatch.setattr(figures, 'curves', fail)
    text = write()
    assert 'figures/curves.png' not in text
    assert '## Curves\n\nThis figure could not be drawn.\n' in text
    assert '](figures/confusion_matrix.png)' in text
    line, = [record.getMessage() for record in caplog.records]
    assert line.endswith('curves.png could not be drawn: ValueError: of a figure')
