"""Training steps as a CUDA graph: one step is captured and replayed, without Python's overhead."""

import torch


class GraphedStep:
    """Trainer.step() captured in a CUDA graph, with the same results.

    For networks this small, Python's overhead leaves a GPU idle. After a few warm-up steps one is captured and replayed
    for every further batch of that size. If the capture fails, a line says so and all steps run as usual.
    """

    WARMUP_STEPS = 3  # before the capture; libraries choose algorithms and allocate memory in them

    def __init__(self, trainer):
        self.trainer, self.calls, self.graph = trainer, 0, None

    def __call__(self, pixels, scale=1):
        """Take a step with a batch of pixels (N, C, H, W), uint8; return its loss. The scale must be 1."""
        self.calls += 1
        if self.calls == 1:
            self.batch_size = len(pixels)  # every batch has this size except an epoch's last
        if len(pixels) != self.batch_size:
            return self.trainer.step(pixels)
        if self.calls <= self.WARMUP_STEPS:
            return self.warmup_step(pixels)
        if self.graph is None and not self.capture(pixels):
            return self.trainer.step(pixels)
        self.static_pixels.copy_(pixels)
        self.graph.replay()
        return self.static_loss.clone()

    def warmup_step(self, pixels):
        """Take a step on a side stream, as capturing requires."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self.trainer.step(pixels)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def capture(self, pixels):
        """Capture a step without running it; return whether that succeeded."""
        self.static_pixels, graph = pixels.clone(), torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                self.static_loss = self.trainer.step(self.static_pixels)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(f"CUDA graph capture failed ({reason:.150}); training continues without it", flush=True)
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream current
            self.batch_size = None  # that of no batch: all further steps run as usual
            return False
        self.graph = graph
        return True
