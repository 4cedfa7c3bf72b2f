"""Training steps on CUDA without Python: one step is recorded in a CUDA graph, which then repeats it."""

import torch


class GraphedStep:
    """Trainer.step() with the same results, recorded in a CUDA graph.

    Networks this small keep a GPU waiting for Python. A few steps run as usual to warm
    up, one is recorded, and the graph replays it for every further batch of that size.
    If the recording fails, a line says so and all steps run as usual.
    """

    WARMUP_STEPS = 3  # before recording, in which libraries choose algorithms and allocate memory

    def __init__(self, trainer):
        self.trainer = trainer
        self.calls = 0
        self.graph = None
        self.failed = False

    def __call__(self, images, scale=1):
        """Take a step with a batch of images (N, 3, H, W), uint8; return its metrics. The scale must be 1."""
        self.calls += 1
        if self.calls == 1:
            self.batch_size = len(images)  # of all batches but an epoch's last
        if self.failed or len(images) != self.batch_size:
            return self.trainer.step(images)
        if self.calls <= self.WARMUP_STEPS:
            return self.warmup_step(images)
        if self.graph is None and not self.record(images):
            return self.trainer.step(images)
        self.images.copy_(images)
        self.graph.replay()
        return self.metrics.clone()

    def warmup_step(self, images):
        """Take a step on a stream of its own, as recording requires."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            metrics = self.trainer.step(images)
        torch.cuda.current_stream().wait_stream(stream)
        return metrics

    def record(self, images):
        """Record a step without running it; return whether that succeeded."""
        self.images, graph = images.clone(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.metrics = self.trainer.step(self.images)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(f"recording a CUDA graph failed ({reason:.150}); training runs without", flush=True)
            self.trainer.optimizer.zero_grad()  # of the step that was not run
            self.failed = True
            return False
        self.graph = graph
        return True
