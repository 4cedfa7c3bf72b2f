"""A restricted unpickler for the files of CIFAR-10, the handout and torch.save: no code that a file names is run."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, ClassVar

import numpy as np

HOW_TO_SAVE = "save weights with torch.save(net.state_dict(), FILE)"


class PickledArray:
    """Stands in for numpy.ndarray while unpickling, so that a file cannot call into numpy."""

    def __setstate__(self, state: tuple) -> None:
        """Set `array`. Raises ValueError unless it is a plain array of bytes, floats or objects."""
        _, shape, dtype, fortran_order, content = state
        if fortran_order:
            raise ValueError("Fortran-ordered arrays are not supported")
        types = {"u1": "u1", "f8": "<f8"}
        self.array = content if dtype.code == "O8" else np.frombuffer(content, types[dtype.code]).reshape(shape)


class PickledDtype:
    """Stands in for numpy.dtype while unpickling; keeps only the type's name."""

    def __init__(self, code: str | bytes, *_: object):
        self.code = code.decode() if isinstance(code, bytes) else code
        if self.code not in ("u1", "f8", "O8"):
            raise ValueError("an array of another type")

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in (b"|", b"<", "|", "<"):
            raise ValueError("big-endian numbers are not supported")


OPCODES = (  # what CIFAR-10, the handout and torch.save write: none that runs code, builds a set or copies an object
    b"\x80.(cRb" + b"NKMJ\x8a\x88\x89G" + b"UTX" + b")t\x85\x86\x87" + b"]ae" + b"}su" + b"qrhj" + b"Q"
)


class Dispatch(dict):
    """The methods for opcodes; all that are not among them are refused."""

    def __missing__(self, opcode: int) -> None:
        raise pickle.UnpicklingError(f"it has an opcode that such a file does not need, {opcode}; {HOW_TO_SAVE}")


class RestrictedUnpickler(pickle._Unpickler):
    """Reads pickles of plain containers, of arrays as CIFAR-10 and the handout have them, and of tensors, as None.

    Python 2's strings are read as bytes. Nothing that a file names is ever imported or called: names map to the
    stand-ins, and any other name raises an error. No container may occur twice, since a few bytes could then stand for
    a structure that takes forever to hash or fills the memory. It derives from the pure-Python unpickler of the
    standard library, because the one in C allocates 64 GB of memory if a file asks for it.
    """

    stand_ins: ClassVar = {
        "collections.OrderedDict": OrderedDict,
        "numpy.core.multiarray._reconstruct": lambda *_: PickledArray(),
        "numpy.core.multiarray.scalar": lambda dtype, content: np.frombuffer(content, "<f8")[0],
        "numpy.ndarray": None,
        "numpy.dtype": PickledDtype,
        "torch._utils._rebuild_tensor": lambda *_: None,  # of PyTorch up to 0.3, in the handout
        "torch._utils._rebuild_tensor_v2": lambda *_: None,
        "torch._utils._rebuild_parameter": lambda *_: None,
    }
    dispatch: ClassVar = Dispatch({opcode: pickle._Unpickler.dispatch[opcode] for opcode in OPCODES})

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="bytes")
        self.sizes: dict[int, int] = {}  # the number of elements of each storage of tensors

    def load_get(self, load: Callable) -> None:
        load(self)
        top = self.stack[-1]
        if isinstance(top, tuple) and all(isinstance(part, (int, float, str)) for part in top):
            return  # as Adam's betas
        if isinstance(top, (dict, list, tuple, PickledArray)):
            raise pickle.UnpicklingError("a container that occurs twice")

    def set_items(self, items: list) -> None:
        if not all(type(key) in (bytes, str) or (type(key) is int and abs(key) < 1 << 31) for key in items[::2]):
            raise pickle.UnpicklingError("a key that is neither a string nor a small integer")
        self.stack[-1].update(zip(items[::2], items[1::2]))

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (OrderedDict, PickledArray, PickledDtype)):
            raise pickle.UnpicklingError("a state for an object that has none")
        super().load_build()

    dispatch |= {
        pickle.BINGET[0]: lambda self: self.load_get(pickle._Unpickler.load_binget),
        pickle.LONG_BINGET[0]: lambda self: self.load_get(pickle._Unpickler.load_long_binget),
        pickle.SETITEM[0]: lambda self: self.set_items([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.set_items(self.pop_mark()),
        pickle.BUILD[0]: load_build,
    }

    def find_class(self, module: str, name: str) -> object:
        wanted = f"{module}.{name}"
        if module == "torch" and name.endswith("Storage"):
            return None
        if wanted not in self.stand_ins:
            raise pickle.UnpicklingError(f"it asks for {wanted}, not only for weights; {HOW_TO_SAVE}")
        return self.stand_ins[wanted]

    def persistent_load(self, saved_id: tuple) -> None:
        _, _, key, _, size, *_ = saved_id
        self.sizes[int(key)] = max(0, size)  # an integer, since PyTorch ignores the case of names
