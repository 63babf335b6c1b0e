"""What is installed is what is imported: a core for inference and an extra for each other use, in tested versions."""

import ast
import functools
import importlib.metadata
import json
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from atonet_jax.errors import InputError
from atonet_jax.extras import EXTRAS, explain_missing_package
from atonet_jax.modes import MODES

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
DECLARED = {extra: PROJECT['optional-dependencies'][extra] for extra in EXTRAS} | {'core': PROJECT['dependencies']}
# Rooms whose modules may need an extra as soon as they are imported. All others are of the core.
EXTRA_OF_ROOM = {
    'check_data': 'train',
    'data': 'train',
    'evaluation': 'train',
    'export': 'export',
    'predict': 'video',
    'serve': 'serve',
    'training': 'train',
}


def names(requirements):
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def pins(file):
    lines = (line.partition('#')[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith('-r')]


@functools.cache
def distributions():
    return {
        name: {canonicalize_name(distribution) for distribution in found}
        for name, found in importlib.metadata.packages_distributions().items()
    }


def modules():
    """{dotted name: path} of the package."""
    paths = [path.relative_to(ROOT) for path in (ROOT / 'atonet_jax').rglob('*.py')]
    return {'.'.join(path.with_suffix('').parts).removesuffix('.__init__'): ROOT / path for path in paths}


@functools.cache
def imports(path, within_functions):
    """Dotted names that a module imports: as it is imported itself, or also when its functions are called."""
    tree, found = ast.parse(path.read_text()), set()
    for node in ast.walk(tree) if within_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return found


def third_party(found):
    tops = {name.partition('.')[0] for name in found}
    return tops - sys.stdlib_module_names - {'atonet_jax'}


def needed(module, paths):
    """Packages that importing a module imports, by way of other modules of the package too."""
    seen, waiting, found = set(), [module], set()
    while waiting:
        parts = waiting.pop().split('.')
        for name in ('.'.join(parts[:i]) for i in range(1, len(parts) + 1)):
            if name in paths and name not in seen:
                seen.add(name)
                found |= imports(paths[name], within_functions=False)
                waiting += [other for other in found if other.startswith('atonet_jax')]
    return third_party(found)


def test_a_room_imports_the_core_and_its_own_extra():
    paths, wrong = modules(), {}
    for module in paths:
        room = [*module.split('.'), ''][1]
        allowed = names(DECLARED['core']) | names(DECLARED.get(EXTRA_OF_ROOM.get(room), ()))
        wrong[module] = {name for name in needed(module, paths) if not distributions().get(name, set()) & allowed}
    assert {module: packages for module, packages in wrong.items() if packages} == {}


def test_every_import_of_the_package_is_declared():
    found = set().union(*(third_party(imports(path, within_functions=True)) for path in modules().values()))
    declared = set().union(*map(names, DECLARED.values()))
    assert {name for name in found if not distributions().get(name, set()) & declared} == set()
    core = {name for name in found if distributions().get(name, set()) & names(DECLARED['core'])}
    assert found - core == set().union(*EXTRAS.values())


@pytest.mark.parametrize('extra', EXTRAS)
def test_an_extra_holds_what_the_program_says_of_it(extra):
    installed = set().union(*(distributions().get(name, set()) for name in EXTRAS[extra]))
    assert names(DECLARED[extra]) - {'tensorflow', 'tensorflow-cpu'} == installed - {'tensorflow', 'tensorflow-cpu'}
    assert ('tensorflow' in EXTRAS[extra]) == ({'tensorflow', 'tensorflow-cpu'} <= names(DECLARED[extra]))
    assert extra in PROJECT['optional-dependencies']['all'][0]


def test_tested_versions_lie_within_the_ranges_whose_lower_bounds_were_tested():
    tested = [*pins('requirements.txt'), *pins('requirements-test.txt')]
    for line in sum(DECLARED.values(), []):
        declared = Requirement(line)
        versions = [
            specifier.version
            for pin in tested
            if canonicalize_name(pin.name) == canonicalize_name(declared.name)
            for specifier in pin.specifier
        ]
        assert versions, f'{declared.name} is in no requirements file'
        assert all(version in declared.specifier for version in versions), line
        assert {s.operator for s in declared.specifier} == {'>=', '<'}, line
        assert any(s.operator == '>=' and s.version in versions for s in declared.specifier), line


@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
def test_each_python_has_one_version_of_each_package(python):
    environment = {'python_version': python, 'sys_platform': 'linux', 'platform_machine': 'x86_64'}
    chosen = [
        canonicalize_name(pin.name)
        for pin in pins('requirements.txt')
        if pin.marker is None or pin.marker.evaluate(environment)
    ]
    assert len(chosen) == len(set(chosen))
    assert {'jax', 'jaxlib', 'flax', 'numpy', 'tensorflow-cpu'} <= set(chosen)


@pytest.fixture
def make_environment(tmp_path):
    """(version of Python, whether it makes environments) -> the finished `make .venv/bin/python`."""

    def make(version, works=True):
        python = tmp_path / 'python'
        python.write_text(f"""#!{sys.executable}
import pathlib, sys
sys.version_info = {version}
if sys.argv[1] == '-c':
    exec(sys.argv[2])
else:
    pathlib.Path('.venv/bin').mkdir(parents=True, exist_ok=True)
    pathlib.Path('.venv/bin/python').touch()
    sys.exit({not works})
""")
        python.chmod(0o755)
        command = ['make', f'--makefile={ROOT / "Makefile"}', f'PYTHON={python}', '.venv/bin/python']
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return make


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
def test_make_takes_the_pythons_that_have_tensorflow(make_environment):
    for version in ((3, 10, 9), (3, 14, 0)):
        refused = make_environment(version)
        assert refused.returncode != 0 and 'Python 3.11 to 3.13 is needed; say which' in refused.stderr
    assert make_environment((3, 13, 9)).returncode == 0


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
def test_make_begins_an_environment_anew_that_could_not_be_made(make_environment, tmp_path):
    """As on Debian without python3-venv."""
    assert make_environment((3, 12, 1), works=False).returncode != 0
    again = make_environment((3, 12, 1))
    assert again.returncode == 0 and '-m venv' in again.stdout and (tmp_path / '.venv' / 'bin' / 'python').exists()


def test_the_installed_command_is_that_of_main_py():
    import main

    command = importlib.metadata.EntryPoint('atonet', PROJECT['scripts']['atonet'], 'console_scripts').load()
    assert command is main.command


def test_a_package_of_no_extra_keeps_its_own_error():
    with pytest.raises(ModuleNotFoundError), explain_missing_package('--mode=train', 'train'):
        import no_such_package  # noqa: F401


def test_another_extra_is_named_where_it_holds_the_package():
    said = r"^--mode=serve needs cv2: pip install '\.\[video\]' in the checkout$"
    with pytest.raises(InputError, match=said), explain_missing_package('--mode=serve', 'serve'):
        raise ModuleNotFoundError(name='cv2.dnn')


def test_a_mode_without_its_extra_says_in_one_line_what_to_install(tmp_path):
    """In a process in which no package of any extra can be imported."""
    code = """
import contextlib, io, json, sys
from absl import flags
from atonet_jax.errors import InputError
from atonet_jax.extras import EXTRAS
sys.modules |= dict.fromkeys(name for extra in EXTRAS.values() for name in extra)
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.main import command
said = {}
for mode, *more in json.loads(sys.argv[1]):
    sys.argv = ['atonet', f'--mode={mode}', *more]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as text:
        code = command()
    said[mode] = [code, text.getvalue()]
    flags.FLAGS.unparse_flags()
json.dump(said, sys.stdout)
"""
    settings = ['--config=configs/tiny.py', f'--workdir={tmp_path}', '--config.export.format=onnx']
    commands = [['compare', 'runs/a', 'runs/b']]
    commands += [[mode, *settings] for mode in ('train', 'evaluate', 'check_data', 'prepare', 'serve', 'export')]
    process = subprocess.run(
        [sys.executable, '-c', code, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    for mode, (exit_code, text) in json.loads(process.stdout).items():
        assert exit_code == 2, text
        assert text.startswith('error: ') and text.count('\n') == 1
        assert f"pip install '.[{MODES[mode].extra}]'" in text
        assert f'{"format=onnx" if mode == "export" else f"--mode={mode}"} needs ' in text
