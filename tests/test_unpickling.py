"""Pickles that would take forever."""

import io
import pickle

import pytest
from helpers import nested_key

from utils import unpickling


def test_keys_that_take_forever_to_hash():
    with pytest.raises(ValueError, match="another type"):
        unpickling.PickledDtype(((("u1",),),))
    for opcode in (b"u", b"s"):
        assert len(pickle.loads(nested_key(3, opcode))) == 1
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            unpickling.unpickle(io.BytesIO(nested_key(50, opcode)))
