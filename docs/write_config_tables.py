"""Write the tables of config fields into `docs/configs.md`, from `jaxcnn/config/schema.py`."""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from jaxcnn.config import schema, to_dict
from jaxcnn.config.parse import fields_of, is_optional, strip_optional

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'configs.md')
BEGIN, END = '<!-- fields: docs/write_config_tables.py -->', '<!-- end -->'
TYPES = {bool: 'bool', int: 'int', float: 'float', str: 'str', schema.Duration: 'duration', schema.Choice: 'choice',
         schema.ImageSize: 'int, pair, dict or str'}
# the groups of fields in the order of the page, with their headings
GROUPS: dict[str, tuple[type, str]] = {
    'config': (schema.Config, 'The run'),
    'config.data': (schema.DataConfig, 'Data'),
    'config.data.columns': (schema.ColumnsConfig, 'Columns'),
    'config.optim': (schema.OptimConfig, 'Optimisation'),
    'config.optim.switch': (schema.SwitchConfig, 'Later stages'),
    'config.optim.groups': (schema.GroupConfig, 'Parameter groups'),
    'config.optim.lookahead': (schema.LookaheadConfig, 'Look-ahead'),
    'config.init': (schema.InitConfig, 'Initial weights'),
    'config.distillation': (schema.DistillationConfig, 'Distillation'),
    'config.distillation.hints': (schema.HintConfig, 'Hints'),
    'config.trades': (schema.TradesConfig, 'TRADES'),
    'config.whiten': (schema.WhitenConfig, 'Whitening'),
    'config.pruning': (schema.PruningConfig, 'Pruning'),
    'config.quantization': (schema.QuantizationConfig, 'Quantisation'),
    'config.init.channels': (schema.ChannelsConfig, 'Removing channels'),
    'config.semi_supervised': (schema.SemiSupervisedConfig, 'Pseudo-labels'),
    'config.eval': (schema.EvalConfig, 'Evaluation'),
    'config.checkpoint': (schema.CheckpointConfig, 'Checkpoints'),
    'config.parallel': (schema.ParallelConfig, 'Devices'),
    'config.plugins': (schema.Plugin, 'Plugins'),
}


def type_name(kind: Any, path: str) -> str:
    """Return the type of the field with this path, with a link where it is a group of fields."""
    if is_optional(kind):
        return f'{type_name(strip_optional(kind), path)} or None'
    group = f'[group](#{slug(heading(path))})' if path in GROUPS else ''
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if typing.get_origin(item) is types.UnionType:
            return 'list of ints or of pairs'
        return f'list of {group or TYPES.get(item, "pair")}s'
    return group or TYPES[kind]


def heading(path: str) -> str:
    return f'{GROUPS[path][1]}: `{path}`'


def slug(text: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r'[-\s]+', '-', re.sub(r'[^\w\s-]', '', text.lower()).strip())


def default_text(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return ''
    value = to_dict(field.default)
    if isinstance(value, dict):
        if list(value) == ['name']:
            return f'`{value["name"]!r}`'
        return f'`dict({", ".join(f"{k}={v!r}" for k, v in value.items())})`'
    return f'`{value!r}`'


def meaning(field: dataclasses.Field) -> str:
    metadata = field.metadata
    limits = [f'{word} {metadata[name]:.10g}' for name, word in (
        ('minimum', 'at least'), ('greater_than', 'above'), ('maximum', 'at most')) if metadata[name] is not None]
    allowed = [', '.join(f'`{choice}`' for choice in metadata['choices'])] if metadata['choices'] else []
    text = metadata['doc'] + (f' ({", ".join(limits)})' if limits else '')
    begins_with_choice = text.partition(':')[0] in metadata['choices']
    sentence = (text if begins_with_choice else text[0].upper() + text[1:]) + '.'
    sentence += ''.join(f' Choices: {choices}.' for choices in allowed)
    return sentence.replace('|', r'\|').replace('<', '&lt;')


def table(path: str) -> Iterator[str]:
    yield '| field | type | default | meaning |'
    yield '|---|---|---|---|'
    for name, (kind, field) in fields_of(GROUPS[path][0]).items():
        mark = '' if field.metadata['affects_result'] else ' *'
        kind_text = type_name(kind, f'{path}.{name}')
        yield f'| `{name}`{mark} | {kind_text} | {default_text(field)} | {meaning(field)} |'


def content() -> str:
    """Return the part of the page that lists the fields."""
    lines = []
    for path in GROUPS:
        lines += [f'### {heading(path)}', '', *table(path), '']
    return '\n'.join([BEGIN, '', *lines, END])


def updated(page: str) -> str:
    """Return the text of the page with the present tables."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f'{PAGE}: the lines {BEGIN!r} and {END!r} must mark the place of the tables')
    return before + content() + after


if __name__ == '__main__':
    with open(PAGE, encoding='utf-8') as f:
        old = f.read()
    if (new := updated(old)) != old:
        with open(PAGE, 'w', encoding='utf-8') as f:
            f.write(new)
