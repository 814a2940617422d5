"""The workshop: what the scripts upstairs need and the papers do not speak of.

One looks things up here; nobody has to read it in order. Beside each call that comes down here, one
sentence says enough to read on. Of the scripts, files here import only the networks, the loader and
augment.py; and run.py imports evaluate.py, where it measures.
"""

import contextlib
import os
import time


class UserError(ValueError):
    """What was asked for cannot be done. The message is one sentence: what is wrong, what to type.

    `options.start` prints it and ends the program with exit code 2, without a traceback.
    """


@contextlib.contextmanager
def naming(path, temporary=None):
    """An error of the system within the block names the file `path`.

    Why:    a full disk says that it is full, and not which file it had no room for; and the name of
            a temporary file helps nobody. An error that names another file stays as it is.
    Proved: tests/test_places.py::test_an_error_names_the_file_that_was_meant
    """
    try:
        yield
    except BrokenPipeError:                                    # not the file: whoever reads stdout
        raise
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        if error.strerror is None:                             # Pillow's and torch's own
            raise OSError(f"{path}: {error}") from None
        raise OSError(error.errno, error.strerror, str(path)) from None


def replace(source, target):
    """os.replace. On Windows it fails while somebody has one of the two open: a program that reads
    the checkpoint, or a virus scanner. So there it is tried for half a minute.

    Proved: tests/test_run.py::test_a_file_that_somebody_reads_is_waited_for
    """
    for _ in range(60 if os.name == "nt" else 0):
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(0.5)
    return os.replace(source, target)


def check_writable(path, option="--out"):
    """Refuse a path that cannot be written, before hours are spent on what would go there.

    Of its folders some may be missing; they would be made. (A network's disk may still say no, and
    Windows says yes of every folder.)
    Errors: UserError.
    Proved: tests/test_places.py::test_a_place_that_cannot_be_written_is_known_beforehand
    """
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:         # a drive may be missing
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{option} {path}: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: nothing can be written in {folder.resolve()}, which is "
                        f"read-only or belongs to somebody else")
