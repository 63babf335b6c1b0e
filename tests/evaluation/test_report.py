"""The report of an evaluation: complete, one file, readable in a browser on a desk and on a phone."""

import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from atonet_jax.config import default_config
from atonet_jax.data.labels import CITYSCAPES, IGNORE_LABEL, ClassTable
from atonet_jax.errors import TrainingError
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.evaluation.evaluator import Evaluation, Example, ImageScore
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.evaluation.report import write_report
from atonet_jax.evaluation.report.charts import Curve, curves_svg
from atonet_jax.evaluation.report.compare import compare
from atonet_jax.runs.workdir import read_starts
from atonet_jax.training.recorder import Recorder
from atonet_jax.training.timeline import Timeline

ENVIRONMENT = {'time': '2026-01-31 12:00:00 UTC', 'revision': None, 'devices': 'a device', 'versions': 'jax 1'}


@pytest.fixture(scope='module')
def workdir(finished, tiny_config, tmp_path_factory):
    """A finished run that was evaluated."""
    folder = str(tmp_path_factory.mktemp('evaluated') / 'run')
    shutil.copytree(finished, folder)
    config = tiny_config.copy_and_resolve_references()
    config.eval.pictures = 4
    evaluate(config, folder)
    return folder


@pytest.fixture(scope='module')
def report(workdir):
    return os.path.join(workdir, 'evaluation', 'report.html')


def source_of(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


def text_of(path):
    """What a reader sees, with single spaces."""
    source = re.sub(r'<(script|style).*?</\1>|<[^>]+>', ' ', source_of(path).replace('<wbr>', ''), flags=re.DOTALL)
    return html.unescape(re.sub(r'\s+', ' ', source))


def made_up(table, num_images=3, size=(24, 32), path='image{}.png', labelled=True):
    """An evaluation of random predictions, whose first image is the worst and whose last one is the best."""
    rng = np.random.default_rng(0)
    examples, scores = [], []
    total = np.zeros((table.num_classes,) * 2, np.int64)
    for i in range(num_images):
        labels = rng.integers(0, table.num_classes, size).astype(np.uint8)
        predictions = np.where(rng.random(size) < 0.5, labels, 0).astype(np.uint8)
        if labelled:
            np.add.at(total, (labels, predictions), 1)
        else:
            labels[:] = IGNORE_LABEL
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        examples.append(Example(i, image, labels, predictions))
        miou = (i + 1) / (num_images + 1) if labelled else float('nan')
        scores.append(ImageScore(i, path.format(i), miou, miou))
    half = num_images // 2 if labelled else 0
    return Evaluation(
        Scores.from_confusion(total),
        total,
        scores,
        examples,
        best=examples[: half - 1 : -1] if half else [],
        worst=examples[:half],
        dataset='made up',
        skipped=2,
        seconds=1.0,
    )


def write(folder, evaluation, table, config=None, **changes):
    path = str(folder / 'report.html')
    options = {'workdir': str(folder), 'weights': 'weights.pth', 'mode': 'evaluate', 'environment': ENVIRONMENT}
    write_report(path, evaluation, config or default_config(), table, **options | changes)
    return path


def test_the_report_tells_what_was_found_and_where(report, workdir, tiny_config):
    text = text_of(report)
    with open(os.path.join(workdir, 'evaluation', 'scores.json')) as file:
        scores = json.load(file)
    assert f'{100 * scores["miou"]:.2f}' in text and f'{100 * scores["pixel_accuracy"]:.2f}' in text
    for name in CITYSCAPES.class_names:
        assert name in text
    road = scores['classes']['road']
    assert ' '.join(f'{100 * road[key]:.2f}' for key in ('iou', 'accuracy', 'frequency')) in text
    confusion = np.array(scores['confusion'])
    shares = [f'{100 * count / confusion[0].sum():.0f}' for count in confusion[0] if count]
    assert f'road {" ".join(shares)} ' in text.split('Confusion')[1]
    step = scores['step']
    assert f'step {step} of {workdir}, 5 images' in text
    for where in (scores['environment'], *read_starts(workdir)):
        assert where['devices'] in text and where['versions'] in text and where['time'] in text
        assert (where['revision'] or 'no checkout') in text
    assert 'model.width 16 128' in text  # setting, value, default
    assert re.search(r'optimizer\.momentum 0\.9 [a-z]', text), 'no default where it is the value'


def test_curves_of_all_kinds_are_drawn(report):
    text, source = text_of(report), source_of(report)
    assert text.strip().startswith('ATONet on ')
    for name in ('loss', 'main_loss', 'aux3_loss', 'mIoU', 'backbone', 'rest', 'Images per second'):
        assert name in text.split('Training')[1]
    assert source.count('<svg ') == 5
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', source):
        assert ''.join(used) in ids


@pytest.mark.parametrize(
    ('values', 'log', 'label'),
    [
        ([6e-5, 0], False, '5e−5'),
        ([0.02, 0], False, '0.005'),
        ([0.01351, 0.0125], False, '0.0134'),
        ([-0.25, -1234], False, '−1000'),
        ([120_000, 1_000_000], True, '200k'),
        ([2.1e-6, 4.9e-6], True, '4e−6'),  # no power of ten, nor twice or five times one
        ([0, 2e9], False, '1.5G'),
    ],
)
def test_labels_of_a_chart_are_short_and_not_cut(values, log, label):
    svg = curves_svg('x', 'title', [Curve('a', (1, 1_500_000), values)], log)
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    texts = re.findall(r'<text style="[^"]*text-anchor: (\w+)[^"]*" x="([\d.]+)"[^>]*>([^<]+)<', svg)
    assert label in [text for _, _, text in texts] and '1.5M' in [text for _, _, text in texts]
    assert len([anchor for anchor, *_ in texts if anchor == 'end']) >= 2, 'a vertical axis needs two labels'
    for anchor, x, text in texts:
        half = 0.5 * 5.8 * len(text)  # a character at 9 points
        centre = float(x) - half * (anchor == 'end')
        assert half <= centre <= width - half, f'{text} is cut'


def test_the_best_and_the_worst_images_are_shown(report, workdir):
    with open(os.path.join(workdir, 'evaluation', 'images.csv')) as file:
        rows = [line.strip().split(',') for line in file][1:]
    mious = [float(miou) for _, miou, _ in rows]
    assert len(rows) == 5 and mious == sorted(mious)
    shown = text_of(report).split('Worst and best images')[1]
    worst, best = shown.split(' Worst ')[1].split(' Best ')
    for part, wanted in ((worst, rows[:2]), (best, rows[:-3:-1])):
        assert re.findall(r'mIoU ([\d.]+) %', part) == [f'{100 * float(miou):.2f}' for _, miou, _ in wanted]
        assert [part.index(path) for path, _, _ in wanted] == sorted(part.index(path) for path, _, _ in wanted)
    assert source_of(report).count('src="data:image/') == 4 * 4


def test_training_leaves_the_report_of_its_last_evaluation(finished):
    text = text_of(os.path.join(finished, 'report.html'))
    assert f'step 6 of {finished}, 5 images' in text and '--mode=train' in text
    (start,) = read_starts(finished)
    assert start['step'] == 0 and start['devices'] in text


def test_what_is_missing_is_said(tmp_path):
    text = text_of(write(tmp_path, made_up(CITYSCAPES), CITYSCAPES))
    assert f'No curves: {tmp_path} holds no metrics.jsonl' in text
    assert f'When and where training was started is not on record in {tmp_path}' in text
    assert '2 images that cannot be read were left out' in text
    assert 'no checkout' in text


def test_the_report_is_of_the_network_at_hand(tmp_path):
    config = default_config('pidnet_s')
    lines = [{'step': step, 'train/loss': 3.0, 'train/main_loss': 1.0, 'train/boundary_loss': 2.0} for step in (1, 2)]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    text = text_of(write(tmp_path, made_up(CITYSCAPES), CITYSCAPES, config))
    assert text.strip().startswith('PIDNet-S on made up')
    assert 'boundary_loss' in text.split('Training')[1]
    assert 'network pidnet_s, Xu, Xiong, Bhattacharyya' in text
    assert ' 0 of ' in text.split('Settings')[1], 'settings differ from the defaults of another network'


def test_a_split_without_any_labelled_pixel_is_no_error(tmp_path):
    text = text_of(write(tmp_path, made_up(CITYSCAPES, labelled=False), CITYSCAPES))
    assert 'None: no image has a pixel with a label' in text
    assert '– mIoU, %' in text


def test_no_pictures_where_none_are_wanted(tmp_path):
    config = default_config()
    config.eval.pictures = 0
    evaluation = made_up(CITYSCAPES)._replace(best=[], worst=[], examples=[])
    assert 'None: config.eval.pictures is 0' in text_of(write(tmp_path, evaluation, CITYSCAPES, config))


def test_names_are_text_whatever_they_hold(tmp_path):
    names = ('<script>alert(1)</script>', '"quoted" & \'so\'', 'köln 道路')
    table = ClassTable('odd', names, ((0, 0, 0), (255, 0, 0), (0, 0, 255)), ())
    evaluation = made_up(table, path='</td><img src=x onerror=alert({})>\udcff.png')
    path = write(tmp_path, evaluation, table, weights='<i>.pth')
    source = source_of(path)
    assert '<script>alert' not in source and '<img src=x' not in source and '<i>.pth' not in source
    for name in names:
        assert name in text_of(path).replace('  ', ' ')


def test_pixels_that_a_network_gives_to_no_class_show_the_image(tmp_path):
    evaluation = made_up(CITYSCAPES)
    for example in evaluation.examples:
        example.predictions[:] = CITYSCAPES.num_classes
    source = source_of(write(tmp_path, evaluation, CITYSCAPES))
    pictures = re.findall(r'src="(data:image/jpeg[^"]+)"', source)  # of each example: image, labels, predictions
    assert pictures and pictures[::3] == pictures[2::3] != pictures[1::3]


def test_a_report_is_a_few_megabytes_at_most(tmp_path):
    evaluation = made_up(CITYSCAPES, num_images=8, size=(512, 1024))  # noise, the most that pictures can take
    assert os.path.getsize(write(tmp_path, evaluation, CITYSCAPES)) < 6e6


def test_the_confusion_matrix_of_very_many_classes_is_a_picture(tmp_path):
    names = tuple(f'class {i}' for i in range(80))
    table = ClassTable('many', names, tuple((i, i, i) for i in range(80)), ())
    source = source_of(write(tmp_path, made_up(table), table))
    assert 'alt="Confusion matrix; its largest' in source and 'class="confusion"' not in source
    assert 'Largest mistakes' in source


def test_a_report_that_cannot_be_written_ends_training_with_a_line(tmp_path, tiny_config):
    (tmp_path / 'report.html').mkdir()
    recorder = Recorder(str(tmp_path), tiny_config, CITYSCAPES, Timeline(4, 12, 2.0))
    with pytest.raises(TrainingError, match='the figures of step 3 cannot be written'):
        recorder.report(3, made_up(CITYSCAPES))
    recorder.close()


def test_every_start_of_training_is_on_record(tmp_path, tiny_config):
    for step in (0, 4):
        Recorder(str(tmp_path), tiny_config, CITYSCAPES, Timeline(4, 12, 2.0, start_step=step)).close()
    starts = read_starts(str(tmp_path))
    assert [start['step'] for start in starts] == [0, 4]
    assert set(starts[0]) == {'step', 'time', 'revision', 'devices', 'versions'}


WATCH = """<script>
const faults = [];
addEventListener('error', event => faults.push(event.message || event.target.outerHTML), true);
addEventListener('securitypolicyviolation', event => faults.push(event.blockedURI));
addEventListener('load', () => {
  const root = document.documentElement;
  const head = document.querySelector('table.sortable th:nth-child(2)');
  head?.querySelector('button').click();
  document.body.dataset.found = JSON.stringify({
    faults, width: innerWidth, contents: root.scrollWidth,
    requests: performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !/^data:/.test(name)),
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    small: [...document.querySelectorAll('svg text')].filter(text => text.getBoundingClientRect().height < 9).length,
    cut: [...document.querySelectorAll('svg text')].filter(text => {
      const [inner, outer] = [text, text.ownerSVGElement].map(element => element.getBoundingClientRect());
      return inner.left < outer.left - 1 || inner.right > outer.right + 1;
    }).length,
    narrow: [...document.querySelectorAll('tbody th')].filter(cell => cell.getBoundingClientRect().width < 60).length,
    order: head && [...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[1].dataset.value),
  });
});
</script>"""


def look(page, folder, width):
    """Opens a page in a frame of Chromium, from which no host can be reached; returns what `WATCH` found.

    A frame, because windows have a least width.
    """
    watched = html.escape(source_of(page).replace('<head>', f'<head>{WATCH}', 1))
    pass_on = "addEventListener('load', () => document.body.dataset.found = frames[0].document.body.dataset.found)"
    path = folder / 'frame.html'
    path.write_text(
        f'<meta charset="utf-8"><iframe style="border:0;width:{width}px;height:800px" srcdoc="{watched}"></iframe>'
        f'<script>{pass_on}</script>',
        encoding='utf-8',
    )
    quiet = ['--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
    process = subprocess.run(
        ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', *quiet,
         '--host-resolver-rules=MAP * ~NOTFOUND', f'--user-data-dir={folder / "profile"}',
         '--window-size=1400,900', '--dump-dom', path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<body data-found="([^"]*)"', process.stdout)
    assert found, process.stderr
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(shutil.which('chromium') is None, reason='no chromium to look with')
@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('page', ['report', 'compare'])
def test_a_browser_shows_it_without_fault_or_overflow(report, finished, workdir, tmp_path, page, width):
    path = report if page == 'report' else compare([workdir, finished], str(tmp_path))
    found = look(path, tmp_path, width)
    assert found['faults'] == [] and found['requests'] == [] and found['broken'] == 0
    assert found['width'] == width
    assert found['contents'] <= width
    assert found['small'] == 0, 'text in charts is too small to read'
    assert found['cut'] == 0, 'text in charts is cut'
    assert found['narrow'] == 0, 'the first column of a table is squeezed'
    if page == 'report':
        ious = [float(value) for value in found['order'] if value]
        assert ious == sorted(ious, reverse=True) and '' not in found['order'][: len(ious)]
