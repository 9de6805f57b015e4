"""FastAPI on uvicorn, as most people serve a model: the session is called in the endpoint, no batching.

The endpoints are `async`: with one ONNX Runtime thread on one core, a thread pool only adds to each request.
"""

from fastapi import FastAPI, Request, Response
from graph import Graph, png
from pydantic import BaseModel

app = FastAPI()
graph = Graph()


class Latents(BaseModel):
    """What `/json` takes."""

    latents: list[list[float]]
    labels: list[int] | None = None


class Pixels(BaseModel):
    """What `/json` answers."""

    pixels: list[int]


@app.post("/binary")
async def binary(request: Request) -> Response:
    """Raw bytes in, raw bytes out."""
    pixels = graph.run(*graph.from_bytes(await request.body()))
    return Response(pixels.tobytes(), media_type="application/octet-stream")


@app.post("/json")
async def as_json(body: Latents) -> Pixels:
    """Numbers in, numbers out."""
    return Pixels(pixels=graph.run(*graph.from_json(body.model_dump())).ravel().tolist())


@app.post("/png")
async def as_png(request: Request) -> Response:
    """Raw bytes in, one PNG out."""
    return Response(png(graph.run(*graph.from_bytes(await request.body()))), media_type="image/png")
