"""faces.py: how faces, lists of numbers, and what a figure needs are typed.   (workshop)

Used by: generate.py, explore.py.
Needs:   what workshop/options.py needs. Importing this file reads no file, no argv, no clock.

A face is a seed, an int, or the path of a file with a w that project.py or explore.py wrote. A list
of faces can hold both, in the order in which they were typed: --w me.npz --seeds 0-3.
"""

import argparse
import pathlib
import re
import zlib

from workshop.options import number_from, table_of

# ---- 1. Faces --------------------------------------------------------------------------------


def name_of(face):
    """How a face is called in labels: "seed 5", or as its file, at most 30 letters of it."""
    if isinstance(face, int):
        return f"seed {face}"
    return face.stem if len(face.stem) <= 30 else f"{face.stem[:27]}..."


def key_of(face):
    """The number that a face's noise is drawn from: its seed, or a checksum of its file's name.

    explore.py names the file of an edited face by that face and a checksum of its numbers:
    seed0005-1a2b3c4d.npz. It has the noise of the face, so that an edit does not change the noise.
    Proved: tests/test_explore.py::test_an_edited_face_keeps_its_noise
    """
    if isinstance(face, int):
        return face
    stem = re.sub(r"-[0-9a-f]{8}$", "", face.stem)
    seed = re.fullmatch(r"seed([0-9]{4,10})", stem)
    return int(seed[1]) % 2 ** 32 if seed else zlib.crc32(stem.encode())


def spelled(faces):
    """[0, 1, 2, 7] -> "0-2,7": the opposite of `seeds_from`, as a part of a file's name.

    Names of files end at 255 bytes, so a long text is cut, and a checksum tells it from others.
    Proved: tests/test_generate.py::test_sheets_of_other_seeds_lie_beside_each_other
    """
    runs = []
    for face in faces:
        if runs and isinstance(face, int) and runs[-1][-1] == face - 1:
            runs[-1].append(face)
        else:
            runs.append([face])
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else
                    f"{run[0]}" if isinstance(run[0], int) else run[0].stem for run in runs)
    return text if len(text) <= 80 else f"{text[:70]}...{zlib.crc32(text.encode()):08x}"


def face_options(usual, letter="", of=""):
    """--seeds and --w; with a letter --seeds-a and --w-a (for which --w stands, too).

    Both options lengthen one list, `faces`. argparse would lengthen a default as well, so there is
    none; `fill_in` puts the usual seeds there afterwards.
    """
    group, end = argparse.ArgumentParser(add_help=False), f"-{letter}" if letter else ""
    name = end.replace("-", "_")
    group.add_argument(f"--seeds{end}", metavar="LIST", dest=f"faces{name}", action="extend",
                       type=seeds_from, help=f"0-63 or 1,5,9-12{of} (default {usual})")
    group.add_argument(*["--w"] * (letter != "b"), *[f"--w{end}"] * (letter != ""),
                       metavar="FILE", dest=f"faces{name}", action="extend", nargs="+",
                       type=pathlib.Path, help="faces of project.py or explore.py, instead of "
                       "seeds or beside them")
    group.set_defaults(**{f"usual{name}": seeds_from(usual)})
    return group


def fill_in(options):
    """The options, with the usual seeds where neither seeds nor files were typed."""
    for name in ("faces", "faces_a", "faces_b"):
        if getattr(options, name, ()) is None:
            setattr(options, name, getattr(options, name.replace("faces", "usual")))
    return options


# ---- 2. Lists of numbers ---------------------------------------------------------------------

MOST_SEEDS = 100_000


def seeds_from(text):
    """ "0-3,8" -> [0, 1, 2, 3, 8], for argparse."""
    seeds = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds like 0-63 or 1,5,9-12")
        if last >= 2 ** 32:
            raise argparse.ArgumentTypeError(f"a seed is below 2^32 = {2 ** 32}, got {last}")
        if len(seeds) + last - first >= MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{text} are more than {MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    return seeds


# No face lies that far out, and 1e308 would be too large for float32.
strength = number_from(-1000, float, 1000)


def numbers_from(text):
    """ "1,0.5,-1" -> [1.0, 0.5, -1.0], for argparse."""
    return [strength(part) for part in text.split(",")]


def layers_from(text):
    """ "4-7" -> (4, 7), "4" -> (4, 4), for argparse."""
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text, re.ASCII)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of layers like 0-3")
    return int(match[1]), int(match[2] or match[1])


def grid_from(text):
    """ "4x2" -> (4, 2), for argparse."""
    match = re.fullmatch(r"(\d{1,2})x(\d{1,2})", text, re.ASCII)
    if not match or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not columns x rows, each from 1 to 99, "
                                         f"like 4x2")
    return int(match[1]), int(match[2])


# ---- 3. What all figures ask for -------------------------------------------------------------
#
# Groups of options. Each WHAT of generate.py (samples, mixing, ..) has those as parents it needs.


def out_options(default, suffixes):
    """--out, --device and --batch: where to and with what."""
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--out", metavar="PATH", default=pathlib.Path(default), type=pathlib.Path,
                       help=f"{', '.join(s or 'a folder' for s in suffixes) or 'a folder'} "
                       f"(default {default}); only what this program wrote is written over")
    group.add_argument("--device", metavar="NAME",
                       help="cpu, cuda, cuda:1, mps (default: the best there is)")
    # [MACHINE] 8 images at 1024 px and the paper's widths on a CPU: 3.6 GB for the process, 2 s an
    #           image; --batch 1: 1.3 GB and the same speed (measured, one core). On a GPU not
    #           measured: less memory, --batch 1; more, a larger one may be faster.
    group.add_argument("--batch", metavar="N", type=number_from(1), default=8,
                       help="pictures made at once, bounds the memory (default 8)")
    group.set_defaults(suffixes=suffixes)
    return group


def truncation_options(psi=True):
    """--psi and --cutoff; `truncation` has --psis instead."""
    group = argparse.ArgumentParser(add_help=False)
    if psi:
        # 1 shows what the network has learned; 0.7 hides what it does badly, which is what one
        # wants on a poster and not when looking for errors.
        group.add_argument("--psi", metavar="PSI", type=strength, default=1.0,
                           help="truncation: 1 is none, which shows all that the network does "
                           "(default); the official pictures are shown with 0.7 and --cutoff 8, "
                           "StyleGAN2's with 0.5")
    group.add_argument("--cutoff", metavar="LAYERS", type=number_from(0), default=None,
                       help="truncate only so many layers, from the first (default: all)")
    group.set_defaults(psi=1.0)
    return group


def noise_options(*choices):
    """--noise-strength, and --noise and --seed where there is a choice (default: the first)."""
    group = argparse.ArgumentParser(add_help=False)
    if len(choices) > 1:
        group.add_argument("--noise", choices=choices,
                           help="const: the maps stored with the network; none" +
                           ("; random: each face its own" if "random" in choices else "")
                           + f" (default {choices[0]})")
    if "random" in choices:
        group.add_argument("--seed", metavar="N", type=number_from(0, int, 2 ** 32 - 1),
                           default=0, help="of the random noise (default 0)")
    group.add_argument("--noise-strength", metavar="TIMES", type=table_of(float), default=None,
                       help="0.5, or from each resolution on, 4:1,16:0 (default: as learned)")
    group.set_defaults(noise=choices[0], seed=0)
    return group
