"""Frames of video files and cameras, by OpenCV."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np

# Before OpenCV is imported: otherwise it and FFmpeg print messages about bad files.
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')

import cv2  # noqa: E402

from atonet_jax.errors import InputError  # noqa: E402
from atonet_jax.predict.outputs import cannot_write  # noqa: E402

_USUAL_RATE = 25.0  # frames a second, if a camera or file does not say


class Video:
    """An open video file or camera. A context manager.

    Attributes:
        rate: frames a second.
        frame_count: as the file says; None for a camera.
    """

    def __init__(self, path: str | int, max_pixels: int):
        """
        Args:
            path: of a file, or the number of a camera.
            max_pixels: of a frame.

        Raises:
            InputError: it cannot be opened, or its frames are too large.
        """
        self._name = f'camera {path}' if isinstance(path, int) else path
        if not isinstance(path, int):
            try:
                open(path, 'rb').close()
            except OSError as error:
                raise InputError(f'{path}: cannot be read ({error.strerror}); check its permissions') from error
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            what = 'there is none, or another program has it' if isinstance(path, int) else 'no video that can be read'
            raise InputError(f'{self._name}: {what}')
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or _USUAL_RATE
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 and not isinstance(path, int) else None
        width, height = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > max_pixels:
            self._capture.release()
            raise InputError(
                f'{self._name}: frames of {width}x{height} are more than {max_pixels / 1e6:g} million pixels; raise '
                '--config.predict.max_pixels'
            )

    def __enter__(self) -> 'Video':
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the frames, [H, W, 3] uint8 RGB, to the end."""
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class VideoFile:
    """An MP4 (MPEG-4 part 2, which desktop players can read), written completely or not at all. A context manager.

    Raises InputError on leaving if the file does not hold all frames: OpenCV itself reports nothing.
    """

    def __init__(self, path: str, rate: float):
        self._path, self._rate, self._writer, self._frames = path, rate, None, 0
        stem, ending = os.path.splitext(path)
        self._temporary = f'{stem}.{os.getpid()}{ending}'

    def __enter__(self) -> 'VideoFile':
        return self

    def __exit__(self, kind, *_) -> None:
        if self._writer is None:
            return
        self._writer.release()
        written = cv2.VideoCapture(self._temporary)
        whole = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) == self._frames
        written.release()
        if whole:
            os.replace(self._temporary, self._path)
            return
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._temporary)
        if kind is None:
            raise InputError(
                f'{self._path}: cannot be written (the disk may be full); free space, or choose another '
                '--config.predict.output'
            )

    def write(self, frame: np.ndarray) -> None:
        """Writes a frame, [H, W, 3] uint8 RGB. All have one size; an odd side loses a row or column of pixels.

        Raises:
            InputError: it cannot be written.
        """
        frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
        if self._writer is None:
            try:
                os.makedirs(os.path.dirname(self._path) or '.', exist_ok=True)
            except OSError as error:
                raise cannot_write(self._path, error) from error
            codec = cv2.VideoWriter_fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(self._temporary, codec, self._rate, frame.shape[1::-1])
            if not self._writer.isOpened():
                raise InputError(f'{self._path}: cannot be written; choose another --config.predict.output')
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self._frames += 1
