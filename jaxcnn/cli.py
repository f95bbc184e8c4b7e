"""What the commands in `launch/` share: start-up, and a person's mistakes told in one line."""

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jaxcnn import memory
from jaxcnn.errors import UserError

log = logging.getLogger('jaxcnn')


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for a run of several processes; the usual environment variables do as well."""
    group = parser.add_argument_group('several processes')
    group.add_argument('--coordinator', default=os.environ.get('JAX_COORDINATOR_ADDRESS'), metavar='HOST:PORT',
                       help='address of process 0 (JAX_COORDINATOR_ADDRESS)')
    group.add_argument('--num_processes', type=int, default=os.environ.get('JAX_NUM_PROCESSES'),
                       help='how many processes (JAX_NUM_PROCESSES)')
    group.add_argument('--process_id', type=int, default=os.environ.get('JAX_PROCESS_ID'),
                       help='which of them this is, from 0 (JAX_PROCESS_ID)')


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without, and the `a.b=VALUE` of, its `--config.a.b=VALUE`."""
    prefix = '--config.'
    return ([a for a in arguments if not a.startswith(prefix)],
            [a[len(prefix):] for a in arguments if a.startswith(prefix)])


def bypass_proxy(host: str) -> None:
    """Keeps the connection to the run's coordinator off a proxy that `http_proxy` or the like names: it would hang there."""
    import jax
    variables = 'no_grpc_proxy', 'no_proxy'  # gRPC reads the first of these that is set
    direct = next(filter(None, map(os.environ.get, variables)), None)
    os.environ[variables[0]] = ','.join(filter(None, [direct, host, 'localhost', '127.0.0.1']))
    jax.config.update('jax_check_proxy_envs', False)  # it warns of a hang that cannot happen now


class StdoutError(OSError):
    """Standard output cannot be written."""


class _Stdout(io.TextIOWrapper):
    """Standard output, whose errors are told from those of files."""

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
    """Makes standard input, output and error usable however the command was started.

    One that is closed, as cron and services may leave it, becomes the null device: the next file would take its descriptor,
    and get what libraries write to it. Characters that the locale's encoding lacks are written as escape sequences.
    """
    for descriptor, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, 'w' if descriptor else 'r', encoding='utf-8', closefd=False))
    if type(sys.stdout) is io.TextIOWrapper:  # not a test's or a notebook's
        sys.stdout = _Stdout(sys.stdout.buffer, sys.stdout.encoding, 'backslashreplace',
                             line_buffering=sys.stdout.line_buffering, write_through=sys.stdout.write_through)


def start_jax(args: argparse.Namespace) -> None:
    """Joins the other processes where there are any, and turns the persistent compilation cache on.

    Raises:
      UserError: the flags of a run of several processes do not fit together; the devices that JAX is to use are not there.
    """
    import jax
    given = [getattr(args, name, None) for name in ('coordinator', 'num_processes', 'process_id')]
    if any(value is not None for value in given) and not given[0]:
        raise UserError('--num_processes and --process_id need --coordinator')
    if given[0]:
        if args.num_processes is None or args.process_id is None:
            raise UserError('--coordinator needs --num_processes and --process_id')
        bypass_proxy(str(given[0]).rpartition(':')[0])
        try:
            jax.distributed.initialize(args.coordinator, int(args.num_processes), int(args.process_id))
        except (RuntimeError, ValueError) as e:
            raise UserError(f'could not join the run at {args.coordinator}: {" ".join(str(e).split())[:300]}') from e
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:  # the latter where JAX is installed without that platform
        raise UserError(f'JAX finds no device (JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")!r}): '
                        f'{str(e) or "it is installed without that platform"}') from e
    from jaxcnn.train.parallel import use_compilation_cache
    use_compilation_cache()


def main(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None],
         arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, starts JAX, runs, and leaves the process with its exit code.

    A `UserError` ends it with one line and exit code 2, a signal with 128 and its number. `args.overrides` holds
    what was given as `--config.a.b=VALUE`.
    """
    prepare_streams()
    if arguments is None:
        memory.restart_with_retained_memory()
        memory.collect_garbage_less_often()
    has_config = any(action.dest == 'config' for action in parser._actions)

    def wrong(message: str) -> NoReturn:
        parser.exit(2, f'error: {message} (--help tells all flags)\n')
    parser.error = wrong  # type: ignore[method-assign]
    rest, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
    args, unrecognized = parser.parse_known_args(rest)
    if unrecognized:
        hint = '; fields of the config are set by --config.PATH=VALUE' if has_config else ''
        wrong(f'unrecognized arguments: {" ".join(unrecognized)}{hint}')
    if overrides and not has_config:
        wrong(f'unrecognized arguments: --config.{overrides[0]}; this command takes the config of the run')
    args.overrides = overrides
    for name, value in vars(args).items():
        if isinstance(value, str) and value.startswith('~'):  # no shell does it behind `--flag=`
            setattr(args, name, os.path.expanduser(value))
    logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stderr)
    logging.raiseExceptions = False  # a log that cannot be written must not stop the run
    for name in ('absl', 'asyncio'):  # Orbax tells of every file, and its tasks of errors that we tell of
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Orbax's threads outlive a failed save and then complain, where nobody can catch it
    sys.unraisablehook = lambda unraisable: log.debug('ignored: %s', unraisable.exc_value)
    try:
        start_jax(args)
        import jax
        log.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
        code = run(args)
        sys.stdout.flush()
    except StdoutError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes there at exit
        code = 0
        if e.errno != errno.EPIPE:  # of `| head`, which has all that it wants
            log.error('error: standard output cannot be written: %s', e.strerror)
            code = 2
    except UserError as e:
        log.error('error: %s', ' '.join(str(e).split()))
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
