"""Restricted unpicklers for the files of CIFAR-10, the handout and torch.save: no code that a file names is run."""

import pickle
from collections import OrderedDict
from typing import ClassVar

import numpy as np


class PickledArray:
    """Stands in for numpy.ndarray while unpickling, so that a file cannot call into numpy."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state

    def array(self):
        """Return the array. Raises ValueError unless it is a plain array of bytes, floats or objects."""
        _, shape, dtype, fortran_order, content = self.state
        if fortran_order:
            raise ValueError("Fortran-ordered arrays are not supported")
        if dtype.code == "O8":
            return content
        return np.frombuffer(content, {"u1": "u1", "f8": "<f8"}[dtype.code]).reshape(shape)


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
    """Reads pickles of plain containers and of what `stand_ins` lists.

    Nothing that a file names is ever imported or called: names map to the stand-ins, and any other
    name raises an error. It derives from the pure-Python unpickler of the standard library, because
    the one in C allocates 64 GB of memory if a file asks for it.
    """

    stand_ins: ClassVar = {}
    dispatch: ClassVar = {
        opcode: load
        for opcode, load in pickle._Unpickler.dispatch.items()
        if bytes([opcode]) not in (pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)
    }

    def load_setitem(self):
        items = self.stack[-2:]
        del self.stack[-2:]
        self.set_items(items)

    def load_setitems(self):
        self.set_items(self.pop_mark())

    def set_items(self, items):
        check_keys(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2]))

    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}

    def find_class(self, module, name):
        wanted = f"{module}.{name}"
        if wanted not in self.stand_ins:
            raise pickle.UnpicklingError(f"it asks for {wanted}, which such a file does not need")
        return self.stand_ins[wanted]


class ArrayUnpickler(RestrictedUnpickler):
    """Reads pickles with numpy arrays, as CIFAR-10 and the handout contain them."""

    stand_ins: ClassVar = {
        "numpy.core.multiarray._reconstruct": PickledArray,
        "numpy.core.multiarray.scalar": lambda dtype, content: np.frombuffer(content, "<f8")[0],
        "numpy.ndarray": None,
        "numpy.dtype": PickledDtype,
    }


class TensorUnpickler(RestrictedUnpickler):
    """Reads what torch.save pickles, with None in place of every tensor."""

    stand_ins: ClassVar = {
        "collections.OrderedDict": ordered_dict,
        "torch._utils._rebuild_tensor": lambda *_: None,  # of PyTorch up to 0.3, in the handout
        "torch._utils._rebuild_tensor_v2": lambda *_: None,
        "torch._utils._rebuild_parameter": lambda *_: None,
    }

    def find_class(self, module, name):
        return None if module == "torch" and name.endswith("Storage") else super().find_class(module, name)

    def persistent_load(self, saved_id):
        check_keys(part for part in saved_id if part is not None)


def unpickle(file):
    """Read one Python 2 pickle of containers and arrays; strings are returned as bytes."""
    return ArrayUnpickler(file, encoding="bytes").load()


def check_tensor_pickle(file):
    """Raise some exception if a pickle of torch.save's contains anything but plain containers and tensors."""
    TensorUnpickler(file, encoding="bytes").load()
