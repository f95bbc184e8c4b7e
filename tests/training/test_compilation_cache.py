"""JAX's cache of compiled programs: a damaged entry costs one compilation, not one in each run."""

import logging
import os
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache as jax_cache

from jaxcnn.training import compilation_cache
from jaxcnn.training.compilation_cache import AtomicCache
from jaxcnn.training.parallel import use_compilation_cache


@pytest.fixture
def folder(tmp_path):
    """The folder of JAX's cache."""
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


def test_a_truncated_entry_is_compiled_once(folder, caplog):
    def compile_and_read_entries():
        jax.clear_caches()
        assert jax.jit(lambda x: 2 * x.sum())(jnp.arange(5.0)) == 20
        return {p: p.read_bytes() for p in folder.iterdir()}

    entries = compile_and_read_entries()
    assert len(entries) > 1
    for path, content in entries.items():
        path.write_bytes(content[:len(content) // 2])
    with warnings.catch_warnings(action='error'):
        assert compile_and_read_entries().keys() == entries.keys()
        write_times = {path: os.stat(path).st_mtime_ns for path in entries}
        assert len([r for r in caplog.records if 'damaged entries' in r.message]) == 1
        compile_and_read_entries()
    assert {path: os.stat(path).st_mtime_ns for path in entries} == write_times
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


@pytest.mark.parametrize('damage', [lambda b: b[:-1], lambda b: b'', lambda b: b[:9] + bytes([b[9] ^ 1]) + b[10:]],
                         ids=['truncated', 'empty', 'flipped bit'])
def test_a_damaged_entry_is_removed(tmp_path, damage):
    cache = AtomicCache(str(tmp_path), max_size=-1)
    value = jax_cache.compress_executable(bytes(range(100)))
    cache.put('a', value)
    assert cache.get('a') == value
    (tmp_path / 'a-cache').write_bytes(damage(value))
    assert cache.get('a') is None
    assert not list(tmp_path.iterdir())


def test_an_entry_that_jax_cannot_load_is_replaced(tmp_path):
    cache = AtomicCache(str(tmp_path), max_size=-1)
    for value in (jax_cache.compress_executable(b'no program'), jax_cache.compress_executable(b'a program')):
        cache.put('a', value)
        assert cache.get('a') == value


def test_a_failed_write_keeps_the_old_entry_and_is_logged_once(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(28, 'No space left on device')

    cache = AtomicCache(str(tmp_path), max_size=-1)
    value = jax_cache.compress_executable(b'a program')
    cache.put('a', value)
    monkeypatch.setattr(compilation_cache.os, 'replace', fail)
    for key in ('a', 'b'):
        cache.put(key, b'new')
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {'a-cache': value}
    messages = [r.message for r in caplog.records]
    assert messages == [f'{tmp_path}: compiled programs cannot be cached: No space left on device']
