"""The stages of the pipeline, one file each, in the order in which a frame passes through them."""
