"""Sheets of random training images of each class and, in detection, of images with boxes and of objects."""

import numpy as np

from jaxcnn.analysis.figures import image_grid
from jaxcnn.data_report import figures
from jaxcnn.data_report.findings import Report

IMAGES_PER_CLASS = 10  # in a sheet with a row for each class
SHEET_IMAGES, MAX_SHEETS = 400, 5  # of a data set with more classes
EXAMPLES_WITH_BOXES, EXAMPLE_SIDE = 6, 1000  # pixels to which larger images are reduced
SEED = 0


def draw_classes(report: Report, path: str) -> list[str]:
    """Draw random training images of each class, or random objects in detection.

    Up to `figures.MAX_NAMED_CLASSES` classes have a row each. The sheets of more classes hold at least one image of each.

    Args:
      report: the report of the data.
      path: the PNG file, to whose name the number of the sheet is added.

    Returns:
      The paths of the sheets.
    """
    rows_of_classes = _rows_of_classes(report)
    per_class = int(np.clip(SHEET_IMAGES // len(report.class_names), 1, IMAGES_PER_CLASS))
    rng = np.random.Generator(np.random.PCG64(SEED))
    drawn = {label: np.sort(rng.permutation(rows)[:per_class]).tolist() for label, rows in rows_of_classes.items()}
    if len(report.class_names) <= figures.MAX_NAMED_CLASSES:
        columns = max(map(len, drawn.values()))
        rows = [row for class_rows in drawn.values() for row in class_rows]
        tiles = iter(_thumbnails(report, rows))
        blank = np.full((1, 1, 3), 255, np.uint8)
        images = [next(tiles) if i < len(class_rows) else blank for class_rows in drawn.values() for i in range(columns)]
        image_grid([image / 255 for image in images], [''] * len(images), path, columns,
                   [report.class_names[label] for label in drawn], min_side=1)
        return [path]
    pairs = [(label, row) for label, class_rows in drawn.items() for row in class_rows]
    columns = figures.SHEET_WIDTH // (figures.TILE_SIDE + 6) // per_class * per_class
    paths: list[str] = []
    for start in range(0, min(len(pairs), MAX_SHEETS * SHEET_IMAGES), SHEET_IMAGES):
        sheet = pairs[start:start + SHEET_IMAGES]
        paths.append(path.replace('.png', f'_{len(paths) + 1}.png'))
        image_grid([image / 255 for image in _thumbnails(report, [row for _, row in sheet])],
                   [report.class_names[label] for label, _ in sheet], paths[-1], columns, min_side=1)
    return paths


def _rows_of_classes(report: Report) -> dict[int, list[int]]:
    """Return, for each class that there is, the rows of its training images; in detection, the indices of its objects."""
    rows_of_classes: dict[int, list[int]] = {}
    train = report.train
    if train.objects is None:
        for row, classes in enumerate(train.classes):
            for label in classes:
                rows_of_classes.setdefault(label, []).append(row)
    else:
        has_pixels = (train.objects.boxes[:, 2:] - train.objects.boxes[:, :2] >= 1).all(1)
        for index in np.flatnonzero(has_pixels).tolist():
            rows_of_classes.setdefault(int(train.objects.classes[index]), []).append(index)
    return dict(sorted(rows_of_classes.items()))


def _thumbnails(report: Report, rows: list[int]) -> list[np.ndarray]:
    """Return thumbnails of training images or, in detection, of objects; see `_rows_of_classes`."""
    records, objects = report.train.records, report.train.objects
    image_rows = rows if objects is None else objects.rows[rows].tolist()

    def reduce(position: int, image: np.ndarray) -> np.ndarray:
        if objects is not None:
            image = _crop(image, objects.boxes[rows[position]])
        return figures.thumbnail(image, figures.TILE_SIDE)
    return figures.read_images(report.source, [('train', int(records['index'][row])) for row in image_rows], reduce)


def _crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the pixels of an image, uint8 (H, W, C), within a box; at least one."""
    height, width = image.shape[:2]
    x0, y0 = (int(np.clip(np.floor(value), 0, size - 1)) for value, size in zip(box[:2], (width, height), strict=True))
    x1, y1 = (int(np.ceil(value)) for value in box[2:])
    return image[y0:max(y1, y0 + 1), x0:max(x1, x0 + 1)]


def draw_examples_with_boxes(report: Report, path: str) -> None:
    """Draw random training images with their boxes."""
    records, objects = report.train.records, report.train.objects
    assert objects is not None
    rows = np.random.Generator(np.random.PCG64(SEED)).permutation(len(records))[:EXAMPLES_WITH_BOXES]
    scales = np.minimum(1, EXAMPLE_SIDE / np.maximum(records['height'], records['width'])[rows])
    images = figures.read_images(
        report.source, [('train', int(records['index'][row])) for row in rows],
        lambda position, image: figures.thumbnail(image, EXAMPLE_SIDE) if scales[position] < 1 else image)
    indices = [np.flatnonzero(objects.rows == row) for row in rows]
    figures.draw_images_with_boxes(
        images, [objects.boxes[i] * scale for i, scale in zip(indices, scales, strict=True)],
        [objects.classes[i] for i in indices], [objects.difficult[i] for i in indices], report.class_names,
        [report.image_name('train', row) for row in rows], path)
