"""Record the figures of pycocotools for random detections in `coco_reference.npz`.

Run it where the package is installed: `pip install pycocotools==2.0.11 && python tests/write_coco_reference.py`
"""

import pathlib

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

PATH = pathlib.Path(__file__).with_name('coco_reference.npz')


def random_boxes(rng, shape):
    """Return boxes in an image of 320 pixels: small, medium and large ones."""
    sizes = np.exp(rng.uniform(np.log(10), np.log(160), (*shape, 2)))
    corners = rng.uniform(0, 320 - sizes)
    return np.concatenate([corners, corners + sizes], -1)


def random_detections(num_images, num_boxes, num_detections, num_classes, seed):
    """Return detections and true boxes as `DetectionScores` takes them.

    Most detections are near true boxes, some of them with a wrong class or as a duplicate; several scores are equal. The
    last class has no boxes.
    """
    rng = np.random.default_rng(seed)
    shape = num_images, num_detections
    truth = {'boxes': random_boxes(rng, (num_images, num_boxes)).astype(np.float32),
             'classes': rng.integers(0, num_classes - 1, (num_images, num_boxes)).astype(np.int32),
             'valid': rng.random((num_images, num_boxes)) < 0.7, 'difficult': rng.random((num_images, num_boxes)) < 0.15}
    rows, source = np.arange(num_images)[:, None], rng.integers(0, num_boxes, shape)
    near = truth['boxes'][rows, source]
    near = near + rng.normal(0, 0.08, near.shape) * np.tile(near[..., 2:] - near[..., :2], 2)
    is_near = rng.random(shape) < 0.75
    boxes = np.where(is_near[..., None], near, random_boxes(rng, shape))
    boxes = np.concatenate([boxes[..., :2], np.maximum(boxes[..., 2:], boxes[..., :2] + 1)], -1)
    is_class_right = is_near & (rng.random(shape) < 0.8)
    classes = np.where(is_class_right, truth['classes'][rows, source], rng.integers(0, num_classes, shape))
    scores = -np.sort(-np.clip(rng.normal(0.4 + 0.25 * is_class_right, 0.2), 0.01, 1).round(2), 1)
    order = rng.permuted(np.tile(np.arange(num_detections), (num_images, 1)), axis=1)
    scores = np.where(rng.random((num_images, 1)) < 0.5, np.take_along_axis(scores, order, 1), scores)
    detections = {'boxes': boxes.astype(np.float32), 'scores': scores.astype(np.float32),
                  'classes': classes.astype(np.int32), 'valid': rng.random(shape) < 0.9}
    return detections, truth


def coco_figures(detections, truth, num_classes):
    """Return the twelve figures of pycocotools; -1 where there are no boxes."""
    images = [{'id': i} for i in range(1, len(truth['valid']) + 1)]
    annotations = []
    for i, j in np.argwhere(truth['valid']).tolist():
        x0, y0, x1, y1 = truth['boxes'][i, j].tolist()
        annotations.append({'id': len(annotations) + 1, 'image_id': i + 1, 'category_id': int(truth['classes'][i, j]) + 1,
                            'bbox': [x0, y0, x1 - x0, y1 - y0], 'area': (x1 - x0) * (y1 - y0),
                            'iscrowd': int(truth['difficult'][i, j])})
    results = []
    for i, j in np.argwhere(detections['valid']).tolist():
        x0, y0, x1, y1 = detections['boxes'][i, j].tolist()
        results.append({'image_id': i + 1, 'category_id': int(detections['classes'][i, j]) + 1,
                        'bbox': [x0, y0, x1 - x0, y1 - y0], 'score': float(detections['scores'][i, j])})
    truth_set = COCO()
    truth_set.dataset = {'images': images, 'annotations': annotations,
                         'categories': [{'id': c + 1} for c in range(num_classes)]}
    truth_set.createIndex()
    evaluation = COCOeval(truth_set, truth_set.loadRes(results), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def main():
    """Write the file."""
    detections, truth = random_detections(num_images=30, num_boxes=8, num_detections=20, num_classes=4, seed=0)
    arrays = {f'{side}/{name}': values for side, group in (('detections', detections), ('truth', truth))
              for name, values in group.items()}
    np.savez_compressed(PATH, figures=coco_figures(detections, truth, 4), **arrays)


if __name__ == '__main__':
    main()
