"""Requests and shapes."""

from __future__ import annotations

import pytest

from exadask.errors import InvalidQuantity
from exadask.resources import NodeShape, Resources, largest


def test_request_is_parsed_and_written() -> None:
    request = Resources.parse(cores=4, gpus=0.5, memory="2GiB", time="1h")
    assert (request.cores, request.gpu_units, request.gpus) == (4, 500, 0.5)
    assert (request.memory_bytes, request.time_s) == (2**31, 3600)
    assert str(request) == "4 cores, 0.5 GPU, 2 GiB of memory, 1h"
    assert repr(request) == "Resources(cores=4, gpus=0.5, memory='2 GiB', time='1h')"
    assert "4 cores" in request._repr_html_()


@pytest.mark.parametrize("cores", [0, -1, 1.5, "4", None, True, float("nan"), float("inf")])
def test_cores_are_whole_and_positive(cores: object) -> None:
    with pytest.raises(InvalidQuantity, match="cores="):
        Resources.parse(cores=cores)  # type: ignore[arg-type]  # nonsense on purpose


@pytest.mark.parametrize("gpus", [-1, 1.5, 0.0001, "one", None, True, float("nan"), float("inf")])
def test_gpus_are_whole_or_a_share(gpus: object) -> None:
    with pytest.raises(InvalidQuantity, match="gpus="):
        Resources.parse(gpus=gpus)  # type: ignore[arg-type]  # nonsense on purpose


def test_three_thirds_fit_a_gpu() -> None:
    assert 3 * Resources.parse(gpus=1 / 3).gpu_units <= 1000


def test_shape_fits_what_it_could_ever_run() -> None:
    shape = NodeShape.declare(cores=4, gpus=1, memory="8GiB")
    assert shape.fits(Resources.parse(cores=4, gpus=1, memory="8GiB"))
    assert not shape.fits(Resources.parse(cores=5))
    assert not shape.fits(Resources.parse(gpus=2))
    assert not shape.fits(Resources.parse(memory="9GiB"))
    assert str(shape) == "4 cores, 1 GPU, 8 GiB of memory"


def test_largest_shape_is_the_widest() -> None:
    shapes = [NodeShape.declare(cores=2, gpus=4), NodeShape.declare(cores=8)]
    assert largest(shapes) is shapes[1]
