"""neighbours.py: has the network learned pictures by heart? Its faces beside theirs.   (workshop)

Used by: generate.py neighbours.
Needs:   torch, numpy, Pillow; a package of requirements-extra.txt for --features other than pixels.
Letters: N images at once; n faces; F features of a picture; R pixels a side.

The paper's figures cannot show it, nor can FID: a network that gives back its training pictures has
the best FID of all. So one looks: each face, and the training pictures that are nearest to it.
Paper:   Karras et al. 2018, "ProGAN" (arXiv 1710.10196), figure 10.

How near is near? Distances are given in a unit of the data's own: the median distance from a
training picture to the nearest other one that is no copy. 1 is what pictures of this kind have
anyway; a copy has next to nothing. (A blurred face is rather near to all pictures in pixels, and
far from all in what a network sees.)
"""

import argparse
import pathlib

import torch
import torch.nn.functional as F

import stylegan_dataloader as data
from workshop import UserError, checkpoints, features, figures, machine, measuring, pictures
from workshop.options import number_from

REFERENCES = 128               # training pictures that are asked for their nearest, for the unit
SHARPEST = 128                 # pixels a side that are compared; larger pictures are averaged


def neighbour_options():
    """--data and --allow-upsampling, --features, --nearest, --cache."""
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--data", metavar="PATH", help="the training pictures (default: the run's)")
    group.add_argument("--allow-upsampling", action="store_true",
                       help="take pictures smaller than the network's, enlarged")
    group.add_argument("--features", metavar="NAME", default="pixels",
                       help="what is compared: pixels (default); what a network sees: "
                       "efficientnet-lite0, inception, or a TorchScript file, a program that you "
                       "trust")
    group.add_argument("--nearest", metavar="N", type=number_from(1, int, 16), default=4,
                       help="training pictures beside each face (default 4)")
    group.add_argument("--cache", metavar="FOLDER", help="of packed pictures (default: the run's)")
    return group


def training_pictures(path, checkpoint, resolution, o):
    """The pictures that the run was trained with, a dataset; without those that it held out.

    Errors: UserError, DataError, OSError.
    Proved: tests/test_neighbours.py::test_pictures_that_were_held_out_are_no_training_pictures
    """
    run, split = checkpoint.get("options", {}), checkpoint.get("progress", {}).get("split")
    source = measuring.find_source(path, checkpoint, o.data)
    own = checkpoints.own_cache(path, checkpoint)
    folder = pictures.pack_pictures(
        source, checkpoint["settings"]["resolution"], o.cache or own or "cache", machine.cores(),
        run.get("max_bad", 1.0), measuring.upsampled(o, run), progress=machine.progress_bar)
    contents, only = pictures.contents_of(folder), None
    if split and pictures.same_pictures(checkpoint["progress"], source, contents):
        only = pictures.parts_of(split, contents)["training"]
    # Not mirrored here: each picture is looked at in both ways.
    return data.PictureDataset(folder, source, resolution, flip=False, only=only)


def seen_by(which, device):
    """A function: images [N, 3, R, R] -> features [N, F], on the CPU.   Errors: UserError."""
    if which == "pixels":
        return lambda images: F.adaptive_avg_pool2d(
            images, min(images.shape[3], SHARPEST)).flatten(1).cpu()
    network = features.load_features(which, device)
    return lambda images: network.compute(
        data.to_images(data.to_pixels(images), device)).float().cpu()


def at_once(resolution):
    """So many pictures: 64, or fewer that fit into 64 MB."""
    return max(1, min(64, 2 ** 24 // (3 * resolution ** 2)))


@torch.no_grad()
def nearest(points, see, dataset, device, count, own):
    """(distances [n, count], samples [n, count], mirrored [n, count]), the nearest first.

    Shapes: points [n, F]. see: as `seen_by` gives it. own [n]: a sample that each point is itself,
            and must not find; -1: none.
    How:    the pictures go by once, in parts, as they are and mirrored, and of each the nearer way
            counts. Only the best so far are kept, so a million pictures need no more memory.
    Proved: tests/test_neighbours.py::test_the_nearest_are_found_mirrored_ones_too
    """
    n, parts = len(points), torch.arange(len(dataset)).split(at_once(dataset.resolution))
    best = points.new_full((n, count), torch.inf)
    which, way = torch.full((n, count), -1), torch.zeros(n, count, dtype=torch.bool)
    for samples in machine.progress_bar(parts, total=len(parts), desc="pictures"):
        images = data.to_images(dataset.__getitems__(samples.tolist()), device)
        both = torch.stack([torch.cdist(points, see(images.flip(3) if mirrored else images))
                            for mirrored in (False, True)])                # [2, n, part]
        found, mirrored = both.min(dim=0)
        found[own[:, None] == samples] = torch.inf
        best, order = torch.cat([best, found], dim=1).sort(dim=1)
        best, order = best[:, :count], order[:, :count]
        which = torch.cat([which, samples.expand(n, -1)], dim=1).gather(1, order)
        way = torch.cat([way, mirrored.bool()], dim=1).gather(1, order)
    return best, which, way


@torch.no_grad()
def beside_neighbours(model, o, faces, images):
    """(title, rows) of a figure: each face (left), and the training pictures nearest to it.

    faces: their names, n strings. images: n images, float [3, R, R].
    Look for: the same face again, at a distance far below 1: then it was learned by heart. Faces
            that are only like their neighbours, at distances around 1 and more, are new ones.
    Errors: UserError if there are not two pictures.
    Proved: tests/test_neighbours.py::test_what_was_learned_by_heart_has_the_distance_0
    """
    path, device, side = pathlib.Path(o.model), model.G.w_avg.device, figures.tile_side(
        model.resolution)
    figures.check_figure(o.out, len(o.faces), 1 + o.nearest, side, len(o.faces))
    see = seen_by(o.features, device)
    dataset = training_pictures(path, checkpoints.load_checkpoint(path), model.resolution, o)
    if len(dataset) < 2:
        raise UserError("neighbours: needs two training pictures or more")
    count = min(o.nearest, len(dataset))

    # References go along with the faces, and are evenly spread over the pictures.
    own = torch.arange(0, len(dataset), max(1, len(dataset) // REFERENCES))[:REFERENCES]
    images = [image.clamp(-1, 1) for image in images]          # as a file would hold it
    points = [see(image[None].to(device)) for image in images] + [
        see(data.to_images(dataset.__getitems__(part.tolist()), device))
        for part in own.split(at_once(model.resolution))]
    distances, samples, mirrored = nearest(
        torch.cat(points), see, dataset, device, count,
        torch.cat([torch.full((len(images),), -1), own]))
    others = distances[len(images):, 0]                        # copies in the data do not count
    unit = others[others >= 1e-3 * others.max()].median().clamp(min=1e-9)
    rows = []
    for k, (name, image) in enumerate(zip(faces, images)):
        tiles, captions = [figures.to_tile(image.cpu(), side)], [name]
        for distance, sample, flip in zip(distances[k] / unit, samples[k].tolist(), mirrored[k]):
            one = data.to_images(dataset.__getitems__([sample]))[0]
            tiles.append(figures.to_tile(one.flip(2) if flip else one, side))
            captions.append(f"{distance:.2f}")
        rows.append(figures.Row(tiles, "", captions))
    return (
        f"Faces (left) and the nearest of {len(dataset)} training pictures, by {o.features}. 1 is "
        f"the usual distance from one of these to the nearest other. {model.how()}", rows)
