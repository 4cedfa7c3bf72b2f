"""Pickles that lie, or would take forever."""

import io
import pickle

import pytest
from conftest import batch_bytes, smooth_images
from helpers import nested_key

from utils import unpickling


def test_keys_that_take_forever_to_hash():
    with pytest.raises(ValueError, match="another type"):
        unpickling.PickledDtype(((("u1",),),))
    for opcode in (b"u", b"s"):
        assert len(pickle.loads(nested_key(3, opcode))) == 1
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            unpickling.RestrictedUnpickler(io.BytesIO(nested_key(50, opcode))).load()


def test_an_array_that_is_stored_by_columns_is_refused():
    """Its images would be read in another order."""
    content = batch_bytes(smooth_images(2).reshape(2, -1), [3, 7])
    assert content.count(b"tb\x89T") == 1  # whether the order is Fortran's: no
    assert unpickling.RestrictedUnpickler(io.BytesIO(content)).load()[b"data"].array.shape == (2, 3072)
    with pytest.raises(ValueError, match="Fortran-ordered"):
        unpickling.RestrictedUnpickler(io.BytesIO(content.replace(b"tb\x89T", b"tb\x88T"))).load()


@pytest.mark.parametrize("order", ["<", "|", ">", "="])
def test_numbers_in_the_wrong_byte_order_are_refused(order):
    dtype = unpickling.PickledDtype("f8", 0, 1)
    for word in (order, order.encode()):
        if order in "<|":
            dtype.__setstate__((3, word, None, None, None, -1, -1, 0))
        else:
            with pytest.raises(ValueError, match="big-endian"):
                dtype.__setstate__((3, word, None, None, None, -1, -1, 0))


def test_a_negative_size_does_not_make_up_for_a_large_one():
    reader = unpickling.RestrictedUnpickler(io.BytesIO())
    for key, size in (("0", 1 << 40), ("1", -(1 << 40))):
        assert reader.persistent_load(("storage", None, key, "cpu", size, None)) is None
    assert reader.sizes == {0: 1 << 40, 1: 0}
