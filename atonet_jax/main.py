"""Trains, evaluates, runs, serves and exports networks for real-time semantic segmentation.

    python main.py --config=configs/cityscapes.py --workdir=runs/cityscapes --mode=check_data
    python main.py --config=configs/cityscapes.py --workdir=runs/cityscapes
    python main.py --workdir=runs/cityscapes --mode=evaluate
    python main.py --mode=compare runs/a runs/b
    python main.py --networks
    python main.py --workdir=runs/cityscapes --mode=predict --config.predict.input=photos
    python main.py --workdir=runs/cityscapes --mode=benchmark --config.benchmark.dtypes="('float32','bfloat16')"
    python main.py --workdir=runs/cityscapes --mode=export --config.export.format=onnx
    python main.py --workdir=runs/cityscapes --mode=serve

A command with --config=FILE takes the settings of that file; --config=FILE:NETWORK also chooses the network. A command
without --config takes the settings of the run in --workdir. --config.KEY=VALUE changes a setting, such as
--config.train.batch_size=8; atonet_jax/config.py lists them all. Lists need no brackets and no quotes:
--config.predict.pictures=labels,overlay.

Modes:
    train       trains, or continues a run that stopped (the default)
    check_data  reads all images and labels, and says whether they are fit to train on
    evaluate    scores a run and writes a report
    compare     prints the scores of several runs and writes a page that compares them
    predict     writes label maps and pictures of photos, videos or a camera
    serve       opens a web page and an endpoint that segment pictures
    export      writes the network for other programs: ONNX, TensorFlow, TensorFlow Lite, JAX, PyTorch
    benchmark   times the network on this device
    prepare     copies the data into a few large files (TFDS)

Exit codes:
    0    done
    1    check_data found data unfit to train on, or predict left something undone
    2    the input is at fault, or the disk is full (3 in training)
    3    training cannot go on, an export is wrong, or the device's memory is full
    130, 143, 129    ended by SIGINT (Ctrl-C), by SIGTERM or by the loss of the terminal; training saves its last step
    141              nothing reads the output any more

Several processes as one run: docs/scaling.md. When something fails: docs/troubleshooting.md.
"""

import contextlib
import gc
import io
import logging
import os
import signal
import sys

from absl import flags
from ml_collections import ConfigDict

from atonet_jax.errors import ExportError, InputError, Stopped, TrainingError, first_line, is_out_of_memory
from atonet_jax.extras import explain_missing_package
from atonet_jax.modes import MODES
from atonet_jax.process.files import FULL

flags.DEFINE_string('workdir', None, 'Folder of the run: settings, checkpoints, figures, pictures.')
flags.DEFINE_enum('mode', 'train', list(MODES), 'What to do.')
flags.DEFINE_string('coordinator', None, 'host:port of process 0 of several; docs/scaling.md says who needs it.')
flags.DEFINE_integer('num_processes', None, 'How many processes there are, with --coordinator.')
flags.DEFINE_integer('process_id', None, 'The number of this one, from 0, with --coordinator.')
flags.DEFINE_bool('networks', False, 'Lists all networks and does nothing else.')
flags.DEFINE_bool(
    'force',
    False,
    'Lets export replace an earlier one. If there is none, lets it write int8 that loses more than it may.',
)


def command() -> int:
    """What `python main.py` and `atonet` run: the mode that `sys.argv` asks for, and one line where it fails.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')  # names of files may hold what the terminal's encoding lacks
    # Tracing a network makes 100,000 objects that live on. The default, 700, looks through them again and again.
    gc.set_threshold(10_000)
    try:
        if {'--help', '-h', '--helpshort', '--helpfull'} & set(sys.argv):
            shown = flags.FLAGS if '--helpfull' in sys.argv else flags.FLAGS.module_help(__name__)
            print(__doc__, shown, sep='\n')
            code = 0
        else:
            code = main(sys.argv)  # which imports JAX, for which help does not wait
        print(end='', flush=True)
        return code
    except (InputError, ExportError, TrainingError) as failure:
        print(f'error: {failure}', file=sys.stderr)
        return 2 if isinstance(failure, InputError) else 3
    except BrokenPipeError:  # what reads the output, such as `head`, has ended
        sys.stdout = open(os.devnull, 'w')  # for what is left, which would fail again at the end
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or flags.FLAGS.workdir or '.'
        print(f'error: {where}: cannot be written ({error.strerror}); free space and give the command again',
              file=sys.stderr)  # fmt: skip
        return 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        mode = flags.FLAGS.mode
        less = MODES[mode].less_memory
        print(f"error: --mode={mode}: the device's memory is full ({first_line(error)}); {less}", file=sys.stderr)
        return 3
    except Stopped as stopped:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f'{stopped}; the same command goes on from there', file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        line = 'interrupted'
        if flags.FLAGS.is_parsed():  # else nothing is begun
            goes_on = 'goes on from the last checkpoint' if flags.FLAGS.mode == 'train' else 'begins anew'
            line = f'{line}; the same command {goes_on}'
        print(line, file=sys.stderr)
        return 130


def main(argv: list[str]) -> int:
    """Runs one mode; returns the exit code.

    Raises:
        InputError: the input is at fault, or a package of the mode's extra is missing.
        ExportError: an export does not compute what the network does.
        TrainingError: training cannot go on.
        Stopped: a signal ended training after a step that is saved.
    """

    from atonet_jax.command_line import read_config

    logging.basicConfig(format='%(message)s')
    logging.getLogger('atonet_jax').setLevel(logging.INFO)
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # it repeats each failed write of a checkpoint
    logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax warns of each checkpoint that has no metrics yet
    if {'--networks', '--networks=true'} & set(argv):
        if len(argv) > 2:
            raise InputError('--networks stands alone: python main.py --networks')
        from atonet_jax.network_list import network_table

        print(network_table())
        return 0
    argv, config = read_config(argv)
    flags.FLAGS.set_gnu_getopt()  # flags may follow the runs that compare takes
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise InputError(f'{str(error).splitlines()[0]}; see python main.py --help') from error
    if rest and flags.FLAGS.mode != 'compare':
        raise InputError(f'{rest[0]!r} is no flag; settings are given as --config.key=value')

    if flags.FLAGS.mode != 'benchmark':  # which times how long compiling takes
        _keep_compiled_programs()
    # Before any import of TensorFlow, which computes nothing here: it would speak of it on the screen.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

    with explain_missing_package(f'--mode={flags.FLAGS.mode}', MODES[flags.FLAGS.mode].extra):
        return _run_mode(config, rest)


def _keep_compiled_programs() -> None:
    """For later calls, unless the environment says otherwise. JAX itself keeps none that took less than a second."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/atonet_jax/compiled'))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _run_mode(config: ConfigDict | None, runs: list[str]) -> int:
    import jax

    from atonet_jax.config import expand_home
    from atonet_jax.process.devices import check_platforms, keep_freed_memory
    from atonet_jax.process.distributed import initialize

    name, workdir = flags.FLAGS.mode, flags.FLAGS.workdir
    mode = MODES[name]
    if name == 'compare':
        mode.load()([os.path.expanduser(run) for run in runs], os.path.expanduser(workdir or '.'))
        return 0
    if name == 'train':
        keep_freed_memory()
    if mode.joins_processes:
        initialize(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id)
    if name == 'evaluate' and jax.distributed.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has taken it, and training alone asks JAX for it
    check_platforms()
    expand_home(config)
    if workdir is None and mode.needs_workdir:
        raise InputError('give --workdir=DIR, where the run lives')
    done = mode.load()(config, workdir, **{flag: flags.FLAGS[flag].value for flag in mode.flags})
    return 1 if done is False else 0
