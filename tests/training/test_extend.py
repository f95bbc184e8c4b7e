"""A run that is extended is, to the bit, the run that was started with the longer config, or is refused."""

import re

import golden
import numpy as np
import pytest

from jaxcnn import config as cfg
from jaxcnn.errors import UserError
from jaxcnn.training import train
from jaxcnn.training.extend import check, check_run
from jaxcnn.training.workdir import claim, read_json, read_metrics, write_json

RESTART = [dict(at=dict(steps=10), schedule='cosine', learning_rate=0.02, optimizer='adam')]
LONGER = {
    'constant': (dict(optim=dict(schedule='constant')), {}),
    'plateau': (dict(optim=dict(schedule=dict(name='plateau', patience=0, rtol=0.9))), {}),
    'warm restart': (dict(optim=dict(schedule='cosine')), dict(switch=RESTART)),
}


@pytest.mark.parametrize('kind', [
    pytest.param('constant', marks=pytest.mark.slow), pytest.param('plateau', marks=pytest.mark.slow), 'warm restart'])
def test_an_extended_run_equals_one_that_was_started_longer(small, tmp_path, no_pictures, kind):
    fields, more = LONGER[kind]
    fields['optim'].update(ema_decay=0.9)
    short = small(**fields, duration=dict(steps=10), data={'augment': ''}, checkpoint=dict(keep=5),
                  model=dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16))
    longer = cfg.make(**{**short.to_dict(), 'duration': dict(steps=20), 'optim': {**short.optim.to_dict(), **more}})
    extended, straight = str(tmp_path / 'extended'), str(tmp_path / 'straight')
    first = train(short, extended)
    summary = train(longer, extended, extend=True)
    expected = train(longer, straight)
    varies = {'images_per_second', 'train_seconds', 'wall_seconds', 'peak_host_bytes'}
    assert {k: v for k, v in summary.items() if k not in varies} == {k: v for k, v in expected.items() if k not in varies}
    rows = [[{k: v for k, v in row.items() if k not in varies} for row in read_metrics(f)] for f in (extended, straight)]
    assert rows[0] == rows[1]
    for step in (10, 20):  # the first was saved without the optimizer state of a stage that was added
        states = [golden.read_state(folder, step) for folder in (extended, straight)]
        assert {name: array.tobytes() for name, array in states[0].items()} == {
            name: states[1][name].tobytes() for name in states[0]}
    assert states[0].keys() == states[1].keys()
    assert read_json(f'{extended}/summary.step10.json') == first
    train(longer, extended)  # from now on it is a run of the longer config


def test_an_extension_by_a_stage_reads_the_initial_weights_again(small, tmp_path, no_pictures):
    """The state of Prodigy holds the parameters from which a run starts."""
    network = dict(name='sequential', layers='flatten|dense')
    variables = {'params': {'Dense_0': {'kernel': np.full((256, 10), 0.01, np.float32), 'bias': np.ones(10, np.float32)}}}
    short = small(model=network, data={'augment': ''}, duration=dict(steps=1))
    stage = dict(at=dict(steps=1), optimizer='prodigy')
    optim = {**short.optim.to_dict(), 'switch': [stage]}
    longer = cfg.make(**{**short.to_dict(), 'duration': dict(steps=2), 'optim': optim})
    folder = str(tmp_path)
    train(short, folder, initial_variables=variables)
    with pytest.raises(UserError, match=r'^config\.init\.variables: the run started from variables of Python; pass them'):
        train({**longer.to_dict(), 'init': {'variables': True}}, folder, extend=True)
    train(longer, folder, extend=True, initial_variables=variables)
    kernels = {name: array for name, array in golden.read_state(folder, 2).items() if array.shape == (256, 10)}
    initial = [name for name, array in kernels.items() if (array == np.float32(0.01)).all()]
    assert len(initial) == 1, kernels
    assert 'opt_state' in initial[0]


def configs(old, new):
    base = {'duration': {'epochs': 4}, 'batch_size': 10, 'optim': {'schedule': 'constant'}}
    old = {**base, **old}
    return cfg.parse(old), cfg.parse({**old, 'duration': {'epochs': 8}, **new})


REFUSED = {
    'shorter': ({}, {'duration': {'epochs': 3}}, r'config\.duration: .* has 30 steps; .* already made 40'),
    'cosine': ({'optim': {}}, {}, r'config\.optim\.schedule: .* at step 1, and this run had .*made for 40 steps.*switch='),
    'warm-up as a fraction': ({'optim': {'schedule': 'constant', 'warmup': {'fraction': 0.5}}}, {}, 'rate of .* step 0'),
    'steps as fractions': ({'optim': {'schedule': 'step'}}, {}, 'at step 20, and this run had'),
    'batch size as a fraction': ({'batch_schedule': [[{'fraction': 0.5}, 20]]}, {}, 'batch size.* step 20'),
    'aux_schedule': ({'model': {'name': 'googlenet', 'aux_schedule': 'linear'}}, {},
                     r'config\.model\.aux_schedule: .* fell over the 40 steps of this run, and in a run of 8 epochs'),
    'freeze_bn': ({'freeze_bn': {'fraction': 0.5}}, {}, 'size of images change at other steps than step 20'),
    'train_size as a fraction': ({'data': {'train_size': [[{'fraction': 0.5}, 20]]}}, {}, r'give .*train_size.* in epochs'),
    'until': ({'optim': {'schedule': 'constant', 'groups': [{'match': 'k', 'until': {'fraction': 0.5}}]}}, {},
              r'groups\[0\]\.until: a run of 8 epochs stops the group at step 40, and this run stopped it at step 20'),
    'pruning as a fraction': ({'pruning': {'sparsity': 0.5}}, {}, 'would have been pruned at other steps'),
    'hints_alone': ({'distillation': {'hints_alone': {'fraction': 0.5}}}, {},
                    r'config\.distillation\.hints_alone: .* alone until step 40, and this run did until step 20'),
    'ramp': ({'optim': {'schedule': 'constant', 'lookahead': {'ramp': 1.0}}}, {}, r'config\.optim\.lookahead'),
    'look-ahead at the end': ({'optim': {'schedule': 'constant', 'lookahead': {'every': 7}}}, {}, 'optim.lookahead'),
    'evaluations as fractions': ({'eval': {'every': {'fraction': 0.25}}}, {}, r'config\.eval\.every: .* at other steps'),
    'plateau evaluated at the end': ({'eval': {'every': {'steps': 7}}, 'optim': {'schedule': 'plateau'}}, {},
                                     r'config\.eval\.every: this run was evaluated at its end, step 40'),
    'patience': ({'eval': {'every': {'steps': 7}}, 'checkpoint': {'patience': 2}}, {}, 'evaluated at its end, step 40'),
    'another first stage': ({'optim': {'switch': [{'at': {'epochs': 2}, 'optimizer': 'adam'}]}},
                            {'optim': {'switch': [{'at': {'epochs': 2}, 'optimizer': 'lion'}]}}, 'can be added after'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_an_extension_that_would_differ_from_a_run_of_the_longer_config_is_refused(kind):
    old, new, message = REFUSED[kind]
    with pytest.raises(UserError, match=message) as error:
        check(*configs(old, new), num_train=100, step=40)
    assert '\n' not in str(error.value)


def test_a_run_that_was_made_too_long_by_mistake_can_be_made_shorter():
    mistaken, new = configs({'duration': {'epochs': 2000}}, {'duration': {'epochs': 8}})
    assert 'its schedule goes on' in check(mistaken, new, num_train=100, step=40)


STAGE = [{'at': {'epochs': 4}, 'learning_rate': 0.2, 'schedule': 'polynomial'}]
ALLOWED = {
    'constant': ({}, {}, 40, '^its schedule goes on, with a learning rate of 0.1$'),
    'in steps': ({}, {'duration': {'steps': 77}}, 40, 'goes on'),
    'exponential': ({'optim': {'schedule': 'exponential'}}, {}, 40, 'goes on, with learning rates from 0.08836 to 0.07'),
    'warm-up in epochs': ({'optim': {'schedule': 'constant', 'warmup': {'epochs': 1}}}, {}, 40, 'goes on'),
    'plateau': ({'optim': {'schedule': 'plateau'}}, {}, 40, 'scaled as the plateau has observed'),
    'a further stage': ({'optim': {}}, {'optim': {'switch': STAGE}}, 40,
                        'a new stage begins, with learning rates from 0.2 to 0.005'),
    'evaluated at the end': ({'eval': {'every': {'steps': 7}}}, {}, 40, 'also evaluated at step 40, where a run'),
    'look-ahead': ({'optim': {'schedule': 'constant', 'lookahead': {'every': 5}}}, {}, 40, 'goes on'),
    'alternating sizes': ({'data': {'train_size': [20, 24]}}, {}, 40, 'goes on'),
    'stopped before the schedules part': ({'optim': {'schedule': 'step'}}, {}, 20, 'goes on'),
}


@pytest.mark.parametrize('kind', ALLOWED)
def test_an_extension_with_the_same_first_steps_is_allowed_and_its_learning_rates_are_described(kind):
    old, new, step, message = ALLOWED[kind]
    assert re.search(message, check(*configs(old, new), num_train=100, step=step))


def test_a_refused_extension_leaves_the_workdir_as_it_was(small, tmp_path, no_pictures):
    settings = small(duration=dict(steps=10), data={'augment': ''})
    train(settings, str(tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file() and p.name != '.lock'}
    settings.duration = dict(steps=20)
    with pytest.raises(UserError, match=r'config\.optim\.schedule: a run of 20 steps has a learning rate'):
        train(settings, str(tmp_path), extend=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file() and p.name != '.lock'} == before


def test_a_run_that_lost_patience_is_not_extended(tmp_path):
    old, new = configs({'checkpoint': {'patience': 1}}, {})
    (tmp_path / 'checkpoints' / '20').mkdir(parents=True)
    write_json(str(tmp_path / 'config.json'), cfg.to_dict(old))
    write_json(str(tmp_path / 'summary.json'), {'steps': 20})
    with pytest.raises(UserError, match=r'ended at step 20 of 40, by config\.checkpoint\.patience'):
        check_run(str(tmp_path), new, 100)


def test_a_longer_config_is_claimed_by_an_extension_alone_and_others_never(tmp_path):
    (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
    write_json(str(tmp_path / 'config.json'), cfg.to_dict(cfg.parse({})))
    longer = cfg.parse({'duration': {'epochs': 20}})
    with pytest.raises(UserError, match=r'jaxcnn train --extend continues it if'), claim(str(tmp_path), longer):
        pass
    with claim(str(tmp_path), longer, extend=True):
        pass
    for extend in (False, True):
        with pytest.raises(UserError, match=r'or a new workdir\. Changed: .*config\.seed: 0 -> 1'), \
                claim(str(tmp_path), cfg.parse({'duration': {'epochs': 20}, 'seed': 1}), extend):
            pass
