"""Two runs never share a workdir, and a killed one does not lock it for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from jaxcell.training.lock import only_run_in

HOLD = """
import sys, time
from jaxcell.training.lock import only_run_in
with only_run_in(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"in use by process {process.pid} .*another --workdir"), only_run_in(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with only_run_in(tmp_path):
        pass
