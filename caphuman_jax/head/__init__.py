"""Face → head → hints: morphable head, fit, pose, camera, light, albedo, rasterizer, and the mixing
of heads.
"""
