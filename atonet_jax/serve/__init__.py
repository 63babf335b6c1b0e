"""`--mode=serve`: a web page and an HTTP endpoint that segment pictures with a trained network."""

import errno
import ipaddress
import logging
import os
import signal
import socket
import types

import uvicorn
from ml_collections import ConfigDict

from atonet_jax.errors import InputError
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.network import trained_network
from atonet_jax.serve.app import create_app
from atonet_jax.validation import validate

_log = logging.getLogger(__name__)

_ENDING_SECONDS = 10  # for accepted requests, once the server ends


def serve(config: ConfigDict, workdir: str) -> None:
    """Serves the run in `workdir`, or the weights of `init_from`, as `config.serve` says, until SIGINT or SIGTERM.

    Accepted requests then have ten seconds to be answered; those that are not get status 503. The process ends when
    the computation under way has ended. A second signal ends it at once.

    Raises:
        InputError: a setting that cannot work, a host or port that is not available, no run, checkpoint or weights.
    """
    mesh = create_mesh()
    validate(config)
    listener = listen(config.serve.host, config.serve.port)  # first, because loading and compiling take a while
    with listener:
        trained = trained_network(config, workdir, mesh)
        segment = Segmenter.of(trained)
        host, port = listener.getsockname()[:2]
        address = ipaddress.ip_address(host.partition('%')[0])
        sample_range = tuple(config.data.sample_range)
        app = create_app(segment, config.serve, config.model.name, sample_range, str(address))
        origin = config.init_from if trained.step is None else workdir
        server = _Server(
            uvicorn.Config(
                app,
                http='h11',
                ws='none',
                lifespan='off',
                log_config=None,  # through logging, as all else
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_ENDING_SECONDS,
            )
        )
        if not address.is_loopback:
            _log.warning('config.serve.host=%r: anyone who reaches this machine over the network may use it', host)
        # Uvicorn sets its handlers only when it runs, but a program that reads the line below may send a signal
        # at once.
        handlers = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            url = _url(config.serve.host, address, port)
            print(f'serving {config.model.name} of {origin} on {url} (Ctrl-C ends it)', flush=True)
            server.run(sockets=[listener])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


class _Server(uvicorn.Server):
    """Ends cleanly at the first signal. Unlike Uvicorn's own server, it does not raise the signal again afterwards."""

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: `host` is no address of this machine, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise InputError(f'config.serve.host={host!r}: is no address ({reason}); give 127.0.0.1') from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f'config.serve.host={host!r}: is no address of this machine; give 127.0.0.1') from error
        if error.errno == errno.EADDRINUSE:
            raise InputError(f'config.serve.port={port}: is taken on {host}; give another, or 0 for any') from error
        raise InputError(
            f'config.serve.port={port}: is not available on {host} ({error.strerror}); give one from 1024 to 65535'
        ) from error
    return listener


def _url(host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    """The address for a browser on this machine."""
    if address.is_unspecified:
        host = '127.0.0.1' if address.version == 4 else '::1'
    return f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'
