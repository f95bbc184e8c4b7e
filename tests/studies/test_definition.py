"""Definitions of studies, and the errors of wrong ones."""

import re

import pytest

from jaxcnn import config
from jaxcnn.errors import UserError
from jaxcnn.studies import choice, grid, log_uniform, make_study, product, search, uniform
from jaxcnn.studies.definition import load_study

BASE = dict(model='lenet5', data=dict(name='digits', image_size=32), seed=3)


def test_a_grid_has_an_arm_for_each_combination():
    arms = grid({'optim.learning_rate': [0.1, 0.2], 'model': [{'name': 'lenet5', 'pool': 'max'}]})
    model = {'name': 'lenet5', 'pool': 'max'}
    assert arms == {'learning_rate=0.1, model=lenet5(pool=max)': {'optim.learning_rate': 0.1, 'model': model},
                    'learning_rate=0.2, model=lenet5(pool=max)': {'optim.learning_rate': 0.2, 'model': model}}


def test_a_grid_uses_full_paths_where_short_names_are_equal():
    assert [*grid({'eval.every': [1], 'checkpoint.every': [2]})] == ['eval.every=1, checkpoint.every=2']


def test_arms_change_the_base_and_keep_its_seed():
    study = make_study(BASE, {**product({'a': {'batch_size': 64}}, {'b': {'optim.optimizer': {'name': 'adam'}}}),
                              'other': config.make(model='lenet5', batch_size=7)},
                       seeds=2, common={'duration.epochs': 2, 'model.activation': 'relu'})
    changed, other = study.arms
    assert study.seeds == (3, 4)
    assert changed.name == changed.config.name == 'a, b'
    assert changed.folder == 'a_b'
    assert (changed.config.batch_size, changed.config.optim.optimizer.name) == (64, 'adam')
    assert (other.config.batch_size, other.config.seed) == (7, 3)
    assert {arm.config.model.args['activation'] for arm in study.arms} == {'relu'}
    assert study.compare == 'test_accuracy'
    assert study.baseline == 'a, b'


def test_a_text_that_looks_like_a_number_stays_a_text_and_a_value_stays_a_value():
    study = make_study(BASE, {'a': {'name': '1', 'optim.switch': [{'at': {'fraction': 0.5}, 'learning_rate': 0.1}]}})
    assert study.arms[0].config.optim.switch[0].learning_rate == 0.1


WRONG = {
    'no arm': (lambda: make_study(BASE, {}), 'arms: a study needs a mapping of at least one arm'),
    'list of arms': (lambda: make_study(BASE, [{}]), 'arms: a study needs a mapping'),
    'arm outside the workdir': (lambda: make_study(BASE, {'..': {}}), "'..' cannot be the name of an arm"),
    'arm with a folder of the report': (lambda: make_study(BASE, {'Figures': {}}), "'Figures' cannot be the name"),
    'seed of an arm': (lambda: make_study(BASE, {'a': {'seed': 1}}), "arm 'a': config.seed is set by the seeds"),
    'column that is no list': (lambda: make_study(BASE, {'a': {}}, columns='test_loss'), "columns: expected a list"),
    'equal values': (lambda: grid({'optim.l2': [0, 0]}), 'optim.l2: the values of a grid must differ'),
    'equal names': (lambda: product({'a': {}, 'a, b': {}}, {'b, c': {}, 'c': {}}), "have the name 'a, b, c'"),
    'baseline of a search': (lambda: make_study(BASE, search({'batch_size': choice([1, 2])}, 3), baseline='a'),
                             'a search has no arms with published values, and no baseline'),
    'equal choices': (lambda: choice([1, '1']), 'at least two values that differ'),
    'unknown field': (lambda: make_study(BASE, {'a': {'optim.learning_rte': 1}}),
                      "arm 'a': unknown field 'config.optim.learning_rte'; nearest: config.optim.learning_rate"),
    'wrong value': (lambda: make_study(BASE, {'a': {'batch_size': 0}}), "arm 'a': config.batch_size: .*0"),
    'unknown network': (lambda: make_study(BASE, {'a': {'model.name': 'lenet6'}}), "arm 'a': config.model: .*lenet5"),
    'arm that is no mapping': (lambda: make_study(BASE, {'a': 3}), "arm 'a': expected the fields .*got 3"),
    'equal folders': (lambda: make_study(BASE, {'a b': {}, 'a_b': {}}), "'a b' and 'a_b' would have the same folder"),
    'no seed': (lambda: make_study(BASE, {'a': {}}, seeds=0), 'seeds: expected at least 1, got 0'),
    'unknown measurement': (lambda: make_study(BASE, {'a': {}}, compare='test_acuracy'),
                            "arm 'a': compare: .*nearest: test_accuracy"),
    'wrong call': (lambda: make_study(BASE, {'a': {}}, compare='steps_to(3)'), 'compare: .*epochs_to'),
    'epochs to an unknown measurement': (lambda: make_study(BASE, {'a': {}}, compare="epochs_to('val_acc', 1)"),
                                         "unknown measurement 'val_acc'.*val_accuracy"),
    'unknown baseline': (lambda: make_study(BASE, {'a': {}}, baseline='b'), "baseline: unknown arm 'b'; known: a"),
    'published value of no arm': (lambda: make_study(BASE, {'a': {}}, published={'b': 1.0}), "published: unknown arm 'b'"),
    'a later source': (lambda: make_study(BASE, {'a': {'init': {'run': 'arm:b'}}, 'b': {}}),
                       "arm 'a': config.init.run: unknown earlier arm 'b'"),
    'protocol of no arm': (lambda: make_study(BASE, {'a': {}}, protocols={'x': {'b': 'dense'}}),
                           "protocols: 'x': unknown arm 'b'; known: a"),
    'protocol that is no text': (lambda: make_study(BASE, {'a': {}}, protocols={'x': 3}),
                                 "protocols: 'x'.*expected a protocol such as 'dense', got 3"),
    'unknown protocol': (lambda: make_study(BASE, {'a': {}}, protocols={'x': 'sparse'}), "protocols: 'x'.*unknown protocol"),
    'column of no protocol': (lambda: make_study(BASE, {'a': {}}, protocols={'x': 'dense'},
                                                 compare="by_protocol('test_accuracy', 'y')"), "unknown protocol 'y'.*x"),
    'later masks': (lambda: make_study(BASE, {'a': {}, 'b': {'pruning': {'masks': 'arm:c'}}, 'c': {}}),
                    "arm 'b': config.pruning.masks: unknown earlier arm 'c'; known: a"),
    'a later teacher': (lambda: make_study(BASE, {'a': {'distillation': {'teachers': ('seeds:b', 'runs/c')}}, 'b': {}}),
                        "arm 'a': config.distillation.teachers: unknown earlier arm 'b'"),
    'empty grid': (lambda: grid({'optim.l2': []}), 'optim.l2: a grid needs a list of at least one value'),
    'empty space': (lambda: search({}, trials=3), 'a search needs a space of at least one field'),
    'no trial': (lambda: search({'batch_size': choice([1, 2])}, trials=0), 'trials: expected at least 1 trial, got 0'),
    'unknown sampler': (lambda: search({'batch_size': choice([1, 2])}, 3, sampler='tpee'), "unknown sampler 'tpee'.*tpe"),
    'empty range': (lambda: uniform(2, 1), 'the first below the second, got 2 and 1'),
    'range of a logarithm': (lambda: log_uniform(0, 1), 'two numbers that are positive'),
    'field of a space': (lambda: make_study(BASE, search({'optim.rate': uniform(0, 1)}, 3)), 'unknown field.*optim'),
    'value of a space': (lambda: make_study(BASE, search({'batch_size': choice([0, 2])}, 3)), "'batch_size=0'.*got 0"),
    'search by test images': (lambda: make_study(BASE, search({'batch_size': choice([1, 2])}, 3), compare='test_accuracy'),
                              "validation split, got 'test_accuracy'; nearest: val_accuracy"),
}


@pytest.mark.parametrize(('make', 'message'), WRONG.values(), ids=WRONG)
def test_a_wrong_study_is_one_line(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert re.search(message, str(error.value)), str(error.value)
    assert '\n' not in str(error.value)


def test_a_study_file_has_forms(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('''
from jaxcnn.studies import make_study
def get_study():
    return make_study("digits_lenet5", {"a": {}})
def get_quick_study():
    return make_study("digits_lenet5", {"a": {}}, seeds=1)
def get_wrong_study():
    return 3
''')
    assert load_study(str(path)).seeds == (0, 1, 2)
    quick = load_study(f'{path}:quick', ['batch_size=7'], seeds=2)
    assert (quick.title, quick.seeds, quick.arms[0].config.batch_size) == ('mine (quick)', (0, 1), 7)
    with pytest.raises(UserError, match=r'has no get_quik_study.*get_quick_study'):
        load_study(f'{path}:quik')
    with pytest.raises(UserError, match='its study is a int'):
        load_study(f'{path}:wrong')


ASSIGNED = {'seed=3': '--config.seed: is set by the seeds of the study',
            'model=alexnet': "--config.model: is set by arm 'a'", 'model.pool=mx': "arm 'a': config.model: .*mx"}


@pytest.mark.parametrize(('assignment', 'message'), ASSIGNED.items())
def test_a_field_that_the_study_sets_is_not_set_for_all_arms(tmp_path, assignment, message):
    path = tmp_path / 'mine.py'
    path.write_text('from jaxcnn.studies import make_study\ndef get_study():\n'
                    '    return make_study("digits_lenet5", {"a": {"model.activation": "tanh"}})\n')
    with pytest.raises(UserError, match=message):
        load_study(str(path), [assignment])


@pytest.mark.parametrize('path', config.shipped_configs('study'))
@pytest.mark.parametrize('form', ['', ':quick'])
def test_shipped_studies_are_right(path, form):
    assert load_study(path + form).arms
