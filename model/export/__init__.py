"""Write a trained network as a bundle: SavedModel, ONNX, int8, report."""
