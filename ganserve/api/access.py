"""The access log: one JSON object a line for every request, on standard output; off unless `GANSERVE_ACCESS_LOG` is on.

A line has nothing of a request that could be a secret: no header, no query, and of the path only the route's template.
"""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

logger = logging.getLogger(__name__)


class AccessLog:
    """Writes the lines, each in one piece: those of several workers do not mix."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """A log on `stream`; by default on standard output."""
        self._stream = stream or sys.stdout
        self._broken = False

    def write(
        self,
        *,
        identity: str,
        method: str | None,
        route: str,
        status: int | None,
        sent_bytes: int,
        started_at: float,
        rows: int,
        client: str | None,
    ) -> None:
        """One request has ended.

        Args:
            identity: its `X-Request-ID`.
            method: None where no head was understood.
            route: the route's template, or "unknown".
            status: None where the client left before its answer.
            sent_bytes: of the answer's body.
            started_at: when its head was there, by `time.perf_counter`.
            rows: that went through the session for it.
            client: its address, as the connection has it.
        """
        if self._broken:
            return
        # json.dumps escapes control characters and whatever is not ASCII: a line is a line.
        line = json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": identity,
                "method": method,
                "route": route,
                "status": status,
                "bytes": sent_bytes,
                "ms": round((time.perf_counter() - started_at) * 1e3, 3),
                "rows": rows,
                "client": client,
            }
        )
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError) as err:  # nobody reads it any more: requests are answered all the same
            self._broken = True
            logger.error("the access log cannot be written and ends here error=%s", err)
