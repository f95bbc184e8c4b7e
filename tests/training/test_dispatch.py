"""The steps of each dispatch, and the queue of dispatches that are under way."""

import pytest

from jaxcnn import config as cfg
from jaxcnn.config import Duration
from jaxcnn.timeline import Timeline
from jaxcnn.training import dispatch
from jaxcnn.training.dispatch import Dispatch, DispatchQueue, dispatch_end


def dispatch_ends(total, steps_per_dispatch, boundaries=(), variable_length=True, first=0, **fields):
    """Return the ends of all dispatches of a run from step `first` on."""
    timeline = Timeline(cfg.parse(dict(duration=dict(steps=total), batch_size=10, **fields)), 100)
    durations, ends = [Duration(unit, value) for unit, value in boundaries], [first]
    while ends[-1] < total:
        ends.append(dispatch_end(timeline, ends[-1], steps_per_dispatch, durations, variable_length))
    return ends[1:]


def test_full_dispatches_end_at_multiples_and_the_last_one_at_the_end_of_the_run():
    assert dispatch_ends(12, 5) == [5, 10, 12]
    assert dispatch_ends(12, 1) == list(range(1, 13))
    assert dispatch_ends(12, 50) == [12]


@pytest.mark.parametrize(('boundary', 'ends'), [
    (('steps', 7), [5, 7, 10, 14, 15, 20]), (('epochs', 1.2), [5, 10, 12, 15, 20]),
    (('fraction', 0.4), [5, 8, 10, 15, 16, 20])])
def test_dispatches_end_at_evaluations_and_checkpoints(boundary, ends):
    assert dispatch_ends(20, 5, [boundary]) == ends
    assert dispatch_ends(20, 5, [('steps', 100), boundary]) == dispatch_ends(20, 5, [boundary, ('steps', 100)]) == ends


def test_dispatches_end_at_permanent_checkpoints():
    fields = dict(checkpoint=dict(at=[dict(steps=7), dict(epochs=1.2), dict(fraction=0.25), dict(epochs=64)]))
    assert dispatch_ends(20, 20, **fields) == [5, 7, 12, 20]
    assert dispatch_ends(20, 5, **fields, variable_length=False, first=5) == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20]
    assert dispatch_ends(20, 20, **fields, first=7) == [12, 20]


@pytest.mark.parametrize('fields', [
    dict(batch_schedule=[(dict(steps=7), 20)]), dict(freeze_bn=dict(steps=7)),
    dict(data=dict(train_size=[(dict(steps=7), 20)])),
    dict(optim=dict(switch=[dict(at=dict(steps=7), learning_rate=0.1)]))],
    ids=['batch size', 'BatchNorm', 'image size', 'optimizer'])
def test_dispatches_end_at_phases(fields):
    assert dispatch_ends(12, 5, **fields) == [5, 7, 10, 12]


def test_without_variable_length_dispatches_that_are_not_full_have_one_step():
    assert dispatch_ends(12, 5, [('steps', 7)], variable_length=False) == [5, 6, 7, 8, 9, 10, 11, 12]
    assert dispatch_ends(13, 3, [('steps', 6)], variable_length=False) == [3, 6, 9, 12, 13]


@pytest.mark.parametrize('variable_length', [True, False])
def test_a_resumed_run_has_the_same_dispatches(variable_length):
    ends = dispatch_ends(40, 6, [('steps', 9), ('epochs', 1)], variable_length)
    for i, end in enumerate(ends):
        assert dispatch_ends(40, 6, [('steps', 9), ('epochs', 1)], variable_length, first=end) == ends[i + 1:]


# the queue


class Scalar:
    """A value on the device."""

    def __init__(self):
        self.ready = False

    def block_until_ready(self):
        self.ready = True
        return self

    def is_ready(self):
        return self.ready


def append(queue, start, is_logged=False):
    queue.append(Dispatch(start, 2, 64, {'loss': Scalar()}, is_logged))


def pop_starts(queue, is_display_due=lambda: False):
    return [d.start for d in queue.pop_due(is_display_due)]


@pytest.mark.parametrize(('num_bytes', 'max_waiting'), [
    (0, dispatch.MAX_DISPATCHES), (dispatch.MAX_WAITING_BYTES // 3, 3), (2 * dispatch.MAX_WAITING_BYTES, 0)])
def test_memory_limits_the_number_of_waiting_dispatches(num_bytes, max_waiting):
    queue = DispatchQueue()
    queue.limit_memory(num_bytes)
    assert queue.max_waiting == max_waiting
    for start in range(0, 20, 2):
        append(queue, start)
    ready = [queue.popleft().scalars['loss'].ready for _ in range(len(queue))]
    assert ready == [True] * (10 - max_waiting) + [False] * max_waiting


def test_a_logged_dispatch_is_due_when_the_next_one_is_enqueued():
    queue = DispatchQueue()
    for start, is_logged, due in ((0, False, []), (2, True, []), (4, False, [0, 2]), (6, True, []), (8, True, [4, 6]),
                                  (10, False, [8])):
        append(queue, start, is_logged)
        assert pop_starts(queue) == due
    assert len(queue) == 1


def test_ready_dispatches_are_due_when_the_display_is():
    queue = DispatchQueue()
    for start in range(0, 12, 2):
        append(queue, start)  # waits for the first two
    assert pop_starts(queue) == []
    answers = iter([True, False])
    assert pop_starts(queue, lambda: next(answers)) == [0]
    assert pop_starts(queue, lambda: True) == [2]
