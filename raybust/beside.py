"""What a process does that works beside a command: it lives as long as the command, and no longer.

Ctrl-C reaches the whole process group, so it leaves it to the command, which ends its helpers.
"""

from __future__ import annotations

import os
import signal
import threading
import time

_WATCH_S = 0.5


def live_with(command: int) -> None:
    """Ignores Ctrl-C in this process, and ends it once its command is gone.

    Args:
        command: its process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
