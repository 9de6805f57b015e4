"""V2 inference bodies, made by hand: what a client library would hide is what tests are about."""

import json
from typing import Any

import numpy as np

from ganserve.api.http import Request

PATH = "/v2/models/mnist/infer"
DATATYPES = {"f": "FP", "i": "INT", "u": "UINT"}


def datatype(array: np.ndarray) -> str:
    """The protocol's name of an array's dtype."""
    return f"{DATATYPES[array.dtype.kind]}{8 * array.dtype.itemsize}"


def tensor(name: str, array: np.ndarray, *, binary: bool = False, **changes: Any) -> dict[str, Any]:
    """One input; `changes` replace its fields, and those that are `...` are left out."""
    document: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype(array)}
    if binary:
        document["parameters"] = {"binary_data_size": array.nbytes}
    else:
        document["data"] = array.ravel().tolist()
    return {key: value for key, value in (document | changes).items() if value is not ...}


def document(rows: np.ndarray, labels: np.ndarray | None, *, binary: bool = False, **changes: Any) -> dict[str, Any]:
    """A whole request; `changes` as in `tensor`."""
    inputs = [tensor("latents", rows, binary=binary)]
    if labels is not None:
        inputs.append(tensor("labels", labels, binary=binary))
    return {key: value for key, value in ({"inputs": inputs} | changes).items() if value is not ...}


def request(
    content: Any, *arrays: np.ndarray, length: str | None = None, model: str = "mnist", **headers: str
) -> Request:
    """A request of a JSON document, or of bytes, with the binary data of `arrays` behind it."""
    header = content if isinstance(content, bytes) else json.dumps(content).encode()
    if length is None and arrays:
        length = str(len(header))
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    if length is not None:
        told["inference-header-content-length"] = length
    body = header + b"".join(array.tobytes() for array in arrays)
    return Request(method="POST", path=PATH, headers=told, body=body, path_parameters={"model": model})


def pixels_of(headers: Any, body: bytes) -> np.ndarray:
    """uint8 [N, H, W, C] of an answer in either form."""
    length = headers.get("inference-header-content-length")
    header = json.loads(body if length is None else body[: int(length)])
    (output,) = header["outputs"]
    assert (output["name"], output["datatype"]) == ("pixels", "UINT8")
    if length is None:
        assert "parameters" not in output
        return np.array(output["data"], dtype=np.uint8).reshape(output["shape"])
    assert "data" not in output
    content = body[int(length) :]
    assert output["parameters"] == {"binary_data_size": len(content)}
    return np.frombuffer(content, dtype=np.uint8).reshape(output["shape"])
