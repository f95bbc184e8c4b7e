import os
import shutil

# Before JAX starts: eight virtual devices, also on a machine with a GPU, and little time for compilation, because most
# programs run once. The older emitters of XLA compile a step in a third of the time of the MLIR emitters. With one LLVM
# module for each program, its rounding does not depend on how the program is split.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1',
    '--xla_force_host_platform_device_count=8'])

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxcnn import config, memory, registry
from jaxcnn.analysis import figures, mistakes
from jaxcnn.ops import native
from jaxcnn.training.setup import Setup

memory.collect_garbage_less_often()  # as the commands do


@pytest.fixture(scope='session', autouse=True)
def caches(tmp_path_factory, worker_id):
    """Decoded images and compiled programs, shared by all tests of the session, in all its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == 'master' else base.parent) / 'cache'
    folder.mkdir(exist_ok=True)
    if native.available(jnp.float32):  # so that no command of the session compiles it again
        (folder / 'onednn').mkdir(exist_ok=True)
        library = native.build()
        copy = shutil.copy(library, folder / f'{worker_id}.so')
        os.replace(copy, folder / 'onednn' / os.path.basename(library))
    os.environ['JAXCNN_CACHE'] = str(folder)
    jax.config.update('jax_compilation_cache_dir', str(folder / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs draw nothing, which takes seconds of each; `monkeypatch.undo()` in a test of pictures."""
    monkeypatch.setattr(Setup, 'draw_first_batch', lambda *_: None)
    for name in ('curves', 'confusion_matrix'):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)
    monkeypatch.setattr(mistakes, 'draw_sheet', lambda *_, **__: None)


@pytest.fixture
def new_registrations():
    """What a test registers is forgotten afterwards."""
    with registry.undo_registrations():
        yield


@pytest.fixture
def small():
    """A config that trains in seconds on one device: `small(**fields)`, nested fields merged."""
    def make(**fields) -> ConfigDict:
        base = config.make(
            duration=dict(steps=20), batch_size=32,
            model=dict(name='shallow_cnn', widths=(4, 4, 8, 8), hidden=16, dropout=0.0),
            data=dict(name='digits', image_size=16, augment='pad_crop(2)|flip_lr|cutout(4)'),
            optim=dict(optimizer=dict(name='sgd', momentum=0.9), learning_rate=0.05),
            eval=dict(every=dict(steps=10), batch_size=128), log_every=dict(steps=5),
            parallel=dict(devices=1)).to_dict()
        for name, value in fields.items():
            if isinstance(value, dict) and name in ('data', 'optim', 'eval', 'parallel', 'checkpoint'):
                base[name].update(value)
            else:
                base[name] = value
        return ConfigDict(config.to_dict(config.parse(base)))
    return make
