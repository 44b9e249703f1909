"""Runs the command on a cluster (--address is a jobs URL): as a Ray job in this working directory.

This process follows the job's log. The job outlives it, and a lost connection is reopened without
losing or repeating a line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import shlex
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from raybust.errors import RequestError, WorkError

CLIENT = "RAYBUST_CLIENT"
"""Environment variable of a job: package versions of the submitting machine, as JSON."""

ADDRESS = "RAYBUST_ADDRESS"
"""Environment variable of a job: the jobs URL it was submitted to."""

_EXCLUDED = [".git", ".venv", "/runs", "/data", "__pycache__", ".mypy_cache", ".ruff_cache"]
_PATIENCE_S, _RETRY_S = 600.0, 2.0


def versions() -> dict[str, str]:
    """Returns the versions that both ends of a Ray connection must share."""
    return {"python": platform.python_version(), "ray": version("ray")}


def submit(
    address: str, arguments: Sequence[str], echo: Callable[[str], None], *, detach: bool = False
) -> None:
    """Submits `raybust ARGUMENTS` without its --address and follows the log until the job ends.

    Args:
        address: the jobs URL, for instance http://127.0.0.1:8265.
        arguments: of this process.
        echo: prints a line.
        detach: return once the job is submitted.

    Raises:
        RequestError: nothing answers at the address, or it rejects the job.
        WorkError: the job failed, or the connection was not restored.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobStatus, JobSubmissionClient

    logging.disable(logging.INFO)  # Ray's loggers, which report uploads, set their own levels
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=shlex.join(["raybust", *_forwarded(arguments), "--address", "auto"]),
            runtime_env={
                "working_dir": ".",
                "excludes": _EXCLUDED,
                "env_vars": {CLIENT: json.dumps(versions()), ADDRESS: address},
            },
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise RequestError(_refusal(address, " ".join(str(error).split())[:200])) from None
    echo(f"submitted as {job}; it keeps running if this connection is lost")
    follow = f"ray job logs --follow {job} --address {address}"
    if detach:
        echo(f"follow it with: {follow}")
        return
    try:
        status = asyncio.run(_follow(client, job, echo, follow))
    except KeyboardInterrupt:
        stop = f"ray job stop {job} --address {address}"
        echo(f"{job} keeps running; follow it with: {follow}; stop it with: {stop}")
        raise
    if status != JobStatus.SUCCEEDED:
        code = client.get_job_info(job).driver_exit_code
        why = "was stopped" if status == JobStatus.STOPPED else f"failed with exit code {code}"
        raise WorkError(f"job {job} {why}; see the log above; rerun the same command to resume")


async def _follow(client: Any, job: str, echo: Callable[[str], None], follow: str) -> Any:
    """Prints the job's log line by line; returns the job's final status."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    printed, lost = 0, None
    while True:
        seen, rest = 0, ""
        try:
            async for text in client.tail_job_logs(job):  # always starts at the first line
                if lost is not None:
                    echo("connection restored")
                    lost = None
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    seen += 1
                    if seen > printed:
                        printed = seen
                        echo(line)
            status = client.get_job_status(job)
            if status.is_terminal():
                if rest and seen >= printed:
                    echo(rest)
                return status
        except (ClientError, RayError, RuntimeError, OSError):
            pass
        if lost is None:
            lost = time.monotonic()
            echo("connection lost; the job keeps running; reconnecting")
        if time.monotonic() - lost > _PATIENCE_S:
            raise WorkError(
                f"no connection for {_PATIENCE_S:.0f} s; {job} keeps running;"
                f" follow it with: {follow}"
            )
        await asyncio.sleep(_RETRY_S)


def _refusal(address: str, text: str) -> str:
    if "token" in text.lower():
        variable = os.environ.get("RAY_AUTH_MODE", "unset")
        return (
            f"--address: {address} requires the cluster's token ({text}); put it in"
            f" ~/.ray/auth_token and set RAY_AUTH_MODE=token (now {variable})"
        )
    return f"--address: {address} does not accept jobs ({text}); open the tunnel first"


def _forwarded(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments without --address and --detach."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.startswith("--address=") or argument == "--detach":
            skip = False
        elif argument == "--address":
            skip = True
        else:
            kept.append(argument)
    return kept
