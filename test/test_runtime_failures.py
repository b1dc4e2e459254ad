"""What a library raises while it computes is one error, whichever library it is; errors cross processes."""

from __future__ import annotations

import pickle

import pytest

from dinov3_seg_ros.runtimes.failures import runtime_failures
from dinov3_seg_ros.support.errors import (
    DisagreementError,
    ImageError,
    ItemError,
    MessageError,
    ParameterError,
    RuntimeFailedError,
    RuntimeUnavailableError,
)


@pytest.mark.parametrize(
    ("raised", "remedy"),
    [
        (MemoryError(), "smaller network size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "smaller network size"),
        (Exception("[ONNXRuntimeError] : Failed to allocate memory for requested buffer"), "smaller network size"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "start the process again"),
        (RuntimeUnavailableError("cudaStreamSynchronize failed: unspecified launch failure"), "start the process"),
        (ValueError("shapes differ"), ""),
    ],
)
def test_every_librarys_error_becomes_one_with_what_may_help(raised, remedy):
    with pytest.raises(RuntimeFailedError) as caught, runtime_failures("ONNX Runtime 1.31"):
        raise raised
    assert str(caught.value).startswith("ONNX Runtime 1.31 failed: ")
    assert remedy in str(caught.value)
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("error", [ImageError("no graph of this size"), ParameterError("unknown head")])
def test_an_error_of_the_input_stays_what_it_is(error):
    with pytest.raises(type(error), match=str(error)), runtime_failures("ONNX Runtime"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        MessageError("damaged data", "the JPEG is truncated"),
        DisagreementError("the labels differ", "labels", "rooms", (64, 96)),
        ItemError("mask.png cannot be read", "unreadable file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_whole_from_another_process(error):
    """A pool of processes that cannot unpickle an error waits for ever."""
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
