"""Every command in README.md and docs/ runs as it stands there, or says what it needs.

`runs/demo` is here a run of configs/tiny.py with SegNet-Basic, which compiles in a fifth of the time. What begins a run
takes its scenes and that network too, unless the command has an option of ATONet's.
"""

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import mimetypes
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse

import httpx
import numpy as np
import PIL.Image
import pytest
from absl import flags
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from atonet_jax.command_line import read_config
from atonet_jax.config import default_config
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.serve import listen
from atonet_jax.serve.app import create_app
from atonet_jax.validation import validate
from tests.commands import fresh_flags, run_command
from tests.test_packaging import PROJECT, pins

_MARK = re.compile(r'# needs (Cityscapes|CamVid|published weights|a GPU|a TPU|a camera|several machines)$')
_COMMAND = re.compile(r'([A-Z_]+=\S+ )*(python|make|pip|srun|mpirun|gcloud|curl|\.venv)\b')
_VARIABLE = re.compile(r'[A-Z_]+=')  # of the environment, before a command
_TINY = (
    '--config.data.crop_size=(64,64)',
    '--config.train.epochs=0.5',
    '--config.optimizer.learning_rate=0.01',
    '--config.schedule.warmup_epochs=0.0',
)
_TINY_ATONET = '--config.model.width=16', '--config.model.backbone_width=8'
_OF_ATONET = '--config.model.', '--config.loss.aux', '--mode=benchmark'  # which need that network
_SIZE = 64, 128
NOT_FOR_TESTS = ('torch', 'sklearn')  # which scripts of benchmarks/ need: requirements-benchmarks.txt
OPTIONAL = {'ai-edge-litert', 'pillow-heif', 'tensorboard'}  # which users may add; no requirements file has them
_SERVED_SIDE = 64  # of pictures, for the network


def commands_of(text):
    """Of blocks that have no language, continued lines joined; and of inline code."""
    commands, prose, language = [], '', None
    for line in re.sub(r'\n +(?=--)', ' ', text).splitlines():
        if line.startswith('```'):
            language = line[3:] if language is None else None
        elif language is None:
            prose += f'{line} '
        elif language == '':
            commands.append(line)
    commands += re.findall(r'`([^`]+)`', prose)
    return [re.sub(r'\s+', ' ', command) for command in commands if _COMMAND.match(command) and ' ' in command]


def all_commands():
    """Each command once, of the first document that has it. What is said of it behind a # makes no other command."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    files = ['README.md', *(f'docs/{name}' for name in sorted(os.listdir(f'{folder}/docs')) if name.endswith('.md'))]
    known = set()
    for name in files:
        with open(os.path.join(folder, name)) as file:
            for command in commands_of(file.read()):
                what = command.partition(' #')[0], bool(_MARK.search(command))
                if what not in known:
                    known.add(what)
                    yield pytest.param(command, id=f'{name}: {command}')


@pytest.fixture(scope='module')
def world(repository, finished_basic, tmp_path_factory):
    """A folder where the documents' paths lead to something."""
    folder = tmp_path_factory.mktemp('world')
    for run in ('demo', 'other'):
        shutil.copytree(finished_basic, folder / 'runs' / run)
    (folder / 'configs').symlink_to(repository / 'configs')
    (folder / 'Makefile').symlink_to(repository / 'Makefile')
    (folder / 'tests').symlink_to(repository / 'tests')
    image = np.random.default_rng(0).integers(0, 256, (*_SIZE, 3), np.uint8)
    for path in (
        'street.jpg',
        'photos/a.jpg',
        'photos/trip/b.jpg',
        *(f'data/images/{part}/{i}.png' for part in ('train', 'val') for i in range(4)),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(folder / path)
    for part in ('train', 'val'):
        for i in range(4):
            (folder / f'data/labels/{part}').mkdir(parents=True, exist_ok=True)
            labels = (image[..., 0] % 3).astype(np.uint8)
            PIL.Image.fromarray(labels).save(folder / f'data/labels/{part}/{i}.png')
    (folder / 'data/classes.csv').write_text('name,color,value\nroad,#804080,0\ncar,0 0 142,1\nsky,#4682b4,2\n')
    import cv2

    film = cv2.VideoWriter(str(folder / 'drive.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, _SIZE[::-1])
    for _ in range(3):
        film.write(image)
    film.release()
    return folder


def run_main(arguments, tiny_config):
    begins = any(argument.startswith('--config=') for argument in arguments)
    if '--config=configs/synthetic.py' in arguments:
        arguments = [argument.replace('runs/demo', 'runs/new') for argument in arguments]
        arguments.append(f'--config.data.root={tiny_config.data.root}')
        scenes = tiny_config.data.synthetic
        arguments += [f'--config.data.synthetic.{key}={scenes[key]}' for key in scenes]
    if '--mode=benchmark' in arguments:
        arguments += ['--config.benchmark.rounds=1', '--config.benchmark.warmup=0', f'--config.benchmark.sizes={_SIZE}']
    if '--mode=serve' in arguments:
        arguments += [f'--config.serve.long_side={_SERVED_SIDE}']
    if '--mode=export' in arguments:
        arguments += [f'--config.export.size={_SIZE}', '--force']
    if begins and (any(a.startswith(_OF_ATONET) for a in arguments) or any(':' in a for a in arguments)):
        arguments += [*_TINY, *_TINY_ATONET]
    elif begins:
        arguments = [f'{a}:segnet_basic' if a.startswith('--config=') else a for a in arguments]
        arguments += [*_TINY, '--config.model.width=8']
    finished = run_command(*arguments, cwd=os.getcwd())
    assert finished.returncode == 0, finished.stderr


def assert_understood(arguments):
    """What runs elsewhere has settings that exist and can work. Those of a run that is there cannot be known here."""
    if not any(argument.startswith('--config=configs/') for argument in arguments):
        return
    rest, config = read_config(['main.py', *arguments])
    with fresh_flags():
        assert flags.FLAGS(rest)[1:] == []
    validate(config)


def noise(seed, i, height, width):
    image = np.random.default_rng([seed, i]).integers(0, 256, (height, width, 3), np.uint8)
    return image, image[..., 0]


@pytest.fixture(scope='module')
def app(world):
    """What `--mode=serve` serves of runs/demo."""
    options = default_config().serve
    options.long_side = _SERVED_SIDE
    return create_app(Segmenter.from_workdir(str(world / 'runs' / 'demo')), options, 'segnet_basic')


@pytest.mark.parametrize('command', list(all_commands()))
def test_a_command_in_the_documents(command, world, app, helps, repository, tiny_config, monkeypatch):
    is_elsewhere = _MARK.search(command)
    monkeypatch.chdir(world)
    # On the even areas of rendered scenes, rounding decides where the maxima of SegNet's pools lie.
    monkeypatch.setattr('atonet_jax.export.comparison.render_scene', noise)
    monkeypatch.setattr('atonet_jax.serve.listen', lambda host, port: listen(host, 0))  # the port may be taken here
    monkeypatch.setattr('atonet_jax.serve._Server.run', lambda self, sockets: None)  # a server ends as it begins
    for part in command.partition(' #')[0].partition(' |')[0].split(' && '):
        words = itertools.dropwhile(_VARIABLE.match, shlex.split(part.replace('.venv/bin/', '')))
        match list(words):
            case ['pip', 'install', *arguments]:
                assert_installable(arguments, repository)
            case words if is_elsewhere:
                if 'main.py' in words:
                    assert_understood(words[words.index('main.py') + 1 :])
            case ['python', 'main.py', *arguments]:
                run_main(arguments, tiny_config)
            case ['python', '-m', 'pytest', path, *_]:
                assert os.path.exists(path)
            case ['python', '-m', module, *arguments]:
                # Scripts that measure take minutes: here they say whether they know the options.
                known = helps[module]
                if known.startswith('needs '):
                    assert known.split()[1] in NOT_FOR_TESTS, 'all other packages are in requirements-test.txt'
                    known = f'usage: {options_in_source(repository, module)}'
                assert known.startswith('usage:')
                given = {argument.partition('=')[0] for argument in arguments if argument.startswith('--')}
                assert given <= set(re.findall(r'--[\w-]+', known))
            case ['curl', *arguments]:
                assert_answered(arguments, app)
            case ['make', target, *_]:
                assert re.search(rf'^{target}:', (world / 'Makefile').read_text(), re.MULTILINE)
            case ['tensorboard', '--logdir', folder]:
                assert os.path.isdir(folder)
            case _:
                pytest.fail(f'{part}: say what it needs, or let it run here')


def assert_answered(arguments, app):
    """What `curl` would send with these arguments is answered, at the default address, with what `-o` names."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--data-binary', required=True)
    parser.add_argument('-o', dest='output', required=True)
    parser.add_argument('url')
    asked, options = parser.parse_args(arguments), default_config().serve
    address = urllib.parse.urlsplit(asked.url)
    assert (address.scheme, address.hostname, address.port) == ('http', options.host, options.port)
    assert asked.data_binary.startswith('@'), 'curl sends the text itself, not the file'
    body = pathlib.Path(asked.data_binary.removeprefix('@')).read_bytes()

    async def post():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.post(asked.url, content=body)

    answer = asyncio.run(post())
    assert answer.status_code == 200, answer.text
    assert answer.headers['content-type'] == mimetypes.guess_type(asked.output)[0]


def assert_installable(arguments, repository):
    """`pip install` is given files that are there, and packages and extras that some file here declares."""
    parser = argparse.ArgumentParser()
    parser.add_argument('-r', action='append', default=[])
    parser.add_argument('-c', action='append', default=[])
    parser.add_argument('packages', nargs='*')
    asked = parser.parse_args(arguments)
    for file in asked.r + asked.c:
        assert (repository / file).is_file(), file
    known = {canonicalize_name(pin.name) for file in repository.glob('requirements*.txt') for pin in pins(file.name)}
    for package in asked.packages:
        if package.startswith('.'):  # the checkout
            wanted, extras = Requirement(f'atonet_jax{package[1:]}'), PROJECT['optional-dependencies']
        else:
            wanted = Requirement(package)
            assert canonicalize_name(wanted.name) in known | OPTIONAL, package
            extras = importlib.metadata.metadata(wanted.name).get_all('Provides-Extra') if wanted.extras else ()
        assert wanted.extras <= set(extras), package


def options_in_source(repository, module):
    """The options that a script defines, as they stand in it."""
    text = (repository / f'{module.replace(".", "/")}.py').read_text()
    return ' '.join(re.findall(r"add_argument\(\s*'(--[\w-]+)'", text))


@pytest.fixture(scope='module')
def helps(repository):
    """What each script of benchmarks/ prints of its options, in a process of their own: some change theirs."""
    scripts = [path for path in sorted((repository / 'benchmarks').glob('*.py')) if 'def main(' in path.read_text()]
    modules = [f'benchmarks.{path.stem}' for path in scripts]
    code = """
import contextlib, importlib, io, json, sys
helps = {}
for name in ABSENT:
    sys.modules[name] = None  # PyTorch and TensorFlow never meet in one process
for name in sys.argv[1:]:
    sys.argv = [name, '--help']
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            importlib.import_module(name).main()
        except SystemExit:
            helps[name] = printed.getvalue()
        except ModuleNotFoundError as error:
            helps[name] = f'needs {error.name.partition(".")[0]}'
json.dump(helps, sys.stdout)
""".replace('ABSENT', repr(NOT_FOR_TESTS))
    command = [sys.executable, '-c', code, *(name for name in modules if not name.endswith('__init__'))]
    return json.loads(subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout)


def test_the_readme_is_under_two_screens(repository):
    assert len((repository / 'README.md').read_text().splitlines()) < 100


def test_links_lead_somewhere(repository):
    """To a file, and in it to a heading, which GitHub names in small letters with hyphens for spaces."""

    def without_code(path):
        return re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)

    def headings(path):
        titles = re.findall(r'^#+ (.+)$', without_code(path), re.MULTILINE)
        return {re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in titles}

    for path in (repository / 'README.md', *(repository / 'docs').glob('*.md')):
        for link, heading in re.findall(r'\]\((?!https?:)([^)#]*)(?:#([\w-]+))?\)', without_code(path)):
            target = path.parent / link if link else path
            assert target.exists(), f'{path.name}: {link}'
            assert not heading or heading in headings(target), f'{path.name}: {link}#{heading}'
