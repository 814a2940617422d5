"""pickles.py: plain values and arrays come out of a pickle, and nothing in it is run."""

import collections
import copyreg
import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
import torch

from workshop import checkpoints, pickles

# ---- 1. what comes out ----


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_come_out_of_every_protocol(tmp_path, protocol):
    """Lesson: protocol 2 has no bytes and writes them as text; numpy 2 has renamed its modules."""
    rng = np.random.default_rng(0)
    arrays = {"whole": rng.standard_normal((3, 4)).astype(np.float32),
              "fortran": np.asfortranarray(rng.standard_normal((3, 4)).astype(np.float32)),
              "double": rng.standard_normal(5), "half": rng.standard_normal(5).astype(np.float16),
              "swapped": rng.standard_normal(5).astype(">f4"),
              "number": np.float32(2.5), "zero-dimensional": np.array(2.5, np.float32)}
    for old, new in ((b"numpy.core.", b"numpy._core."), (b"numpy._core.", b"numpy.core.")):
        raw = pickle.dumps(arrays, protocol)
        if protocol < 4:               # names end with a line break; later, they have a length
            raw = raw.replace(old, new)
        path = tmp_path / "arrays.pkl"
        path.write_bytes(raw)
        value, _ = pickles.read_anything(path)
        for name, array in arrays.items():
            ours = pickles.array_of(value[name])
            assert ours.shape == array.shape and np.array_equal(ours, array), name


def test_plain_values_come_out_as_pickle_gives_them(tmp_path):
    """Lesson: for plain values our machine and Python's agree, in every protocol."""
    shared = ["twice"]
    value = {"int": [0, 1, -1, 255, 65536, -2 ** 31, 2 ** 40, 2 ** 70], "float": [0.5, -1e300],
             "text": ["", "é\U0001F600", "x" * 300], "bytes": [b"", b"\x00\xff", b"y" * 300],
             "other": (None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
             "nested": {"a": {"b": [shared, shared]}}, 7: "number as key"}
    path = tmp_path / "plain.pkl"
    for protocol in range(6):
        if protocol < 3:
            value.pop("bytes", None)
        path.write_bytes(pickle.dumps(value, protocol))
        ours, names = pickles.read_anything(path)
        assert ours == value and names == set(), protocol
        assert ours["nested"]["a"]["b"][0] is ours["nested"]["a"]["b"][1]


def tensors():
    """Tensors of all sorts. Several look at one storage, the second is not in its order."""
    whole = torch.randn(4, 5, 6)
    return {"whole": whole, "turned": whole.transpose(0, 2), "part": whole[1:3, ::2, 5],
            "last": whole[3], "number": torch.tensor(2.5), "half": whole.half(),
            "double": whole.double(), "one for all": torch.randn(3, 1).expand(3, 7),
            "parameter": torch.nn.Parameter(whole + 1)}


class Inside(pickle.Pickler):
    """A pickler that brings storages along in the newer format; by itself, torch takes the old."""

    def reducer_override(self, thing):
        if not isinstance(thing, torch.storage.TypedStorage):
            return NotImplemented
        inside = io.BytesIO()
        torch.save(thing, inside)
        return torch.storage._load_from_bytes, (inside.getvalue(),)


def written(value, how, protocol=4):
    """The bytes of a file of this kind."""
    out = io.BytesIO()
    if how in ("new", "old"):
        torch.save(value, out, _use_new_zipfile_serialization=how == "new")
    else:
        (pickle.Pickler if how == "inside, old" else Inside)(out, protocol).dump(value)
    return out.getvalue()


KINDS = ["new", "old", "inside, old", "inside, new"]


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_come_out_as_torch_gives_them(tmp_path, how, protocol):
    """Lesson: a tensor is a view of a row of numbers, wherever that lies in the file."""
    path, wanted = tmp_path / "tensors.pt", tensors()
    path.write_bytes(written({"a": [wanted], "b": (wanted["whole"],)}, how, protocol))
    value, _ = pickles.read_anything(path)
    for name, tensor in wanted.items():
        array = pickles.array_of(value["a"][0][name])
        assert array.shape == tuple(tensor.shape), name
        assert np.array_equal(array, tensor.detach().numpy()), name
    assert np.array_equal(pickles.array_of(value["b"][0]), wanted["whole"].numpy())
    # What is no floating point number is no weight. (PyTorch has a kind that numpy has not.)
    for odd in (torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bfloat16)):
        path.write_bytes(written([odd], how, protocol))
        with pytest.raises(pickles.Unreadable, match="floating point"):
            pickles.array_of(pickles.read_anything(path)[0][0])


def test_reading_a_torch_file_does_not_read_its_numbers(tmp_path):
    """Lesson: what lies in records of its own is looked up when it is asked for."""
    path = tmp_path / "large.pt"
    for how in ("new", "old"):
        path.write_bytes(written({"large": torch.ones(5_000_000), "small": torch.ones(3)}, how))
        tracemalloc.start()
        value, _ = pickles.read_anything(path)
        small = pickles.array_of(value["small"])
        assert tracemalloc.get_traced_memory()[1] < 1e6 and small.tolist() == [1, 1, 1]
        large = pickles.array_of(value["large"])                               # control
        assert tracemalloc.get_traced_memory()[1] > 20e6 and large.all()
        tracemalloc.stop()


# ---- 2. hostile files ----
#
# Each of these is a complete pickle that makes a folder when Python's own unpickler reads it.


def text(string):
    raw = str(string).encode()
    return b"X" + struct.pack("<I", len(raw)) + raw                            # BINUNICODE


def hostile_pickles(folder):
    """{the instruction that does the harm: the pickle}; each would make the folder `folder`."""
    argument = text(folder)
    mkdir = b"cos\nmkdir\n"                                                    # GLOBAL
    # NEWOBJ only makes objects of classes; a map object does what one wants once it is gone
    # through, and a new tuple goes through it.
    run_map = b"cbuiltins\ntuple\n" + b"cbuiltins\nmap\n" + mkdir + b"(" + argument + b"l"
    return {
        "REDUCE": b"\x80\x02" + mkdir + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + argument + b"\x85R.",
        "INST": b"(" + argument + b"ios\nmkdir\n.",
        "OBJ": b"(" + mkdir + argument + b"o.",
        "NEWOBJ": b"\x80\x02" + run_map + b"\x86\x81\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + run_map + b"\x86}\x92\x85}\x92.",
        # an object whose __setstate__ was put there by a first BUILD, called by a second
        "BUILD": (b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__setstate__") + mkdir + b"sb"
                  + argument + b"b."),
        "EXT1": b"\x80\x02\x82\xf1" + argument + b"\x85R.",
        "nested": (b"\x80\x02}" + text("a") + b"](K\x01" + mkdir + argument + b"\x85Res."),
        # how StyleGAN2-ADA's files bring their own source code along
        "persistence": (b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}"
                        + text("module_src") + text(f"import os; os.mkdir({str(folder)!r})")
                        + b"s\x85R."),
        "persistent id": b"\x80\x02" + mkdir + argument + b"\x85RQ.",          # BINPERSID
        # a pickle in a pickle: torch's way of sending tensors
        "bytes": (b"\x80\x03cpickle\nloads\nB" + (lambda inner: struct.pack("<I", len(inner))
                                                  + inner)(b"(" + argument + b"ios\nmkdir\n.")
                  + b"\x85R."),
    }


@pytest.fixture
def extension():
    """Extension number 241 means os.mkdir, here; a file needs no name then."""
    copyreg.add_extension("os", "mkdir", 241)
    yield
    copyreg.remove_extension("os", "mkdir", 241)


@pytest.fixture
def persistence(monkeypatch):
    """StyleGAN2-ADA's way of opening its files, in one line."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = lambda meta: exec(meta["module_src"], {})
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)


def wrapped(raw):
    """{how: bytes}: the pickle by itself, and in the two kinds of PyTorch file."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
    old = b"".join(pickle.dumps(value, 2) for value in (
        0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + raw
    return {"alone": raw, "zip": zipped.getvalue(), "old": old}


HOSTILE = list(hostile_pickles("x"))


@pytest.mark.parametrize("how", ["alone", "zip", "old"])
@pytest.mark.parametrize("instruction", HOSTILE)
def test_nothing_in_a_file_is_run(tmp_path, extension, persistence, instruction, how):
    """Lesson: a machine without the power to call cannot be talked into calling."""
    folder, path = tmp_path / "made by the file", tmp_path / "hostile.pkl"
    path.write_bytes(wrapped(hostile_pickles(folder)[instruction])[how])
    try:
        pickles.read_anything(path)                    # only notes; import_checkpoint refuses them
    except checkpoints.CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    assert sorted(os.listdir(tmp_path)) == ["hostile.pkl"]


@pytest.mark.parametrize("instruction", HOSTILE)
def test_the_same_files_do_run_with_pickle(tmp_path, extension, persistence, instruction):
    """Control: Python's own unpickler makes the folder from each of them."""
    class WithPersistentIds(pickle.Unpickler):
        def persistent_load(self, pid):
            return None
    folder = tmp_path / "made by the file"
    try:
        WithPersistentIds(io.BytesIO(hostile_pickles(folder)[instruction])).load()
    except Exception:                                  # some trip over the result, too late
        pass
    assert folder.is_dir()


# ---- 3. damaged files ----


HUGE = {
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2 ** 62) + b"few.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2 ** 40) + b"few.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2 ** 62) + b"few.",
    "number": b"\x80\x02\x8b" + struct.pack("<i", 2 ** 31 - 1) + b"few.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2 ** 62) + b"N.",
    "line": b"V" + b"x" * 10 ** 6,
    "digits": b"L" + b"9" * 9000 + b"L\n.",
    "dicts": b"\x80\x02" + b"}" * 10 ** 6 + b".",       # more instructions than are allowed
    "nested tuples": b"\x80\x02)" + b"\x85" * 60_000 + b".",
    "nested calls": b"\x80\x02cos\nmkdir\n" + b")R" * 45_000 + b".",
    "nested lists": b"\x80\x02" + b"]" * 45_000 + b"a" * 44_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "long names": b"\x80\x04X" + struct.pack("<I", 10 ** 5) + b"x" * 10 ** 5 + b"q\x00"
                  + b"h\x00h\x00\x93" * 1000 + b".",
    "doubling": b"\x80\x02]q\x00" + b"".join(b"(h" + bytes([k]) + b"h" + bytes([k]) + b"lq"
                                              + bytes([k + 1]) for k in range(60)) + b".",
}


# What a refusal says. The others may be read, in little memory.
SAYS = {**dict.fromkeys(("bytes", "bytearray", "text"), "cut off"), "line": "a line without end",
        "long names": "a name that is too long",
        "dicts": "more than 200000 instructions", "nested tuples": "nested more than 20 deep"}


@pytest.mark.parametrize("claim", HUGE)
def test_huge_claims_are_refused_in_little_memory(tmp_path, claim):
    """Lesson: nine bytes can announce 2^62 more; believe the file's size, not its words."""
    path, said = tmp_path / "huge.pkl", ""
    path.write_bytes(HUGE[claim])
    tracemalloc.start()
    try:
        pickles.read_anything(path)
    except checkpoints.CheckpointError as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert SAYS.get(claim, "") in said and len(said) < 600, said
    assert peak < 30e6, f"{peak / 1e6:.0f} MB"


class Lie:
    """A tensor whose place, shape and strides say more than its storage has."""

    def __init__(self, storage, first, shape, strides):
        self.args = storage, first, shape, strides, False, collections.OrderedDict()

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.args


LIES = {
    "one too many": (0, (25,), (1,)), "starts beyond": (24, (1,), (1,)),
    "starts before": (-1, (2,), (1,)), "stride too large": (0, (2,), (24,)),
    "stride backwards": (23, (2,), (-1,)), "huge": (0, (2 ** 62,), (1,)),
    "huge, in two": (0, (2 ** 39, 2 ** 39), (2 ** 39, 1)), "wraps around": (0, (2,), (2 ** 63,)),
    "huge place": (2 ** 63, (1,), (1,)), "negative shape": (0, (-1,), (1,)),
    "no number": (0, (0,), (1,)), "strides too few": (0, (2, 2), (1,)),
    "strides too many": (0, (2,), (1, 1)),
    "fractions": (0, (1.5,), (1,)), "text": (0, ("2",), (1,)), "truth": (True, (2,), (1,)),
    "many axes": (0, (1,) * 100, (1,) * 100), "no shape": (0, None, None)}


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("lie", LIES)
def test_tensors_that_reach_beyond_their_storage_are_refused(tmp_path, how, lie):
    """Lesson: a shape in a file is a claim. A program in C that believed it would show whatever
    lies behind in memory; numpy's `as_strided` is such a program."""
    path, storage = tmp_path / "lie.pt", torch.arange(24.0)._typed_storage()
    path.write_bytes(written([Lie(storage, *LIES[lie]), Lie(storage, 0, (24,), (1,))], how))
    bad, good = pickles.read_anything(path)[0]
    with pytest.raises((pickles.Unreadable, ValueError, TypeError)):
        pickles.array_of(bad)
    assert pickles.array_of(good).tolist() == list(range(24))                  # control


def test_a_stride_of_0_takes_no_memory(tmp_path):
    """Lesson: 3 kB may claim 4 TB, truly. So far that is a view; who copies it must ask before."""
    path = tmp_path / "wide.pt"
    path.write_bytes(written([Lie(torch.arange(24.0)._typed_storage(), 7, (2 ** 20, 2 ** 20),
                                  (0, 0))], "new"))
    tracemalloc.start()
    array = pickles.array_of(pickles.read_anything(path)[0][0])
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert array.nbytes == 2 ** 42 and array[2 ** 19, 5] == 7 and not array.flags.writeable


def rezipped(raw, change=lambda name, data: (name, data), method=zipfile.ZIP_STORED):
    """A PyTorch file packed again, with changed records."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w", method) as new:
        for info in old.infolist():
            new.writestr(*change(info.filename, old.read(info)))
    return out.getvalue()


def test_zips_that_are_not_pytorchs_are_refused(tmp_path):
    """Lesson: PyTorch compresses nothing, so nothing has to be unpacked, and nothing can swell."""
    sound, path = written([torch.arange(24.0)], "new"), tmp_path / "odd.pt"
    path.write_bytes(rezipped(sound))
    value, _ = pickles.read_anything(path)                                     # control
    assert pickles.array_of(value[0]).tolist() == list(range(24))
    without = lambda word: rezipped(sound, lambda name, data: (name.replace(word, "other"), data))
    short = rezipped(sound, lambda name, data: (name, data[:-4] if "/data/" in name else data))
    large_end = rezipped(sound, lambda name, data: (name, b"big" if "order" in name else data))
    for raw, message in [
            (rezipped(sound, method=zipfile.ZIP_DEFLATED), "not one that PyTorch wrote"),
            (without("data.pkl"), "not one that PyTorch wrote"), (without("data/0"), "no sense"),
            (sound[:-30], "a zip without an end"), (sound[:900], "a zip without an end"),
            (large_end, "begin with the large end"), (b"PK\x03\x04", "a zip without an end")]:
        path.write_bytes(raw)
        with pytest.raises(checkpoints.CheckpointError, match=message):
            pickles.read_anything(path)
    path.write_bytes(short)                            # a record that is shorter than it should be
    with pytest.raises(pickles.Unreadable, match="beyond"):
        pickles.array_of(pickles.read_anything(path)[0][0])


def test_records_that_lie_in_each_other_are_refused(tmp_path):
    """Lesson: a list of contents may name the same bytes a thousand times, and 1 MB becomes 1 GB.
    So no record begins before the one before it has ended, and each name is there once."""
    sound, path = written([torch.arange(24.0), torch.arange(30.0)], "new"), tmp_path / "odd.pt"
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        first, second = (archive.getinfo(f"archive/data/{k}").header_offset for k in (0, 1))
    entry = lambda name: sound.rindex(b"archive/data/" + name) - 46           # in that list
    def changed(at, kind, value):
        return sound[:at] + struct.pack(kind, value) + sound[at + struct.calcsize(kind):]
    for raw in (changed(entry(b"1") + 42, "<I", first),                        # where it begins
                rezipped(sound)[:-6] + struct.pack("<IH", 2 ** 31, 0),         # and they all
                changed(entry(b"0") + 24, "<I", second - first),               # how long it is
                changed(entry(b"0") + 20, "<I", 5), changed(entry(b"0") + 8, "<H", 1),
                changed(first, "<I", 0), sound.replace(b"archive/data/1", b"archive/data/0")):
        path.write_bytes(raw)
        with pytest.raises(checkpoints.CheckpointError):
            pickles.read_anything(path)
    path.write_bytes(sound)
    pickles.read_anything(path)                                                # control


def test_a_record_ends_where_it_does(tmp_path, monkeypatch):
    """Lesson: the pickle of a zip cannot read on in the record behind it; nor is it of any size."""
    sound, path = written([torch.arange(24.0)], "new"), tmp_path / "odd.pt"
    path.write_bytes(sound)
    with open(path, "rb") as raw:
        file = pickles.BoundedFile(raw, len(sound))
        order = pickles.record_of(file, pickles.records_of(file)["archive/byteorder"])
        assert order.read(6) == b"little"                                      # control
        with pytest.raises(pickles.Unreadable, match="cut off"):
            order.read(1)
    pickles.read_anything(path)                                                # control
    monkeypatch.setattr(pickles, "LONGEST_PICKLE", 50)
    with pytest.raises(checkpoints.CheckpointError, match="pickle is too long"):
        pickles.read_anything(path)


def test_a_zips_list_of_contents_has_a_limit(tmp_path, monkeypatch):
    """Lesson: Python makes an object for every record that a zip lists; PyTorch's have a thousand,
    this one has 60,000 without any number in them."""
    path, out = tmp_path / "many.pt", io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for k in range(60_000):
            archive.writestr(zipfile.ZipInfo(f"archive/{k:025}"), b"")
    path.write_bytes(out.getvalue())
    tracemalloc.start()
    with pytest.raises(checkpoints.CheckpointError, match="list of contents is too long"):
        pickles.read_anything(path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_old_files_that_say_too_much_are_refused(tmp_path):
    """Lesson: before each storage of an old file stands how long it is."""
    sound, path = written([torch.arange(24.0)], "old"), tmp_path / "odd.pt"
    at = len(sound) - 24 * 4 - 8
    assert struct.unpack("<q", sound[at:at + 8]) == (24,)
    for count, message in ((25, "cut off"), (2 ** 62, "cut off"), (-1, "cut off")):
        path.write_bytes(sound[:at] + struct.pack("<q", count) + sound[at + 8:])
        with pytest.raises(checkpoints.CheckpointError, match=message):
            pickles.read_anything(path)
    path.write_bytes(sound[:at] + struct.pack("<q", 23) + sound[at + 8:])
    with pytest.raises(pickles.Unreadable, match="beyond"):
        pickles.array_of(pickles.read_anything(path)[0][0])
    path.write_bytes(sound.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with pytest.raises(checkpoints.CheckpointError, match="large end"):
        pickles.read_anything(path)


def test_wide_tuples_are_refused_at_once(tmp_path):
    """Lesson: ten times the same tuple in a tuple, 20 times: 250 instructions, and hash() of it is
    10^20 steps, in which it does not hear Ctrl-C. What has few values altogether may be deep."""
    def nested(width):
        return b"\x80\x02)q\x00" + b"".join(
            b"(" + (b"h" + bytes([k])) * width + b"tq" + bytes([k + 1]) for k in range(18)) + b"."

    path = tmp_path / "wide.pkl"
    path.write_bytes(nested(10))
    with pytest.raises(checkpoints.CheckpointError, match="a tuple of more than 100000 values"):
        pickles.read_anything(path)
    path.write_bytes(nested(1))                                # control
    value, _ = pickles.read_anything(path)
    assert hash(value)


@pytest.mark.parametrize("nested", ["list", "doubling list", "tuple", "itself"])
def test_odd_names_of_storages_are_refused_in_little_memory(tmp_path, nested):
    """Lesson: a storage's name is looked up, so it has to be text. Shown as text, a list of lists
    of the same list, 60 deep, would fill any memory."""
    key = {"list": b"]" * 1000 + b"a" * 999, "tuple": b")" + b"\x85" * 15,
           "itself": b"]q\x00h\x00a",
           "doubling list": b"]q\x00" + b"".join(                     # 0 takes it off the stack
               b"0(h" + bytes([k]) + b"h" + bytes([k]) + b"lq" + bytes([k + 1])
               for k in range(60))}[nested]
    raw = (b"\x80\x02]ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
           + b"ctorch\nFloatStorage\n" + key + text("cpu") + b"K\x18tQK\x00K\x18\x85K\x01\x85tRa.")
    path = tmp_path / "odd.pt"
    for data in wrapped(raw).values():
        path.write_bytes(data)
        tracemalloc.start()
        try:
            value, _ = pickles.read_anything(path)
            with pytest.raises((pickles.Unreadable, AttributeError)):          # it has no numbers
                pickles.array_of(value[0])
        except checkpoints.CheckpointError as error:
            assert len(str(error)) < 600
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 10e6
    # As it is asked of our own checkpoints, too.
    with pytest.raises((pickles.Unreadable, ValueError, TypeError)):
        checkpoints.check_notes(*pickles.read_pickle(pickles.BoundedFile(
            io.BytesIO(raw), len(raw))), {"data/0": 96})


def test_long_pickles_inside_are_refused(tmp_path, monkeypatch):
    """Lesson: a file may show one storage at a thousand places; each time it is read again, so it
    has to be short."""
    inside = written(torch.arange(24.0)._typed_storage(), "old")
    at = inside.index(b"\x80\x02(X\x07\x00\x00\x00storage") + 2
    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inside[:at] + b"N0" * 500 + inside[at:],)
    path = tmp_path / "long.pkl"
    path.write_bytes(pickle.dumps([Lie(Storage(), 0, (24,), (1,))]))
    note, = pickles.read_anything(path)[0]
    with pytest.raises(pickles.Unreadable, match="more than 200 instructions"):
        pickles.array_of(note)
    monkeypatch.setattr(pickles, "MOST_INSIDE", 2000)
    assert pickles.array_of(note).tolist() == list(range(24))                  # control
