"""pickles.py: a pickle of unknown origin is read, and nothing in it is run.   (workshop)

Used by: import_checkpoint.py, workshop/checkpoints.py.
Needs:   numpy. Importing this file reads no file, no argv, no clock.
"""

import io
import os
import pickletools
import reprlib
import struct
import zipfile
from typing import NamedTuple

import numpy as np

from workshop import UserError

# A pickle is not data but a program for a small machine with a stack. Most instructions push plain
# values or gather what lies on the stack into lists and dicts. The list ["bias"] is
#
#     EMPTY_LIST                     push []
#     SHORT_BINUNICODE 'bias'        push "bias"
#     APPEND                         take it off and append it to the list below
#     STOP                           what lies on top is the value of the file
#
# But a few instructions say "import this name" and "call what lies there with these arguments", and
# the name may be os.system:
#
#     GLOBAL 'os system'             push the function
#     SHORT_BINUNICODE 'rm -r ~'     push a string
#     TUPLE1                         take it off, push the tuple of arguments
#     REDUCE                         take both off, call, push what comes back
#
# Python's unpickler obeys, so whoever wrote the file can do what he likes with the computer of
# whoever opens it. `python -m pickletools FILE` shows a .pkl like this, and runs nothing.
#
# The machine below lacks these powers. Where the file wants a name imported, it writes the name
# down; where the file wants a call, it writes down what was to be called, and with what:
#
#     GLOBAL numpy.dtype   ('f4', 0, 1)   REDUCE      ->      Named("numpy.dtype", ('f4', 0, 1))
#
# There is no import, no call and no attribute access in it, hence nothing to escape through: not by
# any instruction, not by nesting, not by a name that looks harmless. Afterwards, `array_of` makes
# arrays of the few notes that stand for arrays; every other note remains a note.
# Proved: tests/test_pickles.py::test_nothing_in_a_file_is_run,
#         ::test_the_same_files_do_run_with_pickle


class Named:
    """A note: the file asked for `name`, wanted it called with `args` and given `state`.

    items: what the file wanted put into it, for names that are kinds of dict.
    """
    __slots__ = ("name", "args", "state", "items")

    def __init__(self, name, args=None):
        self.name, self.args, self.state, self.items = name, args, None, {}


class Unreadable(ValueError):
    """The file is not a sound pickle. The message is part of a sentence."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used. The message is one sentence, file name and reason."""


def visible(text):
    """A text of a file, short, and with its escape codes and line breaks made visible.

    Why:    printed as it is, it could clear the screen and write a sentence of its own.
    Proved: tests/test_checkpoints.py::test_a_checkpoint_cannot_write_to_the_terminal
    """
    short = text if len(text) <= 200 else text[:100] + "..." + text[-97:]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def shown(value):
    """A value of a file as part of a sentence: short, on one line, whatever it is.

    Why:    `repr` follows a value to its end, and a list of lists of the same list, 60 deep, has
            none. A number of more than 4,300 digits it refuses; a tensor's has many lines.
    Proved: tests/test_checkpoints.py::test_words_of_any_kind_are_shown_in_little_space
    """
    if isinstance(value, int) and abs(value) >= 2 ** 200:
        return "a huge number"
    plain = value is None or isinstance(value, (bool, int, float, str, bytes, list, tuple, dict))
    return visible(reprlib.repr(value)) if plain else f"a {type(value).__name__}"


# Limits for the machine. Each is far above what an official file needs (the largest, those of
# stylegan2-ada-pytorch at 1024 px, have 54,000 instructions), and keeps a small file from taking
# much memory or time.
# Proved: tests/test_pickles.py::test_huge_claims_are_refused_in_little_memory,
#         tests/test_import_checkpoint.py::test_the_limits_are_far_above_what_an_official_file_needs
#         ::test_the_limits_are_far_above_what_adas_largest_files_need
MOST_INSTRUCTIONS = 200_000
LONGEST_LINE = 10_000          # bytes; names are lines up to protocol 3, numbers in the oldest only
LONGEST_NAME = 200             # letters; each time a name is asked for, it is put together anew
# Tuples in tuples. Python hashes and compares them by recursion, and one of 190,000 levels, which
# takes as many bytes in a file, ends the interpreter.
# Proved: tests/test_import_checkpoint.py::test_deeply_nested_tuples_do_not_crash_python
DEEPEST_TUPLE = 20
# Whoever hashes or shows a tuple goes through all that lies in it, as often as it lies there: ten
# times the same tuple in a tuple, and so on, are 10^20 steps after 20 levels.
# Proved: tests/test_pickles.py::test_wide_tuples_are_refused_at_once
LARGEST_TUPLE = 100_000


class BoundedFile:
    """A file that notices that it is too short BEFORE memory for the promised bytes is asked for.

    Why:    an instruction of nine bytes can announce 2^63 bytes to come.
    Shapes: as pickletools and zipfile want it. most: bytes that one `read` may give.
    """

    def __init__(self, file, size, most=None):
        self.file, self.size, self.most = file, size, size if most is None else most
        self.tell, self.seek, self.seekable = file.tell, file.seek, file.seekable

    def read(self, n=-1):
        left = self.size - self.file.tell()
        n = left if n < 0 else n
        if n > left:
            raise Unreadable(f"it is cut off: {n} bytes should follow, {left} do")
        if n > self.most:
            raise Unreadable("its list of contents is too long")
        return self.file.read(n)

    def readline(self):
        line = self.file.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE:
            raise Unreadable("it has a line without end")
        return line


MARK = object()                # lies on the stack where a list or dict begins


def read_pickle(file, most=None):
    """Follow one pickle to its end: (its value, the set of all names that it asked for).

    most:   instructions; MOST_INSTRUCTIONS where nothing else is said.

    The value is made of None, bool, int, float, str, bytes, list, tuple, dict and `Named`; sets
    become lists, since nothing here asks for one and hashing what a file brings is work that the
    file could make long. pickletools, of the standard library, takes the bytes apart into
    instructions and their arguments; what they do to the stack is told here.
    Errors: Unreadable, or what Python raises when a stack is empty or a name unknown to the memo.
    Proved: tests/test_pickles.py::test_plain_values_come_out_as_pickle_gives_them
    """
    most = most or MOST_INSTRUCTIONS
    stack, memo, names = [], {}, set()
    tuples = {}                # id of a tuple -> how deep and how large it is with those in it

    # The stack may hold MARKs among the values: a MARK says "a list or a dict begins here".
    def pop(kind=object):
        value = stack.pop()
        if value is MARK or not isinstance(value, kind):
            raise Unreadable("its instructions do not fit together")
        return value

    def top(kind):
        stack.append(pop(kind))
        return stack[-1]

    def pop_to_mark():
        start = len(stack) - 1
        while start >= 0 and stack[start] is not MARK:
            start -= 1
        if start < 0:
            raise Unreadable("its instructions do not fit together")
        values = stack[start + 1:]
        del stack[start:]
        return values

    # The only thing that ever happens to a name: it is written down.
    def named(name, args=None):
        names.add(name)
        return Named(name, args)

    # All tuples of the machine come from here, so an id that Python uses again has its new size.
    def push_tuple(values):
        inner = [tuples[id(v)] for v in values if isinstance(v, tuple)]
        depth = 1 + max((deep for deep, _ in inner), default=0)
        size = len(values) + sum(large for _, large in inner)
        if depth > DEEPEST_TUPLE:
            raise Unreadable(f"it has tuples nested more than {DEEPEST_TUPLE} deep")
        if size > LARGEST_TUPLE:
            raise Unreadable(f"it has a tuple of more than {LARGEST_TUPLE} values")
        stack.append(tuple(values))
        tuples[id(stack[-1])] = depth, size

    def put_items(target, keys_and_values):
        # Only keys that are hashed fast: chosen large integers make a dict slow.
        target = target.items if isinstance(target, Named) else target
        for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
            if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2 ** 60):
                raise Unreadable("a dict in it has a key that is neither text nor a number")
            target[key] = value

    # One instruction after the other, by what kind of thing they do. Six protocols have left
    # several names for the same deed: BININT1 is a BININT for small numbers, three bytes shorter.
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if count >= most:
            raise Unreadable(f"it has more than {most} instructions")
        match opcode.name:
            # -- values that the file spells out --
            case ("BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8" | "BININT" | "BININT1"
                  | "BININT2" | "LONG1" | "LONG4" | "INT" | "LONG" | "BINFLOAT" | "FLOAT"
                  | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "UNICODE"
                  | "SHORT_BINSTRING" | "BINSTRING" | "STRING"):
                stack.append(arg)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            # -- gathering what lies on the stack --
            case "MARK":
                stack.append(MARK)
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                push_tuple([])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [pop() for _ in range(int(opcode.name[-1]))]
                push_tuple(values[::-1])
            case "TUPLE":
                push_tuple(pop_to_mark())
            case "LIST" | "FROZENSET":
                stack.append(pop_to_mark())
            case "DICT":
                values = pop_to_mark()
                stack.append({})
                put_items(stack[-1], values)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                values = [pop()] if opcode.name == "APPEND" else pop_to_mark()
                top(list).extend(values)
            case "SETITEM":
                value, key = pop(), pop()
                put_items(top((dict, Named)), [key, value])
            case "SETITEMS":
                values = pop_to_mark()
                put_items(top((dict, Named)), values)
            # -- keeping things for later --
            # A file says everything once: what it needs again, it puts under a number.
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "DUP":
                stack.append(stack[-1])
            case "POP":
                stack.pop()
            case "POP_MARK":
                pop_to_mark()
            # -- what Python's unpickler would import, or have imported; here it is written down --
            case "GLOBAL":
                stack.append(named(".".join(arg.split(" ", 1))))
            case "STACK_GLOBAL":
                attribute, module = pop(str), pop(str)
                if len(module) + len(attribute) > LONGEST_NAME:
                    raise Unreadable("it asks for a name that is too long")
                stack.append(named(f"{module}.{attribute}"))
            case "PERSID":
                stack.append(named("persistent id", arg))
            case "BINPERSID":
                stack.append(named("persistent id", pop()))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(named("copyreg extension", arg))
            # -- what Python's unpickler would call --
            case "REDUCE" | "NEWOBJ":
                args = pop()
                stack.append(named(pop(Named).name, args))
            case "NEWOBJ_EX":
                keywords, args = pop(), pop()
                stack.append(named(pop(Named).name, (args, keywords)))
            case "INST":
                stack.append(named(".".join(arg.split(" ", 1)), tuple(pop_to_mark())))
            case "OBJ":
                values = pop_to_mark()
                stack.append(named(values[0].name, tuple(values[1:])))
            case "BUILD":
                state = pop()
                top(Named).state = state
            # -- the frame of it all --
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return pop(), names
            case other:                                # buffers outside the file, or a new protocol
                raise Unreadable(f"the instruction {other} has no business in a checkpoint")


# ---- PyTorch files ---------------------------------------------------------------------------
#
# A tensor is pickled as a call of `torch._utils._rebuild_tensor_v2` with a storage (a row of
# numbers), the place of its first number in there, its shape, and its strides: how many numbers lie
# between neighbours along each axis. Several tensors may look at one storage. There are three kinds
# of file, which differ in where the numbers are:
#
#   new      a zip of uncompressed records. In one of them, data.pkl, a storage is a "persistent id"
#            with the name of another, which holds its numbers and nothing else
#   old      before PyTorch 1.6: five pickles in a row, of which the fourth has the persistent ids,
#            and the fifth their order; then the storages, each after the count of its numbers
#   inside   a pickle that is no PyTorch file brings each storage along as bytes, for
#            `torch.storage._load_from_bytes`; the bytes are such a file with a single storage
#
# The note of a persistent id gets a `Stored` for a state: where its numbers lie. They are read when
# `array_of` is asked for them.
# Proved: tests/test_pickles.py::test_tensors_come_out_as_torch_gives_them,
#         ::test_tensors_that_reach_beyond_their_storage_are_refused

TORCH_MAGIC = 0x1950A86A20F9469CFC6C     # the first thing in an old PyTorch file
# Bytes of a number, by the kind of storage.
NUMBERS = {f"torch.{kind}Storage": size for kind, size in dict(
    Double=8, Float=4, Half=2, BFloat16=2, Long=8, Int=4, Short=2, Char=1, Byte=1, Bool=1).items()}
NUMBERS["torch.storage.UntypedStorage"] = 1
FLOATS = {"torch.DoubleStorage": "<f8", "torch.FloatStorage": "<f4", "torch.HalfStorage": "<f2"}
# Three more limits. A zip's list of a thousand records takes 0.1 MB. The pickle of a single storage
# has fewer than 40 instructions; thousands of such pickles may lie inside one file.
# Proved: tests/test_pickles.py::test_a_zips_list_of_contents_has_a_limit,
#         ::test_a_record_ends_where_it_does, ::test_long_pickles_inside_are_refused
LONGEST_CONTENTS = 2 ** 22     # bytes
LONGEST_PICKLE = 2 ** 26       # bytes of the record data.pkl; a run of 1024 px has 0.1 MB
MOST_INSIDE = 200              # instructions


class Stored(NamedTuple):
    """Where the numbers of a storage lie: `size` bytes from `start` on, on the disk or in bytes."""
    source: object             # a path, or bytes
    start: int
    size: int

    def numbers(self, kind, first, count):
        """A flat array of `count` numbers of that kind, from number `first` on."""
        start = self.start + first * np.dtype(kind).itemsize
        if isinstance(self.source, bytes):
            return np.frombuffer(self.source, kind, count, start)
        flat = np.fromfile(self.source, kind, count, offset=start)
        if len(flat) < count:
            raise Unreadable("has become shorter while it was read")
        return flat


def read_file(file, source, most=None):
    """Follow the pickle of a file of any kind: (its value, the names that it asked for).

    file:   a `BoundedFile` of source, which is a path or bytes.
    Errors: as `read_pickle`.
    """
    start = file.read(min(4, file.size))
    file.seek(0)
    if start == b"PK\x03\x04":
        records = records_of(file)
        name = next((name for name in records if name.endswith("data.pkl")), None)
        if name is None:
            raise Unreadable("it is a zip, but not one that PyTorch wrote")
        folder = name.removesuffix("data.pkl")
        if folder + "byteorder" in records:
            file.seek(records[folder + "byteorder"][0])
            if file.read(6) != b"little":
                raise Unreadable("its numbers begin with the large end")
        value, names = read_pickle(record_of(file, records[name]), most)
        for note in storages_in(value):
            note.state = Stored(source, *records[f"{folder}data/{note.args[2]}"])
        return value, names
    value, names = read_pickle(file, most)
    if type(value) is int and value == TORCH_MAGIC:
        read_pickle(file, most)                        # the version of the format
        system, _ = read_pickle(file, most)
        if system["little_endian"] is not True:
            raise Unreadable("its numbers begin with the large end")
        value, names = read_pickle(file, most)
        notes = {}
        for note in storages_in(value):
            notes.setdefault(note.args[2], []).append(note)
        for key in read_pickle(file, most)[0] if notes else ():
            count, = struct.unpack("<q", file.read(8))
            size, here = count * NUMBERS[notes[key][0].args[1].name], file.tell()
            if not 0 <= size <= file.size - here:
                raise Unreadable("it is cut off: a storage reaches beyond its end")
            for note in notes[key]:
                note.state = Stored(source, here, size)
            file.seek(here + size)
    return value, names


def records_of(file):
    """{name: (its first byte, its size)} of the records of a zip.

    How:    nothing is packed, so a record is as long as it says; none lies in another, so all of
            them together are no longer than the file; and a name is there once.
    Proved: tests/test_pickles.py::test_zips_that_are_not_pytorchs_are_refused,
            ::test_records_that_lie_in_each_other_are_refused
    """
    records, end = {}, 0
    try:
        infos = zipfile.ZipFile(BoundedFile(file.file, file.size, LONGEST_CONTENTS)).infolist()
    except zipfile.BadZipFile:
        raise Unreadable("it is a zip without an end") from None
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise Unreadable("it is a zip, but not one that PyTorch wrote")
        file.seek(info.header_offset)
        mark, *_, name_length, extra_length = struct.unpack("<4s5H3I2H", file.read(30))
        start = info.header_offset + 30 + name_length + extra_length
        if (mark != b"PK\x03\x04" or info.compress_type or info.flag_bits & 1
                or info.file_size != info.compress_size or info.filename in records
                or info.file_size > file.size - start):
            raise Unreadable("it is a zip, but not one that PyTorch wrote")
        end = start + info.file_size
        records[info.filename] = start, info.file_size
    return records


def record_of(file, record):
    """A short record of a zip as a file of its own, so that what is read in it ends where it does.

    Proved: tests/test_pickles.py::test_a_record_ends_where_it_does
    """
    start, size = record
    if size > LONGEST_PICKLE:
        raise Unreadable("its pickle is too long")
    file.seek(start)
    return BoundedFile(io.BytesIO(file.read(size)), size)


def storages_in(value):
    """All notes in a value that stand for a storage in the file: ("storage", kind, key, ...)."""
    return [note for note in as_notes(all_notes(value), "persistent id")
            if isinstance(note.args, tuple) and note.args[:1] == ("storage",)
            and isinstance(note.args[2], str)]


def read_anything(path):
    """The value and the names of a pickle, of a PyTorch file, or of an old PyTorch file.

    Errors: CheckpointError, one sentence.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: a folder, not a checkpoint file")
    try:
        with open(path, "rb") as raw:
            return read_file(BoundedFile(raw, os.fstat(raw.fileno()).st_size), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    # A damaged file can make the machine trip in any way: an empty stack, a bad letter, ... All of
    # them mean that it cannot be used, and nothing has been done yet.
    except Exception as error:
        reason = (str(error) if isinstance(error, Unreadable) else
                  "its instructions make no sense")
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({reason})") from None


def all_notes(value):
    """Every dict and `Named` inside a value, each once. A loop, so that depth costs nothing."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Named):
            yield value
            waiting += [value.args, value.state, value.items]
        elif isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value


def as_notes(values, name):
    """Those of `all_notes` that are notes of that name."""
    return [note for note in values if isinstance(note, Named) and note.name == name]


def array_of(note):
    """The numpy array that a note stands for; from bytes that were read, without a copy of them.

    The notes of numpy's own pickles: `_reconstruct` with a state (version, shape, dtype, is it in
    Fortran's order, bytes), and `scalar` with (dtype, bytes). Old protocols write bytes as text.
    Tensors of PyTorch: `tensor_of`.
    Errors: Unreadable, or any error of a note that is not like that.
    Proved: tests/test_pickles.py::test_arrays_come_out_of_every_protocol
    """
    if isinstance(note, (int, float)):
        return np.float32(note)
    kind = note.name.replace("numpy._core.", "numpy.core.")            # its name since numpy 2
    # frombuffer and reshape below refuse a shape that does not fit the bytes; neither allocates.
    if kind == "numpy.core.multiarray._reconstruct":
        _, shape, dtype, fortran, raw = note.state
    elif kind == "numpy.core.multiarray.scalar":
        (dtype, raw), shape, fortran = note.args, (), False
    elif kind == "torch._utils._rebuild_parameter":
        return array_of(note.args[0])
    elif kind == "torch._utils._rebuild_tensor_v2":
        return tensor_of(*note.args[:4])
    else:
        raise Unreadable(f"has {reprlib.repr(note.name)} where an array should be")
    number, order = dtype.args[0], dtype.state[1]
    if dtype.name != "numpy.dtype" or number not in ("f2", "f4", "f8") or order not in ("<", ">"):
        raise Unreadable("has a variable that is not made of floating point numbers")
    return np.frombuffer(bytes_of(raw), order + number).reshape(shape,
                                                                order="F" if fortran else "C")


def bytes_of(value):
    """Bytes, also from the text that old protocols write in their place."""
    if isinstance(value, Named) and value.name == "_codecs.encode":
        value = value.args[0]
    return value.encode("latin-1") if isinstance(value, str) else value


def tensor_of(storage, first, shape, strides):
    """The numpy array of a tensor: `shape` numbers of a storage's, `strides` apart.

    Errors: Unreadable if it is none of floating point numbers, or reaches beyond the storage; or
            any error of a note that is no storage.
    Proved: tests/test_pickles.py::test_tensors_come_out_as_torch_gives_them,
            ::test_tensors_that_reach_beyond_their_storage_are_refused
    """
    if storage.name == "torch.storage._load_from_bytes":
        raw = bytes_of(storage.args[0])
        storage, _ = read_file(BoundedFile(io.BytesIO(raw), len(raw)), raw, MOST_INSIDE)
    kind, stored = FLOATS.get(storage.args[1].name), storage.state
    if kind is None:
        raise Unreadable("has a variable that is not made of floating point numbers")
    count = numbers_of(first, shape, strides, stored.size // np.dtype(kind).itemsize)
    flat = stored.numbers(kind, first, count)
    return np.lib.stride_tricks.as_strided(
        flat, shape, [stride * flat.itemsize for stride in strides], writeable=False)


def numbers_of(first, shape, strides, most):
    """How many numbers lie from a tensor's first to its last, in a storage of `most` numbers.

    Neither a stride of 0, which shows one number many times, nor any other can reach beyond them.
    No network has a tensor of more than five axes; 100 of them ended the interpreter (numpy 1.26).
    Errors: Unreadable, or any error of what is no shape.
    """
    sound = all(type(n) is int and 0 <= n < 2 ** 40 for n in (first, *shape, *strides))
    if len(shape) > 8 or not sound:
        raise Unreadable("has a tensor without a sound shape")
    count = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if 0 in shape or first + count > most:
        raise Unreadable("has a tensor that reaches beyond its numbers")
    return count
