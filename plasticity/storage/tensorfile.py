"""Tensors in one file, in the safetensors format: a JSON header and plain numbers, which cannot carry code.

The format (documented by the library ``safetensors``, which reads these files) is: the length of the header as 8 bytes;
the header, name -> dtype, shape, first and last byte; the numbers, little-endian, without gaps. It is written here
because a replay memory may fill half of the RAM: tensors go to the file piece by piece, without a copy of all of them,
and are hashed on the way.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .files import Input, Output

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 2**24
"""Bytes: room for a hundred thousand tensors."""
MAX_DIMENSIONS = 32
PIECE = 2**24
"""Numbers written at once."""
METADATA = "__metadata__"
"""The one name in a header that is no tensor."""


def write_tensors(file: Output, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device and layout in memory; ValueError for a dtype that is not in ``DTYPES``."""
    # Large items first, so that every tensor begins at a multiple of its item size, for readers that map the file.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header, end = {}, 0
    for name, tensor in ordered:
        if tensor.dtype not in NAMES:
            raise ValueError(f"{name} has dtype {tensor.dtype}; a tensor file holds {', '.join(NAMES.values())}")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"{len(tensors)} tensors need a header of {len(text)} bytes; it may have {MAX_HEADER}")
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for _, tensor in ordered:
        for piece in tensor.detach().reshape(-1).split(PIECE) if tensor.numel() else ():
            file.write(piece.cpu().view(torch.uint8).numpy())


def read_tensors(file: Input) -> dict[str, Tensor]:
    """Return the tensors of a file, on the CPU; ValueError names the fault of a damaged one.

    Nothing is allocated before the whole header was found to fit the size of the file.
    """
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(MAX_HEADER, file.size - 8):
        raise ValueError(f"its header claims {length} bytes, and the file has {file.size}")
    layout = list(_checked(json.loads(file.read(length).decode()), file.size - 8 - length))
    tensors = {}
    for name, dtype, shape in layout:
        tensors[name] = tensor = torch.empty(shape, dtype=dtype, device="cpu")
        if tensor.numel():
            raw = tensor.reshape(-1).view(torch.uint8)
            file.read_into(raw.numpy())
            if dtype == torch.bool and int(raw.max()) > 1:
                raise ValueError(f"{name} holds bytes that are no bool")
    return tensors


def _checked(header: Any, size: int) -> Iterator[tuple[str, torch.dtype, list[int]]]:
    """Yield name, dtype and shape in the order of the data, which must fill ``size`` bytes without gap or overlap."""
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    entries = [_entry(name, entry) for name, entry in header.items() if name != METADATA]
    position = 0
    for begin, end, name, dtype, shape in sorted(entries, key=lambda entry: entry[:2]):
        if begin != position or end > size:
            raise ValueError(f"{name} is said to be at bytes {begin} to {end} of {size}; {position} was expected")
        position = end
        yield name, dtype, shape
    if position != size:
        raise ValueError(f"its header speaks of {position} bytes, and there are {size}")


def _entry(name: str, entry: Any) -> tuple[int, int, str, torch.dtype, list[int]]:
    """Return begin, end, name, dtype and shape of one entry of a header, which agree with each other."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its header says of {name} something else than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name} has the dtype {dtype!r:.40}; there are {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or math.prod(max(n, 1) for n in shape) >= 2**59:
        raise ValueError(f"{name} has the shape {shape!r:.80}, which is none")
    num_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if not _counts(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != num_bytes:
        raise ValueError(f"{name}, {dtype} {shape}, has {num_bytes} bytes, not those of {offsets!r:.80}")
    return offsets[0], offsets[1], name, DTYPES[dtype], shape


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)
