"""Measures of a classifier: sums over batches on the device, figures from those sums on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.losses import cross_entropy

Sums = dict[str, jax.Array]


def zero_sums(num_classes: int) -> dict[str, np.ndarray]:
    """Sums over no images."""
    zero = np.zeros((), np.float32)
    return {'count': zero, 'loss': zero, 'top1': zero, 'top5': zero,
            'confusion': np.zeros((num_classes, num_classes), np.int32)}


def predictions(logits: jax.Array) -> jax.Array:
    """The class of the largest of logits (N, classes): (N,) int32; -1, which is no label, where one of them is NaN."""
    return jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1).astype(jnp.int32))


def batch_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
    """Sums over the images of a batch whose mask is 1.

    Args:
      logits: (N, classes).
      labels: (N,) int.
      mask: (N,) of 0 or 1.

    Returns:
      `count`, `loss` (cross-entropy without smoothing), `top1`, `top5` (label among the five largest logits, or
      all of them where there are fewer), and `confusion` (classes, classes): rows are labels, columns predictions.
      Logits with a NaN are never right, and are not in `confusion`, for they predict no class.
    """
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    predicted = predictions(logits)
    counts = (mask > 0) & (predicted >= 0)
    _, best = jax.lax.top_k(logits, min(5, classes))  # (N, 5)
    top1, top5 = (predicted == labels) & counts, (best == labels[:, None]).any(1) & counts
    confusion = jnp.zeros((classes, classes), jnp.int32).at[labels, predicted].add(counts.astype(jnp.int32))
    return {'count': mask.sum(), 'loss': jnp.where(mask > 0, cross_entropy(logits, labels), 0).sum(),
            'top1': top1.sum().astype(jnp.float32), 'top5': top5.sum().astype(jnp.float32), 'confusion': confusion}


def figures(sums: dict[str, Any]) -> dict[str, float]:
    """Mean `loss`, `accuracy` and `top5` (both in [0, 1]) of summed batches."""
    count = float(sums['count'])
    return {'loss': float(sums['loss']) / count, 'accuracy': float(sums['top1']) / count,
            'top5': float(sums['top5']) / count}


def tells_top5(num_classes: int) -> bool:
    """Whether top-5 accuracy says anything: of up to five classes it is always 1."""
    return num_classes > 5


def per_class(confusion: np.ndarray) -> list[dict[str, float]]:
    """Precision, recall, F1 (0 where undefined) and support of each class of a confusion matrix (labels, predictions)."""
    rows = []
    for hit, support, predicted in zip(np.diag(confusion).tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist(),
                                       strict=True):
        precision = hit / predicted if predicted else 0.0
        recall = hit / support if support else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
        rows.append({'precision': precision, 'recall': recall, 'f1': f1, 'support': support})
    return rows


def mistakes(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of classes that were taken for one another, of a confusion matrix (labels, predictions), most frequent first.

    Returns:
      Labels, predictions and counts, each (pairs,) int.
    """
    labels, predictions = np.nonzero(confusion)
    wrong = labels != predictions
    labels, predictions = labels[wrong], predictions[wrong]
    counts = confusion[labels, predictions]
    order = np.argsort(-counts, kind='stable')
    return labels[order], predictions[order], counts[order]
