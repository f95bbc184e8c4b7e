"""JAX's cache of compiled programs: a damaged entry costs one compilation, not one at each start."""

import logging
import os
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache as jax_cache

from jaxcnn.train import compilation_cache
from jaxcnn.train.compilation_cache import WholeEntries
from jaxcnn.train.parallel import use_compilation_cache


@pytest.fixture(autouse=True)
def fresh_warnings():
    compilation_cache._warn_once.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """JAX's cache is in this folder."""
    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {name: getattr(jax.config, name) for name in names}
    use_compilation_cache()
    for name, value in zip(names, (str(tmp_path), 0), strict=True):
        jax.config.update(name, value)
    jax_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def test_a_cut_entry_is_compiled_anew_once(folder, caplog):
    def compile_twice_the_sum():
        jax.clear_caches()
        assert jax.jit(lambda x: 2 * x.sum())(jnp.arange(5.0)) == 20
        return {p: p.read_bytes() for p in folder.iterdir()}

    whole = compile_twice_the_sum()
    assert len(whole) > 1
    for path, content in whole.items():
        path.write_bytes(content[:len(content) // 2])
    with warnings.catch_warnings(action='error'):
        assert compile_twice_the_sum().keys() == whole.keys()
        written = {path: os.stat(path).st_mtime_ns for path in whole}
        assert len([r for r in caplog.records if 'damaged entries' in r.message]) == 1
        compile_twice_the_sum()
    assert {path: os.stat(path).st_mtime_ns for path in whole} == written
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


@pytest.mark.parametrize('damage', [lambda b: b[:-1], lambda b: b'', lambda b: b[:9] + bytes([b[9] ^ 1]) + b[10:]],
                         ids=['cut', 'emptied', 'flipped'])
def test_a_damaged_entry_is_removed(tmp_path, damage):
    cache = WholeEntries(str(tmp_path), max_size=-1)
    value = jax_cache.compress_executable(bytes(range(100)))
    cache.put('a', value)
    assert cache.get('a') == value
    (tmp_path / 'a-cache').write_bytes(damage(value))
    assert cache.get('a') is None
    assert not list(tmp_path.iterdir())


def test_an_entry_that_jax_could_not_load_is_replaced(tmp_path):
    cache = WholeEntries(str(tmp_path), max_size=-1)
    for value in (jax_cache.compress_executable(b'no program'), jax_cache.compress_executable(b'a program')):
        cache.put('a', value)
        assert cache.get('a') == value


def test_a_write_that_fails_leaves_the_entry_as_it_was_and_is_told_once(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, 'No space left on device')

    cache = WholeEntries(str(tmp_path), max_size=-1)
    value = jax_cache.compress_executable(b'a program')
    cache.put('a', value)
    monkeypatch.setattr(compilation_cache.os, 'replace', full)
    for key in ('a', 'b'):
        cache.put(key, b'new')
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {'a-cache': value}
    assert [r.message for r in caplog.records] == [f'{tmp_path}: compiled programs are not kept: No space left on device']
