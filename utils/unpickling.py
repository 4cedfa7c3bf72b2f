"""Restricted unpicklers for the files of CIFAR-10, the handout and torch.save: no code that a file names is run."""

import pickle
from collections import OrderedDict
from typing import ClassVar

import numpy as np


class PickledArray:
    """Stands in for numpy.ndarray while unpickling, so that a file cannot call into numpy."""

    def __setstate__(self, state):
        """Set `array`. Raises ValueError unless it is a plain array of bytes, floats or objects."""
        _, shape, dtype, fortran_order, content = state
        if fortran_order:
            raise ValueError("Fortran-ordered arrays are not supported")
        types = {"u1": "u1", "f8": "<f8"}
        self.array = content if dtype.code == "O8" else np.frombuffer(content, types[dtype.code]).reshape(shape)


class PickledDtype:
    """Stands in for numpy.dtype while unpickling; keeps only the type's name."""

    def __init__(self, code, *_):
        self.code = code.decode() if isinstance(code, bytes) else code
        if self.code not in ("u1", "f8", "O8"):
            raise ValueError("an array of another type")

    def __setstate__(self, state):
        if state[1] not in (b"|", b"<", "|", "<"):
            raise ValueError("big-endian numbers are not supported")


def check_keys(keys):
    """Raise UnpicklingError unless keys of dicts are strings or integers: hashing nested tuples can take forever."""
    if not all(type(key) in (bytes, str, int) for key in keys):
        raise pickle.UnpicklingError("a key that is neither a string nor an integer")


def ordered_dict(pairs=()):
    """Stands in for OrderedDict, which Python 2 pickled as a list of pairs."""
    check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


class RestrictedUnpickler(pickle._Unpickler):
    """Reads pickles of plain containers, of arrays as CIFAR-10 and the handout have them, and of tensors, as None.

    Nothing that a file names is ever imported or called: names map to the stand-ins, and any other
    name raises an error. It derives from the pure-Python unpickler of the standard library, because
    the one in C allocates 64 GB of memory if a file asks for it.
    """

    stand_ins: ClassVar = {
        "collections.OrderedDict": ordered_dict,
        "numpy.core.multiarray._reconstruct": lambda *_: PickledArray(),
        "numpy.core.multiarray.scalar": lambda dtype, content: np.frombuffer(content, "<f8")[0],
        "numpy.ndarray": None,
        "numpy.dtype": PickledDtype,
        "torch._utils._rebuild_tensor": lambda *_: None,  # of PyTorch up to 0.3, in the handout
        "torch._utils._rebuild_tensor_v2": lambda *_: None,
        "torch._utils._rebuild_parameter": lambda *_: None,
    }
    dispatch: ClassVar = {
        opcode: load
        for opcode, load in pickle._Unpickler.dispatch.items()
        if bytes([opcode]) not in (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)
    }

    def load_setitem(self):
        check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        check_keys(self.stack[::2])  # what was pushed after the mark: keys and values in turn
        super().load_setitems()

    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}

    def find_class(self, module, name):
        wanted = f"{module}.{name}"
        if module == "torch" and name.endswith("Storage"):
            return None
        if wanted not in self.stand_ins:
            raise pickle.UnpicklingError(f"it asks for {wanted}, which such a file does not need")
        return self.stand_ins[wanted]

    def persistent_load(self, saved_id):
        check_keys(part for part in saved_id if part is not None)


def unpickle(file):
    """Read one pickle of containers, arrays and tensors; Python 2's strings are returned as bytes, tensors as None."""
    return RestrictedUnpickler(file, encoding="bytes").load()
