"""MLServer's types and codecs against a server; runs in an environment of its own and prints what it got as JSON."""

import json
import sys
import urllib.request

import numpy as np
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse, MetadataServerResponse


def main(url: str) -> dict[str, object]:
    """Sends latents that come on stdin as MLServer encodes them, and reads the answers into its types."""
    given = json.load(sys.stdin)
    latents, labels = np.array(given["latents"], dtype=np.float32), np.array(given["labels"], dtype=np.int64)
    inputs = [NumpyCodec.encode_input("latents", latents), NumpyCodec.encode_input("labels", labels)]
    assert inputs[1].shape == [len(labels), 1]  # what it makes of [N]
    asked = InferenceRequest(id="mlserver-1", inputs=inputs)
    request = urllib.request.Request(
        f"{url}/v2/models/mnist/infer",
        data=asked.model_dump_json().encode(),  # every optional field is there, as null
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = InferenceResponse.model_validate_json(answer.read())
    with urllib.request.urlopen(f"{url}/v2/models/mnist", timeout=30) as answer:
        metadata = MetadataModelResponse.model_validate_json(answer.read())
    with urllib.request.urlopen(f"{url}/v2", timeout=30) as answer:
        server = MetadataServerResponse.model_validate_json(answer.read())
    assert (found.id, found.model_name, found.model_version) == ("mlserver-1", "mnist", "1")
    return {
        "server": server.name,
        "inputs": [tensor.name for tensor in metadata.inputs or []],
        "answers": [NumpyCodec.decode_output(found.outputs[0]).ravel().tolist()],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
