"""Run by its path, in a network namespace of its own: serves a Bento there, asks it for a digit, prints what it saw.

Its only argument is the `bentoml` command; the standard library is all that it may count on.
"""

import base64
import fcntl
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def main() -> None:
    """Prints one JSON object: the network's interfaces, statuses, the image, libraries in the worker, and the log."""
    _loopback_up()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.argv[1], "serve", "ganserve:latest", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            found = _ask(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()
            status = process.wait(30)
        log.seek(0)
        print(json.dumps({**found, "exit": status, "log": log.read()}))


def _ask(url: str, process: "subprocess.Popen[bytes]") -> dict[str, object]:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    else:
        return {}
    with urllib.request.urlopen(f"{url}/v1/digits/7.png", timeout=5) as answer:
        image = answer.read()
    with urllib.request.urlopen(f"{url}/v1/model", timeout=5) as answer:
        model = json.load(answer)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    maps = "".join(Path(f"/proc/{child}/maps").read_text() for child in [*children, process.pid])
    return {
        "interfaces": [name for _, name in socket.if_nameindex()],
        "image": base64.b64encode(image).decode(),
        "model": model,
        "libraries": sorted({name for name in ("torch", "onnx") if f"/{name}/" in maps}),
    }


def _loopback_up() -> None:
    with socket.socket() as any_socket:
        name = b"lo".ljust(16, b"\0")
        (flags,) = struct.unpack("16xh", fcntl.ioctl(any_socket, SIOCGIFFLAGS, name + bytes(2)))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", name, flags | IFF_UP))


if __name__ == "__main__":
    main()
