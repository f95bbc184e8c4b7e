"""A Timeline agrees with counting step by step, and refuses in one line what does not fit the run."""

import pytest

from jaxcnn import config
from jaxcnn.config import Duration, parse
from jaxcnn.errors import UserError
from jaxcnn.timeline import Phase, Timeline, displayed_epoch


def timeline(num_train=100, **fields):
    return Timeline(parse({'duration': {'epochs': 10}, 'batch_size': 10, **fields}), num_train)


# num_train, fields: whole and broken epochs, growing and shrinking batches, lengths in steps and in epochs
RUNS = {
    'whole': (100, {}),
    'broken': (97, {'batch_size': 16}),
    'steps': (97, {'batch_size': 16, 'duration': {'steps': 37}}),
    'part of an epoch': (1000, {'batch_size': 7, 'duration': {'epochs': 0.3}}),
    'growing': (97, {'batch_schedule': (({'epochs': 3}, 20), ({'epochs': 7}, 50))}),
    'shrinking': (97, {'batch_size': 50, 'batch_schedule': (({'epochs': 3}, 20), ({'fraction': 0.7}, 6))}),
    'much larger at the end': (100, {'batch_size': 5, 'batch_schedule': (({'epochs': 9}, 50),)}),
    'batch above the data': (10, {'batch_size': 32}),
}


@pytest.fixture(params=RUNS)
def run(request):
    num_train, fields = RUNS[request.param]
    return timeline(num_train, **fields)


def batch_sizes(t):
    """The batch size of every step, from the phases alone."""
    return [t.phase(step).batch_size for step in range(t.total)]


def first_step_at(t, duration):
    """The smallest number of steps, at least 1, after which `duration` has passed, found by counting."""
    unit, value = duration.unit, duration.value
    if unit == 'fraction':
        length = t.config.duration
        unit, value = length.unit, value * length.value
    images, step, sizes = 0, 0, batch_sizes(t)
    while True:
        passed = step if unit == 'steps' else images / t.num_train
        if step and passed >= value - 1e-9:
            return step
        images += sizes[min(step, t.total - 1)]
        step += 1


def test_examples_count_the_batches(run):
    sizes = batch_sizes(run)
    assert [run.examples(step) for step in range(run.total + 1)] == [sum(sizes[:step]) for step in range(run.total + 1)]


def test_a_run_in_epochs_passes_each_image_that_often_and_no_batch_more(run):
    if run.config.duration.unit == 'epochs':
        needed = run.config.duration.value * run.num_train
        assert run.examples(run.total) >= needed - 1e-6
        assert run.examples(run.total - 1) < needed
    else:
        assert run.total == run.config.duration.value


def test_epochs_are_passed_images_over_their_number(run):
    for step in (0, 1, run.total // 2, run.total):
        assert run.epoch(step) == sum(batch_sizes(run)[:step]) / run.num_train


@pytest.mark.parametrize(('num_train', 'fields', 'multiple', 'line'), [
    (12, dict(batch_size=128, duration=dict(epochs=2)), 1, 'config.duration: 2 epochs are 24 images, which whole steps of '
     '128 round up to 128 images, 10.67 epochs; config.batch_size=12 gives exactly 2'),
    (12, dict(batch_size=128, duration=dict(epochs=2)), 8, 'config.batch_size=8 gives exactly 2'),
    (13, dict(batch_size=8, duration=dict(epochs=1)), 4, 'a smaller batch size comes nearer'),
    (100, dict(duration=dict(epochs=0.25)), 1, '30 images, 0.3 epochs; config.batch_size=5 gives exactly 0.25'),
    (100, dict(duration=dict(epochs=2), batch_schedule=(({'epochs': 1}, 70),)), 1, 'steps of 70 round up to 240 images'),
    (45000, dict(batch_size=128), 1, ''), (12, dict(batch_size=128, duration=dict(steps=1)), 1, '')])
def test_a_run_much_longer_than_its_epochs_says_so(num_train, fields, multiple, line):
    found = timeline(num_train, **fields).rounding_message(multiple)
    assert line in found
    assert bool(line) == bool(found)
    if 'exactly' in line:
        size = int(found.split('batch_size=')[1].split()[0])
        t = timeline(num_train, **{**fields, 'batch_size': size})
        assert t.epoch(t.total) == fields['duration']['epochs']


@pytest.mark.parametrize('duration', [
    Duration('steps', 1), Duration('steps', 5), Duration('epochs', 0.01), Duration('epochs', 0.25), Duration('epochs', 1),
    Duration('epochs', 3), Duration('epochs', 3.1), Duration('epochs', 7), Duration('fraction', 0.1),
    Duration('fraction', 0.5), Duration('fraction', 0.701), Duration('fraction', 1)], ids=str)
def test_a_duration_has_passed_at_the_first_step_where_counting_says_so(run, duration):
    assert run.steps(duration) == first_step_at(run, duration)


def test_a_fraction_is_of_the_run():
    t = timeline()
    assert t.total == 100
    assert t.steps(Duration('fraction', 0.25)) == 25
    assert t.steps(Duration('fraction', 0.251)) == 26
    assert t.steps(Duration('fraction', 1e-9)) == 1
    assert timeline(duration={'steps': 30}).steps(Duration('fraction', 0.1)) == 3  # 30 * 0.1 is 3.0000000000000004


EVERY = [Duration('steps', 1), Duration('steps', 7), Duration('epochs', 1), Duration('epochs', 0.3),
         Duration('epochs', 0.01), Duration('fraction', 0.1), Duration('fraction', 0.01), Duration('epochs', 50)]


def multiples(t, every):
    """Steps at which `every` has passed a whole number of times, with the end of the run, by counting."""
    found, count = {t.total}, 1
    while (at := first_step_at(t, Duration(every.unit, count * every.value))) < t.total:
        found.add(at)
        count += 1
    return found


@pytest.mark.parametrize('every', EVERY, ids=str)
def test_multiples_are_those_of_counting(run, every):
    expected = multiples(run, every)
    assert [s for s in range(run.total + 1) if run.is_multiple(s, every)] == sorted(expected)
    for step in range(run.total):
        assert run.next_multiple(step, every) == min(s for s in expected if s > step)


@pytest.mark.parametrize('every', EVERY, ids=str)
def test_an_interval_of_metrics_ends_at_each_multiple_and_in_each_epoch(run, every):
    t = timeline(run.num_train, **{**config.to_dict(run.config), 'log_every': config.to_dict(every)})
    logged = [step for step in range(1, t.total + 1) if t.next_logged(step - 1) == step]
    assert set(logged) >= multiples(t, every)
    ends = sorted({first_step_at(t, Duration('epochs', n + 1)) for n in range(int(t.epoch(t.total)))})
    for begin, end in zip([0, *ends], ends, strict=False):
        assert any(begin < step <= end for step in logged)
    assert set(logged) <= multiples(t, every) | set(ends)
    for step in [t.total // 2, 0, *range(t.total)]:  # whatever was asked before
        assert t.next_logged(step) == min(s for s in logged if s > step)


def test_the_epoch_that_is_shown_leaves_out_what_the_last_batch_has_of_the_next():
    assert [displayed_epoch(e, Duration('epochs', 40)) for e in (39.99, 40.01, 40.99, 41.0)] == [39.99, 40, 40, 41.0]
    assert displayed_epoch(40.01, Duration('steps', 40)) == 40.01


def test_multiples_do_not_depend_on_what_was_asked_before():
    every = Duration('epochs', 0.3)
    asked = timeline(97, batch_size=16)
    steps = [5, 40, 0, 39, 41, 2, 59, 1]
    assert [asked.next_multiple(s, every) for s in steps] == [
        timeline(97, batch_size=16).next_multiple(s, every) for s in steps]


def test_step_zero_is_no_multiple():
    assert not timeline().is_multiple(0, Duration('steps', 1))


def test_phases_begin_where_anything_changes():
    t = timeline(batch_schedule=(({'epochs': 2}, 20), ({'epochs': 6}, 50)), freeze_bn={'epochs': 8},
                 optim={'switch': [{'at': {'epochs': 4}, 'optimizer': 'adam'}, {'at': {'epochs': 6}}]})
    # epochs 0-2: 10 a step, 20 steps; 2-6: 20 a step, 20 steps; 6-10: 50 a step, 8 steps
    assert t.total == 48
    assert t.stages == [0, 30, 40]
    assert t.phases == [
        Phase(0, 10, 0, False), Phase(20, 20, 0, False), Phase(30, 20, 1, False),
        Phase(40, 50, 2, False), Phase(44, 50, 2, True)]
    assert [t.phase(s).start for s in (0, 19, 20, 39, 40, 47)] == [0, 0, 20, 30, 40, 44]
    assert [t.phase_end(s) for s in (0, 19, 20, 43, 44, 47)] == [20, 20, 30, 44, 48, 48]


@pytest.mark.parametrize('num_train', [97, 100, 10])
def test_alternating_image_sizes_follow_the_epoch_of_the_first_image_of_a_step(num_train):
    t = timeline(num_train, batch_size=32, batch_schedule=(({'epochs': 2.5}, 20),), data={'train_size': (18, 22, 0)})
    sizes = [(18, 22, 0)[int(t.epoch(step)) % 3] for step in range(t.total)]
    assert [t.phase(step).image_size for step in range(t.total)] == sizes
    assert {p.program for p in t.phases} == {Phase(0, p.batch_size, 0, False, p.image_size) for p in t.phases}


def test_image_sizes_begin_at_their_moments():
    t = timeline(data={'train_size': (({'epochs': 0}, 18), ({'steps': 12}, 20), ({'fraction': 0.5}, 0))})
    assert t.phases == [Phase(0, 10, 0, False, 18), Phase(12, 10, 0, False, 20), Phase(50, 10, 0, False, 0)]
    later = timeline(data={'train_size': (({'steps': 7}, 20),)})
    assert later.phases == [Phase(0, 10, 0, False, 0), Phase(7, 10, 0, False, 20)]
    assert {p.image_size for p in timeline(data={'train_size': (20,)}).phases} == {20}


def test_freezing_splits_the_run():
    assert timeline(freeze_bn={'steps': 1}).phases == [Phase(0, 10, 0, False), Phase(1, 10, 0, True)]


@pytest.mark.parametrize('unit', ['steps', 'epochs', 'fraction'])
def test_freezing_may_begin_with_the_run(unit):
    assert timeline(freeze_bn={unit: 0}, batch_schedule=(({'epochs': 5}, 20),)).phases == [
        Phase(0, 10, 0, True), Phase(50, 20, 0, True)]


@pytest.mark.parametrize(('fields', 'line'), [
    ({'batch_schedule': (({'epochs': 2}, 0),)}, r'config\.batch_schedule\[0\]: expected a batch size of at least 1.*0'),
    ({'batch_schedule': (({'epochs': 3}, 20), ({'epochs': 3}, 30))},
     r'config\.batch_schedule\[1\]: begins at step 30, not after the one before it'),
    ({'batch_schedule': (({'epochs': 3}, 20), ({'epochs': 2}, 30))}, r'config\.batch_schedule\[1\]: begins at step 20'),
    ({'optim': {'switch': [{'at': {'epochs': 10}}]}}, r'config\.optim\.switch\[0\]\.at: step 100 .* step 100'),
    ({'optim': {'switch': [{'at': {'epochs': 3}}, {'at': {'epochs': 2}}]}}, r'config\.optim\.switch\[1\]\.at: step 20'),
    ({'freeze_bn': {'epochs': 11}}, r'config\.freeze_bn: begins at step 110, but the run ends at step 100'),
    ({'batch_schedule': (({'epochs': 12}, 20),)}, r'config\.batch_schedule\[0\]: begins at step 120, but'),
    ({'data': {'train_size': (({'steps': 5}, 20), ({'epochs': 0.5}, 24))}}, r'data\.train_size\[1\]: begins at step 5, not'),
    ({'data': {'train_size': (({'epochs': 10}, 20),)}}, r'config\.data\.train_size\[0\]: begins at step 100, but the run'),
    ({'duration': {'fraction': 0.5}}, r'config\.duration: the length of the run cannot be a fraction of itself'),
])
def test_moments_out_of_order_are_reported(fields, line):
    with pytest.raises(UserError, match=line) as error:
        timeline(**fields)
    assert '\n' not in str(error.value)
