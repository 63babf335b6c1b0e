"""Imports between rooms run one way, as docs/architecture.md says."""

import ast
import functools
import graphlib

from atonet_jax.modes import MODES


def imported_modules(repository) -> dict[str, set[str]]:
    """{module: the modules of the package that it imports, within functions too}. A package is its `__init__`."""
    files = {
        '.'.join(path.relative_to(repository).with_suffix('').parts).removesuffix('.__init__'): path
        for path in (repository / 'atonet_jax').rglob('*.py')
    }
    modules = {}
    for module, path in files.items():
        names = modules[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split('.')[0] == 'atonet_jax':
                attributes = [f'{node.module}.{alias.name}' for alias in node.names]
                names.update(name if name in files else node.module for name in attributes)
    modules['atonet_jax.main'].update(f'atonet_jax.{mode.entry.partition(":")[0]}' for mode in MODES.values())
    return modules


def imported_rooms(repository) -> dict[str, set[str]]:
    """{room: the rooms that its modules import}. A room is a package, or a module beside the packages."""
    rooms = {}
    for module, names in imported_modules(repository).items():
        if module != 'atonet_jax':
            room = module.split('.')[1]
            rooms.setdefault(room, set()).update(name.split('.')[1] for name in names if '.' in name)
            rooms[room].discard(room)
    return rooms


def test_nothing_imports_itself_by_way_of_others(repository):
    graphlib.TopologicalSorter(imported_modules(repository)).prepare()  # raises where there is a circle
    order = list(graphlib.TopologicalSorter(imported_rooms(repository)).static_order())
    assert order.index('ops') < order.index('models') < order.index('inference') < order.index('training')
    assert order[-1] == 'main'


def test_networks_need_ops_alone(repository):
    rooms = imported_rooms(repository)
    assert rooms['ops'] <= {'errors'}
    assert rooms['models'] <= {'ops', 'errors'}


def test_no_script_imports_pytorch_and_tensorflow(repository):
    """Triton, which PyTorch brings, and TensorFlow crash in one process."""

    @functools.cache
    def names(path, within_functions):
        tree, found = ast.parse(path.read_text()), []
        for node in ast.walk(tree) if within_functions else tree.body:
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [f'{node.module}.{alias.name}' for alias in node.names]
        return found

    def visit(path, found, within_functions=False):
        """Adds to `found` all that importing a file imports."""
        for name in names(path, within_functions):
            found.add(name.split('.')[0])
            for end in range(1, name.count('.') + 2):
                module = repository.joinpath(*name.split('.')[:end])
                file = module / '__init__.py' if module.is_dir() else module.with_suffix('.py')
                if file.exists() and file not in found:
                    found.add(file)
                    visit(file, found)

    with_torch = []
    for script in [*(repository / 'benchmarks').glob('*.py'), *(repository / 'tests' / 'parity').glob('*.py')]:
        found = set()
        visit(script, found, within_functions=True)
        if 'torch' in found:
            with_torch.append(script.name)
            assert 'tensorflow' not in found, script.name
    assert len(with_torch) > 2


def names_of(path) -> set[str]:
    """All that a module may define or import, at whichever depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def test_scripts_import_what_is_there(repository):
    """Within functions too, which no other test may call."""
    missing = []
    for script in (repository / 'benchmarks').glob('*.py'):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] in ('atonet_jax', 'benchmarks', 'tests'):
                module = repository.joinpath(*node.module.split('.'))
                path = module / '__init__.py' if module.is_dir() else module.with_suffix('.py')
                known = names_of(path) if path.exists() else set()
                known |= {child.stem for child in module.glob('*')}
                missing += [f'{script.name}: {node.module}.{a.name}' for a in node.names if a.name not in known]
    assert not missing
