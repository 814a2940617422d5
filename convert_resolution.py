"""convert_resolution.py: a checkpoint of one resolution becomes one of another.
                                                                       (6th in the reading order)

    python convert_resolution.py small.pt 1024                     new blocks from scratch
    python convert_resolution.py small.pt 1024 --donor large.pt    new blocks from another network
    python convert_resolution.py large.pt 256                      the top cut off
    python train.py --resume small-to-1024.pt                      goes on from there

Read before: stylegan_models.py, stylegan_layers.py.     Read next: morph.py
Paper:   Karras et al. 2018, "ProGAN" (arXiv 1710.10196), section 2 and figure 2: growing.
Needs:   torch; a CPU is enough.
Letters: K styles mixed in one image; L style layers; R pixels a side; n images in the sample grid.

What does a final resolution bake into a network? Less than one would think. Blocks are named by
their own resolution, and their widths are computed from it (`channels_at`). z and w know nothing of
pixels, and one w serves any number of layers. So a 256 px network is, name by name and number by
number, the lower part of a 1024 px one. Converting is mostly a matter of which names are there.
Proved: tests/test_convert_resolution.py::test_a_small_network_is_the_lower_part_of_a_large_one

This IS baked in, and is changed here:

- The style layers, two a block. Everything with an L axis has them, which is the style rows of the
  sample grid. A style row is continued upwards by its last entry, the style of the finest layer.
- The schedule. A finished run is at its end; a new final resolution must put it in front of the
  next fade-in. The clock (nimg) goes on, since it counts what the networks have seen. The schedule
  is rewritten around it.
- The meaning of --r1-gamma. It is given as seen at the final resolution, and `r1_weight` in
  stylegan_losses.py converts it to others. The number stays, and means the new final resolution
  (of a StyleGAN2 it may change: `convert_gamma`).
- Downwards, to_rgb and from_rgb. A network of 1024 px does have a to_rgb for 256 px. But that was
  last trained when 512 px faded in, and the block below it has moved on since. So a network whose
  top was cut off makes wrong colours first, and training goes on at its new resolution.
  Proved: ::test_a_lower_to_rgb_is_not_trained_any_more

Compare: StyleGAN2 does not grow, so no fade-in hides a new block at first. G needs none: a picture
is a sum, and a new to_rgb that is 0 adds nothing. One sees the old picture enlarged, exactly. D
cannot be exact (`compare_residual_discriminators` says why). Downwards, all to_rgb are up to date,
but D only ever judged their sum, and a part of it is cut off.
Proved: ::test_a_new_to_rgb_of_0_keeps_the_picture_exactly,
        ::test_every_to_rgb_of_stylegan2_is_trained_but_only_the_sum_is_judged

Four questions have no answer in the paper. Each is an option here. experiments/convert.py trained
20 kimg more with each (painted faces, 16 to 32 px). The numbers are FD-EffLite0, FID's formula with
a small network (evaluate.py); smaller is better; means of three seeds (table: docs/results.md):

  the large blocks    from scratch: 118. --donor: 77. A donor's blocks make sharp detail already,
                      and they understood the other network's features; both had learned the same
                      pictures there
  --discriminator     keep: 118. It knows these pictures, and G was made by it. fresh: 131. What it
                      knew is forgotten
  --learning-rate     by default that of the run: 118. Half of it: 139
  --fade-kimg         by default that of the run: 118. It is meant to protect the old blocks from
                      the new one's first gradients. But none (114) and twice as long (114) did as
                      well, within what seeds differ by
"""

import argparse
import pathlib
import re
import shutil
from typing import NamedTuple

import torch
import torch.nn.functional as F

import stylegan_models as models
from stylegan_layers import downsample_fir, upsample_fir
from workshop import UserError, check_writable, checkpoints, options
from workshop.checkpoints import CheckpointError

# [MACHINE] Memory: about twice the new file (measured with /usr/bin/time, 256 to 1024 px at the
#           paper's widths), beside what torch takes by itself. No GPU is used.

# ==== Part 1: the networks ====================================================================


def resolution_of(name):
    """The resolution of the block that a parameter belongs to; 0 for what has none (mapping)."""
    match = re.search(r"(?:blocks|to_rgb|from_rgb)\.(\d+)\.", name)
    return int(match[1]) if match else 0


class Parts(NamedTuple):
    """Where the tensors of a new state dict come from: four lists of names.

    The names in `dropped` are of the old state dict, the others of the new one.
    """
    copied: list
    donated: list
    created: list
    dropped: list


def convert_state(old, wanted, shared, donor=None):
    """(new state dict, Parts): `old` brought to the names of `wanted`, a new network's state dict.

    Each tensor comes from `old` up to the resolution `shared`; above, from `donor` or, without one,
    from `wanted`, which is freshly drawn. The very tensors are handed on, without a copy. (The only
    from_rgb of a StyleGAN2's D is missing in files of another resolution. It is drawn then.)
    Proved: tests/test_convert_resolution.py::test_every_tensor_comes_from_where_it_should,
            ::test_stylegan2s_from_rgb_is_a_donors_of_that_resolution_or_drawn
    """
    state, parts = {}, Parts([], [], [], [])
    for name, fresh in wanted.items():
        if name in old and resolution_of(name) <= shared:
            state[name] = old[name]
            parts.copied.append(name)
        elif donor is not None and name in donor:
            state[name] = donor[name]
            parts.donated.append(name)
        else:
            state[name] = fresh
            parts.created.append(name)
    parts.dropped.extend(name for name in old if name not in wanted)
    return state, parts


def silence_new_to_rgb(G, above):
    """Let the blocks of a new StyleGAN2 above the resolution `above` add nothing to the picture.

    Compare: in StyleGAN, alpha does this. A to_rgb of 0 has a gradient, and so it moves in the
            first step; the block before it, in the second.
    A donor's to_rgb stays as it is: a network that gets back what was cut off is itself again.
    Proved: tests/test_convert_resolution.py::test_a_silent_block_wakes_in_two_steps,
            ::test_cut_and_completed_by_itself_stylegan2_is_itself_again
    """
    for r, layer in G.synthesis.to_rgb.items():
        if int(r) > above:
            torch.nn.init.zeros_(layer.weight)                 # the bias of a new one is 0


def convert_adam(optimizer, old_network, new_network, copied):
    """Adam's state dict for the new network: the moments of the `copied` parameters, no others.

    Why:    Adam numbers its parameters in the order of network.parameters(). A new block shifts the
            numbers of all that come after it, so moments are matched by name. A parameter without
            moments gets its own at its first step, with a step count of its own.
    Errors: KeyError, TypeError, IndexError for what is no state of an Adam.
    Proved: tests/test_convert_resolution.py::test_adams_moments_follow_their_parameters
    """
    group, = optimizer["param_groups"]
    old_number = {name: k for k, (name, _) in enumerate(old_network.named_parameters())}
    if len(group["params"]) != len(old_number):
        raise KeyError("params")
    new_names = [name for name, _ in new_network.named_parameters()]
    state = {new: optimizer["state"][old_number[name]] for new, name in enumerate(new_names)
             if name in copied and old_number[name] in optimizer["state"]}
    return {"state": state, "param_groups": [{**group, "params": list(range(len(new_names)))}]}


def convert_samples(samples, resolution):
    """The sample grid for another resolution: z stays, style rows grow or shrink, fewer if large.

    Why:    one can then watch the same face before and after, image by image.
    Shapes: z [n, K, latent]; style_index [n, L]. There are no more columns and rows than train.py
            gives its own grid at that resolution. The last row, whose styles are mixed, stays last.
    Proved: tests/test_convert_resolution.py::test_the_sample_grid_shows_the_same_faces
    """
    columns, layers = samples["columns"], models.num_style_layers(resolution)
    n = len(samples["z"]) // columns * columns
    number = torch.arange(n).view(-1, columns)                             # [rows, columns]
    wide = min(columns, max(2, 4096 // resolution))
    high = min(len(number), max(2, 2048 // resolution))
    kept = torch.cat([number[:high - 1], number[-1:]])[:, :wide].flatten()
    rows = samples["style_index"][kept]                                    # [n', L]
    missing = max(0, layers - rows.shape[1])
    rows = torch.cat([rows, rows[:, -1:].expand(-1, missing)], dim=1)[:, :layers]
    return {"z": samples["z"][kept], "style_index": rows.contiguous(), "columns": wide}


# ==== Part 2: the schedule ====================================================================
#
# train.py has no entry "I am in a fade-in". It computes where it is from the clock and from the
# lengths of all phases so far (`plan_stages`), every time it starts. So a run is moved to another
# place by changing these lengths, and by nothing else.


def from_here_on(before, since, after):
    """A table that is `before` up to the resolution `since` and `after` above it.

    Why:    changing the length of a phase that is over would move the run to another place.
    Proved: tests/test_convert_resolution.py::test_a_run_in_the_middle_keeps_its_place
    """
    kept = {r: value for r, value in before.items() if r <= since}
    kept.setdefault(min([*before, since]), before[since])
    later = {r: value for r, value in after.items() if r > 2 * since}
    return options.Table({**kept, 2 * since: after[2 * since], **later})


def convert_schedule(run, progress, old, new, fade_kimg=None, learning_rate=None):
    """(options, progress) with which train.py goes on at the right point.

    run:    the options of the old run, as they are in its checkpoint.
    Three cases:
    - A run in the middle of growing, at a resolution that both networks have. Nothing is moved; it
      only ends at another resolution.
    - Upwards, from the final resolution. The fade-in of the first new block begins at this nimg. In
      the words of train.py's options: begin at the old resolution, "stabilize" it for all images
      seen so far, then fade.
    - Downwards: begin at the new resolution, and go on there for another stabilizing phase.
    Upwards a new block is random or a donor's, so it is faded in, also where a run had morphed.
    Units:  fade_kimg, learning_rate: tables, or None for the run's own. (In the middle of a run
            that grows by morphing, fade_kimg stands in for its --morph-kimg.)
    Errors: KeyError, TypeError, ValueError for options that train.py did not write.
    Proved: tests/test_convert_resolution.py::test_the_resumed_run_begins_with_the_fade_in,
            ::test_a_run_in_the_middle_keeps_its_place,
            ::test_a_run_that_ended_in_a_fade_goes_on_with_it
    """
    nimg, now, phase = progress["nimg"], progress["resolution"], progress["phase"]
    initial, alpha = run["initial_resolution"], progress["alpha"]
    if now is None:                                    # a run that was kept before its first step
        now, phase = initial, "stabilize"
    upwards = new > now == old and phase == "stabilize"
    growth = "fade" if upwards else run.get("growth", "fade")
    fades, stays = (options.read_table(run[key]) for key in (f"{growth}_kimg", "stabilize_kimg"))
    kimg, total = nimg / 1000, float(run["total_kimg"])
    above = [r for r in models.resolutions_up_to(new) if r > now]
    fades = from_here_on(fades, now, fade_kimg or fades)

    # Where the run stands (`now`) decides, not what its networks could do: a run towards 1024 px,
    # kept at 16 px and turned towards 256 px, has lost nothing that it had learned.
    if now > new or (now == new and phase == "stabilize"):                 # downwards
        # As long as at the old final resolution: entries below it may be what this program wrote.
        initial, stays = new, options.Table({new: stays[old]})
        total = kimg + stays[new]
        now, phase, alpha = new, "stabilize", 1.0
    elif upwards:
        initial, stays = old, options.Table({old: kimg, **{r: stays[r] for r in above}})
        total = kimg + sum(fades[r] + stays[r] for r in above)
        now, phase, alpha = 2 * old, "fade", 0.0
        if round(1000 * fades[now]) == 0:              # a stage without length is left out
            phase, alpha = "stabilize", 1.0
    else:                                                                  # in the middle
        grown = [r for r in models.resolutions_up_to(new) if r >= initial]
        total = max(total, sum(stays[r] for r in grown) + sum(fades[r] for r in grown[1:]))

    run = {**run, "resolution": new, "initial_resolution": initial, "growth": growth,
           "freeze_d": None,                           # new blocks have to learn
           f"{growth}_kimg": options.show(fades), "stabilize_kimg": options.show(stays),
           "total_kimg": total}
    if learning_rate is not None:
        run["learning_rate"] = options.show(learning_rate)
    # The sums since the last status line are those of another network by now.
    progress = {**progress, "resolution": now, "phase": phase, "alpha": alpha,
                "steps_since_tick": 0, "sums": torch.zeros_like(progress["sums"])}
    return run, progress


def convert_gamma(run, old, new):
    """--r1-gamma of a StyleGAN2, as it is typed, for another final resolution.

    If it is the heuristic's (`heuristic_gamma` in workshop/options.py), it follows it, and grows
    with R^2. Any other was chosen by somebody, and stays. (None is the heuristic, too:
    train.py works it out.)
    Proved: tests/test_convert_resolution.py::test_only_a_gamma_of_the_heuristic_follows_it
    """
    batch = options.read_table(run["batch"], int)
    before, after = (options.show(options.heuristic_gamma(r, max(1, batch[r]))) for r in (old, new))
    return after if run["r1_gamma"] == before else run["r1_gamma"]


def convert_single_stage(run, progress, old, new, fade_kimg=None, learning_rate=None):
    """`convert_schedule` for StyleGAN2.

    Compare: there is one stage, without an end, so the clock is right as it is. --total-kimg: as
            many images more as a StyleGAN would get, by the run's own --fade-kimg and
            --stabilize-kimg (our choice, not measured), unless it ends later anyway. fade_kimg is
            refused by `main`. G's path_length_mean stays: the lengths of an enlarged picture are a
            little smaller (about 0.85 times, 16 to 32 px), and the mean follows them.
    Proved: tests/test_convert_resolution.py::test_a_stylegan2_goes_on_in_one_stage,
            ::test_path_lengths_of_an_enlarged_picture_are_a_little_smaller
    """
    fades, stays = (options.read_table(run[key]) for key in ("fade_kimg", "stabilize_kimg"))
    above = [r for r in models.resolutions_up_to(new) if r > old]
    more = sum(fades[r] + stays[r] for r in above) if above else stays[new]
    run = {**run, "resolution": new, "initial_resolution": new, "freeze_d": None,
           "r1_gamma": convert_gamma(run, old, new),
           "total_kimg": max(float(run["total_kimg"]), progress["nimg"] / 1000 + more)}
    if learning_rate is not None:
        run["learning_rate"] = options.show(learning_rate)
    progress = {**progress, "resolution": new, "phase": "stabilize", "alpha": 1.0,
                "steps_since_tick": 0, "sums": torch.zeros_like(progress["sums"])}
    return run, progress


def carry_run(path, checkpoint, result, schedule, networks, copied):
    """Add to `result`, a new checkpoint, what train.py needs beside networks, if there is a run.

    schedule: a function (options, progress) -> (options, progress) of the new run.
    networks: {"generator": (old, new), "discriminator": (old, new)}, whose parameters Adam numbers.
    copied:   {"generator": names, "discriminator": names}: the parameters that keep their moments.
    Errors:   CheckpointError. `load_checkpoint` has looked at the networks only; what a file says
              about its run may be anything, and is found out here.
    """
    if not checkpoints.resumable(checkpoint):
        return
    try:
        run, result["progress"] = schedule(checkpoint["options"], checkpoint["progress"])
        result["options"] = {**run, **{key: result["settings"][key] for key in models.SETTINGS}}
        for key, part in (("optimizer_g", "generator"), ("optimizer_d", "discriminator")):
            result[key] = convert_adam(checkpoint[key], *networks[part], copied[part])
        result["samples"] = convert_samples(checkpoint["samples"], result["settings"]["resolution"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: what it says about its run is incomplete "
                              f"({type(error).__name__}: {error})") from None


# ==== Part 3: the proof =======================================================================
#
# Renaming and reordering are easily done nearly right. So the program does not ask to be believed:
# it runs the old networks and the new ones on the same z, and writes nothing if they differ.
# Proved: tests/test_convert_resolution.py::test_the_program_proves_it_before_it_writes


class Difference(NamedTuple):
    """The largest difference between an old and a new result, and the largest old value."""
    what: str
    largest: float
    scale: float
    exact: bool | None         # must it be 0? None: it is only told

    @property
    def good(self):
        if self.exact is None:
            return True
        # Where it need not be 0 it was 0, too, wherever this was tried. But enlarging and averaging
        # may hand a convolution its numbers in another order in memory, and a machine may add them
        # in another order then. 1e-6 is some 17 roundings of 2^-24.
        return self.largest <= (0.0 if self.exact else 1e-6 * self.scale)


def difference(what, old, new, exact):
    return Difference(what, (old - new).abs().max().item(), old.abs().max().item(), exact)


@torch.no_grad()
def compare_generators(name, old, new, z, shared):
    """The old images of `shared` px, and a list of the `Difference`s of two generators.

    At the shared resolution both do the very same operations on the very same numbers, so the
    result must be the same to the last bit. At alpha 0 of the first new block, the image is the old
    one with every pixel copied to 2x2 places.
    """
    images = old(z, noise_mode="const", resolution=shared)
    found = [difference(f"{name}, images of {shared} px", images,
                        new(z, noise_mode="const", resolution=shared), True)]
    if str(2 * shared) in new.synthesis.blocks and shared == old.synthesis.resolution:
        enlarged = F.interpolate(images, scale_factor=2, mode="nearest")
        ours = new(z, noise_mode="const", resolution=2 * shared, alpha=0.0)
        found.append(difference(f"{name}, images of {2 * shared} px at alpha 0", enlarged, ours,
                                False))
    return images, found


@torch.no_grad()
def compare_discriminators(old, new, images, shared):
    """A list of the `Difference`s of two discriminators' scores of `images`, of `shared` px.

    At alpha 0 D halves an image before it looks at it; halving what was enlarged gives the image.
    """
    scores = old(images)
    found = [difference(f"D, scores of {shared} px", scores, new(images), True)]
    if str(2 * shared) in new.blocks and shared == old.resolution:
        enlarged = F.interpolate(images, scale_factor=2, mode="nearest")
        found.append(difference(f"D, scores of {2 * shared} px at alpha 0", scores,
                                new(enlarged, alpha=0.0), False))
    return found


def resize(images, resolution):
    """images [N, 3, R, R] by StyleGAN2's FIR, as often as it takes, to [N, 3, resolution, ...]."""
    while images.shape[-1] < resolution:
        images = upsample_fir(images)
    while images.shape[-1] > resolution:
        images = downsample_fir(images)
    return images


@torch.no_grad()
def compare_skip_generators(name, old, new, z, shared, donated):
    """`compare_generators` for StyleGAN2; the images are those of the old final resolution.

    Compare: upwards, the new picture itself is the old one, enlarged by the FIR of the skips.
    Told, and not demanded: what a donor's blocks add to it; downwards, how far the new picture,
            the sum so far, is from the old one made smaller.
    """
    images, R = old(z, noise_mode="const"), new.synthesis.resolution
    found = [difference(f"{name}, images of {shared} px", *(
        network(z, noise_mode="const", resolution=shared) for network in (old, new)), True)]
    what, exact = "enlarged", False
    if R == shared:
        what, exact = "reduced (a part of the sum is cut off)", None
    elif donated:
        what, exact = "enlarged (the donor's blocks draw)", None
    found.append(difference(f"{name}, images of {R} px, to the old ones {what}",
                            resize(images, R), new(z, noise_mode="const"), exact))
    return images, found


@torch.no_grad()
def compare_residual_discriminators(old, new, images, shared):
    """`compare_discriminators` for StyleGAN2; the images are those of the old final resolution.

    Compare: in StyleGAN, alpha 0 leads past the new block, into the old from_rgb. Here from_rgb
            stands at the final resolution only, so the old one is dropped. What the old blocks see
            now comes from layers that are random, or that learned in another network. Zeros do not
            help: the old from_rgb mixed colours, and its leaky ReLU came after. In a new block the
            leaky ReLU comes before the short way. (morph.py: what solving it would take.)
    So the same FEATURES must get the same score. What became of the images' scores is told.
    Proved: tests/test_convert_resolution.py::test_stylegan2s_d_is_the_old_one_behind_its_new_layers
    """
    def through(D, x, resolutions):
        for r in resolutions:
            x = D.blocks[str(r)](x)
        return x
    blocks = models.resolutions_up_to(old.resolution)[::-1]                # R, R/2, ... 4
    kept = models.resolutions_up_to(shared)[::-1]
    x = through(old, old.from_rgb[str(old.resolution)](images), blocks[:-len(kept)])
    scores, R = through(old, x, kept), new.resolution
    ours, told = through(new, x, kept), new(resize(images, R))
    return [difference(f"D, features of {shared} px to scores", scores, ours, True),
            difference(f"D, scores of {R} px (another from_rgb)", scores, told, None)]


def with_state(network, state):
    """The network with these tensors (no copies of float32), in eval mode, w_avg standing still."""
    network.load_state_dict({name: x.float() for name, x in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


# ==== Part 4: the program =====================================================================


def check_settings(path, settings, new):
    """Raise UserError unless there is a network of `new` px with these settings' widths."""
    try:
        models.resolutions_up_to(new)
        models.channels_at(new, settings["channel_base"], settings["channel_max"])
    except ValueError as error:
        raise UserError(f"{path}: to {new} px: {error}") from None
    if new == settings["resolution"]:
        raise UserError(f"{path}: has {new} px already")


def load_donor(path, settings, new, keep):
    """The donor's checkpoint, or {} if `path` is None. Adam's moments are left out, for memory.

    keep:   is D kept? (Downwards, a StyleGAN2's D can need a from_rgb, and nothing else can.)
    Errors: UserError unless its blocks fit onto a network with `settings`.
    """
    if path is None:
        return {}
    down, kind = new < settings["resolution"], settings["architecture"]
    if down and not (kind == "stylegan2" and keep):
        raise UserError(f"--donor: there is nothing to donate from {settings['resolution']} down "
                        f"to {new} px")
    donor = checkpoints.load_checkpoint(path)
    theirs = donor["settings"]
    if theirs["architecture"] != kind:
        raise CheckpointError(f"{path}: a donor that is a {theirs['architecture']} does not fit "
                              f"onto a {kind}")
    if down and (theirs["resolution"] != new or "discriminator" not in donor):
        raise CheckpointError(f"{path}: has no D of {new} px, whose from_rgb could be donated")
    if theirs["resolution"] < new:
        raise CheckpointError(f"{path}: a donor of {theirs['resolution']} px has no blocks for "
                              f"{new} px")
    for key in ("channel_base", "channel_max", "style_dim", "conv_clamp"):
        if theirs.get(key) != settings.get(key):
            raise CheckpointError(f"{path}: a donor with {key} {theirs.get(key)} does not fit onto "
                                  f"a network with {settings.get(key)}")
    return {key: value for key, value in donor.items() if not key.startswith("optimizer")}


def check_out(out, inputs):
    """Raise UserError unless `out` can be written without loss."""
    if any(out.exists() and path.exists() and out.samefile(path) for path in inputs):
        raise UserError(f"--out {out}: is what the conversion reads; name another file")
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out}: exists already; name another file, or delete it first")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    check_writable(out)


def bytes_of(value):
    """The memory of all tensors in nested dicts; a tensor that occurs twice is stored once."""
    seen = {}

    def collect(value):
        if isinstance(value, torch.Tensor):
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for item in value.values():
                collect(item)
    collect(value)
    return sum(seen.values())


def summary(name, parts, old, new):
    """One line: how many numbers were copied, donated, created and dropped, and where."""
    def count(names, state):
        numbers = sum(state[n].numel() for n in names)
        levels = sorted({resolution_of(n) for n in names} - {0})
        span = f", {levels[0]}..{levels[-1]} px" if len(levels) > 1 else (
            f", {levels[0]} px" if levels else "")
        return f"{numbers / 1e6:.3g} M{span}" if names else "none"
    line = f"{name:14s} copied {count(parts.copied, old)}"
    if parts.donated:
        line += f"; from the donor {count(parts.donated, new)}"
    line += f"; created {count(parts.created, new)}; dropped {count(parts.dropped, old)}"
    return line


def write_converted(program, path, out, result, before, after, lines, wrong=None):
    """The end of this program and of morph.py: write `result` to `out`, and say what was done.

    wrong:  what the proof found, a sentence, or None. Then nothing is written, and the exit code is
            1: what was asked for was possible, and the program failed at it.
    lines:  what to print once the file is there; before, after: the resolutions that it names.
    Errors: UserError if the disk has no room, before anything is written.
    """
    if wrong:
        options.fail(program, f"{wrong}, so nothing was written", 1)
    # The 2^20 are for names, numbers and what else torch.save writes beside the tensors.
    needed, free = bytes_of(result) + 2 ** 20, shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(f"--out {out}: needs {needed / 1e6:.3g} MB, and the disk has "
                        f"{free / 1e6:.3g} MB left")
    checkpoints.save_checkpoint(out, result)
    print("\n".join(lines))
    print(f"{path}: {before} px, {path.stat().st_size / 1e6:.1f} MB -> {out}: {after} px, "
          f"{out.stat().st_size / 1e6:.1f} MB")
    if checkpoints.resumable(result):
        progress = result["progress"]
        data = result["options"].get("data")
        if data and checkpoints.in_its_own_run(out, result):   # where train.py believes it
            data = None
        elif data and not checkpoints.in_its_own_run(path, result):
            data = "photos/"
        print(f"{options.go_on(out, data)}\n  goes on at {progress['nimg'] / 1000:g} kimg, "
              f"{progress['resolution']} px {progress['phase']}, and ends at "
              f"{result['options']['total_kimg']:g} kimg (--total-kimg)")
    else:
        print("it holds networks to look at, and no run that train.py could resume")


def parse_args(argv=None):
    """The options, as `--help` explains them."""
    parser = options.OneLineParser(
        prog="convert_resolution.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Turn a checkpoint into one of another resolution, larger or smaller, ready\n"
                    "for python train.py --resume.",
        epilog="Upwards, the resumed run begins with the fade-in of the first new block, where\n"
               "the new network makes exactly the old one's pictures. Downwards, it goes on at\n"
               "the new resolution. (A StyleGAN2 does so either way. Its new blocks add nothing\n"
               "to the pictures at first.) Options of train.py can be given when resuming, for\n"
               "instance --data, --batch or --total-kimg.")
    table = options.table_of(float)
    parser.add_argument("model", metavar="MODEL", type=pathlib.Path, help="the checkpoint")
    parser.add_argument("resolution", metavar="R", type=options.number_from(1),
                        help="the new final side in pixels, a power of two")
    parser.add_argument("--donor", metavar="MODEL", type=pathlib.Path,
                        help="take the new blocks from this checkpoint, of R px or more and with "
                             "the same widths (default: drawn at random); only a StyleGAN2 of "
                             "just R px has the from_rgb that D needs, too")
    parser.add_argument("--discriminator", choices=("keep", "fresh"), default="keep",
                        help="keep what D has learned, or begin with a new one (default keep)")
    parser.add_argument("--learning-rate", metavar="TABLE", type=table,
                        help="of the resumed run (default: as before)")
    parser.add_argument("--fade-kimg", metavar="TABLE", type=table,
                        help="thousands of images to fade each new block in (default: as before)")
    parser.add_argument("--seed", metavar="N", type=options.number_from(0, int, 2 ** 62), default=0,
                        help="for the new blocks (default 0)")
    parser.add_argument("--out", metavar="PATH", type=pathlib.Path,
                        help="the new checkpoint; must not exist (default MODEL-to-R.pt)")
    return parser.parse_args(argv)


def main(argv=None):
    """Load, convert, prove, write. Returns the exit code."""
    typed = parse_args(argv)
    path, new, keep = typed.model, typed.resolution, typed.discriminator == "keep"
    out = typed.out or path.parent / f"{path.stem}-to-{new}.pt"

    # ---- 1. What is there, and can it be done? ----
    check_out(out, [path] + ([typed.donor] if typed.donor else []))
    checkpoint = checkpoints.load_checkpoint(path)
    settings = checkpoint["settings"]
    old = settings["resolution"]
    check_settings(path, settings, new)
    donor = load_donor(typed.donor, settings, new, keep)
    stylegan2 = settings["architecture"] == "stylegan2"
    if stylegan2 and typed.fade_kimg:
        raise UserError(f"--fade-kimg: {path} is a StyleGAN2, and nothing fades in there")
    new_settings, shared = {**settings, "resolution": new}, min(old, new)

    # ---- 2. The networks: G and its average, and D ----
    # Blocks that are drawn are the same in both: the average of what has not made a step is itself.
    # A donor's are those of its own G and average. One G and one old_G serve for both in turn,
    # which saves the memory of a second pair.
    torch.manual_seed(typed.seed)
    G, old_G = models.make_generator(new_settings), models.make_generator(settings)
    if stylegan2:
        silence_new_to_rgb(G, old)
    wanted, networks = G.state_dict(), {"generator": (old_G, G)}
    result, copied, lines, differences, images = {"settings": new_settings}, {}, [], [], []
    z = torch.randn(1, settings["latent_dim"])
    for part, name in (("generator", "G"), ("generator_ema", "G_ema")):
        if part not in checkpoint:
            continue
        state, parts = convert_state(checkpoint[part], wanted, shared,
                                     donor.get(part, donor.get("generator_ema")))
        result[part], copied[part] = state, set(parts.copied)
        wanted = state                 # the same new blocks again; what else was drawn is let go
        lines.append(summary(name, parts, checkpoint[part], state))
        with_state(old_G, checkpoint[part]), with_state(G, state)
        image, found = (compare_generators(name, old_G, G, z, shared) if not stylegan2 else
                        compare_skip_generators(name, old_G, G, z, shared, bool(parts.donated)))
        images.append(image)
        differences += found
    if "discriminator" in checkpoint:
        D, old_D = models.make_discriminator(new_settings), models.make_discriminator(settings)
        networks["discriminator"] = old_D, D
        state, parts = convert_state(checkpoint["discriminator"], D.state_dict(),
                                     shared if keep else -1,
                                     donor.get("discriminator") if keep else None)
        result["discriminator"], copied["discriminator"] = state, set(parts.copied)
        lines.append(summary("D", parts, checkpoint["discriminator"], state))
        with_state(old_D, checkpoint["discriminator"]), with_state(D, state)
        # D sees the images of G and of its average as one batch, for its minibatch stddev.
        if keep:
            compare = compare_residual_discriminators if stylegan2 else compare_discriminators
            differences += compare(old_D, D, torch.cat(images), shared)

    # ---- 3. What a run needs beside its networks ----
    schedule = convert_single_stage if stylegan2 else convert_schedule
    carry_run(path, checkpoint, result,
              lambda run, progress: schedule(run, progress, old, new, typed.fade_kimg,
                                             typed.learning_rate),
              networks, copied)
    if stylegan2 and "options" in result:
        before, after = (file["options"]["r1_gamma"] or "heuristic"
                         for file in (checkpoint, result))
        lines.append(f"--r1-gamma     {before} for {old} px -> {after} for {new} px")

    # ---- 4. The proof, before anything is written ----
    wrong = next((f"{found.what} differ by {found.largest:.2g} of {found.scale:.2g}: the "
                  f"conversion would change the networks"
                  for found in differences if not found.good), None)
    lines.append("largest difference, before to after:")
    lines += [f"  {found.what}: {found.largest:.3g} (largest value {found.scale:.3g})"
              for found in differences]
    if not keep and "discriminator" in checkpoint:
        lines.append("  D: fresh, nothing to compare")
    write_converted("convert_resolution.py", path, out, result, old, new, lines, wrong)
    return 0


if __name__ == "__main__":
    options.start(main, "convert_resolution.py", "stopped; nothing was written")
