"""KServe's own client against a server; runs in an environment of its own and prints what it got as JSON."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def main(url: str) -> dict[str, object]:
    """Asks in JSON and in binary, in and out, for latents that come on stdin."""
    given = json.load(sys.stdin)
    latents, labels = np.array(given["latents"], dtype=np.float32), np.array(given["labels"], dtype=np.int64)

    def request(*, binary_in: bool, binary_out: bool) -> InferRequest:
        inputs = [InferInput("latents", list(latents.shape), "FP32"), InferInput("labels", list(labels.shape), "INT64")]
        for tensor, array in zip(inputs, (latents, labels), strict=True):
            tensor.set_data_from_numpy(array, binary_data=binary_in)
        outputs = [RequestedOutput("pixels", parameters={"binary_data": binary_out})]
        return InferRequest("mnist", inputs, request_id="kserve-1", request_outputs=outputs)

    async def ask() -> dict[str, object]:
        async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=30)) as client:
            answers = []
            for binary_in in (False, True):
                for binary_out in (False, True):
                    found = await client.infer(
                        url, request(binary_in=binary_in, binary_out=binary_out), model_name="mnist"
                    )
                    assert (found.model_name, found.id) == ("mnist", "kserve-1")
                    answers.append(found.outputs[0].as_numpy().ravel().tolist())
            return {
                "live": await client.is_server_live(url),
                "ready": await client.is_server_ready(url),
                "model_ready": await client.is_model_ready(url, "mnist"),
                "other_ready": await client.is_model_ready(url, "other"),
                "answers": answers,
            }

    return asyncio.run(ask())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
