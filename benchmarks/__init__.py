"""Speed and memory of the losses beside what a user would write instead: `python -m benchmarks --help`."""

import os

# The memory profiler talks of GPUs it did not find and of tensors older than itself. Read when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
