"""ONNX Runtime alone, in process: what no server can beat. Prints CPU microseconds an image by batch size (JSON)."""

import json
import sys
import time

import numpy as np
from graph import Graph


def main(seconds: float) -> None:
    """Times every batch size, by turns."""
    graph = Graph()
    generator = np.random.default_rng(0)
    sizes, times = (1, 8, 16, 32, 64, 256), {}
    for _ in range(3):
        for rows in sizes:
            latents = generator.standard_normal((rows, graph.dim), np.float32)
            labels = generator.integers(0, 10, rows) if graph.conditional else None
            graph.run(latents, labels)
            calls, start, stop_at = 0, time.process_time(), time.perf_counter() + seconds / len(sizes) / 3
            while time.perf_counter() < stop_at:
                graph.run(latents, labels)
                calls += 1
            times.setdefault(rows, []).append((time.process_time() - start) / calls / rows * 1e6)
    print(json.dumps({rows: sorted(found)[1] for rows, found in times.items()}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
