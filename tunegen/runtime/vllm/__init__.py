"""The pack in vLLM 0.33: the op that finds a layer's cache in vLLM's forward context, and the layer that calls it.

vllm is imported where it is used, and found by probing; nothing here fails where it is not installed.
"""
