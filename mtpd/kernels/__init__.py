"""Fused GPU kernels, each with a reference in plain PyTorch that machines without Triton take."""
