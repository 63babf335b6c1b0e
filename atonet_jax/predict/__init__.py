"""`--mode=predict`: label maps and pictures of images, folders and videos; files for the Cityscapes test server."""

import contextlib
import errno
import functools
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.data.pictures import read_header, read_picture
from atonet_jax.errors import InputError
from atonet_jax.inference.views import Views, many_sizes_text
from atonet_jax.predict import submission
from atonet_jax.predict.batches import Background, errors_apart, in_order_ahead, predicted
from atonet_jax.predict.inputs import Source, fetched, find_sources
from atonet_jax.predict.labeling import Labeler
from atonet_jax.predict.outputs import Drawing, write_label_png, write_png
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.files import make_folder
from atonet_jax.process.progress import Progress
from atonet_jax.process.stopping import StopSignals
from atonet_jax.runs.network import TrainedNetwork, trained_network
from atonet_jax.validation import validate

_log = logging.getLogger(__name__)

_LOOKED_AT = 300  # pictures whose headers are read to see how many sizes there are


def predict(config: ConfigDict, workdir: str) -> bool:
    """Predicts the label maps of `config.predict.input`, and prints where the results are.

    A file that cannot be read does not stop the others. It is named at the end.

    Returns:
        Whether all was done.

    Raises:
        InputError: no run, no input, or nowhere to write.
    """
    validate(config)
    options = config.predict
    is_submission = options.format == 'cityscapes_submission'
    folder = options.output or os.path.join(workdir, 'predictions')
    given = options.input
    if is_submission and not given:
        given = os.path.join(config.data.root, 'leftImg8bit', 'test')
    sources = find_sources(given, folder)
    trained = trained_network(config, workdir, create_mesh())
    if is_submission:
        submission.check_sources(sources, trained.class_table)
    make_folder(folder, '--config.predict.output')

    job = Job(config, trained, folder)
    try:
        job.run(sources)
    finally:
        job.report()
    if is_submission:
        return _finish_submission(sources, folder, job.failures)
    return not job.failures


def _sizes(pictures: list[Source], max_pixels: int) -> dict[tuple[int, int], float]:
    """{(height, width): number}, as if all pictures were like the first ones; those at addresses are not looked at."""
    sizes = Counter()
    for path in [source.path for source in pictures[:_LOOKED_AT] if not source.is_address]:
        with contextlib.suppress(InputError):  # said where it is read
            sizes[read_header(path, path, max_pixels, 'config.predict.max_pixels').size] += 1
    return {size: number * len(pictures) / sizes.total() for size, number in sizes.items()}


class Job:
    """One call: its settings and its results.

    Attributes:
        failures: what is left undone, a line each.
    """

    def __init__(self, config: ConfigDict, trained: TrainedNetwork, folder: str):
        """
        Args:
            config: of the call.
            trained: the network.
            folder: where results go.
        """
        self._config = config
        self._options = config.predict
        self._sample_range = tuple(config.data.sample_range)
        self._trained = trained
        self._views = Views.of(config.eval)
        self._check = partial(self._views.check_size, trained.model)
        self._images_at_once = self._views.images_at_once(config.predict.batch_size)
        self._table = trained.class_table
        self._folder = folder
        self._images = 0
        self._seconds = 0.0
        self._stopped = False
        self.failures = []

    def run(self, sources: list[Source]) -> None:
        videos = [source for source in sources if source.is_video]
        pictures = [source for source in sources if not source.is_video]
        start = time.perf_counter()
        try:
            with StopSignals('stopping after the pictures under way; a second signal stops at once') as signals:
                self._pictures(pictures, signals)
                for source in self._until_stopped(videos, signals):
                    self._video(source, signals)
        finally:
            self._seconds = time.perf_counter() - start

    def report(self) -> None:
        rate = self._images / max(self._seconds, 1e-9)
        print(f'{self._images} images in {self._seconds:.1f} s, {rate:.1f} images/s with compilation: {self._folder}')
        if self._stopped:
            self.failures.append('stopped before all was done; the same command begins anew')
        for failure in self.failures:
            print(f'not done: {failure}')

    @functools.cached_property
    def _label_frames(self) -> Labeler:
        """Of all videos."""
        return Labeler(self._config, self._trained)

    def _until_stopped(self, things: Iterable, signals: StopSignals) -> Iterator:
        """Those before a signal."""
        for thing in things:
            if signals.received(0):
                self._stopped = True
                return
            yield thing

    def _pictures(self, sources: list[Source], signals: StopSignals) -> None:
        if not sources:
            return
        sizes = _sizes(sources, self._options.max_pixels)
        label = Labeler(self._config, self._trained, sizes)
        what = f'the first {_LOOKED_AT} pictures' if len(sources) > _LOOKED_AT else f'{len(sources)} pictures'
        if text := many_sizes_text(what, sizes, label.programs, self._views):
            _log.info('%s', text)

        def compile_ahead(image):
            # Several at once, in the threads that read. Not on GPUs, where compiling measures kernels.
            if jax.default_backend() == 'cpu':
                label.compile((self._images_at_once, *image.shape[:2]))

        def read(source):
            self._check_name(source)
            image = read_picture(
                fetched(source) if source.is_address else source.path,
                source.label,
                self._options.max_pixels,
                'config.predict.max_pixels',
                sample_range=self._sample_range,
            )
            self._check_size(source, image)
            compile_ahead(image)
            return image

        def failed(source, error):
            self.failures.append(str(error))
            progress.update()

        wanted = self._until_stopped(sources, signals)
        with (
            Progress('predicting', len(sources), 'image') as progress,
            ThreadPoolExecutor() as readers,
            Background() as writers,
        ):
            images = errors_apart(in_order_ahead(read, wanted, readers), failed)
            for source, image, labels in predicted(images, label, self._images_at_once):
                writers.submit(self._write, source, image, labels)
                self._images += 1
                progress.update()

    def _paths(self, source: Source) -> dict[str, str]:
        """The file of each kind of output."""
        if self._options.format == 'cityscapes_submission':
            return {'labels': submission.label_path(self._folder, source)}
        name = os.path.join(self._folder, source.name)
        if not source.is_video:
            return {kind: f'{name}_{kind}.png' for kind in self._options.pictures}
        return {
            kind: os.path.join(name, '000000_labels.png') if kind == 'labels' else f'{name}_{kind}.mp4'
            for kind in self._options.pictures
        }

    def _check_name(self, source: Source) -> None:
        """Raises InputError if an output of `source` would have a name that is too long for the file system."""
        for kind, path in self._paths(source).items():
            try:
                os.lstat(path)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise InputError(f'{source.label}: its name is too long for its {kind} file; rename it') from error

    def _check_size(self, source: Source, image: np.ndarray) -> None:
        try:
            self._check(image.shape[:2])
        except InputError as error:
            raise InputError(f'{source.label}: {error}') from error

    def _fitting(self, source: Source, frames: Iterable, of_one_size: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers and frames, up to one that cannot be taken. That is a failure of this video alone."""
        size = None
        for number, frame in enumerate(frames):
            if frame.shape[:2] != size:
                try:
                    self._check_size(source, frame)
                    if size is not None and of_one_size:
                        before, now = (f'{width}x{height}' for height, width in (size, frame.shape[:2]))
                        raise InputError(
                            f'{source.label}: frames change from {before} to {now} after {number}, which are done; cut '
                            'the video there'
                        )
                except InputError as error:
                    self.failures.append(str(error))
                    return
                size = frame.shape[:2]
            yield number, frame

    def _write(self, source: Source, image: np.ndarray, labels: np.ndarray) -> None:
        if self._options.format == 'cityscapes_submission':
            write_label_png(labels, self._paths(source)['labels'], self._table, 'raw')
            return
        drawing = Drawing(image, labels, self._table, np.flatnonzero(np.bincount(labels.ravel())))
        for kind, path in self._paths(source).items():
            if kind == 'labels':
                write_label_png(labels, path, self._table, self._options.ids)
            else:
                write_png(drawing.picture(kind), path)

    def _video(self, source: Source, signals: StopSignals) -> None:
        """A video. What goes wrong is a failure of this one alone."""
        try:
            self._check_name(source)
            self._frames(source, signals)
        except InputError as error:
            self.failures.append(str(error))

    def _frames(self, source: Source, signals: StopSignals) -> None:
        from atonet_jax.predict.video import Video, VideoFile  # takes a moment to import

        paths, most = self._paths(source), self._options.max_frames
        labels_path = paths.pop('labels', None)
        earlier = [path for path in paths.values() if os.path.exists(path)]
        failures_before = len(self.failures)
        with Video(source, self._options.max_pixels, most) as video, ExitStack() as stack:
            if isinstance(source.path, int):
                self._compile_for(source, video)
            expected = min(filter(None, (most, video.frame_count)), default=None)
            files = {kind: stack.enter_context(VideoFile(path, video.rate)) for kind, path in paths.items()}
            wanted = self._until_stopped(itertools.islice(video, most or None), signals)
            frames = self._fitting(source, wanted, of_one_size=bool(files))
            progress = Progress(f'predicting {source.name}', expected, 'frame')
            count = self._write_frames(frames, files, labels_path, progress)
            stopped = self._stopped
            if source.is_live and expected is None:
                self._stopped = False  # by the one way in which a camera ends: nothing is left undone
            if len(self.failures) == failures_before and not stopped:
                if count == 0:
                    self.failures.append(f'{source.label}: no frame came')
                elif count != most and (fault := video.fault(count)):
                    self.failures.append(f'{source.label}: {fault}')
            # What a camera or stream gave does not come again, so it replaces what an earlier call wrote in any case.
            whole = source.is_live or not (stopped or len(self.failures) > failures_before)
            for file in files.values():
                file.rate, file.whole = video.measured_rate(), whole
        if whole and labels_path and count:
            _remove_frames(labels_path, count)
        if not whole and count:
            for path in earlier:
                self.failures.append(f'{path}: stays as an earlier call wrote it; remove it to have the new one')

    def _write_frames(
        self, frames: Iterable[tuple[int, np.ndarray]], files: dict, labels_path: str | None, progress: Progress
    ) -> int:
        """Predicts the frames of a video and writes the results; returns how many there were.

        Args:
            frames: with their numbers.
            files: {kind of picture: its `VideoFile`}.
            labels_path: of the first frame's label file; the others go beside it. None: labels are not written.
            progress: of the frames.
        """

        def draw(file, drawing, kind):
            file.write(drawing.picture(kind))

        everything = range(self._table.num_classes)  # one legend for all frames
        count = 0
        with progress, ExitStack() as stack:
            # A thread for each kind of output, in which frames stay in order.
            writers = {kind: stack.enter_context(Background(1)) for kind in (*files, 'labels')}
            for number, frame, labels in predicted(frames, self._label_frames, self._images_at_once):
                if labels_path:
                    path = _frame_path(labels_path, number)
                    writers['labels'].submit(write_label_png, labels, path, self._table, self._options.ids)
                drawing = Drawing(frame, labels, self._table, everything)
                for kind, file in files.items():
                    writers[kind].submit(draw, file, drawing, kind)
                count += 1
                self._images += 1
                progress.update()
        return count

    def _compile_for(self, source: Source, camera: Iterable) -> None:
        """Compiles for frames of the size of the first one, so that the time it takes is no part of the film."""
        for frame in itertools.islice(camera, 1):
            self._check_size(source, frame)
            np.asarray(self._label_frames(self._images_at_once * [frame]))


def _frame_path(first: str, number: int) -> str:
    return os.path.join(os.path.dirname(first), f'{number:06d}_labels.png')


def _remove_frames(first: str, number: int) -> None:
    """Those of an earlier, longer video, from `number` on."""
    while os.path.exists(path := _frame_path(first, number)):
        os.remove(path)
        number += 1


def _finish_submission(sources: list[Source], folder: str, failures: list[str]) -> bool:
    paths = [submission.label_path(folder, source) for source in sources]
    path = os.path.join(folder, 'submission.zip')
    problems = ['not all was done'] if failures else submission.problems(paths)
    if problems:
        earlier = f'; {path} is from an earlier call' if os.path.exists(path) else ''
        print(f'no zip, because the test server would refuse it: {"; ".join(problems[:5])}{earlier}')
        return False
    submission.write_zip(paths, path)
    print(f'checked: {len(paths)} files of {submission.SIZE[0]}x{submission.SIZE[1]} raw ids; to submit: {path}')
    return True
