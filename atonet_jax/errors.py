"""The errors that end the command line with one line for the person who reads it, and no traceback."""

import signal


class InputError(ValueError):
    """Bad input. Its text is one line: what is wrong, where (file, key, value), and what to do."""

    def __str__(self) -> str:
        return '\\n'.join(super().__str__().splitlines())  # names of files may hold line ends


class ExportError(RuntimeError):
    """An export that does not compute what the network does. Its text is one line."""


class TrainingError(RuntimeError):
    """A run that cannot go on. Its text is one line: what happened at which step, what is kept, and what to do."""


class Stopped(Exception):
    """A signal ended the run, and its state is saved.

    Attributes:
        signal: the signal.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f'stopped by {signal.Signals(signal_number).name} after step {step}, which is saved')
        self.signal = signal_number


def first_line(error: BaseException) -> str:
    """The first line of another program's error; without a text, the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA says that the devices have no room for a program or its arrays."""
    return 'RESOURCE_EXHAUSTED' in str(error)
