"""The same command on a cluster: submitted as a Ray job with this working directory.

Its log is followed here. The job outlives this process; a lost connection loses nothing. Stage
`cluster`, for an --address that is a jobs URL.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Sequence

from raybust.errors import RequestError, WorkError

_EXCLUDED = [".git", ".venv", "/runs", "/data", "__pycache__", ".mypy_cache", ".ruff_cache"]


def submit(address: str, arguments: Sequence[str], say: Callable[[str], None]) -> None:
    """Submits `raybust ARGUMENTS` without its --address, and follows the log to its end.

    Args:
        address: the jobs URL, for instance http://127.0.0.1:8265.
        arguments: this process's own.
        say: prints a line.

    Raises:
        RequestError: nothing answers at the address.
        WorkError: the job failed there.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=shlex.join(["raybust", *_without_address(arguments), "--address", "auto"]),
            runtime_env={"working_dir": ".", "excludes": _EXCLUDED},
        )
    except (ConnectionError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise RequestError(
            f"--address: {address} does not take jobs ({text}); open the tunnel first"
        ) from None
    say(f"submitted as {job}; it goes on if this connection is lost")

    async def follow() -> None:
        async for lines in client.tail_job_logs(job):
            for line in lines.rstrip("\n").split("\n"):
                say(line)

    asyncio.run(follow())
    if client.get_job_status(job) != JobStatus.SUCCEEDED:
        raise WorkError(f"job {job} failed: {client.get_job_info(job).message}")


def _without_address(arguments: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.startswith("--address="):
            skip = False
        elif argument == "--address":
            skip = True
        else:
            kept.append(argument)
    return kept
