"""Face → head → hints: morphable head, fit, pose, camera, light, albedo, rasteriser, and the mixing
of heads.
"""
