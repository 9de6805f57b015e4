"""Every exception that ganserve raises on purpose.

    GanserveError
    ├── ConfigError                a recipe, flag or setting is wrong
    ├── DataError                  a data set is missing, damaged or not what it says
    ├── TrainingError
    │   ├── RunError               no such run, or it cannot be used as asked
    │   ├── CheckpointError        a checkpoint is missing or damaged
    │   └── TrainingDivergedError  a loss, gradient or weight is not finite
    ├── EvaluationError            images cannot be judged by this evaluator, or an evaluator is damaged
    ├── ExportError
    │   ├── ParityError            what was written does not compute what PyTorch computes
    │   └── QualityError           what was written makes images of another quality than PyTorch's
    ├── ArtifactError              an artifact is missing, damaged or not servable
    │   └── NoArtifactError        there is none yet
    ├── EngineError
    │   ├── ProviderError          the requested execution provider cannot be had
    │   ├── GoldenMismatchError    this machine does not reproduce the artifact's golden images
    │   └── InferenceError         the session failed on these rows
    └── RequestError               a request that gets an HTTP status instead of images
        ├── InvalidRequestError        400
        ├── UnauthorizedError          401
        ├── NotFoundError              404
        ├── MethodNotAllowedError      405
        ├── NotAcceptableError         406
        ├── SlowRequestError           408
        ├── BodyTooLargeError          413
        ├── UnsupportedMediaTypeError  415
        ├── HeadTooLargeError          431
        ├── TransferCodingError        501
        ├── OverloadedError            503
        ├── DeadlineError              504
        └── HTTPVersionError           505

A message says what is required and what was found; `hint` says what to type next. Numbers travel as attributes.
"""

from collections.abc import Mapping


class GanserveError(Exception):
    """Base of the tree: a message for people, and optionally what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(GanserveError):
    """A recipe, flag or setting is wrong; the message names the dotted key or the variable."""


class DataError(GanserveError):
    """A data set is missing, damaged or not what it says."""


class TrainingError(GanserveError):
    """Training cannot start or go on."""


class RunError(TrainingError):
    """No such run, or it cannot be used as asked."""


class CheckpointError(TrainingError):
    """A checkpoint is missing or damaged."""


class TrainingDivergedError(TrainingError):
    """A loss or gradient is not finite, and nothing was updated with it; or a weight is, and nothing was saved."""

    def __init__(self, *, step: int, quantity: str, value: float) -> None:
        super().__init__(
            f"training diverged at step {step}: {quantity} is {value}",
            hint="start another run with a lower optimizer.lr; this one keeps its checkpoints",
        )
        self.step = step
        self.quantity = quantity
        self.value = value


class EvaluationError(GanserveError):
    """Images cannot be judged by this evaluator, or an evaluator is missing or damaged."""


class ExportError(GanserveError):
    """The generator cannot be exported, or the exported file is not what it should be."""


class ParityError(ExportError):
    """What was written does not compute what PyTorch computes."""

    def __init__(
        self, message: str, *, format: str, batch_rows: int, max_abs_diff: int, differing_share: float
    ) -> None:
        super().__init__(message, hint="no artifact was written; the numbers above say where the two differ")
        self.format = format
        self.batch_rows = batch_rows
        self.max_abs_diff = max_abs_diff
        self.differing_share = differing_share


class QualityError(ExportError):
    """What was written makes images of another quality than PyTorch's."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="no artifact was written; export without this format")


class ArtifactError(GanserveError):
    """An artifact is missing, damaged or not servable."""


class NoArtifactError(ArtifactError):
    """Nobody named an artifact, and there is none yet."""


class EngineError(GanserveError):
    """The inference session cannot be made or does not work."""


class ProviderError(EngineError):
    """The requested execution provider cannot be had; the message says why."""


class GoldenMismatchError(EngineError):
    """This machine does not reproduce the artifact's golden images."""

    def __init__(self, message: str, *, max_abs_diff: int, differing_share: float) -> None:
        super().__init__(message, hint="the file or the provider computes something else: do not serve it")
        self.max_abs_diff = max_abs_diff
        self.differing_share = differing_share


class InferenceError(EngineError):
    """The session failed on these rows."""


class RequestError(GanserveError):
    """A request that gets an HTTP status instead of images.

    `status` and `title` belong to the class; the message is the `detail` that the client reads. `param` names the field
    or parameter at fault, where one is.
    """

    status = 500
    title = "Internal Server Error"

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers that belong to this error."""
        return {}


class InvalidRequestError(RequestError):
    """Malformed, or a value out of its range."""

    status = 400
    title = "Bad Request"


class UnauthorizedError(RequestError):
    """No bearer token, or not the right one."""

    status = 401
    title = "Unauthorized"

    @property
    def headers(self) -> Mapping[str, str]:
        """RFC 6750: the scheme that is expected."""
        return {"www-authenticate": "Bearer"}


class NotFoundError(RequestError):
    """No such route or model."""

    status = 404
    title = "Not Found"


class MethodNotAllowedError(RequestError):
    """The route exists, with other methods."""

    status = 405
    title = "Method Not Allowed"

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed

    @property
    def headers(self) -> Mapping[str, str]:
        """RFC 9110: a 405 lists the methods that the route has."""
        return {"allow": ", ".join(self.allowed)}


class NotAcceptableError(RequestError):
    """None of the media types in `Accept` can be made."""

    status = 406
    title = "Not Acceptable"


class SlowRequestError(RequestError):
    """The body did not arrive in time."""

    status = 408
    title = "Request Timeout"

    @property
    def headers(self) -> Mapping[str, str]:
        """The rest of the body may never come, so nothing else can on this connection."""
        return {"connection": "close"}


class BodyTooLargeError(RequestError):
    """The body is larger than the limit."""

    status = 413
    title = "Content Too Large"


class UnsupportedMediaTypeError(RequestError):
    """The body's content type or encoding is not one that the route reads."""

    status = 415
    title = "Unsupported Media Type"


class HeadTooLargeError(RequestError):
    """The request line and the headers are too long, or there are too many of these."""

    status = 431
    title = "Request Header Fields Too Large"

    @property
    def headers(self) -> Mapping[str, str]:
        """Nobody reads on to its end."""
        return {"connection": "close"}


class TransferCodingError(RequestError):
    """The body's transfer coding is not one that the server takes off."""

    status = 501
    title = "Not Implemented"

    @property
    def headers(self) -> Mapping[str, str]:
        """What the body is cannot be told, so neither can what comes after it."""
        return {"connection": "close"}


class OverloadedError(RequestError):
    """The queue is full, or the server is not ready: try again later."""

    status = 503
    title = "Service Unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> Mapping[str, str]:
        """RFC 9110: when to come back, in whole seconds."""
        return {"retry-after": str(self.retry_after_s)}


class DeadlineError(RequestError):
    """The request's deadline passed before its images were made."""

    status = 504
    title = "Gateway Timeout"


class HTTPVersionError(RequestError):
    """The request is of another version of HTTP than 1.0 and 1.1."""

    status = 505
    title = "HTTP Version Not Supported"

    @property
    def headers(self) -> Mapping[str, str]:
        """In that version, the next request may begin anywhere."""
        return {"connection": "close"}
