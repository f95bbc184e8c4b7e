"""The progress display on a terminal."""

import io
import os
import sys
import time

import pytest

from jaxcnn.training import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 2


@pytest.mark.parametrize(('columns', 'width'), [(80, 79), (40, 39), (0, 79), (400, None)])
def test_line_is_cut_to_the_terminal_and_rewritten_ten_times_a_second(monkeypatch, columns, width):
    terminal, clock = Terminal(), [100.0]
    monkeypatch.setattr(sys, 'stderr', terminal)
    monkeypatch.setattr(os, 'get_terminal_size', lambda descriptor: os.terminal_size((columns, 24)))
    monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
    display = progress.ProgressDisplay(1000, 10.0)
    for step in range(1, 1001):
        display.show(step, step / 100, {'loss': 0.5, 'accuracy': 0.5}, 123456.0, 3600.0, False)
        clock[0] += 1 / 128  # a second is 128 steps
    lines = terminal.getvalue().split('\r\x1b[K')[1:]
    assert len(lines) == 1 + 1000 // 13 + (1000 % 13 != 1)  # every 13th from the first on, and the last
    assert all(text.startswith('epoch ') and (len(text) <= width if width else text.endswith('left')) for text in lines)
    if width is None or width > 40:
        assert 'step 1000/1000' in lines[-1]


def test_a_closed_terminal_does_not_stop_the_run(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    display = progress.ProgressDisplay(10, 1.0)

    def fail(text):
        raise OSError('Input/output error')
    monkeypatch.setattr(terminal, 'write', fail)
    display.show(10, 1.0, {'loss': 0.5, 'accuracy': 0.5}, 1.0, 0.0, True)
    display.log('saved')


def test_a_notebook_shows_one_line_that_is_rewritten_and_ended_by_messages(monkeypatch, capsys, caplog):
    monkeypatch.setitem(sys.modules, 'ipykernel', object())
    display = progress.ProgressDisplay(total_steps=2, total_epochs=1)
    display.log('begins')
    for step in (1, 2):
        monkeypatch.setattr(time, 'monotonic', lambda step=step: 1e6 + step)
        display.show(step, step / 2, {'loss': 0.5}, 100, 0, ends_interval=False)
    display.log('ends')
    out = capsys.readouterr().out
    assert (out.count('\r'), out.count('\n')) == (2, 1)
    assert out.endswith('\n')
    assert 'step 2/2  loss 0.5000' in out
