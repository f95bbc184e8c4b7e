"""Signals that stop a run: at SIGTERM, SIGINT or SIGHUP it saves its state and ends."""

import contextlib
import dataclasses
import logging
import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator

import jax

log = logging.getLogger('jaxcnn')

# seconds within which the loop must acknowledge a signal if there is nothing to save
ACKNOWLEDGE_TIMEOUT = 8.0
DISTRIBUTED_ACKNOWLEDGE_TIMEOUT = 60.0  # several processes agree on a stop only at every tenth dispatch
# seconds within which signals count as one: `timeout` sends its signal to the process and then to its group
SAME_SIGNAL_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run. Its state is saved, so that training in the same workdir continues it.

    Attributes:
      signum: number of the signal.
      step: step from which the run continues.
    """

    def __init__(self, signum: int, step: int):
        name = signal.Signals(signum).name
        super().__init__(f'stopped by {name} at step {step}; the same command continues the run there')
        self.signum, self.step = signum, step


@dataclasses.dataclass
class StopRequest:
    """A request by a signal to stop the run, and what would be lost if the process ended now.

    Attributes:
      signum: number of the signal; 0 if there was none.
      acknowledged: whether the loop has seen the request and is saving.
      saved_step: step of the newest checkpoint; None before the run is opened.
      unsaved: whether steps were started since then.
    """

    signum: int = 0
    acknowledged: bool = False
    saved_step: int | None = None
    unsaved: bool = False

    def acknowledge(self) -> bool:
        """Return whether there is a request. The caller then saves the state, which may take any time."""
        self.acknowledged = self.acknowledged or bool(self)
        return bool(self)

    def __bool__(self) -> bool:
        return self.signum != 0


@contextlib.contextmanager
def stop_on_signals(end_process: bool = False) -> Iterator[StopRequest]:
    """Yield a request that SIGTERM, SIGINT and SIGHUP set; the loop reads it between steps.

    A second signal, at least `SAME_SIGNAL_SECONDS` after the first, does not wait until the state is saved: it raises
    `KeyboardInterrupt`. SIGHUP is ignored if it was ignored before, for example by `nohup`. An error that follows a request
    which the loop has not seen, such as that of a worker process which got the same signal, becomes `Interrupted`.

    Args:
      end_process: whether signals may end the process, which is a command's own. Python runs signal handlers between
        bytecodes, so that a long compilation would delay them. With `end_process`, a thread ends the process at a second
        signal. It also ends it if no step is unsaved and the loop has not acknowledged the request in time. Checkpoints are
        not damaged, because each one is either complete or not there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    first_time = 0.0

    def handle(signum: int, frame: types.FrameType | None) -> None:
        nonlocal first_time
        if request and not end_process and time.monotonic() - first_time > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        first_time = first_time or time.monotonic()
        request.signum = signum

    signums = [s for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
               if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    with _watch_signals(request) if end_process else contextlib.nullcontext():
        previous = {s: signal.signal(s, handle) for s in signums}
        try:
            yield request
        except Exception as e:
            if not request or request.acknowledged:
                raise
            log.warning('after %s: %s', signal.Signals(request.signum).name, ' '.join(str(e).split()))
            raise Interrupted(request.signum, request.saved_step or 0) from e
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)


@contextlib.contextmanager
def _watch_signals(request: StopRequest) -> Iterator[None]:
    """Run a thread that ends the process in the cases that `stop_on_signals` describes.

    Python writes the number of each signal into a pipe, from which the thread reads. The end of the block closes the pipe,
    which ends the thread.
    """
    timeout = ACKNOWLEDGE_TIMEOUT if jax.process_count() == 1 else DISTRIBUTED_ACKNOWLEDGE_TIMEOUT
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def is_readable(seconds: float | None) -> bool:
        """Wait up to some seconds, or without limit (None), for another signal or the end of the block."""
        return bool(select.select([read_end], [], [], seconds)[0])

    def end_process(signum: int) -> None:
        step = 'its newest checkpoint' if request.saved_step is None else f'step {request.saved_step}'
        _write_line(f'ended at once; the same command continues the run from {step}')
        os._exit(128 + signum)

    def watch() -> None:
        first_signal = os.read(read_end, 1)
        if first_signal:
            time.sleep(SAME_SIGNAL_SECONDS)
            while is_readable(0):  # the same signal again
                if not os.read(read_end, 1):  # the block has ended
                    os.close(read_end)
                    return
            if request.unsaved and not request.acknowledged:
                _write_line('stopping after the steps under way; a second signal ends the run at once, without saving')
            readable = is_readable(max(0.0, timeout - SAME_SIGNAL_SECONDS))
            if not readable and (request.acknowledged or request.unsaved):
                readable = is_readable(None)
            if not readable or os.read(read_end, 1):  # the request was not acknowledged in time, or a second signal came
                end_process(first_signal[0])
        os.close(read_end)

    threading.Thread(target=watch, daemon=True).start()
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write_end)


def _write_line(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f'\n{text}\n')
