"""The patch stream: what sample n is, that it alone decides, and that patches are the volume's own voxels."""

import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torchio as tio
from scipy.stats import chi2_contingency

from liverseg_core.cases.chunk_reader import StoredVolume
from liverseg_core.cases.store import Case, open_case
from liverseg_core.config import ComputeConfig, TrainConfig
from liverseg_core.errors import LiversegError
from liverseg_core.training.patch_dataset import PatchDataset
from liverseg_core.training.patches import patch_stream

SPACING = (2.0, 2.0, 3.0)
SIZE = (16, 16, 8)
MakeCase = Callable[..., Case]
LoaderProcesses = Callable[[], list[psutil.Process]]


@pytest.fixture
def make_case(build: SimpleNamespace, tmp_path: Path) -> MakeCase:
    def make(name: str, label: np.ndarray, image: np.ndarray | None = None) -> Case:
        image = np.full(label.shape, 50, np.int16) if image is None else image
        return open_case(build.stored_case(tmp_path / name, image, label, SPACING))

    return make


@pytest.fixture
def loader_processes() -> LoaderProcesses:
    """A function that finds children of the fork server, not the server itself and what counts shared memory.

    Servers of other tests that run below this process are there before, and left out.
    """
    others = set(psutil.Process().children(recursive=True))

    def found() -> list[psutil.Process]:
        new = set(psutil.Process().children(recursive=True)) - others
        servers = {child.pid for child in psutil.Process().children()}
        return [child for child in new if child.pid not in servers and child.status() != "zombie"]

    return found


def anatomy(shape: tuple[int, int, int] = (40, 36, 20), tumour: bool = True) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[8:30, 6:28, 4:16] = 1
    if tumour:
        label[8:13, 6:11, 4:8] = 2
    return label


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"patch_size": SIZE, "batch_size": 2, "steps": 10, **changes})


def world_image(shape: tuple[int, int, int]) -> np.ndarray:
    """Every voxel tells where it is."""
    x, y, z = np.indices(shape)
    return np.asarray(x + 40 * y + 1600 * z, np.int16)


def test_sample_number_decides_alone(make_case: MakeCase) -> None:
    cases = [make_case("a", anatomy()), make_case("b", anatomy(tumour=False))]
    augment = {
        f"{name}_probability": 0.5
        for name in ("affine", "flip", "gamma", "contrast", "blur", "low_resolution", "noise")
    }
    first, second = (PatchDataset(cases, config(augment=augment), resident_mb=mb) for mb in (0, 100))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    forward = {n: first[n] for n in range(8)}
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for n in reversed(range(8)):
        for one, other in zip(forward[n], second[n], strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(forward[0][0], forward[1][0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on", ["loader", "device"])
def test_stream_starts_anywhere(make_case: MakeCase, workers: int, on: str) -> None:
    augment = {"on": on, "affine_probability": 0.5, "gamma_probability": 1, "contrast_probability": 1}
    cases = [make_case("a", anatomy(), world_image((40, 36, 20)))]
    dataset = PatchDataset(cases, config(augment=augment, window_hu=(0, 32000)))
    whole = list(patch_stream(dataset, range(6), 2, ComputeConfig()))
    tail = list(patch_stream(dataset, range(4, 6), 2, ComputeConfig(loader_workers=workers)))
    assert (len(whole), len(tail)) == (6, 2)
    for one, other in zip(whole[4:], tail, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_processes_share_the_stream(make_case: MakeCase) -> None:
    """Process r of two takes every other half batch: together they see what one alone does."""
    dataset = PatchDataset([make_case("a", anatomy(), world_image((40, 36, 20)))], config())
    whole = [image for image, _ in patch_stream(dataset, range(3), 4, ComputeConfig())]
    halves = [
        [image for image, _ in patch_stream(dataset, range(rank, 6, 2), 2, ComputeConfig())]
        for rank in range(2)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch, torch.cat(parts))


def test_batches_are_windowed_voxels_with_their_labels(make_case: MakeCase) -> None:
    label = anatomy()
    dataset = PatchDataset([make_case("a", label, world_image(label.shape))], config(window_hu=(0, 32000)))
    (images, patches), *_ = patch_stream(dataset, range(1, 2), 3, ComputeConfig())
    assert (images.shape, images.dtype) == ((3, 1, *SIZE), torch.float32)
    assert (patches.shape, patches.dtype) == ((3, *SIZE), torch.uint8)
    for n, image, patch in zip(range(3, 6), images, patches, strict=True):
        start = dataset.place(n).start
        inside = tuple(slice(a, a + size) for a, size in zip(start, SIZE, strict=True))
        np.testing.assert_array_equal(patch.numpy(), label[inside])
        expected = world_image(label.shape)[inside]
        np.testing.assert_allclose((image[0].numpy() + 1) * 16000, expected, atol=0.01)


def test_turned_patches_show_the_voxels_around_their_place(make_case: MakeCase) -> None:
    """The centre stays where it was; a flip turns around it."""
    label = anatomy()
    cases = [make_case("a", label, world_image(label.shape))]
    augment = {"affine_probability": 1, "flip_probability": 0.5, "degrees": 15}
    turned = PatchDataset(cases, config(augment=augment, window_hu=(0, 32000)))
    for n in range(6):
        start = turned.place(n).start
        inside = tuple(slice(a, a + size) for a, size in zip(start, SIZE, strict=True))
        plain = world_image(label.shape)[inside].astype(float)
        image = (turned[n][0][0].numpy() + 1) * 16000
        centre = tuple(slice(size // 2 - 1, size // 2 + 1) for size in SIZE)
        assert image[centre].mean() == pytest.approx(plain[centre].mean(), abs=0.1)
        assert not np.allclose(image, plain, atol=20)


def test_small_volume_is_surrounded_by_air(make_case: MakeCase) -> None:
    label = np.ones((16, 10, 4), np.uint8)
    image, patch = PatchDataset([make_case("a", label)], config())[0]
    assert int(patch.sum()) == label.size
    assert float(image[patch[None] == 0].max()) == -1
    assert float(image[patch[None] == 1].min()) == pytest.approx(0)  # 50 HU, mid-window


def test_lesions_at_the_border_are_reached_everywhere(make_case: MakeCase) -> None:
    label = np.zeros((40, 36, 20), np.uint8)
    label[0, 0, 0] = 2
    label[39, 35, 19] = 2
    dataset = PatchDataset([make_case("a", label)], config(class_mixture=(0, 0, 1)))
    for n in range(20):
        _, patch = dataset[n]
        assert int((patch == 2).sum()) == 1


def test_jitter_moves_the_drawn_voxel_off_the_centre(make_case: MakeCase) -> None:
    label = np.zeros((60, 60, 60), np.uint8)
    label[30, 30, 30] = 2
    case = make_case("a", label)
    starts = {}
    for jitter in (0.0, 0.5):
        dataset = PatchDataset([case], config(class_mixture=(0, 0, 1), jitter=jitter))
        starts[jitter] = np.array([dataset.place(n).start for n in range(300)])
    assert np.unique(starts[0.0], axis=0).tolist() == [[22, 22, 26]]
    np.testing.assert_array_equal(np.ptp(starts[0.5], axis=0), [8, 8, 4])


def test_mixture_holds_when_a_case_lacks_a_class(make_case: MakeCase) -> None:
    mixture = (0.2, 0.3, 0.5)
    cases = [make_case("a", anatomy()), make_case("b", anatomy(tumour=False)), make_case("c", anatomy())]
    dataset = PatchDataset(cases, config(class_mixture=mixture))
    places = [dataset.place(n) for n in range(3000)]
    shares = np.bincount([place.label for place in places], minlength=3) / len(places)
    np.testing.assert_allclose(shares, mixture, atol=0.03)
    assert {place.case for place in places if place.label == 2} == {0, 2}


def test_positives_to_negatives(make_case: MakeCase) -> None:
    """One to one; positives are voxels of liver and tumour alike, so that most are liver."""
    label = anatomy()
    dataset = PatchDataset([make_case("a", label)], config(class_mixture=(0.5, 0, 0, 0.5)))
    drawn = np.bincount([dataset.place(n).label for n in range(3000)], minlength=3)
    voxels = np.bincount(label.ravel())
    expected = np.array([0.5, *(0.5 * voxels[1:] / voxels[1:].sum())])
    np.testing.assert_allclose(drawn / 3000, expected, atol=0.03)


def test_a_third_is_forced_to_foreground_and_the_rest_lies_anywhere(make_case: MakeCase) -> None:
    dataset = PatchDataset([make_case("a", anatomy())], config(class_mixture=(0, 1 / 6, 1 / 6, 0, 2 / 3)))
    places = [dataset.place(n) for n in range(3000)]
    anywhere = np.array([place.start for place in places if place.label is None])
    assert len(anywhere) / 3000 == pytest.approx(2 / 3, abs=0.03)
    for axis, room in enumerate((40 - 16, 36 - 16, 20 - 8)):
        found = np.bincount(anywhere[:, axis], minlength=room + 1)
        expected = np.full(room + 1, len(anywhere) / (room + 1))
        assert chi2_contingency([found, expected]).pvalue > 0.001


def test_same_class_mixture_as_label_sampler(make_case: MakeCase) -> None:
    label = anatomy((24, 24, 16))
    subject = tio.Subject(label=tio.LabelMap(tensor=torch.from_numpy(label)[None]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sampler = tio.LabelSampler(3, "label", {0: 0.2, 1: 0.3, 2: 0.5})
        theirs = [int(patch["label"].data[0, 1, 1, 1]) for patch in sampler(subject, 400)]
    dataset = PatchDataset([make_case("a", label)], config(patch_size=(3, 3, 3), jitter=0))
    ours = [int(dataset[n][1][1, 1, 1]) for n in range(400)]
    table = [np.bincount(drawn, minlength=3) for drawn in (ours, theirs)]
    assert chi2_contingency(table).pvalue > 0.01


def test_cases_that_cannot_train_are_refused(make_case: MakeCase) -> None:
    case = make_case("a", anatomy())
    unlabelled = Case("b", case.image, None, case.grid, {}, {})
    with pytest.raises(LiversegError, match="LS371: training case b has no label"):
        PatchDataset([case, unlabelled], config())
    with pytest.raises(LiversegError, match="LS372"):
        PatchDataset([make_case("c", anatomy(tumour=False))], config(class_mixture=(0, 0, 1)))


def test_resident_volumes_are_read_once_and_others_never_whole(make_case: MakeCase) -> None:
    case = make_case("a", anatomy())
    lazy, resident = (PatchDataset([case], config(), resident_mb=mb).volumes[0][0] for mb in (0, 1))
    assert isinstance(lazy, StoredVolume)
    np.testing.assert_array_equal(resident, case.image[...])


@pytest.mark.parametrize("workers", [0, 2])
def test_300_patches_leave_nothing_behind(
    make_case: MakeCase, loader_processes: LoaderProcesses, workers: int
) -> None:
    """Neither handles nor memory nor processes; what a first pass brings in, such as libraries, stays."""
    dataset = PatchDataset([make_case("a", anatomy((90, 80, 70)))], config(patch_size=(32, 32, 32)))
    compute, process = ComputeConfig(loader_workers=workers), psutil.Process()
    handles, megabytes = [], []
    for steps in (range(50), range(50, 150)):
        assert sum(1 for _ in patch_stream(dataset, steps, 2, compute)) == len(steps)
        gc.collect()
        handles.append(process.num_fds())
        megabytes.append(process.memory_info().rss >> 20)
    assert handles[1] <= handles[0]
    assert megabytes[1] <= megabytes[0] + 20
    assert not loader_processes()


def test_a_stream_left_early_ends_its_workers(make_case: MakeCase, loader_processes: LoaderProcesses) -> None:
    dataset = PatchDataset([make_case("a", anatomy())], config())
    stream = iter(patch_stream(dataset, range(1000), 2, ComputeConfig(loader_workers=2)))
    next(stream)
    assert len(loader_processes()) == 2
    del stream
    gc.collect()
    psutil.wait_procs(loader_processes(), timeout=20)
    assert not loader_processes()
