"""tunegen: kernels for LLM inference, rendered for the model, tuned on the GPU, emitted as a torch op pack."""

__version__ = "0.1.0"
