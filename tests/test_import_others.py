"""workshop/foreign_names.py: genforce's, lernapparat's and rosinality's numbers out of their files.

The numbers in tests/data/other_networks.npz were computed by the public code of the three programs,
run on a CPU by PyTorch 2.14 with narrow networks in which every parameter is random. Nothing of
that code is here. What its state dicts are called and shaped is written down below, and was
compared with them; the values are drawn from seeds, so the file holds judges only.
"""

import argparse
import collections

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import import_checkpoint
import official
import stylegan_models as models
from conftest import refused, relative
from import_checkpoint import import_file
from workshop import checkpoints, foreign_names, pickles

PARITY = 1e-5                       # asked for are 1e-4
WIDE = {4: 6, 8: 6, 16: 6, 32: 6, 64: 4, 128: 2}       # resolution: channels
NARROW = {4: 6, 8: 6, 16: 6, 32: 4}


# ---- the three formats, written down ----


def mapping(name, count, z, hidden, w):
    sizes = [z] + [hidden] * (count - 1) + [w]
    return {name.format(k, part): (sizes[k + 1], sizes[k])[:2 if part == "weight" else 1]
            for k in range(count) for part in ("weight", "bias")}


def genforce_g(widths):
    shapes = {"truncation.w_avg": (5,), "synthesis.lod": ()}
    shapes |= mapping("mapping.dense{}.{}", 3, 7, 6, 5)
    for i, (r, c) in enumerate(widths.items()):
        for k in (0, 1):
            at = f"synthesis.layer{2 * i + k}."
            shapes |= {at + "bias": (c,), at + "apply_noise.noise": (1, 1, r, r),
                       at + "apply_noise.weight": (c,), at + "style.weight": (2 * c, 5),
                       at + "style.bias": (2 * c,)}
            if (r, k) == (4, 0):
                shapes[at + "const"] = (1, c, 4, 4)
            else:
                shapes[at + "weight"] = (c, c if k else widths[r // 2], 3, 3)
            if r > 4 and k == 0:
                shapes[at + "blur.kernel"] = (c, 1, 3, 3)
        shapes |= {f"synthesis.output{i}.weight": (3, c, 1, 1), f"synthesis.output{i}.bias": (3,)}
    return shapes


def genforce_d(widths):
    shapes, width = {"lod": ()}, list(widths.values())[::-1]
    for j, (c, below) in enumerate(zip(width, width[1:] + width[-1:])):
        a, b, last = f"layer{2 * j}.", f"layer{2 * j + 1}.", j == len(width) - 1
        shapes |= {f"input{j}.weight": (c, 3, 1, 1), f"input{j}.bias": (c,),
                   a + "weight": (c, c + last, 3, 3), a + "bias": (c,),
                   b + "weight": (below, 16 * c) if last else (below, c, 3, 3),
                   b + "bias": (below,)}
        if not last:
            shapes[b + "blur.kernel"] = (c, 1, 3, 3)
    end = f"layer{2 * len(width)}."
    return shapes | {end + "weight": (1, width[-1]), end + "bias": (1,)}


def lernapparat_g(widths):
    shapes = mapping("g_mapping.dense{}.{}", 3, 7, 6, 5)
    for r, c in widths.items():
        at = f"g_synthesis.blocks.{r}x{r}."
        if r == 4:
            shapes |= {at + "const": (1, c, 4, 4), at + "bias": (c,),
                       at + "conv.weight": (c, c, 3, 3), at + "conv.bias": (c,)}
        else:
            shapes |= {at + "conv0_up.weight": (c, widths[r // 2], 3, 3),
                       at + "conv0_up.bias": (c,),
                       at + "conv0_up.intermediate.kernel": (1, 1, 3, 3),
                       at + "conv1.weight": (c, c, 3, 3), at + "conv1.bias": (c,)}
        for k in (1, 2):
            shapes |= {f"{at}epi{k}.top_epi.noise.weight": (c,),
                       f"{at}epi{k}.style_mod.lin.weight": (2 * c, 5),
                       f"{at}epi{k}.style_mod.lin.bias": (2 * c,)}
    return shapes | {"g_synthesis.torgb.weight": (3, c, 1, 1), "g_synthesis.torgb.bias": (3,)}


def rosinality_g(widths):
    def modulated(at, inputs, outputs, k):
        return {at + "conv.weight": (1, outputs, inputs, k, k),
                at + "conv.modulation.weight": (inputs, 6), at + "conv.modulation.bias": (inputs,)}

    shapes = mapping("style.{}.{}", 4, 6, 6, 6)
    shapes = {name: shape for name, shape in shapes.items() if "style.0" not in name}
    shapes["input.input"] = (1, widths[4], 4, 4)
    for i, (r, c) in enumerate(widths.items()):
        for k in ((1,) if r == 4 else (0, 1)):
            at = "conv1." if r == 4 else f"convs.{2 * i - 2 + k}."
            shapes |= modulated(at, c if k else widths[r // 2], c, 3)
            shapes |= {at + "noise.weight": (1,), at + "activate.bias": (c,),
                       f"noises.noise_{2 * i - 1 + k}": (1, 1, r, r)}
            if k == 0:
                shapes[at + "conv.blur.kernel"] = (4, 4)
        at = "to_rgb1." if r == 4 else f"to_rgbs.{i - 1}."
        shapes |= modulated(at, c, 3, 1) | {at + "bias": (1, 3, 1, 1)}
        if r > 4:
            shapes[at + "upsample.kernel"] = (4, 4)
    return shapes


def rosinality_d(widths):
    width = list(widths.values())[::-1]
    shapes = {"convs.0.0.weight": (width[0], 3, 1, 1), "convs.0.1.bias": (width[0],)}
    for j, (c, below) in enumerate(zip(width, width[1:]), start=1):
        at = f"convs.{j}."
        shapes |= {at + "conv1.0.weight": (c, c, 3, 3), at + "conv1.1.bias": (c,),
                   at + "conv2.0.kernel": (4, 4), at + "conv2.1.weight": (below, c, 3, 3),
                   at + "conv2.2.bias": (below,), at + "skip.0.kernel": (4, 4),
                   at + "skip.1.weight": (below, c, 1, 1)}
    c = width[-1]
    return shapes | {"final_conv.0.weight": (c, c + 1, 3, 3), "final_conv.1.bias": (c,),
                     "final_linear.0.weight": (c, 16 * c), "final_linear.0.bias": (c,),
                     "final_linear.1.weight": (1, c), "final_linear.1.bias": (1,)}


def drawn(shapes, seed):
    """A state dict of these shapes. The order of drawing and the sizes are those of the judges."""
    rng, state = np.random.RandomState(seed), collections.OrderedDict()
    row = {3: [1, 2, 1], 4: [1, 3, 3, 1]}
    for name in sorted(shapes):
        array = rng.standard_normal(shapes[name])
        if name.endswith("lod"):
            array = np.zeros(())
        elif name.endswith("kernel"):
            f = np.array(row[shapes[name][-1]]) / sum(row[shapes[name][-1]])
            gain = 4 if "conv.blur" in name or "upsample" in name else 1       # rosinality's, up
            array = np.broadcast_to(gain * np.outer(f, f), shapes[name])
        elif "mapping." in name or name.startswith("style."):
            array = 100 * array                        # stored 100 times as large as it is used
        elif ("noise" in name or "bias" in name and "modulation" not in name) and not (
                "noises" in name or name.endswith("apply_noise.noise")):
            array = 0.5 * array
        state[name] = torch.from_numpy(np.array(array, dtype=np.float32))
    return state


def inputs(seed, z, layers, w, resolution):
    """z [2, z], ws [2, layers, w] of different w, and four pictures of different contrast."""
    rng = np.random.RandomState(seed)
    z, ws, x = [torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
                for shape in ((2, z), (2, layers, w), (4, 3, resolution, resolution))]
    return z, ws, x * torch.tensor([0.5, 1, 2, 4])[:, None, None, None]


def noise_map(seed, r):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((1, 1, r, r))).float()


@pytest.fixture(scope="module")
def judges():
    with np.load(official.DATA / "other_networks.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def crop(images, judges):
    """Of 128 px, 16 rows and columns were kept, most of them along the borders."""
    return images[:, :, judges["rows"]][:, :, :, judges["rows"]]


def genforce():
    return {"generator": drawn(genforce_g(WIDE), 11), "discriminator": drawn(genforce_d(WIDE), 2),
            "generator_smooth": drawn(genforce_g(WIDE), 1)}


def lernapparat():
    return drawn(lernapparat_g(WIDE), 4)


def rosinality():
    latent_avg = torch.from_numpy(np.random.RandomState(10).standard_normal(6)).float()
    return {"g": drawn(rosinality_g(NARROW), 17), "d": drawn(rosinality_d(NARROW), 8),
            "g_ema": drawn(rosinality_g(NARROW), 7), "latent_avg": latent_avg}


def saved(tmp_path, value, **how):
    path = tmp_path / "theirs.pth"
    torch.save(value, path, **how)
    return path


def networks_of(path):
    """(average of G, D or None, `Imported`) of a file."""
    imported = import_file(path)
    G, D = models.make_generator(imported.settings), None
    G.load_state_dict(imported.generator_ema)
    if imported.discriminator:
        D = models.make_discriminator(imported.settings)
        D.load_state_dict(imported.discriminator)
    return G.eval().requires_grad_(False), D and D.requires_grad_(False), imported


# ---- 1. their numbers ----


def test_genforce_files_give_genforces_images_and_scores(tmp_path, judges):
    """Lesson: at 128 px, since there its up-convolutions are stored turned, below not."""
    G, D, imported = networks_of(saved(tmp_path, genforce()))
    z, ws, x = inputs(3, 7, 12, 5, 128)
    image = crop(G(z, noise_mode="const"), judges)
    assert relative(image, judges["genforce_psi1"]) < PARITY
    truncated = G(z, noise_mode="const", truncation_psi=0.7, truncation_cutoff=8)
    assert relative(crop(truncated, judges), judges["genforce_psi07"]) < PARITY
    mixed = G.synthesis(ws, noise_mode="const")
    assert relative(crop(mixed, judges), judges["genforce_ws"]) < PARITY
    assert relative(D(x), judges["genforce_scores"]) < PARITY
    assert relative(image, judges["genforce_psi07"]) > 0.01                    # controls
    assert relative(D(x.flip(3)), judges["genforce_scores"]) > 1e-3
    for r in "64", "128":
        kernel = G.synthesis.blocks[r].conv0.weight
        kernel.copy_(kernel.flip(2, 3))
        assert relative(crop(G(z, noise_mode="const"), judges), judges["genforce_psi1"]) > 0.1
        kernel.copy_(kernel.flip(2, 3))


def test_a_genforce_file_of_the_middle_goes_on_where_it_stood(tmp_path, judges):
    """Lesson: lod 1.4 of 128 px is 64 px at alpha 0.6, for both networks; its training files have
    one more word around them, and a run that was on several GPUs one in front of all names."""
    file = genforce()
    for part in file.values():
        part["synthesis.lod" if "synthesis.lod" in part else "lod"].fill_(1.4)
    file = {"models": {word: {f"module.{name}": tensor for name, tensor in part.items()}
                       for word, part in file.items()},
            "running_metadata": {"iter": 3, "seen_img": 96}}
    path, out = saved(tmp_path, file), tmp_path / "ours.pt"
    G, D, imported = networks_of(path)
    assert import_checkpoint.main([str(path), str(out)]) == 0
    loaded = checkpoints.load_networks(out)
    assert (loaded.resolution, round(loaded.alpha, 5)) == (64, 0.6)
    z, _, x = inputs(3, 7, 12, 5, 128)
    image = F.interpolate(G(z, noise_mode="const", resolution=64, alpha=0.6), scale_factor=2)
    assert relative(crop(image, judges), judges["genforce_lod14"]) < PARITY
    scores = D(F.avg_pool2d(x, 2), alpha=0.6)
    assert relative(scores, judges["genforce_scores_lod14"]) < PARITY
    assert relative(D(F.avg_pool2d(x, 2)), judges["genforce_scores_lod14"]) > 1e-3     # control


def test_lernapparats_files_give_its_images(tmp_path, judges):
    """Lesson: its notebook adds 1e-5 to the variances of AdaIN, where the official network, whose
    weights these are, adds 1e-8. Ours are the pictures of the notebook with 1e-8 in its place."""
    file = lernapparat()
    file["truncation.avg_latent"] = torch.from_numpy(
        np.random.RandomState(6).standard_normal(5)).float()
    G, D, imported = networks_of(saved(tmp_path, file))
    assert D is None and imported.generator is None
    for i, r in enumerate(WIDE):                       # the file has none: those of the judges
        block = G.synthesis.blocks[str(r)]
        block.noise0.const.copy_(noise_map(100 + 2 * i, r))
        block.noise1.const.copy_(noise_map(101 + 2 * i, r))
    z, ws, _ = inputs(5, 7, 12, 5, 128)
    image = crop(G(z, noise_mode="const"), judges)
    assert relative(image, judges["lernapparat_psi1"]) < PARITY
    truncated = G(z, noise_mode="const", truncation_psi=0.7, truncation_cutoff=8)
    assert relative(crop(truncated, judges), judges["lernapparat_psi07"]) < PARITY
    mixed = G.synthesis(ws, noise_mode="const")
    assert relative(crop(mixed, judges), judges["lernapparat_ws"]) < PARITY
    assert PARITY < relative(image, judges["lernapparat_own_eps"]) < 1e-4
    assert not G(z, noise_mode="const", resolution=64).any()       # it has the last to_rgb only


def test_rosinalitys_files_give_its_images_and_scores(tmp_path, judges):
    """Lesson: all its up-convolutions are stored turned, and latent_avg lies beside the network."""
    G, D, imported = networks_of(saved(tmp_path, rosinality()))
    assert imported.settings["architecture"] == "stylegan2"
    z, ws, x = inputs(9, 6, 8, 6, 32)
    image = G(z, noise_mode="const")
    assert relative(image, judges["rosinality_psi1"]) < PARITY
    truncated = G(z, noise_mode="const", truncation_psi=0.7)
    assert relative(truncated, judges["rosinality_psi07"]) < PARITY
    assert relative(G.synthesis(ws, noise_mode="const"), judges["rosinality_ws"]) < PARITY
    assert relative(D(x), judges["rosinality_scores"]) < PARITY
    assert relative(image, judges["rosinality_psi07"]) > 0.01                  # controls
    assert relative(D(x.flip(3)), judges["rosinality_scores"]) > 1e-3
    assert relative(G.synthesis(ws.flip(1), noise_mode="const"), judges["rosinality_ws"]) > 0.1
    trained = models.make_generator(imported.settings)
    trained.load_state_dict(imported.generator)
    assert relative(trained.eval()(z, noise_mode="const"), judges["rosinality_psi1"]) > 0.1


@pytest.mark.parametrize("how", ["old", "half", "parameters", "turned around"])
def test_files_of_every_torch_give_the_same_networks(tmp_path, judges, how):
    """Lesson: how a tensor lies in the file is a matter of the writer's program, not of the net."""
    file, zipped = rosinality(), how != "old"
    for part in ("g_ema", "d"):
        for name, tensor in file[part].items():
            if how == "half":
                tensor = tensor.half()
            elif how == "parameters":
                tensor = torch.nn.Parameter(tensor)
            elif how == "turned around" and tensor.dim() == 2:
                tensor = tensor.T.contiguous().T               # stored column by column
            file[part][name] = tensor
    G, D, _ = networks_of(saved(tmp_path, file, _use_new_zipfile_serialization=zipped))
    z, _, x = inputs(9, 6, 8, 6, 32)
    tolerance = 0.01 if how == "half" else PARITY      # 11 bits a number
    assert relative(G(z, noise_mode="const"), judges["rosinality_psi1"]) < tolerance
    assert relative(D(x), judges["rosinality_scores"]) < tolerance


def test_tables_cover_every_parameter_once():
    """Lesson: a table that forgets a name would leave a random layer in a finished network."""
    filled = {"genforce": set(), "rosinality": {"path_length_mean"}}
    for program in foreign_names.PROGRAMS:
        settings = dict(architecture=program.architecture, resolution=64, channel_base=128,
                        channel_max=8, latent_dim=7, style_dim=5, mapping_dim=6, mapping_layers=3)
        for table, make in ((program.generator, models.make_generator),
                            (program.discriminator, models.make_discriminator)):
            if table is None:
                continue
            rows = [row for row in foreign_names.rows_of(table, 64, 3)]
            ours = [row[0] for row in rows if "filter" not in row[0]]
            wanted = set(make(settings).state_dict())
            assert len(set(ours)) == len(ours) and len({row[1] for row in rows}) == len(rows)
            if program.title == "lernapparat":         # which has neither, as told in `fill_in`
                wanted = {name for name in wanted if "noise" not in name or "const" not in name}
                wanted -= {name for name in wanted if "to_rgb" in name and ".64." not in name}
            elif make is models.make_generator:
                wanted -= filled[program.title]
            assert set(ours) == wanted


# ---- 2. what a file lacks ----


@pytest.mark.parametrize("whose", ["genforce", "genforce's generator", "lernapparat",
                                   "rosinality", "rosinality's average", "rosinality's G and D"])
def test_a_generator_alone_is_for_looking(tmp_path, capsys, whose):
    """Lesson: what train.py needs and no file has cannot be made up: another G, or D."""
    ours = rosinality()
    file = {"genforce": {"generator": genforce()["generator_smooth"]},
            "genforce's generator": genforce()["generator_smooth"], "lernapparat": lernapparat(),
            "rosinality": ours["g_ema"],
            "rosinality's average": {"g_ema": ours["g_ema"], "latent_avg": ours["latent_avg"]},
            "rosinality's G and D": {"g": ours["g"], "d": ours["d"]}}[whose]
    path, out = saved(tmp_path, file), tmp_path / "ours.pt"
    assert import_checkpoint.main([str(path), str(out)]) == 0
    said = capsys.readouterr().out
    assert "for looking" in said and "train.py --resume" not in said
    checkpoint = checkpoints.load_checkpoint(out)
    assert "generator_ema" in checkpoint and "generator" not in checkpoint
    assert ("discriminator" in checkpoint) == (whose == "rosinality's G and D")
    assert not checkpoints.resumable(checkpoint)
    assert checkpoints.load_networks(out).resolution == max(
        NARROW if "rosinality" in whose else WIDE)


def test_a_network_that_cannot_be_imported_can_be_left_out(tmp_path, capsys, judges):
    file, out = rosinality(), tmp_path / "ours.pt"
    file["d"]["convs.1.skip.0.kernel"] += 1
    path = saved(tmp_path, file)
    code, line = refused(import_checkpoint.main, [path, out], capsys)
    assert code == 2 and "--generator-only" in line
    assert import_checkpoint.main([str(path), str(out), "--generator-only"]) == 0
    checkpoint = checkpoints.load_checkpoint(out)
    assert not {"generator", "discriminator"} & set(checkpoint)
    G = checkpoints.load_networks(out).networks["generator_ema"]
    image = G(inputs(9, 6, 8, 6, 32)[0], noise_mode="const")
    assert relative(image, judges["rosinality_psi1"]) < PARITY


@pytest.mark.parametrize("make", [genforce, rosinality])
def test_a_file_with_all_three_networks_can_be_trained_on(tmp_path, capsys, make):
    path, out = saved(tmp_path, make()), tmp_path / "ours.pt"
    assert import_checkpoint.main([str(path), str(out)]) == 0
    said = capsys.readouterr().out
    assert "train.py --resume" in said
    assert checkpoints.resumable(checkpoints.load_checkpoint(out))
    networks = checkpoints.load_networks(out, parts=checkpoints.TO_RESUME[:2]).networks
    for letter, network in zip("GD", networks.values()):
        millions = sum(tensor.numel() for tensor in network.parameters()) / 1e6
        assert f"{millions:.3g} M parameters in {letter}" in said


def test_what_a_file_lacks_is_made_and_said(tmp_path, capsys):
    """Lesson: the mean of w is computed from the mapping network; noise is only noise."""
    file = rosinality()
    del file["latent_avg"]
    file["g_ema"] = {name: tensor for name, tensor in file["g_ema"].items()
                     if "noises" not in name}
    path = saved(tmp_path, file)
    G, _, imported = networks_of(path)
    w = G.mapping(torch.randn(50_000, 6))
    error = (G.w_avg - w.mean(dim=0)) / w.std(dim=0)   # 1 % each, and 0.4 % of the judge
    assert error.abs().max() < 0.05 and G.w_avg.abs().max() > 0.1
    noise = G.synthesis.blocks["32"].conv1.noise.const
    assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1     # of 1024 numbers
    assert len(imported.lines) == 2
    again = import_file(path).generator_ema            # the same file gives the same checkpoint
    assert all(torch.equal(again[name], tensor) for name, tensor in G.state_dict().items())
    assert import_checkpoint.main([str(path), str(tmp_path / "ours.pt")]) == 0
    said = capsys.readouterr().out
    assert "no w_avg in the file" in said and "no noise maps in the file" in said


def test_an_average_that_genforce_never_filled_is_computed(tmp_path):
    """Lesson: it averages parameters, not buffers: in what it trains, the average of G has a w_avg
    of zeros, and psi 0.7 would pull every face to w = 0 and not to the mean."""
    file = genforce()
    file["generator_smooth"]["truncation.w_avg"].zero_()
    G, _, imported = networks_of(saved(tmp_path, file))
    w = G.mapping(torch.randn(50_000, 7))
    assert ((G.w_avg - w.mean(dim=0)) / w.std(dim=0)).abs().max() < 0.05
    assert torch.equal(imported.generator["w_avg"], file["generator"]["truncation.w_avg"])


# ---- 3. what is refused ----


# What was changed: (a file, in which of its parts, which name, to what, what is said). The new
# value is a tensor, a function of the old one, or None to take it out.
DIFFERENT = {
    "noise by channel": (genforce, "generator_smooth", "synthesis.layer4.apply_noise.noise",
                         torch.zeros(1, 6, 1, 1), "one map is added to all channels"),
    "a strength a channel": (rosinality, "g_ema", "convs.1.noise.weight",
                             torch.zeros(1, 6, 1, 1), "one map is added to all channels"),
    "labels": (genforce, "generator", "mapping.label_weight", torch.zeros(10, 7),
               "class-conditional"),
    "w at the input": (genforce, "generator_smooth", "synthesis.layer0.weight",
                       torch.zeros(6, 5, 4, 4), "begins with w"),
    "a w for each layer": (genforce, "generator_smooth", "truncation.w_avg", torch.ones(60),
                           "truncation.w_avg in the shape [60], where [5] is needed"),
    "wavelets": (rosinality, "g_ema", "to_rgb1.iwt.ll", torch.zeros(2, 2), "SWAGAN"),
    "another blur": (genforce, "generator", "synthesis.layer2.blur.kernel",
                     lambda kernel: kernel.flip(2) + 0.01, "another filter than [1, 2, 1]"),
    "another FIR": (rosinality, "g_ema", "to_rgbs.0.upsample.kernel",
                    torch.ones(4, 4) / 4, "another filter than [1, 3, 3, 1]"),
    "a FIR without its gain": (rosinality, "g_ema", "convs.0.conv.blur.kernel",
                               lambda kernel: kernel / 4, "another filter"),
    "another size of FIR": (rosinality, "d", "convs.1.skip.0.kernel", torch.ones(2, 2) / 4,
                            "another filter"),
    "more": (rosinality, "d", "attention.weight", torch.zeros(3), "attention.weight"),
    "less": (rosinality, "g", "convs.2.conv.weight", None, "lacks the variable convs.2.conv.w"),
    "no numbers": (genforce, "discriminator", "layer3.weight", lambda x: x / 0, "not finite"),
    "integers": (rosinality, "g_ema", "style.2.bias", torch.zeros(6, dtype=torch.int32),
                 "torch.IntStorage"),
    "another shape": (rosinality, "d", "final_linear.0.bias", torch.zeros(5), "in the shape [5]"),
    "grey": (genforce, "generator", "synthesis.output0.weight", torch.zeros(1, 6, 1, 1),
             "in the shape [1, 6, 1, 1]"),
    "widths": (rosinality, "g_ema", "convs.3.activate.bias", torch.zeros(7), "channels"),
    "lods": (genforce, "discriminator", "lod", torch.tensor(2.0), "lods 0, 0, 2"),
    "no lod": (genforce, "discriminator", "lod", torch.tensor(float("nan")), "lods"),
    "no such lod": (lambda: {"generator": genforce()["generator"]}, "generator", "synthesis.lod",
                    torch.tensor(6.0), "lods 6, where 128 px have one of 0 to 5"),
    "a huge z": (lernapparat, None, "g_mapping.dense0.weight", torch.zeros(6, 5000), "5000"),
    "huge pictures": (lambda: drawn(lernapparat_g({2 ** k: 1 for k in range(2, 12)}), 0), None,
                      "g_synthesis.torgb.bias", torch.zeros(3), "2048x2048"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_differs_is_refused_by_name(tmp_path, capsys, case):
    """Lesson: a network that is nearly right makes pictures that are nearly right."""
    make, part, name, tensor, reason = DIFFERENT[case]
    file = make()
    state = file[part] if part else file
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor(state[name]) if callable(tensor) else tensor
    code, line = refused(import_checkpoint.main, [saved(tmp_path, file), tmp_path / "o.pt"], capsys)
    assert code == 2 and reason in line, line
    assert not (tmp_path / "o.pt").exists()


def test_widths_that_no_settings_give_are_refused(tmp_path, capsys):
    """Lesson: base and largest width are found from the widths alone, whatever they were."""
    program = foreign_names.PROGRAMS[2]

    class Note(argparse.Namespace):
        name = "torch._utils._rebuild_tensor_v2"

    def notes(shapes):
        return {name: Note(args=(None, 0, shape)) for name, shape in shapes.items()}

    for base in (16, 33, 64, 100, 512, 8192, 16384):
        for largest in (6, 64, 512):
            widths = {r: models.channels_at(r, base, largest) for r in (4, 8, 16, 32)}
            state, d = notes(rosinality_g(widths)), notes(rosinality_d(widths))
            d["final_linear.0.weight"].args = (None, 0, (models.channels_at(2, base, largest), 1))
            found = foreign_names.settings_of(program, state, d)
            assert {r: models.channels_at(r, found["channel_base"], found["channel_max"])
                    for r in (2, 4, 8, 16, 32)} == {2: d["final_linear.0.weight"].args[2][0],
                                                    **widths}
    for widths in ({4: 6, 8: 7}, {4: 6, 8: 6, 16: 2}):         # wider, and a quarter at one step
        with pytest.raises(pickles.Unreadable, match="channels"):
            foreign_names.settings_of(program, notes(rosinality_g(widths)), None)


def test_one_number_for_a_whole_network_is_refused(tmp_path, capsys):
    """Lesson: a tensor may show one stored number a million times. Here all weights of 512 channels
    do: a file of 0.1 MB for networks of 80 MB."""
    widths = {4: 512, 8: 512, 16: 512}
    file = {name: torch.zeros(()).expand(shape) if "kernel" not in name else tensor
            for (name, shape), tensor in zip(sorted(rosinality_g(widths).items()),
                                             drawn(rosinality_g(widths), 0).values())}
    path = saved(tmp_path, file)
    assert path.stat().st_size < 200_000
    _, line = refused(import_checkpoint.main, [path, tmp_path / "o.pt"], capsys)
    assert "claims networks of" in line
    # One number for a filter of a billion channels, which is compared and not kept.
    file = genforce()
    file["generator"]["synthesis.layer2.blur.kernel"] = torch.zeros(()).expand(10 ** 9, 1, 3, 3)
    _, line = refused(import_checkpoint.main, [saved(tmp_path, file), tmp_path / "o.pt"], capsys)
    assert "another filter" in line


def test_only_names_that_such_a_file_needs_are_let_through(tmp_path, capsys):
    """Lesson: the list is short, and each name is there because sound files ask for it."""
    asked = set()
    for value in ({**rosinality(), "args": argparse.Namespace(size=32, lr=0.002)},
                  {"generator": {name: torch.nn.Parameter(tensor.half())
                                 for name, tensor in genforce()["generator"].items()}}):
        path = saved(tmp_path, value)
        asked |= pickles.read_anything(path)[1]
        import_file(path)                                                      # it is sound
    assert asked == foreign_names.HARMLESS
    path = saved(tmp_path, {**rosinality(), "args": official.DATA})            # a pathlib.PosixPath
    _, line = refused(import_checkpoint.main, [path, tmp_path / "o.pt"], capsys)
    assert type(official.DATA).__name__ in line
