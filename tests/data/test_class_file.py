"""Class files of both kinds give one table, and what is wrong with one is said with its row."""

import json

import numpy as np
import pytest

from atonet_jax.data.class_file import read_class_file
from atonet_jax.data.dataset import DataError
from atonet_jax.data.labels import IGNORE_LABEL, ClassTable, RawLabel

CSV = 'name,color,value,class,ignore\nroad,#804080,7,,\ncar,0 0 142,26,,\nvan,#00008e,27,car,\nego vehicle,,1,,true\n'
ROWS = [
    {'name': 'road', 'color': '#804080', 'value': 7},
    {'name': 'car', 'color': [0, 0, 142], 'value': 26},
    {'name': 'van', 'color': '#00008e', 'value': 27, 'class': 'car'},
    {'name': 'ego vehicle', 'value': 1, 'ignore': True},
]


def read(tmp_path, content, name='classes.csv'):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_class_file(str(path), 'mine')


@pytest.mark.parametrize(
    ('content', 'name'),
    [
        (CSV, 'classes.csv'),
        ('\ufeff' + CSV.replace('\n', '\r\n'), 'Klassen größe.CSV'),
        (json.dumps(ROWS), 'classes.json'),
    ],
)
def test_both_kinds_of_file_give_the_same_classes(tmp_path, content, name):
    table = read(tmp_path, content, name)
    assert table.class_names == ('road', 'car') and table.class_colors == ((128, 64, 128), (0, 0, 142))
    assert table.raw_labels[:3] == (
        RawLabel('road', 7, (128, 64, 128), 0),
        RawLabel('car', 26, (0, 0, 142), 1),
        RawLabel('van', 27, (0, 0, 142), 1),
    )
    assert table.raw_labels[3][:2] == ('ego vehicle', 1) and table.raw_labels[3].train_id == IGNORE_LABEL


def test_values_and_colors_may_be_left_out(tmp_path):
    table = read(tmp_path, 'name\nwater\nland\nsky\n')
    assert [label.raw_id for label in table.raw_labels] == [0, 1, 2]
    assert len(set(table.class_colors)) == 3
    assert {label.color for label in table.raw_labels} == {None}  # label files cannot hold what is chosen here
    assert ClassTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table


@pytest.mark.parametrize(
    ('content', 'fault'),
    [
        ('name,value\nroad,7\ncar,7\n', "row 2: 'car' and 'road' both have the value 7; give each its own"),
        ('name,value\nroad,256\n', "row 1: value 256 of 'road' is not of 0..255"),
        ('name,value\nroad,seven\n', "row 1: value is 'seven'; write a whole number"),
        ('name,value\nroad,255\n', "row 1: value 255 of 'road' is always ignored"),
        ('name,value\nroad,1\nroad,2\n', "row 2: 'road' is there twice; give its second value"),
        ('name,value\n,1\n', 'row 1: has no name'),
        ('name,colour\nroad,#000000\n', "row 1: 'colour' is unknown; known are name, color, value, class, ignore"),
        ('name,color\nroad,#12\n', "row 1: color is '#12'; write #rrggbb"),
        ('name,color\nroad,1 2 300\n', "row 1: color is '1 2 300'; write #rrggbb"),
        ('name,class\nroad,street\n', "row 1: class 'street' has no row of its own"),
        ('name,ignore\nroad,perhaps\n', "row 1: ignore is 'perhaps'; write true or false"),
        ('name,ignore\nroad,true\n', 'the number of classes .* is 0, and must be from 2 to 253'),
        ('name\nroad\n', 'the number of classes .* is 1, and must be from 2 to 253; give the background, say'),
        ('name,class\nroad,\nlane,road\n', 'the number of classes .* is 1'),
        ('road,1\ncar,2\n', 'its first line must name the columns'),
        ('name,value\nroad,1,2\n', 'row 1: .* is unknown'),
        ('', 'holds no classes'),
        (b'name\n\xff\xfe\n', r'class file cannot be read \(not UTF-8\)'),
    ],
)
def test_fault_is_named_with_its_row(tmp_path, content, fault):
    with pytest.raises(DataError, match=f'^{tmp_path}/classes.csv: {fault}') as raised:
        read(tmp_path, content)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    ('content', 'fault'),
    [
        ('[{"name": "road",}]', r'not JSON \(line 1'),
        ('{"road": 7}', 'must be a list of objects'),
        ('[{"name": 7}]', 'row 1: has no name'),
        ('[{"name": "a", "value": 3}, {"name": "b", "value": 3}]', "row 2: 'b' and 'a' both have the value 3"),
    ],
)
def test_fault_of_a_json_file_is_named(tmp_path, content, fault):
    with pytest.raises(DataError, match=f'^{tmp_path}/classes.json: {fault}'):
        read(tmp_path, content, 'classes.json')


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r'classes.csv: class file cannot be read \(No such file or directory\)'):
        read_class_file(str(tmp_path / 'classes.csv'), 'mine')


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'value': [1]}, 'value is [1]; write a whole number'),
        ({'value': 7.9}, 'value is 7.9; write a whole number'),
        ({'value': float('inf')}, 'value is inf; write a whole number'),
        ({'value': True}, 'value is True; write a whole number'),
        ({'color': [0.5, 0, 1]}, 'color is [0.5, 0, 1]; write #rrggbb, or three numbers of 0..255'),
        ({'class': ['x']}, "class is ['x']; write the name of another row"),
    ],
)
def test_values_of_the_wrong_kind(tmp_path, row, message):
    with pytest.raises(DataError) as raised:
        read(tmp_path, json.dumps([{'name': 'road', 'value': 3}, {'name': 'car'} | row]), 'classes.json')
    assert f'row 2: {message}' in str(raised.value)


def test_a_value_with_a_point_is_no_value(tmp_path):
    with pytest.raises(DataError, match="row 1: value is '7.0'; write a whole number of 0..255"):
        read(tmp_path, 'name,value\nroad,7.0\n')


def test_a_class_may_have_several_rows_of_its_name(tmp_path):
    table = read(tmp_path, 'name,value,color,class\ncar,1,1 1 1,\nroad,2,2 2 2,\ncar,3,3 3 3,car\n')
    assert table.class_names == ('car', 'road') and table.class_colors == ((1, 1, 1), (2, 2, 2))
    np.testing.assert_array_equal(table.raw_to_train[1:4], [0, 1, 0])


def test_void_has_no_raw_id_of_a_class():
    raw_labels = RawLabel('a', 0, None, 0), RawLabel('b', 7, None, 1)
    table = ClassTable('two', ('a', 'b'), ((1, 1, 1), (2, 2, 2)), raw_labels)
    np.testing.assert_array_equal(table.train_to_raw[[0, 1, 2, 255]], [0, 7, 255, 255])
