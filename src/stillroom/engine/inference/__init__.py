"""Networks that an inference engine runs: files of ONNX and OpenVINO as they are, and frozen teachers that are exported for them."""
