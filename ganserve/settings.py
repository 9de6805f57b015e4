"""`GANSERVE_*`: every setting of the server, read once.

A wrong or unknown one is refused at start: a misspelt limit that silently does nothing is worse than no server.
"""

import difflib
import os
import re
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from ganserve.errors import ConfigError

PREFIX = "GANSERVE_"

# A Kubernetes service called "ganserve" puts these into every pod beside it, such as GANSERVE_PORT=tcp://10.0.0.7:3000.
_KUBERNETES = re.compile(
    r"SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=[0-9]+|PORT=\w+://.*|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*"
)


class Settings(BaseModel):
    """The server's settings; the variable of `max_body_bytes` is `GANSERVE_MAX_BODY_BYTES`, and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    artifact: str | None = Field(
        default=None,
        min_length=1,
        description="artifact directory or bento:NAME[:VERSION]; default: the newest in artifacts/",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="cuda: CUDA or a refusal to start; auto: CUDA if it works here"
    )
    precision: Literal["float32", "float16"] = Field(
        default="float32", description="float16: serve generator.fp16.onnx, which `ganserve export --fp16` adds"
    )
    token: SecretStr | None = Field(
        default=None, description="bearer token that every request needs, but for the health routes; default: none"
    )
    workers: int = Field(default=1, ge=1, le=256, description="server processes")
    threads: int | None = Field(
        default=None, ge=1, le=256, description="ONNX Runtime threads a worker; default: the CPU quota / workers"
    )
    max_batch_rows: int = Field(default=256, ge=1, le=4096, description="rows in one batch, at most")
    max_queue_rows: int = Field(default=4096, ge=1, description="rows that may wait; more: 503 with Retry-After")
    max_request_rows: int = Field(default=1024, ge=1, description="rows in one request, at most")
    max_delay_ms: float = Field(default=0.0, ge=0, le=1000, description="how long a batch that is not full waits")
    spin_us: float = Field(
        default=100.0,
        ge=0,
        le=10_000,
        description="how long a worker stays awake after a batch, for who asks again at once",
    )
    deadline_ms: float = Field(default=10_000.0, gt=0, description="a request not done by then gets 504")
    drain_ms: float = Field(
        default=0.0, ge=0, le=25_000, description="after SIGTERM: not ready, but answering, for as long before stopping"
    )
    max_body_bytes: int = Field(default=8 << 20, ge=1024, description="request body, at most; more: 413")
    max_bodies_bytes: int = Field(
        default=256 << 20, ge=1024, description="bodies of all requests that a worker holds; more: 503 for large ones"
    )
    header_timeout_ms: float = Field(default=10_000.0, gt=0, description="time for a request's head to arrive")
    max_connections: int = Field(default=4096, ge=1, description="open connections a worker; more: 503 and closed")
    body_timeout_ms: float = Field(default=10_000.0, gt=0, description="time for a body to arrive; more: 408")
    access_log: bool = Field(default=False, description="one line of JSON on standard output for every request")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The settings in the environment.

        Raises:
            ConfigError: a `GANSERVE_*` variable that does not exist or whose value is wrong; all faults at once.
        """
        values = {
            short: value
            for name, value in environ.items()
            if (short := name.removeprefix(PREFIX)) != name and not _KUBERNETES.fullmatch(f"{short}={value}")
        }
        known = {name.upper(): name for name in cls.model_fields}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {PREFIX}{near[0]}?" if near else "ganserve doctor lists them all"
                raise ConfigError(f"{PREFIX}{name} is not a setting", hint=hint)
        try:
            return cls.model_validate({known[name]: value for name, value in values.items()})
        except ValidationError as err:
            faults = [
                f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg'].removeprefix('Value error, ')}"
                + ("" if fault["loc"][0] == "token" else f", got {fault['input']!r}")
                if fault["loc"]
                else fault["msg"].removeprefix("Value error, ")
                for fault in err.errors()
            ]
            raise ConfigError("; ".join(faults), hint="ganserve doctor lists every setting and its value") from err

    @field_validator("token")
    @classmethod
    def _speakable(cls, token: SecretStr | None) -> SecretStr | None:
        """RFC 6750: what a bearer token may be made of; and one that can be guessed protects nothing."""
        if token is not None and not re.fullmatch(r"[A-Za-z0-9._~+/-]{16,4096}=*", token.get_secret_value()):
            raise ValueError("16 or more letters, digits or ._~+/- are expected")
        return token

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_request_rows > self.max_queue_rows:
            raise ValueError(
                f"{PREFIX}MAX_REQUEST_ROWS ({self.max_request_rows}) must not be above "
                f"{PREFIX}MAX_QUEUE_ROWS ({self.max_queue_rows}): such a request could never be queued"
            )
        if self.max_body_bytes > self.max_bodies_bytes:
            raise ValueError(
                f"{PREFIX}MAX_BODY_BYTES ({self.max_body_bytes}) must not be above "
                f"{PREFIX}MAX_BODIES_BYTES ({self.max_bodies_bytes}): such a body could never be held"
            )
        return self
