"""Damage checkpoints at random for a while, and see that reading them never does more than refuse.

    python benchmarks/fuzz_checkpoint.py --seconds 60 --seed 1

Two kinds of damage. *Accidents* (flipped bits, cuts, stretches of zeros) leave the checksums as they were: every one
must be refused. *Attacks* make the checksums fit again, after splicing bytes, rewriting parts of the JSON and of the
tensor header, or nesting deeply: the reader must refuse, or return plain values. Any error but CheckpointError, a
reading of more than a second, or a growth of memory by 100 MB ends the run with exit code 1 and leaves the case in a
folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from plasticity.storage.checkpoint import MANIFEST, STATE, TENSORS, CheckpointError, encode_manifest, load, save
from plasticity.storage.nested import flatten

EXAMPLE = {
    "networks": {"actor": {"w": torch.randn(3, 4), "b": torch.zeros(3)}},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
    "random": {"state": {"state": 2**127 + 5, "inc": 2**100}, "bytes": b"\x00\xff", "inf": float("inf")},
    "replay": {"done": torch.tensor([True, False]), "obs": torch.randn(4, 2).half(), "array": torch.ones(3).numpy()},
}
WORDS = ["$tensor", "$tuple", "$dict", "$float", "$bytes", "$array", "$scalar", "$", "F32", "BOOL", "dtype", "shape"]
WORDS += ["data_offsets", "__metadata__", "networks.actor.w", "inf", "../../x", "\x00", "\ud800", ""]
NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308]


def flip(rng: random.Random, data: bytes) -> bytes:
    """Flip one bit."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut(rng: random.Random, data: bytes) -> bytes:
    """Cut the end off."""
    return data[: rng.randrange(len(data))]


def blank(rng: random.Random, data: bytes) -> bytes:
    """Fill a stretch with zeros, as a file system may after a power cut; something must be there to lose."""
    begin = rng.randrange(len(data))
    end = rng.randrange(begin, len(data)) + 1
    return data[:begin] + b"\0" * (end - begin) + data[end:] if any(data[begin:end]) else data + b"\0"


def splice(rng: random.Random, data: bytes) -> bytes:
    """Replace, insert and remove short stretches."""
    for _ in range(rng.randint(1, 8)):
        at, new = rng.randint(0, len(data)), rng.randbytes(rng.randint(0, 8))
        gone = len(new) if rng.random() < 0.7 else rng.randint(0, 8)
        data = data[:at] + new + data[at + gone :]
    return data


def invent(rng: random.Random, depth: int = 0) -> Any:
    """Return a random JSON value that is likely to mean something to the reader."""
    kind = rng.randrange(9 if depth < 6 else 4)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice([*WORDS, None, True, False])
    items = [invent(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return items if kind < 6 else {rng.choice(WORDS): item for item in items}


def mutate(rng: random.Random, value: Any) -> Any:
    """Return a JSON value with one part of it replaced, or removed."""
    if rng.random() < 0.15 or not isinstance(value, (dict, list)) or not value:
        return invent(rng)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key: Any = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    if rng.random() < 0.1:
        del copy[key]
    else:
        copy[key] = mutate(rng, copy[key])
    return copy


def reword(rng: random.Random, data: bytes) -> bytes:
    """Mutate the JSON of a file: all of ``state.json``, the header of the tensors."""
    length = struct.unpack("<Q", data[:8])[0] if data[:1] != b"{" else None
    value = json.loads(data if length is None else data[8 : 8 + length])
    for _ in range(rng.randint(1, 4)):
        value = mutate(rng, value)
    text = json.dumps(value).encode()
    return text if length is None else struct.pack("<Q", len(text)) + text + data[8 + length :]


def nest(rng: random.Random, data: bytes) -> bytes:
    """Nest deeply."""
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'{"$tuple":[', b"]}"), (b'{"$dict":[[1,', b"]]}")])
    depth = rng.choice([50, 61, 130, 500, 900, 1100, 20_000])
    text = opening * depth + b"1" + closing * depth
    return text if data[:1] == b"{" else struct.pack("<Q", len(text)) + text


ACCIDENTS, ATTACKS = (flip, cut, blank), (splice, flip, cut, reword, reword, nest)


def damage(rng: random.Random, files: dict[str, bytes]) -> tuple[str, dict[str, bytes], bool]:
    """Return what was done, the files, and whether they must be refused."""
    if rng.random() < 0.4:
        how, name = rng.choice(ACCIDENTS), rng.choice(list(files))
        return f"accident: {how.__name__}", {**files, name: how(rng, files[name])}, True
    how, changed = rng.choice(ATTACKS), dict(files)
    for name in rng.choice([[STATE], [TENSORS], [STATE, TENSORS]]):
        changed[name] = how(rng, files[name])
    sizes = {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in changed.items() if n != MANIFEST}
    if rng.random() < 0.2:
        sizes = mutate(rng, sizes)
    changed[MANIFEST] = encode_manifest(sizes if isinstance(sizes, dict) else {}, {})
    return f"attack: {how.__name__}", changed, False


def memory() -> float:
    """Return the largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, counts, folder = random.Random(options.seed), Counter(), Path(tempfile.mkdtemp()) / "case"
    torch.manual_seed(options.seed)
    files = {path.name: path.read_bytes() for path in save(folder, EXAMPLE).iterdir()}
    load(folder)
    started, before, slowest = time.perf_counter(), memory(), 0.0
    while time.perf_counter() - started < options.seconds:
        what, changed, must_refuse = damage(rng, files)
        for name, data in changed.items():
            (folder / name).write_bytes(data)
        begin = time.perf_counter()
        try:
            flatten(load(folder))
            outcome = "read"
        except CheckpointError:
            outcome = "refused"
        except Exception as error:  # what this run is looking for
            outcome = f"raised {error!r}"
        took = time.perf_counter() - begin
        slowest, grown = max(slowest, took), memory() - before
        counts[what, outcome] += 1
        wrong = outcome == "read" and must_refuse and changed != files
        if wrong or outcome.startswith("raised") or took > 1 or grown > 100:
            print(f"{what}: {outcome} in {took:.2f} s, {grown:.0f} MB more; the case is in {folder}", file=sys.stderr)
            return 1
    for (what, outcome), count in sorted(counts.items()):
        print(f"{what:<18} {outcome:<8} {count:>8}")
    print(f"{sum(counts.values())} cases, slowest {1000 * slowest:.0f} ms, {memory() - before:.0f} MB more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
