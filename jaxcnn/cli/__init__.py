"""The entry point of the commands: flags, start of JAX, exit codes, errors as one line."""

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from jaxcnn import memory
from jaxcnn.errors import UserError, name_field

if TYPE_CHECKING:
    from jaxcnn.run import Run

log = logging.getLogger('jaxcnn')


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a run with several processes, whose defaults are the usual environment variables."""
    group = parser.add_argument_group('several processes')
    group.add_argument('--coordinator', default=os.environ.get('JAX_COORDINATOR_ADDRESS'), metavar='HOST:PORT',
                       help='address of process 0 (JAX_COORDINATOR_ADDRESS)')
    group.add_argument('--num_processes', type=int, default=os.environ.get('JAX_NUM_PROCESSES'),
                       help='number of processes (JAX_NUM_PROCESSES)')
    group.add_argument('--process_id', type=int, default=os.environ.get('JAX_PROCESS_ID'),
                       help='index of this process, from 0 (JAX_PROCESS_ID)')


def add_svms_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that replaces the softmax of R-CNN and SPP-Net by their SVMs."""
    parser.add_argument('--svms', default='', metavar='FEATURE',
                        help='for runs of rcnn and spp_net: detect with the SVMs that jaxcnn fit_svms fitted on this '
                        'feature (pool5, fc6 or fc7) and its regression of boxes, instead of the softmax; a score of 50 %% '
                        'is the decision boundary of the SVM')


def load_run(workdir: str, checkpoint: str = 'best', flag: str = '--workdir', quantized: bool = False) -> 'Run':
    """Return the run in the folder that a flag names, see `run.load_run`, and name the flag in errors.

    Args:
      workdir: the folder.
      checkpoint: value of `--checkpoint`: best, latest or a step.
      flag: the flag that names the folder.
      quantized: whether the folder may be one of `jaxcnn quantize`.
    """
    from jaxcnn import run
    from jaxcnn.compression.quantized_run import is_quantized, load_any_run
    with name_field(flag):
        if not quantized and is_quantized(workdir):
            raise UserError(f'{workdir!r} holds a quantised network, which only evaluate and predict take',
                            hint='give the run that it was made of')
        loaded = load_any_run(workdir) if quantized else run.load_run(workdir)
    if checkpoint not in ('best', 'latest'):
        with name_field('--checkpoint' if loaded.steps() else flag):
            loaded.find_step(checkpoint)
    loaded.checkpoint = checkpoint
    return loaded


def load_ensemble(args: argparse.Namespace, quantized: bool = False) -> 'list[Run]':
    """Return the runs of `--workdir`, if it is set, and of `--ensemble`."""
    folders = [('--workdir', args.workdir)] if args.workdir else []
    return [load_run(folder, args.checkpoint, flag, quantized)
            for flag, folder in [*folders, *(('--ensemble', folder) for folder in args.ensemble)]]


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without `--config.a.b=VALUE`, and the list of `a.b=VALUE`."""
    prefix = '--config.'
    return ([a for a in arguments if not a.startswith(prefix)],
            [a[len(prefix):] for a in arguments if a.startswith(prefix)])


def bypass_proxy(host: str) -> None:
    """Connect to the coordinator of a run without the proxy of `http_proxy` and similar variables, which would hang."""
    import jax
    variables = 'no_grpc_proxy', 'no_proxy'  # gRPC reads the first of these that is set
    hosts = next(filter(None, map(os.environ.get, variables)), None)
    os.environ[variables[0]] = ','.join(filter(None, [hosts, host, 'localhost', '127.0.0.1']))
    jax.config.update('jax_check_proxy_envs', False)  # it warns of the hang that is avoided here


class StdoutError(OSError):
    """Standard output cannot be written."""


class _Stdout(io.TextIOWrapper):
    """Standard output that raises `StdoutError`, unlike files."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as e:
            raise StdoutError(e.errno, e.strerror) from e

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as e:
            raise StdoutError(e.errno, e.strerror) from e


def prepare_streams() -> None:
    """Make standard input, output and error usable, however the command was started.

    A closed stream, as cron and services may leave it, becomes the null device. Otherwise the next opened file would have
    its descriptor, and receive what libraries print. Characters that the locale cannot encode are escaped.
    """
    for descriptor, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, 'w' if descriptor else 'r', encoding='utf-8', closefd=False))
    if type(sys.stdout) is io.TextIOWrapper:  # not replaced by a test or a notebook
        sys.stdout = _Stdout(sys.stdout.buffer, sys.stdout.encoding, 'backslashreplace',
                             line_buffering=sys.stdout.line_buffering, write_through=sys.stdout.write_through)


def print_table(rows: list[list[str]]) -> None:
    """Print aligned columns, the first two to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) if i < 2 else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        print('  '.join(cells).rstrip())


def start_jax(args: argparse.Namespace) -> None:
    """Connect to the other processes of the run, if there are any, and enable the persistent compilation cache.

    Raises:
      UserError: the flags for several processes do not fit together, or JAX does not find the devices.
    """
    import jax
    coordinator, num_processes, process_id = (
        getattr(args, name, None) for name in ('coordinator', 'num_processes', 'process_id'))
    if not coordinator and (coordinator, num_processes, process_id) != (None, None, None):
        raise UserError('--num_processes and --process_id need --coordinator')
    if coordinator:
        if num_processes is None or process_id is None:
            raise UserError('--coordinator needs --num_processes and --process_id')
        bypass_proxy(coordinator.rpartition(':')[0])
        try:
            jax.distributed.initialize(coordinator, int(num_processes), int(process_id))
        except (RuntimeError, ValueError) as e:
            raise UserError(f'could not join the run at {coordinator}: {" ".join(str(e).split())[:300]}') from e
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:  # AssertionError: JAX is installed without that platform
        raise UserError(f'JAX finds no device (JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")!r}): '
                        f'{str(e) or "it is installed without that platform"}') from e
    from jaxcnn.training.parallel import use_compilation_cache
    use_compilation_cache()


def _parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags, and as `overrides` the `a.b=VALUE` of `--config.a.b=VALUE`; exits with one line for a wrong flag."""
    def exit_with(message: str) -> NoReturn:
        parser.exit(2, f'error: {message} (--help lists all flags)\n')
    parser.error = exit_with  # type: ignore[method-assign]
    has_config = any(action.dest in ('config', 'study') for action in parser._actions)
    flags, overrides = split_overrides(arguments)
    takes_rest = any(action.nargs == argparse.REMAINDER for action in parser._actions)
    # intermixed, so that flags may stand between files
    args, unrecognized = (parser.parse_known_args if takes_rest else parser.parse_known_intermixed_args)(flags)
    if unrecognized:
        hint = '; fields of the config are set by --config.PATH=VALUE' if has_config else ''
        exit_with(f'unrecognized arguments: {" ".join(unrecognized)}{hint}')
    if overrides and not has_config:
        exit_with(f'unrecognized arguments: --config.{overrides[0]}; this command takes the config of the run')
    args.overrides = overrides
    for name, value in vars(args).items():
        if isinstance(value, str) and value.startswith('~'):  # shells do not expand it after `--flag=`
            setattr(args, name, os.path.expanduser(value))
    return args


def _configure_logging() -> None:
    logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stderr)
    logging.raiseExceptions = False  # a log that cannot be written must not stop the run
    for name in ('absl', 'asyncio'):  # Orbax logs every file, and errors of its tasks that are also raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Orbax's threads outlive a failed save and raise errors that nobody can catch
    sys.unraisablehook = lambda unraisable: log.debug('ignored: %s', unraisable.exc_value)


def main(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None],
         arguments: Sequence[str] | None = None, needs_jax: bool = True) -> None:
    """Parse the command line, start JAX, call `run` with the flags, and exit with its exit code.

    The exit code is 2 after a `UserError`, which is printed as one line, 3 if the run has diverged, and 128 plus its number
    after a signal.

    Args:
      parser: the flags of the command. One called `--config` or `--study` allows `--config.a.b=VALUE`, which
        `args.overrides` holds.
      run: the command; None means exit code 0.
      arguments: the command line; by default that of the process.
      needs_jax: whether JAX is started.
    """
    prepare_streams()
    if arguments is None:
        memory.restart_with_retained_memory()
        memory.collect_garbage_less_often()
    args = _parse_arguments(parser, sys.argv[1:] if arguments is None else arguments)
    _configure_logging()
    try:
        log.setLevel(logging.INFO)
        if needs_jax:
            start_jax(args)
            import jax
            log.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
        code = run(args)
        sys.stdout.flush()
    except StdoutError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the buffer is written there at exit
        code = 0
        if e.errno != errno.EPIPE:  # which `| head` causes when it has enough
            log.error('error: standard output cannot be written: %s', e.strerror)
            code = 2
    except UserError as e:
        log.error('error: %s', ' '.join(str(e).split()))
        code = e.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
