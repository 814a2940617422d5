"""workshop/neighbours.py: has the network learned pictures by heart?"""

import pathlib

import pytest
import torch
from PIL import Image

import generate
import stylegan_dataloader as data
import tiny
from conftest import refused
from test_generate import SMALL, a_generator, save
from workshop import figures, neighbours, pictures

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path):
    return tiny.save_pictures(tmp_path / "photos", 12)


@pytest.fixture
def dataset(photos, tmp_path):
    source = pictures.find_pictures(photos)
    folder = pictures.pack_pictures(source, 16, tmp_path / "cache", report=str)
    return data.PictureDataset(folder, source, 16, flip=False)


def images_of(dataset):
    return data.to_images(dataset.__getitems__(range(len(dataset))))


def test_the_nearest_are_found_mirrored_ones_too(dataset, monkeypatch):
    """Lesson: pictures go by in parts, and only the best so far are kept; the result is that of a
    table of all distances. A point that is a picture itself must not find itself."""
    images, see = images_of(dataset), neighbours.seen_by("pixels", CPU)
    points = torch.cat([see(torch.rand(3, 3, 16, 16) * 2 - 1), see(images[[4]].flip(3)),
                        see(images[[4]])])
    own = torch.tensor([-1, -1, -1, -1, 4])
    monkeypatch.setattr(neighbours, "at_once", lambda resolution: 5)       # 12 in three parts
    found, which, mirrored = neighbours.nearest(points, see, dataset, CPU, 3, own)
    table = torch.stack([(points[:, None] - see(way)).square().sum(2).sqrt()
                         for way in (images, images.flip(3))])             # [2, 5, 12]
    table[:, 4, 4] = torch.inf
    judge, order = table.amin(0).sort(dim=1)
    assert torch.equal(which, order[:, :3])
    assert (found - judge[:, :3]).abs().max() < 0.02                       # of 30: cdist rounds
    assert torch.equal(mirrored, table.argmin(0).gather(1, order).bool()[:, :3])
    assert which[3, 0] == 4 and mirrored[3, 0] and found[3, 0] < 0.02      # the mirrored copy
    assert found[4, 0] > 1                                                 # control


def rows_of(monkeypatch, work):
    """What the figure that `work` draws is made of: its rows, and its title."""
    drawn, draw = [], generate.draw_figure
    monkeypatch.setattr(generate, "draw_figure",
                        lambda title, rows: drawn.append((rows, title)) or draw(title, rows))
    work()
    return drawn[-1]


def test_the_figure_shows_what_is_nearest(tmp_path, photos, dataset, monkeypatch):
    """Lesson: by pixels, or by what a network sees; and of whatever pictures one names."""
    model = save(tmp_path / "tiny.pt")

    def figure(*more, data=photos):
        return rows_of(monkeypatch, lambda: generate.main([str(word) for word in (
            model, "neighbours", "--seeds", "1,2", "--data", data, "--cache", tmp_path / "cache",
            "--out", tmp_path / "n.png", "--device", "cpu", *more)]))
    rows, title = figure("--nearest", 3)
    image = next(generate.render(*(lambda m: (m, generate.ws_of(m, [1]), [1]))(
        generate.load_model(model, CPU)))).clamp(-1, 1)
    far = torch.stack([(image - way).square().sum(dim=(1, 2, 3))
                       for way in (images_of(dataset), images_of(dataset).flip(3))])
    best = far.amin(0).argsort()[:3].tolist()
    judge = [images_of(dataset)[k].flip(2) if far[1, k] < far[0, k] else images_of(dataset)[k]
             for k in best]
    assert len(rows) == 2 and [len(row.tiles) for row in rows] == [4, 4]
    assert all(torch.equal(tile, figures.to_tile(one, tile.shape[1]))
               for tile, one in zip(rows[0].tiles, [image, *judge]))
    assert rows[0].captions[0] == "seed 1"
    assert rows[0].captions[1:] == sorted(rows[0].captions[1:], key=float)
    assert "of 12 training pictures, by pixels" in title
    assert len(figure("--nearest", 2)[0][0].tiles) == 3                    # controls
    others = tiny.save_pictures(tmp_path / "others", 7)
    assert "of 7 training pictures" in figure(data=others)[1]
    for k in range(3):                                         # of 6 px, where 16 are asked for
        (tmp_path / "small").mkdir(exist_ok=True)
        Image.new("RGB", (6, 6), (80 * k, 0, 0)).save(tmp_path / "small" / f"{k}.png")
    with pytest.raises(pictures.DataError, match="--allow-upsampling"):
        figure(data=tmp_path / "small")
    assert "of 3 training" in figure("--allow-upsampling", data=tmp_path / "small")[1]

    class Brightness(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=(2, 3))
    torch.jit.script(Brightness()).save(str(tmp_path / "bright.pt"))
    seen, _ = figure("--features", tmp_path / "bright.pt")
    assert seen[0].captions != figure()[0][0].captions
    assert list((tmp_path / "cache").glob("others-*"))


def test_what_was_learned_by_heart_has_the_distance_0(tmp_path, photos, dataset):
    """Lesson: 1 is the usual distance of a training picture from its nearest other. A copy has 0;
    noise is further away than that."""
    o = generate.parse_args([str(word) for word in (
        save(tmp_path / "tiny.pt"), "neighbours", "--data", photos, "--cache", tmp_path / "cache")])
    model = generate.Model(a_generator(), 16)
    copy, noise = images_of(dataset)[5].flip(2), torch.rand(3, 16, 16) * 2 - 1
    _, rows = neighbours.beside_neighbours(model, o, ["copy", "noise"], [copy, noise])
    assert torch.equal(rows[0].tiles[0], rows[0].tiles[1])
    assert rows[0].captions[1] == "0.00" and float(rows[0].captions[2]) > 0.5
    assert float(rows[1].captions[1]) > 0.5                                # control


def test_pictures_that_were_held_out_are_no_training_pictures(tmp_path, photos, dataset, capsys):
    """Lesson: they are known by the checkpoint. A network of whose pictures nobody knows is asked
    for some."""
    contents = pictures.contents_of(dataset.folder)
    split = {"images": 12, "seed": 0}
    run = {"settings": SMALL, "options": {"data": str(photos)},
           "progress": {"pictures": pictures.find_pictures(photos).stamp, "contents": contents,
                        "split": split}}
    o = generate.parse_args(["x.pt", "neighbours", "--data", str(photos), "--cache",
                             str(tmp_path / "cache")])
    found = neighbours.training_pictures(pathlib.Path("x.pt"), run, 16, o)
    kept = pictures.parts_of(split, contents)["training"]
    assert sorted(found.rows.tolist()) == sorted(kept.tolist()) and len(kept) < 12
    run["progress"]["split"] = None                                        # control
    assert len(neighbours.training_pictures(pathlib.Path("x.pt"), run, 16, o)) == 12
    code, said = refused(generate.main, [save(tmp_path / "i.pt"), "neighbours", "--out",
                                         tmp_path / "n.png"], capsys)
    assert code == 2 and "does not say which pictures" in said
    assert not (tmp_path / "n.png").exists()
