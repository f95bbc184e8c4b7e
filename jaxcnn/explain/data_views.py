"""The views of a split in feature space, and of the predictions for it."""

import csv
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.analysis import calibration as calibrations
from jaxcnn.analysis import embedding, mistakes
from jaxcnn.analysis.batches import compute_in_batches, map_batches
from jaxcnn.analysis.embedding_page import write_embedding_page
from jaxcnn.analysis.markdown import escape
from jaxcnn.data import normalize
from jaxcnn.errors import unknown
from jaxcnn.explain.layers import check_options
from jaxcnn.explain.request import Request, Section
from jaxcnn.explain.split_predictions import SplitPredictions, predict
from jaxcnn.files import open_replacement
from jaxcnn.metrics import format_percent
from jaxcnn.tasks import Accumulated
from jaxcnn.training.step import image_gradient


def confusion(request: Request) -> Section:
    """Show which classes are taken for which, and precision, recall and F1 of each class."""
    request.check_no_pictures('confusion')
    predictions, task = request.predictions(request.split), request.run.experiment.task
    if predictions.has_label:
        counts = np.zeros((task.num_classes, task.num_classes), np.int64)
        np.add.at(counts, (predictions.labels, predictions.probabilities.argmax(1)), 1)
        accumulated = Accumulated({'confusion': counts}, {})
    else:
        accumulated = Accumulated({}, {'probabilities': predictions.probabilities, **predictions.targets})
    section, *_ = task.report(accumulated, request.run.info['class_counts'], predictions.split, request.folder)
    return Section('Confusion', [line.replace('](figures/', '](') for line in section.lines])


def calibration(request: Request, bins: int = calibrations.BINS) -> Section:
    """Show whether predictions of 80 % are right in 80 % of the cases."""
    request.check_no_pictures('calibration')
    check_options(1, bins=bins)
    predictions = request.predictions(request.split)
    probabilities = predictions.probabilities
    if predictions.has_label:
        confidences, is_correct = probabilities.max(1), probabilities.argmax(1) == predictions.labels
        brier, unit = calibrations.brier_score(probabilities, predictions.labels), 'predictions'
        terms = 'confidence', 'accuracy'
    else:
        is_correct = predictions.targets['labels'].reshape(-1) > 0
        confidences = probabilities.reshape(-1)
        brier, unit = float(((confidences - is_correct) ** 2).mean()), 'pairs of an image and a class'
        terms = 'probability', 'frequency'
    result = calibrations.calibration(confidences, is_correct, bins)
    calibrations.reliability_diagram(result, request.figure_path('calibration'), f'{predictions.split} split', terms)
    direction = 'above' if result.overconfidence > 0 else 'below'
    return Section('Calibration', [
        f'{predictions.title}, {len(confidences):,} {unit} in {bins} bins of equal width. On average, the {terms[0]} is '
        f'{100 * abs(result.overconfidence):.2f} percentage points {direction} the {terms[1]}.', '',
        '| | |', '|---|---|', f'| expected calibration error | {format_percent(result.ece)} |',
        f'| largest error of a bin | {format_percent(result.max_error)} |', f'| Brier score | {brier:.4f} |',
        f'| mean {terms[0]} | {format_percent(float(np.nanmean(confidences)))} |',
        f'| {terms[1]} | {format_percent(float(is_correct.mean()))} |', '',
        '![calibration](calibration.png)'])


def errors(request: Request, count: int = 24) -> Section:
    """Show the most confident mistakes, the most doubtful images and probable label errors."""
    request.check_no_pictures('errors')
    check_options(1, count=count)
    predictions = request.predictions(request.split)
    return (_errors_of_label if predictions.has_label else _errors_of_label_sets)(request, predictions, count)


_LABEL_ERRORS = ('Confident learning suggests that these labels are wrong. A network that is often wrong suggests correct '
                 'labels, too. `label_errors.csv` lists all of them.')


def _errors_of_label(request: Request, predictions: SplitPredictions, count: int) -> Section:
    """Return the section of a task with one class for each image."""
    names, probabilities, labels = request.run.info['class_names'], predictions.probabilities, predictions.labels
    predicted, confidences = probabilities.argmax(1), probabilities.max(1)
    wrong = mistakes.confident_mistakes(predicted, confidences, labels, count)
    doubtful = mistakes.doubtful_images(probabilities, count)
    suspects = mistakes.label_errors(probabilities, labels)
    _write_label_errors(request, ([predictions.name(i), names[labels[i]], names[c], f'{score:.4f}'] for i, score, c in zip(
        suspects.indices, suspects.scores, suspects.suggested, strict=True)))

    def describe(i: int) -> str:
        return f'{names[predicted[i]]} ({format_percent(confidences[i])})\nlabel: {names[labels[i]]}'
    suggestions = [f'label: {names[labels[i]]}\nrather: {names[c]}' for i, c in zip(
        suspects.indices[:count], suspects.suggested[:count], strict=True)]
    return Section('Mistakes', [
        f'{predictions.title}: {(predicted != labels).sum():,} wrong predictions, '
        f'{len(suspects.indices):,} probable label errors.', '',
        '### Most confident mistakes', '', *_sheet(request, predictions, wrong.indices, 'confident_mistakes',
                                                   [describe(i) for i in wrong.indices]), '',
        '### Most doubtful images', '', 'These predictions have the largest entropy.', '',
        *_sheet(request, predictions, doubtful.indices, 'doubtful_images', [describe(i) for i in doubtful.indices]), '',
        '### Probable label errors', '', _LABEL_ERRORS, '',
        *_sheet(request, predictions, suspects.indices[:count], 'label_errors', suggestions)])


def _errors_of_label_sets(request: Request, predictions: SplitPredictions, count: int) -> Section:
    """Return the section of a task with any number of classes for each image."""
    task, names, probabilities = request.run.experiment.task, request.run.info['class_names'], predictions.probabilities
    labels = predictions.targets['labels']
    positions, texts = task.confident_mistakes(Accumulated({}, {'probabilities': probabilities}), predictions.targets, count)
    titles = [f'{text}\nlabels: {", ".join(task.title({"labels": labels[i]}).split(chr(10)))}' for i, text in zip(
        positions, texts, strict=True)]
    (indices, scores), classes = mistakes.label_set_errors(probabilities, labels)
    changes = [f'{"wrong" if labels[i, c] else "missing"}: {names[c]}' for i, c in zip(indices, classes, strict=True)]
    _write_label_errors(request, ([predictions.name(i), names[c], 'not shown' if labels[i, c] else 'shown', f'{score:.4f}']
                                  for i, c, score in zip(indices, classes, scores, strict=True)))
    return Section('Mistakes', [
        f'{predictions.title}: {len(indices):,} probable label errors.', '',
        '### Most confident mistakes', '', *_sheet(request, predictions, positions, 'confident_mistakes', titles), '',
        '### Probable label errors', '', _LABEL_ERRORS, '',
        *_sheet(request, predictions, indices[:count], 'label_errors', changes[:count])])


def _write_label_errors(request: Request, rows: Iterable[Sequence[str]]) -> None:
    with open_replacement(os.path.join(request.folder, 'label_errors.csv')) as file:
        writer = csv.writer(file)
        writer.writerow(['image', 'label', 'suggested', 'score'])
        writer.writerows(rows)


def _sheet(request: Request, predictions: SplitPredictions, indices: np.ndarray, name: str,
           titles: Sequence[str]) -> list[str]:
    """Draw a sheet of images, and return the lines that show it with the names of the images."""
    if not len(indices):
        return ['There are none.']
    files = [predictions.name(i) for i in indices]
    lines = [f'{title}\n{os.path.basename(file)}' for title, file in zip(titles, files, strict=True)]
    mistakes.draw_sheet(predictions.images(indices), lines, request.figure_path(name))
    return [f'![{name.replace("_", " ")}]({name}.png)', '', escape(', '.join(files))]


def embed(request: Request, layer: str = embedding.CLASSIFIER_INPUT, images: int = 2000, perplexity: float = 30.0,
          augmented: bool = False) -> Section:
    """Place the images of the split in a plane, by t-SNE and PCA of their features in a layer.

    The layer is a feature map, whose values are averaged over its pixels, a dense layer, `classifier_input` or `logits`.
    With `augmented`, each image is shown also as training sees it.
    """
    request.check_no_pictures('embed')
    check_options(1, images=images)
    run = request.run
    predictions = request.predictions(request.split, images)
    features = predictions.features(layer)
    pictures, labels, probabilities = predictions.images(), predictions.labels, predictions.probabilities
    names = [predictions.name(i) for i in range(len(predictions))]
    is_augmented = np.zeros(len(predictions), bool)
    if augmented:
        pixels = augment_images(request, pictures, predictions.targets)
        network, preprocessor = run.experiment.network, run.experiment.preprocessor
        augmented_features = compute_in_batches(lambda variables, x: embedding.layer_features(
            network, variables, preprocessor.normalize(x), layer), run.variables, len(pixels), pixels.__getitem__)
        augmented_probabilities = compute_in_batches(lambda variables, x: predict(
            run, variables, preprocessor.normalize(x)), run.variables, len(pixels), pixels.__getitem__)
        plain = np.asarray(jax.jit(preprocessor.pixels)(pictures))  # of the same size as augmented images
        pictures = np.rint(np.concatenate([plain, pixels]).clip(0, 1) * 255).astype(np.uint8)
        features = np.concatenate([features, augmented_features])
        probabilities = np.concatenate([probabilities, augmented_probabilities])
        labels, names = np.concatenate([labels, labels]), names * 2
        is_augmented = np.repeat([False, True], len(predictions))
    projection = embedding.pca(features, seed=request.seed)
    embeddings = {'t-SNE': embedding.tsne(features, perplexity, request.seed), 'PCA': projection.points}
    class_names = run.info['class_names']
    shares = [format_percent(share) for share in projection.explained]
    embedding.embedding_figure(embeddings, labels, class_names, request.figure_path('embed'), is_augmented)
    title = f'{run.config.model.name} on {run.info["name"]}, layer {layer}'
    write_embedding_page(os.path.join(request.folder, 'embed.html'), embeddings, pictures, names, labels,
                         probabilities.argmax(1), probabilities.max(1), class_names, title,
                         is_augmented if augmented else None)
    np.savez(os.path.join(request.folder, 'embed.npz'), features=features, labels=labels, names=np.array(names),
             is_augmented=is_augmented, tsne=embeddings['t-SNE'], pca=embeddings['PCA'])
    return Section('Embedding', [
        f'{predictions.title}, by {features.shape[1]:,} features of the layer {escape(layer)}'
        f'{", plain (circles) and augmented (crosses)" if augmented else ""}. '
        f'The axes of the PCA hold {" and ".join(shares)} of the variance.', '',
        '![embed](embed.png)', '', 'The page [embed.html](explain/embed.html) shows the image under the mouse. `embed.npz` '
        'holds the features and the points.'])


def augment_images(request: Request, images: np.ndarray, targets: Any) -> np.ndarray:
    """Return images (N, H, W, C) augmented as in the first epoch of a training with the request's seed, in [0, 1]."""
    experiment = request.run.experiment
    preprocessor = dataclasses.replace(experiment.preprocessor, normalize=normalize.Normalization())
    gradient = image_gradient(experiment.network, experiment.preprocessor, experiment.task, request.run.variables)
    augment = jax.jit(functools.partial(preprocessor.train, mixer=experiment.task, gradient=gradient))

    def take(indices: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return {'image': images[indices], **{name: values[indices] for name, values in targets.items()}}, indices
    key = jax.random.key(request.seed)
    pixels: np.ndarray = map_batches(lambda batch: augment(batch[0], key, batch[1])['image'], len(images), take)
    return pixels


def neighbors(request: Request, layer: str = embedding.CLASSIFIER_INPUT, k: int = 8, among: str = 'train',
              images: int = 10000, metric: str = 'cosine') -> Section:
    """Show for each image the images that are nearest to it in the features of a layer.

    They are searched among `images` images of the split `among`, drawn by the seed. The layers are those of `embed`.
    """
    check_options(1, k=k, images=images)
    if among not in request.dataset.splits:
        raise unknown('split', among, request.dataset.splits, field='among')
    examples, class_names = request.examples, request.run.info['class_names']
    searched = request.predictions(among, images)
    features, run = searched.features(layer), request.run
    queries = embedding.layer_features(run.experiment.network, run.variables, request.inputs, layer)
    rows, distances = map(np.asarray, embedding.nearest_neighbors(queries, jnp.asarray(features), k, metric))
    pictures, titles, table = [], [], []

    def label(c: int) -> str:
        return f'label: {class_names[c]}' if c >= 0 else ''
    for i in range(len(examples)):
        predicted = class_names[request.probabilities[i].argmax()]
        pictures += [examples.images[i], *searched.images(rows[i])]
        titles += [f'{examples.names[i]}\n{label(examples.labels[i])}\npredicted: {predicted}',
                   *(f'{os.path.basename(searched.name(row))}\n{label(searched.labels[row])}\ndistance: {distance:.3f}'
                     for row, distance in zip(rows[i], distances[i], strict=True))]
        table.append({'image': examples.names[i], 'neighbors': [searched.name(row) for row in rows[i]],
                      'distances': distances[i].round(5).tolist()})
    mistakes.draw_sheet(np.stack(pictures), titles, request.figure_path('neighbors'), columns=k + 1)
    with open_replacement(os.path.join(request.folder, 'neighbors.json')) as file:
        json.dump(table, file, indent=2)
    return Section('Nearest neighbours', [
        f'The first image of each row, and the {k} nearest of {searched.title} by the {metric} distance of '
        f'{features.shape[1]:,} features of the layer {escape(layer)}. `neighbors.json` holds their names.', '',
        '![neighbors](neighbors.png)'])
