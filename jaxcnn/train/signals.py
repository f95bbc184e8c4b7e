"""SIGTERM, SIGINT and SIGHUP: a run saves its state and stops."""

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

PATIENCE = 8.0  # seconds in which the loop must heed a signal where nothing is left to be saved
AT_ONCE = 1.0  # seconds in which signals are one: `timeout` sends its signal to the process, then to its group
PATIENCE_TOGETHER = 60.0  # of several processes, which agree on a stop at every tenth dispatch only


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; its state is saved, and training the same workdir again continues it.

    Attributes:
      signum: the signal.
      step: the step that the run continues from.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(f'stopped by {signal.Signals(signum).name} at step {step}; started again, the run continues there')
        self.signum, self.step = signum, step


@dataclasses.dataclass
class StopRequest:
    """Whether a signal has asked the run to stop, and what the run would lose if it ended now.

    Attributes:
      signum: the signal; 0 before one came.
      acknowledged: the loop has seen the request, and is saving.
      saved_step: the step of the newest checkpoint; None before the run is opened.
      unsaved: steps were started since then.
    """

    signum: int = 0
    acknowledged: bool = False
    saved_step: int | None = None
    unsaved: bool = False

    def acknowledge(self) -> bool:
        """Whether a stop was asked for; the caller then saves, however long that takes."""
        self.acknowledged = self.acknowledged or bool(self)
        return bool(self)

    def __bool__(self) -> bool:
        return self.signum != 0


@contextlib.contextmanager
def stop_on_signals(end_process: bool = False) -> Iterator[StopRequest]:
    """Within it, SIGTERM, SIGINT and SIGHUP set the request, which the loop looks at between steps.

    A second signal, a second or more after the first, does not wait for the state to be saved: it raises
    `KeyboardInterrupt`. SIGHUP stays ignored where it was ignored before, as by `nohup`. An error that follows a request
    which the loop has not seen, such as that of a process which got the same signal, becomes `Interrupted`.

    Args:
      end_process: the process is a command's own. Python runs signal handlers between bytecodes, so a long compilation would
        hold them up: a thread that hears of the signal at once ends the process at a second signal, or, where no step is
        unsaved, when the loop has not acknowledged the request after `PATIENCE` seconds (`PATIENCE_TOGETHER` in several
        processes). No checkpoint suffers: each is whole or not there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    first_signal = 0.0

    def handle(signum: int, frame: types.FrameType | None) -> None:
        nonlocal first_signal
        if request and not end_process and time.monotonic() - first_signal > AT_ONCE:
            raise KeyboardInterrupt
        first_signal = first_signal or time.monotonic()
        request.signum = signum

    signums = [s for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
               if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    with _ending_unheeded(request) if end_process else contextlib.nullcontext():
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
def _ending_unheeded(request: StopRequest) -> Iterator[None]:
    """Runs the thread that ends the process: see `stop_on_signals`."""
    patience = PATIENCE if jax.process_count() == 1 else PATIENCE_TOGETHER
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def second_signal(seconds: float | None) -> bool:
        """Whether another signal comes, or the run ends, in that time (None: without limit)."""
        return bool(select.select([reading], [], [], seconds)[0])

    def watch() -> None:
        first = os.read(reading, 1)
        if first:
            time.sleep(AT_ONCE)
            while second_signal(0):
                if not os.read(reading, 1):  # the run is over
                    os.close(reading)
                    return
            if request.unsaved and not request.acknowledged:
                _say('stopping after the steps under way; a second signal ends the run at once, without saving')
            again = second_signal(max(0.0, patience - AT_ONCE))
            if not again and (request.acknowledged or request.unsaved):
                again = second_signal(None)
            if not again or os.read(reading, 1):  # nobody heeds it, or a second signal
                _say('ended at once; started again, the run continues from ' + (
                    'its newest checkpoint' if request.saved_step is None else f'step {request.saved_step}'))
                os._exit(128 + first[0])
        os.close(reading)

    threading.Thread(target=watch, daemon=True).start()
    previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writing)  # ends the thread's read


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f'\n{text}\n')
