"""Engines for NVIDIA GPUs: TensorRT and Torch-TensorRT, what they share, and the check that they compute the same."""
