"""Policies as one ONNX file: export, verification, runtime."""
