"""What a run scored: `--mode=evaluate` writes it into `evaluation/scores.json`, training into `metrics.jsonl`."""

import os
from typing import Any

from atonet_jax.process.files import reading_json
from atonet_jax.runs.metrics import METRICS_FILE, read_metrics
from atonet_jax.runs.workdir import load_config

EVALUATION_FOLDER, SCORES_FILE = 'evaluation', 'scores.json'
_FIGURES = ('miou', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_iou')
_EVALUATION = ('step', 'dataset', 'split', 'root', 'images', 'options')


def read_scores(workdir: str, step: int | None = None) -> dict[str, Any] | None:
    """Of `--mode=evaluate`, or else of the last evaluation in training.

    Args:
        workdir: of the run.
        step: the checkpoint that the scores must be of; None: any.

    Returns:
        JSON-ready: 'source', the file; 'step'; 'dataset', 'split', 'root' and 'images', what was scored; 'options', the
        settings of `eval`; 'miou' and the other means; 'classes', {name: {'iou': ..., ...}}. What was not recorded is
        None. None alone where nobody evaluated.

    Raises:
        InputError: a file is damaged.
    """
    name = os.path.join(EVALUATION_FOLDER, SCORES_FILE)
    try:
        with reading_json(os.path.join(workdir, name), 'give --mode=evaluate again, or delete it') as scores:
            found = {'source': name} | {key: scores[key] for key in (*_EVALUATION, *_FIGURES, 'classes')}
            if step in (None, found['step']):
                return found
    except FileNotFoundError:
        pass
    lines = [line for line in read_metrics(workdir) if 'eval/miou' in line and step in (None, line['step'])]
    if not lines:
        return None
    line, config, prefix = lines[-1], load_config(workdir), 'eval/iou/'
    return {
        'source': f'{METRICS_FILE}, its last evaluation' if step is None else METRICS_FILE,
        'step': line['step'],
        'dataset': config.data.name,
        'split': config.data.eval_split,
        'root': config.data.tfds_dir or config.data.root,
        'images': None,
        'options': config.eval.to_dict(),
        **{name: line.get(f'eval/{name}') for name in _FIGURES},
        'classes': {key.removeprefix(prefix): {'iou': value} for key, value in line.items() if key.startswith(prefix)},
    }
