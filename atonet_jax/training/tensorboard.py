"""TensorBoard's event file of a run, written without TensorFlow, PyTorch or a protocol buffer library.

A file is a sequence of records (tensorflow/core/lib/io/record_writer.h: length, its checksum, data, its checksum). A
record is one `Event` (tensorflow/core/util/event.proto) in the wire format of protocol buffers.
"""

import io
import os
import socket
import struct
import time

import numpy as np
import PIL.Image

from atonet_jax.data.tfrecord import masked_crc32c
from atonet_jax.process.files import sync

# Numbers of fields, from event.proto, summary.proto, tensor.proto, tensor_shape.proto and plugin_text.proto.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7
_STATUS, _START = 1, 1
_VALUE, _TAG, _SIMPLE_VALUE, _IMAGE, _TENSOR, _METADATA = 1, 1, 2, 4, 8, 9
_HEIGHT, _WIDTH, _COLORSPACE, _ENCODED, _RGB = 1, 2, 3, 4, 3
_DTYPE, _SHAPE, _STRING_VALUE, _STRING = 1, 2, 8, 7
_DIMENSION, _SIZE = 2, 1
_PLUGIN, _PLUGIN_NAME = 1, 1


class EventFile:
    """Writes in the caller's thread: where the disk is full, the writing call raises OSError."""

    def __init__(self, folder: str, first_step: int):
        """folder: made where missing. first_step: TensorBoard forgets what earlier files say of it and later steps."""
        os.makedirs(folder, exist_ok=True)
        name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}'
        self._file = open(os.path.join(folder, name), 'xb')
        try:
            self._write(_bytes(_FILE_VERSION, b'brain.Event:2'), 0)
            self._write(_bytes(_SESSION_LOG, _whole(_STATUS, _START)), first_step)
        except OSError:
            self.close()
            raise

    def scalar(self, name: str, value: float, step: int) -> None:
        self._write_value(name, _float(_SIMPLE_VALUE, value), step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """picture: [H, W, 3] uint8."""
        png = io.BytesIO()
        PIL.Image.fromarray(picture).save(png, 'PNG')
        height, width, _ = picture.shape
        image = _whole(_HEIGHT, height) + _whole(_WIDTH, width) + _whole(_COLORSPACE, _RGB)
        self._write_value(name, _bytes(_IMAGE, image + _bytes(_ENCODED, png.getvalue())), step)

    def text(self, name: str, markdown: str, step: int) -> None:
        shape = _bytes(_SHAPE, _bytes(_DIMENSION, _whole(_SIZE, 1)))
        tensor = _whole(_DTYPE, _STRING) + shape + _bytes(_STRING_VALUE, markdown.encode())
        plugin = _bytes(_METADATA, _bytes(_PLUGIN, _bytes(_PLUGIN_NAME, b'text')))
        self._write_value(f'{name}/text_summary', _bytes(_TENSOR, tensor) + plugin, step)

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        """Returns when all events have reached the disk."""
        self._file.flush()
        sync(self._file.name)

    def close(self) -> None:
        """Closes the file, also where the disk does not take the last events and OSError is raised."""
        self._file.close()

    def _write_value(self, name: str, content: bytes, step: int) -> None:
        tag = _bytes(_TAG, name.replace(' ', '_').encode())
        self._write(_bytes(_SUMMARY, _bytes(_VALUE, tag + content)), step)

    def _write(self, content: bytes, step: int) -> None:
        event = _double(_WALL_TIME, time.time()) + _whole(_STEP, step) + content
        length = struct.pack('<Q', len(event))
        self._file.write(length + masked_crc32c(length) + event + masked_crc32c(event))


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes(parts) + bytes([number])


def _whole(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _double(field: int, number: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack('<d', number)


def _bytes(field: int, content: bytes) -> bytes:
    """Text, raw bytes, or a message within a message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack('<f', number)
