"""A run is asked to stop by signals, a file, or the end of the command that launched it; never within a step."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from mplus_cli.training.stopping import StopRequest, alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_does_not_interrupt(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop(), "still asked at the next step"
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_file_asks(tmp_path):
    stop = StopRequest(tmp_path / "stop")
    assert not stop()
    (tmp_path / "stop").touch()
    assert stop()


def test_being_left_alone_asks():
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stop = StopRequest(launcher=(launcher.pid, socket.gethostname()))
    elsewhere = StopRequest(launcher=(launcher.pid, "another-machine"))
    assert not stop()
    launcher.kill()
    os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(launcher.pid), "dead, though nobody has asked for its exit status yet"
    launcher.wait()
    assert stop()
    assert not elsewhere(), "process numbers of other machines mean nothing here"
