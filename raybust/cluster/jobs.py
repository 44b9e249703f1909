"""The same command on a cluster: submitted as a Ray job with this working directory.

Its log is followed here. The job outlives this process; a connection that is lost is taken up
again where it broke off. Stage `cluster`, for an --address that is a jobs URL.
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
"""Environment variable of a job: the versions of the machine that submitted it, as JSON."""

ADDRESS = "RAYBUST_ADDRESS"
"""Environment variable of a job: the jobs URL at which it was submitted."""

_EXCLUDED = [".git", ".venv", "/runs", "/data", "__pycache__", ".mypy_cache", ".ruff_cache"]
_PATIENCE_S, _RETRY_S = 600.0, 2.0


def versions() -> dict[str, str]:
    """Returns what has to be the same on both sides of a connection to Ray."""
    return {"python": platform.python_version(), "ray": version("ray")}


def submit(
    address: str, arguments: Sequence[str], echo: Callable[[str], None], *, detach: bool = False
) -> None:
    """Submits `raybust ARGUMENTS` without its --address, and follows the log to its end.

    Args:
        address: the jobs URL, for instance http://127.0.0.1:8265.
        arguments: this process's own.
        echo: prints a line.
        detach: return once the job is submitted.

    Raises:
        RequestError: nothing answers at the address, or it does not take this job.
        WorkError: the job failed there, or the connection did not come back.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobStatus, JobSubmissionClient

    logging.disable(logging.INFO)  # uploads, closed sockets: Ray's loggers set their own levels
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=shlex.join(["raybust", *_ours(arguments), "--address", "auto"]),
            runtime_env={
                "working_dir": ".",
                "excludes": _EXCLUDED,
                "env_vars": {CLIENT: json.dumps(versions()), ADDRESS: address},
            },
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise RequestError(_refusal(address, " ".join(str(error).split())[:200])) from None
    echo(f"submitted as {job}; it goes on if this connection is lost")
    again = f"ray job logs --follow {job} --address {address}"
    if detach:
        echo(f"its log: {again}")
        return
    try:
        status = asyncio.run(_follow(client, job, echo, again))
    except KeyboardInterrupt:
        echo(f"{job} goes on; its log: {again}; its end: ray job stop {job} --address {address}")
        raise
    if status != JobStatus.SUCCEEDED:
        code = client.get_job_info(job).driver_exit_code
        why = "was stopped" if status == JobStatus.STOPPED else f"failed with exit code {code}"
        raise WorkError(f"job {job} {why}; the lines above say why; the same command resumes")


async def _follow(client: Any, job: str, echo: Callable[[str], None], again: str) -> Any:
    """Says the job's log line by line; returns the state in which it ended."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    told, lost = 0, None
    while True:
        seen, rest = 0, ""
        try:
            async for text in client.tail_job_logs(job):  # begins at the log's first line
                if lost is not None:
                    echo("the connection is back")
                    lost = None
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    seen += 1
                    if seen > told:
                        told = seen
                        echo(line)
            status = client.get_job_status(job)
            if status.is_terminal():
                if rest and seen >= told:
                    echo(rest)
                return status
        except (ClientError, RayError, RuntimeError, OSError):
            pass
        if lost is None:
            lost = time.monotonic()
            echo("connection lost; the job goes on; trying again")
        if time.monotonic() - lost > _PATIENCE_S:
            raise WorkError(
                f"no connection for {_PATIENCE_S:.0f} s; {job} goes on; follow: {again}"
            )
        await asyncio.sleep(_RETRY_S)


def _refusal(address: str, text: str) -> str:
    if "token" in text.lower():
        variable = os.environ.get("RAY_AUTH_MODE", "unset")
        return (
            f"--address: {address} asks for the cluster's token ({text}); it belongs in"
            f" ~/.ray/auth_token, with RAY_AUTH_MODE=token, which is {variable}"
        )
    return f"--address: {address} does not take jobs ({text}); open the tunnel first"


def _ours(arguments: Sequence[str]) -> list[str]:
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
