"""SIGTERM and SIGINT: a run saves and leaves."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator

import jax

PATIENCE = 8.0  # seconds from the signal to the end, whatever the process is busy with
AT_ONCE = 1.0  # seconds in which signals are one: `timeout` sends its signal to the process, then to its group
PATIENCE_TOGETHER = 60.0  # of several processes, which agree on a stop at every tenth dispatch only


class Interrupted(Exception):
    """A signal ended the run; its workdir can be resumed."""

    def __init__(self, signum: int, step: int):
        super().__init__(f'stopped by {signal.Signals(signum).name} at step {step}; the same command goes on from there')
        self.signum = signum


class StopRequest:
    """Whether a signal has asked for the end."""

    signum: int = 0
    acknowledged: bool = False

    def acknowledge(self) -> bool:
        """Whether it has; the caller then saves, however long that takes."""
        self.acknowledged = self.acknowledged or bool(self)
        return bool(self)

    def __bool__(self) -> bool:
        return self.signum != 0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within it, SIGTERM and SIGINT set the request, which the loop looks at between steps.

    Python runs handlers between bytecodes, so a long compilation would hold them up: a thread that hears of the
    signal at once ends the process when the loop has not acknowledged it after `PATIENCE` seconds
    (`PATIENCE_TOGETHER`), or at a second signal, `AT_ONCE` or more after the first. No checkpoint suffers: they are
    whole or not there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signum: int, frame: types.FrameType | None) -> None:
        request.signum = signum

    patience = PATIENCE if jax.process_count() == 1 else PATIENCE_TOGETHER
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        first = os.read(reading, 1)
        if first:
            time.sleep(AT_ONCE)
            while select.select([reading], [], [], 0)[0]:
                if not os.read(reading, 1):  # it is over
                    os.close(reading)
                    return
            again, _, _ = select.select([reading], [], [], max(0.0, patience - AT_ONCE))
            if not again and request.acknowledged:
                again = [reading]
            if not again or os.read(reading, 1):  # nobody heeds it, or a second signal
                sys.stderr.write('\nended at once; the same command goes on from the newest checkpoint\n')
                os._exit(128 + first[0])
        os.close(reading)

    threading.Thread(target=watch, daemon=True).start()
    old_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    old = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        signal.set_wakeup_fd(old_fd)
        for s, handler in old.items():
            signal.signal(s, handler)
        os.close(writing)  # ends the thread's read
