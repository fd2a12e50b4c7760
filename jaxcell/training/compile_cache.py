"""Compiled programs kept on disk: the second start of a run, or of a prediction, skips most of its compilation."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax

__all__ = ["default_folder", "use_compile_cache"]

WORTH_KEEPING_S = 0.5       # of compilation


def default_folder() -> Path:
    """Where programs are kept unless told otherwise, below the user's home; one folder for each kind of processor.

    XLA's programs for a CPU hold its own instructions: another machine that shares the home must not run them.
    """
    return Path.home() / ".cache" / "jaxcell" / f"xla-{_processor()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}) or [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(''.join(kind).encode()).hexdigest()[:8]}"


def use_compile_cache(folder: str | Path | None = None) -> None:
    """Keeps what jax compiles from now on in `folder`, which only its owner may write: what lies there is run.

    Args:
      folder: made if absent, for the owner alone; "" keeps nothing. None is `default_folder()`, or nothing where that cannot
        be made, which is said on stderr.

    Raises:
      ValueError: the folder belongs to somebody else, or others may write into it.
      OSError: `folder` cannot be made.
    """
    if folder is None:
        try:
            use_compile_cache(default_folder())
        except OSError as error:
            print(f"compiled programs are not kept: {error}", file=sys.stderr, flush=True)
        return
    if not str(folder):
        return
    folder = Path(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise ValueError(f"{folder}: belongs to user {facts.st_uid} with mode {facts.st_mode & 0o777:o}; compiled programs are "
                         "executed, so their folder must be yours and writable by you alone. Run chmod 700 on it, or name "
                         "another with --compile_cache=DIR ('' for none).")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING_S)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
