"""The real-time path: frames go through decode, track, segment, inpaint, smooth, encode."""
