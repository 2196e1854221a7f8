"""CLIP-ViP: towers from open_clip, proxies and proxy-guided attention of our own, weights in and out."""
