"""Registries: lookups, repeated registrations, and what installed packages register."""

import pytest

from jaxcnn import registry
from jaxcnn.errors import UserError, unknown


def make(value, name='thing', module='first'):
    def thing():
        return value
    thing.__name__ = thing.__qualname__ = name
    thing.__module__ = module
    return thing


def test_a_second_definition_of_a_name_is_refused_and_the_same_one_replaces_the_first():
    things = registry.Registry('thing')
    things.add('a', make(1))
    again = make(2)  # as when the cell of a notebook is run again
    things.add('a', again)
    assert things.get('a') is again
    with pytest.raises(UserError, match=r"the thing 'a' is registered twice: by thing in .*test_registry.py and"):
        things.add('a', make(3, 'other'))
    with pytest.raises(UserError, match='is registered twice'):
        things.add('a', make(3, module='second'))
    assert things.get('a') is again


def test_an_unknown_name_loads_installed_plugins_and_lookups_are_recorded(monkeypatch):
    things = registry.Registry('thing')
    things.add('near', make(1, module='package.near'))
    monkeypatch.setattr(registry, 'load_installed_plugins', lambda: things.add('far', make(2, module='plugin.far'), None)
                        if 'far' not in things.names() else None)
    with registry.record_used_modules() as used:
        assert things.get('near')() == 1
    assert used == {'package.near'}
    with registry.record_used_modules() as used:
        assert things.get('far')() == 2
    assert used == {'plugin.far'}
    with pytest.raises(UserError, match=r"config\.thing: unknown thing 'nera'; nearest: near"):
        things.get('nera', 'config.thing')


def test_few_choices_are_all_shown_and_of_many_the_nearest():
    assert str(unknown('norm', 'l1', ('linf', 'l2'))) == "unknown norm 'l1'; nearest: l2; also: linf"
    assert str(unknown('norm', 'x', ('linf', 'l2'))) == "unknown norm 'x'; known: l2, linf"
    assert str(unknown('name', 'abcc', ['abcd', *map(str, range(6))])) == "unknown name 'abcc'; nearest: abcd"


def test_registrations_in_a_block_are_undone():
    things = registry.Registry('thing')
    with registry.undo_registrations():
        things.add('a', make(1))
        assert things.names() == ['a']
    assert things.names() == []
