"""Memory that is kept, and given back where it is much."""

import os

import pytest

from jaxcnn import memory


@pytest.fixture
def given_back(monkeypatch):
    times = []
    monkeypatch.setattr(memory, 'give_back', lambda: times.append(1))
    return times


@pytest.mark.parametrize(('kept', 'most', 'count'), [('1', 1e3, 1), ('1', 1e15, 0), (None, 1e3, 0)])
def test_what_is_free_is_given_back_where_it_is_kept_and_much(monkeypatch, given_back, kept, most, count):
    monkeypatch.delenv('JAXCNN_STARTED_ANEW', raising=False)
    if kept:
        monkeypatch.setenv('JAXCNN_STARTED_ANEW', kept)
    monkeypatch.setattr(memory, '_most', lambda: most)
    memory.ease()
    assert len(given_back) == count


def test_the_most_is_a_part_of_the_machines():
    assert 0 < memory._most() <= memory._PART * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def test_giving_back_does_no_harm():
    memory.give_back()
