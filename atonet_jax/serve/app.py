"""The routes: a page for people, an endpoint for programs. docs/serving.md describes requests and answers."""

import asyncio
import contextlib
import importlib.resources
import ipaddress
import json
from collections.abc import Iterator, Sequence

import anyio.to_thread
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

from atonet_jax.data.pictures import TooManyPixels
from atonet_jax.errors import InputError
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import network
from atonet_jax.serve.pictures import OUTPUTS, Pictures, class_descriptions
from atonet_jax.serve.schema import SCHEMA

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


def create_app(
    segment: Segmenter,
    options: ConfigDict,
    name: str,
    sample_range: Sequence[float] = (),
    address: str = '127.0.0.1',
) -> Starlette:
    """The page and the endpoint.

    Args:
        segment: with a class table.
        options: `config.serve`.
        name: of the network.
        sample_range: `config.data.sample_range`, of pictures of more than 8 bits.
        address: what the server listens on, in its usual form; `options.host` may be a name or another form of it.
    """
    endpoint = _Endpoint(Pictures(segment, options, sample_range), options)
    page = importlib.resources.files(__package__).joinpath('page.html').read_text(encoding='utf-8')
    classes = class_descriptions(segment.class_table)
    published = network(segment.model).published

    # All are coroutines, because Starlette would run plain functions in threads.
    async def show_page(request: Request) -> Response:
        return HTMLResponse(page)

    async def list_classes(request: Request) -> Response:
        return JSONResponse(classes)

    async def give_schema(request: Request) -> Response:
        return JSONResponse(SCHEMA, media_type='application/schema+json')

    async def tell_health(request: Request) -> Response:
        limits = {key: options[key] for key in ('max_megabytes', 'max_pixels', 'long_side')}
        names = {'network': name, 'title': published.title, 'source': published.source}
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
            Middleware(TrustedHostMiddleware, allowed_hosts=_allowed_hosts(options.host, address), www_redirect=False),
        ],
        exception_handlers={
            HTTPException: _http_error,
            InputError: _input_error,
            ClientDisconnect: _gone,
            Exception: _failure,
        },
    )


class _Endpoint:
    """POST /segment: limits the waiting requests, refuses some unread, and computes one at a time.

    Attributes:
        requests: how many are being answered or wait.
    """

    def __init__(self, pictures: Pictures, options: ConfigDict):
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
            try:
                content, milliseconds = await self._compute(request, await self._read(request), output)
            except asyncio.CancelledError as error:  # by Uvicorn, once its time to end is over
                raise HTTPException(503, 'the server ends before the picture is done; try again later') from error
            timing = ', '.join(f'{part};dur={duration}' for part, duration in milliseconds.items())
            headers = {'Server-Timing': timing, 'X-Milliseconds': json.dumps(milliseconds)}
            media_type = 'application/json' if output == 'json' else 'image/png'
            return _Answer(content, place.pop_all(), headers=headers, media_type=media_type)

    async def _compute(self, request: Request, body: bytes, output: str) -> tuple[bytes, dict[str, float]]:
        """`Pictures.answer`, once all earlier requests are done."""
        async with self._turn:
            if await request.is_disconnected():
                raise ClientDisconnect
            try:
                # Must not be abandoned: the next request may start only when this computation has ended.
                return await anyio.to_thread.run_sync(self._pictures.answer, body, output)
            except InputError as error:
                if request.headers.get('content-type', '').startswith('multipart/'):
                    raise InputError(
                        'the body is a form; send the bytes of the picture alone (curl --data-binary @street.jpg)'
                    ) from error
                raise

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


def _allowed_hosts(host: str, address: str) -> list[str]:
    """Host names that a browser may use. Others belong to sites that point their own name here (DNS rebinding).

    Browsers write addresses in their usual form, whatever form `config.serve.host` has: 127.0.0.1 for 127.1.
    """
    if ipaddress.ip_address(address).is_unspecified:
        return ['*']
    return ['localhost', '127.0.0.1', '[::1]', *(f'[{each}]' if ':' in each else each for each in (host, address))]


def _is_of_another_site(headers: Headers) -> bool:
    """Whether a page of another site sends the request. Programs send none of these headers.

    Browsers send Sec-Fetch-Site to this machine and over https alone, and Origin always. The first one also holds
    behind a web server that changes Host.
    """
    if 'sec-fetch-site' in headers:
        return headers['sec-fetch-site'] not in ('none', 'same-origin')
    return 'origin' in headers and headers['origin'].partition('://')[2] != headers.get('host')


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
