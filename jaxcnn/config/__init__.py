"""The config of a run: its schema, checking, config files with the command line's assignments, and literals in strings."""

from jaxcnn.config.literals import bind, parse_call, parse_calls
from jaxcnn.config.overrides import find_config_file, load, override, shipped_configs
from jaxcnn.config.parse import Difference, differences, make, parse, parse_duration, to_dict
from jaxcnn.config.schema import (
    UNITS,
    CheckpointConfig,
    Choice,
    Config,
    DataConfig,
    Duration,
    EvalConfig,
    GroupConfig,
    InitConfig,
    LookaheadConfig,
    OptimConfig,
    ParallelConfig,
    Plugin,
    SwitchConfig,
    WhitenConfig,
)

__all__ = [
    'UNITS',
    'CheckpointConfig',
    'Choice',
    'Config',
    'DataConfig',
    'Difference',
    'Duration',
    'EvalConfig',
    'GroupConfig',
    'InitConfig',
    'LookaheadConfig',
    'OptimConfig',
    'ParallelConfig',
    'Plugin',
    'SwitchConfig',
    'WhitenConfig',
    'bind',
    'differences',
    'find_config_file',
    'load',
    'make',
    'override',
    'parse',
    'parse_call',
    'parse_calls',
    'parse_duration',
    'shipped_configs',
    'to_dict',
]
