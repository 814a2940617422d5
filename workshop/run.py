"""run.py: all that surrounds the game: a folder, a log, samples, checkpoints, the end.   (workshop)

Used by: train.py, whose loop calls `Run.after_step` once a step.
Needs:   torch, torchvision, numpy, Pillow, tqdm, tensorboard.

A run's folder:
  settings.json       the command that begins such a run again, and where it was resumed
  log.jsonl           a line a tick: losses, variety, speed, memory       (also for TensorBoard)
  metrics.jsonl       a line a measurement (--evaluate-kimg)
  samples/            reals.png; the same z after as many images as the name says; with --augment
                      augmented.png: reals as D was shown them last
  checkpoint.pt       the newest; checkpoint-R.pt: when resolution R was finished
"""

import contextlib
import copy
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time

import torch
import torch.nn.functional as F
from PIL import Image

import augment
import stylegan_dataloader as data
import stylegan_models as models
from workshop import (
    UserError, checkpoints, machine, naming, options, pictures, replace, variety)
from workshop.curves import append_line, is_record

# What a step returns: means over its batch. loss_d, loss_g without penalties; d_real, d_fake: mean
# scores. r1_steps, path_steps: 1 if the penalties before them were due in this step. real_signs: of
# the scores of real pictures; 1 if all are above 0. (Checkpoints hold sums in this order.)
LOGGED = ("loss_d", "loss_g", "d_real", "d_fake", "r1", "r1_steps",
          "path_length", "path_penalty", "path_steps", "real_signs")


# ---- 1. The sample grid ----------------------------------------------------------------------


def new_samples(o):
    """The fixed sample grid: z [n, K, latent] and style rows [n, L]; the last row's are mixed.

    Why:    with the same z in every grid, one can watch a face become itself, from 4x4 on.
    Shapes: at most 8 x 6 images, fewer where they are large: at most 4096 pixels across.
    """
    columns = min(8, max(2, 4096 // o.resolution))
    rows = min(6, max(2, 2048 // o.resolution))
    generator = torch.Generator().manual_seed(o.seed + 1)
    z = torch.randn(rows * columns, o.styles_to_mix, o.latent_dim, generator=generator)
    layers = models.num_style_layers(o.resolution)
    mixer = data.StyleMixer(layers, columns, o.styles_to_mix, 1.0, o.seed)
    style_index = torch.zeros(rows * columns, layers, dtype=torch.long)
    style_index[-columns:] = next(iter(mixer))
    return {"z": z, "style_index": style_index, "columns": columns}


@torch.no_grad()
def sample_images(G_ema, samples, resolution, alpha, device):
    """The pictures of the grid as they are: float [n, 3, r, r] on the CPU, r the stage's size."""
    columns, images = samples["columns"], []                   # a row at a time: little memory
    for z, rows in zip(samples["z"].split(columns), samples["style_index"].split(columns)):
        images.append(G_ema(z.to(device), rows.to(device), noise_mode="const",
                            resolution=resolution, alpha=alpha).cpu())
    return torch.cat(images)


def as_grid(images, columns, resolution):
    """float [n, 3, r, r] -> uint8 array [rows*R, columns*R, 3], R the final resolution: small
    stages enlarged."""
    from torchvision.utils import make_grid                    # slow to import, so not on top
    large = F.interpolate(images, scale_factor=resolution // images.shape[-1], mode="nearest")
    return data.to_pixels(make_grid(large, nrow=columns, padding=0)[None])[0].numpy()


# ---- 2. Time ---------------------------------------------------------------------------------


def seconds_left(nimg, stages, speeds, total):
    """Time from nimg to `total` images at `speeds`, {resolution: seconds an image}."""
    return sum(max(0, min(stage.end, total) - max(nimg, stage.start)) * speeds[stage.resolution]
               for stage in stages if nimg < stage.end and stage.start < total)


def clock(seconds):
    """4215 -> "1:10:15"; days in front where there are any."""
    days, seconds = divmod(round(seconds), 86400)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    text = f"{hours}:{minutes:02d}" if hours or days else f"{minutes}"
    return (f"{days} d " if days else "") + f"{text}:{seconds % 60:02d}"


def crossed(nimg, batch, kimg):
    """Did the step that ended at nimg pass a multiple of `kimg`? Does not depend on resuming."""
    interval = max(1, round(1000 * kimg))
    return nimg // interval > (nimg - batch) // interval


class StopRequest:
    """Remembers Ctrl-C, SIGTERM or SIGHUP (a lost terminal) until the step is done; the same one
    again does not wait.

    (torchrun passes each signal on, also one that a batch system has sent to all already. That is
    no second wish to stop; and if its processes take longer than 30 s, it kills them.)
    Proved: tests/test_run.py::test_torchrun_that_passes_a_signal_on_is_not_impatient
    """

    def __init__(self):
        self.signal = None

    def __call__(self, number, frame):
        if self.signal == number and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self.signal = self.signal or number


# ---- 3. The folder ---------------------------------------------------------------------------


def make_run_folder(out, name, resume):
    """Create the folder of this run, or find it, and hold it (`options.hold`)."""
    folder = options.folder_to_go_on_in(out, resume) or out
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        options.hold(folder)
        if folder == out and not options.is_free(out):         # another run was faster
            raise UserError(f"--out {out}: exists and is not an empty folder")
        return folder
    runs = pathlib.Path("runs")
    runs.mkdir(exist_ok=True)
    numbers = [int(match[0]) for p in runs.iterdir() if (match := re.match(r"\d+(?=-)", p.name))]
    number = max(numbers, default=-1)
    while True:                                                # another run may be starting too
        number += 1
        try:
            (runs / f"{number:05d}-{name}").mkdir()
            options.hold(runs / f"{number:05d}-{name}")
            return runs / f"{number:05d}-{name}"
        except FileExistsError:
            pass


def write_settings(folder, o, processes, nimg):
    """settings.json: the command that begins such a run again, and where it was resumed."""
    path, resumed = folder / "settings.json", []
    begun = o.resume and os.path.abspath(o.resume)             # a new run, from another's network
    try:
        if path.is_file():
            old = json.loads(path.read_text(encoding="utf-8"))
            resumed, begun = old["resumed"] + [], old.get("begun_from")
    except (ValueError, KeyError, TypeError):                  # damaged: the checkpoint counts
        os.replace(path, folder / "settings.json.damaged")
        print(f"note: {path} was damaged; it is kept as settings.json.damaged", file=sys.stderr)
    if o.resume is not None:
        resumed.append({"from": str(o.resume), "nimg": nimg})
    again = ["--resume", begun, "--out", f"{folder}-again"] if isinstance(begun, str) else []
    replace_text(path, json.dumps({
        "repeat": machine.spoken(machine.launcher()) + o.command.removeprefix("python") + (
            " " + machine.spoken(again) if again else ""),
        "begun_from": begun, "resumed": resumed, "torch": torch.__version__,
        "device": str(o.device), "processes": processes, "launch": machine.launch_id(),
        "options": o.typed}, indent=2) + "\n")


def replace_text(path, text):
    """Write a file so that it holds either the old text or the whole new one, as checkpoints do."""
    temporary = path.with_name(path.name + ".tmp")
    with naming(path, temporary):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def save_grid(path, grid):
    """Write a grid, uint8 [H, W, 3], as .png. Where the disk is full, nothing of it is left."""
    with naming(path):
        try:
            Image.fromarray(grid).save(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def forget_later_lines(log, nimg):
    """Drop the lines of a .jsonl file that were written after the checkpoint at nimg.

    Half a line that a killed run left at the end is dropped, too. Lines that this program did not
    write (notes of the user, what a power cut made of some) go to a file of their own.
    Proved: tests/test_run.py::test_lines_after_the_checkpoint_are_forgotten
    """
    if not log.is_file():
        return
    kept, strange = [], []
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    for line in lines if is_record(lines[-1]) else lines[:-1]:
        try:
            if (json.loads(line)["nimg"] or 0) <= nimg:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            strange.append(line + "\n")
    if strange:
        aside = log.with_name(log.name + ".damaged")
        with open(aside, "a", encoding="utf-8") as file:
            file.write("".join(strange))
        print(f"note: {log} had {len(strange)} lines that are none of a run; they are kept in "
              f"{aside.name}", file=sys.stderr)
    if "".join(kept) != text:
        replace_text(log, "".join(kept))


# ---- 4. The run ------------------------------------------------------------------------------


class Run:
    """One run of train.py: `start`, then `after_step` once a step until `stopped`, then `finish`.

    Under torchrun every process has one. Only the chief's writes and talks; but all of them take
    the same decisions at the same step.
    """

    def __init__(self, o, team, pictures, stages, G, D, G_ema, G_opt, D_opt, strength):
        self.o, self.team, self.pictures, self.stages = o, team, pictures, stages
        self.strength = strength                               # of --augment: a tensor []
        self.G, self.D, self.G_ema, self.G_opt, self.D_opt = G, D, G_ema, G_opt, D_opt
        self.total = round(1000 * o.total_kimg)
        self.stopped = self.failed = False
        self.sums = torch.zeros(len(LOGGED), device=o.device)          # since the last tick
        self.steps_since_tick = 0
        self.samples = new_samples(o)
        self.collapsed = self.by_heart = False                 # as the last status line saw it
        self.real_distances = {}                               # {(resolution, alpha): distance}
        self.pictures_since = 0                                # nimg when the first one was shown
        self.folder = self.board = self.measure = None
        self.unwritten = set()                                 # what the disk did not take

    def start(self, checkpoint, training_step, judge):
        """Resume, rehearse `training_step`, make the folder. judge: D, or D behind --augment.

        Returns nimg, step, and (resolution, growing) of the last step, or None before the first.
        """
        o, team, pictures = self.o, self.team, self.pictures
        nimg, step, before = self._resume(checkpoint) if checkpoint else (0, 0, None)
        self._begin_alike(nimg, step)
        if o.evaluate_kimg and team.chief:
            import evaluate                                    # which is slow to import
            self.measure = evaluate.prepare(o, pictures, team.processes, self.G_ema, self.G, self.D)
        self._rehearse(nimg, training_step, judge)
        if team.chief:
            self._make_folder(nimg)
        self.bar = machine.progress_bar(
            total=self.total / 1000, initial=nimg / 1000, mininterval=0.5,
            disable=None if team.chief else True,
            bar_format="{percentage:3.0f}%|{bar:20}| {n:.1f}/{total:g} kimg{postfix}")
        self.stop = StopRequest()
        numbers = [signal.SIGINT, signal.SIGTERM]
        # The terminal is gone; not if somebody wanted that to be ignored (nohup).
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.handlers = {number: signal.signal(number, self.stop) for number in numbers}
        if team.chief:
            options.how_to_go_on[:] = [self._how_to_go_on]
        self.started = self.tick_started = time.perf_counter()
        self.nimg = self.nimg_at_tick = nimg
        self.expected = seconds_left(nimg, self.stages, self.speeds, self.total)
        return nimg, step, before

    def _resume(self, checkpoint):
        """Give everything the state that it had. Returns what `start` returns."""
        progress = checkpoint["progress"]
        # What was imported names no pictures: these are new to it, whatever its nimg is.
        self.pictures_since = progress.get(
            "pictures_since", 0 if "pictures" in progress else progress["nimg"])
        if not pictures.same_pictures(progress, self.pictures.source, self.pictures.contents):
            self.pictures_since = progress["nimg"]
            self.team.say("note: the pictures are not those that the checkpoint was trained with; "
                          "the run goes on with these")
        self.G.load_state_dict(checkpoint["generator"])
        self.D.load_state_dict(checkpoint["discriminator"])
        self.G_ema.load_state_dict(checkpoint["generator_ema"])
        load_adam(self.G_opt, checkpoint["optimizer_g"])
        load_adam(self.D_opt, checkpoint["optimizer_d"])
        self.samples = checkpoint["samples"]
        sums = progress["sums"]                        # there were fewer before StyleGAN2 came
        self.sums[:len(sums)] = sums.to(self.o.device)
        self.steps_since_tick = progress["steps_since_tick"]
        self.collapsed = progress.get("collapsed", False)      # older files do not say
        self.by_heart = progress.get("by_heart", False)
        if self.o.augment == "adaptive":
            self.strength.fill_(progress.get("augment_strength", 0.0))
        before = None
        if progress["resolution"] is not None:
            before = progress["resolution"], progress["phase"] != "stabilize"
            self._check_place(progress["nimg"], before, checkpoint["options"]["batch"])
        return progress["nimg"], progress["step"], before

    def _check_place(self, nimg, before, batch):
        """A schedule that was typed anew must leave the run where it stands, or one step further.

        Else it would go back, and with --growth morph make a trained block anew; or it would pass
        over a stage, and with it a block that has never learned.
        Proved: tests/test_run.py::test_a_schedule_typed_anew_leaves_the_run_where_it_stands
        """
        stage = next(s for s in self.stages if nimg < s.end)
        now = stage.resolution, stage.growing
        later = (now[0], not now[1]) > (before[0], not before[1])
        step = max(options.read_table(batch, int).values())
        if now != before and not (later and nimg - stage.start < step):
            raise UserError(
                f"--resume {self.o.resume}: it has come to {before[0]} px"
                f"{', growing' * before[1]}; the schedule as typed (--initial-resolution, "
                f"--{self.o.growth}-kimg, --stabilize-kimg) puts it at {now[0]} px"
                f"{', growing' * now[1]}; change only what is to come, as in "
                f"--stabilize-kimg 4:600,64:800")

    def _begin_alike(self, nimg, step):
        """Machines with disks of their own may hold other pictures, or an older checkpoint.

        Proved: tests/test_two_machines.py::test_machines_given_different_things_do_not_begin
        """
        contents, weight = self.pictures.contents, next(self.G_ema.parameters())
        for value, what in (
                ({name: value for name, value in self.o.typed.items()
                  if name not in ("data", "cache", "workers", "evaluate_features")},
                 "options; type the same on each"),
                (None if contents is None else contents.tolist(),
                 f"pictures in --data {self.o.data}"),
                (nimg and (nimg, step, weight.flatten()[:100].tolist()),
                 f"checkpoint in --resume {self.o.resume}; copy that of the first one")):
            if not self.team.same(value):
                raise UserError(f"the machines do not have the same {what}")
        self.team.share_weights(self.G, self.D, self.G_ema)    # machines may round differently

    def _rehearse(self, nimg, training_step, judge):
        """How long will it take, and does it fit? Steps on copies, at each resolution to come.

        The copies are not compiled: with --compile a run took longer wherever it was tried.
        """
        o, team = self.o, self.team
        # One call for all four, so that the copied Adams hold the weights of the copied networks.
        copies = copy.deepcopy((self.G, judge, self.G_opt, self.D_opt))

        def step(r, due):
            n = o.batch[r] // team.processes
            reals = data.to_images(torch.zeros(n, r, r, 3, dtype=torch.uint8), o.device)
            reals.uniform_(-1, 1)
            z = torch.randn(2, n, o.styles_to_mix, o.latent_dim, device=o.device)
            mixes = torch.zeros(2, n, models.num_style_layers(r), dtype=torch.long, device=o.device)
            # alpha 0.5: two ways out of G and into D at once, the most that a step has to do.
            # .tolist() waits for a GPU.
            alpha = 0.5 if o.initial_resolution < o.resolution else 1.0
            training_step(*copies, reals, z, mixes, alpha, 1.0 if due == 0 else None,
                          1.0 if due == 1 else None, o.accumulate[r], team).tolist()

        reached = [stage.resolution for stage in self.stages
                   if nimg < stage.end and stage.start < self.total]
        killed = ' (if the system says "Killed" now: a smaller --batch)' * (o.device.type == "cpu")
        team.say(f"trying a step at {', '.join(map(str, sorted(set(reached))))} px{killed}",
                 flush=True)
        try:
            intervals = [o.r1_interval] + [o.path_interval] * bool(o.path_weight)
            self.speeds, untried = machine.rehearse(step, sorted(set(reached)), o.batch, intervals,
                                                    team.agreed)
        except (RuntimeError, MemoryError) as error:
            if not machine.out_of_memory(error):
                raise
            raise UserError(f"{o.device} has not enough memory for --batch "
                            f"{options.show(o.batch)}; try smaller ones, for instance --batch "
                            f"4:32,64:8,256:2, or --accumulate") from None
        del copies
        machine.forget_peak_memory(o.device)
        left = clock(seconds_left(nimg, self.stages, self.speeds, self.total))
        team.say("measured, images/s: " + ", ".join(
            f"{1 / s:.1f} at {r} px" for r, s in self.speeds.items() if r not in untried)
            + f"; this run will take about {left}" + ", and its measurements" * (
                bool(o.evaluate_kimg)))
        if untried:
            team.say(f"note: not tried, since a step would take too long: "
                     f"{', '.join(map(str, untried))} px; the time there is a guess, and whether "
                     f"the memory will do is not known")
        if max(reached) < o.resolution:
            team.say(f"note: --total-kimg {o.total_kimg:g} ends at {max(reached)} px, before "
                     f"{o.resolution} px is reached")

    def _make_folder(self, nimg):
        o = self.o
        name = pathlib.Path(o.data).resolve().stem if o.data else "faces"
        self.folder = o.interrupted or make_run_folder(o.out, name, o.resume)
        options.hold(self.folder)
        for cut in self.folder.glob("checkpoint*.pt.*.tmp"):   # of a run that was killed
            cut.unlink(missing_ok=True)
        (self.folder / "samples").mkdir(exist_ok=True)
        for log in ("log.jsonl", "metrics.jsonl"):
            forget_later_lines(self.folder / log, nimg)
        write_settings(self.folder, o, self.team.processes, nimg)
        print(f"{self.folder}: samples/, log.jsonl, checkpoint.pt; "
              f"curves: tensorboard --logdir {machine.spoken([self.folder.parent])}", flush=True)
        from torch.utils.tensorboard import SummaryWriter      # slow to import, so not on top
        threading.excepthook = _quiet_thread
        self.board = SummaryWriter(self.folder, purge_step=nimg + 1)   # forget later curves, too
        finals = self.pictures.dataset(o.resolution)
        reals = data.to_images(finals.__getitems__(range(len(self.samples["z"]))))
        save_grid(self.folder / "samples" / "reals.png",
                  as_grid(reals, self.samples["columns"], o.resolution))

    def after_step(self, nimg, step, stage, alpha, grown, said):
        """Now and then: say how it goes, show it, keep it, measure it.

        said: what `training_step` returned. alpha: what the networks were called with; grown: how
        far the newest block had come (the same, but for --growth morph).
        """
        o, team, batch = self.o, self.team, self.o.batch[stage.resolution]
        self.sums += said
        self.steps_since_tick += 1
        self.nimg, self.step, self.stage, self.grown = nimg, step, stage, grown
        self.stopped = bool(team.agreed(self.stop.signal is not None))
        last = nimg >= self.total
        finished = last or next(s for s in self.stages if nimg < s.end).resolution != (
            stage.resolution)
        tick = last or crossed(nimg, batch, o.tick_kimg)
        show = last or crossed(nimg, batch, o.samples_kimg)
        keep = self.stopped or finished or crossed(nimg, batch, o.checkpoint_kimg)
        measure = last or bool(o.evaluate_kimg) and crossed(nimg, batch, o.evaluate_kimg)

        # Several keep before they measure (below), so the weights are looked at then, too.
        keep = keep or measure and team.processes > 1

        # Only here does the CPU wait for a GPU. On a CPU, asking in every step costs nothing.
        if tick or show or keep or o.device.type == "cpu":
            self._stop_if_not_finite(weights=tick or show or keep)
        if self.failed:
            return
        if tick or keep:
            # Each saw its part of the images. By way of the CPU: NCCL returns before the sum is
            # made, and a process that leaves now, at the end, would take its part along.
            self.sums = team.mean(self.sums.cpu()).to(o.device)
        team.alone = last or self.stopped                      # nothing is left to agree on
        if team.chief:
            self._move_bar()
            if tick or show:
                images = sample_images(self.G_ema, self.samples, stage.resolution, alpha, o.device)
            missed = len(self.unwritten)
            if tick:
                self._tick(*self._distances(images, alpha))
            if show:
                grid = as_grid(images, self.samples["columns"], o.resolution)
                self._try("samples", save_grid, self.folder / "samples" / f"{nimg:09d}.png", grid)
                self._draw("add_image", "samples", grid, nimg, dataformats="HWC")
                if o.augment != "off":
                    self._show_augmented(stage.resolution)
            # The disk is full, or the folder has gone: can what counts still be kept?
            keep = keep or len(self.unwritten) > missed
        if tick:
            self.sums, self.steps_since_tick = torch.zeros_like(self.sums), 0
        # One process measures first, then keeps: killed in between, it makes these steps again, and
        # measures again. Several keep first, since torchrun kills 30 s after Ctrl-C; a number may
        # be missing then. At the end of the run, what counts is kept first.
        # Proved: tests/test_run.py::test_a_run_that_is_killed_as_it_measures_measures_again
        measure = measure and team.chief and self.measure and not self.stopped
        keep_first = last or team.processes > 1
        if measure and not keep_first:
            self._measure(alpha)
        if team.chief and keep:
            self._keep(finished)
        if measure and keep_first:
            self._measure(alpha)

    def _stop_if_not_finite(self, weights):
        """Set `stopped` and `failed` in all processes if a loss is infinite or NaN in one of them.

        weights: look at the weights, too, since they are going to be kept, or used for pictures.
        Proved: tests/test_run.py::test_a_run_that_explodes_stops_and_keeps_the_last_good_checkpoint
        """
        tensors = [self.sums]
        if weights:
            tensors += [*self.G.parameters(), *self.D.parameters(), *self.G_ema.parameters()]
        bad = not all(tensor.isfinite().all() for tensor in tensors)
        if self.team.agreed(bad):
            self.stopped = self.failed = True

    def _move_bar(self):
        """The rest of the run at the rehearsed speeds, times how wrong these have been so far."""
        self.now = time.perf_counter()
        left = seconds_left(self.nimg, self.stages, self.speeds, self.total)
        self.left = clock(left * (self.now - self.started) / (self.expected - left))
        self.rate = (self.nimg - self.nimg_at_tick) / (self.now - self.tick_started)
        self.bar.set_postfix_str(f"{self.stage.resolution} px, {self.rate:.1f} images/s, "
                                 f"{self.left} left", refresh=False)
        self.bar.update(self.nimg / 1000 - self.bar.n)

    def _distances(self, images, alpha):
        """The mean distance of the samples, and that of the first real pictures: as many (or all
        there are), of this size, and as sharp as D has just been shown them.

        Proved: tests/test_variety.py::test_samples_are_compared_with_what_d_is_shown
        """
        r = self.stage.resolution
        if (r, alpha) not in self.real_distances:
            reals = self.pictures.dataset(r)
            reals = data.to_images(reals.__getitems__(range(min(len(images), len(reals)))))
            self.real_distances[r, alpha] = variety.mean_distance(data.fade_reals(reals, alpha))
        return variety.mean_distance(images), self.real_distances[r, alpha]

    def _show_augmented(self, resolution):
        """augmented.png: the first real pictures as D would see them now (augment.py)."""
        reals = self.pictures.dataset(resolution)
        reals = data.to_images(reals.__getitems__(range(len(self.samples["z"]))))
        seen = augment.augment(reals, self.strength.cpu())
        self._try("samples", save_grid, self.folder / "samples" / "augmented.png",
                  as_grid(seen, self.samples["columns"], self.o.resolution))

    def _tick(self, samples, reals):
        """A line in log.jsonl, on the screen, and in TensorBoard; a collapse is said once.

        samples, reals: how far they are apart, as `_distances` gives it.
        """
        sums = dict(zip(LOGGED, self.sums.tolist()))
        line = {"nimg": self.nimg, "step": self.step, "resolution": self.stage.resolution,
                "phase": self._phase(), "alpha": self.grown,
                **{key: sums[key] / self.steps_since_tick for key in LOGGED[:4]}}
        line["real_signs"] = sums["real_signs"] / self.steps_since_tick
        if self.o.augment != "off":
            line["augment_strength"] = self.strength.item()
        line["r1"] = sums["r1"] / sums["r1_steps"] if sums["r1_steps"] else None
        if self.o.path_weight:
            for key in ("path_length", "path_penalty"):
                line[key] = sums[key] / sums["path_steps"] if sums["path_steps"] else None
        line["sample_distance"], line["real_distance"] = samples, reals
        line["images_per_second"], line["seconds_per_kimg"] = self.rate, 1000 / self.rate
        line["peak_memory_mb"] = machine.peak_memory_mb(self.o.device)
        if not append_line(self.folder / "log.jsonl", line):
            self.unwritten.add("log.jsonl")
        for key, value in line.items():
            if isinstance(value, (int, float)) and key != "nimg":
                self._draw("add_scalar", key, value, self.nimg)
        phase = line["phase"] + f" {self.grown:.2f}" * self.stage.growing
        self._write(f"{self.nimg / 1000:7.1f} kimg {line['resolution']:4d} px {phase:10s}  "
                    f"loss D {line['loss_d']:.2f} G {line['loss_g']:.2f}  "
                    f"real {line['d_real']:+.2f} fake {line['d_fake']:+.2f}  "
                    f"variety {samples:.2f} of {reals:.2f}  "
                    + f"augment {line.get('augment_strength', 0):.2f}  " * (self.o.augment != "off")
                    + f"{self.rate:.4g} images/s, {self.left} left")
        before, self.collapsed = self.collapsed, variety.is_collapse(samples, reals, self.collapsed)
        if self.collapsed and not before:
            older = [path for r in models.resolutions_up_to(self.stage.resolution)
                     if (path := self.folder / f"checkpoint-{r}.pt").exists()]
            self._write(variety.accusation(samples, reals, self.o, self.stage.resolution, older))
        shown = (self.nimg - self.pictures_since) / len(self.pictures.dataset(self.o.resolution))
        before, self.by_heart = self.by_heart, shown > variety.OFTEN and (
            self.by_heart or variety.is_by_heart(line["real_signs"], shown))
        if self.by_heart and not before:
            self._write(variety.by_heart(line["real_signs"], shown, self.o))
        self.tick_started, self.nimg_at_tick = self.now, self.nimg

    def _keep(self, finished):
        """checkpoint-R.pt of a resolution that is finished, and then checkpoint.pt.

        In this order: a run that is killed between the two goes on from the old checkpoint.pt, and
        writes both again. In the other order, checkpoint-R.pt would never be written.
        Proved: tests/test_run.py::test_a_run_that_is_killed_between_two_files_writes_both
        """
        state = {
            "settings": self.o.settings, "options": self.o.typed,
            "generator": self.G.state_dict(), "generator_ema": self.G_ema.state_dict(),
            "discriminator": self.D.state_dict(), "optimizer_g": self.G_opt.state_dict(),
            "optimizer_d": self.D_opt.state_dict(), "samples": self.samples,
            "progress": {"nimg": self.nimg, "step": self.step,
                         "resolution": self.stage.resolution, "phase": self._phase(),
                         "alpha": self.grown, "steps_since_tick": self.steps_since_tick,
                         "collapsed": self.collapsed, "by_heart": self.by_heart,
                         "augment_strength": self.strength.item(),
                         "pictures_since": self.pictures_since,
                         "sums": self.sums, "pictures": self.pictures.source.stamp,
                         "contents": self.pictures.contents, "split": self.pictures.split}}
        try:
            if finished:
                checkpoints.save_checkpoint(
                    self.folder / f"checkpoint-{self.stage.resolution}.pt", state)
            checkpoints.save_checkpoint(self.folder / "checkpoint.pt", state)
        except OSError as error:
            self._close()
            options.fail("train.py", f"cannot write a checkpoint ({options.sentence_of(error)})", 1)

    def _measure(self, alpha):
        """The chief measures, on copies, while the others wait for it in the next step.

        Proved: tests/test_run.py::test_a_run_that_is_measured_ends_with_the_bits_of_one_that_is_not
        """
        import evaluate                                        # which guards each measurement
        began = time.perf_counter()
        for record in self.measure(self.stage.resolution, alpha, self.grown, self.nimg,
                                   self.folder):
            evaluate.append_line(self.folder / "metrics.jsonl", record)
            self._draw("add_scalar", f"metrics/{record['metric']}", record["value"], self.nimg)
            error = f" +- {record['error']:.2g}" if record["error"] else ""
            self._write(f"{self.nimg / 1000:8.1f} kimg  {record['metric']} {record['value']:.4g}"
                        + error)
        took = time.perf_counter() - began                     # is no time of training
        self.started, self.tick_started = self.started + took, self.tick_started + took

    def _phase(self):
        return self.o.growth if self.stage.growing else "stabilize"

    def _write(self, line):
        try:
            self.bar.write(line, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:                                # `| head`: as after Ctrl-C
            options.nobody_reads()
            self.stop.signal = self.stop.signal or 13          # SIGPIPE
        except OSError:                                        # stdout is a file on a full disk
            pass

    def _try(self, what, write, *args, **more):
        """write(...), or say once that it cannot be done, and go on.

        Proved: tests/test_run.py::test_what_the_disk_does_not_take_ends_no_run
        """
        try:
            write(*args, **more)
        except OSError as error:
            with contextlib.suppress(OSError):                 # stderr may be on the same disk
                print(f"note: {what} cannot be written ({options.sentence_of(error)}); the run "
                      f"goes on", file=sys.stderr)
            self.unwritten.add(what)
            if what == "TensorBoard's file":
                self.board = None

    def _draw(self, method, *args, **more):
        if self.board:
            self._try("TensorBoard's file", getattr(self.board, method), *args, **more)

    def _how_to_go_on(self):
        kept = self._newest()
        if kept is None:
            return "; there is no checkpoint to go on from"
        return f"; to go on: {options.go_on(kept, device=self.o.asked_device)}"

    def _newest(self):
        """The checkpoint to go on from, or None. It is this run's own: one from which it has begun
        (--resume other.pt --out new) would go on in the other's folder, with its pictures.

        Proved: tests/test_run.py::test_a_run_is_never_sent_into_the_folder_of_another
        """
        kept = self.folder / "checkpoint.pt"
        return kept if kept.exists() else None

    def _close(self):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.bar.close()
        self._draw("close")
        threading.excepthook = threading.__excepthook__
        if self.folder:
            machine.unlock(self.folder / options.LOCK)

    def finish(self):
        """Say how it ended. Returns the exit code: 0; 1 after NaN; 130, 143 after a signal."""
        self._close()
        if self.failed:
            code = 1
        elif self.stopped and self.nimg < self.total:
            code = 128 + (self.stop.signal or signal.SIGTERM)  # 130 Ctrl-C, 143 SIGTERM, as a shell
        else:
            code = 0
        if self.team.chief:
            options.how_to_go_on.clear()
            kept = self._newest()
            if self.failed:
                print(f"train.py: a loss, or a weight, is no longer finite (noticed at step "
                      f"{self.step}, {self.nimg / 1000:g} kimg, {self.stage.resolution} px "
                      f"{self._phase()}, alpha {self.grown:.2f}). "
                      + (f"{kept} is from before that: resume it" if kept else "Start again") +
                      " with a smaller --learning-rate or a larger --r1-gamma.", file=sys.stderr)
            elif code:
                print(f"stopped at {self.nimg / 1000:g} kimg{self._how_to_go_on()}")
            else:
                print(f"done: {self.folder / 'samples' / f'{self.nimg:09d}.png'}, {kept}")
        return self.team.leave(code)


def _quiet_thread(args):
    """A thread of TensorBoard that cannot write: `Run._draw` says so."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def load_adam(optimizer, state):
    """`load_state_dict`, but what belongs to the machine and not to the run stays as it is.

    Why:    a checkpoint of a Mac says that Adam is not to be fused; on a GPU it would then take
            hundreds of small kernels a step.
    Proved: tests/test_run.py::test_adams_flags_follow_the_device_and_not_the_checkpoint
    """
    groups = [{**group, **{key: own[key] for key in ("fused", "foreach", "capturable")}}
              for group, own in zip(state["param_groups"], optimizer.param_groups)]
    # Before loading, since torch puts the count of steps where these flags want it.
    optimizer.load_state_dict({**state, "param_groups": groups})
