"""TensorBoard's file of a run."""

import os
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventFile:
    """Writes in the caller's thread.

    tensorboardX's own SummaryWriter hands events to a thread, which dies where the disk is full; the run then waits for
    it for ever. Here the writing call raises OSError.
    """

    def __init__(self, folder: str, first_step: int):
        """folder: made where missing. first_step: TensorBoard forgets what earlier files say of it and later steps."""
        os.makedirs(folder, exist_ok=True)
        self._file = EventsWriter(os.path.join(folder, 'events'))
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), first_step)

    def scalar(self, name: str, value: float, step: int) -> None:
        self._write(Event(summary=summary.scalar(name, value)), step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """picture: [H, W, 3] uint8."""
        self._write(Event(summary=summary.image(name, picture, dataformats='HWC')), step)

    def text(self, name: str, markdown: str, step: int) -> None:
        self._write(Event(summary=summary.text(name, markdown)), step)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event, step: int) -> None:
        event.step, event.wall_time = step, time.time()
        self._file.write_event(event)
