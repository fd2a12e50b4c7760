"""One run at a time in a workdir."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["only_run_in"]


@contextmanager
def only_run_in(workdir: str | Path) -> Iterator[None]:
    """Holds the workdir for this process; the system lets go of it when the process ends, however it ends.

    Raises:
      ValueError: another process holds it; says which.
    """
    lock, holder = FileLock(Path(workdir) / ".lock"), Path(workdir) / ".lock_holder"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = holder.read_text() if holder.exists() else "another process"
        raise ValueError(f"{workdir} is in use by {who}: two runs in one folder would overwrite each other's files. Wait for "
                         "it or stop it, or use another --workdir (--out).") from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
