"""The engine: one physical FM on one device. It turns a plan into one run of the backbone."""
