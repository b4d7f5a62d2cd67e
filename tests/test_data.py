"""Folders, archives, preprocessing and sampling of real images."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import ResNet18_Weights, ViT_B_16_Weights
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from bitsplit.data import (
    ImageFolder,
    JpegArchive,
    Preprocessing,
    Sample,
    for_timm,
    for_torchvision,
    sample,
    write_archive,
)
from bitsplit.errors import DataError


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, width: int = 20, height: int = 10, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(width, height, seed).save(path)


# Preprocessing


@settings(max_examples=40)
@given(width=st.integers(3, 300), height=st.integers(3, 300), weights=st.sampled_from(["resnet", "vit"]))
def test_preprocessing_equals_torchvision(width: int, height: int, weights: str) -> None:
    entry = {"resnet": ResNet18_Weights.IMAGENET1K_V1, "vit": ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1}[
        weights
    ]
    image = photo(width, height, seed=width)
    assert torch.equal(for_torchvision(entry)(image), entry.transforms()(image))


@pytest.mark.parametrize("size", [(224, 224), (225, 224), (31, 57), (640, 481)])
def test_preprocessing_without_resize_equals_torchvision(size: tuple[int, int]) -> None:
    from torchvision.transforms.functional import center_crop, normalize, to_tensor

    image = photo(*size)
    wanted = normalize(to_tensor(center_crop(image, 100)), [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    got = Preprocessing(None, 100, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))(image)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "repvgg_a0"])
def test_preprocessing_equals_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = photo(333, 250)
    assert torch.allclose(for_timm(model)(image), theirs(image), atol=1e-6)


def test_preprocessing_squash_changes_the_aspect() -> None:
    image = photo(300, 100)
    squashed = Preprocessing(64, None, squash=True)(image)
    assert squashed.shape == (3, 64, 64)
    assert Preprocessing(64, None)(image).shape == (3, 64, 192)


def test_preprocessing_by_hand() -> None:
    pixels = np.array([[[0, 127, 255]]], np.uint8)
    lite = Preprocessing(None, None, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    assert torch.allclose(
        lite(Image.fromarray(pixels)).flatten(), torch.tensor([-127 / 128, 0, 1]), atol=1e-6
    )


def test_gray_and_transparent_images_become_rgb() -> None:
    assert Preprocessing(8, 8)(photo(9, 9).convert("L")).shape == (3, 8, 8)
    assert Preprocessing(8, 8)(photo(9, 9).convert("RGBA")).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop": 0}, "crop must be at least 1, got 0"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"mean": (0.5,)}, "need 3 numbers"),
        ({"interpolation": "cubic"}, "bicubic.*got 'cubic'"),
        ({"resize": None, "squash": True}, "squash needs a resize length"),
    ],
)
def test_wrong_preprocessing_is_refused(arguments: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Preprocessing(**arguments)


def test_weights_of_a_detector_are_refused() -> None:
    with pytest.raises(DataError, match="not for classification"):
        for_torchvision(FasterRCNN_ResNet50_FPN_Weights.COCO_V1)


# Folders


def test_class_folders_are_numbered_by_name(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPEG", "a/x/deep.jpg", "c/0.png", "c/notes.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no photo")
        else:
            save(tmp_path / name)
    folder = ImageFolder(tmp_path, Preprocessing(8, 8))
    assert [folder.name(i) for i in range(len(folder))] == ["a/x/deep.jpg", "b/1.JPEG", "b/2.png", "c/0.png"]
    assert folder.labels == [0, 1, 1, 2]
    image, label = folder[3]
    assert image.shape == (3, 8, 8) and label == 2


def test_an_empty_class_folder_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save(tmp_path / "b/1.png")
    assert ImageFolder(tmp_path).labels == [1]


def test_a_hidden_folder_is_no_class(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints", "cat", "dog"):
        save(tmp_path / name / "a.png")
    assert ImageFolder(tmp_path).labels == [0, 1]


def test_flat_folder_in_order(tmp_path: Path) -> None:
    for name in ("n3.png", "n1.png", "n2.png"):
        save(tmp_path / name)
    folder = ImageFolder(tmp_path, labels="order")
    assert [folder.name(i) for i in range(3)] == ["n1.png", "n2.png", "n3.png"]
    assert folder.labels == [0, 1, 2]


def test_flat_folder_is_not_guessed(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    with pytest.raises(DataError, match='no class folders.*labels="order"'):
        ImageFolder(tmp_path)


def test_folder_without_labels_gives_images_only(tmp_path: Path) -> None:
    save(tmp_path / "deep/1.png")
    save(tmp_path / "2.png")
    folder = ImageFolder(tmp_path, Preprocessing(8, 8), labels=None)
    assert [item.shape for item in folder] == [(3, 8, 8)] * 2


def test_listed_labels(tmp_path: Path) -> None:
    save(tmp_path / "val/a b.png")
    save(tmp_path / "val/c.png")
    save(tmp_path / "val/unlisted.png")
    listing = tmp_path / "truth.txt"
    listing.write_text("c.png 65\na b.png 3\n\n")
    folder = ImageFolder(tmp_path / "val", labels=listing)
    assert [(folder.name(i), folder[i][1]) for i in range(2)] == [("c.png", 65), ("a b.png", 3)]
    listing.write_text("c.png 65\na.png cat\n")
    with pytest.raises(DataError, match=r"line 2: expected 'photo class-number', got 'a.png cat'"):
        ImageFolder(tmp_path / "val", labels=listing)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no photos found"):
        ImageFolder(tmp_path, labels=None)
    with pytest.raises(DataError, match="labels file .*truth.txt: cannot be read"):
        ImageFolder(tmp_path, labels=tmp_path / "truth.txt")
    (tmp_path / "truth.txt").write_text("gone.jpg 1\n")
    with pytest.raises(DataError, match="gone.jpg: cannot be read"):
        ImageFolder(tmp_path, labels=tmp_path / "truth.txt")[0]


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_an_unreadable_photo_is_named(tmp_path: Path, damage: str) -> None:
    save(tmp_path / "broken.jpg", 60, 60)
    whole = (tmp_path / "broken.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(
        {"cut": whole[: len(whole) // 2], "text": b"no photo", "empty": b""}[damage]
    )
    with pytest.raises(DataError, match="broken.jpg: not a readable image"):
        ImageFolder(tmp_path, labels="order")[0]


def test_imagenet_sample(shared_data: Path) -> None:
    folder = ImageFolder(shared_data / "imagenet-sample", labels="order")
    assert len(folder) == 1000
    assert folder.name(0) == "n01440764_tench.jpg" and folder.name(999).startswith("n15075141")
    image, label = folder[999]
    assert image.shape == (3, 224, 224) and label == 999


# Archives


def archive(path: Path, count: int = 6) -> JpegArchive:
    files = []
    for seed in range(count):
        buffer = io.BytesIO()
        photo(8, 8, seed).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    np.savez(
        path,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offset=np.cumsum([0, *map(len, files)]),
        label=np.arange(count) % 3,
        classes=np.array(["ant", "bee", "cat"]),
    )
    return JpegArchive(path)


def test_archive_gives_its_images(tmp_path: Path) -> None:
    images = archive(tmp_path / "some.npz")
    assert len(images) == 6 and images.classes == ["ant", "bee", "cat"]
    image, label = images[4]
    assert label == 1
    pixels = np.array(Image.open(io.BytesIO(images.read(4)))).transpose(2, 0, 1)
    assert torch.equal(image, torch.from_numpy(pixels) / 255)
    stacked, labels = images.tensors([4, 0])
    assert torch.equal(stacked[0], image) and labels.tolist() == [1, 0]
    assert images.tensors()[0].shape == (6, 3, 8, 8)


def test_a_part_of_an_archive_round_trips(tmp_path: Path) -> None:
    images = archive(tmp_path / "some.npz")
    write_archive(tmp_path / "part.npz", images, [5, 1])
    part = JpegArchive(tmp_path / "part.npz")
    assert [part.read(i) for i in range(2)] == [images.read(5), images.read(1)]
    assert part.labels == [2, 1] and part.classes == images.classes


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    images = archive(tmp_path / "some.npz")
    with pytest.raises(IndexError, match="no image 6, there are 6"):
        images.read(6)
    parts = dict(np.load(tmp_path / "some.npz"))
    np.savez(tmp_path / "short.npz", **{**parts, "jpeg": parts["jpeg"][:-1]})
    with pytest.raises(DataError, match="offset does not fit"):
        JpegArchive(tmp_path / "short.npz")
    np.savez(tmp_path / "other.npz", jpeg=parts["jpeg"], label=parts["label"])
    with pytest.raises(DataError, match="no array named classes, offset"):
        JpegArchive(tmp_path / "other.npz")
    parts["jpeg"][parts["offset"][2] :] = 0
    np.savez(tmp_path / "zeroed.npz", **parts)
    with pytest.raises(DataError, match=r"zeroed.npz\[3\]: not a readable image"):
        JpegArchive(tmp_path / "zeroed.npz")[3]


# Sampling


def test_sampling_follows_the_seed(tmp_path: Path) -> None:
    images = archive(tmp_path / "some.npz")
    first, again, other = sample(images, 4, seed=1), sample(images, 4, seed=1), sample(images, 4, seed=2)
    assert first.indices == again.indices != other.indices
    assert len(set(first.indices)) == 4
    assert sorted(first.indices + first.rest().indices) == list(range(6))
    assert torch.equal(first[2][0], images[first.indices[2]][0])


def test_sampling_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    sample(archive(tmp_path / "some.npz"), 3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("count", [0, 7])
def test_impossible_samples_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError, match=f"cannot draw {count} images: the data set has 6"):
        sample(archive(tmp_path / "some.npz"), count)


def test_the_record_lists_the_images(tmp_path: Path) -> None:
    import hashlib

    save(tmp_path / "a.png", seed=1)
    save(tmp_path / "b.png", seed=2)
    folder = ImageFolder(tmp_path, Preprocessing(8, 8), labels="order")
    record = Sample(folder, [1]).record()
    digest = hashlib.sha256((tmp_path / "b.png").read_bytes()).hexdigest()
    assert record["images"] == [{"name": "b.png", "sha256": digest}]
    assert record["preprocessing"]["crop"] == 8
    assert json.loads(json.dumps(record))["images"] == record["images"]
