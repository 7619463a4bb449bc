"""What all scripts do alike: run a function on the command line, end in a sentence, keep
compiled programs.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxvae import processes


def fail(error: Exception | str, place: Any = None) -> Any:
    """Ends the script with one sentence and exit code 2; ``place`` is where an error of the file
    system happened.

    In a job of several processes none waits for the others, but process 0 stays a moment longer,
    because the others are aborted when it is gone.
    """
    if isinstance(error, OSError) and error.strerror:
        error = f"{error.filename or place}: {error.strerror}"
    print(f"error: {error}", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        time.sleep(2.0 if processes.is_first() else 0.0)
        os._exit(2)
    raise SystemExit(2)


def one_voice() -> None:
    """Leaves failures to the main thread, which says them in a sentence.

    On a full disk TensorBoard's writer would print tracebacks from its thread and at the end, and
    TensorStore one for each write that Orbax has given up on, or asyncio's log would.
    """
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )
    of_threads, at_end, of_all = threading.excepthook, sys.unraisablehook, sys.excepthook
    given_up = lambda error: (
        isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    )
    quiet = lambda error: isinstance(error, OSError) or given_up(error)
    threading.excepthook = lambda args: None if quiet(args.exc_value) else of_threads(args)
    sys.unraisablehook = lambda args: None if quiet(args.exc_value) else at_end(args)
    sys.excepthook = lambda kind, error, trace: (
        None if given_up(error) else of_all(kind, error, trace)
    )


def keep_programs() -> None:
    """Keeps compiled programs in ~/.cache/jaxvae, or where JAX_COMPILATION_CACHE_DIR says."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if (
        jax.config.jax_compilation_cache_dir is None and caches.is_absolute()
    ):  # not where nobody's home is known
        jax.config.update("jax_compilation_cache_dir", str(caches / "jaxvae"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        compilation_cache.reset_cache()  # what was compiled at import has settled that there is none


def command(function: Callable) -> None:
    """Runs a script's function on the command line; what cannot work ends in one sentence and
    exit code 2.
    """
    import tyro

    keep_programs()
    try:
        tyro.cli(function)
    except (ValueError, OSError) as error:
        fail(error)
