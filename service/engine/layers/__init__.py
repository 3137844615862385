"""What is known of each layer from the graph alone: axes, geometry, cost, stages."""
