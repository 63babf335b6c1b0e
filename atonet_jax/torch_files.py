"""Files of PyTorch weights as numpy arrays, without PyTorch and without running anything that a file contains.

.safetensors    a table of contents and raw numbers, by the library of that name
.npz            NumPy's archive of arrays, one a name
.pth, .pt       what `torch.save` writes: a pickle that describes the tensors, and their numbers apart from it. Both
                lie in a zip archive, or one after the other in the legacy format (PyTorch before 1.6)
"""

import functools
import io
import lzma
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors.numpy

from atonet_jax.errors import InputError
from atonet_jax.process.files import replacing

_SUFFIXES = ('.pth', '.pt', '.safetensors')
_READ_SUFFIXES = (*_SUFFIXES, '.npz')
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_WRAPPERS = ('state_dict', 'model_state_dict', 'model', 'module', 'net')
_PREFIXES = ('module.', 'model.', '_orig_mod.')  # of DataParallel, of a module around the network, of torch.compile

_STORAGE_DTYPES = {
    'torch.DoubleStorage': np.dtype(np.float64),
    'torch.FloatStorage': np.dtype(np.float32),
    'torch.HalfStorage': np.dtype(np.float16),
    'torch.BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'torch.LongStorage': np.dtype(np.int64),
    'torch.IntStorage': np.dtype(np.int32),
    'torch.ShortStorage': np.dtype(np.int16),
    'torch.CharStorage': np.dtype(np.int8),
    'torch.ByteStorage': np.dtype(np.uint8),
    'torch.BoolStorage': np.dtype(np.bool_),
}
_SAFETENSORS_DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'I64': np.int64,
    'I32': np.int32, 'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_,
}  # fmt: skip

# What pickle, zipfile and its decompressors, numpy and safetensors raise for bytes that make no sense to them.
_DAMAGE_ERRORS = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, safetensors.SafetensorError, struct.error,
    EOFError, AttributeError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of a file of weights by name, read-only.

    Looks into dictionaries that wrap the weights (`state_dict`, `model`, ...), leaves out what is no tensor, and strips
    prefixes that all names share (`module.`, ...). Floats of any width become float32; integers stay as they are.

    Raises:
        InputError: the file cannot be read, is damaged, holds no named tensors, or would run code if PyTorch opened it.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read ({error.strerror}); name a file of weights, {" or ".join(_READ_SUFFIXES)}'
        ) from error
    try:
        return _strip_prefixes(_parse(data, pathlib.Path(path).suffix))
    except _RefusedError as error:
        raise InputError(f'{path}: {_one_line(error)}') from error
    except _DAMAGE_ERRORS as error:
        raise InputError(f'{path}: damaged or cut short ({_one_line(error)}); download or copy it again') from error


def write_state_dict(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays for `torch.load`, or for safetensors where `path` says so, whole or not at all.

    Args:
        path: ends in .pth, .pt or .safetensors; a file that is there already is replaced.
        arrays: by name; floats of 16 to 64 bits, signed integers, uint8 or bool.

    Raises:
        InputError: the path has another ending, or cannot be written.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in _SUFFIXES:
        raise InputError(f'{path}: weights are written as {", ".join(_SUFFIXES)}; give the file one of these endings')
    if suffix == '.safetensors':
        # The library writes memory as it lies.
        data = safetensors.numpy.save({name: np.asarray(array, order='C') for name, array in arrays.items()})
    else:
        data = _zipped(arrays)
    try:
        with replacing(path) as temporary:
            pathlib.Path(temporary).write_bytes(data)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); name a file in another folder') from error


class _RefusedError(Exception):
    """A file that is not read, though nothing is wrong with its bytes: what it is, and what to do."""


_NOT_WEIGHTS = f'not a file of PyTorch weights; name a {" or ".join(_READ_SUFFIXES)} file'


def _parse(data: bytes, suffix: str) -> dict[str, np.ndarray]:
    if not data:
        raise _RefusedError('empty; download or copy it again')
    if suffix == '.safetensors':
        return _read_safetensors(data)
    if data.startswith(b'PK\3\4'):
        return _read_zip(data)
    if data.startswith(pickle.PROTO):
        return _read_legacy(data)
    if data[257:262] == b'ustar':
        raise _RefusedError('in the tar format of PyTorch before 0.1.10; load it with PyTorch and save it again')
    raise _RefusedError(_NOT_WEIGHTS)


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in safetensors.deserialize(data):
        if tensor['dtype'] not in _SAFETENSORS_DTYPES:
            raise _unknown_kind(tensor['dtype'])
        flat = np.frombuffer(tensor['data'], _SAFETENSORS_DTYPES[tensor['dtype']])
        arrays[name] = _as_float32(flat).reshape(tensor['shape'])
        arrays[name].flags.writeable = False
    if not arrays:
        raise _RefusedError('holds no tensors; save model.state_dict()')
    return arrays


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    """`<folder>/data.pkl` describes the tensors, `<folder>/data/<key>` holds the numbers of one storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        if names and all(name.endswith('.npy') for name in names):
            return _read_npz(archive)
        folder = next((name.removesuffix('data.pkl') for name in names if name.endswith('/data.pkl')), None)
        if folder is None:
            raise _RefusedError(_NOT_WEIGHTS)
        if any(name.startswith((f'{folder}code/', f'{folder}constants.pkl')) for name in names):
            raise _RefusedError('a TorchScript archive; save torch.jit.load(file).state_dict() with torch.save instead')
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise zipfile.BadZipFile('compressed entries, which torch.save does not write')
        byteorder = f'{folder}byteorder'
        is_big_endian = byteorder in names and archive.read(byteorder) == b'big'

        def read_storage(storage):
            flat = np.frombuffer(archive.read(f'{folder}data/{storage.key}'), storage.dtype)
            return flat.byteswap() if is_big_endian else flat

        saved = _Unpickler(io.BytesIO(archive.read(f'{folder}data.pkl'))).load()
        return _arrays(saved, read_storage)


def _read_npz(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """An array an entry; one of Python objects, whose reading could run code, is refused."""
    arrays = {}
    for name in archive.namelist():
        stream, name = io.BytesIO(archive.read(name)), name.removesuffix('.npy')  # whose CRC-32 is checked
        try:
            array = np.lib.format.read_array(stream, allow_pickle=False)
        except ValueError as error:
            if 'Object arrays' in str(error):
                raise _unknown_kind(f'{name} of Python objects') from error
            raise
        if array.dtype.kind not in 'fiub':
            raise _unknown_kind(f'{name} of {array.dtype}')
        arrays[name] = _as_float32(array)
        arrays[name].flags.writeable = False
    return arrays


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Five pickles (magic number, version, system, what was saved, keys of storages), and the storages in that order.

    A storage is its number of elements, int64, and the elements; all of it is little-endian.
    """
    stream = io.BytesIO(data)
    if _Unpickler(stream).load() != _LEGACY_MAGIC:
        raise _RefusedError('a pickle that torch.save did not write; save model.state_dict() with torch.save')
    if _Unpickler(stream).load() != _LEGACY_VERSION:
        raise pickle.UnpicklingError('unknown version')
    _Unpickler(stream).load()
    unpickler = _Unpickler(stream)
    saved = unpickler.load()
    keys = _Unpickler(stream).load()

    flats = {}
    position = stream.tell()
    for key in keys:
        storage = unpickler.storages[key]
        (size,) = struct.unpack_from('<q', data, position)
        flats[storage] = np.frombuffer(data, storage.dtype, size, position + 8)
        position += 8 + flats[storage].nbytes
    return _arrays(saved, flats.__getitem__)


class _Storage(NamedTuple):
    """Numbers that one or more tensors are views of."""

    key: str
    dtype: np.dtype
    size: int


class _Inert:
    """What the globals of a pickle become: takes any arguments, keeps nothing, does nothing."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        """Without it, pickle would set attributes, even of this class where a file asks for that."""


class _Tensor(_Inert):
    def __init__(self, storage, offset, shape, strides, *rest):
        """offset, strides: in elements of the storage."""
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


class _Parameter(_Inert):
    def __new__(cls, tensor, *rest):
        return tensor


class _Dictionary(dict, _Inert):
    pass


_STAND_INS = {
    'collections.OrderedDict': _Dictionary,
    'torch._utils._rebuild_tensor': _Tensor,
    'torch._utils._rebuild_tensor_v2': _Tensor,
    'torch._utils._rebuild_parameter': _Parameter,
    'torch._utils._rebuild_parameter_with_state': _Parameter,
} | dict.fromkeys(
    # What training scripts save beside weights.
    (
        'numpy.core.multiarray.scalar', 'numpy._core.multiarray.scalar', 'numpy.core.multiarray._reconstruct',
        'numpy._core.multiarray._reconstruct', 'numpy.dtype', 'numpy.ndarray', '_codecs.encode', '__builtin__.set',
        'builtins.set', 'argparse.Namespace', 'collections.Counter', 'pathlib.PosixPath', 'torch.Size', 'torch.device',
        'torch.float16', 'torch.bfloat16', 'torch.float32',
    ),
    _Inert,
)  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Reads one pickle from a stream. Every global in it becomes a stand-in from this module, or ends the reading.

    Attributes:
        storages: by key, those that the pickle mentions.
    """

    def __init__(self, stream: io.BytesIO):
        start = stream.tell()
        opcodes = list(pickletools.genops(stream))
        stream.seek(start)
        # pickle's memo is a list as long as its largest index, which in a damaged file may be 2**32.
        if any(opcode.name.endswith('PUT') and argument > position for opcode, argument, position in opcodes):
            raise pickle.UnpicklingError('memo index out of range')
        self._holds_module = any(argument == '_parameters' for _, argument, _ in opcodes)
        self.storages = {}
        super().__init__(stream, encoding='latin1')  # so that what Python 2 wrote can be read, too

    def find_class(self, module, name):
        name = f'{module}.{name}'
        if name in _STORAGE_DTYPES:
            return name
        if name in _STAND_INS:
            return _STAND_INS[name]
        if name.startswith('torch.') and ('Storage' in name or '_rebuild_' in name):
            raise _unknown_kind(name)
        if self._holds_module:
            advice = 'it holds a whole model: save model.state_dict() instead'
        else:
            advice = 'save model.state_dict() alone, or take weights from a source that you trust'
        raise _RefusedError(f'would run {name} when opened; nothing was run; {advice}')

    def persistent_load(self, pid):
        _, storage_type, key, _, size, view = (*pid, None)[:6]  # only the legacy format has a view
        if view is not None:
            raise _unknown_kind('view of a storage')
        self.storages[key] = _Storage(key, _STORAGE_DTYPES[storage_type], size)
        return self.storages[key]


def _unknown_kind(kind: str) -> _RefusedError:
    return _RefusedError(
        f'holds a kind of tensor that is not read here ({kind}); convert it to float32 with PyTorch and save it again'
    )


def _arrays(saved: object, read_storage: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a state dict in what a file holds; `read_storage` gives the numbers of a storage, flat."""
    tensors = _find_tensors(saved)
    if not tensors:
        raise _RefusedError(
            f'holds no named tensors, at its top or under {", ".join(_WRAPPERS)}; save model.state_dict()'
        )

    @functools.cache  # tied tensors stay views of one array
    def read(storage):
        flat = read_storage(storage)
        if flat.size != storage.size:
            raise ValueError(f'{flat.size} elements where {storage.size} should be')
        return _as_float32(flat)

    return {name: _view(read(tensor.storage), tensor) for name, tensor in tensors.items()}


def _find_tensors(saved: object) -> dict[str, _Tensor]:
    """The first dictionary of tensors in `saved`, whose wrappers are taken apart; empty where there is none."""
    if not isinstance(saved, dict):
        return {}
    for key in _WRAPPERS:
        # Popped, so that a dictionary that holds itself comes to an end.
        if isinstance(saved.get(key), dict) and (tensors := _find_tensors(saved.pop(key))):
            return tensors
    return {name: value for name, value in saved.items() if isinstance(name, str) and isinstance(value, _Tensor)}


def _view(flat: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The tensor, as a read-only view of its storage."""
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError('a shape or a stride that is no number')
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and last >= flat.size:
        raise ValueError('a tensor reaches beyond its storage')
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)


def _as_float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name in ('float64', 'float16', 'bfloat16') else array


def _strip_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in arrays):
            return _strip_prefixes({name.removeprefix(prefix): array for name, array in arrays.items()})
    return arrays


def _one_line(error: Exception) -> str:
    """An error's text, to which a file may have contributed: printable, and not too long."""
    text = str(error) or type(error).__name__
    return ''.join(character if character.isprintable() else ' ' for character in text[:250])


def _zipped(arrays: dict[str, np.ndarray]) -> bytes:
    """What `torch.save` would write for a dictionary of tensors, each with a storage of its own."""
    storage_types = {dtype: name for name, dtype in _STORAGE_DTYPES.items()}
    items = [
        _pickled(name) + _pickled_tensor(array, storage_types[array.dtype], str(key))
        for key, (name, array) in enumerate(arrays.items())
    ]
    mapping = pickle.EMPTY_DICT + pickle.MARK + b''.join(items) + pickle.SETITEMS
    records = {'data.pkl': pickle.PROTO + b'\2' + mapping + pickle.STOP, 'byteorder': b'little', 'version': b'3\n'}
    records |= {f'data/{key}': array.tobytes() for key, array in enumerate(arrays.values())}
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, record in records.items():
            archive.writestr(zipfile.ZipInfo(f'weights/{name}'), record)
    return file.getvalue()


def _pickled_tensor(array: np.ndarray, storage_type: str, key: str) -> bytes:
    """Opcodes that call `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`."""
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    storage = _tuple(_pickled('storage'), _global(storage_type), *map(_pickled, (key, 'cpu', array.size)))
    no_hooks = _global('collections.OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = (storage + pickle.BINPERSID, *map(_pickled, (0, array.shape, strides, False)), no_hooks)
    return _global('torch._utils._rebuild_tensor_v2') + _tuple(*arguments) + pickle.REDUCE


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]  # without PROTO and STOP


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b''.join(items) + pickle.TUPLE


def _global(name: str) -> bytes:
    module, _, name = name.rpartition('.')
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()
