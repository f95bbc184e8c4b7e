"""Measures against scikit-learn, whatever the batches they are summed over."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from jaxcnn import config, metrics, tasks


@functools.cache
def task_of(classes):
    return tasks.create(config.parse({}), [str(i) for i in range(classes)], [1] * classes, classes)


def batch_sums(logits, labels, mask):
    return jax.jit(task_of(logits.shape[-1]).eval_sums)(logits, {'label': labels}, mask)


def figures_of(sums):
    return task_of(len(sums['confusion'])).compute(tasks.Accumulated(sums, {}))


def examples(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.0 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


def summed(logits, labels, size, classes, fill=0):
    """Sums over batches of `size`, the last one padded by rows that `fill` makes tempting, and masked."""
    sums = task_of(classes).zero_sums()
    for start in range(0, len(labels), size):
        part, answer = logits[start:start + size], labels[start:start + size]
        empty = size - len(answer)
        mask = np.float32([1] * len(answer) + [0] * empty)
        part = np.concatenate([part, np.full((empty, classes), fill, np.float32)])
        answer = np.concatenate([answer, np.zeros(empty, int)])
        new = batch_sums(jnp.asarray(part), jnp.asarray(answer), jnp.asarray(mask))
        sums = jax.tree.map(lambda a, b: np.asarray(a + b), sums, new)
    return sums


@pytest.mark.parametrize(('count', 'classes', 'size'), [(60, 10, 16), (32, 10, 16), (5, 6, 8)])
def test_figures_are_scikit_learns_over_any_batches(count, classes, size):
    logits, labels = examples(count, classes)
    sums = summed(logits, labels, size, classes)
    figures = figures_of(sums)
    names = list(range(classes))
    assert sums['count'] == count
    assert figures['accuracy'] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert figures['top5'] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=names))
    assert figures['loss'] == pytest.approx(log_loss(labels, softmax(np.float64(logits), axis=1), labels=names), rel=1e-5)
    assert figures['accuracy'] < figures['top5'] <= 1
    np.testing.assert_array_equal(sums['confusion'], confusion_matrix(labels, logits.argmax(1), labels=names))
    assert sums['confusion'].dtype == np.int32


@pytest.mark.parametrize('fill', [0, 1e30, -np.inf, np.nan])
def test_masked_images_count_for_nothing_whatever_they_hold(fill):
    logits, labels = examples(11, 6)
    chex.assert_trees_all_close(summed(logits, labels, 8, 6, fill), summed(logits, labels, 11, 6), rtol=1e-6)


def test_a_mask_may_lie_anywhere():
    logits, labels = examples(12, 6)
    mask = np.arange(12) % 3 != 1
    some = batch_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.float32(mask))
    kept = batch_sums(jnp.asarray(logits[mask]), jnp.asarray(labels[mask]), jnp.ones(mask.sum()))
    chex.assert_trees_all_close(some, kept, rtol=1e-6)


def test_top5_of_few_classes_is_everything():
    logits, labels = examples(20, 3)
    figures = figures_of(summed(logits, labels, 20, 3))
    assert figures['top5'] == 1
    assert figures['accuracy'] == pytest.approx(accuracy_score(labels, logits.argmax(1)))


def test_top5_ends_at_the_fifth():
    logits = jnp.arange(8.0)[None].repeat(8, 0)
    sums = batch_sums(logits, jnp.arange(8), jnp.ones(8))
    assert float(sums['top5']) == 5
    assert float(sums['accuracy']) == 1


@pytest.mark.parametrize('bad', [slice(None), slice(2), slice(7, 8)])
def test_logits_with_a_nan_are_never_right(bad):
    logits = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    logits[:, bad] = np.nan
    sums = batch_sums(jnp.asarray(logits), jnp.arange(8), jnp.ones(8))
    assert (float(sums['count']), float(sums['accuracy']), float(sums['top5'])) == (8, 0, 0)
    assert np.isnan(sums['loss'])
    assert not sums['confusion'].any()
    np.testing.assert_array_equal(metrics.predictions(jnp.asarray(logits)), [-1] * 8)


def test_confusion_has_labels_in_rows():
    sums = batch_sums(jnp.array([[0.0, 0, 9], [0, 0, 9]]), jnp.array([0, 1]), jnp.ones(2))
    np.testing.assert_array_equal(sums['confusion'], [[0, 0, 1], [0, 0, 1], [0, 0, 0]])


def test_the_loss_is_in_float32_for_bfloat16_logits():
    logits, labels = examples(9, 6)
    half = jnp.asarray(logits, jnp.bfloat16)
    sums = batch_sums(half, jnp.asarray(labels), jnp.ones(9))
    expected = log_loss(labels, softmax(np.asarray(half, np.float64), axis=1), labels=range(6))
    assert sums['loss'].dtype == jnp.float32
    assert float(sums['loss']) / 9 == pytest.approx(expected, rel=1e-5)


def test_zero_sums_have_the_structure_of_a_batch():
    logits, labels = examples(4, 6)
    batch = batch_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.ones(4))
    zero = task_of(6).zero_sums()
    chex.assert_trees_all_equal_shapes_and_dtypes(zero, jax.tree.map(np.asarray, batch))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(zero))


@pytest.mark.parametrize('seed', range(3))
def test_the_rows_of_each_class_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 5, 40), rng.integers(0, 5, 40)
    rows = metrics.per_class(confusion_matrix(labels, predictions, labels=range(6)))  # class 5 never occurs
    expected = precision_recall_fscore_support(labels, predictions, labels=range(6), zero_division=0)
    np.testing.assert_allclose(
        [[row[k] for row in rows] for k in ('precision', 'recall', 'f1', 'support')], np.stack(expected))
    assert rows[5] == {'precision': 0, 'recall': 0, 'f1': 0, 'support': 0}


def test_a_class_never_predicted_or_never_hit_has_zeros():
    rows = metrics.per_class(np.array([[0, 3], [2, 0]]))
    assert [row['f1'] for row in rows] == [0, 0]
    assert [row['support'] for row in rows] == [3, 2]
    rows = metrics.per_class(np.array([[3, 0], [4, 0]]))
    assert rows[0] == {'precision': 3 / 7, 'recall': 1, 'f1': pytest.approx(0.6), 'support': 3}
    assert rows[1] == {'precision': 0, 'recall': 0, 'f1': 0, 'support': 4}


def test_mistakes_are_the_pairs_that_occur_most_frequent_first():
    found = metrics.mistakes(np.array([[9, 1, 0], [0, 8, 4], [2, 0, 7]]))
    assert [values.tolist() for values in found] == [[1, 2, 0], [2, 0, 1], [4, 2, 1]]
    assert [values.tolist() for values in metrics.mistakes(np.diag([3, 4]))] == [[], [], []]


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_jit_changes_nothing(self):
        logits, labels = examples(12, 6)
        mask = np.float32(np.arange(12) < 9)
        sums = self.variant(task_of(6).eval_sums)(jnp.asarray(logits), {'label': jnp.asarray(labels)}, jnp.asarray(mask))
        np.testing.assert_array_equal(sums['confusion'], confusion_matrix(labels[:9], logits[:9].argmax(1), labels=range(6)))
        assert float(sums['accuracy']) == (labels[:9] == logits[:9].argmax(1)).sum()
        assert float(sums['loss']) == pytest.approx(
            9 * log_loss(labels[:9], softmax(np.float64(logits[:9]), axis=1), labels=range(6)), rel=1e-5)
