"""`--mode=prepare`: a data set as a sharded TFDS copy."""

from ml_collections import ConfigDict

from atonet_jax.data.sources import prepare_copy
from atonet_jax.validation import validate


def prepare(config: ConfigDict, workdir: str | None) -> None:
    """Writes the copy into `data.tfds_dir` and prints where; a workdir is not needed.

    Raises:
        InputError: `tfds_dir` is not given or holds another copy, or some file cannot be used.
    """
    validate(config)
    print(f'written: {prepare_copy(config.data)}')
