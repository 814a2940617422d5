"""foreign_names.py: state dicts of other PyTorch programs, renamed and turned.   (workshop)

Used by: import_checkpoint.py.
Needs:   torch, numpy. Importing this file reads no file, no argv, no clock.
Letters: R resolution; i counts resolutions upwards, 0 is 4 px; j downwards, 0 is the largest; k
         counts mapping layers.

Three programs whose files people have. Names and layouts are facts of their public code:
  genforce     StyleGAN: genforce/genforce, models/stylegan_generator.py, stylegan_discriminator.py
  lernapparat  StyleGAN: lernapparat/lernapparat, style_gan/pytorch_style_gan.ipynb; G only
  rosinality   StyleGAN2: rosinality/stylegan2-pytorch, model.py, convert_weight.py

All three scale their weights at run time, as we do, the mapping network by 0.01. All add a bias
after the blur, and one noise map to all channels. So every number is taken as it is stored; only
up-convolutions may lie turned.
Proved: tests/test_import_others.py::test_genforce_files_give_genforces_images_and_scores,
        ::test_lernapparats_files_give_its_images,
        ::test_rosinalitys_files_give_its_images_and_scores
"""

import math
import re
import reprlib
from typing import NamedTuple

import numpy as np
import torch

import stylegan_models as models
from workshop.pickles import Named, Unreadable, array_of

# ---- 1. The tables ---------------------------------------------------------------------------
#
# A line: our name, theirs, and how it lies there, if not as here:
#   turned    by 180 degrees. rosinality's program sets a kernel down as a stamp at every input
#             pixel, where a correlation reads with it
#   fused     the same from 128 px on: both StyleGAN programs follow the official rule. It is the
#             rule of `mirrored_from` in import_checkpoint.py
#   121, ...  no weight but a filter, which must be this row times this column over their sum; x4:
#             times 4. We have it by heart, so it is checked and dropped.
# {R} and names with a 4 in them: see `rows_of`.

GENFORCE_GENERATOR = """
    w_avg                                     truncation.w_avg
    mapping.layers.{k}.weight                 mapping.dense{k}.weight
    mapping.layers.{k}.bias                   mapping.dense{k}.bias
    synthesis.blocks.4.const.weight           synthesis.layer0.const
    synthesis.blocks.4.const.bias             synthesis.layer0.bias
    synthesis.blocks.{R}.conv0.weight         synthesis.layer{2i}.weight                 fused
    synthesis.blocks.{R}.conv0.bias           synthesis.layer{2i}.bias
    filter.{R}                                synthesis.layer{2i}.blur.kernel            121
    synthesis.blocks.{r}.noise0.strength      synthesis.layer{2i}.apply_noise.weight
    synthesis.blocks.{r}.noise0.const         synthesis.layer{2i}.apply_noise.noise
    synthesis.blocks.{r}.adain0.style.weight  synthesis.layer{2i}.style.weight
    synthesis.blocks.{r}.adain0.style.bias    synthesis.layer{2i}.style.bias
    synthesis.blocks.{r}.conv1.weight         synthesis.layer{2i+1}.weight
    synthesis.blocks.{r}.conv1.bias           synthesis.layer{2i+1}.bias
    synthesis.blocks.{r}.noise1.strength      synthesis.layer{2i+1}.apply_noise.weight
    synthesis.blocks.{r}.noise1.const         synthesis.layer{2i+1}.apply_noise.noise
    synthesis.blocks.{r}.adain1.style.weight  synthesis.layer{2i+1}.style.weight
    synthesis.blocks.{r}.adain1.style.bias    synthesis.layer{2i+1}.style.bias
    synthesis.to_rgb.{r}.weight               synthesis.output{i}.weight
    synthesis.to_rgb.{r}.bias                 synthesis.output{i}.bias
"""
GENFORCE_DISCRIMINATOR = """
    from_rgb.{r}.weight                       input{j}.weight
    from_rgb.{r}.bias                         input{j}.bias
    blocks.{R}.conv0.weight                   layer{2j}.weight
    blocks.{R}.conv0.bias                     layer{2j}.bias
    blocks.{R}.conv1.weight                   layer{2j+1}.weight
    blocks.{R}.conv1.bias                     layer{2j+1}.bias
    filter.{R}                                layer{2j+1}.blur.kernel                    121
    blocks.4.conv.weight                      layer{2j}.weight
    blocks.4.conv.bias                        layer{2j}.bias
    blocks.4.dense0.weight                    layer{2j+1}.weight
    blocks.4.dense0.bias                      layer{2j+1}.bias
    blocks.4.dense1.weight                    layer{2j+2}.weight
    blocks.4.dense1.bias                      layer{2j+2}.bias
"""
# The weights in its files are official ones. Its notebook adds 1e-5 to the variances of AdaIN, and
# the official network 1e-8, as we do. So pictures here are the official ones, and its own are
# others where a channel is nearly flat.
# Proved: tests/test_import_others.py::test_lernapparats_files_give_its_images
LERNAPPARAT_GENERATOR = """
    w_avg                                     truncation.avg_latent
    mapping.layers.{k}.weight                 g_mapping.dense{k}.weight
    mapping.layers.{k}.bias                   g_mapping.dense{k}.bias
    synthesis.blocks.4.const.weight           g_synthesis.blocks.4x4.const
    synthesis.blocks.4.const.bias             g_synthesis.blocks.4x4.bias
    synthesis.blocks.4.conv1.weight           g_synthesis.blocks.4x4.conv.weight
    synthesis.blocks.4.conv1.bias             g_synthesis.blocks.4x4.conv.bias
    synthesis.blocks.{R}.conv0.weight         g_synthesis.blocks.{R}x{R}.conv0_up.weight fused
    synthesis.blocks.{R}.conv0.bias           g_synthesis.blocks.{R}x{R}.conv0_up.bias
    filter.{R}                        g_synthesis.blocks.{R}x{R}.conv0_up.intermediate.kernel  121
    synthesis.blocks.{R}.conv1.weight         g_synthesis.blocks.{R}x{R}.conv1.weight
    synthesis.blocks.{R}.conv1.bias           g_synthesis.blocks.{R}x{R}.conv1.bias
    synthesis.blocks.{r}.noise0.strength      g_synthesis.blocks.{r}x{r}.epi1.top_epi.noise.weight
    synthesis.blocks.{r}.adain0.style.weight  g_synthesis.blocks.{r}x{r}.epi1.style_mod.lin.weight
    synthesis.blocks.{r}.adain0.style.bias    g_synthesis.blocks.{r}x{r}.epi1.style_mod.lin.bias
    synthesis.blocks.{r}.noise1.strength      g_synthesis.blocks.{r}x{r}.epi2.top_epi.noise.weight
    synthesis.blocks.{r}.adain1.style.weight  g_synthesis.blocks.{r}x{r}.epi2.style_mod.lin.weight
    synthesis.blocks.{r}.adain1.style.bias    g_synthesis.blocks.{r}x{r}.epi2.style_mod.lin.bias
    synthesis.to_rgb.{last}.weight            g_synthesis.torgb.weight
    synthesis.to_rgb.{last}.bias              g_synthesis.torgb.bias
"""
ROSINALITY_GENERATOR = """
    w_avg                                     latent_avg
    mapping.layers.{k}.weight                 style.{k+1}.weight
    mapping.layers.{k}.bias                   style.{k+1}.bias
    synthesis.blocks.4.const                  input.input
    synthesis.blocks.4.conv1.weight           conv1.conv.weight
    synthesis.blocks.4.conv1.bias             conv1.activate.bias
    synthesis.blocks.4.conv1.style.weight     conv1.conv.modulation.weight
    synthesis.blocks.4.conv1.style.bias       conv1.conv.modulation.bias
    synthesis.blocks.4.conv1.noise.strength   conv1.noise.weight
    synthesis.blocks.4.conv1.noise.const      noises.noise_0
    synthesis.to_rgb.4.weight                 to_rgb1.conv.weight
    synthesis.to_rgb.4.bias                   to_rgb1.bias
    synthesis.to_rgb.4.style.weight           to_rgb1.conv.modulation.weight
    synthesis.to_rgb.4.style.bias             to_rgb1.conv.modulation.bias
    synthesis.blocks.{R}.conv0.weight         convs.{2i-2}.conv.weight                   turned
    synthesis.blocks.{R}.conv0.bias           convs.{2i-2}.activate.bias
    synthesis.blocks.{R}.conv0.style.weight   convs.{2i-2}.conv.modulation.weight
    synthesis.blocks.{R}.conv0.style.bias     convs.{2i-2}.conv.modulation.bias
    synthesis.blocks.{R}.conv0.noise.strength convs.{2i-2}.noise.weight
    synthesis.blocks.{R}.conv0.noise.const    noises.noise_{2i-1}
    filter.{R}.up                             convs.{2i-2}.conv.blur.kernel              1331x4
    synthesis.blocks.{R}.conv1.weight         convs.{2i-1}.conv.weight
    synthesis.blocks.{R}.conv1.bias           convs.{2i-1}.activate.bias
    synthesis.blocks.{R}.conv1.style.weight   convs.{2i-1}.conv.modulation.weight
    synthesis.blocks.{R}.conv1.style.bias     convs.{2i-1}.conv.modulation.bias
    synthesis.blocks.{R}.conv1.noise.strength convs.{2i-1}.noise.weight
    synthesis.blocks.{R}.conv1.noise.const    noises.noise_{2i}
    synthesis.to_rgb.{R}.weight               to_rgbs.{i-1}.conv.weight
    synthesis.to_rgb.{R}.bias                 to_rgbs.{i-1}.bias
    synthesis.to_rgb.{R}.style.weight         to_rgbs.{i-1}.conv.modulation.weight
    synthesis.to_rgb.{R}.style.bias           to_rgbs.{i-1}.conv.modulation.bias
    filter.{R}.rgb                            to_rgbs.{i-1}.upsample.kernel              1331x4
"""
ROSINALITY_DISCRIMINATOR = """
    from_rgb.{last}.weight                    convs.0.0.weight
    from_rgb.{last}.bias                      convs.0.1.bias
    blocks.{R}.conv0.weight                   convs.{j+1}.conv1.0.weight
    blocks.{R}.conv0.bias                     convs.{j+1}.conv1.1.bias
    filter.{R}.down                           convs.{j+1}.conv2.0.kernel                 1331
    blocks.{R}.conv1.weight                   convs.{j+1}.conv2.1.weight
    blocks.{R}.conv1.bias                     convs.{j+1}.conv2.2.bias
    filter.{R}.skip                           convs.{j+1}.skip.0.kernel                  1331
    blocks.{R}.skip.weight                    convs.{j+1}.skip.1.weight
    blocks.4.conv.weight                      final_conv.0.weight
    blocks.4.conv.bias                        final_conv.1.bias
    blocks.4.dense0.weight                    final_linear.0.weight
    blocks.4.dense0.bias                      final_linear.0.bias
    blocks.4.dense1.weight                    final_linear.1.weight
    blocks.4.dense1.bias                      final_linear.1.bias
"""


class Program(NamedTuple):
    """A program, and how its files are known.

    mark:   a name that every generator of it has, and no other program's.
    parts:  under which words its files hold the average of G, G, and D.
    """
    title: str
    architecture: str
    mark: str
    parts: tuple
    generator: str
    discriminator: str | None
    lods: tuple = ()           # where G and D say how far they have grown


PROGRAMS = (
    Program("genforce", "stylegan", "synthesis.layer0.apply_noise.weight",
            ("generator_smooth", "generator", "discriminator"),
            GENFORCE_GENERATOR, GENFORCE_DISCRIMINATOR, ("synthesis.lod", "lod")),
    Program("lernapparat", "stylegan", "g_synthesis.torgb.weight", (),
            LERNAPPARAT_GENERATOR, None),
    Program("rosinality", "stylegan2", "to_rgb1.conv.modulation.weight", ("g_ema", "g", "d"),
            ROSINALITY_GENERATOR, ROSINALITY_DISCRIMINATOR),
)
# All three stop at 1024 px and are used with 512 features. A file that claims more would make us
# draw noise maps or z of any size.
LARGEST, MOST_LAYERS, MOST_FEATURES = 1024, 100, 4096

# Names and what they tell, where it is more than "not known".
WHY_NOT = {
    r"mapping\.label_weight": "a class-conditional network: its mapping network also takes the "
                              "label, which the networks of this program have no input for",
    r"synthesis\.layer0\.weight": "a network that begins with w instead of a learned constant, "
                                  "which no network of this program does",
    r".*\.iwt\..*": "a SWAGAN: it makes wavelets instead of colours",
}


def rows_of(table, resolution, mapping_layers):
    """Yield (our name, their name, how it lies, resolution) for every array of a network.

    {r} runs over 4, 8, 16, ...; {R} over 8, 16, ...; what has neither is there once, and counts as
    4 px. {last} is the largest resolution.
    Proved: tests/test_import_others.py::test_tables_cover_every_parameter_once
    """
    resolutions = models.resolutions_up_to(resolution)
    for line in table.strip().split("\n"):
        ours, theirs, how = (line.split() + [""])[:3]
        if "{k}" in ours:
            for k in range(mapping_layers):
                yield ours.format(k=k), theirs.format(**{"k": k, "k+1": k + 1}), how, 4
            continue
        for i, r in enumerate(resolutions):
            if r == 4 and "{R}" in ours or r > 4 and not ("{R}" in ours or "{r}" in ours):
                continue
            j = len(resolutions) - 1 - i
            fields = {"r": r, "R": r, "last": resolution, "i": i, "i-1": i - 1, "2i": 2 * i,
                      "2i+1": 2 * i + 1, "2i-1": 2 * i - 1, "2i-2": 2 * i - 2, "j": j,
                      "j+1": j + 1, "2j": 2 * j, "2j+1": 2 * j + 1, "2j+2": 2 * j + 2}
            yield ours.format(**fields), theirs.format(**fields), how, r


# ---- 2. What a file holds --------------------------------------------------------------------


def items_of(value):
    """The dict that a dict, or the note of an OrderedDict, is; {} for anything else.

    A network that was spread over several GPUs has "module." before all names; it says nothing.
    """
    value = value.items if isinstance(value, Named) else value
    if not isinstance(value, dict):
        return {}
    return {str(name).removeprefix("module."): note for name, note in value.items()}


def networks_in(value):
    """(its `Program`, [state dict or None for each of the average of G, G, D]), or None.

    A state dict is {their name: note}. A generator without its average counts as the average.
    Proved: tests/test_import_others.py::test_a_generator_alone_is_for_looking
    """
    outer = items_of(value)
    outer = items_of(outer["models"]) if "models" in outer else outer      # genforce, in training
    for program in PROGRAMS:
        parts = [items_of(outer.get(part)) or None for part in program.parts] or [None] * 3
        if program.mark in outer:
            return program, [outer, None, None]
        if any(program.mark in part for part in parts[:2] if part):
            if parts[0] is None:
                parts[:2] = parts[1], None
            if "latent_avg" in outer:                          # rosinality's, for both
                parts[:2] = [part and {**part, "latent_avg": outer["latent_avg"]}
                             for part in parts[:2]]
            return program, parts
    return None


def shape_of(note):
    """The shape of a tensor's note, without its bytes."""
    note = note.args[0] if note.name == "torch._utils._rebuild_parameter" else note
    return tuple(note.args[2])


def settings_of(program, state, d):
    """Our settings, from the names and shapes of a generator and, where there is one, of its D.

    Errors: Unreadable if no settings give these shapes, or any error of notes that are no tensors.
    Proved: tests/test_import_others.py::test_widths_that_no_settings_give_are_refused
    """
    names = {ours: theirs
             for ours, theirs, _, _ in rows_of(program.generator, LARGEST, MOST_LAYERS)}
    widths = {r: shape_of(state[name])[0] for r in models.resolutions_up_to(LARGEST)
              if (name := names[f"synthesis.blocks.{r}.conv1.bias"]) in state}
    dense = [shape_of(state[name]) for k in range(MOST_LAYERS)
             if (name := names[f"mapping.layers.{k}.weight"]) in state]
    # Widths are min(2 * base // R, largest). The smallest base that is not too small for any R is
    # the right one, if there is one. D's dense layer has the width of 2 px.
    resolution = max(widths)
    if d:
        names = {row[0]: row[1] for row in rows_of(program.discriminator, resolution, 0)}
        widths[2] = shape_of(d[names["blocks.4.dense0.weight"]])[0]
    channel_max = widths.get(2, widths[4])
    channel_base = max(math.ceil(width * r / 2) for r, width in widths.items())
    if widths != {r: models.channels_at(r, channel_base, channel_max) for r in widths}:
        raise Unreadable(f"has layers of {', '.join(map(str, widths.values()))} channels, which "
                         f"no network of this program has")
    if max(map(max, dense)) > MOST_FEATURES:
        raise Unreadable(f"has mapping layers of {max(map(max, dense))} features, where "
                         f"{MOST_FEATURES} are the most that is read")
    return {"architecture": program.architecture, "resolution": resolution,
            "channel_base": channel_base, "channel_max": channel_max, "latent_dim": dense[0][1],
            "style_dim": dense[-1][0], "mapping_dim": dense[0][0], "mapping_layers": len(dense)}


# ---- 3. From their arrays to ours ------------------------------------------------------------


def is_noise_map(name):
    return "noise" in name and name.endswith(".const")


def import_state(state, rows, wanted):
    """The state dict, float32, of the names of `wanted` that the program has.

    state:  {their name: note}; what was used is taken out, so that its bytes can go.
    rows:   of `rows_of`.
    Errors: Unreadable, naming the variable.
    Proved: tests/test_import_others.py::test_what_differs_is_refused_by_name
    """
    done = {}
    for ours, theirs, how, r in rows:
        if theirs not in state:
            continue
        stored = array_of(state.pop(theirs))
        if "filter" in ours:
            check_filter(theirs, stored, how)
            continue
        # Axes of length 1 are a matter of taste: [1, O, I, 3, 3], [1, 3, 1, 1] for a bias, [1].
        shape, want = stored.shape, tuple(wanted[ours].shape)
        if [n for n in shape if n > 1] != [n for n in want if n > 1]:
            why = "; here one map is added to all channels" if "noise" in theirs else ""
            raise Unreadable(f"has {theirs} in the shape {list(shape)}, where {list(want)} is "
                             f"needed{why}")
        array = np.array(stored, dtype=np.float32).reshape(want)
        if not np.isfinite(array).all():
            raise Unreadable(f"has values in {theirs} that are not finite numbers")
        if how == "turned" or how == "fused" and r >= 128:
            array = array[:, :, ::-1, ::-1].copy()
        done[ours] = torch.from_numpy(array)
    if state:
        left = min(state, key=str)
        why = [text for pattern, text in WHY_NOT.items() if re.fullmatch(pattern, left)]
        raise Unreadable(f"holds {why[0]} ({left})" if why else
                         f"has a variable {left[:80]!r}, which no network here has")
    lacking = [theirs for ours, theirs, _, _ in rows if ours in wanted and ours not in done
               and ours != "w_avg" and not is_noise_map(ours)]
    if lacking:
        raise Unreadable(f"lacks the variable {lacking[0]}")
    return done


def check_filter(name, stored, how):
    """Raise Unreadable unless a stored filter is the row times column of `how`, "121" or "1331x4".

    Proved: tests/test_import_others.py::test_what_differs_is_refused_by_name
    """
    row, _, gain = how.partition("x")
    row = np.array([int(digit) for digit in row])
    wanted = np.outer(row, row) / row.sum() ** 2 * int(gain or 1)
    # The same filter may be there for each channel; a thousand have 2^14 numbers.
    if stored.shape[-2:] != wanted.shape or stored.size > 2 ** 16 or not np.allclose(
            stored, wanted, rtol=1e-5, atol=0):
        raise Unreadable(f"has another filter than {row.tolist()} in {name}, which no network of "
                         f"this program has")


# How many z the mean of w is taken over where a file has none: it is then off by about 1 % of the
# spread of w. Drawn with a fixed seed, so that the same file always becomes the same checkpoint.
AVERAGED = 10_000


def fill_in(state, network, lines):
    """Give a generator's state dict what its file lacks, and append a line about it to `lines`.

    network: a generator on the meta device, with the names and shapes.
    Proved: tests/test_import_others.py::test_what_a_file_lacks_is_made_and_said
    """
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in state]
    noises = [name for name in missing if is_noise_map(name)]
    draw = torch.Generator().manual_seed(0)
    for name in noises:
        state[name] = torch.randn(wanted[name].shape, generator=draw)
    if noises:
        lines.append("no noise maps in the file; here they were drawn")
    if "path_length_mean" in missing:                  # no program keeps it
        state["path_length_mean"] = torch.zeros(())
    # genforce averages parameters only, so the average of G that it trains has a w_avg of zeros.
    if not state.get("w_avg", torch.zeros(1)).any():
        mapping = network.mapping.to_empty(device="cpu")
        mapping.load_state_dict({name.removeprefix("mapping."): tensor
                                 for name, tensor in state.items() if name.startswith("mapping.")})
        z = torch.randn(AVERAGED, wanted["mapping.layers.0.weight"].shape[1], generator=draw)
        with torch.no_grad():
            state["w_avg"] = mapping(z).mean(dim=0)
        lines.append(f"no w_avg in the file, or 0; here it is the mean w of {AVERAGED:,} z")
    small = [name for name in missing if name.startswith("synthesis.to_rgb.")]
    for name in small:                                 # lernapparat's
        state[name] = torch.zeros(wanted[name].shape)
    if small:
        lines.append("no to_rgb but the last in the file; smaller pictures are grey")


# What a file of tensors, options and optimizers asks for.
# Proved: tests/test_import_others.py::test_only_names_that_such_a_file_needs_are_let_through
HARMLESS = {
    "collections.OrderedDict", "argparse.Namespace", "persistent id", "torch.FloatStorage",
    "torch.HalfStorage", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}


def import_networks(value, names, most_bytes, generator_only=False):
    """The fields of `Imported` in import_checkpoint.py for a file of one of the `PROGRAMS`.

    That is (settings, lod, state dicts of G, D and the average of G, None for what is not there,
    lines that say what else is to be known). None for any other file.
    names:  of `read_anything`. most_bytes: networks of more are refused, as one stored number may
            stand for many. generator_only: only the average of G is looked at.
    Errors: Unreadable, or any error of notes that are not what they pretend to be.
    Proved: tests/test_import_others.py::test_one_number_for_a_whole_network_is_refused
    """
    known = networks_in(value)
    if known is None:
        return None
    if names - HARMLESS:
        raise Unreadable(f"asks for {reprlib.repr(min(names - HARMLESS))}, which no such file "
                         f"needs, so nothing of it is used")
    program, parts = known
    parts = [parts[0], None, None] if generator_only else parts
    settings, lines = settings_of(program, parts[0], parts[2]), []
    with torch.device("meta"):
        G, D = models.make_generator(settings), models.make_discriminator(settings)
    # (state dict of notes, table, network) of the average of G, G and D, as far as they are there.
    kinds = (program.generator, G), (program.generator, G), (program.discriminator, D)
    jobs = [(part, [*rows_of(table, settings["resolution"], settings["mapping_layers"])], network)
            for part, (table, network) in zip(parts, kinds) if part]

    claimed = 0
    for part, rows, network in jobs:
        wanted = network.state_dict()
        claimed += sum(4 * wanted[row[0]].numel() for row in rows
                       if row[0] in wanted and row[1] in part)
    if claimed > most_bytes:
        raise Unreadable(f"claims networks of {claimed / 1e6:.0f} MB, which cannot be in a file "
                         f"of its size")
    lods = [float(array_of(part.pop(name))) for part, _, _ in jobs
            for name in program.lods if name in part] or [0.0]
    levels = len(models.resolutions_up_to(settings["resolution"]))
    if not all(abs(lod - lods[0]) <= 0.01 and 0 <= lod <= levels - 1 for lod in lods):
        raise Unreadable(f"has networks at the lods {', '.join(f'{lod:g}' for lod in lods)}, where "
                         f"{settings['resolution']} px have one of 0 to {levels - 1}")

    states = {}
    for part, rows, network in jobs:
        try:
            state = import_state(part, rows, network.state_dict())
        except Unreadable as error:
            others = "" if part is parts[0] else "; --generator-only leaves this network out"
            raise Unreadable(f"{error}{others}") from None
        if network is G:
            fill_in(state, G, lines)
        states[id(part)] = state
    if program.title == "genforce":
        lines.append("fused_scale, use_wscale and final_tanh are not in the file; genforce's "
                     "defaults are taken")
    ema, g, d = (states.get(id(part)) for part in parts)
    return settings, lods[0], g, d, ema, [*dict.fromkeys(lines)]
