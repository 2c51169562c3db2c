"""Checkpoints: what is saved comes back to the bit, what is damaged is refused by name, and a crash loses nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
import warnings
from collections import OrderedDict, deque
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from plasticity.storage.checkpoint import (
    CHECKPOINT_FORMAT,
    MANIFEST,
    STATE,
    TENSORS,
    CheckpointError,
    encode_manifest,
    load,
    read_manifest,
    save,
)
from plasticity.storage.folder import Checkpoints
from plasticity.storage.nested import MAX_DEPTH, flatten
from plasticity.storage.tensorfile import DTYPES

GOLDEN = Path(__file__).parent / "golden" / "000001-step-7"


def same(a, b) -> bool:
    """Return whether two states are equal in types and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        raw = [x.contiguous().reshape(-1).view(torch.uint8) if x.numel() else x for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        keys = zip(a, b, strict=True) if len(a) == len(b) else [(0, 1)]
        return all(same(x, y) for x, y in keys) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    return a == b


def reseal(folder: Path) -> None:
    """Make the manifest fit the files again, as somebody who tampers with them would."""
    files = {}
    for name in (STATE, TENSORS):
        data = (folder / name).read_bytes()
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_bytes(encode_manifest(files, {}))


def rewrite_header(folder: Path, change) -> None:
    """Edit the header of the tensor file, and make everything else fit."""
    data = (folder / TENSORS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    text = change(header) or json.dumps(header)
    (folder / TENSORS).write_bytes(struct.pack("<Q", len(text)) + text.encode() + data[8 + length :])
    reseal(folder)


EXAMPLE = {
    "networks": {"actor": OrderedDict(w=torch.arange(6.0).reshape(2, 3), b=torch.tensor([True, False]))},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "param_groups": [{"betas": (0.9, 0.999)}]},
    "numbers": [0, -1, 2**127 + 1, -0.0, 1e-320, math.inf, -math.inf, math.nan],
    "others": [True, False, None, "", "\ud800 ü\x00", b"", b"\xff"],
    "empty": [{}, [], (), torch.empty(0, 4), torch.empty(3, 0, dtype=torch.int64), np.empty((2, 0))],
    "$odd": {"$tensor": 1, 2.5: (), None: [()], (1, "a"): {}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "one", EXAMPLE, {"step": 5})


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_everything_comes_back_in_type_and_bits(folder: Path) -> None:
    expected = {**EXAMPLE, "networks": {"actor": dict(EXAMPLE["networks"]["actor"])}}
    assert same(load(folder), expected)
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, STATE, TENSORS])
    manifest = read_manifest(folder)
    assert (manifest["format"], manifest["notes"]) == (CHECKPOINT_FORMAT, {"step": 5})
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype, device: str) -> None:
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (3 * 5 * 8,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(3, -1)

    def parts(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"whole": tensor, "scalar": tensor[0, 0], "turned": tensor.T, "part": tensor[:, 1:3]}

    found = load(save(tmp_path / "x", parts(tensor.to(device))))  # on the CPU, wherever it was
    assert same(found, {key: value.clone() for key, value in parts(tensor).items()})


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_numpy_arrays_and_scalars_come_back_as_such(tmp_path: Path, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    read_only = array.copy()
    read_only.flags.writeable = False
    state = [array, array[1, 2], array[::-1, ::2], np.asarray(array[0, 0]), read_only]
    assert same(load(save(tmp_path / "x", state)), [np.array(x) if x.ndim else x for x in state])


@pytest.mark.usefixtures("everywhere")
def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    generator, numpy = models.generator(3), np.random.default_rng(3)
    state = load(save(tmp_path / "x", {"torch": generator.get_state(), "numpy": numpy.bit_generator.state}))
    expected = torch.rand(4, generator=generator), numpy.normal(size=4)
    other, fresh = models.generator(), np.random.default_rng()
    other.set_state(state["torch"])
    fresh.bit_generator.state = state["numpy"]
    assert torch.equal(torch.rand(4, generator=other), expected[0])
    assert (fresh.normal(size=4) == expected[1]).all()


@pytest.mark.usefixtures("everywhere")
def test_a_module_and_its_optimizer_go_on_to_the_same_bits(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        return network, torch.optim.AdamW(network.parameters(), amsgrad=True)

    def learn(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for i in range(steps):
            optimizer.zero_grad()
            network(torch.linspace(-1, i, 12).reshape(4, 3)).square().mean().backward()
            optimizer.step()

    network, optimizer = make()
    learn(network, optimizer, 3)
    folder = save(tmp_path / "x", [network.state_dict(), optimizer.state_dict()])
    learn(network, optimizer, 2)
    again, its_optimizer = make()
    saved = load(folder)
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    learn(again, its_optimizer, 2)
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))


def test_what_is_tied_is_stored_once_and_still_tied(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.randn(1000))
    folder = save(tmp_path / "x", {"in": weight, "out": weight, "half": weight[:500], "array": weight.detach().numpy()})
    state = load(folder)
    assert (folder / TENSORS).stat().st_size < 4 * 1500 + 500
    state["in"][0] = 7
    assert state["out"][0] == 7
    assert state["array"][0] == 7
    assert torch.equal(state["half"], weight[:500])


def test_equal_places_get_different_names(tmp_path: Path) -> None:
    state = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "__metadata__": torch.ones(2), 1: {"x": torch.ones(3)}}
    assert same(load(save(tmp_path / "x", state)), state)


def test_safetensors_reads_our_file_and_we_read_its(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.tensor(True),
        "c": torch.arange(5, dtype=torch.int16),
        "d": torch.randn(7, dtype=torch.bfloat16),
        "e": torch.empty(0, 2),
    }
    folder = save(tmp_path / "x", tensors)
    assert same(load_file(folder / TENSORS), {key: tensors[key] for key in load_file(folder / TENSORS)})
    assert len(load_file(folder / TENSORS)) == 5
    (folder / TENSORS).unlink()
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    reseal(folder)
    assert same(load(folder), tensors)


def test_a_checkpoint_of_the_first_format_is_read() -> None:
    state = load(GOLDEN)
    assert same(state["weight"], torch.tensor([[1.0, -2.0], [0.5, torch.inf]]))
    assert same(state["rest"], [2**100, (1.5, None), {3: "three"}, b"\x00\xff", True])
    assert same(state["array"], np.array([1, 2, 3], np.uint32))
    assert read_manifest(GOLDEN)["notes"] == {"step": 7, "score": 0.25}


JSONABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.binary(max_size=8)
    | st.lists(st.floats(width=32), max_size=4).map(torch.tensor),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(JSONABLE)
def test_any_nested_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state) -> None:
    assert same(load(save(tmp_path_factory.mktemp("any") / "x", state)), state)


# -- what cannot be saved ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (deque(), "state.a.0 is a collections.deque"),
        ({1}, "builtins.set"),
        (Path("x"), "Path"),
        (nn.Linear(1, 1), "Linear"),
        (1j, "complex"),
        (torch.zeros(1, dtype=torch.complex64), "complex64"),
        (torch.zeros(2).to_sparse(), "sparse"),
        (torch.zeros(1, device="meta"), "meta"),
        (np.array(["x"]), "dtype <U1"),
        (np.array([None]), "dtype object"),
        ({frozenset(): 1}, "has the key frozenset()"),
        (2**5000, "5001 bits"),
    ],
)
def test_what_is_no_plain_value_is_refused_by_its_place(tmp_path: Path, value, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=r"state\.a\.0") as caught:
        save(tmp_path / "x", {"a": [value]})
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_depth_has_a_bound_that_reading_shares(tmp_path: Path) -> None:
    deep: list = []
    for _ in range(MAX_DEPTH):
        deep = {1: (deep,)}[1]
    keyed: object = 0
    for _ in range(MAX_DEPTH):
        keyed = {1: keyed}
    assert same(load(save(tmp_path / "x", keyed)), keyed)
    assert same(load(save(tmp_path / "y", deep)), deep)
    with pytest.raises(ValueError, match="more than 60 levels deep"):
        save(tmp_path / "z", [deep])


def test_an_existing_folder_is_never_written_over(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="was not saved: it exists already"):
        save(folder, {})
    assert load(folder)["$odd"]


def test_a_large_memory_is_neither_copied_to_save_nor_to_load(tmp_path: Path) -> None:
    """Peak memory of a process of its own: 120 MB of tensors, and less than 50 MB more while saving and loading."""
    script = f"""
import resource, torch
from plasticity.storage.checkpoint import load, save
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
state = {{"obs": torch.ones(30, 2**20), "done": torch.zeros(2**20, dtype=torch.bool)}}
before = peak()
save({str(tmp_path / "x")!r}, state)
saved = peak()
del state
loaded = load({str(tmp_path / "x")!r})
print(round(saved - before), round(peak() - before))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    saving, loading = map(int, result.stdout.split())
    assert saving < 50
    assert loading < 50


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST, STATE, TENSORS])
def test_any_flipped_bit_is_found_in_the_file_that_has_it(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    step = max(1, len(data) // 150)
    for place in {*range(0, len(data), step), len(data) - 1}:
        for bit in (1, 128):
            (folder / name).write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            with pytest.raises(CheckpointError, match=name):
                load(folder)
    (folder / name).write_bytes(data)
    load(folder)


@pytest.mark.parametrize("name", [MANIFEST, STATE, TENSORS])
def test_truncated_extended_missing_and_linked_files_are_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    data = path.read_bytes()
    for size in {0, 1, 7, 8, 9, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=name):
            load(folder)
    path.write_bytes(data + b" ")
    with pytest.raises(CheckpointError, match=name):
        load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: it is missing"):
        load(folder)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.write_bytes(data)
    path.symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=f"{name}: it is a link"):
        load(folder)
    path.unlink()
    os.mkfifo(path)  # would block a reader that waits for a writer
    with pytest.raises(CheckpointError, match=f"{name}: it is no plain file"):
        load(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_another_format_is_refused_as_such(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({"format": 2, "all": "else"}))
    with pytest.raises(CheckpointError, match="has format 2, this version of plasticity reads 1"):
        load(folder)
    for content in ([], {}, {"format": True}, {"format": "1"}, {**manifest, "format": 1.0}, {**manifest, "more": 1}):
        (folder / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=MANIFEST):
            load(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "deep/state.json", "..", "", TENSORS.upper()])
def test_no_name_in_a_manifest_is_used_as_a_path(folder: Path, name: str) -> None:
    files = read_manifest(folder)["files"]
    for listed in ({**files, name: files[STATE]}, {name: files[STATE], TENSORS: files[TENSORS]}):
        (folder / MANIFEST).write_bytes(encode_manifest(listed, {}))
        with pytest.raises(CheckpointError, match=r"does not list state\.json and tensors\.safetensors"):
            load(folder)


BIG = 2**40


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"shape": [BIG]}, "not those of"),
        ({"shape": [BIG], "data_offsets": [0, 4 * BIG]}, "bytes 0 to 4398046511104 of"),
        ({"shape": [2**62, 2**62]}, "which is none"),
        ({"shape": [0, 2**62]}, "which is none"),
        ({"shape": [-2, -3]}, "which is none"),
        ({"shape": [2.0, 3]}, "which is none"),
        ({"shape": [True, 6]}, "which is none"),
        ({"shape": [1] * 33}, "which is none"),
        ({"shape": "23"}, "which is none"),
        ({"dtype": "C64"}, "dtype 'C64'"),
        ({"dtype": ["F32"]}, "dtype"),
        ({"data_offsets": [4, 28]}, "was expected"),
        ({"data_offsets": [0]}, "not those of"),
        ({"data_offsets": [-24, 0]}, "not those of"),
        ({"more": 1}, "something else than"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path, entry: dict, words: str) -> None:
    folder = save(tmp_path / "x", {"w": torch.zeros(2, 3)})
    rewrite_header(folder, lambda header: header["w"].update(entry))
    with pytest.raises(CheckpointError, match=TENSORS) as caught:
        load(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(("a", "b"), [([0, 8], [0, 8]), ([0, 8], [4, 12]), ([0, 8], [12, 20]), ([0, 8], None)])
def test_overlaps_gaps_and_unclaimed_bytes_are_refused(tmp_path: Path, a: list, b: list | None) -> None:
    folder = save(tmp_path / "x", {"a": torch.zeros(2), "b": torch.ones(2)})

    def move(header: dict) -> None:
        header["a"]["data_offsets"] = a
        if b is None:
            del header["b"]
        else:
            header["b"]["data_offsets"] = b

    rewrite_header(folder, move)
    with pytest.raises(CheckpointError, match=r"is said to be at bytes|speaks of 8 bytes, and there are 16"):
        load(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "[" * 200 + "]" * 200,
        "9" * 100_000,
        '{"$tensor": "absent"}',
        '{"$tensor": 1}',
        '{"$tensor": ["w"]}',
        '{"$tuple": {}}',
        '{"$dict": [[1]]}',
        '{"$dict": [[[], 1]]}',
        '{"$dict": [[{"$tuple": [[]]}, 1]]}',
        '{"$dict": [[1, 2], [1, 3]]}',
        '{"$dict": [[{"$tensor": "w"}, 1]]}',
        '{"$float": "1e5"}',
        '{"$bytes": "not base64!"}',
        '{"$array": "half"}',
        '{"$scalar": "w"}',
        '{"$import": "os"}',
        '{"$tuple": [], "more": 1}',
        "{",
        "\xff",
    ],
    ids=lambda text: text[:20],
)
def test_a_state_that_was_not_written_here_is_refused(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path / "x", {"w": torch.zeros(2), "half": torch.zeros(2, dtype=torch.bfloat16)})
    (folder / STATE).write_bytes(text.encode("latin-1"))
    reseal(folder)
    with pytest.raises(CheckpointError, match=STATE):
        load(folder)
    (folder / TENSORS).write_bytes(struct.pack("<Q", len(text)) + text.encode("latin-1"))
    reseal(folder)
    with pytest.raises(CheckpointError, match=f"{STATE}|{TENSORS}"):
        load(folder)


def test_bytes_that_are_no_bool_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "x", {"done": torch.tensor([True, False])})
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-1] + b"\x02")
    reseal(folder)
    with pytest.raises(CheckpointError, match="done holds bytes that are no bool"):
        load(folder)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from([STATE, TENSORS]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=5),
)
def test_tampering_is_refused_or_harmless(pristine: Path, name: str, cuts: list) -> None:
    """Splice bytes into a file and make the checksums fit: what is read is plain, or refused, and nothing else."""
    data = original = (pristine / name).read_bytes()
    for where, new, gone in cuts:
        at = round(where * len(data))
        data = data[:at] + new + data[at + gone :]
    (pristine / name).write_bytes(data)
    reseal(pristine)
    state, reason = None, str(pristine)
    try:
        state = load(pristine)
    except CheckpointError as error:
        reason = str(error)
    (pristine / name).write_bytes(original)
    assert str(pristine) in reason
    flatten(state)  # which refuses all but plain values


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("pristine") / "x", EXAMPLE)


# -- several of them ---------------------------------------------------------------------------------------------------


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.all() == []
    assert checkpoints.latest() is checkpoints.best() is None
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.load_latest()
    scores = [None, 5.0, -math.inf, 7.0, math.nan, 7.0, 1.0, 2.0, 3.0]
    for i, score in enumerate(scores, 1):
        assert checkpoints.save(10 * i, {"i": i}, score).name == f"{i:06d}-step-{10 * i}"
        assert checkpoints.load_latest() == (10 * i, {"i": i})
    assert [folder.name for folder in checkpoints.all()] == ["000006-step-60", "000008-step-80", "000009-step-90"]
    assert checkpoints.best() == tmp_path / "c" / "000006-step-60"
    assert checkpoints.latest() == tmp_path / "c" / "000009-step-90"
    with pytest.raises(ValueError, match="keep is a number of checkpoints, at least 1; got 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_damaged_one_is_named_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    first, second, third = (checkpoints.save(i, {"i": torch.tensor(i)}) for i in (1, 2, 3))
    (third / TENSORS).write_bytes(b"")
    (second / STATE).unlink()
    with pytest.warns(RuntimeWarning, match="going back to 000001-step-1") as warned:
        assert checkpoints.load_latest() == (1, {"i": torch.tensor(1)})
    texts = [str(one.message) for one in warned]
    assert [(third / TENSORS).name in texts[0], str(third) in texts[0], str(second / STATE) in texts[1]] == [True] * 3
    (first / MANIFEST).write_text("")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_latest()
    assert all(str(path) in str(caught.value) for path in (first, second, third))


def test_after_going_back_the_new_one_counts_and_no_good_one_is_lost_to_damaged_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    good = checkpoints.save(100, {"i": 1})
    for step in (200, 300):
        damaged = tmp_path / f"00000{step // 100}-step-{step}"
        shutil.copytree(good, damaged)
        (damaged / MANIFEST).write_text("{}")
    with pytest.warns(RuntimeWarning):
        assert checkpoints.load_latest()[0] == 100
    again = checkpoints.save(200, {"i": 2})
    assert again.name == "000004-step-200"
    assert checkpoints.load_latest() == (200, {"i": 2})
    assert not good.exists()
    assert damaged.exists()  # perhaps a newer version can read it


def test_leftovers_of_a_crash_go_and_nothing_else_does(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    names = (".notes.partial", "000001-step-1.bak", "mine", "1-step-1", ".000001-step-x.partial")
    others = [tmp_path / name for name in names]
    for path in others:
        path.mkdir()
    outside = tmp_path / "mine" / "precious"
    outside.mkdir()
    (tmp_path / "000007-step-7").symlink_to(outside, target_is_directory=True)
    (tmp_path / ".000008-step-8.partial").symlink_to(outside, target_is_directory=True)
    leftover = tmp_path / ".000003-step-30.partial"
    leftover.mkdir()
    (leftover / TENSORS).write_bytes(b"half")
    assert checkpoints.all() == []
    checkpoints.save(1, {})
    checkpoints.save(2, {})
    assert [folder.name for folder in checkpoints.all()] == ["000002-step-2"]
    assert not leftover.exists()
    assert not (tmp_path / ".000008-step-8.partial").is_symlink()
    assert all(path.exists() for path in (*others, outside))


def test_a_checkpoint_that_cannot_be_removed_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    old = checkpoints.save(1, {})

    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == old:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.warns(RuntimeWarning, match="000001-step-1 could not be removed: Permission denied"):
        checkpoints.save(2, {"new": 1})
    assert checkpoints.load_latest() == (2, {"new": 1})


# -- full disks and killed processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("after", range(6))
def test_a_full_disk_keeps_the_old_ones_and_leaves_no_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(1, EXAMPLE, 1.0)
    before = sorted(tmp_path.rglob("*"))
    real, calls = getattr(os, call), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, full)
    if after == 5:  # three writes of tensors, one of the state, one of the manifest; three files, two folders
        checkpoints.save(2, {"x": torch.ones(2)})
        assert len(calls) == 5
        return
    with pytest.raises(OSError, match="not saved: No space left on device") as caught:
        checkpoints.save(2, {"x": torch.ones(2)})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "c" / "000002-step-2")
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*")) == before
    assert load(tmp_path / "c" / "000001-step-1")["$odd"]


def test_a_limit_of_the_system_itself_keeps_the_old_ones(tmp_path: Path) -> None:
    """Like a full disk, but real: the kernel refuses to let any file grow over 100 kB."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"small": torch.ones(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="not saved: File too large"):
            checkpoints.save(2, {"large": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["000001-step-1"]
    assert checkpoints.load_latest()[0] == 1


FULL = """
mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" - "$1" << 'END'
import os, sys, torch
from pathlib import Path
from plasticity.storage.folder import Checkpoints
root = Path(sys.argv[1])
checkpoints = Checkpoints(root / "c", keep=2)
checkpoints.save(1, {"w": torch.ones(100_000)})
for step in (2, 3):
    try:
        checkpoints.save(step, {"w": torch.ones(200_000)})
        print("saved")
    except OSError as error:
        print(error.errno, error)
    print(sorted(path.name for path in (root / "c").iterdir()), checkpoints.load_latest()[0])
checkpoints.save(4, {"w": torch.zeros(50_000)})
print(checkpoints.load_latest()[0])
END
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a file system of its own")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, 'mount -t tmpfs tmpfs "$1"', "sh", tmp_path], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system")
    run = subprocess.run(
        [*command, FULL, "sh", tmp_path, sys.executable], capture_output=True, text=True, timeout=120, check=True
    )
    refused = f"{errno.ENOSPC} [Errno {errno.ENOSPC}] the checkpoint was not saved: No space left on device: "
    lines = run.stdout.splitlines()
    assert lines[0] == f"{refused}'{tmp_path}/c/000002-step-2'"
    assert lines[2] == f"{refused}'{tmp_path}/c/000002-step-3'"
    assert lines[1] == lines[3] == "['000001-step-1'] 1"
    assert lines[4] == "4"


KILLED = """
import os, random, signal, sys, time, warnings, torch
from plasticity.storage.folder import Checkpoints

warnings.simplefilter("error")  # a damaged checkpoint would be passed over with a warning
torch.set_num_threads(1)
checkpoints, rng, torn, step = Checkpoints(sys.argv[1], keep=2), random.Random(1), 0, 0
for _ in range(20):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        step = checkpoints.load_latest()[0] if checkpoints.all() else 0
        while True:
            step += 1
            checkpoints.save(step, {"step": step, "w": torch.full((100_000,), float(step))}, score=-step)
            os.write(writer, step.to_bytes(8, "little"))  # from here on, this step must survive
    os.close(writer)
    began = time.perf_counter()
    told = os.read(reader, 8)  # one is saved, and how long that takes is known, however busy the machine
    time.sleep(rng.uniform(0, 1.5) * (time.perf_counter() - began))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reader, 2**16):
        told += piece
    os.close(reader)
    done = int.from_bytes(told[-8:], "little")
    torn += any(name.endswith(".partial") for name in os.listdir(sys.argv[1]))
    step, state = checkpoints.load_latest()
    assert step in (done, done + 1), (step, done)
    assert state["step"] == step and bool((state["w"] == step).all())
print(torn, step)
"""


def test_sigkill_at_any_moment_of_saving_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    run = subprocess.run([sys.executable, "-c", KILLED, root], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    torn, step = map(int, run.stdout.split())
    assert torn >= 3  # some kills really came in the middle of saving
    assert step >= 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Checkpoints(root, keep=2).save(step + 1, {})
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
