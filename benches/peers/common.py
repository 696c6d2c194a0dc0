"""What the peers' scripts share: arguments, thread counts, inputs, and one JSON line per measurement."""

import argparse
import json
import os
import pathlib
import statistics
import time

HERE = pathlib.Path(__file__).resolve().parent
SHAPES = json.loads((HERE / "shapes.json").read_text(encoding="utf-8"))
THREADS = 2


def pin_threads(environment=os.environ):
    """Must run before numpy, torch or faiss are imported: they read these once."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        environment[name] = str(THREADS)
    return environment


def arguments(family):
    parser = argparse.ArgumentParser(description=SHAPES[family]["about"])
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per shape, after one that is not timed")
    parser.add_argument("--quick", action="store_true", help="the smallest shape only")
    options = parser.parse_args()
    return options, [tuple(shape) for shape in SHAPES[family]["quick" if options.quick else "shapes"]]


def normal(rows, columns, seed):
    import numpy

    return numpy.random.default_rng(seed).standard_normal((rows, columns), dtype=numpy.float32)


def unit(rows, columns, seed):
    """Unit vectors, uniform on the sphere."""
    import numpy

    x = normal(rows, columns, seed)
    return x / numpy.linalg.norm(x, axis=1, keepdims=True)


def measure(family, peer, shape, call, repeats):
    """Times `call` and prints the line that side_by_side.py reads."""
    call()
    times = []
    for _ in range(max(repeats, 1)):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    line = {
        "family": family,
        "peer": peer,
        "shape": list(shape),
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
        "repeats": len(times),
    }
    print(json.dumps(line), flush=True)


def skipped(family, peer, shape, reason):
    """A peer that is not there is said to be not measured; it never silently drops out of the table."""
    print(json.dumps({"family": family, "peer": peer, "shape": list(shape), "skipped": str(reason)}), flush=True)
