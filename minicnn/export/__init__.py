"""Trained models for other programs: ONNX files, and weights as safetensors."""

from minicnn.export.onnx import to_onnx
from minicnn.export.safetensors import load_safetensors, save_safetensors

__all__ = ["load_safetensors", "save_safetensors", "to_onnx"]
