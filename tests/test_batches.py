"""Calibration data of every form, as batches that come the same in every walk."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from bitsplit.data import Batches, as_batches, fingerprint
from bitsplit.data.batch_size import usual_batch_size
from bitsplit.data.batches import count_images
from bitsplit.errors import CalibrationError

IMAGES = torch.arange(7 * 3 * 2 * 2, dtype=torch.float32).view(7, 3, 2, 2)
LABELS = torch.arange(7)


class Noisy(Dataset):
    """Images that get random noise whenever they are read, from the generator of choice."""

    def __init__(self, draw) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Tensor:
        return IMAGES[index] + float(self.draw())


class Counted:
    """A list of batches that counts how often it is walked; not a list itself."""

    def __init__(self, batches: list) -> None:
        self.batches = batches
        self.walks = 0

    def __iter__(self) -> Iterator:
        self.walks += 1
        return iter(self.batches)


def same(one: Batches, other: Batches) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("pixels", "device", "images"),
    [(32, "cpu", 64), (224, "cpu", 8), (2000, "cpu", 1), (224, "cuda", 64)],
)
def test_large_images_come_in_small_batches_on_the_cpu(pixels: int, device: str, images: int) -> None:
    photos = torch.zeros(1, 3, pixels, pixels).expand(70, -1, -1, -1)
    assert usual_batch_size(photos, torch.device(device)) == images
    assert usual_batch_size(TensorDataset(photos, torch.arange(70)), torch.device(device)) == images
    assert len(as_batches(photos, device=device).first()) == images
    assert len(as_batches((photos, torch.arange(70)), device=device).first()) == images


def test_looking_at_a_data_set_for_its_batch_size_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert usual_batch_size(Noisy(lambda: torch.rand(())), torch.device("cpu")) == 64
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=30)
@given(count=st.integers(1, 20), size=st.integers(1, 25))
def test_a_tensor_is_cut_into_batches(count: int, size: int) -> None:
    images = torch.randn(count, 3, 2, 2)
    batches = as_batches(images, size)
    assert torch.equal(torch.cat(list(batches)), images)
    assert len(batches) == -(-count // size) and batches.images == count
    assert all(len(batch) <= size for batch in batches)


FORMS = {
    "tensor": lambda: IMAGES,
    "list": lambda: list(IMAGES.split(3)),
    "tuple": lambda: tuple(IMAGES.split(3)),
    "list of (images, labels)": lambda: list(zip(IMAGES.split(3), LABELS.split(3), strict=True)),
    "data set of (image, label)": lambda: TensorDataset(IMAGES, LABELS),
    "data set of images": lambda: TensorDataset(IMAGES),
    "loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3),
    "iterable": lambda: Counted(list(IMAGES.split(3))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batches(form: str) -> None:
    batches = as_batches(FORMS[form](), 3)
    wanted = as_batches(IMAGES, 3)
    assert same(batches, wanted) and same(batches, wanted)
    assert (len(batches), batches.images) == (3, 7)
    assert batches.fingerprint == wanted.fingerprint == fingerprint(list(IMAGES.split(3)))
    assert torch.equal(batches.first(), IMAGES[:3])


def test_a_generator_is_read_into_memory_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"walked only once: read into memory \(3 batches\)"):
        batches = as_batches(batch for batch in IMAGES.split(3))
    assert same(batches, as_batches(IMAGES, 3)) and same(batches, as_batches(IMAGES, 3))


def test_batches_stay_batches() -> None:
    batches = as_batches(IMAGES, 2)
    assert as_batches(batches, 5) is batches


def test_whole_batches_for_a_step_of_ones_own() -> None:
    data = [{"inputs": [torch.zeros(3, 4, 4), torch.zeros(3, 5, 6)], "names": ["a", "b"]}]
    batches = as_batches(data, inputs_only=False)
    (batch,) = batches
    assert [image.shape for image in batch["inputs"]] == [(3, 4, 4), (3, 5, 6)] and batch["names"] == [
        "a",
        "b",
    ]
    assert batches.images == 2
    pair = next(iter(as_batches([(IMAGES, LABELS)], inputs_only=False)))
    assert torch.equal(pair[0], IMAGES) and torch.equal(pair[1], LABELS)


@pytest.mark.parametrize(
    ("batch", "images"),
    [
        (torch.zeros(5, 3, 2, 2), 5),
        ((torch.zeros(4, 8), torch.zeros(4)), 4),
        ([torch.zeros(3, 2, 2), torch.zeros(3, 4, 4)], 2),
        (([torch.zeros(3, 2, 2)] * 3, [{}, {}, {}]), 3),
        ({"x": torch.zeros(6, 1), "y": 1}, 6),
        ({"y": 1, "x": torch.zeros(6, 1)}, 6),
        ([{"id": 7, "image": torch.zeros(3, 8, 8)}] * 4, 4),
        ([{"image": torch.zeros(5, 3, 8, 8)}], 5),
        ({}, 0),
        ([], 0),
        ("photo", 1),
        (torch.tensor(1.0), 1),
    ],
)
def test_images_are_counted(batch: object, images: int) -> None:
    assert count_images(batch) == images


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(TensorDataset(IMAGES, LABELS), 3, shuffle=True),
        lambda: DataLoader(
            TensorDataset(IMAGES), 3, shuffle=True, generator=torch.Generator().manual_seed(5)
        ),
        lambda: DataLoader(
            TensorDataset(IMAGES),
            3,
            sampler=RandomSampler(IMAGES, generator=torch.Generator().manual_seed(5)),
        ),
        lambda: DataLoader(Noisy(lambda: torch.rand(())), 3),
        lambda: DataLoader(Noisy(np.random.rand), 3),
        lambda: DataLoader(Noisy(random.random), 3),
    ],
    ids=["shuffled", "own generator", "sampler's generator", "torch noise", "NumPy noise", "Python noise"],
)
def test_random_loaders_repeat_in_every_walk(loader) -> None:
    data = loader()
    batches = as_batches(data, memory=0)
    first = list(batches)
    torch.rand(3), np.random.rand(3), random.random()
    assert all(torch.equal(a, b) for a, b in zip(first, batches, strict=True))
    assert as_batches(loader()).fingerprint == batches.fingerprint
    if data.generator is None and not isinstance(data.dataset, TensorDataset):
        assert as_batches(loader(), seed=1).fingerprint != batches.fingerprint


def test_walking_leaves_the_programs_random_state_alone() -> None:
    batches = as_batches(
        DataLoader(Noisy(lambda: torch.rand(()) + np.random.rand() + random.random()), 3), memory=0
    )
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    for _ in batches:
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (str(np.random.get_state()), random.getstate())


def test_data_that_change_between_walks_are_refused() -> None:
    step = iter(range(1000))
    batches = as_batches(DataLoader(Noisy(lambda: next(step)), 3), memory=0)
    with pytest.raises(CalibrationError, match="batch 0 is not what it was in the first walk"):
        list(batches)


@pytest.mark.parametrize("change", [-1, 1])
def test_data_that_shrink_or_grow_are_refused(change: int) -> None:
    data = Counted(list(IMAGES.split(3)))
    batches = as_batches(data, memory=0)
    assert len(batches) == 3
    data.batches = data.batches[:2] if change < 0 else [*data.batches, IMAGES]
    with pytest.raises(CalibrationError, match="ended after 2 of 3 batches|batch 3 is not what it was"):
        list(batches)


def test_what_fits_is_kept_and_the_rest_read_again() -> None:
    fits, too_big = Counted(list(IMAGES.split(3))), Counted(list(IMAGES.split(3)))
    kept, read = as_batches(fits, memory=IMAGES.nbytes), as_batches(too_big, memory=IMAGES.nbytes - 1)
    for _ in range(3):
        assert same(kept, read)
    assert fits.walks == 1 and too_big.walks == 4


def test_the_first_batch_costs_one_batch() -> None:
    def endless() -> Iterator[Tensor]:
        yield IMAGES[:2]
        raise AssertionError("the second batch was read")

    class Source:
        def __iter__(self) -> Iterator[Tensor]:
            return endless()

    assert torch.equal(as_batches(Source()).first(), IMAGES[:2])


def test_a_model_may_change_its_input_in_place() -> None:
    images = torch.full((4, 3, 2, 2), -1.0)
    relu = nn.ReLU(inplace=True)
    for batches in (as_batches(images, 2), as_batches(TensorDataset(images), 2)):
        relu(batches.first())
        for _ in range(2):
            for batch in batches:
                assert batch.eq(-1).all()
                relu(batch)
    assert images.eq(-1).all()


# Mistakes


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.zeros(0, 3, 2, 2), "empty"),
        ([], "empty"),
        (TensorDataset(torch.zeros(0, 3)), "empty|no images|should be a positive"),
        (Counted([]), "empty"),
        ([IMAGES, torch.zeros(0, 3, 2, 2)], "batch 1 holds no images"),
        (torch.zeros(3), r"needs a batch axis, got shape \(3,\)"),
        ([{"x": IMAGES}], "batch 0: expected a tensor or .*got dict.*step="),
        ([(["a"], IMAGES)], "batch 0: expected a tensor or .*got list.*step="),
        ("photos/", "got str; for a folder of photos use bitsplit.data.ImageFolder"),
        ({"x": IMAGES}, "got dict"),
        (5, "got int"),
    ],
)
def test_wrong_data_are_refused(data: object, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        list(as_batches(data))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_and_infinity_are_refused(value: float, dtype: torch.dtype) -> None:
    images = IMAGES.to(dtype, copy=True)
    images[4, 0, 0, 0] = value
    with pytest.raises(CalibrationError, match="batch 1 holds NaN or infinite values"):
        len(as_batches(images, 3))


def test_an_empty_iterable_has_no_first_batch() -> None:
    with pytest.raises(CalibrationError, match="empty"):
        as_batches(Counted([])).first()


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(CalibrationError, match="batch_size must be at least 1, got 0"):
        as_batches(IMAGES, 0)


def test_workers_do_not_change_the_batches() -> None:
    plain = as_batches(DataLoader(TensorDataset(IMAGES, LABELS), 3, shuffle=True))
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 3, shuffle=True, num_workers=1)
    assert as_batches(loader).fingerprint == plain.fingerprint


def test_a_source_may_use_its_memory_again():
    class Refilled:
        def __iter__(self) -> Iterator[Tensor]:
            buffer = torch.empty(2, 3, 4, 4)
            for value in range(3):
                yield buffer.fill_(value)

    assert [batch.mean().item() for batch in as_batches(Refilled())] == [0, 1, 2]


def test_arrays_are_checked_too():
    with pytest.raises(CalibrationError, match="batch 0 holds NaN or infinite values"):
        len(as_batches([{"image": np.full((2, 3), np.inf)}], inputs_only=False))


@pytest.mark.parametrize(
    "labels",
    [
        torch.randn(8),
        torch.randn(8, 1),
        torch.zeros(8, 4, dtype=torch.long),
        torch.zeros(8, 1, 4, 4),  # masks
        torch.zeros(8, 3, 4, 4, dtype=torch.long),
    ],
)
def test_what_belongs_to_images_may_be_anything(labels):
    images = torch.randn(8, 3, 4, 4)
    assert torch.equal(torch.cat(list(as_batches((images, labels), 3))), images)


def test_a_pair_that_does_not_belong_together_is_refused():
    with pytest.raises(CalibrationError, match=r"got shapes \[8, 3, 4, 4\] and \[7\]"):
        as_batches((torch.randn(8, 3, 4, 4), torch.zeros(7)))
