"""Random access to the records of TFDS's files, on a disk or in a bucket."""

import array
import contextlib
import io
import re
import threading
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from atonet_jax.data.dataset import DataError
from atonet_jax.data.tfrecord import masked_crc32c
from atonet_jax.errors import first_line

ANEW = 'copy or prepare it anew'


class Records:
    """A `dataset.Storage` of files within records: '<path of shard>#<number of record>/<feature>'."""

    def __init__(self, shards: list['_TFRecordShard | _ArrayRecordShard']):
        self._shards = {shard.path: shard for shard in shards}
        self._last = threading.local()  # image and label of an example are opened one after the other

    def open(self, path: str) -> BinaryIO:
        shard, number, feature = self._find(path)
        if getattr(self._last, 'record', None) != (shard, number):
            self._last.record = None
            self._last.features = shard.read(number).features.feature
            self._last.record = shard, number
        values = self._last.features[feature].bytes_list.value
        if not values:
            raise DataError(f'{path}: this record has no such file; {ANEW}', 'record cannot be read')
        return io.BytesIO(values[0])

    def fingerprint(self, path: str) -> str:
        shard, _, _ = self._find(path)
        return f'{path} {shard.size} {shard.modified}'

    def _find(self, path: str):
        match = re.fullmatch(r'(.*)#(\d+)/(\w+)', path, re.DOTALL)
        shard = match and self._shards.get(match[1])
        if not shard or int(match[2]) >= len(shard):
            raise DataError(f'{path}: no such record')
        return shard, int(match[2]), match[3]


def open_shard(path: str, file_format: str, count: int) -> '_TFRecordShard | _ArrayRecordShard':
    """A file of `count` records in 'tfrecord' or 'array_record' format.

    Raises:
        DataError: it is missing, damaged, of another format, or of another length.
    """
    kinds = {'tfrecord': _TFRecordShard, 'array_record': _ArrayRecordShard}
    if file_format not in kinds:
        raise DataError(f'{path}: files of format {file_format} cannot be read, only {" and ".join(kinds)}')
    with foreign_errors(path, 'cannot be read', ANEW):
        shard = kinds[file_format](path)
    if len(shard) != count:
        raise DataError(f'{path}: holds {len(shard)} examples instead of {count}; {ANEW}')
    return shard


class _Shard:
    """A file of records with random access. Safe to use from many threads.

    Attributes:
        path: of the file.
        size: in bytes.
        modified: time of its last change in nanoseconds.
    """

    def __init__(self, path: str):
        import tensorflow as tf

        stat = tf.io.gfile.stat(path)
        self.path, self.size, self.modified = path, stat.length, stat.mtime_nsec
        self._parse = tf.train.Example.FromString

    def read(self, i: int):
        """Record `i`, a tf.train.Example.

        Raises:
            DataError: the file has changed or is damaged.
        """
        with foreign_errors(f'{self.path}#{i}', 'cannot be read', ANEW, 'record cannot be read'):
            return self._parse(self._read_bytes(i))


class _TFRecordShard(_Shard):
    """A TFRecord file. It has no index; each record is length (8 bytes), checksum (4), data, checksum (4)."""

    def __init__(self, path: str):
        super().__init__(path)
        self._starts, self._lengths = array.array('q'), array.array('q')
        position = 0
        with epath.Path(path).open('rb') as file:
            while position < self.size:
                file.seek(position)
                header = file.read(12)
                length = int.from_bytes(header[:8], 'little')
                intact = header[8:] == masked_crc32c(header[:8]) and position + length + 16 <= self.size
                if not intact:
                    raise DataError(f'{path}: breaks off or is damaged at byte {position}; {ANEW}')
                self._starts.append(position + 12)
                self._lengths.append(length)
                position += length + 16

    def __len__(self) -> int:
        return len(self._starts)

    def _read_bytes(self, i: int) -> bytes:
        # The record's own checksum would take longer than decoding in Python. Decoding finds nearly all damage to a
        # PNG.
        with epath.Path(self.path).open('rb') as file:
            file.seek(self._starts[i])
            return file.read(self._lengths[i])


class _ArrayRecordShard(_Shard):
    def __init__(self, path: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        super().__init__(path)
        self._source = ArrayRecordDataSource([path])

    def __len__(self) -> int:
        return len(self._source)

    def _read_bytes(self, i: int) -> bytes:
        return self._source[i]


@contextlib.contextmanager
def foreign_errors(path: epath.PathLike, problem: str, advice: str, kind: str = '') -> Iterator[None]:
    """Turns the errors of TensorFlow, TFDS and array_record into DataErrors."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f'{path}: {problem} ({first_line(error)}); {advice}', kind) from error
