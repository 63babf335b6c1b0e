"""What has changed in a run's config since it began, and which changes it cannot go on with."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from atonet_jax.data.labels import ClassTable, class_difference
from atonet_jax.errors import InputError
from atonet_jax.models import family
from atonet_jax.runs.workdir import holds_run, load_class_table, load_config

_STARTING_WEIGHTS = ('init_from', 'model.pretrained_backbone')
# Settings of every network that trained weights do not depend on; `models.Family.changeable` has those of one.
_SAME_NETWORK = ('model.dtype', 'model.pretrained_backbone', 'model.pretrained_strict')
# How files become the images and labels of an evaluation; which data it looks at; settings of it that change no score.
READING = (
    'data.folder.', 'data.label_values', 'data.unknown_as_void', 'data.label_orientation', 'data.sample_range',
)  # fmt: skip
_EVALUATION_DATA = ('data.eval_split', 'data.name', 'data.root', 'data.tfds_dir', *READING)
_SAME_SCORES = ('eval.batch_size', 'eval.pictures', 'eval.output', 'eval.checkpoint')


class Change(NamedTuple):
    """One setting. As text: 'config.train.epochs was 200.0, is 100.0'.

    Attributes:
        key: 'train.epochs'.
        was: its value when the run began, or last went on; None if the network was one without it.
        now: its value in the new config.
    """

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f'config.{self.key} was {self.was!r}, is {self.now!r}'


def changes_since(workdir: str, config: ConfigDict) -> list[Change]:
    """What differs in `config` from the run in `workdir`, in the order of keys; empty if there is no run."""
    return list(_differences(load_config(workdir), config)) if holds_run(workdir) else []


def check_network(workdir: str, config: ConfigDict, class_table: ClassTable, has_begun: bool = True) -> None:
    """Checks that the run in `workdir` is of the network, the classes and the starting weights that are given.

    Args:
        workdir: it may hold no run; then nothing is wrong.
        config: of the new start.
        class_table: its classes.
        has_begun: whether the run has a checkpoint. Before that, it may start from other weights.

    Raises:
        InputError: it is not.
    """
    changes = changes_since(workdir, config)
    if has_begun:
        for change in changes:
            if change.key in _STARTING_WEIGHTS and change.now:
                raise InputError(
                    f'config.{change.key}={change.now}: {workdir} holds a run that has begun already; give a new '
                    f'--workdir to use these weights, or leave config.{change.key} as it was'
                )
    same = {*_SAME_NETWORK, *(f'model.{option}' for option in family(config.model.name).changeable)}
    network = [str(change) for change in changes if change.key.startswith('model.') and change.key not in same]
    if holds_run(workdir) and (difference := class_difference(load_class_table(workdir), class_table)):
        network.append(difference)
    if network:
        raise InputError(
            f'{workdir}: holds a run of another network ({"; ".join(network)}); '
            'give a new --workdir, or the settings of that run'
        )


def check_training(workdir: str, config: ConfigDict, class_table: ClassTable, has_begun: bool = True) -> None:
    """Checks that training may begin in `workdir`, or go on there: `check_network`, and the training state fits.

    Raises:
        InputError: it may not.
    """
    check_network(workdir, config, class_table, has_begun)
    if not has_begun:
        return
    state = [str(change) for change in changes_since(workdir, config) if _changes_state(change)]
    if state:
        raise InputError(
            f'{workdir}: its training state does not fit ({"; ".join(state)}); give a new --workdir, which '
            f'--config.init_from={workdir} starts from the weights of this one'
        )


def reads_other_values(workdir: str, class_table: ClassTable) -> bool:
    """Whether label files gave the classes of the run in `workdir` by other values or colours than now."""

    def values(table):
        return {(label.raw_id, label.color, label.train_id) for label in table.raw_labels}

    return holds_run(workdir) and values(load_class_table(workdir)) != values(class_table)


def incomparable_text(changes: Sequence[Change], has_other_labels: bool) -> str:
    """One line if changes make scores of other images, labels or views than before; '' if not."""
    texts = [str(change) for change in changes if _changes_scores(change.key)]
    texts += ['label files give the classes by other values than before'] if has_other_labels else []
    if not texts:
        return ''
    return (
        f'{"; ".join(texts)}: new scores may not be comparable with earlier ones, and the best checkpoint may be an '
        'earlier one; --config.eval.checkpoint=latest takes the last checkpoint'
    )


def _changes_state(change: Change) -> bool:
    if change.key == 'optimizer.ema_decay':
        return (change.was > 0) != (change.now > 0)
    return change.key in ('optimizer.name', 'optimizer.frozen')


def _changes_scores(key: str) -> bool:
    return key.startswith(_EVALUATION_DATA) or (key.startswith('eval.') and key not in _SAME_SCORES)


def _differences(earlier: ConfigDict, config: ConfigDict, prefix: str = '') -> Iterator[Change]:
    for key in sorted(set(earlier) | set(config)):
        was, now = earlier.get(key), config.get(key)
        if isinstance(was, ConfigDict) and isinstance(now, ConfigDict):
            yield from _differences(was, now, f'{prefix}{key}.')
        elif was != now:
            yield Change(prefix + key, was, now)
