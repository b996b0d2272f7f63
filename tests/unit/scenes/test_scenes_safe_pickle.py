"""The restricted unpickler: plain data comes through, everything else is refused before it can act."""

import builtins
import collections
import datetime
import io
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from bindkit.errors import SceneSetError, UnsafePickleError
from bindkit.scenes.formats.ade20k import ADMITTED, load_plain_pickle, plain


class Reduced:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def written(path, content: bytes):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_through_whatever_the_protocol(tmp_path, protocol: int):
    content = {
        "text": ["a", "ü", "日本"],
        "nested": {"tuple": (1, 2.5, None, True), "bytes": b"\x00\xff", "set": {1, 2}},
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    }
    assert load_plain_pickle(written(tmp_path / "p", pickle.dumps(content, protocol))) == content


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_of_text_become_lists_and_numbers_are_skipped(tmp_path, protocol: int, legacy: bool):
    content = {
        "U": np.array(["wall", "größe", ""]),
        "S": np.array([b"ab", b"c"]),
        "O": np.array(["x", "yy"], dtype=object),
        "big": np.array(["wall", "door"]).astype(">U4"),
        "numbers": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.ones((3, 2), np.uint8)),
        "scalar": np.str_("one"),
        "number": np.float64(2.5),
    }
    raw = pickle.dumps(content, protocol)
    if legacy:  # numpy 1 wrote numpy.core where numpy 2 writes numpy._core; protocol 4 counts the bytes of names
        raw = raw.replace(b"numpy._core", b"numpy.core")
        for name in ("multiarray", "numeric"):
            long, short = f"numpy._core.{name}".encode(), f"numpy.core.{name}".encode()
            raw = raw.replace(b"\x8c" + bytes([len(long)]) + short, b"\x8c" + bytes([len(short)]) + short)
        raw = b"".join(_reframed(raw))
    found = load_plain_pickle(written(tmp_path / "p", raw))
    assert plain(found["U"]) == ["wall", "größe", ""]
    assert plain(found["S"]) == ["ab", "c"]
    assert plain(found["O"]) == ["x", "yy"]
    assert plain(found["big"]) == ["wall", "door"]
    assert plain(found["numbers"]) is None
    assert plain(found["fortran"]) is None
    assert found["scalar"] == "one"
    assert found["number"] is None


def _reframed(raw: bytes):
    """The same opcodes without frames, whose lengths no longer fit."""
    stream, position = io.BytesIO(raw), 0
    while position < len(raw):
        if raw[position : position + 1] == b"\x95":
            position += 9
            continue
        stream.seek(position)
        opcode, _, _ = next(pickletools.genops(stream))
        end = stream.tell() if opcode.name != "STOP" else position + 1
        yield raw[position:end]
        position = end


def evil(marker) -> dict[str, object]:
    command = f"touch {marker}"
    nasty = Reduced(os.system, command)
    return {
        "os.system": nasty,
        "eval": Reduced(builtins.eval, f"__import__('os').system('{command}')"),
        "exec": Reduced(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "getattr": Reduced(builtins.getattr, [], "__class__"),
        "open": Reduced(builtins.open, str(marker), "w"),
        "inside a dict": {"filename": ["a"], "folder": [nasty]},
        "inside an object array": {"objectPresence": np.array([nasty, 1], dtype=object)},
        "as a dict key": {Reduced(os.getcwd): 1},
        "numpy's own reach": Reduced(np.load, str(marker)),
        "numpy's testing": Reduced(np.fromfile, str(marker)),
        "harmless but not plain": datetime.date(2021, 1, 17),
        "a class": collections.Counter,
        "a function": len,
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", evil("x"))
def test_anything_else_is_refused_by_name_and_does_nothing(tmp_path, name: str, protocol: int):
    marker = tmp_path / "ran"
    path = written(tmp_path / "index_ade20k.pkl", pickle.dumps(evil(marker)[name], protocol))
    with pytest.raises(UnsafePickleError, match=r"asks for [\w.]+\.\w+, but .* nothing of it was executed"):
        load_plain_pickle(path)
    assert not marker.exists()


def test_the_attack_of_this_test_would_work_on_pickle_itself(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(evil(marker)["os.system"]))
    assert marker.exists()


def short(text: str) -> bytes:
    return b"\x8c" + struct.pack("B", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "ndarray.__class__"),
        ("numpy._core.multiarray", "_reconstruct.__globals__"),
        ("builtins", "set.__subclasses__"),
        ("numpy.core.multiarray", "os"),
        ("_codecs", "lookup"),
        ("collections", "OrderedDict.__init__.__globals__"),
    ],
)
def test_dotted_and_neighbouring_names_are_refused(tmp_path, module: str, name: str):
    path = written(tmp_path / "p", b"\x80\x04" + short(module) + short(name) + b"\x93.")
    with pytest.raises(UnsafePickleError):
        load_plain_pickle(path)


@pytest.mark.parametrize(("module", "name"), [key for key in ADMITTED if key[0] not in ("builtins", "__builtin__")])
def test_admitted_names_cannot_be_changed_by_a_pickle(tmp_path, module: str, name: str):
    # BUILD with slot state sets attributes: {"gone": "x"} on whatever the name stands for.
    state = b"N}" + short("gone") + short("x") + b"s\x86"
    path = written(tmp_path / "p", b"\x80\x04" + short(module) + short(name) + b"\x93" + state + b"b.")
    with pytest.raises(SceneSetError):
        load_plain_pickle(path)
    assert not hasattr(ADMITTED[module, name], "gone")


def test_persistent_ids_and_other_encodings_are_refused(tmp_path):
    with pytest.raises(UnsafePickleError, match="outside itself"):
        load_plain_pickle(written(tmp_path / "p", b"Panything\n."))
    encoding = b"\x80\x04" + short("_codecs") + short("encode") + b"\x93" + short("x") + short("rot13") + b"\x86R."
    with pytest.raises(SceneSetError, match="latin-1"):
        load_plain_pickle(written(tmp_path / "q", encoding))


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(["x"] * 99)[:-20], b"\x80\x63."])
def test_damaged_pickles_are_named_with_the_remedy(tmp_path, content: bytes):
    path = written(tmp_path / "index_ade20k.pkl", content)
    with pytest.raises(SceneSetError, match=r"index_ade20k\.pkl is damaged .* remove it"):
        load_plain_pickle(path)
