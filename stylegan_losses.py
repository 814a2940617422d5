"""stylegan_losses.py: what each of the two players wants.   (3rd in the reading order)

Read before: train.py, whose two turns call these functions.     Read next: stylegan_models.py
Paper:   Goodfellow et al. 2014 (arXiv 1406.2661); R1: Mescheder et al. 2018 (arXiv 1801.04406);
         the choice of both: Karras et al. 2019, StyleGAN (arXiv 1812.04948), appendix C; path
         length: Karras et al. 2020, StyleGAN2 (arXiv 1912.04958), section 3 and appendix B.
Needs:   torch, any device. Importing this file reads no file, no argv, no clock.
Letters: N images in the batch; L style layers; S size of w; R rows = columns of pixels. A score is
         D's opinion of one image, a number of any size: the higher it is, the more real the image
         looks to D.

Read a score s as a bet: D says "real" with the probability sigmoid(s) = 1 / (1 + e^-s). Each player
has a loss, a number that it makes smaller step by step:

    D:   -log sigmoid(D(real))  -  log(1 - sigmoid(D(fake)))  +  gamma/2 |slope of D at real|^2
    G:   -log sigmoid(D(fake))

One function makes these logarithms without ever overflowing: softplus(s) = log(1 + e^s). It is
-log(1 - sigmoid(s)), and softplus(-s) is -log sigmoid(s).

ProGAN, from which StyleGAN grew, had another loss, WGAN-GP. With this one and R1, the FID (how far
G's pictures are from real ones: evaluate.py) went on falling for considerably longer; so the paper
trains with 25 million images instead of 12 (appendix C).
"""

import math

import torch
import torch.nn.functional as F

from workshop.fast_gradients import input_gradients_only

# ---- 1. What D wants: high scores for the real, low ones for the fake ------------------------


def loss_on_reals(scores):
    """-log sigmoid(score), averaged: small if D calls them real. Shapes: [N, 1] -> scalar."""
    return F.softplus(-scores).mean()


def loss_on_fakes(scores):
    """-log(1 - sigmoid(score)), averaged: small if D calls them fake. Shapes: [N, 1] -> scalar."""
    return F.softplus(scores).mean()


def discriminator_loss(real_scores, fake_scores):
    """The two together: the cross-entropy of the question "real or fake?".

    Paper:  Goodfellow et al. 2014, equation 1; StyleGAN appendix C.
    Shapes: [N, 1] and [N, 1] -> scalar.
    Units:  2 ln 2 = 1.386 if D gives every image the score 0, that is, cannot tell; 0 if it is
            always sure and right; far above 1.386 if it is sure and wrong.
    Use:    D's turn in train.py adds the two parts one after the other, since each needs much
            memory. The duality gap in evaluate.py asks for both: its M is minus one half of this.
    Proved: tests/test_losses.py::test_losses_and_gradients_equal_the_official_ones,
            ::test_a_discriminator_that_cannot_tell_has_loss_2_ln_2
    """
    return loss_on_reals(real_scores) + loss_on_fakes(fake_scores)


# ---- 2. What G wants: that D takes its images for real ---------------------------------------


def generator_loss(fake_scores):
    """-log sigmoid(D(fake)), averaged: the non-saturating loss. Shapes: [N, 1] -> scalar.

    Why:    G could simply want the opposite of D, the smallest log(1 - sigmoid(D(fake))). But where
            D sees through G, with scores far below 0, that curve is flat: the worse G is, the less
            it is told. This loss has its slope of 1 just there, and wants the same.
    Paper:  Goodfellow et al. 2014, section 3.
    Proved: tests/test_losses.py::test_the_opposite_of_ds_loss_is_flat_where_g_needs_it
    """
    return F.softplus(-fake_scores).mean()


# ---- 3. R1: D shall be flat where the real images are ----------------------------------------


def r1_penalty(real_scores, reals):
    """|gradient of D at each real image|^2, averaged over the batch.

    Why:    where G is right already, D should have no slope. A slope there would push G away from
            the real images again, and the two would circle each other for ever.
    Paper:  Mescheder et al. 2018, section 4.1, equation 9.
    Shapes: real_scores [N, 1], computed from reals [N, 3, R, R], which require grad -> scalar.
    How:    `create_graph`, since the penalty is itself differentiated, with respect to D's weights:
            a derivative of a derivative. `input_gradients_only` (workshop/fast_gradients.py) spares
            the gradients of the weights, which are not asked for here.
    Proved: tests/test_losses.py::test_r1_equals_the_official_one
    """
    # Image n changes score n only (but for D's layer that compares images, MinibatchStddev, as in
    # the official code). So the gradient of the sum holds that of each score at its own image. (The
    # ones are stored. Those that .sum() makes are one number seen N times, which a Mac's GPU has
    # multiplied wrongly, pytorch issue 180201.)
    ones = torch.ones_like(real_scores)
    with input_gradients_only():
        gradient, = torch.autograd.grad(real_scores, reals, ones, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def r1_weight(r1_gamma, r1_interval, resolution, final_resolution):
    """What the penalty is multiplied by before it joins D's loss: three factors.

    gamma/2:   as in the paper, with gamma = 10.
    interval:  "lazy" R1 (StyleGAN2, appendix B). The penalty costs time, so it may be computed in
        every k-th step only, k times as strong. The sum of its gradients is the same then. What
        Adam makes of them is not: it divides by their size, and a rare large gradient counts for
        less than a steady small one. Where the penalty is all there is, about 1/sqrt(k) of its
        pull is left; where other gradients are 10 times as large, nearly all (above 0.9).
        Proved: tests/test_losses.py::test_adam_weakens_a_lazy_penalty
        Differs: the official StyleGAN2 gives a lazy penalty a step of its own, and takes Adam's
        learning rate times k/(k+1) and its betas to that power in all steps. Here the penalty joins
        a step that is made anyway. That keeps a little more of its pull. In a step of its own
        1/sqrt(k+1) would be left where the penalty is all there is, and about 0.9 where other
        gradients are 10 times as large.
        Proved: tests/test_losses.py::test_a_step_of_its_own_would_be_weakened_a_little_more
    (R / final R)^2:  gamma is meant for the final resolution. The official code shows D pictures of
        the final size at all times, small ones enlarged: each pixel is copied to f x f places, f =
        final R / R. Each copy has 1/f^2 of the pixel's gradient, and the squares of f^2 copies sum
        to 1/f^2 of the square. We compute at R, and weaken by hand.
        Proved: tests/test_losses.py::test_r1_equals_the_official_one
    """
    return r1_gamma / 2 * r1_interval * (resolution / final_resolution) ** 2


# ---- 4. Path length, in StyleGAN2: G shall stretch w by the same factor everywhere -----------


def path_lengths(images, ws, noise=None):
    """How strongly each image moves along y, a random direction of images, as its w moves.

    Compare: in StyleGAN, G may answer one step of w with a little change and the next one with
            another face. Perceptual path length measures that, and networks whose value is small
            make better shapes. So it is made a part of what G wants (section 3.2, figure 4). A G
            that stretches w evenly can also be inverted better: project.py.
    Paper:  StyleGAN2, equation 4: the length of J^T y, where J [pixels, S] says how the image moves
            with w. If J is orthogonal up to a factor, all lengths are nearly that factor times
            sqrt(S) / R.
    Shapes: images [N, 3, R, R], computed from ws [N, L, S], which are part of the graph -> [N].
            noise: y, of the shape of images or [1, 3, R, R]; drawn if None.
    Units:  y is N(0, 1) / sqrt(R R), so that lengths do not grow with the number of pixels. Each
            layer has its own w here: the squares are summed over S and averaged over the L layers.
    How:    J^T y is the gradient of <image, y>: no J is ever made.
    Proved: tests/test_losses.py::test_path_lengths_equal_the_official_ones,
            ::test_path_length_of_a_linear_map_is_its_stretch
    """
    if noise is None:
        noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    with input_gradients_only():
        gradient, = torch.autograd.grad(images, ws, noise.expand_as(images), create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()                 # [N, L, S] -> [N]


def path_length_penalty(lengths, mean, decay=0.01):
    """(length - mean)^2, averaged. `mean` is moved first, in place, by decay towards the lengths.

    The factor itself is G's to choose: it is the running mean of what the lengths are.
    Paper:  StyleGAN2, equation 4 and appendix B (the decay).
    Shapes: lengths [N], mean [] -> scalar. As in the official code, the gradient flows through the
            mean, too, of which these lengths are `decay`; that takes 1 % of their common pull away.
    Proved: tests/test_losses.py::test_path_lengths_equal_the_official_ones,
            ::test_the_mean_of_path_lengths_moves_before_it_is_used
    """
    moved = mean.lerp(lengths.mean(), decay)
    mean.copy_(moved.detach())
    return (lengths - moved).square().mean()
