"""What the operations of a compiled program compute and move, read from the text that XLA prints of it."""

import collections
import math
import re

_ITEM_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4,
               's64': 8, 'u64': 8, 'f64': 8}  # fmt: skip

Shape = tuple[str, tuple[int, ...]]


class Operations:
    """The operations of a program.

    Attributes:
        entry: names of the operations of the entry computation.
    """

    _LINE = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$')
    _SHAPE = re.compile(r'\b(\w+)\[([\d,]*)\]')

    def __init__(self, text: str):
        self._lines = {}  # name -> what stands behind the equals sign
        self._computations = collections.defaultdict(list)  # name -> names of its operations
        self._shapes = {}
        computation = entry = ''
        for line in text.splitlines():
            if line.endswith('{') and ' = ' not in line.split('(')[0]:
                computation = line.replace('ENTRY ', '').strip().split()[0].lstrip('%')
                if line.startswith('ENTRY'):
                    entry = computation
            elif match := self._LINE.match(line):
                name, rest = match.groups()
                self._lines[name] = rest
                self._computations[computation].append(name)
                self._shapes[name] = self._shapes_of(rest[: self._end_of_type(rest)])

        self.entry = self._computations[entry]
        self._of_kernel = {re.sub(r'[.\-]', '_', name): name for name in self._lines}

    def of_kernel(self, kernel: str) -> str:
        """The operation after which XLA has named a kernel of its own; '' for a library's."""
        return self._of_kernel.get(kernel, '')

    def flops(self, name: str) -> int:
        """Of convolutions and matrix products of an operation, those that it calls included."""
        line = self._lines.get(name, '')
        if 'custom_call_target="__cudnn$conv' in line or re.search(r'\bconvolution\(', line):
            return self._convolution_flops(name, line)
        if re.search(r'\bdot\(', line):
            return self._dot_flops(name, re.search(r'lhs_contracting_dims=\{([\d,]*)\}', line))
        if '__cublas' in line:
            return self._dot_flops(name, re.search(r'"lhs_contracting_dimensions":\[([\d",]*)\]', line))
        if match := re.search(r'\b(?:calls|to_apply)=%?([\w.\-]+)', line):
            return sum(self.flops(called) for called in self._computations[match.group(1)])
        return 0

    def bytes(self, name: str) -> int:
        """Of operands and results, each once."""
        return sum(
            _ITEM_BYTES.get(dtype, 0) * math.prod(dims)
            for one in [name, *self._operands(self._lines.get(name, ''))]
            for dtype, dims in self._shapes.get(one, [])
        )

    def origin(self, name: str) -> str:
        """The part of the network that an operation came from, as far as it says."""
        match = re.search(r'op_name="([^"]*)"', self._lines.get(name, ''))
        if match is None:
            return ''
        parts = [part for part in match.group(1).split('/') if not re.match(r'(jit|pjit|jvp|transpose)\b', part)]
        return ('grad ' if 'transpose(' in match.group(1) else '') + '/'.join(parts)[-60:]

    def kind(self, name: str) -> str:
        """The operation's name in HLO, with the result's type: 'fusion bf16[1,256,512,128]'."""
        line = self._lines.get(name, '')
        match = re.match(r'.*?\s([\w\-]+)\(', line[self._end_of_type(line) :])
        shape = max(self._shapes.get(name, []), key=lambda shape: math.prod(shape[1]), default=('', ()))
        return f'{match.group(1) if match else ""} {shape[0]}{list(shape[1])}'

    def text(self, name: str) -> str:
        return self._lines.get(name, '')

    def _convolution_flops(self, name, line):
        """2 * outputs * kernel height * kernel width * input channels of a group, forward or of a gradient."""
        operands = [self._shapes[operand][0][1] for operand in self._operands(line)[:2]]
        result = self._shapes[name][0][1]
        labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', line)
        if labels is None or len(operands) < 2:
            return 0
        kernel, output = operands[1], result
        if 'convBackwardInput' in line:
            output = operands[0]
        elif 'convBackwardFilter' in line:
            kernel, output = result, operands[1]
        dilation = re.search(r'lhs_dilate=([\dx]+)', line)
        share = math.prod(map(int, dilation.group(1).split('x'))) if dilation else 1
        return 2 * math.prod(output) * math.prod(kernel) // kernel[labels.group(2).index('o')] // share

    def _dot_flops(self, name, contracted):
        first = self._operands(self._lines[name])[0]
        dims = self._shapes[first][0][1]
        axes = [int(axis) for axis in re.findall(r'\d+', contracted.group(1))] if contracted else []
        return 2 * math.prod(self._shapes[name][0][1]) * math.prod(dims[axis] for axis in axes)

    def _operands(self, line):
        rest = line[self._end_of_type(line) :]
        start = rest.find('(')
        if start < 0:  # the instruction is not in the program's text
            return []
        depth, end = 0, len(rest)
        for i in range(start, len(rest)):
            depth += {'(': 1, ')': -1}.get(rest[i], 0)
            if depth == 0:
                end = i
                break
        names = re.findall(r'%?([\w.\-]+)', re.sub(r'/\*.*?\*/|\{[^{}]*\}', ' ', rest[start:end]))
        return [name for name in names if name in self._shapes]

    @staticmethod
    def _end_of_type(rest):
        """Where the type at the begin of a line ends: 'f32[2]{0}' or '(f32[2]{0}, u8[0]{0})'."""
        depth = 0
        for i, character in enumerate(rest):
            depth += {'(': 1, '{': 1, '[': 1, ')': -1, '}': -1, ']': -1}.get(character, 0)
            if character == ' ' and depth == 0:
                return i
        return len(rest)

    def _shapes_of(self, text) -> list[Shape]:
        return [(dtype, tuple(map(int, dims.split(','))) if dims else ()) for dtype, dims in self._SHAPE.findall(text)]
