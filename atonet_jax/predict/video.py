"""Frames of video files, streams and cameras, by OpenCV."""

import contextlib
import os
import time
from collections.abc import Iterator

import numpy as np

# Before OpenCV is imported: otherwise it and FFmpeg print messages about bad files.
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')

import cv2  # noqa: E402

from atonet_jax.errors import InputError  # noqa: E402
from atonet_jax.predict.containers import change_speed, is_cut_off, seconds_shown  # noqa: E402
from atonet_jax.predict.inputs import Source  # noqa: E402
from atonet_jax.predict.outputs import cannot_write  # noqa: E402
from atonet_jax.process.files import temporary_path  # noqa: E402

_USUAL_RATE = 25.0  # frames a second, if a camera or file does not say
_RATES = (0.01, 1000.0)  # frames a second that are taken for true
_LONGEST_SIDE = 8190  # pixels that OpenCV's MPEG-4 writer takes
_REORDERED = 32  # frames, at most, between the order in a file and that of their times


class Video:
    """An open video file, stream or camera. A context manager.

    Attributes:
        rate: frames a second. Of a file the mean of the frames that are asked for, by their timestamps. Of a stream or
            camera what it claims; `measured_rate` is the true one.
        frame_count: of those that the file holds, or that a film at an address claims; None for a camera, and for a
            stream that has no end.
    """

    def __init__(self, source: Source, max_pixels: int, most: int = 0):
        """
        Args:
            source: a file, an address or a camera.
            max_pixels: of a frame.
            most: the number of frames that are asked for; 0: all.

        Raises:
            InputError: it cannot be opened, or its frames are too large.
        """
        self._source, self._most = source, most
        self._first_time = self._last_time = None  # milliseconds in the video; of a camera, as they came
        self._came = 0
        if not source.is_live:
            try:
                open(source.path, 'rb').close()
            except OSError as error:
                raise InputError(f'{source.path}: cannot be read ({error.strerror}); check its permissions') from error
        # From the root: FFmpeg takes what stands before a colon, as in '12:00.mp4', for a protocol.
        path = source.path if source.is_live else os.path.abspath(source.path)
        try:
            self._capture = cv2.VideoCapture(path)
        except UnicodeError as error:
            raise InputError(f'{source.path!r}: OpenCV cannot open a file of this name; rename it') from error
        if not self._capture.isOpened():
            if isinstance(source.path, int):
                what = 'there is none, or another program has it'
            else:
                what = 'no video there, or no answer' if source.is_address else 'no video that can be read'
            raise InputError(f'{source.label}: {what}')
        width, height = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > max_pixels:
            self._capture.release()
            raise InputError(
                f'{source.label}: frames of {width}x{height} are more than {max_pixels / 1e6:g} million pixels; raise '
                '--config.predict.max_pixels'
            )
        self._times = [] if source.is_live else _packet_times(path, most)
        claimed = self._capture.get(cv2.CAP_PROP_FPS)
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if source.is_address else 0  # negative: unknown
        self.frame_count = len(self._times) or max(frames, 0) or None
        self._seconds = frames / claimed if claimed > 0 else 0.0  # that a film at an address claims to last
        rates = (_mean_rate(self._times), claimed, _USUAL_RATE)
        self.rate = next(rate for rate in rates if _RATES[0] <= rate <= _RATES[1])

    def __enter__(self) -> 'Video':
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the frames, [H, W, 3] uint8 RGB, to the end. The rate is measured from here on."""
        self._came = 0
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            if isinstance(self._source.path, int):
                self._last_time = 1000 * time.monotonic()
            else:
                self._last_time = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            if self._came == 0:
                self._first_time = self._last_time
            self._came += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def measured_rate(self) -> float:
        """Frames a second of those that came.

        A camera whose frames come faster than they are predicted drops some, and streams often claim no true rate.
        """
        if not self._source.is_live or self._came < 2 or self._last_time <= self._first_time:
            return self.rate
        rate = 1000 * (self._came - 1) / (self._last_time - self._first_time)
        return rate if _RATES[0] <= rate <= _RATES[1] else self.rate

    def fault(self, count: int) -> str:
        """What is missing where no more frames came than `count`, although more were asked for; '' if nothing is.

        A container often claims another number of frames than it holds, so of a file only what it holds counts.
        """
        if self._source.is_live:
            return self._live_fault(count)
        if is_cut_off(self._source.path):
            return f'the file is cut off; the {count} frames that it still holds are done'
        if len(self._times) < 2 or count >= len(self._times) or self._last_time is None:
            return ''
        mean = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        longest = max(np.diff(self._times), default=0)
        shown = seconds_shown(self._source.path)
        if self._last_time + 1.5 * mean >= self._times[-1] - self._times[0]:
            return ''
        if shown is not None and self._last_time + 1.5 * longest >= 1000 * shown:
            return ''
        expected = len(self._times) if shown is None else round(shown * self.rate)
        return f'ends after {count} of {expected} frames; those are done'

    def _live_fault(self, count: int) -> str:
        if self.frame_count is None:  # a camera ends by itself only where it is lost
            if not self._most and self._source.is_address:
                return ''
            of_all = f' of {self._most}' if self._most else ''
            return f'no more frames came after {count}{of_all}, which are done; check its connection'
        mean = 1 / self.measured_rate()
        if count >= self.frame_count or self._last_time / 1000 + 1.5 * mean >= self._seconds:
            return ''
        return f'ends after {count} of {self.frame_count} frames; those are done'


def _packet_times(path: str, most: int) -> list[float]:
    """Milliseconds of the frames that a file holds, at most `most` of them, without decoding them.

    Empty if OpenCV's reader of this file decodes always, or if the file has no timestamps.
    """
    capture = cv2.VideoCapture(path)
    times = set()
    if capture.set(cv2.CAP_PROP_FORMAT, -1):
        while capture.grab() and not (most and len(times) >= most + _REORDERED):
            times.add(capture.get(cv2.CAP_PROP_POS_MSEC))
    capture.release()
    times = sorted(times)
    return times[: most or None] if len(times) > 1 else []


def _mean_rate(times: list[float]) -> float:
    """Frames a second; 0 if nothing is known."""
    return 1000 * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


class VideoFile:
    """An MP4 (MPEG-4 part 2, which desktop players can read), written completely or not at all. A context manager.

    Raises InputError on leaving if the file does not hold all frames: OpenCV itself reports nothing.

    Attributes:
        rate: frames a second at which it will play. May be changed until the end.
        whole: whether all frames came. If not, it does not replace an earlier file. May be changed until the end.
    """

    def __init__(self, path: str, rate: float):
        # MPEG-4 counts time in at most 65535 parts of a second, and OpenCV takes as many as the rate has digits.
        self._coded_rate = round(rate, 3 if rate < 65 else 2 if rate < 655 else 1)
        self.rate = rate
        self.whole = True
        self._path, self._writer, self._frames, self._size = path, None, 0, ()
        self._temporary = os.path.abspath(temporary_path(path))  # from the root, as in `Video`

    def __enter__(self) -> 'VideoFile':
        return self

    def __exit__(self, kind, *_) -> None:
        if self._writer is None:
            return
        self._writer.release()
        written = cv2.VideoCapture(self._temporary)
        holds_all = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) == self._frames
        written.release()
        if holds_all and kind is None and (self.whole or not os.path.exists(self._path)):
            if abs(self.rate / self._coded_rate - 1) > 1e-3:
                change_speed(self._temporary, self.rate / self._coded_rate)
            os.replace(self._temporary, self._path)
            return
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._temporary)
        if kind is None and not holds_all:
            raise InputError(
                f'{self._path}: cannot be written (the disk may be full); free space, or choose another '
                '--config.predict.output'
            )

    def write(self, frame: np.ndarray) -> None:
        """Writes a frame, [H, W, 3] uint8 RGB. All have one size; an odd side loses a row or column of pixels.

        Frames that are larger than MPEG-4 allows are reduced to what it does.

        Raises:
            InputError: it cannot be written, or the frame has another size.
        """
        height, width = frame.shape[:2]
        if max(height, width) > _LONGEST_SIDE:
            factor = _LONGEST_SIDE / max(height, width)
            reduced = max(2, round(width * factor)), max(2, round(height * factor))
            frame = cv2.resize(frame, reduced, interpolation=cv2.INTER_AREA)
        frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
        if self._writer is None:
            try:
                os.makedirs(os.path.dirname(self._path) or '.', exist_ok=True)
            except OSError as error:
                raise cannot_write(self._path, error) from error
            codec = cv2.VideoWriter_fourcc(*'mp4v')
            self._size = frame.shape[1::-1]
            self._writer = cv2.VideoWriter(self._temporary, codec, self._coded_rate, self._size)
            if not self._writer.isOpened():
                raise InputError(f'{self._path}: cannot be written; choose another --config.predict.output')
        if frame.shape[1::-1] != self._size:
            before, now = ('x'.join(map(str, size)) for size in (self._size, frame.shape[1::-1]))
            raise InputError(f'{self._path}: frames change from {before} to {now}; cut the video there')
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self._frames += 1
