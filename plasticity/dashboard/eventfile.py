"""TensorBoard's event file, written synchronously.

``tensorboard.summary.writer.EventFileWriter`` writes from a thread: when the disk is full the thread dies with a
traceback, later calls raise in the training thread, and nothing is written again after space is freed. Its checksum
loops over bytes in Python: 0.6 ms for 60 scalars. The format is four fields a record, so it is written here.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata

from plasticity.storage.appendfile import AppendFile

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected; RFC 3720, appendix B.4
_SEED = struct.pack("<I", 0x641F6454)  # the bytes that take a checksum register of 0 to the usual start, 0xFFFFFFFF
_BLOCK = 1024  # bytes per table look-up: the table is 1 MB
_POSITIONS = np.arange(_BLOCK)
_PREFIX = "events.out.tfevents"
_counter = itertools.count()


@cache
def _crc_table() -> NDArray[np.uint32]:
    """Return the share in the checksum of byte value v at position p of a block: (_BLOCK, 256)."""
    byte = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        byte = np.where(byte & 1, (byte >> 1) ^ np.uint32(_POLYNOMIAL), byte >> 1).astype(np.uint32)
    table = np.empty((_BLOCK, 256), np.uint32)
    table[-1] = byte
    for position in range(_BLOCK - 2, -1, -1):
        later = table[position + 1]
        table[position] = byte[later & 0xFF] ^ (later >> 8)
    return table


def masked_crc32c(data: bytes) -> int:
    """Return the masked CRC-32C of a TensorBoard record; by table look-ups, as a CRC is linear in the bytes."""
    table, payload = _crc_table(), np.frombuffer(_SEED + data, np.uint8)
    first = len(payload) % _BLOCK or _BLOCK  # zeros that would fill a short block add nothing in front
    crc = 0
    for start in range(first - _BLOCK, len(payload), _BLOCK):
        block = payload[max(start, 0) : start + _BLOCK]
        if start >= 0:
            block = block.copy()
            block[:4] ^= np.frombuffer(struct.pack("<I", crc), np.uint8)
        crc = int(np.bitwise_xor.reduce(table[_POSITIONS[-len(block) :], block]))
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF  # the mask of TensorFlow's record format


def frame(data: bytes) -> bytes:
    """Return one record: length, checksum of the length, data, checksum of the data."""
    return b"".join([_head(len(data)), data, struct.pack("<I", masked_crc32c(data))])


@lru_cache(maxsize=1024)
def _head(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


class EventFile:
    """One new event file in ``folder``; OSError if it cannot be created."""

    def __init__(self, folder: Path) -> None:
        now = time.time()
        # TensorBoard reads files in the order of their names: one that goes on in the same second has to come later.
        stamps = [part for file in folder.glob(f"{_PREFIX}.*") if (part := file.name.split(".")[3]).isdecimal()]
        stamp = max(int(now), *(int(part) + 1 for part in stamps), 0)
        name = f"{_PREFIX}.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.{next(_counter)}"
        self._file = AppendFile(folder / name)
        source = SourceMetadata(writer="plasticity.dashboard")
        # Written with the first event, so that a disk that is full now does not leave a file without its header.
        self._header = [Event(wall_time=now, file_version="brain.Event:2", source_metadata=source)]

    def purge(self, step: int) -> None:
        """Make TensorBoard drop the events of earlier files from ``step`` on; call it before the first event."""
        self._header[0].step = step
        self._header.append(
            Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)),
        )

    def append(self, event: Event) -> None:
        """Write one event; raise OSError if it cannot be written whole."""
        self._file.append(b"".join(frame(one.SerializeToString()) for one in (*self._header, event)))
        self._header = []

    def sync(self) -> None:
        """Wait until all events are on the disk itself; OSError if that fails."""
        self._file.sync()

    def close(self) -> None:
        """Close the file; more than once is fine."""
        self._file.close()
