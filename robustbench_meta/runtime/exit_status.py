"""How a process ended, in words."""

from __future__ import annotations

import signal


def how_it_ended(code: int | None) -> str:
    """What a process did, to follow its name in a message.

    Args:
        code: as `multiprocessing.Process.exitcode` has it: minus the signal that ended it, or its own exit code; None
            if it is not known.
    """
    if code is None:
        return "does not answer any more"
    if code >= 0:
        return f"ended itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # most real-time signals have no name
        name = f"signal {-code}"
    return f"was ended by {name}"
