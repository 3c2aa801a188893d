"""What ships: networks to run (ONNX, TFLite), weights for further training (safetensors), a model card beside each."""
