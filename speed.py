"""How a step of training is run: in which number format, compiled, and on CUDA without Python."""

import copy

import torch


def choose_precision(name, device):
    """Return the number format of the network's arithmetic in training, a torch.dtype, for a name of --precision.

    bfloat16 keeps weights and sums of float32 (torch.autocast); auto means that on
    CUDA where the GPU has it, and float32 elsewhere, with TF32 in convolutions. "fp32"
    is float32 throughout.
    """
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.backends.cudnn.conv.fp32_precision = "ieee" if name == "fp32" else "tf32"
    if name == "auto":
        name = "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


class GraphedStep:
    """trainer.step, made faster as --compile says, with the same results.

    Networks this small keep a GPU waiting for Python: on CUDA a few steps are run to
    warm up, one is recorded in a CUDA graph, and the rest repeat that. With `compile`
    "on" PyTorch's compiler rewrites the network first, on any device, which takes a
    minute or two. What fails is left out, with a line that says so.
    """

    WARM_UP = 3  # steps before recording, in which libraries choose algorithms and set up memory

    def __init__(self, trainer, compile, capture):
        self.trainer = trainer
        self.compiled = compile == "on"
        self.captured = compile != "off" and capture
        self.calls = 0
        self.graph = None

    def __call__(self, images, rates):
        """Take a step from images (N, 3, H, W), uint8, as Trainer.step does."""
        self.calls += 1
        if self.calls == 1:
            self.full = len(images)  # of all batches but an epoch's last
            if self.compiled:
                return self.with_eager_fallback(self.compile_step, images, rates)
        if not self.captured or len(images) != self.full:
            return self.trainer.step(images, rates)
        if self.calls <= self.WARM_UP:
            return self.warmup_step(images, rates)
        if self.graph is None:
            return self.with_eager_fallback(self.capture_step, images, rates)
        return self.replay(images, rates)

    def with_eager_fallback(self, faster, *batch):
        """Return what faster() does of a batch, or where it fails what the plain step does."""
        before = copy.deepcopy(self.trainer.state())
        try:
            return faster(*batch)
        except Exception as error:  # a compiler may fail in any way
            why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            print(f"--compile: {faster.__doc__} fails ({why:.150}); training goes on without", flush=True)
        self.captured = False
        self.trainer.uncompile()
        self.trainer.restore(before)
        return self.trainer.step(*batch)

    def compile_step(self, *batch):
        """compiling the network"""
        self.trainer.forward.compile(dynamic=False)
        return self.trainer.step(*batch)

    def warmup_step(self, *batch):
        """Take a plain step where a recording is possible later."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            figures = self.trainer.step(*batch)
        torch.cuda.current_stream().wait_stream(stream)
        return figures

    def capture_step(self, *batch):
        """recording a step in a CUDA graph"""
        self.inputs, graph = [tensor.clone() for tensor in batch], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.figures = self.trainer.step(*self.inputs)
        self.graph = graph
        return self.replay(*batch)

    def replay(self, *batch):
        """Repeat the recorded step, with another batch."""
        for recorded, tensor in zip(self.inputs, batch):
            recorded.copy_(tensor)
        self.graph.replay()
        return self.figures.clone()
