"""The networks, the face geometry that they share, and the engines that run them. No input or output."""
