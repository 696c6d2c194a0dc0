"""Cases with their results in one safetensors file, for tests that need no Python.

Inputs are stored as 32-bit numbers, the very ones that the float64 computation starts from; results as float64. What is
no array (settings, sizes) goes into the file's metadata as JSON.
"""

import json
import pathlib
import struct

import numpy

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "crates" / "methods" / "tests" / "data"
NAMES = {"float32": "F32", "float64": "F64", "uint32": "U32"}


class Golden:
    """Collects cases; every name is `case/tensor`."""

    def __init__(self, system):
        self.path = FOLDER / f"{system}.safetensors"
        self.arrays, self.settings = {}, {}

    def case(self, name, settings, inputs, results):
        """Inputs and results are dictionaries of arrays or tensors."""
        self.settings[name] = json.dumps(settings, sort_keys=True)
        for part, arrays in (("in", inputs), ("out", results)):
            for key, array in arrays.items():
                array = array.detach().numpy() if hasattr(array, "detach") else numpy.asarray(array)
                if part == "in" and array.dtype == numpy.float64:
                    narrow = array.astype(numpy.float32)
                    assert (narrow == array).all(), f"{name}/{key} is not what the computation started from"
                    array = narrow
                self.arrays[f"{name}/{part}.{key}"] = numpy.ascontiguousarray(array)

    def write(self):
        header, offset = {"__metadata__": self.settings}, 0
        for name in sorted(self.arrays):
            array = self.arrays[name]
            end = offset + array.nbytes
            header[name] = {
                "dtype": NAMES[array.dtype.name],
                "shape": list(array.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        FOLDER.mkdir(parents=True, exist_ok=True)
        with open(self.path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in sorted(self.arrays):
                file.write(self.arrays[name].tobytes())
        print(f"{self.path.name}: {len(self.settings)} cases, {self.path.stat().st_size} bytes")


def narrow(array):
    """float64 numbers that float32 holds exactly."""
    return numpy.asarray(array).astype(numpy.float32).astype(numpy.float64)


def unit(generator, *shape):
    """Rows of unit norm up to the rounding to float32."""
    x = generator.standard_normal(shape)
    return narrow(x / numpy.linalg.norm(x, axis=-1, keepdims=True))
