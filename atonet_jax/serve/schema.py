"""What the server answers in JSON, as a JSON Schema: GET /schema."""

from typing import Any

from atonet_jax.config import SIDE_STEP

_COUNT = {'type': 'integer', 'minimum': 0}
_MILLISECONDS = {'type': 'number', 'minimum': 0}
_CLASS = {
    'id': {'type': 'integer', 'minimum': 0, 'maximum': 254, 'description': 'train id'},
    'name': {'type': 'string'},
    'color': {
        'type': 'array',
        'items': {'type': 'integer', 'minimum': 0, 'maximum': 255},
        'minItems': 3,
        'maxItems': 3,
        'description': 'red, green, blue',
    },
}


def _object(properties: dict[str, Any], description: str) -> dict[str, Any]:
    return {
        'type': 'object',
        'description': description,
        'properties': properties,
        'required': list(properties),
        'additionalProperties': False,
    }


SCHEMA = {
    '$schema': 'https://json-schema.org/draft/2020-12/schema',
    'title': 'What --mode=serve answers in JSON',
    'oneOf': [{'$ref': f'#/$defs/{name}'} for name in ('segmentation', 'classes', 'health', 'error')],
    '$defs': {
        'segmentation': _object(
            {
                'width': {'type': 'integer', 'minimum': 1},
                'height': {'type': 'integer', 'minimum': 1},
                'milliseconds': {'$ref': '#/$defs/milliseconds'},
                'classes': {
                    'type': 'array',
                    'description': 'those in the picture, by train id',
                    'items': _object(
                        _CLASS
                        | {
                            'pixels': {'type': 'integer', 'minimum': 1},
                            'share': {'type': 'number', 'exclusiveMinimum': 0, 'maximum': 1},
                        },
                        'a class and how much of the picture it covers',
                    ),
                },
                'labels': {
                    'type': 'string',
                    'contentEncoding': 'base64',
                    'contentMediaType': 'image/png',
                    'description': '8 bit grey, train ids, of the size of the picture',
                },
            },
            'POST /segment?output=json',
        ),
        'milliseconds': _object(
            {name: _MILLISECONDS for name in ('decode', 'compile', 'network', 'encode')},
            'how long each part took; compile: next to nothing except for the first picture of a shape',
        ),
        'classes': {
            'type': 'array',
            'description': 'GET /classes: all that the network predicts, by train id',
            'items': _object(_CLASS, 'a class'),
        },
        'health': _object(
            {
                'status': {'const': 'ok'},
                'network': {'type': 'string', 'description': 'the name by which configs choose it'},
                'title': {'type': 'string', 'description': "the network's, as tables print it"},
                'source': {'type': 'string', 'description': 'where the network is published'},
                'requests': _COUNT | {'description': 'of /segment that are being answered or wait'},
                'max_megabytes': {'type': 'number', 'exclusiveMinimum': 0},
                'max_pixels': {'type': 'integer', 'minimum': 1},
                'long_side': {'type': 'integer', 'minimum': SIDE_STEP},
            },
            'GET /health',
        ),
        'error': _object({'error': {'type': 'string', 'description': 'one line'}}, 'any answer from 400 on'),
    },
}
