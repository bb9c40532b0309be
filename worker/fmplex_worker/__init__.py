"""The GPU process: one physical FM on one device, serving the vFMs that live on it."""
