"""variety.py: how far apart are pictures, and has a generator collapsed?   (workshop)

Used by: run.py, for every status line.
Needs:   torch. Importing this file reads no file, no argv, no clock.

A collapsed G makes nearly one picture of all z. Nothing in its loss forbids that: D scores picture
by picture, and the one that misleads D best would do for all z. Against it stands the minibatch
standard deviation (ProGAN, section 3), by which D sees how alike the pictures of a batch are.
"""

import torch

from workshop import options

# In parts of the distance of real pictures. Measured: the default run (painted faces, 4 to 32 px)
# never had less than 0.8, also while blocks faded in, and 0.99 at its end; StyleGAN2 at 16 px had
# 0.7 or more. At 0.3 one sees that all faces are one (python train.py --resolution 8
# --initial-resolution 8 --batch 1 --r1-gamma 0 --learning-rate 0.01, after 10 kimg).
COLLAPSED, RECOVERED = 1 / 3, 1 / 2


def mean_distance(images):
    """How far two of the images are apart: root mean square over pixels, mean over all pairs.

    Why:    not the root mean square over the pairs, too: one odd picture beside 47 that are alike
            would keep 20 % of the distance then. This way it keeps 4 %.
    Shapes: images [n, 3, R, R] -> a number; 0 for a single image.
    Units:  of pixel values, clipped to [-1, 1] as in a picture: black and white are 2 apart.
    Known:  noise that is the same for all images (`noise_mode="const"`) is no variety. So where
            most of what differs is left to noise (sand, grass), a good G has little of it, too.
    Proved: tests/test_variety.py::test_the_distance_is_the_mean_over_all_pairs,
            ::test_one_odd_picture_is_not_variety, ::test_noise_is_no_variety
    """
    values = images.clamp(-1, 1).flatten(1)                                # [n, 3 R R]
    distances = torch.pdist(values) / values.shape[1] ** 0.5               # [n (n - 1) / 2]
    return distances.mean().item() if len(distances) else 0.0


def is_collapse(samples, reals, before):
    """Are samples, `samples` apart, so much more alike than reals, `reals` apart, that G collapsed?

    before: was it so at the last status line. Then it lasts until they are half as far apart as
            the reals, or a value beside the limit would be a collapse again and again.
    Why:    a young G needs no allowance. At random weights its pictures are farther apart than
            faces are; so where they are close together, they have become so.
    Known:  only the end of a collapse is seen. A G that makes k pictures in turn keeps 1 - 1/k of
            the distance: half of it for two. Recall (evaluate.py) asks for more.
    Proved: tests/test_variety.py::test_a_collapse_lasts_until_half_of_the_distance_is_back,
            ::test_a_new_generator_has_not_collapsed,
            ::test_two_pictures_in_turn_keep_half_of_the_distance
    """
    return samples < reals * (RECOVERED if before else COLLAPSED)


# Measured with 60 emoji (docs/results.md, "By heart"): in all 28 checkpoints above 0.8 whose D had
# seen each picture more than 200 times, its scores of emoji that it had never seen had a mean sign
# below 0. After 83 times it was 0.6 to 0.8, and D nearly as sure: its opponent was only bad yet.
BY_HEART, OFTEN = 0.8, 200


def is_by_heart(signs, shown):
    """Has D learned the real pictures by heart?

    signs: the mean of sign D(real), StyleGAN2-ADA's r_t. shown: how often D has seen each picture.
    Why:    a D that must tell real from made by what it sees errs now and then. One that knows the
            pictures does not; but neither does one whose G is still bad, so both must be so.
    Proved: tests/test_augment.py::test_by_heart_takes_both_surety_and_repetition
    """
    return signs > BY_HEART and shown > OFTEN


def by_heart(signs, shown, o):
    """Two lines that say that D learns by heart, and what to type.

    Proved: tests/test_augment.py::test_a_run_on_few_pictures_says_when_d_knows_them_by_heart
    """
    strength = ", or --augment adaptive" if o.augment == "off" else (
        "" if o.augment == "adaptive" or o.augment >= 0.8 else     # stronger ones may leak
        f", or --augment above {o.augment:g}")
    return (f"by heart: D has seen each picture {shown:.0f} times, and calls "
            f"{50 + 50 * signs:.0f} % of them real. What it tells G is worth less and less.\n"
            f"  To try: more pictures{strength}; or go on from a network that was trained on "
            f"pictures like them (--resume OTHER.pt --freeze-d {max(8, o.resolution // 4)} "
            f"--out NEW, with a --total-kimg beyond what that one has seen).")


def accusation(samples, reals, o, resolution, older):
    """Two lines that call a collapse by name and say what to try. older: checkpoints to go on from.

    Proved: tests/test_variety.py::test_a_run_that_collapses_is_told_once_what_to_try,
            ::test_a_collapse_names_the_last_finished_resolution
    """
    r1_gamma, learning_rate, batch = (options.show(table[resolution])
                                      for table in (o.r1_gamma, o.learning_rate, o.batch))
    again = "start again" + "".join(f", or resume {path}" for path in older[-1:])
    return (f"collapse: G makes nearly one picture of all z. Two samples are {samples:.2f} apart, "
            f"two real pictures {reals:.2f}.\n  To try: {again}, with --r1-gamma above {r1_gamma}, "
            f"--learning-rate below {learning_rate}, or --batch above {batch}.")
