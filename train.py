"""train.py: train a StyleGAN.   (1st in the reading order)

    python train.py                                        paints its own pictures; minutes on
                                                           two CPU cores (docs/faces.png)
    python train.py --device cpu --resolution 8 --total-kimg 40
                                                           the same, only up to 8x8: a minute
    python train.py --data photos/ --resolution 256        anybody's pictures
    python train.py --architecture stylegan2               the second paper's networks
    python train.py --resume runs/00003-photos/checkpoint.pt
    torchrun --standalone --nproc_per_node=2 train.py      two GPUs, or two halves of a CPU

Read next: stylegan_dataloader.py, stylegan_losses.py, stylegan_models.py, stylegan_layers.py.
Paper:   Karras et al. 2019, "A Style-Based Generator Architecture for Generative Adversarial
         Networks" (arXiv 1812.04948), section 2 and appendix C; the growing: Karras et al. 2018,
         "Progressive Growing of GANs", here ProGAN (arXiv 1710.10196), section 2, appendix A; for
         --architecture stylegan2: Karras et al. 2020, StyleGAN2 (arXiv 1912.04958).
Needs:   torch, torchvision, numpy, Pillow, tqdm, tensorboard; CPU, CUDA or MPS.
Letters: N images in the batch; K styles mixed in one image; L style layers; R pixels a side. A
         style row says which of an image's K styles each of its L layers takes. nimg counts the
         real images shown to D so far; kimg is 1000 of them: the clock of a run.

A generator G makes images out of random numbers. Before StyleGAN these were its input, and each
layer made of them what it could. StyleGAN's G has no input. It starts from a constant, the same for
all images, and the random numbers tell each of its layers HOW to draw:

    z --- mapping network ---> w      z: random numbers [512]; w: a style [512]
                               |
    constant, 4x4 pixels       |
        |                      |
    noise, leaky ReLU          |      noise: a random map, for what is chance (where a hair lies)
    AdaIN  <------- A -------- +      A: a learned layer at each place. It turns w into the mean
        |                      |      and the size that AdaIN (adaptive instance normalization)
        |                      |      gives to each channel of the image
    convolution                |
    noise, leaky ReLU          |
    AdaIN  <------- A -------- +
        |                      |
    twice the side,            |      two such layers at each of 4x4, 8x8, ... 1024x1024 pixels
    and so on ...              |
        |
    to_rgb                            channels become colours: an image [3, R, R] in [-1, 1]

Every layer takes a style, a w: all the same one, or each its own. Layers at 4x4 decide on pose and
shape, those at 64x64 and above on colours (figure 3). Same constant, other styles: another face.
(In the paper and in stylegan_layers.py a style is what A makes of w; here and in the next file, w.)
Two images can swap the styles of some layers (`StyleMixer`, in the second file), and w can be
pulled to its mean w_avg, the average face (truncation, in stylegan_models.py).

Nobody tells G what a face is. A second network, the discriminator D, gives each image a score: high
if it takes it for a real one. Each step makes D a little better at telling real from made, and then
G a little better at misleading it. What we look at is made by G_ema, an average over the G of the
last steps. The game begins with pictures of 4x4 pixels, where all is simple, and doubles their
sides after so many images, by fading a new block into both networks (alpha: how far, from 0 to 1):

    4x4 ------> 8x8 fading in -> 8x8 ------> 16x16 fading in -> 16x16 -----> ...     (over kimg)
      stabilize       fade         stabilize        fade           stabilize

StyleGAN2 is the same game with other networks (stylegan_models.py has them under those that they
replace). It does not grow, so its schedule is one stage, and alpha is always 1; and there is one
thing more that G wants (`path_length_turn`).

The file has the schedule, the average and Adam, the two turns of a step, and `main`, the game. To
see the whole before the parts, begin at `main`. What is not of the paper (options, devices, several
processes, the folder of a run) stands in workshop/, to be looked up.
"""

import copy
import math
from typing import NamedTuple

import torch

import augment
import morph
import stylegan_dataloader as data
import stylegan_models as models
from stylegan_losses import (
    generator_loss, loss_on_fakes, loss_on_reals, path_length_penalty, path_lengths, r1_penalty,
    r1_weight)
from workshop import machine, options
from workshop.run import Run

# ---- 1. The schedule -------------------------------------------------------------------------


class Stage(NamedTuple):
    """A stretch of training, from nimg `start` to `end`, at one resolution.

    growing: the block of this resolution is new, and alpha rises from 0 to 1 while it comes in.
    """
    start: int
    end: float
    resolution: int
    growing: bool


def plan_stages(initial_resolution, resolution, growing_kimg, stabilize_kimg):
    """The whole schedule: stabilize at the initial resolution, then grow and stabilize doublings.

    Paper:  ProGAN appendix A.1: from 4 px, 800 + 800 kimg. StyleGAN begins at 8 px (appendix C;
            --initial-resolution 8); its official code has 600 + 600.
    Units:  growing_kimg and stabilize_kimg map a resolution to kimg. The last stage has no end;
            --total-kimg ends the run, wherever it is then.
    Proved: tests/test_train.py::test_the_schedule_is_the_official_one
    """
    stages, nimg = [], 0
    for r in models.resolutions_up_to(resolution):
        if r < initial_resolution:
            continue
        if r > initial_resolution:
            end = nimg + round(1000 * growing_kimg[r])
            stages.append(Stage(nimg, end, r, True))
            nimg = end
        end = math.inf if r == resolution else nimg + round(1000 * stabilize_kimg[r])
        stages.append(Stage(nimg, end, r, False))
        nimg = end
    return [stage for stage in stages if stage.end > stage.start]


def stage_at(nimg, stages):
    """The stage in which image number nimg is shown."""
    return next(stage for stage in stages if nimg < stage.end)


def alpha_at(nimg, stage):
    """How far the newest block has come in: from 0 to 1 over a growing stage, 1 elsewhere.

    Proved: tests/test_train.py::test_the_total_cuts_a_fade_and_does_not_speed_it_up
    """
    return (nimg - stage.start) / (stage.end - stage.start) if stage.growing else 1.0


# ---- 2. The average of G, and Adam -----------------------------------------------------------


def ema_beta(nimg, batch, halflife_kimg):
    """The weight of the past in G_ema <- beta G_ema + (1 - beta) G.

    Why:    G moves with every step, since its opponent does, and so do its pictures. An average
            that forgets half of its past in a few thousand images is steadier; we look at that.
    Paper:  ProGAN appendix A.1 (0.999 a step); the official code has a half-life of 10 kimg.
    Differs: the half-life is at most 5 % of what was seen so far (as StyleGAN2-ADA does), or the
            average of a young run would consist of its random start.
    Proved: tests/test_train.py::test_ema_forgets_half_in_a_halflife
    """
    halflife = min(1000 * halflife_kimg, 0.05 * nimg)
    return 0.5 ** (batch / halflife) if halflife > 0 else 0.0


@torch.no_grad()
def update_ema(G_ema, G, beta):
    """G_ema <- beta G_ema + (1 - beta) G for the weights. Buffers (w_avg, the noise) are copied."""
    # lerp_ on a whole list of tensors: on a GPU a few kernels instead of one for each of them.
    torch._foreach_lerp_(list(G_ema.parameters()), list(G.parameters()), 1 - beta)
    for averaged, current in zip(G_ema.buffers(), G.buffers()):
        averaged.copy_(current)


def new_adam(network):
    """Adam(beta1 0, beta2 0.99): no momentum, a memory of 100 steps for the gradients' sizes.

    Paper:  StyleGAN appendix C inherits it from ProGAN, appendix A.1.
    """
    # `fused` does all parameters in one pass over memory, where PyTorch has that.
    fused = next(network.parameters()).device.type in ("cpu", "cuda") or None
    return torch.optim.Adam(network.parameters(), lr=0.001, betas=(0.0, 0.99), eps=1e-8,
                            fused=fused)


def set_learning_rate(learning_rate, *optimizers):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def forget_moments(*optimizers):
    """As good as a new Adam: all that it remembers of earlier gradients is dropped.

    Proved: tests/test_train.py::test_forgetting_the_moments_makes_a_new_adam
    """
    for optimizer in optimizers:
        optimizer.state.clear()


# ---- 3. A step: D's turn, then G's -----------------------------------------------------------
#
# stylegan_losses.py explains the formulas. alpha fades three things at once, each towards the new
# resolution: G's image (SynthesisNetwork), the real ones (`reals_at`), and D's way of looking at
# both (Discriminator).


def reals_at(images, alpha, growth):
    """What D is shown of real images [N, 3, R, R]: blurred while a block fades in (`fade_reals`).

    With --growth morph (morph.py) they stay sharp: a morphed D begins as one that cannot see yet
    what G cannot make.
    """
    return data.fade_reals(images, alpha) if growth == "fade" else images


def discriminator_turn(G, D, reals, z, mixes, alpha, r1_factor):
    """Leave the gradients of D's loss in D: softplus(-D(real)) + softplus(D(fake)) + R1.

    Shapes: reals [N, 3, R, R] in [-1, 1]; z [N, K, latent]; mixes, style rows [N, L].
    Units:  r1_factor as `r1_weight` gives it, or None in the steps without the penalty.
    Returns the means [loss, D(real), D(fake), R1, sign D(real)], the loss without R1, as a tensor
            on the device: asking for numbers would make the CPU wait for the GPU in every step.
            Proved: tests/test_train.py::test_no_step_asks_a_tensor_for_a_number
    How:    two backward passes, whose gradients add up to that of the whole loss. So what the
            reals needed, most of all R1's derivative of a derivative, is free again before the
            fakes are made.
    Proved: tests/test_train.py::test_ds_two_backward_passes_are_one_loss
    """
    reals.requires_grad_(r1_factor is not None)
    real_scores = D(reals, alpha)                                          # [N, 1]
    real_loss = loss_on_reals(real_scores)
    r1 = torch.zeros_like(real_loss)
    if r1_factor is not None:
        r1 = r1_penalty(real_scores, reals)
    (real_loss + (r1_factor or 0.0) * r1).backward()

    with torch.no_grad():                                                  # G does not learn here
        fakes = G(z, mixes, resolution=reals.shape[-1], alpha=alpha)
    fake_scores = D(fakes, alpha)                                          # [N, 1]
    fake_loss = loss_on_fakes(fake_scores)
    fake_loss.backward()
    return torch.stack([real_loss + fake_loss, real_scores.mean(), fake_scores.mean(), r1,
                        real_scores.sign().mean()]).detach()


def generator_turn(G, D, z, mixes, resolution, alpha):
    """Leave the gradients of G's loss in G: softplus(-D(fake)). Returns the loss.

    Shapes: as in D's turn.
    """
    learning = [p for p in D.parameters() if p.requires_grad]      # all, without --freeze-d
    D.requires_grad_(False)                            # D judges, and does not learn here
    loss = generator_loss(D(G(z, mixes, resolution=resolution, alpha=alpha), alpha))
    loss.backward()
    for parameter in learning:
        parameter.requires_grad_(True)
    return loss.detach()


def path_length_turn(G, z, mixes, path_factor):
    """Add the gradients of StyleGAN2's path length penalty to those that are in G already.

    Shapes: z [N, K, latent]; mixes [N, L]. Half of them will do, says the paper: the penalty needs
            a derivative of a derivative, and much memory (appendix B).
    Units:  path_factor: what the penalty is multiplied by, --path-weight times --path-interval.
    Returns [the mean length, the penalty] as a tensor.
    Proved: tests/test_train.py::test_path_length_is_a_turn_of_its_own_on_half_of_the_batch
    """
    half = (len(z) + 1) // 2
    ws = G.styles(z[:half], mixes[:half], mixes.shape[1])                  # [N/2, L, S]
    with machine.as_written():                         # compiled, G has no second derivative
        lengths = path_lengths(G.synthesis(ws), ws)                        # [N/2]
        penalty = path_length_penalty(lengths, G.path_length_mean)
        (path_factor * penalty).backward()
    return torch.stack([lengths.mean(), penalty]).detach()


def training_step(G, D, G_opt, D_opt, reals, z, mixes, alpha, r1_factor, path_factor, accumulate,
                  team):
    """D learns from a batch of reals and fakes, then G from D's opinion of new fakes.

    Shapes: reals [N, 3, R, R]; z [2, N, K, latent] and mixes [2, N, L]: one batch for each turn,
            since D has just learned from the last fakes. Path length takes the first again.
    Units:  r1_factor, path_factor: of the two penalties, None in the steps without.
            accumulate: the batch is cut into P parts, whose gradients are added: the same step in
            less memory, but each part draws its own noise, and moves w_avg and the mean of path
            lengths. Part p holds images p, p + P, p + 2P, ..., so the groups of `MinibatchStddev`
            are those of the whole batch if N / P is a multiple of 4.
            team: under torchrun, gradients are averaged over the processes (machine.py, part 3).
    Returns a tensor [10]: the means that `workshop.run.LOGGED` names, with a 1 behind a penalty
            that was due.
    Proved: tests/test_train.py::test_accumulating_is_the_same_step
    """
    parts = [slice(p, None, accumulate) for p in range(accumulate)]
    said_d = sum(discriminator_turn(G, D, reals[p], z[0, p], mixes[0, p], alpha, r1_factor)
                 for p in parts) / accumulate
    team.average_gradients(D, parts=accumulate)
    D_opt.step()
    D_opt.zero_grad()                                  # its memory is needed now

    loss_g = sum(generator_turn(G, D, z[1, p], mixes[1, p], reals.shape[-1], alpha)
                 for p in parts) / accumulate
    said_path = torch.zeros(2, device=loss_g.device)
    if path_factor is not None:
        said_path = sum(path_length_turn(G, z[0, p], mixes[0, p], path_factor)
                        for p in parts) / accumulate
    team.average_gradients(G, *G.buffers(recurse=False), parts=accumulate)     # w_avg, too
    G_opt.step()
    G_opt.zero_grad()
    due = [torch.full_like(loss_g, factor is not None) for factor in (r1_factor, path_factor)]
    return torch.stack([said_d[0], loss_g, *said_d[1:4], due[0], *said_path, due[1], said_d[4]])


# ---- 4. The game -----------------------------------------------------------------------------


def main(argv=None):
    """What is asked for, the players, the game. Returns the exit code."""

    # ---- What is asked for, and what there is to do it with ----
    o, checkpoint = options.read(argv)                 # `python train.py --help` explains them all
    team = machine.join(o.device, o.timeout_minutes)   # one process, or all those of torchrun
    pictures = data.Pictures(o, team, checkpoint)      # packed once, ready at every resolution
    stages = plan_stages(o.initial_resolution, o.resolution, o.growing_kimg, o.stabilize_kimg)

    # ---- The players: G, D, the average of G, and an Adam for each that learns ----
    torch.manual_seed(o.seed)
    G = machine.place(models.make_generator(o.settings), o.device)
    D = machine.place(models.make_discriminator(o.settings), o.device)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)      # never trained: it only follows G
    machine.set_precision(G, D, o.precision)           # of convolutions (bf16: not G_ema's)
    if o.compile:
        machine.compile_blocks(G, D)
    G_opt, D_opt = new_adam(G), new_adam(D)
    # For few pictures (augment.py): D may see real and made ones through random changes, and a part
    # of it may stay as it is. `judge` is D; or D behind these changes, which `strength` controls.
    judge, strength = augment.in_front_of(D, o.augment, o.device)
    if o.freeze_d:
        augment.freeze(D, o.freeze_d)
    run = Run(o, team, pictures, stages, G, D, G_ema, G_opt, D_opt, strength)  # folder, log, files
    # Where it begins: 0, 0, None; or where the checkpoint stood. All else that a run is must be a
    # function of nimg, step and the options, or a resumed run would drift from one never stopped.
    # Proved: tests/test_run.py::test_a_killed_and_resumed_run_ends_with_the_same_bits
    nimg, step, before = run.start(checkpoint, training_step, judge)
    reals_of = rows_of = None

    # ---- The game: until D has been shown as many real images as --total-kimg says ----
    while nimg < run.total and not run.stopped:
        stage = stage_at(nimg, stages)
        r, batch, alpha = stage.resolution, o.batch[stage.resolution], alpha_at(nimg, stage)
        grown = alpha                                  # for the log
        now = (r, stage.growing)

        # A new resolution: larger pictures, and style rows for more layers. Both begin at the
        # sample that nimg has reached. The mixer gives two rows an image, one for each turn.
        if reals_of is None or r != before[0]:
            reals_of = pictures.batches(r, batch, nimg)
            rows_of = iter(data.StyleMixer(
                models.num_style_layers(r), batch // team.processes, o.styles_to_mix,
                o.mixing_probability, o.seed, 2 * nimg, team.rank, team.processes))
            set_learning_rate(o.learning_rate[r], G_opt, D_opt)

        # A new stage begins with a fresh Adam, as in the official code, since a new block changes
        # the gradients of the old ones. With --growth morph (morph.py) the new block is built such
        # that it changes nothing. Then Adam goes on; and alpha goes into the young block itself, so
        # that 1.0 is left for the networks: nothing is to be faded.
        if o.growth == "fade" and before not in (None, now):
            forget_moments(G_opt, D_opt)
        if o.growth == "morph":
            if before is not None and r != before[0]:
                morph.grow(G, G_ema, D, r, o.seed)
                team.share_weights(G, G_ema, D)
            alpha = morph.ripen(alpha, r, G, G_ema, D)
        before = now

        # A batch of real images, and for each of the two turns z and style rows of as many fakes.
        reals = reals_at(data.to_images(next(reals_of), o.device), alpha, o.growth)
        z = machine.draw_z(o.seed, step, team, (2, batch, o.styles_to_mix, o.latent_dim))
        mixes = machine.send(torch.stack([next(rows_of), next(rows_of)]), o.device)    # [2, N, L]
        r1_factor = path_factor = None
        if o.r1_gamma[r] and step % o.r1_interval == 0:
            r1_factor = r1_weight(o.r1_gamma[r], o.r1_interval, r, o.resolution)
        if o.path_weight and step % o.path_interval == 0:
            path_factor = o.path_weight * o.path_interval      # as `r1_weight` explains

        said = training_step(G, judge, G_opt, D_opt, reals, z, mixes, alpha, r1_factor,
                             path_factor, o.accumulate[r], team)
        if o.augment == "adaptive":                    # by how sure D was of the reals
            augment.adapt(strength, team.mean(said[-1].clone()), batch)
        step, nimg = step + 1, nimg + batch
        update_ema(G_ema, G, ema_beta(nimg, batch, o.ema_halflife_kimg))
        run.after_step(nimg, step, stage, alpha, grown, said)  # says, shows, measures, keeps
    return run.finish()


if __name__ == "__main__":
    # In the loop it takes a second Ctrl-C to come here; the first one ends the step and the run.
    options.start(main, "train.py", "stopped at once; checkpoints are whole")
