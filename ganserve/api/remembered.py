"""What is remembered of requests, so that those that come again are neither parsed nor handled.

A client in a loop sends the same head again and again, to the byte: it is kept under its bytes, with what the parser
made of it. And where the handler says which bytes of the body are tensors (`ganserve.api.repeat`), the head keeps,
under the bytes around them, how such a body is answered. Both memories are bounded: one that is full starts anew.
"""

from collections.abc import Sequence

from ganserve.api.exchange import given_request_id, header_mapping, is_cheap
from ganserve.api.http import Labels, Latents, Work
from ganserve.api.repeat import Repeat
from ganserve.api.routing import Match

MAX_REMEMBERED_BYTES = 2048  # of a head
_HEADS = 256
_BODIES, _LEARNED_BODIES = 16, 256  # kinds of them behind one head: at once, and ever


class Head:
    """What the parser made of a request's head; it may serve many requests, and knows bodies that came behind it."""

    __slots__ = (
        "after",
        "before",
        "body_bytes",
        "identity",
        "keep_alive",
        "learned",
        "mapping",
        "match",
        "method",
        "path",
        "query",
        "repeats",
    )

    def __init__(
        self,
        match: Match,
        method: str = "GET",
        path: str = "/",
        query: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        keep_alive: bool = True,
    ) -> None:
        self.match = match
        self.method = method
        self.path = path
        self.query = query
        self.mapping = header_mapping(headers)
        self.identity = given_request_id(headers)
        self.keep_alive = keep_alive
        self.body_bytes = 0  # of the body that follows a remembered head
        self.before = self.after = 0  # bytes of that body: what is between them are tensors
        self.repeats: dict[bytes, Repeated] = {}  # by those bytes
        self.learned = 0  # how often something was put there

    def learn(self, body: bytes, work: Work) -> None:
        """Keeps what `work` knows of the next body like this one, if anything."""
        if work.repeat is None or self.learned == _LEARNED_BODIES or not is_cheap(work):
            return
        self.learned += 1
        repeat = work.repeat()
        if repeat is None:
            return
        if (repeat.before, repeat.after) != (self.before, self.after) or len(self.repeats) >= _BODIES:
            self.repeats.clear()
            self.before, self.after = repeat.before, repeat.after
        around = body[: repeat.before] + body[len(body) - repeat.after :]
        self.repeats[around] = Repeated(repeat, work)


class Repeated:
    """How bodies of one kind are answered, with no handler."""

    __slots__ = ("first_lines", "reader", "repeat", "rows", "work")

    def __init__(self, repeat: Repeat, work: Work) -> None:
        self.repeat = repeat
        self.reader, self.rows = repeat.reader, work.rows
        # Not the body that it came of, which `inputs` and `repeat` know.
        self.work = Work(rows=work.rows, inputs=_no_inputs, finish=work.finish, row_us=work.row_us)
        self.first_lines: bytes | None = None  # of the answer, once there was one


def _no_inputs() -> tuple[Latents, Labels | None]:
    raise AssertionError("a repeated request's rows are read by the batcher")


class Heads(dict[bytes, Head]):
    """The heads that a server remembers, by their bytes."""

    __slots__ = ()

    def keep(self, head: Head, received: bytes, body_bytes: int) -> None:
        """Remembers the head of a request that has arrived, if it came in one piece, alone or with all its body.

        Not where the body is chunked: such a head does not say how much of what follows is the request's.

        Args:
            head: what the parser made of it.
            received: what was read first of the request.
            body_bytes: of its body.
        """
        end = received.find(b"\r\n\r\n") + 4
        whole = len(received) in (end, end + body_bytes)
        if end > MAX_REMEMBERED_BYTES or not whole or "transfer-encoding" in head.mapping:
            return
        if len(self) >= _HEADS:
            self.clear()
        head.body_bytes = body_bytes
        self[received[:end]] = head
