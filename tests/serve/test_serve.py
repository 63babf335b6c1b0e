"""The server gives the labels that `Segmenter` gives, says what is wrong in one line, and bounds what it takes."""

import asyncio
import base64
import contextlib
import fcntl
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import PIL.Image
import pytest
import uvicorn

from atonet_jax.config import default_config
from atonet_jax.data.labels import IGNORE_LABEL, ClassTable, RawLabel
from atonet_jax.data.pictures import MAX_PIXELS, read_picture
from atonet_jax.data.visualize import overlay
from atonet_jax.errors import InputError
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import create_model, network
from atonet_jax.serve import listen
from atonet_jax.serve.app import create_app
from atonet_jax.serve.pictures import OUTPUTS, network_size
from atonet_jax.serve.schema import SCHEMA
from atonet_jax.validation import validate

COLORS = ((128, 64, 128), (0, 200, 0), (250, 170, 30), (0, 0, 142), (220, 20, 60))
NAMES = ('road', 'tree', 'lamp', 'car', '<b>person</b>')  # the last as no name should be, on a page
TABLE = ClassTable(
    name='five',
    class_names=NAMES,
    class_colors=COLORS,
    raw_labels=(
        RawLabel('void', 0, (0, 0, 0), IGNORE_LABEL),
        *(RawLabel(name, 10 * i + 7, color, i) for i, (name, color) in enumerate(zip(NAMES, COLORS))),
    ),
)
BLACK = np.zeros((64, 128, 3), np.uint8)


def serve_options(**changes):
    options = default_config().serve
    options.update(long_side=128, max_megabytes=0.1, max_pixels=200_000, waiting=1, **changes)
    return options


def client_of(app, **options):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, **options), base_url='http://localhost')


class Client:
    """Asks an app, one request after the other."""

    def __init__(self, app, **options):
        self._app = app
        self._options = options

    def get(self, path, **options):
        return asyncio.run(self._ask('GET', path, options))

    def post(self, path, **options):
        return asyncio.run(self._ask('POST', path, options))

    async def _ask(self, method, path, options):
        async with client_of(self._app, **self._options) as client:
            return await client.request(method, path, **options)


@pytest.fixture(scope='module')
def segment(tiny_model, tiny_variables, scene):
    """Of a network that sees all classes alike in the mean, so that which one it sees depends on the place."""
    mean = Segmenter(tiny_model, tiny_variables).coarse_logits(scene[None]).mean((0, 1, 2))
    params = dict(tiny_variables['params'])
    conv = params['head']['classifier']['conv']
    params['head'] = params['head'] | {'classifier': {'conv': conv | {'bias': conv['bias'] - mean}}}
    return Segmenter(tiny_model, tiny_variables | {'params': params}, TABLE)


@pytest.fixture(scope='module')
def app(segment):
    return create_app(segment, serve_options(), 'atonet')


@pytest.fixture(scope='module')
def client(app):
    return Client(app)


@pytest.fixture(scope='module')
def scene():
    """[64, 128, 3] uint8 in which the network sees several classes."""
    low = np.random.default_rng(2).integers(0, 256, (4, 8, 3), np.uint8)
    return np.asarray(PIL.Image.fromarray(low).resize((128, 64), PIL.Image.Resampling.NEAREST))


def encoded(image, form='PNG', **options):
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(content):
    with PIL.Image.open(io.BytesIO(content)) as image:
        assert image.format == 'PNG'
        return np.asarray(image)


def conforms(value, schema):
    """Whether a JSON value is what a schema wants, of the keywords that `SCHEMA` uses."""
    unknown = set(schema) - {'$schema', '$defs', 'title', 'description', 'contentEncoding', 'contentMediaType'} - {
        '$ref', 'oneOf', 'const', 'type', 'items', 'minItems', 'maxItems', 'minimum', 'exclusiveMinimum', 'maximum',
        'properties', 'required', 'additionalProperties',
    }  # fmt: skip
    assert not unknown
    if '$ref' in schema:
        return conforms(value, SCHEMA['$defs'][schema['$ref'].removeprefix('#/$defs/')])
    if 'oneOf' in schema:
        return sum(conforms(value, choice) for choice in schema['oneOf']) == 1
    if 'const' in schema:
        return value == schema['const']
    types = {'object': dict, 'array': list, 'string': str, 'integer': int, 'number': (int, float)}
    if not isinstance(value, types[schema['type']]) or isinstance(value, bool):
        return False
    if isinstance(value, dict):
        properties = schema['properties']
        return set(schema['required']) <= set(value) <= set(properties) and all(
            conforms(child, properties[key]) for key, child in value.items()
        )
    if isinstance(value, list):
        in_bounds = schema.get('minItems', 0) <= len(value) <= schema.get('maxItems', len(value))
        return in_bounds and all(conforms(child, schema['items']) for child in value)
    if isinstance(value, (int, float)):
        lowest, above = schema.get('minimum', value), schema.get('exclusiveMinimum', -1)
        return lowest <= value <= schema.get('maximum', value) and value > above
    return True


def assert_one_clear_line(response, status, *texts):
    assert response.status_code == status, response.text
    answer = response.json()
    assert conforms(answer, {'$ref': '#/$defs/error'}) and conforms(answer, SCHEMA)
    assert answer['error'] and '\n' not in answer['error']
    for text in texts:
        assert text in answer['error']


def test_every_output_is_of_the_labels_that_segmenter_gives(client, segment, scene):
    labels = np.asarray(segment(scene[None]))[0]
    assert len(np.unique(labels)) > 1
    wanted = {
        'labels': labels,
        'raw': 10 * labels + 7,
        'color': np.array(COLORS, np.uint8)[labels],
        'overlay': overlay(scene, labels, TABLE.palette),
    }
    assert set(wanted) | {'json'} == set(OUTPUTS)
    for output, values in wanted.items():
        response = client.post(f'/segment?output={output}', content=encoded(scene))
        assert response.status_code == 200, response.text
        assert response.headers['content-type'] == 'image/png'
        np.testing.assert_array_equal(decoded(response.content), values)
    np.testing.assert_array_equal(decoded(client.post('/segment', content=encoded(scene)).content), labels)


def test_json_answer_counts_the_classes_and_follows_the_schema(client, segment, scene):
    response = client.post('/segment?output=json', content=encoded(scene), headers={'Content-Type': 'text/plain'})
    answer = response.json()
    assert conforms(answer, {'$ref': '#/$defs/segmentation'}) and conforms(answer, SCHEMA)
    labels = np.asarray(segment(scene[None]))[0]
    np.testing.assert_array_equal(decoded(base64.b64decode(answer['labels'])), labels)
    assert (answer['width'], answer['height']) == (128, 64)
    assert [each['id'] for each in answer['classes']] == np.unique(labels).tolist()
    for each in answer['classes']:
        assert (each['name'], tuple(each['color'])) == (NAMES[each['id']], COLORS[each['id']])
        assert each['pixels'] == np.sum(labels == each['id'])
        assert each['share'] == pytest.approx(each['pixels'] / labels.size)
    assert json.loads(response.headers['X-Milliseconds']) == answer['milliseconds']


def test_headers_tell_the_times(client, scene):
    headers = client.post('/segment', content=encoded(scene)).headers
    times = json.loads(headers['X-Milliseconds'])
    assert list(times) == ['decode', 'compile', 'network', 'encode']
    assert times['network'] > 0
    assert headers['Server-Timing'] == ', '.join(f'{part};dur={time}' for part, time in times.items())


def test_lists_follow_the_schema_and_the_schema_tells_them_apart(client):
    assert client.get('/schema').json() == SCHEMA
    classes, health = client.get('/classes').json(), client.get('/health').json()
    assert classes == [{'id': i, 'name': NAMES[i], 'color': list(COLORS[i])} for i in range(5)]
    published = network('atonet').published
    assert health == {'status': 'ok', 'network': 'atonet', 'title': 'ATONet', 'source': published.source, 'requests': 0,
                      'max_megabytes': 0.1, 'max_pixels': 200_000, 'long_side': 128}  # fmt: skip
    for value, name in ((classes, 'classes'), (health, 'health')):
        assert conforms(value, {'$ref': f'#/$defs/{name}'}) and conforms(value, SCHEMA)
    assert not conforms(health | {'more': 1}, SCHEMA)
    assert not conforms([classes[0] | {'id': 255}], SCHEMA)
    assert not conforms({'error': 1}, SCHEMA)


@pytest.mark.parametrize(
    ('size', 'wanted', 'of_few'),
    [
        ((1, 1), (64, 64), (64, 64)),
        ((128, 64), (128, 64), (128, 64)),
        ((640, 480), (640, 480), (640, 512)),
        ((2048, 1024), (1024, 512), (1024, 512)),
        ((1920, 1080), (1024, 576), (1024, 576)),
        ((1080, 1920), (576, 1024), (576, 1024)),
        ((30000, 3), (1024, 64), (1024, 64)),
        ((1025, 1025), (1024, 1024), (1024, 1024)),
        ((2000, 1500), (1024, 768), (1024, 768)),
        ((2000, 1400), (1024, 717), (1024, 704)),
    ],
    ids=str,
)
def test_the_network_sees_few_sizes_if_each_needs_its_own_program(size, wanted, of_few):
    assert network_size(*size, long_side=1024, step=1) == wanted
    assert network_size(*size, long_side=1024, step=64) == of_few


def test_a_picture_that_is_not_reduced_has_the_labels_of_segmenter(client, segment, scene):
    picture = PIL.Image.fromarray(scene[:, :101])
    labels = decoded(client.post('/segment', content=encoded(picture)).content)
    np.testing.assert_array_equal(labels, segment.of_any_size(np.asarray(picture)))


@pytest.mark.parametrize(('shares', 'size'), [(True, (128, 69)), (False, (128, 64))])
def test_larger_picture_gets_labels_of_its_own_size(segment, scene, monkeypatch, shares, size):
    monkeypatch.setattr(Segmenter, 'shares_programs', shares)
    client = Client(create_app(segment, serve_options(), 'atonet'))
    picture = PIL.Image.fromarray(scene).resize((280, 150), PIL.Image.Resampling.BICUBIC)
    labels = decoded(client.post('/segment', content=encoded(picture)).content)
    reduced = np.asarray(picture.resize(size, PIL.Image.Resampling.BILINEAR))
    seen = segment.of_any_size(reduced)
    nearest = PIL.Image.fromarray(seen).resize((280, 150), PIL.Image.Resampling.NEAREST)
    np.testing.assert_array_equal(labels, np.asarray(nearest))


def pictures(scene):
    """Encoded pictures of many kinds, all 128x64 once upright."""
    image = PIL.Image.fromarray(scene)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    deep = (np.asarray(image.convert('L')).astype(np.uint16) << 8) + 3
    return {
        'exif': encoded(image.transpose(PIL.Image.Transpose.ROTATE_90), 'JPEG', exif=turned, quality=95),
        'cmyk': encoded(image.convert('CMYK'), 'JPEG', quality=95),
        'grey': encoded(image.convert('L')),
        '16 bits': encoded(deep),
        'palette with transparency': encoded(image.quantize(32), transparency=0),
        'animation': encoded(image, 'GIF', save_all=True, append_images=[PIL.Image.fromarray(BLACK)]),
        'alpha': encoded(image.convert('RGBA'), 'WEBP', lossless=True),
        'two in one': encoded(image, 'MPO', save_all=True, append_images=[PIL.Image.fromarray(BLACK)]),
    }


@pytest.mark.parametrize(
    'kind',
    ['exif', 'cmyk', 'grey', '16 bits', 'palette with transparency', 'animation', 'alpha', 'two in one'],
)
def test_pictures_of_all_kinds_are_read(client, segment, scene, kind):
    content = pictures(scene)[kind]
    rgb = read_picture(io.BytesIO(content), 'test', MAX_PIXELS, 'limit')
    assert rgb.shape == scene.shape and rgb.any()
    labels = decoded(client.post('/segment', content=content).content)
    np.testing.assert_array_equal(labels, np.asarray(segment(rgb[None]))[0])


def bomb(width, height):
    """A PNG that says how large it is, and has no pixel."""
    content = b'\x89PNG\r\n\x1a\n'
    for chunk in (b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0), b'IDAT'):
        content += struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    return content


@pytest.mark.parametrize(
    ('content', 'status', 'texts'),
    [
        (b'', 400, ['empty']),
        (b'no picture', 400, ['no image that can be read', 'PNG']),
        (encoded(BLACK)[:-30], 400, ['cannot be decoded']),
        (encoded(np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8), 'JPEG')[:900], 400, ['decoded']),
        (encoded(BLACK, 'EPS'), 400, ['no image that can be read']),  # Pillow would have Ghostscript run it
        (encoded(np.zeros((400, 501), np.uint8)), 413, ['501x400', '0.2 million pixels', 'max_pixels']),
        (bomb(30000, 30000), 413, ['million pixels']),
        (bytes(100_001), 413, ['0.1 MB', 'config.serve.max_megabytes']),
    ],
    ids=['empty', 'text', 'cut PNG', 'cut JPEG', 'EPS', 'pixels', 'bomb', 'bytes'],
)
def test_bad_upload_is_answered_in_one_line(client, content, status, texts):
    assert_one_clear_line(client.post('/segment', content=content), status, *texts)


def test_form_is_told_what_to_send_instead(client, scene):
    response = client.post('/segment', files={'file': encoded(scene)})
    assert_one_clear_line(response, 400, 'form', '--data-binary')


def test_other_requests_are_answered_in_one_line(client, scene):
    response = client.post('/segment?output=logits', content=encoded(scene))
    assert_one_clear_line(response, 400, "output='logits'", ', '.join(OUTPUTS))
    assert_one_clear_line(client.get('/segments%0A'), 404, '/segments', '/schema')
    response = client.get('/segment')
    assert_one_clear_line(response, 405, 'POST', 'GET')
    assert response.headers['Allow'] == 'POST'


def test_failure_of_the_server_is_answered_too(segment, scene, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    app = create_app(segment, serve_options(), 'atonet')
    monkeypatch.setattr('atonet_jax.serve.pictures.read_picture', fail)
    client = Client(app, raise_app_exceptions=False)
    assert_one_clear_line(client.post('/segment', content=encoded(scene)), 500, 'failed')


def test_wide_samples_are_scaled_as_the_run_scales_them(segment, scene):
    grey = scene[..., 0].astype(np.uint16) * 4
    client = Client(create_app(segment, serve_options(), 'atonet', sample_range=(0, 1023)))
    labels = decoded(client.post('/segment', content=encoded(PIL.Image.fromarray(grey))).content)
    expected = np.asarray(segment(scene[None, ..., :1].repeat(3, axis=3)))[0]
    np.testing.assert_array_equal(labels, expected)
    grey[0, 0] = 4095  # now each picture's own range would be of 12 bits
    labels = decoded(client.post('/segment', content=encoded(PIL.Image.fromarray(grey))).content)
    assert np.mean(labels == expected) > 0.9


def test_endless_upload_is_read_to_the_limit_and_no_further(app):
    taken, sent = [], []

    async def receive():
        taken.append(10_000)
        return {'type': 'http.request', 'body': bytes(10_000), 'more_body': True}

    async def send(message):
        sent.append(message)

    scope = {'type': 'http', 'http_version': '1.1', 'method': 'POST', 'path': '/segment', 'query_string': b'',
             'headers': [(b'host', b'localhost')]}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]['status'] == 413
    assert 100_000 < sum(taken) <= 110_000


def test_upload_that_does_not_end_is_given_up(app, monkeypatch):
    monkeypatch.setattr('atonet_jax.serve.app.UPLOAD_SECONDS', 0.05)

    async def body():
        yield b'begun'
        await asyncio.sleep(60)

    async def upload():
        async with client_of(app) as client:
            response = await client.post('/segment', content=body())
            assert_one_clear_line(response, 408, 'seconds')
            assert (await client.get('/health')).json()['requests'] == 0

    asyncio.run(upload())


def test_answer_that_is_not_taken_is_given_up_and_keeps_its_place_until_then(app, scene, monkeypatch):
    monkeypatch.setattr('atonet_jax.serve.app.ANSWER_SECONDS', 0.3)
    monkeypatch.setattr('atonet_jax.serve.app._PIECE', 10)
    held = []

    async def receive():
        return {'type': 'http.request', 'body': encoded(scene), 'more_body': False}

    async def send(message):
        if message['type'] == 'http.response.body':
            held.append(len(message['body']))
            await asyncio.sleep(60)

    async def ask():
        scope = {'type': 'http', 'http_version': '1.1', 'method': 'POST', 'path': '/segment', 'query_string': b'',
                 'headers': [(b'host', b'localhost')]}  # fmt: skip
        slow = asyncio.create_task(app(scope, receive, send))
        await wait_until(lambda: held)
        async with client_of(app) as client:
            assert (await client.get('/health')).json()['requests'] == 1
            await slow
            assert (await client.get('/health')).json()['requests'] == 0
        assert held == [10]

    asyncio.run(ask())


class HeldSegmenter:
    """Answers once it is let, and remembers how many of its calls ran at the same time."""

    class_table, model = TABLE, create_model('atonet', 5)
    shares_programs = True

    def __init__(self):
        self.let = threading.Event()
        self.calls = self.running = self.most_running = 0

    def compile(self, method, shape):
        pass

    def of_any_size(self, image):
        self.calls += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        assert self.let.wait(30)
        self.running -= 1
        return np.zeros(image.shape[:2], np.uint8)


async def wait_until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_health_answers_during_a_computation_and_too_many_are_told_to_try_again():
    segment = HeldSegmenter()
    app = create_app(segment, serve_options(), 'atonet')

    async def crowd():
        async with client_of(app) as client:
            content = encoded(BLACK)
            taken = [asyncio.create_task(client.post('/segment', content=content)) for _ in range(2)]
            await wait_until(lambda: segment.running)
            health = await client.get('/health')
            while health.json()['requests'] < 2:
                health = await client.get('/health')
            refused = await client.post('/segment', content=content)
            assert_one_clear_line(refused, 503, 'try again')
            assert int(refused.headers['Retry-After']) > 0
            segment.let.set()
            assert [(await task).status_code for task in taken] == [200, 200]
            assert (await client.post('/segment', content=content)).status_code == 200
            assert (await client.get('/health')).json()['requests'] == 0

    asyncio.run(crowd())
    assert (segment.calls, segment.most_running) == (3, 1)


def test_what_is_not_answered_when_the_server_ends_is_told_so_in_one_line(caplog):
    segment = HeldSegmenter()
    app = create_app(segment, serve_options(), 'atonet')

    def post(url):
        return httpx.post(f'{url}segment', content=encoded(BLACK), timeout=60)

    with ThreadPoolExecutor() as clients:
        with running(app, timeout_graceful_shutdown=1) as url:
            asked = [clients.submit(post, url) for _ in range(2)]
            while httpx.get(f'{url}health').json()['requests'] < 2 or not segment.running:
                time.sleep(0.01)
        for each in asked:
            assert_one_clear_line(each.result(), 503, 'the server ends')
    segment.let.set()
    assert not [record for record in caplog.records if record.exc_info]


def test_whoever_has_gone_is_not_computed_for():
    segment = HeldSegmenter()
    app = create_app(segment, serve_options(), 'atonet')
    scope = {'type': 'http', 'http_version': '1.1', 'method': 'POST', 'path': '/segment', 'query_string': b'',
             'headers': [(b'host', b'localhost')]}  # fmt: skip
    messages = [{'type': 'http.request', 'body': encoded(BLACK), 'more_body': False}]

    async def receive():
        return messages.pop() if messages else {'type': 'http.disconnect'}

    async def send(message):
        pass

    async def leave():
        async with client_of(app) as client:
            first = asyncio.create_task(client.post('/segment', content=encoded(BLACK)))
            await wait_until(lambda: segment.running)
            gone = asyncio.create_task(app(scope, receive, send))
            await wait_until(lambda: not messages)
            segment.let.set()
            await asyncio.gather(first, gone)

    asyncio.run(leave())
    assert segment.calls == 1


def test_only_its_own_names_and_pages_may_use_it(client, scene):
    for host in ('localhost:8000', '127.0.0.1', '[::1]:8000'):
        assert client.get('/health', headers={'Host': host}).status_code == 200
    assert client.get('/health', headers={'Host': 'evil.example'}).status_code == 400
    for headers in (
        {'Sec-Fetch-Site': 'cross-site'},
        {'Origin': 'http://evil.example'},  # alone, as over plain http from another machine
        {'Origin': 'http://localhost:3000'},
        {'Origin': 'null'},
    ):
        response = client.post('/segment', content=encoded(scene), headers=headers)
        assert_one_clear_line(response, 403, 'other sites')
    for headers in (
        {'Sec-Fetch-Site': 'same-origin'},
        {'Origin': 'http://localhost'},
        {'Origin': 'http://localhost:8000', 'Host': 'localhost:8000'},
        {'Origin': 'https://street.example', 'Sec-Fetch-Site': 'same-origin'},  # behind a web server
        {},
    ):
        same = client.post('/segment', content=encoded(scene), headers=headers)
        assert same.status_code == 200, headers
        assert not [name for name in same.headers if name.startswith('access-control')]
    for host, address, name, status in (
        ('0.0.0.0', '0.0.0.0', 'evil.example', 200),
        ('0', '0.0.0.0', '192.168.7.7', 200),
        ('192.168.7.7', '192.168.7.7', '192.168.7.7', 200),
        ('192.168.7.7', '192.168.7.7', '192.168.7.8', 400),
        ('192.168.1799', '192.168.7.7', '192.168.7.7', 200),
        ('street.example', '192.168.7.7', 'street.example', 200),
        ('::1', '::1', '[::1]', 200),
        ('2001:DB8:0:0::1', '2001:db8::1', '[2001:db8::1]', 200),
        ('2001:DB8:0:0::1', '2001:db8::1', '[2001:DB8:0:0::1]', 200),
    ):
        app = create_app(HeldSegmenter(), serve_options(host=host), 'atonet', address=address)
        assert Client(app).get('/health', headers={'Host': name}).status_code == status


def test_page_is_one_file_that_loads_nothing_from_elsewhere(client, repository):
    response = client.get('/')
    assert response.headers['content-type'].startswith('text/html')
    policy = response.headers['Content-Security-Policy']
    assert "default-src 'none'" in policy and 'http' not in policy and '*' not in policy
    assert response.headers['X-Content-Type-Options'] == 'nosniff'
    assert not re.findall(r'(?:src|href)="(?!data:)|@import|url\(|innerHTML', response.text)
    project = tomllib.loads(pathlib.Path(repository, 'pyproject.toml').read_text())
    assert 'serve/page.html' in project['tool']['setuptools']['package-data']['atonet_jax']


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('host', ''),
        ('port', -1),
        ('port', 65536),
        ('max_megabytes', 0.0),
        ('max_pixels', 0),
        ('long_side', 1000),
        ('long_side', 0),
        ('waiting', -1),
    ],
    ids=str,
)
def test_setting_that_cannot_work_is_named(key, value):
    config = default_config()
    config.serve[key] = value
    with pytest.raises(InputError, match=rf'^config\.serve\.{key}={re.escape(repr(value))}: must be '):
        validate(config)


@pytest.mark.parametrize('host', ['203.0.113.7', 'no such name', '127.0.0.1.invalid'])
def test_host_that_is_not_here_is_named(host):
    with pytest.raises(InputError, match=f'^config.serve.host={host!r}: is no address.*127.0.0.1'):
        listen(host, 0)


def start(repository, workdir, *arguments):
    command = [sys.executable, 'main.py', f'--workdir={workdir}', '--mode=serve', '--config.serve.long_side=128']
    command += arguments
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.Popen(command, cwd=repository, text=True, **pipes)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_command_serves_until_it_is_told_to_end(repository, finished, scene, number):
    in_short = number == signal.SIGINT and sys.platform == 'linux'  # a form of the address that browsers do not send
    host, address = ('127.0.2', '127.0.0.2') if in_short else ('127.0.0.1', '127.0.0.1')
    settings = f'--config.serve.host={host}', '--config.serve.port=0', '--config.data.sample_range=(0,510)'
    with start(repository, finished, *settings) as process:
        try:
            line = process.stdout.readline()
            match = re.fullmatch(rf'serving atonet of {finished} on http://{host}:(\d+) \(Ctrl-C .*\)\n', line)
            assert match, line + process.stderr.read()
            port = match[1]
            url = f'http://{address}:{port}'
            pictures = scene[..., 0], 2 * scene[..., 0].astype(np.uint16)  # alike, in that range
            answers = [httpx.post(f'{url}/segment', content=encoded(grey), timeout=60) for grey in pictures]
            labels, of_wide_samples = (decoded(answer.content) for answer in answers)
            assert labels.shape == (64, 128)
            np.testing.assert_array_equal(of_wide_samples, labels)
            if number == signal.SIGTERM:
                too_large = httpx.post(f'{url}/segment', content=bytes(25_000_000), timeout=60)
                assert_one_clear_line(too_large, 413, '20 MB')
                with start(repository, finished, f'--config.serve.port={port}') as second:
                    out, err = second.communicate(timeout=120)
                assert (second.returncode, out) == (2, '')
                assert err == f'error: config.serve.port={port}: is taken on 127.0.0.1; give another, or 0 for any\n'
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out, err) == (0, '', '')
        finally:
            process.kill()


class Browser:
    """Chromium without a window, driven over a pipe by its DevTools protocol."""

    def __init__(self, folder, *flags):
        (read_end, self._in), (out, write_end) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_end, write_end)]  # clear of 3 and 4
        os.close(read_end)
        os.close(write_end)
        command = [
            'chromium', '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
            '--disable-background-networking', '--disable-component-update', '--disable-sync',
            f'--user-data-dir={folder}', '--remote-debugging-pipe', *flags, 'about:blank',
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', 'bash', *command],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in theirs:
            os.close(end)
        self._answers = os.fdopen(out, 'rb')
        self._session = {}
        self._number = 0
        self.complaints = []
        (page,) = (each for each in self('Target.getTargets')['targetInfos'] if each['type'] == 'page')
        attached = self('Target.attachToTarget', targetId=page['targetId'], flatten=True)
        self._session = {'sessionId': attached['sessionId']}
        for domain in ('Page', 'DOM', 'Runtime', 'Log'):
            self(f'{domain}.enable')

    def __call__(self, method, **params):
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': params} | self._session
        os.write(self._in, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._read()
            entry = answer.get('params', {}).get('entry', {})
            if answer.get('method') == 'Runtime.exceptionThrown' or entry.get('level') == 'error':
                self.complaints.append(answer['params'])
            if answer.get('id') == self._number:
                return answer['result']

    def _read(self):
        text = bytearray()
        while (byte := self._answers.read(1)) != b'\0':
            assert byte, 'the browser has ended'
            text += byte
        return json.loads(text)

    def evaluate(self, expression):
        """Its value; None also where it fails, as before the page is there."""
        answer = self('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)
        return answer['result'].get('value')

    def wait_for(self, expression):
        end = time.monotonic() + 60
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, (expression, self.complaints)
            time.sleep(0.02)
        return value

    def choose(self, path):
        root = self('DOM.getDocument')['root']['nodeId']
        node = self('DOM.querySelector', nodeId=root, selector='#file')['nodeId']
        self('DOM.setFileInputFiles', files=[str(path)], nodeId=node)

    def close(self):
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
        self._answers.close()


@contextlib.contextmanager
def running(app, **options):
    """Yields the address at which `app` is served meanwhile."""
    listener = listen('127.0.0.1', 0)
    server = uvicorn.Server(uvicorn.Config(app, http='h11', ws='none', lifespan='off', log_config=None, **options))
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
    thread.start()
    try:
        yield f'http://127.0.0.1:{listener.getsockname()[1]}/'
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.skipif(shutil.which('chromium') is None, reason='Chromium is not installed')
def test_page_shows_the_overlay_and_turns_classes_off_and_runs_the_camera(app, segment, scene, tmp_path):
    (tmp_path / 'scene.png').write_bytes(encoded(scene))
    (tmp_path / 'no.png').write_bytes(b'no picture')
    labels = np.asarray(segment(scene[None]))[0]
    camera = ('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')
    with running(app) as url, contextlib.closing(Browser(tmp_path / 'profile', *camera)) as browser:
        browser('Page.navigate', url=url)
        browser.wait_for('classes.length === 5')
        browser.choose(tmp_path / 'scene.png')
        browser.wait_for("shown && element('status').textContent.includes('network')")
        assert browser.evaluate('Array.from(shown.labels)') == labels.ravel().tolist()

        def picture():
            values = browser.evaluate('Array.from(canvas.getContext("2d").getImageData(0, 0, 128, 64).data)')
            return np.array(values, int).reshape(64, 128, 4)[..., :3]

        wanted = overlay(scene, labels, TABLE.palette).astype(int)
        assert np.abs(picture() - wanted).max() <= 2
        entries = "[...document.querySelectorAll('#legend li:not([hidden]) .name')]"
        present = browser.evaluate(f'{entries}.map(entry => entry.textContent)')
        assert present == [NAMES[i] for i in np.unique(labels)]

        off = int(labels[0, 0])
        browser.evaluate(f'classes[{off}].button.click()')
        assert np.abs(picture() - np.where((labels == off)[..., None], scene, wanted)).max() <= 2
        browser.evaluate("element('none').click()")
        assert np.abs(picture() - scene).max() <= 1
        browser.evaluate("element('all').click()")
        assert np.abs(picture() - wanted).max() <= 2
        assert not browser.complaints

        browser.choose(tmp_path / 'no.png')
        error = browser.wait_for("!element('error').hidden && element('error').textContent")
        assert error.startswith('no.png: no image that can be read')
        browser.complaints.clear()  # of the answer 400

        browser.evaluate("element('camera').click()")
        browser.wait_for("shown.name === 'camera' && /fps/.test(element('status').textContent)")
        browser.evaluate("element('camera').click()")
        browser.wait_for("stream === null && element('camera').textContent === 'Start the camera'")
        assert not browser.complaints


def test_listener_takes_connections_before_anything_is_loaded():
    with listen('127.0.0.1', 0) as listener, socket.create_connection(listener.getsockname()[:2], timeout=10):
        pass
