"""The schema refuses what is wrong in one line."""

import json
import math
import os
import subprocess
import sys

import ml_collections
import pytest

from jaxcnn import cache_folder, experiment
from jaxcnn import config as cfg
from jaxcnn.config import Choice, Duration, parse
from jaxcnn.config.schema import RENAMED_FIELDS
from jaxcnn.errors import UserError


def one_line(error) -> str:
    text = str(error.value)
    assert '\n' not in text
    return text


# ---- parse, make


def test_an_empty_config_has_every_default():
    assert parse({}) == cfg.Config()
    assert parse(cfg.make()) == cfg.Config()


def test_parse_types_what_a_config_file_gives():
    config = parse({
        'duration': {'steps': 7}, 'model': {'name': 'lenet5', 'pool': 'max'}, 'batch_schedule': [[{'epochs': 2}, 64]],
        'data': {'train_size': [[{'epochs': 0}, 24], [{'steps': 9}, 0]]},
        'optim': {'optimizer': 'adam', 'learning_rate': 1, 'warmup': {'fraction': 0.1},
                   'switch': [{'at': {'steps': 3}, 'optimizer': {'name': 'sgd', 'momentum': 0.5}}]}})
    assert config.duration == Duration('steps', 7)
    assert config.model == Choice('lenet5', {'pool': 'max'})
    assert config.batch_schedule == ((Duration('epochs', 2), 64),)
    assert config.data.train_size == ((Duration('epochs', 0), 24), (Duration('steps', 9), 0))
    assert config.optim.optimizer == Choice('adam', {})
    assert config.optim.warmup == Duration('fraction', 0.1)
    assert config.optim.switch == (cfg.SwitchConfig(at=Duration('steps', 3), optimizer=Choice('sgd', {'momentum': 0.5})),)
    assert type(config.optim.learning_rate) is float
    assert config.optim.learning_rate == 1.0
    assert parse(config) is config


def test_make_gives_a_config_dict_with_every_field_that_can_be_changed():
    made = cfg.make(batch_size=32, data={'name': 'mnist'})
    assert isinstance(made, ml_collections.ConfigDict)
    assert made.batch_size == 32
    assert made.data.name == 'mnist'
    assert made.data.val_fraction is None
    made.optim.learning_rate = 0.5
    made.duration = {'steps': 5}
    made.optim.warmup = {'epochs': 1}
    config = parse(made)
    assert (config.optim.learning_rate, config.duration, config.optim.warmup) == (
        0.5, Duration('steps', 5), Duration('epochs', 1))


def test_make_refuses_what_parse_refuses():
    with pytest.raises(UserError, match=r'config\.batch_sise.*nearest: config\.batch_size'):
        cfg.make(batch_sise=3)


@pytest.mark.parametrize(('fields', 'line'), [
    ({'bathc_size': 3}, r"unknown field 'config\.bathc_size'; nearest: config\.batch_size"),
    ({'optim': {'learning_rat': 3}}, r"'config\.optim\.learning_rat'; nearest: config\.optim\.learning_rate"),
    ({'optim': {'switch': [{'optimiser': 'adam'}]}},
     r"'config\.optim\.switch\[0\]\.optimiser'; nearest: config\.optim\.switch\[0\]\.optimizer"),
    ({'data': {'balance': 'sampled'}}, r"config\.data\.balance: .*'sampled'; nearest: sampling"),
    ({'parallel': {'backend': 'jit'}}, r"config\.parallel\.backend: .*'jit'; known: pmap, sharded"),
])
def test_an_unknown_name_is_reported_with_the_nearest(fields, line):
    with pytest.raises(UserError, match=line) as error:
        parse(fields)
    one_line(error)


def test_a_renamed_field_is_reported_by_its_new_name():
    line = r'^config\.eval\.views is now config\.eval\.tta$'
    with pytest.raises(UserError, match=line):
        parse({'eval': {'views': 'flip'}})
    with pytest.raises(UserError, match=line):
        cfg.override({}, ['eval.views=flip'])
    for old, new in RENAMED_FIELDS.items():
        parse(cfg.override({}, [f'{new.removeprefix("config.")}=0.5']))
        with pytest.raises(UserError, match=f'{old} is now {new}'):
            cfg.override({}, [f'{old.removeprefix("config.")}=0.5'])


@pytest.mark.parametrize(('fields', 'line'), [
    ({'batch_size': '8'}, r"config\.batch_size: expected a whole number, got '8'"),
    ({'batch_size': 8.0}, r'config\.batch_size: expected a whole number, got 8\.0'),
    ({'batch_size': True}, r'config\.batch_size: expected a whole number, got True'),
    ({'batch_size': None}, r'config\.batch_size: expected a whole number, got None'),
    ({'optim': {'learning_rate': '0.1'}}, r"config\.optim\.learning_rate: expected a number, got '0\.1'"),
    ({'optim': {'l2': False}}, r'config\.optim\.l2: expected a number, got False'),
    ({'parallel': {'bn_sync': 1}}, r'config\.parallel\.bn_sync: expected True or False, got 1'),
    ({'data': {'name': 3}}, r'config\.data\.name: expected a string, got 3'),
    ({'data': 'mnist'}, r"config\.data: expected a group of fields, got 'mnist'"),
    ({'model': 3}, r'config\.model: expected a name with arguments'),
    ({'model': {'pool': 'max'}}, r'config\.model: expected a name with arguments'),
    ({'batch_schedule': 3}, r'config\.batch_schedule: expected a sequence, got 3'),
    ({'batch_schedule': [[{'epochs': 3}]]}, r'config\.batch_schedule\[0\]: expected 2 entries'),
    ({'batch_schedule': [[{'epochs': 3}, 2.5]]}, r'config\.batch_schedule\[0\]\[1\]: expected a whole number'),
    ({'data': {'train_size': 24}}, r'config\.data\.train_size: expected a sequence, got 24'),
    ({'data': {'train_size': [24, 'big']}}, r"config\.data\.train_size\[1\]: expected a whole number, got 'big'"),
    ({'data': {'train_size': [24, -1]}}, r'config\.data\.train_size\[1\]: expected at least 0, got -1'),
    ({'data': {'train_size': [24, [{'epochs': 1}, 32]]}}, r'config\.data\.train_size: expected numbers alone, which'),
    (None, r'config: expected a group of fields, got None'),
])
def test_a_wrong_type_is_reported_with_field_and_value(fields, line):
    with pytest.raises(UserError, match=line) as error:
        parse(fields)
    one_line(error)


@pytest.mark.parametrize(('good', 'bad', 'line'), [
    ({'batch_size': 1}, {'batch_size': 0}, r'config\.batch_size: expected at least 1, got 0'),
    ({'seed': 0}, {'seed': -1}, r'config\.seed: expected at least 0, got -1'),
    ({'data': {'val_fraction': 0.9}}, {'data': {'val_fraction': 0.91}},
     r'config\.data\.val_fraction: expected at most 0\.9, got 0\.91'),
    ({'optim': {'learning_rate': 1e-9}}, {'optim': {'learning_rate': 0.0}},
     r'config\.optim\.learning_rate: expected a finite number above 0, got 0\.0'),
    ({'optim': {'learning_rate': 1e9}}, {'optim': {'learning_rate': math.inf}}, r'config\.optim\.learning_rate'),
    ({'optim': {'l2': 0.0}}, {'optim': {'l2': math.nan}}, r'config\.optim\.l2: expected at least 0, got nan'),
    ({'optim': {'ema_decay': 0.9}}, {'optim': {'ema_decay': 1.0}}, r'config\.optim\.ema_decay'),
    ({'optim': {'accumulate': 1}}, {'optim': {'accumulate': 0}}, r'config\.optim\.accumulate: expected at least 1'),
    ({'checkpoint': {'keep': 1}}, {'checkpoint': {'keep': 0}}, r'config\.checkpoint\.keep: expected at least 1'),
])
def test_a_range_holds_its_ends_and_nothing_beyond(good, bad, line):
    parse(good)
    with pytest.raises(UserError, match=line) as error:
        parse(bad)
    one_line(error)


def test_fields_that_need_one_another():
    ema = {'checkpoint': {'metric': 'val_ema_loss'}}
    experiment.check(parse({**ema, 'optim': {'ema_decay': 0.9}}))
    with pytest.raises(UserError, match=r"config\.checkpoint\.metric: 'val_ema_loss' needs config\.optim\.ema_decay"):
        experiment.check(parse(ema))
    early = {'checkpoint': {'patience': 3}}
    parse(early)
    with pytest.raises(UserError, match=r'config\.checkpoint\.patience: .* config\.data\.val_fraction above 0'):
        parse({**early, 'data': {'val_fraction': 0.0}})


# ---- durations


@pytest.mark.parametrize(('value', 'line'), [
    ({'epochs': 0}, r'config\.duration\.epochs: a duration must be positive, got 0'),
    ({'epochs': -2}, r'config\.duration\.epochs: a duration must be positive, got -2'),
    ({'epochs': math.nan}, r'config\.duration\.epochs: a duration must be positive, got nan'),
    ({'epochs': math.inf}, r'config\.duration\.epochs: a duration must be positive, got inf'),
    ({'steps': 2.5}, r'config\.duration\.steps: expected a whole number, got 2\.5'),
    ({'epoch': 2}, r"config\.duration: unknown unit of duration 'epoch'; nearest: epochs"),
    ({'hours': 2}, r"config\.duration: unknown unit of duration 'hours'"),
    ({'epochs': '2'}, r"config\.duration\.epochs: expected a number, got '2'"),
    ({'epochs': True}, r'config\.duration\.epochs: expected a number, got True'),
    ({'epochs': 1, 'steps': 3}, r'config\.duration: expected a duration in one unit'),
    ({}, r'config\.duration: expected a duration in one unit'),
    (3, r'config\.duration: expected a duration in one unit, as in dict\(epochs=30\), got 3'),
    (None, r'config\.duration: expected a duration in one unit'),
])
def test_a_wrong_duration_is_refused(value, line):
    with pytest.raises(UserError, match=line) as error:
        parse({'duration': value})
    one_line(error)


def test_fractional_epochs_and_whole_steps_are_durations():
    assert parse({'duration': {'epochs': 0.5}}).duration == Duration('epochs', 0.5)
    assert parse({'duration': {'steps': 3.0}}).duration == Duration('steps', 3)
    assert parse({'optim': {'warmup': None}}).optim.warmup is None


# ---- there and back


FULL = {
    'name': 'x', 'seed': 3, 'duration': {'epochs': 2.5}, 'batch_size': 16,
    'batch_schedule': (({'epochs': 1}, 32), ({'steps': 900}, 64)),
    'model': {'name': 'shallow_cnn', 'widths': (1, 2, 3, 4), 'dropout': 0.25},
    'data': {'name': 'mnist', 'val_fraction': 0.2, 'train_size': (24, 28)},
    'optim': {'optimizer': {'name': 'adam', 'b1': 0.8}, 'warmup': {'fraction': 0.05}, 'ema_decay': 0.99,
               'schedule': {'name': 'step', 'at': [{'epochs': 1}, {'fraction': 0.9}], 'factor': 0.5},
               'switch': ({'at': {'fraction': 0.5}, 'learning_rate': 0.01}, {'at': {'epochs': 2}, 'schedule': 'constant'})},
    'freeze_bn': {'epochs': 2}, 'checkpoint': {'every': {'steps': 10}, 'metric': 'val_ema_loss'}}


def test_a_config_survives_json():
    config = parse(FULL)
    text = json.dumps(cfg.to_dict(config))
    again = parse(json.loads(text))
    assert again == config
    assert json.dumps(cfg.to_dict(again)) == text
    assert again.optim.switch[0].learning_rate == 0.01
    assert again.optim.switch[1].at == Duration('epochs', 2)
    assert again.model.args['widths'] == [1, 2, 3, 4]


def test_a_config_survives_a_config_dict():
    assert parse(cfg.make(**FULL)) == parse(FULL)


def test_differences_name_what_could_change_the_result_and_nothing_else():
    old = parse(FULL)
    assert cfg.differences(old, parse(FULL)) == []
    new = parse({**FULL, 'seed': 4, 'name': 'other', 'duration': {'steps': 3},
                 'model': {'name': 'shallow_cnn', 'widths': (1, 2, 3, 4), 'dropout': 0.5},
                 'data': {**FULL['data'], 'dir': '/elsewhere', 'workers': 2},
                 'checkpoint': {'metric': 'val_ema_loss', 'keep': 9}})
    assert [str(change) for change in cfg.differences(old, new)] == [
        'config.seed: 3 -> 4',
        "config.duration: {'epochs': 2.5} -> {'steps': 3}",
        'config.model.dropout: 0.25 -> 0.5']
    assert cfg.differences(old, new)[0] == cfg.Difference('config.seed', 3, 4)


# ---- the command line


def overridden(fields, *assignments):
    return parse(cfg.override(cfg.make(**fields), assignments))


def test_assignments_reach_every_kind_of_field():
    config = overridden({}, 'batch_size=64', 'optim.learning_rate=1e-3', 'parallel.bn_sync=False', 'data.name=mnist',
                        'data.augment=pad_crop(4)|flip_lr', 'checkpoint.metric=val_loss', 'name=12',
                        'model.name=shallow_cnn', 'model.widths=(1,2,3,4)', 'model.activation=elu', 'eval.every.steps=9')
    assert config.batch_size == 64
    assert config.optim.learning_rate == 1e-3
    assert config.parallel.bn_sync is False
    assert config.data.name == 'mnist'
    assert config.data.augment == 'pad_crop(4)|flip_lr'
    assert config.checkpoint.metric == 'val_loss'
    assert config.name == '12'
    assert config.model == Choice('shallow_cnn', {'widths': [1, 2, 3, 4], 'activation': 'elu'})
    assert config.eval.every == Duration('steps', 9)


def test_an_assigned_duration_replaces_the_unit_whole():
    assert overridden({'duration': {'epochs': 30}}, 'duration.steps=5').duration == Duration('steps', 5)
    assert overridden({}, "duration={'steps': 5}").duration == Duration('steps', 5)
    assert overridden({}, 'optim.warmup.epochs=0.5').optim.warmup == Duration('epochs', 0.5)
    assert overridden({'optim': {'warmup': {'steps': 3}}}, 'optim.warmup=None').optim.warmup is None


def test_another_name_drops_the_arguments_of_the_one_before():
    fields = {'optim': {'optimizer': {'name': 'sgd', 'momentum': 0.9, 'nesterov': True}}}
    assert overridden(fields, 'optim.optimizer.name=adam').optim.optimizer == Choice('adam', {})
    assert overridden(fields, 'optim.optimizer=adam').optim.optimizer == Choice('adam', {})
    assert overridden(fields, 'optim.optimizer.name=adam', 'optim.optimizer.b1=0.8').optim.optimizer == Choice(
        'adam', {'b1': 0.8})
    assert overridden(fields, "optim.optimizer={'name': 'rmsprop', 'decay': 0.8}").optim.optimizer == Choice(
        'rmsprop', {'decay': 0.8})


def test_the_same_name_and_an_argument_keep_the_other_arguments():
    fields = {'optim': {'optimizer': {'name': 'sgd', 'momentum': 0.9, 'nesterov': True}}}
    assert overridden(fields, 'optim.optimizer.name=sgd').optim.optimizer == Choice(
        'sgd', {'momentum': 0.9, 'nesterov': True})
    assert overridden(fields, "optim.optimizer=dict(name='adam', b1=0.8)").optim.optimizer == Choice('adam', {'b1': 0.8})
    assert overridden(fields, 'batch_schedule=((dict(epochs=5), 256),)').batch_schedule == ((Duration('epochs', 5), 256),)
    step = overridden(fields, "optim.schedule=dict(name='step', at=[dict(epochs=1), {'steps': 9}])").optim.schedule
    assert step == Choice('step', {'at': [{'epochs': 1}, {'steps': 9}]})
    group, = overridden(fields, "optim.groups=[dict(match='bias', until=dict(steps=3))]").optim.groups
    assert (group.match, group.until) == ('bias', Duration('steps', 3))
    assert overridden(fields, 'optim.optimizer.momentum=0.5').optim.optimizer == Choice(
        'sgd', {'momentum': 0.5, 'nesterov': True})


def test_tuples_are_assigned_whole():
    config = overridden({}, "batch_schedule=(({'epochs': 2}, 64), ({'epochs': 4}, 128))",
                        "optim.switch=({'at': {'steps': 3}, 'optimizer': 'adam'},)")
    assert config.batch_schedule == ((Duration('epochs', 2), 64), (Duration('epochs', 4), 128))
    assert config.optim.switch == (cfg.SwitchConfig(at=Duration('steps', 3), optimizer=Choice('adam')),)
    assert overridden({'batch_schedule': (({'epochs': 2}, 64),)}, 'batch_schedule=()').batch_schedule == ()


def test_a_group_that_is_none_begins_with_its_defaults():
    config = overridden({}, 'whiten.match=Conv_0/kernel', 'optim.lookahead.every=3')
    assert config.whiten == cfg.WhitenConfig(match='Conv_0/kernel')
    assert config.optim.lookahead == cfg.LookaheadConfig(every=3)


def test_an_assignment_leaves_the_given_config_alone():
    made = cfg.make(batch_size=32)
    cfg.override(made, ['batch_size=64', 'duration.steps=3', 'optim.optimizer.momentum=0.1'])
    assert parse(made) == parse({'batch_size': 32})


@pytest.mark.parametrize(('assignment', 'line'), [
    ('batch_sise=3', r"unknown field 'config\.batch_sise'; nearest: config\.batch_size"),
    ('optim.lerning_rate=3', r"'config\.optim\.lerning_rate'; nearest: config\.optim\.learning_rate"),
    ('batch_size.x=3', r"config\.batch_size: has no field 'x'"),
    ('duration.epochs.x=3', r"config\.duration: has no field 'epochs\.x'"),
    ('optim.switch.0.at=3', r"config\.optim\.switch: has no field '0\.at'"),
    ('batch_size', r'--config\.batch_size: expected --config\.batch_size=VALUE'),
    ('batch_size=many', r"config\.batch_size: expected a whole number, got 'many'"),
    ('duration.epoch=3', r"unknown unit of duration 'epoch'; nearest: epochs"),
    ('data=mnist', r"config\.data: expected a group of fields, got 'mnist'; config\.data\.name=mnist names it"),
    ('data=mnist data.val_fraction=0', r"config\.data: expected a group of fields, got 'mnist'"),
    ('batch_size=__import__("os").getpid()', r'config\.batch_size: expected a whole number'),
])
def test_a_wrong_assignment_is_reported(assignment, line):
    with pytest.raises(UserError, match=line) as error:
        cfg.override({}, assignment.split())
    one_line(error)


def test_a_value_that_is_no_literal_is_refused_without_a_traceback():
    with pytest.raises(UserError, match='batch_schedule'):
        cfg.override({}, ['batch_schedule={[]: 1}'])


# ---- files


def write(path, text):
    path.write_text(text)
    return str(path)


def test_load_takes_the_name_of_the_file_and_the_assignments(tmp_path):
    path = write(tmp_path / 'tiny.py', 'from jaxcnn.config import make\n\n\ndef get_config():\n'
                 '    return make(batch_size=8, duration=dict(steps=4))\n')
    config = cfg.load(path, ['batch_size=16'])
    assert config == parse({'name': 'tiny', 'batch_size': 16, 'duration': {'steps': 4}})
    assert cfg.load(path, ['name=mine']).name == 'mine'


@pytest.mark.parametrize(('text', 'line'), [
    ('def get_config():\n    return 1 / 0\n', r'bad\.py, line 2: ZeroDivisionError: division by zero'),
    ('def get_config(:\n', r'bad\.py: SyntaxError'),
    ('x = 1\n', r"bad\.py: has no get_config"),
    ('from jaxcnn.config import make\n\n\ndef get_config():\n    return make(sed=3)\n',
     r"bad\.py: unknown field 'config\.sed'; nearest: config\.seed"),
    ('def get_config():\n    return None\n', r'config: expected a group of fields, got None'),
])
def test_a_config_file_that_fails_is_named_in_one_line(tmp_path, text, line):
    with pytest.raises(UserError, match=line) as error:
        cfg.load(write(tmp_path / 'bad.py', text))
    one_line(error)


def test_a_missing_config_file_is_reported_with_its_neighbours(tmp_path):
    write(tmp_path / 'mnist_lenet.py', '')
    with pytest.raises(UserError, match=r'unknown config file .*mnist_lent\.py.*nearest: .*mnist_lenet\.py'):
        cfg.load(str(tmp_path / 'mnist_lent.py'))
    with pytest.raises(UserError, match=r'unknown config file'):
        cfg.load(str(tmp_path / 'nowhere' / 'x.py'))


# ---- calls


def test_a_call_is_taken_apart():
    assert cfg.parse_call(' name ', 'here') == ('name', (), {})
    assert cfg.parse_call('f()', 'here') == ('f', (), {})
    assert cfg.parse_call('f(1, -2.5, "a", (1, [2]), b=None, c={"d": True})', 'here') == (
        'f', (1, -2.5, 'a', (1, [2])), {'b': None, 'c': {'d': True}})
    assert cfg.parse_call('f(8/255, a=(-1/2, 3))', 'here') == ('f', (8 / 255,), {'a': (-0.5, 3)})


@pytest.mark.parametrize('text', [
    '', '1', 'f(', 'f(1)(2)', 'a.b(1)', 'f(x)', 'f(a=x)', 'f(1 if True else 2)', 'f(*[1])', 'f(**{"a": 1})', 'f(1); g',
    'lambda: 1', '(f)(lambda: 1)', 'f(open("/etc/passwd"))', '__import__("os").system("true")',
    'f(__import__("os").system("true"))', 'f([x for x in (1,)])', 'f("a" * 3)', 'f(f"{1}")', 'f(b=().__class__)',
    'f(1 / 0)', 'f(2 * 3)', 'f("a" / 2)',
])
def test_a_call_that_is_not_literal_is_refused(text):
    with pytest.raises(UserError, match='here: ') as error:
        cfg.parse_call(text, 'here')
    one_line(error)


def test_a_call_never_runs_what_it_names(tmp_path):
    target = tmp_path / 'ran'
    for text in (f'f(open({str(target)!r}, "w"))', f'open({str(target)!r}, "w").close()'):
        with pytest.raises(UserError):
            cfg.parse_call(text, 'here')
    assert cfg.parse_call(f'open({str(target)!r}, "w")', 'here') == ('open', (str(target), 'w'), {})
    cfg.override({}, [f'data.name=open({str(target)!r}, "w")'])
    assert not target.exists()


def test_a_call_with_an_unhashable_key_is_refused_without_a_traceback():
    with pytest.raises(UserError, match='here: '):
        cfg.parse_call('f({[]: 1})', 'here')


def test_bind_gives_keywords_and_names_what_does_not_fit():
    def function(pad, mode='constant'):
        pass
    assert cfg.bind(function, (4,), {}, 'op f') == {'pad': 4}
    assert cfg.bind(function, (4,), {'mode': 'edge'}, 'op f') == {'pad': 4, 'mode': 'edge'}
    with pytest.raises(UserError, match=r"unknown argument of op f 'mod'; nearest: mode"):
        cfg.bind(function, (4,), {'mod': 'edge'}, 'op f')
    with pytest.raises(UserError, match=r'op f: too many .*; it takes \(pad, mode\)'):
        cfg.bind(function, (1, 2, 3), {}, 'op f')
    with pytest.raises(UserError, match=r"op f.*missing.*'pad'"):
        cfg.bind(function, (), {}, 'op f')


# ---- the folder of caches


@pytest.fixture(params=['no home', 'no folder'])
def no_home(request, tmp_path, monkeypatch):
    """A user without a home folder that can be written, and an empty folder for temporary files."""
    def unknown(_):
        raise KeyError
    if request.param == 'no home':
        monkeypatch.delenv('HOME')
        monkeypatch.setattr('pwd.getpwuid', unknown)
    else:
        (tmp_path / 'file').touch()
        monkeypatch.setenv('HOME', str(tmp_path / 'file'))
    monkeypatch.delenv('JAXCNN_CACHE')
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'tmp'))
    cache_folder.temporary_cache_folder.cache_clear()
    yield
    cache_folder.temporary_cache_folder.cache_clear()


def test_without_a_home_caches_go_to_a_temporary_folder_which_is_reported_once(no_home, tmp_path, caplog):
    folder = cache_folder.cache_folder()
    assert cache_folder.cache_folder() == folder == str(tmp_path / 'tmp' / f'jaxcnn-{os.getuid()}')
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert [folder in record.message and '$JAXCNN_CACHE' in record.message for record in caplog.records] == [True]
    assert cache_folder.cache_folder('/given') == '/given'


def test_without_a_home_matplotlib_keeps_its_fonts_in_the_folder_of_caches(tmp_path):
    (tmp_path / 'file').touch()
    printed = subprocess.run(
        [sys.executable, '-c', "import jaxcnn.analysis.figures, os; print(os.environ.get('MPLCONFIGDIR'))"], text=True,
        env={**os.environ, 'HOME': str(tmp_path / 'file'), 'JAXCNN_CACHE': '/given'}, capture_output=True)
    assert (printed.stdout, printed.stderr) == ('/given/matplotlib\n', '')


def test_a_temporary_folder_that_others_can_write_is_not_used(no_home, tmp_path):
    (tmp_path / 'others').mkdir()
    (tmp_path / 'tmp' / f'jaxcnn-{os.getuid()}').symlink_to(tmp_path / 'others')
    folder = cache_folder.cache_folder()
    assert not os.path.islink(folder)
    assert os.stat(folder).st_mode & 0o777 == 0o700


def test_a_cache_folder_in_a_home_that_is_not_there_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"config\.data\.cache_dir: '~nobody_here/x': there is no such home"):
        cache_folder.cache_folder('~nobody_here/x')
    monkeypatch.setenv('JAXCNN_CACHE', '~nobody_here/x')
    with pytest.raises(UserError, match=r"\$JAXCNN_CACHE: '~nobody_here/x'"):
        cache_folder.cache_folder()


def test_a_home_that_can_be_written_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv('JAXCNN_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_folder.cache_folder() == str(tmp_path / '.cache' / 'jaxcnn')
    assert not list(tmp_path.iterdir())
