"""options.py: what can be typed behind a script's name, and what it means.   (workshop)

Used by: all scripts.
Needs:   torch. Importing this file reads no file, no argv, no clock.

  1. for every script   parsers, tables by resolution, and one sentence for what goes wrong
  2. a run's folder     one run at a time
  3. train.py's options their help, the presets, the cross-checks
  4. `read`             argv -> all that train.py was asked for, as plain attributes
"""

import argparse
import contextlib
import errno
import math
import os
import pathlib
import re
import shlex
import sys

import stylegan_models as models
from workshop import UserError, check_writable, checkpoints, machine
from workshop.machine import how_to_go_on

# ---- 1. For every script ---------------------------------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    """argparse, but a mistake is answered by one line instead of the whole usage."""

    def error(self, message):
        message = re.sub(r"(\S{80})\S{20,}", r"\1...", message)            # 5,000 digits, say
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def number_from(low, kind=int, high=math.inf):
    """A parser of finite numbers from `low` to `high` for argparse."""
    def parse(text):
        try:
            value = kind(text)
            sound = low <= value <= high and math.isfinite(value)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not a {'whole ' * (kind is int)}number") from None
        except OverflowError:                                  # an int that no float can hold
            sound = False
        if not sound:
            limits = "finite" if low == -math.inf else (
                f"a number, {low:g} or more" if high == math.inf else f"from {low:g} to {high:g}")
            raise argparse.ArgumentTypeError(f"{text[:40]} must be {limits}")
        return value
    return parse


class Table(dict):
    """A number for every resolution: "32", or "4:128,8:64" (64 then stands for 8 px and above)."""

    def __missing__(self, resolution):
        return self[max((r for r in self if r <= resolution), default=min(self))]


def read_table(text, kind=float):
    """ "32" or "4:128,8:64" -> `Table` of numbers of type `kind`, none of them negative.

    Errors: UserError if it is neither.
    Proved: tests/test_options.py::test_tables_say_one_number_or_one_per_resolution
    """
    try:
        pairs = [part.split(":") for part in str(text).split(",")]
        if len(pairs) == 1 and len(pairs[0]) == 1:
            pairs = [["4", pairs[0][0]]]
        table = Table({int(r): kind(value) for r, value in pairs})
    except ValueError:
        raise UserError(f"{text!r} is neither a {'whole ' * (kind is int)}number nor a table like "
                        f'"4:128,8:64"') from None
    if not all(0 <= value <= 1e9 for value in table.values()) or min(table) < 1:   # nan is not
        raise UserError(f"{text!r} has a value below 0 or above 1e9, or a resolution below 1")
    return table


def augmentation(text):
    """--augment: "off", "adaptive" or a number from 0 to 1, for argparse."""
    if text in ("off", "adaptive"):
        return text
    try:
        return number_from(0, float, 1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is none of off, adaptive, and a number from 0 to 1") from None


def table_of(kind):
    """A parser of `Table` texts for argparse, with numbers of type `kind`."""
    def parse(text):
        try:
            return read_table(text, kind)
        except UserError as error:
            raise argparse.ArgumentTypeError(error) from None
    return parse


def show(value):
    """An option's value as it is typed: the opposite of parsing."""
    if isinstance(value, dict):
        pairs = [f"{r}:{show(v)}" for r, v in sorted(value.items())]
        return ",".join(pairs) if len(pairs) > 1 else pairs[0].split(":")[1]
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def start(main, program, interrupted="stopped", argv=None):
    """Run a script's `main(argv)` and end the process with its exit code.

    A UserError, or a file that cannot be read or written, becomes one sentence and code 2; Ctrl-C
    the sentence `interrupted` and code 130; a reader that has gone (`| head`) code 141 and no word.
    Anything else is a bug, and shows its traceback. Processes that were started end in any case.
    Proved: tests/test_options.py, and tests/test_places.py with all programs
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:                                     # closed by who started the program
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):               # a file's name need not fit the terminal
            stream.reconfigure(errors="backslashreplace")
    how_to_go_on.clear()
    try:
        check_surroundings(sys.argv[1:] if argv is None else argv)
        code = main(argv)
        sys.stdout.flush()
        raise SystemExit(code)
    except BrokenPipeError:
        leave_lost_streams()
        raise SystemExit(141) from None
    except UserError as error:
        fail(program, error)
    except OSError as error:
        fail(program, sentence_of(error))
    except (RuntimeError, MemoryError) as error:
        if machine.another_has_gone(error):
            why = "another process of this run has ended, or its machine has gone"
            if "NCCL" in str(error):                           # it has reasons of its own, too
                why = f"NCCL failed ({machine.reason(error)}; NCCL_DEBUG=INFO tells more)"
            machine.give_up(why)
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            fail(program, f"--compile: torch.compile cannot do it here ({machine.reason(error)}); "
                          f"leave it out")
        if not machine.out_of_memory(error):
            raise
        fail(program, "not enough memory on this device; a smaller --batch, where there is one, "
                      "needs less")
    except KeyboardInterrupt:
        fail(program, interrupted, 130)
    finally:
        machine.end_children()


def check_surroundings(words):
    """Refuse what would fail later, or would be written to another place.   Errors: UserError.

    Where Python reads names of files as ASCII or Latin-1, TensorBoard and others still write them
    as UTF-8; and a printed command would name no file.
    """
    try:
        here = os.getcwd()
    except OSError:
        raise UserError("the folder in which this was started has been deleted; cd to another "
                        "one") from None
    if sys.getfilesystemencoding() != "utf-8" and not all(map(str.isascii, (here, *words))):
        raise UserError(f"here Python reads names of files as {sys.getfilesystemencoding()}, and "
                        f"some of these are not ASCII; start it with PYTHONUTF8=1")


def fail(program, message, code=2):
    """End the program with one sentence on stderr: 2 for what the user can mend, else 1."""
    with contextlib.suppress(OSError):                         # nobody may read stderr, either
        print(f"{program}: {message}" + "".join(say() for say in how_to_go_on), file=sys.stderr)
    leave_lost_streams()
    raise SystemExit(code)


def leave_lost_streams():
    """What cannot be printed any more is forgotten, or Python would end with code 120 for it."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            nobody_reads(name)


def sentence_of(error):
    """What an OSError says: its file first, and no number.

    The files of these programs are named (`workshop.naming`). So where a full disk has no name,
    what is printed (into a file) or a temporary file did not fit.
    """
    name, what = error.filename, error.strerror or str(error)
    if name is None and error.errno == errno.ENOSPC:
        name = "what it prints, or a temporary file"
    return what if name is None else f"{name}: {what}"


def nobody_reads(name="stdout"):
    """From here on what is printed goes nowhere: the reader has gone, or the disk is full.

    (Python would complain once more when it ends, and change the exit code to 120.)
    """
    stream = getattr(sys, name)
    if stream is getattr(sys, f"__{name}__"):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def go_on(checkpoint, data=None, device=None):
    """The command that goes on from a checkpoint, to be pasted. device: the one that was typed."""
    return machine.spoken([*machine.launcher(), "train.py", "--resume", checkpoint,
                           *(["--data", data] if data else []),
                           *(["--device", device] if device else [])])


# ---- 2. A run's folder belongs to one process -------------------------------------------------


def folder_to_go_on_in(out, resume):
    """checkpoint.pt goes on in its own folder, if that is a run's; None: a new folder."""
    own = out is None and resume is not None and resume.name == "checkpoint.pt" and (
        resume.parent / "settings.json").is_file()
    return resume.parent if own else None


LOCK = ".lock"                    # in a run's folder (`machine.lock`)


def hold(folder):
    """Two runs that wrote into one folder would spoil both.   Errors: UserError: another one does.

    Proved: tests/test_run.py::test_a_run_folder_belongs_to_one_run
    """
    holder = machine.lock(folder / LOCK)
    if holder:
        raise UserError(f"{folder}: another run writes there now ({holder}); wait for it, or go "
                        f"on elsewhere with --out")


def is_free(out):
    """Is --out a folder to begin a run in: new, or empty?"""
    return not out.exists() or out.is_dir() and all(path.name == LOCK for path in out.iterdir())


# ---- 3. The options of train.py --------------------------------------------------------------

# Defaults that hold in every situation ...
ALWAYS = dict(
    architecture="stylegan", initial_resolution=4, growth="fade", morph_kimg="20", r1_interval=1,
    path_weight=0.0, path_interval=4, styles_to_mix=2, mixing_probability=0.9, seed=0,
    no_flip=False, allow_upsampling=False, max_bad=1.0, cache="cache", data=None, accumulate="1",
    precision="fp32", compile=False, augment="off", freeze_d=None, evaluate_kimg=None,
    evaluate_metrics="duality_gap", evaluate_features="inception", evaluate_images=2048,
    timeout_minutes=10.0)

# ... and those that depend on what there is. Every value can be overridden on the command line.
PRESETS = {
    # [MACHINE] 2 CPU cores: docs/results.md has the time, the memory and the faces.
    "painted faces on a CPU": dict(
        resolution=32, channel_base=512, channel_max=64, latent_dim=64, style_dim=64,
        mapping_dim=64, mapping_layers=4, batch="4:32,8:16", learning_rate="0.012",
        r1_gamma="3", r1_interval=8, fade_kimg="7.5",
        stabilize_kimg="4:10,8:12.5", total_kimg=120.0, ema_halflife_kimg=5.0, tick_kimg=5.0,
        samples_kimg=10.0, checkpoint_kimg=20.0, workers=0),
    # [MACHINE] 1 GPU with 4 GB or more (tried on a larger one; its memory was not measured).
    "painted faces on a GPU": dict(
        resolution=128, channel_base=4096, channel_max=256, latent_dim=256, style_dim=256,
        mapping_dim=256, mapping_layers=8, batch="4:64,64:32", learning_rate="0.0015",
        r1_gamma="3", r1_interval=8, fade_kimg="80", stabilize_kimg="80",
        total_kimg=1500.0, ema_halflife_kimg=10.0, tick_kimg=20.0, samples_kimg=50.0,
        checkpoint_kimg=200.0, workers=2),
    # [MACHINE] Narrow networks, so that a CPU can do it at all: an experiment, not the paper.
    #           2 cores at 64 px: about an hour (estimated from its measured speeds).
    "your pictures on a CPU": dict(
        resolution=64, channel_base=1024, channel_max=64, latent_dim=64, style_dim=64,
        mapping_dim=64, mapping_layers=4, batch="4:32,8:16", learning_rate="0.003",
        r1_gamma="3", r1_interval=8, fade_kimg="20",
        stabilize_kimg="4:20,8:30,16:40", total_kimg=400.0, ema_halflife_kimg=5.0,
        tick_kimg=5.0, samples_kimg=20.0, checkpoint_kimg=20.0, workers=0),
    # The paper's setting: appendix C and the official training script, its table for one GPU. Four
    # things differ: it begins at 4 px and not at 8 (--initial-resolution 8); convolutions round to
    # TF32 (--precision fp32); each image draws its own place to swap styles (StyleMixer); the
    # average of G forgets faster at first (`ema_beta` in train.py).
    # [MACHINE] 1 GPU with 8 GB (measured: 4.5 GB at 1024 px, 4.3 at 256 px with twice this batch).
    #           Less memory: --batch 4:64,64:16,128:8,256:4,512:2. With 8 GPUs the official batches
    #           are 4:512,8:256,16:128,32:64,64:32; its learning rates are the same for both.
    "your pictures on a GPU": dict(
        resolution=1024, channel_base=8192, channel_max=512, latent_dim=512, style_dim=512,
        mapping_dim=512, mapping_layers=8, batch="4:128,32:64,64:32,128:16,256:8,512:4",
        learning_rate="4:0.001,128:0.0015,256:0.002,512:0.003",
        r1_gamma="10", r1_interval=1, fade_kimg="600", stabilize_kimg="600",
        total_kimg=25000.0, ema_halflife_kimg=10.0, tick_kimg=40.0, samples_kimg=200.0,
        checkpoint_kimg=200.0, workers=8),
}


# What --architecture stylegan2 changes in all of them, and in each. Intervals and weight are those
# of the official code (the paper, appendix B, has path length in every 8th step). Nothing grows, so
# there is one resolution. r1_gamma None: by `heuristic_gamma`.
STYLEGAN2 = dict(architecture="stylegan2", path_weight=2.0, path_interval=4, r1_interval=16,
                 r1_gamma=None)
STYLEGAN2_PRESETS = {
    # About as many minutes as StyleGAN takes there. Its gamma was tried: docs/results.md.
    "painted faces on a CPU": dict(batch="16", learning_rate="0.006", r1_gamma="2",
                                   total_kimg=60.0),
    # Its gamma is that of the two on a CPU; at 128 px nobody has tried.
    "painted faces on a GPU": dict(channel_base=8192, batch="32", learning_rate="0.002",
                                   r1_gamma="2"),
    "your pictures on a CPU": dict(batch="16", r1_gamma="2"),                # tried, likewise
    # [MACHINE] 1 GPU with 16 GB or more (not measured): 4 images at a time, 8 times a step; or 8
    #           GPUs, once.
    "your pictures on a GPU": dict(channel_base=16384, batch="32", accumulate="8",
                                   learning_rate="0.002"),
}


def heuristic_gamma(resolution, batch):
    """--r1-gamma where nobody has tried: 0.0002 R^2 / batch.

    Paper:  Karras et al. 2020, StyleGAN2-ADA (arXiv 2006.06676), appendix C.
    Proved: tests/test_options.py::test_stylegan2_gets_its_gamma_by_the_published_heuristic
    """
    return 0.0002 * resolution ** 2 / batch


class OptionsParser(OneLineParser):
    """The parser of train.py, which can also take options from a file."""

    def convert_arg_line_to_args(self, line):
        # `python train.py @photos.txt`: options in a file, any number on a line, # for comments.
        # A backslash stands for itself, as in C:\photos, and a # in quotes, too.
        line = re.sub(r"""((?:^|\s)[^\s'"#]*(?:'[^']*'|"[^"]*"))|(?:^|\s)#.*""",
                      lambda found: found[1] or "", line)
        words = shlex.shlex(line, posix=True)
        words.whitespace_split, words.escape, words.commenters = True, "", ""
        try:
            return list(words)
        except ValueError as error:
            self.error(f"{line.strip()!r}: {error}")


def parse_args(argv=None):
    """The options that were typed, as a dict without those that were not."""
    parser = OptionsParser(
        prog="train.py", fromfile_prefix_chars="@", argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a StyleGAN. Without options: paints faces and learns to make more.",
        epilog="Options can stand in a file: train.py @photos.txt\n"
               "Where a TABLE is asked for, give one number, or one per resolution: "
               "4:128,8:64\nmeans 128 at 4 px and 64 at 8 px and above.\n\n"
               "What is not given is chosen by situation:\n" + "\n".join(
                   f"  {name}:\n    " + " ".join(f"--{k.replace('_', '-')} {show(v)}"
                                                 for k, v in preset.items())
                   for name, preset in PRESETS.items()) +
               "\n\nWith --architecture stylegan2, instead (--r1-gamma, where none stands: "
               "0.0002 R^2 / batch):\n"
               + "\n".join(f"  {name}:\n    " + " ".join(
                   f"--{k.replace('_', '-')} {show(v)}"
                   for k, v in {**STYLEGAN2, **preset}.items()
                   if k != "architecture" and v is not None)
                   for name, preset in STYLEGAN2_PRESETS.items()))
    # No more than a checkpoint may say (checkpoints.OPTIONS), or nobody could open it again.
    # Proved: tests/test_options.py::test_what_can_be_typed_can_be_read_again
    counts, amounts = number_from(1, int, 10 ** 9), number_from(0, float, 1e12)
    group = parser.add_argument_group("pictures")
    group.add_argument("--data", metavar="PATH", help="a folder, searched recursively, or a .zip")
    group.add_argument("--resolution", type=counts, metavar="R",
                       help="final side in pixels, a power of two (paper: 1024)")
    group.add_argument("--no-flip", action="store_true", help="no mirrored pictures")
    group.add_argument("--allow-upsampling", action="store_true",
                       help="use pictures smaller than the resolution, enlarged")
    group.add_argument("--max-bad", type=number_from(0, float, 100), metavar="PERCENT",
                       help="stop if more of the pictures are damaged (default 1)")
    group.add_argument("--cache", metavar="FOLDER", help="for the packed pictures (default cache)")
    group.add_argument("--workers", type=number_from(0, int, 1024), metavar="N",
                       help="processes that load pictures while training")
    group = parser.add_argument_group("schedule")
    group.add_argument("--initial-resolution", type=counts, metavar="R",
                       help="where to begin (default 4; paper: 8)")
    group.add_argument("--growth", choices=("fade", "morph"),
                       help="how a block is added: with random weights, faded in (default, the "
                       "paper), or as one that changes nothing at first (morph.py explains)")
    group.add_argument("--fade-kimg", type=table_of(float), metavar="TABLE",
                       help="thousands of images to fade a block in (official code: 600)")
    group.add_argument("--morph-kimg", type=table_of(float), metavar="TABLE",
                       help="the same with --growth morph (default 20)")
    group.add_argument("--stabilize-kimg", type=table_of(float), metavar="TABLE",
                       help="thousands of images before the next doubling (official code: 600)")
    group.add_argument("--total-kimg", type=amounts, metavar="KIMG",
                       help="length of the run in thousands of images (paper: 25000)")
    group.add_argument("--batch", type=table_of(int), metavar="TABLE",
                       help="images a step (official, one GPU: 128 at 4 px to 4 at 1024 px; under "
                       "torchrun a default one is rounded up to a multiple of 4 for each process)")
    group = parser.add_argument_group("networks")
    group.add_argument("--architecture", choices=("stylegan", "stylegan2"),
                       help="StyleGAN (default), or StyleGAN2, which does not grow")
    group.add_argument("--channel-base", type=counts, metavar="N",
                       help="channels = min(2 * base / resolution, max) (papers: 8192; "
                       "StyleGAN2: 16384)")
    group.add_argument("--channel-max", type=counts, metavar="N", help="(paper: 512)")
    group.add_argument("--latent-dim", type=counts, metavar="N", help="size of z (paper: 512)")
    group.add_argument("--style-dim", type=counts, metavar="N", help="size of w (paper: 512)")
    group.add_argument("--mapping-dim", type=counts, metavar="N",
                       help="width of the mapping network (paper: 512)")
    group.add_argument("--mapping-layers", type=counts, metavar="N", help="its depth (paper: 8)")
    group = parser.add_argument_group("learning")
    group.add_argument("--learning-rate", type=table_of(float), metavar="TABLE",
                       help="of Adam (paper: 0.001, more from 128 px on); mapping: 1/100 of it")
    group.add_argument("--r1-gamma", type=table_of(float), metavar="TABLE",
                       help="weight of the R1 penalty, as seen at the final resolution (paper: 10)")
    group.add_argument("--r1-interval", type=counts, metavar="K",
                       help="compute R1 in every K-th step only, K times as strong (paper: 1)")
    group.add_argument("--path-weight", type=amounts, metavar="WEIGHT",
                       help="of StyleGAN2's path length penalty; 0: none (official: 2)")
    group.add_argument("--path-interval", type=counts, metavar="K",
                       help="compute it in every K-th step only, K times as strong (official: "
                       "4; paper: 8)")
    group.add_argument("--styles-to-mix", type=number_from(1, int, 1000), metavar="K",
                       help="styles mixed in one image (default 2, as the paper)")
    group.add_argument("--mixing-probability", type=number_from(0, float, 1), metavar="P",
                       help="of mixing styles in a training image (default 0.9, as the paper)")
    group.add_argument("--ema-halflife-kimg", type=amounts, metavar="KIMG",
                       help="half-life of the average of G's weights (official: 10)")
    group = parser.add_argument_group("few pictures (augment.py explains)")
    group.add_argument("--augment", metavar="STRENGTH", type=augmentation,
                       help="show D all pictures, real and made, changed at random: off (default), "
                       "adaptive (as much as it needs not to learn them by heart), or a "
                       "probability")
    group.add_argument("--freeze-d", metavar="R", type=counts,
                       help="with --resume of a trained network: D's layers of R px and more stay "
                       "as they are (so not where convert_resolution.py has just drawn some)")
    group = parser.add_argument_group("speed and memory")
    group.add_argument("--accumulate", type=table_of(int), metavar="TABLE",
                       help="split a batch into that many parts, one after the other, to need less "
                       "memory (default 1)")
    group.add_argument("--precision", choices=("fp32", "tf32", "bf16"),
                       help="of the convolutions (default tf32 on CUDA, bf16 on a CPU that has "
                       "AVX512-BF16, else fp32; paper: fp32)")
    group.add_argument("--compile", action="store_true",
                       help="let torch.compile fuse what lies between the convolutions; needs a "
                       "C++ compiler on a CPU. Slower wherever it was tried (docs/results.md)")
    group = parser.add_argument_group("measuring (evaluate.py explains the numbers)")
    group.add_argument("--evaluate-kimg", type=amounts, metavar="KIMG",
                       help="between measurements; two tenths of the pictures are then held out "
                       "and never trained on, to measure the duality gap with (default: none)")
    group.add_argument("--evaluate-metrics", metavar="LIST",
                       help="as evaluate.py --metrics (default duality_gap)")
    group.add_argument("--evaluate-features", metavar="NETWORK",
                       help="as evaluate.py --features (default inception)")
    group.add_argument("--evaluate-images", type=counts, metavar="N",
                       help="as evaluate.py --images (default 2048)")
    group = parser.add_argument_group("run")
    group.add_argument("--out", metavar="FOLDER",
                       help="of this run; must be new or empty (default runs/NUMBER-NAME)")
    group.add_argument("--resume", metavar="CHECKPOINT", help="go on from here; a checkpoint.pt "
                       "goes on in its own folder, others start a new one")
    group.add_argument("--tick-kimg", type=amounts, metavar="KIMG", help="between status lines")
    group.add_argument("--samples-kimg", type=amounts, metavar="KIMG", help="between sample grids")
    group.add_argument("--checkpoint-kimg", type=amounts, metavar="KIMG",
                       help="between checkpoints")
    group.add_argument("--seed", type=number_from(0, int, 2 ** 62), metavar="N",
                       help="(default 0)")
    group.add_argument("--timeout-minutes", type=number_from(0.05, float, 1e6), metavar="N",
                       help="under torchrun: end when another process, or its machine, has given "
                       "no sign of life for so long; one that packs or measures for days gives "
                       "signs (default 10: a network may fail for a few minutes)")
    group.add_argument("--device", metavar="NAME",
                       help="cpu, cuda, cuda:1, mps (default: the best there is)")
    try:
        return vars(parser.parse_args(argv))
    except UnicodeDecodeError as error:
        raise UserError(f"a file of options (@FILE) is no UTF-8 text: {error}") from None


def complete_options(typed, device, resumed=None, processes=1):
    """All options: what was typed, over the checkpoint's or the situation's, over the defaults.

    Returns (options, name of the situation).   Errors: UserError, one sentence, what to type.
    """
    if resumed is not None:
        # What no option is, a newer version or a stranger has written.
        situation, base = "as in the checkpoint", {**ALWAYS, **{
            name: value for name, value in resumed.items() if name in checkpoints.OPTIONS}}
    else:
        situation = ("your pictures" if "data" in typed else "painted faces") + (
            " on a CPU" if device.type == "cpu" else " on a GPU")
        base = {**ALWAYS, **PRESETS[situation]}
        if typed.get("architecture") == "stylegan2":
            base |= {**STYLEGAN2, **STYLEGAN2_PRESETS[situation]}
            base["initial_resolution"] = typed.get("resolution", base["resolution"])
        if device.type == "cuda":
            base["precision"] = "tf32"
        if device.type == "cpu" and machine.multiplies_bfloat16():
            base["precision"] = "bf16"
    # The machine may be smaller than the one that a preset or a checkpoint was made for.
    base["workers"] = min(base["workers"], max(1, machine.cores() // machine.processes_here()))
    options = {**base, **typed}
    for name, needed in (("evaluate_metrics", "evaluate_kimg"), ("evaluate_images",
                         "evaluate_kimg"), ("evaluate_features", "evaluate_kimg"),
                         ("path_interval", "path_weight")):
        if resumed is None and not options[needed] and (
                typed.get(name, ALWAYS[name]) != ALWAYS[name]):
            raise UserError(f"--{name.replace('_', '-')}: does nothing without "
                            f"--{needed.replace('_', '-')}")
    if options["precision"] == "fp16":
        raise UserError("--precision fp16 is not offered any more: its gradients overflow in R1; "
                        "--precision bf16 has the range of fp32")
    for name, kind in (("batch", int), ("accumulate", int), ("learning_rate", float),
                       ("r1_gamma", float), ("fade_kimg", float), ("morph_kimg", float),
                       ("stabilize_kimg", float)):
        if isinstance(options[name], str):
            options[name] = read_table(options[name], kind)
    if resumed is None and "batch" not in typed and processes > 1:
        # The minibatch stddev compares 4 images, so each process gets 4, or a multiple. (So does
        # each of 8 GPUs in the official code, with the same learning rates.)
        options["batch"] = shared(options["batch"], dict.fromkeys(options["batch"], 4 * processes))
    if options["architecture"] == "stylegan2":
        batch = max(1, options["batch"][options["resolution"]])
        if options["r1_gamma"] is None:                        # new, or imported
            options["r1_gamma"] = Table({4: heuristic_gamma(options["resolution"], batch)})
        if resumed is None and "accumulate" not in typed:      # in each part the 4 that D compares
            fours, rest = divmod(batch // processes, 4)
            most = 1 if rest or not fours else options["accumulate"][4]
            options["accumulate"] = Table({4: max(
                parts for parts in range(1, most + 1) if fours % parts == 0)})
    elif options["r1_gamma"] is None:
        raise UserError("--r1-gamma: the checkpoint names none")
    if options["data"] == "":
        raise UserError("--data: an empty path")
    for name in ("resolution", "initial_resolution"):
        try:
            models.resolutions_up_to(options[name])
        except ValueError as error:
            raise UserError(f"--{name.replace('_', '-')}: {error}") from None
    if options["initial_resolution"] > options["resolution"]:
        raise UserError(f"--initial-resolution {options['initial_resolution']} is larger than "
                         f"--resolution {options['resolution']}")
    if resumed is not None:
        for name in ("architecture", *models.SETTINGS):
            if options[name] != base[name]:
                raise UserError(f"--{name.replace('_', '-')} {options[name]} differs from the "
                                 f"checkpoint's {base[name]}; a network keeps its shape "
                                 f"(convert_resolution.py changes the resolution)")
    if options["architecture"] == "stylegan2":
        if options["initial_resolution"] < options["resolution"] or options["growth"] != "fade":
            raise UserError("--architecture stylegan2 does not grow; leave --initial-resolution "
                            "and --growth out")
    elif options["path_weight"]:
        raise UserError("--path-weight is for --architecture stylegan2")
    if options["freeze_d"] is not None:
        if resumed is None:
            raise UserError("--freeze-d is for a D that has learned to see; --resume names it")
        if not 4 < options["freeze_d"] <= options["resolution"]:
            raise UserError(f"--freeze-d {options['freeze_d']}: must be above 4, or nothing learns,"
                            f" and at most {options['resolution']}, or nothing is frozen")
    if resumed is not None and options["growth"] != base["growth"]:
        raise UserError(f"--growth {options['growth']}: the checkpoint grows the other way "
                        f"(python morph.py CHECKPOINT makes one that is morphed)")
    if 2 * options["channel_base"] < options["resolution"]:
        raise UserError(f"--channel-base {options['channel_base']} leaves no channel at "
                         f"{options['resolution']} px; it must be at least "
                         f"{options['resolution'] // 2}")
    for r in models.resolutions_up_to(options["resolution"]):
        if options["growth"] == "morph" and r > options["initial_resolution"]:
            check_morph_width(
                models.channels_at(r, options["channel_base"], options["channel_max"]), r)
    if resumed is None and "total_kimg" not in typed:
        # A larger resolution than the situation's own needs more images to be reached at all.
        grown = [r for r in models.resolutions_up_to(options["resolution"])
                 if r >= options["initial_resolution"]]
        needed = sum(options["stabilize_kimg"][r] for r in grown) + sum(
            growing_kimg(options)[r] for r in grown[1:])
        options["total_kimg"] = max(options["total_kimg"], needed)
    for name in ("batch", "accumulate", "tick_kimg", "samples_kimg", "checkpoint_kimg",
                 "total_kimg", "evaluate_kimg"):
        values = options[name].values() if isinstance(options[name], dict) else [options[name]]
        if values != [None] and min(values) < (1 if name in ("batch", "accumulate") else 0.001):
            raise UserError(f"--{name.replace('_', '-')} {show(options[name])} is too small")
    for r in models.resolutions_up_to(options["resolution"]):
        batch, accumulate = options["batch"][r], options["accumulate"][r]
        if batch % (processes * accumulate) and r >= options["initial_resolution"]:
            every = sorted({*options["batch"], *options["accumulate"]})
            wanted = shared({r: options["batch"][r] for r in every},
                            {r: processes * options["accumulate"][r] for r in every})
            raise UserError(f"--batch {batch} at {r} px cannot be divided by {processes} processes "
                            f"times --accumulate {accumulate}; --batch {show(wanted)} can" + (
                                ", and a smaller --accumulate may" if accumulate > 1 else ""))
    return options, situation


def shared(batch, parts):
    """The batches of a table, each as little larger as makes it a multiple of `parts` there."""
    return Table({r: -(-n // parts[r]) * parts[r] for r, n in batch.items()})


def check_morph_width(channels, resolution):
    """Raise UserError if three colours leave a morphed block (morph.py) nothing free."""
    if channels < 4:
        raise UserError(f"a block of {resolution} px with {channels} channels has no room beside "
                        f"the three colours; morphing needs at least 4 (--channel-base "
                        f"{2 * resolution} or more)")


def growing_kimg(options):
    """The table of how many kimg a new block grows: that of --growth."""
    return options[f"{options['growth']}_kimg"]


def as_plain(options):
    """The options with tables as they are typed: for files, and for `complete_options` again."""
    return {key: show(value) if isinstance(value, Table) else value
            for key, value in options.items()}


def command_line(options):
    """The command that repeats a run."""
    words = ["python", "train.py"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, show(value)]
    return machine.spoken(words)


# ---- 4. What train.py reads ------------------------------------------------------------------


def check_paths(resume, run, typed):
    """A checkpoint that lies in no run of its own: paths in its options are asked for.

    A program that measures would be run, and a folder of pictures read.
    Errors: UserError that says what to type.
    Proved: tests/test_options.py::test_paths_of_a_stranger_are_asked_for
    """
    for key, what, own in (("data", "the pictures", (None,)),
                           ("evaluate_features", "the program",
                            (None, "inception", "efficientnet-lite0"))):
        if run.get(key) not in own and key not in typed:
            raise UserError(f"{resume}: names {what} {run[key]!r}, and no settings.json beside it "
                            f"says the same; name yours with --{key.replace('_', '-')}")
    return run


def read(argv=None):
    """(o, checkpoint): what was asked for, checked, and the loaded checkpoint to resume, or None.

    o has an attribute for each option of train.py, with tables as `Table`s, and beside them:
    device:   the torch.device of this process; asked_device: what was typed, or None;
    settings: the dict that makes the networks (`models.SETTINGS`);
    growing_kimg: --fade-kimg or --morph-kimg, as --growth says;
    typed, command: all options as they are typed, for files (`as_plain`); the command that repeats;
    resume, out: paths or None; interrupted: the run folder that torchrun goes on in, or None.
    Errors:  UserError, one sentence that says what to type.
    """
    typed = parse_args(argv)
    for name in ("resume", "out", "cache"):
        if typed.get(name) == "":
            raise UserError(f"--{name}: an empty path")
    resume, out = typed.pop("resume", None), typed.pop("out", None)
    resume, out = resume and pathlib.Path(resume), out and pathlib.Path(out)
    asked = typed.pop("device", None)
    device = machine.device_of_this_process(asked)
    if device.type == "cpu":
        machine.keep_freed_memory()
    interrupted = machine.interrupted_run(out)
    if interrupted and (interrupted / "checkpoint.pt").exists():
        resume = interrupted / "checkpoint.pt"
    team, own = machine.Team(device), interrupted or folder_to_go_on_in(out, resume)
    if own and team.chief:
        hold(own)                                  # before its checkpoint is read
    checkpoint = resume and checkpoints.load_checkpoint(resume)
    if checkpoint and not checkpoints.resumable(checkpoint):
        raise UserError(f"{resume}: holds a network to look at, not a run to resume")
    if out and not interrupted and team.chief and not is_free(out):
        raise UserError(f"--out {out}: exists and is not an empty folder")
    if team.chief:
        check_writable((own or out or pathlib.Path("runs", "new")) / "checkpoint.pt")
    if checkpoint and "data" not in typed and not (
            checkpoint["options"].get("data") or "pictures" in checkpoint["progress"]):
        raise UserError(f"{resume}: comes from another program and names no pictures; --data says "
                        f"what to go on with")
    run = checkpoint and checkpoint["options"]
    if checkpoint and not checkpoints.in_its_own_run(resume, checkpoint):
        check_paths(resume, run, typed)
    if checkpoint:                                 # a cache is believed in its own run only, too
        run = {**run, "cache": checkpoints.own_cache(resume, checkpoint) or ALWAYS["cache"]}
    try:
        options, situation = complete_options(typed, device, run, team.processes)
    except UserError as error:
        if checkpoint:
            raise UserError(f"--resume {resume}: {error}") from None
        raise
    if own and not interrupted and typed.get("freeze_d") not in (None, run.get("freeze_d")):
        raise UserError(f"--freeze-d {typed['freeze_d']}: begins another run, which would be "
                        f"written over that in {own}; name a new folder with --out")
    if options["freeze_d"] and (checkpoint["progress"]["resolution"] != options["resolution"]
                                or checkpoint["progress"]["phase"] != "stabilize"):
        raise UserError(f"--resume {resume}: --freeze-d {options['freeze_d']}: D has not grown to "
                        f"{options['resolution']} px yet, and what is frozen would never learn")
    if checkpoint and "cache" not in typed and not os.path.isdir(options["cache"]):
        options["cache"] = ALWAYS["cache"]                     # that one was on another machine
    for key in ("data", "cache"):                              # to be found from any folder
        options[key] = options[key] and os.path.abspath(options[key])
    if options["evaluate_features"] not in ("inception", "efficientnet-lite0"):        # a file
        options["evaluate_features"] = os.path.abspath(options["evaluate_features"])
    for key, value in as_plain(options).items():
        if not checkpoints.OPTIONS.get(key, checkpoints.is_plain)(value):
            raise UserError(f"--{key.replace('_', '-')} {value!r}: no checkpoint could say that")
    nimg = checkpoint["progress"]["nimg"] if checkpoint else 0
    if nimg >= round(1000 * options["total_kimg"]):
        raise UserError(f"{resume}: has seen {nimg / 1000:g} kimg and is finished; "
                        f"a larger --total-kimg goes on")
    if options["precision"] == "bf16" and device.type == "cpu" and (
            not machine.multiplies_bfloat16()):
        team.say("note: this CPU has no instructions for --precision bf16; fp32 would be faster")
    command = command_line({**options, "device": asked})
    team.say(f"{situation}: " + command.removeprefix("python train.py "))
    return argparse.Namespace(
        **options, device=device, asked_device=asked, resume=resume, out=out,
        interrupted=interrupted,
        settings=checkpoint["settings"] if checkpoint else {
            name: options[name] for name in ("architecture", *models.SETTINGS)},
        growing_kimg=growing_kimg(options), typed=as_plain(options), command=command), checkpoint
