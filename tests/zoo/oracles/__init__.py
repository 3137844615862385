"""What is true of a network, found without the engine: by torch, timm and onnxruntime on the whole graph."""
