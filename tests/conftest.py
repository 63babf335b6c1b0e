"""What all tests share: where compiled programs are kept, and a tiny network."""

import gc
import importlib.metadata
import os
import pathlib
import runpy
import shutil
import sys
import time

# Before JAX is imported, here and in the processes that tests start. The tests compare with references at float32
# precision, which accelerators do not keep by default.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.expanduser('~/.cache/atonet_jax/tests'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Compiling takes half of the tests' time, and less of it unoptimised; a third less again without the fusion emitters,
# which later versions than 0.10 always take. One thread compiles a program: several would take a tenth more work, and
# the tests keep every core busy.
_FLAGS = (
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    '--xla_cpu_parallel_codegen_split_count=1'
)
_EMITTERS = ' --xla_cpu_use_fusion_emitters=false' if importlib.metadata.version('jaxlib').startswith('0.10.') else ''
os.environ.setdefault('XLA_FLAGS', _FLAGS + _EMITTERS)
# Imports and traces make many objects that live on, and Python's garbage collector would look through them again and
# again: a tenth of the time.
gc.set_threshold(100_000, 50)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

pytest.register_assert_rewrite(
    'tests.golden_files', 'tests.models.golden', 'tests.parity_cases', 'tests.torch_file_cases'
)

from atonet_jax.data.synthetic import write_dataset  # noqa: E402
from atonet_jax.models import MODEL_NAMES, create_model  # noqa: E402

_STARTED = pytest.StashKey[float]()


def pytest_configure(config):
    """PyTorch and TensorFlow never meet in one process, where PyTorch's Triton would end it with a crash.

    The tests of tests/parity have PyTorch, all others TensorFlow; the other one cannot be imported.
    """
    of_parity = ['parity' in pathlib.Path(argument.partition('::')[0]).parts for argument in config.args]
    if any(of_parity) and not all(of_parity):
        raise pytest.UsageError('tests/parity is run alone, as by `make parity`')
    sys.modules['tensorflow' if any(of_parity) else 'torch'] = None


MOST_SECONDS = 360  # of the whole suite on two idle cores, with cold caches
# Files that take longest begin first, so that no process of `make test` ends long after the others.
_LONGEST = (
    'training/test_survival.py',
    'process/test_distributed.py',
    'test_docs.py',
    'test_lowering.py',
    'models/test_goldens.py',
    'training/test_fault_injection.py',
    'models/test_contract.py',
    'test_parity.py',
    'training/test_train.py',
    'training/test_losses.py',
    'export/test_export.py',
    'serve/test_serve.py',
)


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.nodeid.partition('::')[0].removeprefix('tests/')
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=place)


def _group(nodeid):
    """The tests that one process runs: those of a file, in two files those of a network."""
    file, _, test = nodeid.partition('::')
    parameters = test.partition('[')[2].removesuffix(']').split('-')
    networks = [word for word in parameters if word in MODEL_NAMES]
    is_split = networks and file.endswith(('test_contract.py', 'test_goldens.py'))
    return f'{file}:{networks[0]}' if is_split else file


class _ByGroup(LoadScopeScheduling):
    """xdist's own --dist=loadgroup does nothing with pytest 9.2, which keeps the names of tests elsewhere."""

    def _split_scope(self, nodeid):
        return _group(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return _ByGroup(config, log)


def pytest_runtest_teardown(item, nextitem):
    """Forgets programs that the next tests do not share: a process may hold no more than some ten thousand."""
    if nextitem is not None and _group(nextitem.nodeid) != _group(item.nodeid):
        jax.clear_caches()


def pytest_sessionstart(session):
    session.config.stash[_STARTED] = time.monotonic()


def pytest_terminal_summary(terminalreporter, config):
    """Where the whole suite ran: how long that took, and whether it may take so long."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    seconds = time.monotonic() - config.stash[_STARTED]
    kept = 'within' if seconds <= MOST_SECONDS else 'MORE THAN'
    terminalreporter.write_line(
        f'The suite took {seconds // 60:.0f} min {seconds % 60:.0f} s on {os.cpu_count()} cores: '
        f'{kept} the {MOST_SECONDS // 60} minutes that it may take on two idle ones.'
    )


@pytest.fixture(scope='session')
def tiny_model():
    """ATONet for 5 classes, with channels that compile and run in no time."""
    return create_model('atonet', 5, width=16, backbone_width=8)


@pytest.fixture(scope='session')
def tiny_variables(tiny_model):
    """Fresh variables of `tiny_model`, auxiliary heads included."""
    key = jax.random.key(0, impl='rbg')  # the usual generator takes four times as long to compile
    return jax.jit(lambda key: tiny_model.init(key, jnp.zeros((1, 64, 64, 3)), train=True))(key)


@pytest.fixture(scope='session')
def repository():
    """The folder of main.py and configs/."""
    return pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def tiny_config(repository, tmp_path_factory):
    """configs/tiny.py, with scenes that all tests share. Copy it before changing it."""
    config = runpy.run_path(str(repository / 'configs' / 'tiny.py'))['get_config']()
    config.data.root = str(tmp_path_factory.mktemp('scenes') / 'tiny')
    scenes = config.data.synthetic
    sizes = {'height': scenes.height, 'width': scenes.width}
    splits = {'train': scenes.train_scenes, 'val': scenes.val_scenes}
    write_dataset(config.data.root, splits=splits, **sizes, seed=scenes.seed, workers=1)  # to start more takes longer
    return config


@pytest.fixture(scope='session')
def basic_config(repository, tiny_config):
    """`tiny_config` of SegNet-Basic, which compiles in a fifth of the time, with averaged parameters.

    For what a run does whatever its network is. Copy it before changing it.
    """
    config = runpy.run_path(str(repository / 'configs' / 'tiny.py'))['get_config']('segnet_basic')
    config.data.root = tiny_config.data.root
    config.optimizer.ema_decay = 0.9
    return config


@pytest.fixture(scope='session')
def finished(tiny_config, tmp_path_factory):
    """The workdir of a run of `tiny_config` that was never disturbed. Copy it before changing it."""
    from atonet_jax.training.train import train

    workdir = str(tmp_path_factory.mktemp('finished'))
    train(tiny_config, workdir)
    return workdir


@pytest.fixture(scope='session')
def finished_basic(basic_config, tmp_path_factory):
    """As `finished`, of `basic_config`."""
    from atonet_jax.training.train import train

    workdir = str(tmp_path_factory.mktemp('finished_basic'))
    train(basic_config, workdir)
    return workdir


EXPORT_SIZE = (64, 128)


@pytest.fixture(scope='session')
def exported(tiny_config, finished, tmp_path_factory):
    """(format) -> the path of that export of `finished` at EXPORT_SIZE, made once, in a copy of the workdir.

    Do not change what lies there.
    """
    from atonet_jax.export import export

    workdir = str(shutil.copytree(finished, tmp_path_factory.mktemp('exported') / 'runs' / 'demo'))
    config = tiny_config.copy_and_resolve_references()
    paths = {}

    def path_of(format):
        if format not in paths:
            config.export.update(format=format, size=EXPORT_SIZE)
            paths[format] = export(config, workdir, force=False)
        return paths[format]

    return path_of
