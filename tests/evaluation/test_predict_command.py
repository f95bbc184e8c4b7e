"""The command that predicts a folder of images, with one run or an ensemble, in this process."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxcnn import config
from jaxcnn.cli import predict
from jaxcnn.errors import UserError
from jaxcnn.evaluation import sampling
from jaxcnn.evaluation.ensemble import average
from jaxcnn.evaluation.predictions import predict_split
from jaxcnn.run import load_run
from jaxcnn.training import train


def run_command(*arguments):
    return predict.run(predict.make_parser().parse_args([str(argument) for argument in arguments]))


def read_submission(path):
    with open(path) as f:
        header, *rows = csv.reader(f)
    assert header == ['Id', 'Category']
    return rows


def test_a_folder_is_predicted_by_an_ensemble_in_the_order_of_its_names(digits_runs, digits_folder, tmp_path, caplog):
    """The test images as `testing/` of the homework: numbered names without labels, one of them in a folder below."""
    members = [predict_split(load_run(workdir), 'test', tta=True) for workdir in digits_runs]
    folder, table = tmp_path / 'testing', tmp_path / 'submission.csv'
    (folder / 'more').mkdir(parents=True)
    names = sorted(members[0].names, key=lambda name: name[::-1])
    for i, name in enumerate(names):
        shutil.copy(digits_folder / name, folder / ('more' if i == len(names) - 1 else '') / f'{i:04d}.png')
    (folder / 'readme.txt').write_text('not an image')
    expected, *of_members = (dict(zip(p.names, p.predicted, strict=True)) for p in (average(members), *members))
    assert expected not in of_members
    classes = members[0].class_names

    assert run_command(f'--workdir={digits_runs[0]}', f'--submission={table}', folder, '--ensemble', digits_runs[1]) == 0
    rows = read_submission(table)
    assert rows == [[f'{i:04d}', classes[expected[name]]] for i, name in enumerate(names)]
    files = sorted(folder.rglob('*.png'), key=lambda path: path.name)
    run_command(f'--submission={table}', *files, '--ensemble', *digits_runs)
    assert read_submission(table) == rows  # the names of files are Ids, too
    assert run_command(f'--csv={table}', files[0], files[0], '--ensemble', *digits_runs) == 0
    assert len(table.read_text().splitlines()) == 3  # a file that is given twice has two rows

    (folder / '0000.png').write_text('no picture')
    (folder / '0001.png').rename(folder / '9999.png')
    assert run_command(f'--workdir={digits_runs[0]}', f'--submission={table}', folder) == 2
    assert read_submission(table)[0] == ['0000', '']
    assert f'that of {folder / "0002.png"} is 0001' in caplog.text


def test_samples_of_an_augmentation_are_averaged(digits_runs, digits_folder, tmp_path):
    """A flip that is always drawn gives the predictions for mirrored images."""
    run, images = load_run(digits_runs[0]), sorted((digits_folder / 'test' / 'two').iterdir())
    for path in images:
        ImageOps.mirror(Image.open(path)).save(tmp_path / path.name)
    network, preprocess = run.experiment.network, run.experiment.preprocessor
    expected = network.apply(run.variables, preprocess(np.stack(
        [run.load_picture(str(tmp_path / path.name))[0] for path in images])), train=False).argmax(-1)
    run_command(f'--workdir={digits_runs[0]}', '--tta=flip_lr(1.0)', '--samples=2', f'--submission={tmp_path / "a.csv"}',
                *images)
    classes = run.info['class_names']
    assert read_submission(tmp_path / 'a.csv') == [[p.stem, classes[c]] for p, c in zip(images, expected, strict=True)]


def test_samples_act_on_image_files_and_depend_on_the_file_alone(no_pictures, tmp_path):
    """A run on images that keep their sizes: `resize` squeezes all of the image, not evaluation's crop of the centre."""
    rng, folder = np.random.default_rng(0), tmp_path / 'data'
    for i in range(12):
        path = folder / ('train' if i < 6 else 'test') / 'ab'[i % 2] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (14, 12 + i, 3), np.uint8)).save(path)
    train(config.make(
        model={'name': 'sequential', 'layers': 'flatten|dense', 'kernel_init': 'normal(1.0)'}, batch_size=6,
        duration={'steps': 1}, eval={'batch_size': 4}, parallel={'devices': 1}, data={
            'name': 'folder', 'dir': str(folder), 'val_fraction': 0.0, 'image_size': 'original', 'augment': 'random_crop(8)',
            'eval_augment': 'center_crop(8)'}), str(tmp_path / 'run'))
    run, paths = load_run(str(tmp_path / 'run')), sorted((folder / 'test').rglob('*.png'))
    squeezed = np.stack([ImageOps.mirror(Image.open(path).resize((8, 8), Image.Resampling.BILINEAR)) for path in paths])
    scores = run.experiment.network.apply(run.variables, run.experiment.preprocessor.normalize(squeezed / 255), train=False)
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)

    def table(*arguments):
        run_command(f'--workdir={run.workdir}', f'--csv={tmp_path / "a.csv"}', *arguments)
        with open(tmp_path / 'a.csv') as file:
            rows = [{row[f'class_{i}']: float(row[f'probability_{i}']) for i in (1, 2)} | {'path': row['image']}
                    for row in csv.DictReader(file)]
        return {row['path']: [row['a'], row['b']] for row in rows}
    predicted = table('--tta=resize(8)|flip_lr(1.0)', '--samples=2', *paths)
    np.testing.assert_allclose([predicted[str(path)] for path in paths], expected, atol=1e-5)
    protocol = sampling.parse('resize(8)|flip_lr(1.0)', 2)
    evaluated = protocol.predict(run.experiment, run.variables, run.load_dataset(), 'test')
    order = [evaluated.names.index(str(path.relative_to(folder))) for path in paths]
    np.testing.assert_allclose(evaluated.probabilities[order], expected, rtol=1e-4)

    random = table('--tta=random_crop(8)|flip_lr', '--samples=3', *paths)
    assert table('--tta=random_crop(8)|flip_lr', '--samples=3', paths[2], paths[0]) == {
        str(path): random[str(path)] for path in (paths[2], paths[0])}
    with pytest.raises(UserError, match="--tta: must begin with operations that bring images to one size"):
        run_command(f'--workdir={run.workdir}', '--tta=flip_lr', *paths)


def test_folders_that_cannot_be_predicted_are_reported(digits_runs, digits_folder, tmp_path):
    (tmp_path / 'notes.txt').write_text('a shopping list')
    with pytest.raises(UserError, match='holds no images') as error:
        run_command(f'--workdir={digits_runs[0]}', tmp_path)
    assert error.value.field == str(tmp_path)
    with pytest.raises(UserError, match=r"one/45\.png and .*two/45\.png have the same name, '45', but a table"):
        run_command(f'--workdir={digits_runs[0]}', f'--submission={tmp_path / "a.csv"}', digits_folder / 'test')
    with pytest.raises(UserError, match='takes a single folder, or image files'):
        run_command(f'--workdir={digits_runs[0]}', f'--submission={tmp_path / "a.csv"}', digits_folder / 'test', 'b.png')
    with pytest.raises(UserError, match='listed twice'):
        run_command(f'--workdir={digits_runs[0]}', digits_folder / 'test', '--ensemble', digits_runs[0])
