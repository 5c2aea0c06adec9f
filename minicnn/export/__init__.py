"""Trained models for other programs: ONNX files, and weights as safetensors."""

from minicnn.export.onnx import to_onnx
from minicnn.export.onnx_reader import from_onnx
from minicnn.export.safetensors import load_safetensors, save_safetensors

__all__ = ["from_onnx", "load_safetensors", "save_safetensors", "to_onnx"]
