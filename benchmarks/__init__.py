"""Side-by-side timings against bare passes and against peers: one command each, ratios and no seconds."""
