"""The routes: a page for people, an endpoint for programs. docs/serving.md describes requests and answers."""

import asyncio
import base64
import contextlib
import importlib.resources
import io
import ipaddress
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import anyio.to_thread
import numpy as np
import PIL.Image
from ml_collections import ConfigDict
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from atonet_jax.data.labels import ClassTable
from atonet_jax.data.pictures import TooManyPixels, formats, read_picture
from atonet_jax.data.visualize import overlay
from atonet_jax.errors import InputError
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import network as contract_of

OUTPUTS = ('labels', 'raw', 'color', 'overlay', 'json')
SIDE_STEP = 64  # pixels; sides that the network sees are multiples of it
# Pillow's other formats are rare. HEIF needs pillow-heif.
FORMATS = ('AVIF', 'BMP', 'GIF', 'HEIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
UPLOAD_SECONDS = 30  # after which an unfinished upload is dropped
ANSWER_SECONDS = 30  # the same for an answer that the client does not read
_PIECE = 65536  # bytes of an answer that are sent at once

_HEADERS = {
    'Cache-Control': 'no-store',
    'Content-Security-Policy': "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
}

_COUNT = {'type': 'integer', 'minimum': 0}
_MILLISECONDS = {'type': 'number', 'minimum': 0}
_CLASS = {
    'id': {'type': 'integer', 'minimum': 0, 'maximum': 254, 'description': 'train id'},
    'name': {'type': 'string'},
    'color': {
        'type': 'array',
        'items': {'type': 'integer', 'minimum': 0, 'maximum': 255},
        'minItems': 3,
        'maxItems': 3,
        'description': 'red, green, blue',
    },
}


def _object(properties: dict[str, Any], description: str) -> dict[str, Any]:
    return {
        'type': 'object',
        'description': description,
        'properties': properties,
        'required': list(properties),
        'additionalProperties': False,
    }


SCHEMA = {
    '$schema': 'https://json-schema.org/draft/2020-12/schema',
    'title': 'What --mode=serve answers in JSON',
    'oneOf': [{'$ref': f'#/$defs/{name}'} for name in ('segmentation', 'classes', 'health', 'error')],
    '$defs': {
        'segmentation': _object(
            {
                'width': {'type': 'integer', 'minimum': 1},
                'height': {'type': 'integer', 'minimum': 1},
                'milliseconds': {'$ref': '#/$defs/milliseconds'},
                'classes': {
                    'type': 'array',
                    'description': 'those in the picture, by train id',
                    'items': _object(
                        _CLASS
                        | {
                            'pixels': {'type': 'integer', 'minimum': 1},
                            'share': {'type': 'number', 'exclusiveMinimum': 0, 'maximum': 1},
                        },
                        'a class and how much of the picture it covers',
                    ),
                },
                'labels': {
                    'type': 'string',
                    'contentEncoding': 'base64',
                    'contentMediaType': 'image/png',
                    'description': '8 bit grey, train ids, of the size of the picture',
                },
            },
            'POST /segment?output=json',
        ),
        'milliseconds': _object(
            {name: _MILLISECONDS for name in ('decode', 'compile', 'network', 'encode')},
            'how long each part took; compile: next to nothing except for the first picture of a shape',
        ),
        'classes': {
            'type': 'array',
            'description': 'GET /classes: all that the network predicts, by train id',
            'items': _object(_CLASS, 'a class'),
        },
        'health': _object(
            {
                'status': {'const': 'ok'},
                'network': {'type': 'string', 'description': 'the name by which configs choose it'},
                'title': {'type': 'string', 'description': "the network's, as tables print it"},
                'source': {'type': 'string', 'description': 'where the network is published'},
                'requests': _COUNT | {'description': 'of /segment that are being answered or wait'},
                'max_megabytes': {'type': 'number', 'exclusiveMinimum': 0},
                'max_pixels': {'type': 'integer', 'minimum': 1},
                'long_side': {'type': 'integer', 'minimum': SIDE_STEP},
            },
            'GET /health',
        ),
        'error': _object({'error': {'type': 'string', 'description': 'one line'}}, 'any answer from 400 on'),
    },
}


def create_app(
    segment: Segmenter, options: ConfigDict, network: str, sample_range: Sequence[float] = ()
) -> Starlette:
    """The page and the endpoint.

    Args:
        segment: with a class table.
        options: `config.serve`.
        network: its name.
        sample_range: `config.data.sample_range`, of pictures of more than 8 bits.
    """
    endpoint = _Endpoint(_Pictures(segment, options, sample_range), options)
    page = importlib.resources.files(__package__).joinpath('page.html').read_text(encoding='utf-8')
    classes = _classes(segment.class_table)
    published = contract_of(segment.model).published

    # All are coroutines, because Starlette would run plain functions in threads.
    async def show_page(request: Request) -> Response:
        return HTMLResponse(page)

    async def list_classes(request: Request) -> Response:
        return JSONResponse(classes)

    async def give_schema(request: Request) -> Response:
        return JSONResponse(SCHEMA, media_type='application/schema+json')

    async def tell_health(request: Request) -> Response:
        limits = {key: options[key] for key in ('max_megabytes', 'max_pixels', 'long_side')}
        names = {'network': network, 'title': published.title, 'source': published.source}
        return JSONResponse({'status': 'ok', **names, 'requests': endpoint.requests, **limits})

    return Starlette(
        routes=[
            Route('/', show_page),
            Route('/segment', endpoint.segment, methods=['POST']),
            Route('/classes', list_classes),
            Route('/schema', give_schema),
            Route('/health', tell_health),
        ],
        middleware=[
            Middleware(_WithHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=_allowed_hosts(options.host), www_redirect=False),
        ],
        exception_handlers={
            HTTPException: _http_error,
            InputError: _input_error,
            ClientDisconnect: _gone,
            Exception: _failure,
        },
    )


def network_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """(width, height) of a picture for the network. There are few such sizes, because each needs its own program.

    The picture is reduced until its long side is at most `long_side`. Then each side becomes the nearest multiple of
    `SIDE_STEP`, at least `SIDE_STEP`.
    """
    factor = min(1, long_side / max(width, height))
    width, height = (max(1, round(side * factor / SIDE_STEP)) * SIDE_STEP for side in (width, height))
    return width, height


class _Pictures:
    """Turns the bytes of a picture into those of an answer. One thread at a time calls its methods."""

    def __init__(self, segment: Segmenter, options: ConfigDict, sample_range: Sequence[float]):
        self._segment = segment
        self._sample_range = sample_range
        self._kinds = [kind for kind in FORMATS if kind in formats()]
        self._table = segment.class_table
        self._options = options
        self._compiled = set()
        self._compile(network_size(1280, 720, options.long_side))  # of many cameras

    def answer(self, body: bytes, output: str) -> tuple[bytes, dict[str, float]]:
        """The encoded answer, and the milliseconds of each part.

        Raises:
            InputError: `body` is no picture that can be used.
        """
        clock = _Clock()
        picture = read_picture(
            io.BytesIO(body),
            'the picture',
            self._options.max_pixels,
            'config.serve.max_pixels',
            self._kinds,
            self._sample_range,
        )
        height, width = picture.shape[:2]
        size = network_size(width, height, self._options.long_side)
        image = np.asarray(PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.BILINEAR))
        clock.stop('decode')
        self._compile(size)
        clock.stop('compile')
        labels = self._table.train_ids(np.asarray(self._segment(image[None]))[0])
        clock.stop('network')
        labels = np.asarray(PIL.Image.fromarray(labels).resize((width, height), PIL.Image.Resampling.NEAREST))

        if output == 'labels':
            content = _png(labels)
        elif output == 'raw':
            content = _png(self._table.train_to_raw[labels])
        elif output == 'color':
            content = _png(self._table.palette[labels])
        elif output == 'overlay':
            content = _png(overlay(picture, labels, self._table.palette))
        else:
            values = {
                'width': width,
                'height': height,
                'milliseconds': clock.milliseconds,
                'classes': _shares(labels, self._table),
                'labels': base64.b64encode(_png(labels)).decode(),
            }
            clock.stop('encode')  # which `values` shows too
            return json.dumps(values).encode(), clock.milliseconds
        clock.stop('encode')
        return content, clock.milliseconds

    def _compile(self, size: tuple[int, int]) -> None:
        if size not in self._compiled:
            self._segment.compile('__call__', (1, size[1], size[0]))
            self._compiled.add(size)


class _Endpoint:
    """POST /segment: limits the waiting requests, refuses some unread, and computes one at a time.

    Attributes:
        requests: how many are being answered or wait.
    """

    def __init__(self, pictures: _Pictures, options: ConfigDict):
        self.requests = 0
        self._pictures = pictures
        self._most_requests = options.waiting + 1
        self._max_megabytes = options.max_megabytes
        self._turn = asyncio.Lock()

    async def segment(self, request: Request) -> Response:
        output = request.query_params.get('output', 'labels')
        if output not in OUTPUTS:
            raise HTTPException(400, f'output={output!r}: must be one of {", ".join(OUTPUTS)}')
        # Other sites cannot read answers, but could keep the network busy.
        if _is_of_another_site(request.headers):
            raise HTTPException(403, 'pages of other sites may not use this server; open its own page')
        with contextlib.ExitStack() as place:
            place.enter_context(self._place())
            body = await self._read(request)
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                try:
                    # Must not be abandoned: the next request may start only when this computation has ended.
                    content, milliseconds = await anyio.to_thread.run_sync(self._pictures.answer, body, output)
                except InputError as error:
                    if request.headers.get('content-type', '').startswith('multipart/'):
                        raise InputError(
                            'the body is a form; send the bytes of the picture alone (curl --data-binary @street.jpg)'
                        ) from error
                    raise
            timing = ', '.join(f'{part};dur={duration}' for part, duration in milliseconds.items())
            headers = {'Server-Timing': timing, 'X-Milliseconds': json.dumps(milliseconds)}
            media_type = 'application/json' if output == 'json' else 'image/png'
            return _Answer(content, place.pop_all(), headers=headers, media_type=media_type)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """A place in the queue, held until the answer is sent, so that the memory of requests is bounded."""
        if self.requests >= self._most_requests:
            raise HTTPException(503, 'too many requests wait already; try again', headers={'Retry-After': '1'})
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def _read(self, request: Request) -> bytes:
        most = int(self._max_megabytes * 1e6)
        too_large = HTTPException(
            413,
            f'the request has more than {self._max_megabytes:g} MB; make the picture smaller, or raise the limit '
            'config.serve.max_megabytes',
        )
        length = request.headers.get('content-length', '')
        if length.isdecimal() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except TimeoutError as error:
            raise HTTPException(408, f'the upload took more than {UPLOAD_SECONDS} seconds') from error
        if not body:
            raise HTTPException(400, 'the request is empty; send the bytes of a picture as its body')
        return bytes(body)


class _Answer(Response):
    """Sent in pieces as the client reads, and dropped after `ANSWER_SECONDS`. Keeps its place until then."""

    def __init__(self, content: bytes, place: contextlib.ExitStack, **options):
        super().__init__(content, **options)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Uvicorn closes an unfinished connection and logs it. It cancels the rest when it ends.
        with self._place, contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await send({'type': 'http.response.start', 'status': self.status_code, 'headers': self.raw_headers})
                for start in range(0, len(self.body), _PIECE):
                    piece = self.body[start : start + _PIECE]
                    more = start + _PIECE < len(self.body)
                    await send({'type': 'http.response.body', 'body': piece, 'more_body': more})


class _Clock:
    """Milliseconds between its stops."""

    def __init__(self):
        self.milliseconds = {}
        self._last = time.perf_counter()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.milliseconds[part] = round(1000 * (now - self._last), 2)
        self._last = now


class _WithHeaders:
    """Adds `_HEADERS` to every answer."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message):
            if message['type'] == 'http.response.start':
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_more)


def _allowed_hosts(host: str) -> list[str]:
    """Host names that a browser may use. Others belong to sites that point their own name here (DNS rebinding)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ['localhost', '127.0.0.1', '[::1]', host]
    if address.is_unspecified:
        return ['*']
    return ['localhost', '127.0.0.1', '[::1]', host if address.version == 4 else f'[{host}]']


def _is_of_another_site(headers: Headers) -> bool:
    """Whether a page of another site sends the request. Programs send none of these headers.

    Browsers send Sec-Fetch-Site to this machine and over https alone, and Origin always. The first one also holds
    behind a web server that changes Host.
    """
    if 'sec-fetch-site' in headers:
        return headers['sec-fetch-site'] not in ('none', 'same-origin')
    return 'origin' in headers and headers['origin'].partition('://')[2] != headers.get('host')


def _classes(table: ClassTable) -> list[dict[str, Any]]:
    return [
        {'id': i, 'name': name, 'color': [int(value) for value in color]}
        for i, (name, color) in enumerate(zip(table.class_names, table.class_colors, strict=True))
    ]


def _shares(labels: np.ndarray, table: ClassTable) -> list[dict[str, Any]]:
    pixels = np.bincount(labels.ravel(), minlength=table.num_classes).tolist()
    return [
        description | {'pixels': pixels[i], 'share': pixels[i] / labels.size}
        for i, description in enumerate(_classes(table))
        if pixels[i]
    ]


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, 'PNG', compress_level=1)  # higher levels take many times as long
    return file.getvalue()


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({'error': ' '.join(text.split())}, status, headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    text = error.detail
    if error.status_code == 404:
        text = f'{request.url.path!r}: there is no such page; there are /, /segment, /classes, /schema, /health'
    elif error.status_code == 405:
        text = f'{request.url.path} takes {error.headers["Allow"]}, not {request.method}'
    return _error(error.status_code, text, error.headers)


async def _input_error(request: Request, error: InputError) -> Response:
    return _error(413 if isinstance(error, TooManyPixels) else 400, str(error))


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return _error(400, 'the request ended early')  # which nobody receives


async def _failure(request: Request, error: Exception) -> Response:
    return _error(500, 'the server failed; what it prints says more', _HEADERS)  # which `_WithHeaders` does not see
