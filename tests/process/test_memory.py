"""What is free is what the host has left, or less where a control group says so."""

import collections

import psutil
import pytest

from atonet_jax.process import memory


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes the files of control groups: their names for this process, and {file: content}."""

    def write(names, files):
        (tmp_path / 'cgroup').write_text(names)
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)

    monkeypatch.setattr(memory, '_GROUPS', str(tmp_path / 'cgroup'))
    monkeypatch.setattr(memory, '_MOUNT', str(tmp_path / 'mount'))
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: collections.namedtuple('_', 'available')(5000))
    return write


def test_without_control_groups_the_host_decides(groups, tmp_path):
    assert memory.free_memory() == 5000
    groups('0::/job\n', {})
    assert memory.free_memory() == 5000


def test_a_limit_of_version_2_counts_and_pages_of_files_are_free(groups):
    files = {'memory.max': '1000\n', 'memory.current': '700\n', 'memory.stat': 'anon 500\ninactive_file 100\n'}
    groups('0::/job/step\n', {f'mount/job/{name}': content for name, content in files.items()})
    assert memory.free_memory() == 400
    groups('0::/job/step\n', {'mount/job/memory.max': 'max\n'})
    assert memory.free_memory() == 5000
    groups('0::/job/step\n', {'mount/job/memory.max': '100\n'})  # was lowered
    assert memory.free_memory() == 0


def test_a_limit_of_version_1_counts(groups):
    """In a container the mount begins at its own group, whose name is that on the host."""
    files = {
        'memory.limit_in_bytes': '1000\n',
        'memory.usage_in_bytes': '700\n',
        'memory.stat': 'cache 9\ntotal_inactive_file 50\n',
    }
    groups('5:cpu:/x\n4:memory:/docker/a:b\n0::/\n', {f'mount/memory/{name}': text for name, text in files.items()})
    assert memory.free_memory() == 350
